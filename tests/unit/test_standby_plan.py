"""What the warm standby needs next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ovs_hotswap.watchdog.standby_plan import StandbyState, Task, next_restart_task, next_task


@pytest.mark.parametrize(
    ("state", "task"),
    [
        (StandbyState(active_runs=False, standby_runs=True, prepared=True), Task.NOTHING),
        (StandbyState(active_runs=False, standby_runs=True), Task.RESTART),
        (StandbyState(active_runs=False, standby_runs=False, may_restart=False), Task.NOTHING),
        (StandbyState(active_runs=False, standby_runs=False, may_start=False), Task.RESTART),
        (StandbyState(active_runs=True, standby_runs=False, standby_dead=True, settle=True), Task.SETTLE),
        (StandbyState(active_runs=True, standby_runs=False, standby_dead=True, may_start=False), Task.CLEAN),
        (StandbyState(active_runs=True, standby_runs=False), Task.START),
        (StandbyState(active_runs=True, standby_runs=False, may_start=False), Task.NOTHING),
        (StandbyState(active_runs=True, standby_runs=True, right_release=False, prepared=True), Task.REPLACE),
        (StandbyState(active_runs=True, standby_runs=True), Task.PREPARE),
        (StandbyState(active_runs=True, standby_runs=True, may_start=False), Task.NOTHING),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, outdated=True), Task.PROGRAM),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, strays=("a",), unparked=("b",)), Task.RETURN),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True, unparked=("b",)), Task.PARK),
        (StandbyState(active_runs=True, standby_runs=True, prepared=True), Task.NOTHING),
    ],
)
def test_one_task_at_a_time(state: StandbyState, task: Task) -> None:
    assert next_task(state) is task


def test_vms_return_from_a_standby_that_cannot_be_prepared_for_long() -> None:
    """Given up on, or between two attempts: its uplink is not the one that is steered to."""
    waits = StandbyState(active_runs=True, standby_runs=True, prepared=False, strays=("vm1",), may_start=False)
    assert next_task(waits) is Task.RETURN
    assert next_task(replace(waits, may_start=True)) is Task.PREPARE
    assert next_task(replace(waits, strays=())) is Task.NOTHING


def test_a_lost_database_server_comes_before_everything_that_needs_it() -> None:
    house = StandbyState(active_runs=True, standby_runs=False, broken=True, standby_dead=True, settle=True)
    assert next_task(house) is Task.MEND
    assert next_task(replace(house, broken=False)) is Task.SETTLE
    assert next_task(replace(house, broken=False, settle=False)) is Task.CLEAN
    assert next_task(replace(house, active_runs=False)) is Task.RESTART


def test_a_standby_that_was_never_prepared_is_nowhere_to_go() -> None:
    lost = StandbyState(active_runs=False, standby_runs=False, prepared=True)
    assert next_task(lost) is Task.RESTART
    assert next_task(replace(lost, standby_runs=True)) is Task.NOTHING


@pytest.mark.parametrize(
    ("state", "task"),
    [
        (StandbyState(active_runs=False, standby_runs=False, keeps=False), Task.RESTART),
        (StandbyState(active_runs=True, standby_runs=False, broken=True, keeps=False), Task.MEND),
        (StandbyState(active_runs=True, standby_runs=False, settle=True, keeps=False), Task.SETTLE),
        (StandbyState(active_runs=True, standby_runs=False, standby_dead=True, keeps=False), Task.NOTHING),
        (StandbyState(active_runs=True, standby_runs=False, keeps=False), Task.NOTHING),
    ],
)
def test_without_a_standby_only_the_active_instance_is_kept(state: StandbyState, task: Task) -> None:
    assert next_task(state) is task


@pytest.mark.parametrize(
    ("seen", "task"),
    [
        ({"runs": False}, Task.RESTART),
        ({"runs": False, "may_restart": False}, Task.NOTHING),
        ({"broken": True, "waits": True}, Task.MEND),
        ({"waits": True}, Task.RESTORE),
        ({}, Task.NOTHING),
    ],
)
def test_what_an_instance_needs_whose_host_others_program(seen: dict[str, bool], task: Task) -> None:
    well = {"runs": True, "broken": False, "waits": False, "may_restart": True}
    assert next_restart_task(**{**well, **seen}) is task


def test_the_log_names_the_tasks_so() -> None:
    assert [str(task) for task in Task] == [
        "nothing", "mend", "settle", "restart", "restore", "clean", "replace", "start", "prepare", "program", "return",
        "park",
    ]  # fmt: skip

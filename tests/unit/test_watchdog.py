"""The watchdog's acts on a host that exists only in the test: in which order, and what it refuses to do."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BusyError, HostError
from ovs_hotswap.host import standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.system import System
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.daemon import Watchdog
from ovs_hotswap.watchdog.health import Answer, Health
from ovs_hotswap.watchdog.probes import ExitPoller, MainThreadProbe
from ovs_hotswap.watchdog.standby_plan import Task
from tests.unit.fake_system import FakeSystem
from tests.unit.watch_bed import RELEASE, Bed, World
from tests.unit.watch_bed import config as config


def test_what_could_not_be_recorded_for_the_next_boot_is_recorded_later(config: Config) -> None:
    bed = Bed(config)
    bed.world.full, bed.world.no_writing = {bed.config.restore_file.name}, errno.EROFS
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.B)
    bed.world.parked = {name: {Side.A} for name in bed.world.owner}
    record = standby.StandbyRecord(side=Side.A, pid=1, log_level="info", scheduling=None, prepared=True)
    standby.record_path(bed.config).write_text(record.model_dump_json())
    assert bed.host.record_now(Side.B)
    assert bed.keeper.turn() is Task.PROGRAM
    with pytest.raises(HostError, match="Read-only"):
        bed.keeper.turn()
    bed.world.full = set()
    assert bed.keeper.turn() is Task.NOTHING
    last = bed.host.last_active()
    assert last is not None
    assert last.side is Side.B


def test_a_healthy_active_is_left_alone(config: Config) -> None:
    bed = Bed(config)
    assert [bed.look() for _ in range(50)] == [Health.HEALTHY] * 50
    assert bed.world.done == []


def test_a_death_steers_and_records(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.A)
    assert bed.look({Side.A}) is Health.FAILED
    assert bed.world.done == ["steer b", "reload"]
    assert bed.host.recorded_active() is Side.B
    (event,) = bed.events()
    assert (event["event"], event["from"], event["to"], event["signal"]) == ("failover", "a", "b", "process")
    assert set(event["ms"]) == {"steered", "owned", "recorded"}
    assert (event["moved"], event["left"]) == (2, [])


def test_a_stopped_active_is_killed_before_anything_is_given_away(config: Config) -> None:
    bed = Bed(config)
    bed.world.stopped_pids = {1}
    while bed.look() is not Health.FAILED:
        assert bed.world.done == []
    assert bed.world.done == ["kill a", "steer b", "reload"]
    assert "fenced" in bed.events()[0]["ms"]


def test_a_hung_active_is_not_killed_where_there_is_nowhere_to_go(config: Config) -> None:
    """Its PMD thread stands still; another one may not."""
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    for _ in range(100):
        bed.look()
        bed.main.turn()
    assert bed.look() is Health.FAILED
    assert bed.world.done == []
    state = status_file.read_state(config)
    assert state is not None
    assert "no standby" in state["failover_problem"]


def test_a_stopped_active_is_ended_and_started_again_where_there_is_nowhere_to_go(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    bed.world.stopped_pids = {1}
    for _ in range(10):
        bed.look()
    assert bed.world.done == ["kill a"]
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.RESTART


def test_an_upgrade_s_parked_vms_are_a_refuge_too(config: Config) -> None:
    bed = Bed(config, prepared=False)
    with bed.host.lock():
        bed.world.die(Side.A)
        bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B


def unparked_in_upgrade(config: Config) -> Bed:
    """An upgrade has begun, its new instance is connected, and nothing is parked on it yet. The active hangs."""
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    with Journals(config.state_dir, bed.world).begin("upgrade", StepNames(("park",))):
        pass
    bed.world.stopped_pids = {1}
    return bed


def test_an_active_that_hangs_before_an_upgrade_has_parked_is_replaced_too(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    with bed.host.lock():
        for _ in range(10):
            bed.look()
    assert bed.world.done == ["kill a", "steer b", "park vm1 b", "park vm2 b", "reload"]
    assert bed.host.recorded_active() is Side.B


def test_nobody_is_sent_to_a_new_instance_that_no_upgrade_works_on(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    for _ in range(10):
        bed.look()
    assert bed.world.done == []


def test_configurations_of_one_run_directory_have_one_lock(config: Config, tmp_path: Path) -> None:
    """The instances are the run directory's, wherever the journals are."""
    other = config.model_copy(update={"state_dir": tmp_path / "other"})
    with Bed(config).host.lock(), pytest.raises(BusyError), Host(other, FakeSystem()).lock():
        pass


def test_where_no_instance_is_left_of_an_unfinished_upgrade_the_active_is_started(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    assert bed.keeper.turn() is Task.NOTHING
    for side in Side:
        bed.world.die(side)
    with bed.host.lock(), pytest.raises(BusyError):
        bed.keeper.turn()
    assert bed.world.done == []
    assert bed.keeper.turn() is Task.RESTART
    assert bed.world.done == ["start a host", "program a", "steer a"]


def test_the_standby_that_an_upgrade_made_the_active_instance_is_no_longer_called_the_standby(config: Config) -> None:
    bed = Bed(config)
    while bed.keeper.turn() is not Task.NOTHING:
        pass
    assert (status_file.read_state(config) or {})["standby"] == Side.B
    with Journals(config.state_dir, bed.world).begin("upgrade", StepNames((), ("retire",))) as journal:
        assert bed.keeper.turn() is Task.NOTHING
        assert (status_file.read_state(config) or {})["standby"] == Side.B
        journal.append(Record(Kind.COMMIT))
        bed.host.record_active(Side.B)
        assert bed.keeper.turn() is Task.NOTHING
        told = status_file.read_state(config) or {}
    assert (told["active"], told["standby"], told["keeping"]) == (Side.B, None, "an upgrade is not finished")


def test_an_upgrade_that_has_retired_the_old_instance_leaves_it_to_the_keeper(config: Config) -> None:
    bed = Bed(config, prepared=False)
    with Journals(config.state_dir, bed.world).begin("upgrade", StepNames((), ("retire", "postcheck"))) as journal:
        journal.append(Record(Kind.COMMIT))
        journal.append(Record(Kind.START, "retire"))
        bed.world.pid[Side.B], bed.world.state[Side.B] = None, State.STOPPED
        assert bed.keeper.turn() is Task.NOTHING
        journal.append(Record(Kind.DONE, "retire"))
    assert bed.keeper.turn() is Task.START
    assert bed.world.done == ["start b host"]


def test_a_broker_that_forgot_what_is_parked_is_told_again(config: Config) -> None:
    bed = Bed(config)
    bed.world.parked["vm2"] = set()
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert "park vm2 b" in bed.world.done
    assert bed.world.owner["vm2"] is Side.B


def test_an_uplink_that_cannot_be_steered_is_tried_again(config: Config) -> None:
    bed = Bed(config)
    bed.host.fake_uplink.failures = 2
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.A
    for _ in range(50):
        bed.look()
    assert bed.host.recorded_active() is Side.B
    assert len(bed.events()) == 1


def test_the_uplink_comes_back_from_a_standby_that_dies_in_an_upgrade(config: Config) -> None:
    bed = Bed(config)
    bed.world.uplink_owner = Side.B
    bed.world.die(Side.B)
    bed.look({Side.B})
    assert bed.world.done == ["steer a"]
    assert bed.host.recorded_active() is Side.A


def test_a_standby_that_dies_changes_nothing_for_the_vms(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    bed.look({Side.B})
    assert bed.world.done == []


def test_an_instance_that_a_fail_over_counts_is_not_counted_once_more(config: Config) -> None:
    """The keeper may look between the record of the new active instance and the end of the failover."""
    bed = Bed(config)
    bed.keeper.expect(bed.world.now)
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.events() == []


def test_a_dead_standby_is_cleaned_and_counted(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]
    assert [event["event"] for event in bed.events()] == ["standby-died"]
    assert bed.keeper.turn() is Task.NOTHING  # the back-off
    bed.world.now += 1.5
    assert bed.keeper.turn() is Task.START


def test_a_standby_that_stands_still_is_replaced(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.stopped_pids = {2}
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.stopped_pids = set()
    bed.world.now += 1.0
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.stopped_pids = {2}
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.now += 1.0
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]
    assert bed.events()[-1]["event"] == "standby-died"


def test_an_active_without_its_database_is_given_one(config: Config) -> None:
    bed = Bed(config)
    bed.world.no_database = {Side.A}
    assert bed.keeper.turn() is Task.MEND
    assert bed.world.done == ["restart_ovsdb a"]
    assert not bed.host.instances[Side.A].lacks_database()
    assert [event["event"] for event in bed.events()] == ["database"]


def test_a_standby_without_its_database_is_replaced(config: Config) -> None:
    bed = Bed(config)
    bed.world.no_database = {Side.B}
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]


def test_a_crash_loop_ends(config: Config) -> None:
    bed = Bed(config)
    for _ in range(20):
        if bed.world.pid[Side.B] is not None:
            bed.world.die(Side.B)
        bed.keeper.turn()
        bed.world.now += 20
        bed.keeper.turn()
    assert sum(each.startswith("start") for each in bed.world.done) == config.watch.crash_limit - 1
    assert bed.events()[-1]["event"] == "gave-up"
    state = status_file.read_state(config)
    assert state is not None
    assert state["gave_up"]


def test_the_keeper_does_nothing_while_an_upgrade_holds_the_lock(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    with bed.host.lock(), pytest.raises(BusyError, match="already under way"):
        bed.keeper.turn()
    assert bed.world.done == []


def test_an_upgrade_waits_for_the_watchdog_and_for_nobody_else(config: Config) -> None:
    bed = Bed(config)
    own = os.getpid()
    bed.world.processes[own] = ["watch"]
    begun = bed.world.now
    with bed.host.lock():
        with pytest.raises(BusyError), bed.host.lock(60.0):
            pass
        assert bed.world.now == begun
        status_file.lock_path(config).write_text(str(own))
        with pytest.raises(BusyError), bed.host.lock(60.0):
            pass
        assert bed.world.now >= begun + 60.0


def test_the_keeper_takes_no_lock_when_nothing_is_to_do(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    with bed.host.lock():
        assert bed.keeper.turn() is Task.NOTHING


def test_a_vm_that_the_standby_took_is_returned(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.owner["vm1"] = Side.B
    assert bed.keeper.turn() is Task.RETURN
    assert bed.world.done == ["park vm1 a", "move vm1 a"]


@pytest.mark.parametrize("other", ["release", "files"])
def test_an_upgrade_to_something_else_ends_the_standby(config: Config, other: str) -> None:
    bed = Bed(config)
    bed.world.outdated = other == "files"
    wanted = replace(RELEASE, ovs_version="9.9.9") if other == "release" else RELEASE
    assert not standby.release_for_upgrade(bed.host, Side.A, wanted)
    assert bed.world.done == ["stop b"]
    assert bed.world.parked == {"vm1": set(), "vm2": set()}
    assert not standby.release_for_upgrade(bed.host, Side.A, wanted)


def test_off_does_nothing(config: Config) -> None:
    off = config.model_copy(update={"watch": config.watch.model_copy(update={"mode": "off"})})
    Watchdog(off, System()).run()
    assert not config.run_dir.exists()


def test_a_second_watchdog_is_refused(config: Config) -> None:
    config.run_dir.mkdir()
    system = System()
    with (
        system.lock(status_file.lock_path(config), "a watchdog"),
        pytest.raises(BusyError, match="a watchdog is already"),
    ):
        Watchdog(config, system).run()


def test_a_half_written_event_is_skipped(config: Config) -> None:
    board = status_file.StatusFile(config, World([]))
    board.event("standby", side=Side.A)
    with status_file.events_path(config).open("a") as out:
        out.write('{"event": "fail')
    assert [event["event"] for event in status_file.last_events(config, 5)] == ["standby"]
    assert json.loads(status_file.events_path(config).read_text().splitlines()[0])["side"] == "a"


def test_events_take_a_bounded_place(config: Config) -> None:
    board = status_file.StatusFile(config, World([]))
    for number in range(12):
        board.event(f"{number}", text="x" * (status_file.MOST_EVENTS // 4))
    sizes = [path.stat().st_size for path in config.state_dir.glob("events*.jsonl")]
    assert len(sizes) == 2
    assert max(sizes) <= status_file.MOST_EVENTS * 5 // 4 + 1024
    status_file.events_path(config).replace(status_file.older_events_path(config))
    for number in range(2):
        board.event(f"small-{number}")
    status_file.events_path(config).replace(status_file.older_events_path(config))
    board.event("newest")
    assert [event["event"] for event in status_file.last_events(config, 2)] == ["small-1", "newest"]


# ------------------------------------------------------------------------------------------------------------ vitals


def test_the_main_thread_s_answer_and_silence_are_seen() -> None:
    clock = [0.0]
    replies: list[Any] = [{0: 5}, NoAnswer("no answer"), {0: 6}]

    def ask(_ctl: Path, _timeout: float, _before: Any) -> Any:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    main = MainThreadProbe(lambda: clock[0], 1.0, ask)
    main.turn()
    assert main.seen() == (False, None)  # there is no process to ask
    main.watch(Path("/ctl"), 1)
    main.turn()
    assert main.seen() == (False, Answer(0.0, {0: 5}))
    main.turn()
    assert main.seen() == (True, Answer(0.0, {0: 5}))
    clock[0] = 2.0
    main.turn()
    assert main.seen() == (False, Answer(2.0, {0: 6}))
    main.watch(Path("/ctl"), 2)
    assert main.seen() == (False, None)


def test_a_death_is_told_once(tmp_path: Path) -> None:
    system, deaths = System(), ExitPoller()
    pid = system.spawn(["sleep", "60"], log=tmp_path / "log")
    try:
        deaths.track({Side.A: pid, Side.B: None})
        assert deaths.wait(0.01) == set()
        system.kill(pid, grace=0)
        assert deaths.wait(10.0) == {Side.A}
        assert deaths.wait(0.01) == set()
    finally:
        deaths.close()
        if system.alive(pid):
            system.kill(pid)


@pytest.mark.parametrize(("queues", "microseconds"), [(0, 2000), (1, 2000), (20, 3200), (64, 10_000), (1020, 10_000)])
def test_a_standby_with_more_queues_sleeps_longer(queues: int, microseconds: int) -> None:
    assert standby.idle_sleep_us(queues) == microseconds

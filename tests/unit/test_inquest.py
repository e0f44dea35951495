"""A guest that ends every instance that serves it is found, and no other guest is blamed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest

from ovs_hotswap.backends import BackendMode, VmStatus
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.host import culprit
from ovs_hotswap.host.culprit import ON_TRIAL, Inquest, begin, died, survived
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.upgrade import collect
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.standby_plan import Task
from tests.support.fake_backends import FakeBackEnds, vm_status
from tests.unit.watch_bed import Bed
from tests.unit.watch_bed import config as config

VMS = [f"vm{number}" for number in range(1, 256)]


def run(vms: list[str], poison: set[str], *, always: bool = False) -> Inquest:
    """``always``: instances end whomever they serve."""
    found, rounds = begin(vms, 0.3, 0.0), 0
    while not found.closed:
        served = set(vms) - found.held
        assert not set(found.guilty) & served
        found = (died if always or served & poison else survived)(found, float(rounds))
        rounds += 1
    assert rounds <= 8 * (len(poison) + 1) * 3
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 64, 255])
def test_each_vm_is_found_wherever_it_stands(count: int) -> None:
    vms = VMS[:count]
    for guilty in (vms[0], vms[count // 2], vms[-1]):
        found = run(vms, {guilty})
        assert found.guilty == (guilty,)
        assert found.held == {guilty}
        assert found.explained


@pytest.mark.parametrize("poison", [{"vm1", "vm2"}, {"vm1", "vm4"}, {"vm2", "vm3", "vm4"}])
def test_several_are_found(poison: set[str]) -> None:
    assert set(run(VMS[:4], poison).guilty) == poison


@pytest.mark.parametrize("count", [1, 2, 4, 255])
def test_instances_that_end_whomever_they_serve_are_no_vm_s_fault(count: int) -> None:
    found = run(VMS[:count], set(), always=True)
    assert (found.guilty, found.held, found.explained) == ((), frozenset(), False)


def test_where_nothing_happens_again_nobody_is_blamed() -> None:
    found = run(VMS[:4], set())
    assert (found.guilty, found.held) == ((), frozenset())


def test_a_quick_death_makes_the_next_trials_short() -> None:
    """All VMs may be held back for that long."""
    found = begin(VMS[:4], 20.0, 100.0)
    assert found.window_s == 30.0
    found = died(found, 101.0)
    assert found.window_s == 2.5
    assert died(found, 121.0).window_s == 2.5


def test_one_is_found_with_few_deaths() -> None:
    assert max(run(VMS, {vm}).deaths for vm in VMS) <= 3 + 8 + 1


# ------------------------------------------------------------------------------------------- by the watchdog


class Host:
    """The bed, and what happens there: an instance ends 0.3 s after it was given a VM of ``poison``."""

    def __init__(self, config: Config, poison: set[str]) -> None:
        self.bed, self.poison = Bed(config), poison
        self.bed.world.owner = dict.fromkeys(["vm1", "vm2", "vm3", "vm4"], Side.A)
        self.bed.world.parked = {name: {Side.B} for name in self.bed.world.owner}
        self.due: float | None = None
        self.deaths = 0

    def run(self, seconds: float) -> None:
        world, bed = self.bed.world, self.bed
        end = world.now + seconds
        while world.now < end:
            dead: set[Side] = set()
            serving = {side for name, side in world.owner.items() if name in self.poison and side is not None}
            if serving and self.due is None:
                self.due = world.now + 0.3
            if self.due is not None and world.now >= self.due:
                self.due = None
                for side in serving:
                    world.die(side)
                    dead.add(side)
                    self.deaths += 1
            bed.look(dead)
            with contextlib.suppress(HotswapError):
                bed.keeper.turn()

    @property
    def served(self) -> set[str]:
        world = self.bed.world
        return {name for name, side in world.owner.items() if side is not None and world.pid[side] is not None}


@pytest.mark.parametrize(
    ("culprit", "mode"),
    [
        ("vm1", BackendMode.BROKER),
        ("vm3", BackendMode.BROKER),
        ("vm4", BackendMode.BROKER),
        ("vm3", BackendMode.QEMU_DUAL),
    ],
)
def test_a_poison_guest_is_cut_off_and_the_others_go_on(config: Config, culprit: str, mode: BackendMode) -> None:
    host = Host(config.model_copy(update={"backend": mode}), {culprit})
    host.run(30)
    assert host.served == {"vm1", "vm2", "vm3", "vm4"} - {culprit}
    deaths = host.deaths
    host.run(30)
    assert host.deaths == deaths <= 7
    found = status_file.read_state(config)
    assert found is not None
    assert list(found["quarantined"]) == [culprit]
    assert "times" in found["quarantined"][culprit]
    assert (found["gave_up"], found["failures"]) == (False, 0)
    assert found["unprotected"] == []
    assert [event["vm"] for event in host.bed.events() if event["event"] == "quarantine"] == [culprit]


def test_two_deaths_far_from_one_another_have_nothing_in_common(config: Config) -> None:
    host = Host(config, set())
    host.run(5)
    for side in (Side.A, Side.B):
        host.bed.world.die(side)
        host.bed.look({side})
        host.run(culprit.SUSPICIOUS_S + 5)
    assert not [event for event in host.bed.events() if event["event"] == "trial"]
    assert host.served == {"vm1", "vm2", "vm3", "vm4"}


def test_two_deaths_may_be_a_coincidence(config: Config) -> None:
    host = Host(config, set())
    host.run(5)
    for side in (Side.A, Side.B):
        host.bed.world.die(side)
        host.bed.look({side})
        host.run(5)
    assert not [event for event in host.bed.events() if event["event"] == "trial"]
    assert host.served == {"vm1", "vm2", "vm3", "vm4"}


def test_the_crash_window_bounds_what_is_a_short_life(config: Config) -> None:
    watch = config.watch.model_copy(update={"crash_window_s": 3.0, "crash_limit": 100})
    host = Host(config.model_copy(update={"watch": watch}), set())
    host.run(5)
    for side in (Side.A, Side.B, Side.A, Side.B):
        host.bed.world.die(side)
        host.bed.look({side})
        host.run(5)
    assert not [event for event in host.bed.events() if event["event"] == "trial"]


def test_a_broker_that_does_not_answer_does_not_keep_the_active_from_being_started(config: Config) -> None:
    host = Host(config, {"vm1"})
    world = host.bed.world

    def refuse(*_: Any) -> Any:
        raise BrokerError("no answer")

    host.bed.keeper._host.broker.quarantine = refuse  # type: ignore[method-assign,assignment]
    host.run(20)
    assert sum(each.startswith("start") for each in world.done) >= 3


def test_what_a_watchdog_held_back_when_it_ended_is_served_by_the_next(config: Config) -> None:
    bed = Bed(config)
    bed.world.quarantine = {"vm1": ON_TRIAL, "vm2": "by order"}
    bed.keeper.turn()
    assert bed.world.quarantine == {"vm2": "by order"}


def test_the_operator_s_own_quarantine_is_left_alone(config: Config) -> None:
    host = Host(config, {"vm4"})
    host.bed.world.quarantine["vm2"] = "by order"
    host.bed.world.owner["vm2"] = None
    host.run(30)
    assert set(host.bed.world.quarantine) == {"vm2", "vm4"}
    assert host.bed.world.quarantine["vm2"] == "by order"


def alone(config: Config) -> Bed:
    """An active instance without a standby."""
    bed = Bed(config, prepared=False)
    bed.world.pid[Side.B], bed.world.state[Side.B] = None, State.STOPPED
    bed.world.parked = {name: set() for name in bed.world.owner}
    return bed


class Earlier(FakeBackEnds):
    """A broker from before there was a quarantine."""

    def vm(self, name: str) -> VmStatus:
        return replace(super().vm(name), quarantine=None, unreported=frozenset({"quarantine"}))


def test_an_earlier_broker_that_has_no_quarantine_keeps_nobody_from_being_served(config: Config) -> None:
    """No VM could be held back: nothing is looked for."""
    bed = alone(config)
    bed.host.__dict__["broker"] = Earlier(bed.world)
    for _ in range(2):  # an instance that ends soon, and the one after it
        bed.world.now += 10
        bed.world.die(Side.A)
        assert bed.keeper.turn() is Task.RESTART
    bed.keeper.poison.step(bed.host, alive=True)
    assert bed.world.pid[Side.A] is not None
    assert not bed.keeper.poison.under_way
    assert not [event for event in bed.events() if event["event"] == "trial"]


def test_no_fault_of_the_search_keeps_the_active_from_being_started(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    bed = alone(config)

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("quarantine")

    bed.keeper.poison._step = fail  # type: ignore[method-assign]
    bed.keeper.poison.step(bed.host, alive=True)
    bed.world.die(Side.A)
    assert bed.keeper.turn() is Task.RESTART
    assert "start a host" in bed.world.done
    assert len([record for record in caplog.records if record.exc_info]) == 1, "logged once"


@pytest.mark.parametrize(
    ("reason", "severity"),
    [(ON_TRIAL, Severity.ERROR), ("instances ended 3 times while they served it", Severity.WARNING)],
)
def test_no_upgrade_begins_while_vms_are_held_back_for_a_moment(reason: str, severity: Severity) -> None:
    """The VM would be left out, and the search would not continue until the upgrade has ended."""
    found = collect.quarantined(vm_status(quarantine=reason), "VM vm1")
    assert (found.severity, found.item) == (severity, "VM vm1")
    assert reason in found.text
    assert "vm release vm1" in (found.hint or "")

"""A fleet's processes, served by the simulated switch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.guests import Fleet, FleetError, FleetSpec, VmSpec
from tests.support.vhost_device import SwitchSpec
from tests.support.vhost_rings import Ledger
from tests.support.vhost_switch import SwitchThread
from tests.support.waiting import eventually

VMS, PAIRS = 3, 2


@pytest.fixture
def spec(tmp_path: Path) -> FleetSpec:
    vms = tuple(VmSpec(f"vm{k}", f"52:54:00:00:00:0{k}", tmp_path / f"vm{k}.sock") for k in range(VMS))
    return FleetSpec(vms, pairs=PAIRS, ring_size=64, buffer=256, nice=0)


@pytest.fixture
def fleet(spec: FleetSpec) -> Iterator[Fleet]:
    with Fleet(spec) as made:
        yield made


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger(VMS, 1)  # the frames begin with a header of zeros: number 0 to the switch, over and over
    yield made
    made.close()


def switch(spec: FleetSpec, ledger: Ledger) -> SwitchThread:
    return SwitchThread(SwitchSpec([str(vm.socket) for vm in spec.vms]), ledger)


def taken(fleet: Fleet) -> list[int]:
    """Frames of each VM, on all its queues, that the switch has taken."""
    streams = fleet.stats().streams
    return [
        sum(each.sent - each.waiting for each in streams if each.source == vm) for vm in range(VMS)
    ]  # fmt: skip


def test_vms_that_nobody_serves_are_named(fleet: Fleet) -> None:
    with pytest.raises(FleetError, match="vm0, vm1, vm2"):
        fleet.wait_served(0.1)


def test_what_is_sent_is_taken(fleet: Fleet, ledger: Ledger) -> None:
    """The switch echoes eight bytes, which are no frames of a fleet. The last VM of an odd number sends nothing."""
    with switch(fleet.spec, ledger):
        fleet.wait_served(20)
        fleet.start(1000)
        eventually(lambda: min(taken(fleet)[:2]) > 50, "50 frames of each")
        stats = fleet.stop(20)
        events = fleet.events()
    assert (stats.total("waiting"), stats.faults, taken(fleet)[2]) == (0, (), 0)
    assert stats.foreign > 0
    assert [len(events.taken(vm).times) for vm in range(VMS)] == taken(fleet)
    assert (events.time >= events.origin).all()
    fleet.forget()
    assert len(fleet.events()) == 0


def test_a_switch_that_comes_again_goes_on(fleet: Fleet, ledger: Ledger) -> None:
    with switch(fleet.spec, ledger):
        fleet.wait_served(20)
        fleet.start(1000)
        eventually(lambda: min(taken(fleet)[:2]) > 50, "50 frames of each")
    before = taken(fleet)
    with switch(fleet.spec, ledger):
        eventually(lambda: fleet.boots() == (2,) * VMS, "every driver begins again")
        eventually(lambda: all(now > then for now, then in zip(taken(fleet)[:2], before, strict=False)), "more frames")
        stats = fleet.stop(20)
    assert (stats.total("waiting"), stats.faults) == (0, ())


def test_queue_pairs_are_enabled_and_disabled(fleet: Fleet, ledger: Ledger) -> None:
    with switch(fleet.spec, ledger) as running:
        fleet.wait_served(20)
        rings = running.switch.ports[0].rings
        fleet.set_active_pairs(0, 1)
        eventually(lambda: [ring.enabled for ring in rings] == [True, True, False, False], "the second pair is off")
        fleet.set_active_pairs(0, 2)
        eventually(lambda: all(ring.enabled for ring in rings), "both pairs are on")


def test_drivers_that_are_gone_are_reported(spec: FleetSpec) -> None:
    with Fleet(spec) as fleet:
        os.kill(fleet.drivers_pid, signal.SIGKILL)
        with pytest.raises(FleetError, match="the guests ended"):
            eventually(lambda: fleet.stats().total("sent") < 0, "an error")

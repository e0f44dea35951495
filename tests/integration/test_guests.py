"""Simulated guests on the real Open vSwitch and DPDK."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.bed import Bed
from bench.guests import Fleet
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser.messages import Feature

VMS, REMOTE_VMS, PAIRS = 5, 1, 2
RATE = 200
LEGACY = 1 << Feature.NET_MQ  # neither mergeable buffers nor version 1: the short header


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    made = Bed(Path(tempfile.mkdtemp(prefix="ovsh-gu-")), VMS, system, GuestOptions(queues=PAIRS))
    try:
        made.up()
        made.start()
        yield made
    finally:
        made.down()


def start(fleet: Fleet) -> None:
    fleet.wait_served(30)
    fleet.start(RATE)
    fleet.wait_flowing(30)


@pytest.mark.parametrize(
    "changes", [{}, {"features": LEGACY}, {"hugepages": True, "frame": 1464}], ids=["usual", "legacy", "huge"]
)
def test_each_frame_arrives_once(bed: Bed, changes: dict[str, object]) -> None:
    """Between the VMs and to and from the remote host, on every queue pair."""
    with Fleet(bed.fleet_spec(remote_vms=REMOTE_VMS, **changes)) as fleet:
        start(fleet)
        before = fleet.stop()  # what was sent while others were not up yet is lost
        fleet.forget()
        fleet.start(RATE)
        time.sleep(1)
        stats, events = fleet.stop(), fleet.events()
    queues = {(vm, queue) for vm in range(VMS) for queue in range(PAIRS)}
    assert {(stream.source, stream.queue) for stream in stats.streams} == {*queues, (VMS, 0)}
    assert stats.total("sent") > before.total("sent") + 100
    assert [stream.lost for stream in stats.streams] == [stream.lost for stream in before.streams]
    assert [stats.total(figure) for figure in ("doubled", "reordered", "waiting", "refused")] == [0, 0, 0, 0]
    assert (stats.broken, stats.stray, stats.faults) == (0, 0, ())
    for vm in range(VMS):
        assert len(events.received(vm).times) > 20
        assert len(events.taken(vm).times) > 20


def test_a_switch_that_dies_is_followed_by_the_next(bed: Bed) -> None:
    """Each ring continues where the dead switch left it, as under a QEMU with ``reconnect``."""
    active = bed.host.instances[Side.A]
    with Fleet(bed.fleet_spec(remote_vms=REMOTE_VMS)) as fleet:
        bed.go_direct()
        start(fleet)
        active.kill()
        active.restart()
        bed.host.program_tunnels(Side.A)
        bed.host.program_flows(Side.A, Form.FINAL)
        fleet.wait_flowing(30)
        stats, boots = fleet.stop(), fleet.boots()
    assert set(boots) == {2}
    assert [stats.total(figure) for figure in ("doubled", "reordered", "waiting")] == [0, 0, 0]
    assert (stats.broken, stats.stray, stats.faults) == (0, 0, ())

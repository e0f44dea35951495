"""Wire mode by mirrors on two real switches, under pipelines that the overlay does not know, with simulated guests."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import pytest

from bench.guests import Fleet
from bench.guests.fleet import Stats
from bench.window import Notes
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.flowlog.relay import open_in
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET
from ovs_hotswap.overlay.ports import UPLINK
from ovs_hotswap.switch import flow_log as rows
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wire.keeper import Keeper
from ovs_hotswap.wire.mirror_flows import CARRY, WIRE, Mode
from ovs_hotswap.wire.mirrors import MirrorWire, UplinkPort
from tests.support.ipfix_collector import PACKETS, Reader
from tests.support.wire_bed import WireBed, wire_bed

VMS, REMOTE_VMS = 3, 1
RATE = 1000
CUTS = int(os.environ.get("OVS_HOTSWAP_WIRE_CUTS", "6"))
SOURCE_ADDRESS = 8  # sourceIPv4Address
TALKERS = {bytes([198, 18, 0, number]) for number in (1, 2)}  # the two VMs that exchange frames
_LEARNS_S = 1.0  # what a pipeline has learnt takes the place of floods when the datapath looks at its flows again
FAULTS = ("lost", "doubled", "reordered", "waiting", "refused")


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[WireBed]:
    with wire_bed(system, VMS) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(bed: WireBed) -> Iterator[Fleet]:
    """The first VM exchanges frames with the remote host, the other two with each other."""
    bed.program(Side.A, bed.stateful())
    with Fleet(bed.fleet_spec(remote_vms=REMOTE_VMS)) as fleet:
        fleet.wait_served(30)
        yield fleet


@pytest.fixture(scope="module")
def run(bed: WireBed, fleet: Fleet) -> Iterator[Notes]:
    with bed.opened() as run:
        bed.program(Side.B, bed.stateful())
        yield run


@pytest.fixture
def wire(bed: WireBed, fleet: Fleet, run: Notes) -> Iterator[MirrorWire]:
    """Wire mode, which is closed after the test, with all VMs on the old switch."""
    yield bed.wire
    move_all(bed.host, Side.A, run)
    bed.wire.cut(Side.B)
    for side in Side:
        bed.wire.close(side)


def faults(stats: Stats, names: Sequence[str]) -> dict[str, int]:
    return {**{name: stats.total(name) for name in names}, "stray": stats.stray, "broken": stats.broken}


def _all_receive(before: Stats, now: Stats) -> bool:
    return all(new.received > old.received for old, new in zip(before.streams, now.streams, strict=True))


class Flow:
    """Frames that pass through the switches. ``only``: the streams of them that are to."""

    def __init__(self, fleet: Fleet, only: Callable[[Stats], Stats]) -> None:
        self._fleet, self._only = fleet, only
        before = only(fleet.stats())
        fleet.start(RATE)
        assert wait_until(lambda: _all_receive(before, only(fleet.stats())), 20.0)
        time.sleep(_LEARNS_S)
        self._before = only(fleet.stop())
        fleet.start(RATE)

    def check(self, *, changed: bool = False) -> None:
        """Since the last check, each frame has arrived once and at no other VM; and in its order, unless the way of the
        frames has ``changed``: on a busy machine, frames of the new way may overtake those of the old one."""
        time.sleep(0.3)
        before, after = self._before, self._only(self._fleet.stop())
        names = [name for name in FAULTS if name != "reordered" or not changed]
        assert after.total("sent") > before.total("sent") + RATE / 10
        assert faults(after, names) == faults(before, names)
        self._before = after
        self._fleet.start(RATE)


@contextmanager
def flowing(fleet: Fleet, *, only: Callable[[Stats], Stats] = lambda stats: stats) -> Iterator[Flow]:
    try:
        yield Flow(fleet, only)
    finally:
        fleet.stop()


def of_two(stats: Stats) -> Stats:
    """The figures of the two VMs that exchange frames with each other."""
    return replace(stats, streams=tuple(each for each in stats.streams if each.source in (1, 2)), stray=0)


def uplinks(bed: WireBed) -> list[UplinkPort]:
    return [UplinkPort(bed.config.bridge, UPLINK)]


def clone(bed: WireBed) -> None:
    """Give the new switch what the old one has learnt."""
    bed.host.openflow(Side.B).bundle([f"flow add {line}" for line in bed.learnt(Side.A)])


def test_a_cut_and_the_way_back_lose_nothing_and_leave_no_trace(
    bed: WireBed, fleet: Fleet, run: Notes, wire: MirrorWire
) -> None:
    """Meters, learn(), connection tracking and groups, of which wire mode knows nothing; the uplink is steered, too."""
    host = bed.host
    before = {side: bed.footprint(side) for side in Side}
    with flowing(fleet) as flow:
        wire.open(Side.A, bed.vm_ports, uplinks(bed))
        wire.wire(Side.B)
        flow.check(changed=True)
        assert [wire.state(side).complete for side in Side] == [True, True]
        processed = host.openflow(Side.B).packets(WIRE)
        move_all(host, Side.B, run)
        flow.check(changed=True)
        flow.check()
        assert host.openflow(Side.B).packets(WIRE) > processed + RATE / 10
        for number in range(CUTS):
            if not number % 2:
                # The lab's rule takes all of the uplink's traffic to one side.
                wire.wire(Side.B, Mode.ALONE)
                host.uplink.steer(Side.B)
                flow.check(changed=True)
            clone(bed)
            wire.cut(Side.B)
            flow.check(changed=True)
            assert host.openflow(Side.B).packets(WIRE) == 0
            wire.wire(Side.B, Mode.ALONE)
            flow.check(changed=True)
            if number % 2:
                host.uplink.steer(Side.A)
                flow.check(changed=True)
        host.uplink.steer(Side.A)
        move_all(host, Side.A, run)
        flow.check(changed=True)
        wire.cut(Side.B)
        for side in Side:
            wire.close(side)
            flow.check(changed=True)
    assert {side: bed.footprint(side) for side in Side} == before
    assert not any(wire.state(side).open for side in Side)


def test_access_ports_and_normal(bed: WireBed, fleet: Fleet, run: Notes, wire: MirrorWire) -> None:
    """The two VMs that exchange frames have access ports, and NORMAL learns where they are."""
    names = [vm.name for vm in bed.host.intent.vms][1:]
    try:
        for side in Side:
            bed.set_ports(side, names, tag=5)
            bed.program(side, ["table=0,priority=0 actions=NORMAL"])
        before = {side: bed.footprint(side) for side in Side}
        with flowing(fleet, only=of_two) as flow:
            wire.open(Side.A, bed.vm_ports)
            wire.wire(Side.B)
            move_all(bed.host, Side.B, run)
            flow.check(changed=True)
            for _ in range(CUTS):
                wire.cut(Side.B)
                flow.check(changed=True)
                wire.wire(Side.B)
                flow.check(changed=True)
            move_all(bed.host, Side.A, run)
            wire.cut(Side.B)
            for side in Side:
                wire.close(side)
            flow.check(changed=True)
        assert {side: bed.footprint(side) for side in Side} == before
    finally:
        for side in Side:
            bed.set_ports(side, names, tag=None)
            bed.program(side, bed.stateful())


def exported(sockets: dict[Side, socket.socket], seconds: float) -> Counter[Side]:
    """The packets of the two VMs that each switch reports in this time."""
    readers, end = {side: Reader() for side in sockets}, time.monotonic() + seconds
    while time.monotonic() < end:
        for side, each in sockets.items():
            with suppress(TimeoutError):
                readers[side].take(side, each.recv(1 << 16))
    found = Counter[Side]()
    for side, reader in readers.items():
        own = [record for _, record in reader.records if record.get(SOURCE_ADDRESS) in TALKERS]
        found[side] = sum(int.from_bytes(record[PACKETS]) for record in own)
    return found


@pytest.mark.skipif("OVS_HOTSWAP_FLOWLOG" not in os.environ, reason="`make flowlog` tries it")
def test_what_a_pipeline_samples_is_exported_by_one_switch_at_a_time(
    bed: WireBed, fleet: Fleet, run: Notes, wire: MirrorWire
) -> None:
    """Both switches have the same flows with the action sample and the same collector set, as a clone has them: until
    the cut the old one exports each packet once, and then the new one does."""
    names = [vm.name for vm in bed.host.intent.vms][1:]
    log = FlowLogConfig(collectors=["192.0.2.1:4739"], export_s=1)
    sample = f"sample(probability=65535,collector_set_id={COLLECTOR_SET},obs_domain_id=1,obs_point_id=1)"
    databases = {side: bed.host.instances[side].paths.db_socket for side in Side}
    with ExitStack() as stack:
        sockets = {side: stack.enter_context(open_in(bed.config.namespace(side))) for side in Side}
        for side, each in sockets.items():
            each.settimeout(0.05)
            rows.put(databases[side], bed.config.bridge, log)
            stack.callback(rows.remove, databases[side])
            bed.set_ports(side, names, tag=5)
            stack.callback(bed.set_ports, side, names, tag=None)
            bed.program(side, [f"table=0,priority=0 actions={sample},NORMAL"])
            stack.callback(bed.program, side, bed.stateful())
        wire.open(Side.A, bed.vm_ports)
        wire.wire(Side.B)
        move_all(bed.host, Side.B, run)
        for expected in (Side.A, Side.B):
            before = of_two(fleet.stats()).total("sent")
            fleet.start(RATE)
            time.sleep(1)
            sent = of_two(fleet.stop()).total("sent") - before
            assert exported(sockets, 2.0) == {expected: sent, expected.other: 0}
            wire.cut(Side.B)


def test_what_others_remove_is_brought_back(bed: WireBed, wire: MirrorWire, system: System) -> None:
    wire.open(Side.A, bed.vm_ports[:2])
    wire.wire(Side.B)
    try:
        for side in Side:
            bed.ofctl(side, "del-flows", f"cookie={CARRY:#x}/-1")
            bed.ofctl(side, "del-flows", f"cookie={WIRE:#x}/-1")
            bed.ofctl(side, "del-groups")
            assert not wire.state(side).complete
            wire.repair(side)
            assert wire.state(side).complete
        assert bed.host.openflow(Side.B).has(WIRE)
    finally:
        for side in Side:
            bed.program(side, bed.stateful())


def test_a_keeper_brings_flows_back_by_itself_and_lets_a_switch_be_cut(
    bed: WireBed, wire: MirrorWire, system: System
) -> None:
    wire.open(Side.A, bed.vm_ports)
    wire.wire(Side.B)
    failures: list[HotswapError] = []
    keeper = Keeper(wire, system, bed.config.run_dir, failures.append)
    with keeper.watching():
        time.sleep(0.3)  # until the switch has answered that it will report
        bed.ofctl(Side.B, "del-flows", f"cookie={WIRE:#x}/-1")
        assert wait_until(lambda: keeper.repaired or failures, 5.0)
        assert failures == []
        assert wire.state(Side.B).complete
        assert bed.host.openflow(Side.B).has(WIRE)
        wire.cut(Side.B)
        time.sleep(0.3)
        assert wire.state(Side.B).intended is Mode.OWN
        assert wire.state(Side.B).complete
    assert failures == []


def test_ports_come_and_go_while_a_switch_is_wired(bed: WireBed, wire: MirrorWire) -> None:
    wire.open(Side.A, bed.vm_ports[:2])
    wire.wire(Side.B)
    wire.add(Side.A, bed.vm_ports[2:])
    assert [len(wire.state(side).carried) for side in Side] == [VMS, VMS]
    assert wire.state(Side.B).complete
    wire.remove(bed.vm_ports[:1])
    assert [port.name for port in wire.state(Side.B).carried] == [vm.name for vm in bed.vm_ports[1:]]
    assert wire.state(Side.B).complete
    with pytest.raises(SwitchError, match="instance b is wired"):
        wire.wire(Side.A)


def test_what_cannot_be_opened_changes_nothing(bed: WireBed, wire: MirrorWire) -> None:
    before = {side: bed.footprint(side) for side in Side}
    missing = bed.vm_ports[0].model_copy(update={"name": "vm99"})
    with pytest.raises(SwitchError, match="no port vm99"):
        wire.open(Side.A, [*bed.vm_ports, missing])
    assert {side: bed.footprint(side) for side in Side} == before
    bed.config.run_dir.joinpath("wire.sock.1").mkdir()  # the link cannot be made
    try:
        with pytest.raises(HotswapError):
            wire.open(Side.A, bed.vm_ports)
    finally:
        bed.config.run_dir.joinpath("wire.sock.1").rmdir()
    assert {side: bed.footprint(side) for side in Side} == before


def test_a_process_that_is_killed_leaves_nothing_that_another_cannot_remove(
    bed: WireBed, fleet: Fleet, wire: MirrorWire, system: System
) -> None:
    """After each act. The VMs are on the old switch, and lose nothing in this time."""
    before = {side: bed.footprint(side) for side in Side}
    step = int(os.environ.get("OVS_HOTSWAP_WIRE_KILLS", "13"))
    module = [sys.executable, "-m", "tests.support.wire_killed", str(bed.config_path)]
    with flowing(fleet) as flow:
        for acts in itertools.count(1, step):
            done = system.run([*module, str(acts)], check=False)
            wire.cut(Side.B)
            for side in Side:
                wire.close(side)
            assert {side: bed.footprint(side) for side in Side} == before, f"killed after act {acts}"
            flow.check(changed=True)
            if done.status == 0:
                break
            assert done.status == -9, done.stderr
    assert int(done.stdout) < acts

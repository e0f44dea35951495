"""What is shown of a VM to those who look for a fault: in the log, and by ``broker dump``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ovs_hotswap.broker.control.dump import dump
from ovs_hotswap.broker.mover import Mover
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.unit.broker_bed import Bed, run


def slot_of(bed: Bed) -> VmSlot:
    vm = bed.served(Ownership(Side.A, Certainty.OWNS))
    mover = Mover(vm, bed.loop, Delays(bed.loop), 0.3, Room(1 << 30))
    return VmSlot(vm, mover, {}, {side: Path(f"/run/{side}") for side in Side})


def test_a_dump_has_the_whole_record_and_is_json() -> None:
    async def test(bed: Bed) -> None:
        slot = slot_of(bed)
        found = json.loads(json.dumps(dump(slot)))
        vm = found["vm"]["record"]
        assert (vm["ownership"]["holder"], vm["ownership"]["certainty"]) == ("a", "owns")
        assert vm["state"]["rings"][0]["size"] == 256
        assert vm["state"]["rings"][0]["address"]["used"] == "0x8000"
        assert "memfd:guest" in vm["state"]["memory"][0]["descriptor"]
        assert vm["qemu"]["peer_pid"] == os.getpid()
        assert vm["links"]["b"]["told"]["rings"][0]["address"] != vm["links"]["a"]["told"]["rings"][0]["address"]
        assert (vm["park_wanted"], vm["home"], found["vm"]["name"]) == (["a", "b"], "a", "vm0")
        assert found["slot"]["paths"] == {"a": "/run/a", "b": "/run/b"}
        assert found["mover"]["fence_s"] == 0.3
        assert found["summary"] == repr(slot.mover)

    run(test)


def test_objects_that_are_logged_say_what_they_are() -> None:
    async def test(bed: Bed) -> None:
        slot, pid = slot_of(bed), os.getpid()
        vm = f"<Vm vm0: <Ownership: a owns>, QEMU {pid}, switches: a {pid}, b {pid}>"
        assert (repr(slot.vm), repr(slot.mover)) == (vm, f"<Mover of {vm}: idle>")
        assert repr(slot.vm.links[Side.A]) == f"<SwitchConnection a: process {pid}, 0 answers due>"
        assert repr(slot.vm.qemu) == f"<Channel to process {pid}, descriptor {slot.vm.qemu.fileno()}>"  # type: ignore[union-attr]

    run(test)
    assert repr(Ownership(suspects=frozenset(Side))) == "<Ownership: nobody, suspects: a and b>"
    descriptor = OwnedFd(os.eventfd(0))
    assert repr(descriptor) == f"<OwnedFd {descriptor.fileno()}>"
    descriptor.close()
    assert repr(descriptor) == "<OwnedFd, closed>"

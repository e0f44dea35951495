"""One instance of the old release and one VM on it, without a broker."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.vhostuser.messages import Request
from tests.old.switch import OldSwitch
from tests.support.vhost_qemu import FakeQemu
from tests.support.waiting import eventually

READY_S = 20.0


def fence(vm: FakeQemu) -> None:
    """The switch has handled everything that was said before."""
    vm.number(Request.GET_FEATURES)


def echoes(vm: FakeQemu, packets: int = 64) -> None:
    """AssertionError if the VM does not get back that it sends."""
    guest = vm.guest
    assert guest is not None
    before = len(guest.received)
    assert vm.send(packets) == packets
    vm.drain(READY_S)
    eventually(lambda: vm.drained() and len(guest.received) > before, "no packet comes back")


@contextlib.contextmanager
def one_vm(tree: Path) -> Iterator[tuple[OldSwitch, FakeQemu]]:
    """The VM sends and gets back what it sends."""
    with tempfile.TemporaryDirectory(prefix="ovsh-old-vm-") as directory, FakeQemu(Path(directory) / "vm.sock") as vm:
        with OldSwitch(tree, "a", [str(vm.path)], 0) as switch:
            switch.echo()
            vm.boot(READY_S)
            echoes(vm)
            yield switch, vm
            switch.check()

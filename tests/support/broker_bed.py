"""A test bed: a real broker between front ends and back ends written for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from ovs_hotswap.backends import OwnerCertainty
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from tests.support.broker_process import BrokerProcess
from tests.support.vhost_device import FEATURES, SwitchSpec
from tests.support.vhost_qemu import FakeQemu
from tests.support.vhost_rings import Ledger, overlaps
from tests.support.vhost_switch import SwitchProcess
from tests.support.waiting import eventually

PACKETS = 1 << 20  # more than any test sends from one VM


def ends_well(
    ledger: Ledger, switches: Sequence[SwitchProcess], vms: Iterable[tuple[int, FakeQemu]], doubled: int
) -> None:
    """Each VM, given with its number, is served, every packet was taken once, ``doubled`` apart, and no ring was ever
    touched by two switches at a time."""
    for number, vm in vms:
        assert vm.send(16) == 16
        vm.drain()
        lost, twice = ledger.lost_and_doubled(number, vm.next_packet)
        assert lost == 0
        assert twice <= doubled
    for k, one in enumerate(switches):
        for other in switches[k + 1 :]:
            assert overlaps(one.touches, other.touches) == []


class Bed:
    """A broker with VMs ``vm0``.., a switch on each side (``a``, ``b``), and what the tests ask of them."""

    def __init__(self, stack: contextlib.ExitStack, vms: int, home: Side | None, fence_ms: int, **how: Any) -> None:
        self._stack = stack
        names = [f"vm{k}" for k in range(vms)]
        self.broker = stack.enter_context(BrokerProcess(names, fence_ms=fence_ms, home=home, **how))
        self.ledger = Ledger(vms + 1, PACKETS)
        stack.callback(self.ledger.close)
        self.client = stack.enter_context(self.broker.client())
        self.switches: list[SwitchProcess] = []

    def one_port(self, socket: str) -> SwitchProcess:
        """A switch with one port, for a VM that was added later."""
        return self._stack.enter_context(SwitchProcess(SwitchSpec([socket]), self.ledger))

    def switch(
        self, side: Side, *, features: int = FEATURES, reconnect_s: float = 0.05, wait: bool = True
    ) -> SwitchProcess:
        spec = SwitchSpec(self.broker.sockets(side), features=features, reconnect_s=reconnect_s)
        made = self._stack.enter_context(SwitchProcess(spec, self.ledger))
        self.switches.append(made)
        if wait:
            self.wait(lambda: all(vm.switches[side].connected for vm in self.client.vms()), f"switch {side}")
        return made

    def qemu(self, name: str = "vm0", boot: bool = True, **changes: int) -> FakeQemu:
        made = self._stack.enter_context(FakeQemu(self.broker.qemu_path(name), **changes))
        if boot:
            made.boot()
        return made

    def running(self) -> FakeQemu:
        """VM ``vm0`` on side a, parked on side b."""
        self.switch(Side.A)
        self.switch(Side.B)
        vm = self.qemu()
        self.wait_owner(Side.A)
        self.client.park("vm0", Side.B)
        return vm

    def wait(self, true: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
        eventually(true, lambda: f"{what}: {self.client.vms()}", timeout, poll_s=0.005)

    def owner(self, name: str = "vm0") -> Side | None:
        vm = self.client.vm(name)
        return vm.owner if vm.certainty is OwnerCertainty.OWNS else None

    def wait_owner(self, side: Side, name: str = "vm0") -> None:
        self.wait(lambda: self.owner(name) is side, f"{name} on side {side}")

    def wait_descriptors(self, usual: int) -> None:
        """Wait until the broker has its usual number of descriptors, within one. A new broker first accepts callers
        that have given up since, and then sees that they are gone."""
        self.wait(lambda: abs(self.broker.descriptors() - usual) <= 1, f"{usual} descriptors")

    def wait_stopped(self, switch: SwitchProcess) -> None:
        eventually(lambda: System().stopped(switch.pid), "a switch stands still")

    def connected(self, side: Side, name: str = "vm0") -> bool:
        return self.client.vm(name).switches[side].connected

    def ends_well(self, *vms: tuple[int, FakeQemu], doubled: int = 0) -> None:
        """Each VM is served, every packet was taken once (``doubled`` may have been taken again after a crash), and no
        ring was ever touched by two switches at a time."""
        ends_well(self.ledger, self.switches, vms, doubled)


@pytest.fixture
def make_bed() -> Iterator[Callable[..., Bed]]:
    with contextlib.ExitStack() as stack:
        yield lambda vms=1, home=Side.A, fence_ms=300, **how: Bed(stack, vms, home, fence_ms, **how)


MakeBed = Callable[..., Bed]

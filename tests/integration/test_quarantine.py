"""A VM that no switch serves, by order: a real broker between peers written for tests."""

from __future__ import annotations

import os
import signal

import pytest

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from tests.support.broker_bed import MakeBed
from tests.support.service_bed import Guest, Host, host, wait

__all__ = ["host"]


def test_a_vm_in_quarantine_is_served_by_nobody_and_then_goes_on(make_bed: MakeBed) -> None:
    bed = make_bed(vms=2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm, other = bed.qemu("vm0"), bed.qemu("vm1")
    for name in ("vm0", "vm1"):
        bed.wait_owner(Side.A, name)
        bed.client.park(name, Side.B)
    vm.send(20)
    vm.drain()
    found = bed.client.quarantine("vm0", "it ends whatever serves it")
    assert (found.owner, found.quarantine) == (None, "it ends whatever serves it")
    assert "quarantine" in str(found.unparkable)
    vm.send(5)
    for act in (lambda: bed.client.park("vm0", Side.B), lambda: bed.client.move("vm0", Side.B)):
        with pytest.raises(BrokerError, match="in quarantine"):
            act()
    bed.client.move("vm1", Side.B)
    bed.switches[0].kill()
    other.send(5)
    other.drain()
    found = bed.client.vm("vm0")
    assert (found.owner, found.qemu is None) == (None, False)
    assert not found.switches[Side.B].parked
    bed.client.release("vm0")
    bed.wait_owner(Side.B)
    vm.drain()
    bed.ends_well((0, vm), (1, other))


def test_a_qemu_that_comes_to_a_vm_in_quarantine_waits(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    bed.client.quarantine("vm0", "by order")
    vm = bed.qemu()
    bed.wait(lambda: bed.client.vm("vm0").qemu is not None, "QEMU is connected")
    assert bed.owner() is None
    with pytest.raises(BrokerError, match="reason: not a text: 5"):
        bed.client.call("quarantine", vm="vm0", reason=5)
    assert bed.client.vm("vm0").quarantine == "by order"
    bed.client.release("vm0")
    bed.wait_owner(Side.A)
    vm.send(5)
    vm.drain()
    bed.ends_well((0, vm))


@pytest.mark.parametrize("how", ["killed", "succeeded"])
def test_the_next_broker_keeps_to_it(host: Host, how: str) -> None:
    pid = host.start()
    guest = Guest(host)
    guest.client.quarantine("vm0", "by order")
    if how == "killed":
        os.kill(pid, signal.SIGKILL)
        host.wait_other(pid)
    else:
        from ovs_hotswap.broker.lifecycle import replace_broker

        replace_broker(host.config, host.system, host.path, 20.0)
    wait(lambda: guest.client.vm("vm0").qemu is not None)
    found = guest.client.vm("vm0")
    assert (found.owner, found.quarantine) == (None, "by order")
    guest.client.release("vm0")
    wait(lambda: guest.client.vm("vm0").certainty == "owns")
    guest.ends_well()

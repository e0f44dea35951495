"""A broker that ends in any way and is started again with the descriptors that its supervisor kept."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.vhost.service import replace_broker
from tests.broker_bed import PACKETS, Bed, MakeBed
from tests.vhost_qemu import FakeQemu, Traffic

TIMES = 20
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])


def running(bed: Bed) -> FakeQemu:
    """A VM on side a, parked on side b, and kept."""
    vm = bed.running()
    kept(bed)
    return vm


def kept(bed: Bed) -> None:
    """Wait until the broker has nothing left to save."""
    bed.wait(lambda: bed.client.status()["unsaved"] == 0, "kept")


def connections(bed: Bed) -> tuple[int, int, int]:
    text = bed.broker.log.read_text()
    return text.count("QEMU connected"), text.count("switch a connected"), text.count("switch b connected")


@BOTH
def test_twenty_restarts_under_traffic_lose_nothing(make_bed: MakeBed, number: signal.Signals) -> None:
    bed = make_bed(managed=True)
    vm = running(bed)
    usual = bed.broker.descriptors()
    with Traffic([vm], PACKETS):
        for round_ in range(TIMES):
            bed.broker.restart(number)
            bed.wait_descriptors(usual)
            found = bed.client.vm("vm0")
            assert (found["owner"], found["certainty"]) == ("a" if round_ % 2 == 0 else "b", "owns")
            bed.client.move("vm0", Side.B if round_ % 2 == 0 else Side.A)
            bed.client.undelivered("vm0")
            kept(bed)
    assert connections(bed) == (1, 1, 1)
    assert bed.broker.stored() == 2
    bed.ends_well((0, vm))


@BOTH
def test_a_guest_reboots_after_a_restart(make_bed: MakeBed, number: signal.Signals) -> None:
    bed = make_bed(managed=True)
    vm = running(bed)
    bed.broker.restart(number)
    vm.reboot()
    bed.wait(lambda: bool(bed.client.vm("vm0")["switches"]["b"]["parked"]), "parked again")
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_messages_that_come_meanwhile_wait(make_bed: MakeBed) -> None:
    """QEMU and a switch say something while there is no broker."""
    bed = make_bed(managed=True)
    vm = running(bed)
    b = bed.switches[1]
    os.kill(bed.broker.pid, signal.SIGSTOP)
    vm.set_active_pairs(1)
    b.hang_up(0)
    bed.broker.restart(signal.SIGKILL)
    bed.wait(lambda: bed.connected(Side.B), "side b is back")
    bed.wait(lambda: bool(bed.client.vm("vm0")["switches"]["b"]["parked"]), "parked again")
    assert connections(bed) == (1, 1, 2)
    bed.ends_well((0, vm))


def test_killed_at_work_the_vm_starts_over_and_has_one_owner(make_bed: MakeBed) -> None:
    """Side b does not answer: what it has taken is not known when the broker is killed."""
    bed = make_bed(managed=True)
    vm = running(bed)
    b = bed.switches[1]
    b.stop()
    bed.client.unpark("vm0", Side.B)  # an answer is due from b
    bed.broker.restart(signal.SIGKILL)
    bed.wait(lambda: bed.connected(Side.A), "side a is back")
    time.sleep(1.0)  # more than a turn of looking for a QEMU
    assert not vm.hung_up  # b was parked, but who says that it is off the rings?
    bed.broker.restart(signal.SIGKILL)  # what is not settled yet is not forgotten either
    bed.wait(lambda: bed.connected(Side.A), "side a is back again")
    time.sleep(1.0)
    assert not vm.hung_up
    b.go_on()
    vm.wait_hung_up()
    vm.boot()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))


@BOTH
def test_the_owner_dies_while_there_is_no_broker(make_bed: MakeBed, number: signal.Signals) -> None:
    bed = make_bed(managed=True)
    vm = running(bed)
    os.kill(bed.broker.pid, signal.SIGSTOP)
    bed.switches[0].kill()
    if number is signal.SIGTERM:
        os.kill(bed.broker.pid, signal.SIGCONT)
    bed.broker.restart(number)
    bed.wait_owner(Side.B)
    bed.ends_well((0, vm), doubled=1)


def test_a_vm_that_was_removed_meanwhile_is_hung_up_on(make_bed: MakeBed) -> None:
    bed = make_bed(vms=2, managed=True)
    bed.switch(Side.A)
    bed.switch(Side.B)
    vms = [bed.qemu(name) for name in ("vm0", "vm1")]
    for name in ("vm0", "vm1"):
        bed.wait_owner(Side.A, name)
    kept(bed)
    bed.broker.write(["vm0"])
    bed.broker.restart(signal.SIGKILL)
    vms[1].wait_hung_up()
    bed.wait(lambda: bed.broker.stored() == 2, "its vault is gone")
    bed.ends_well((0, vms[0]))


def test_a_faulty_intent_does_not_cost_the_vms_their_switch(make_bed: MakeBed) -> None:
    bed = make_bed(managed=True)
    vm = running(bed)
    overlay = bed.broker.config.overlay
    text = overlay.read_text()
    overlay.write_text("nonsense")
    bed.broker.restart(signal.SIGKILL)
    assert bed.owner() is Side.A
    overlay.write_text(text)
    assert bed.client.call("reload")["vms"] == 1
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_qemu_that_breaks_the_protocol_is_hung_up_on_at_once(make_bed: MakeBed) -> None:
    """What is kept must not keep a connection open that the broker has closed."""
    bed = make_bed(managed=True)
    vm = running(bed)
    vm.say(b"\xff" * 64)
    vm.wait_hung_up()
    bed.wait(lambda: bed.connected(Side.A) and bed.connected(Side.B), "both switches are back")


def test_it_is_not_succeeded_behind_its_manager(make_bed: MakeBed) -> None:
    bed = make_bed(unit=True)
    with pytest.raises(BrokerError, match="systemd's to replace"):
        replace_broker(bed.broker.config, System(), bed.broker.config_path, 10.0)

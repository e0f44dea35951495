"""A broker that ends in any way and is started again with the descriptors that its supervisor kept."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from ovs_hotswap.broker.lifecycle import replace_broker
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.broker_bed import PACKETS, Bed, MakeBed
from tests.support.vhost_qemu import FakeQemu, Traffic
from tests.support.waiting import eventually

TIMES = 20
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])


def running(bed: Bed) -> FakeQemu:
    """A VM on side a, parked on side b, and kept."""
    vm = bed.running()
    kept(bed)
    return vm


def kept(bed: Bed) -> None:
    """Wait until the broker has nothing left to save."""
    bed.wait(lambda: bed.client.status().unsaved == 0, "kept")


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
            assert (found.owner, found.certainty) == ("a" if round_ % 2 == 0 else "b", "owns")
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
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
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
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
    assert connections(bed) == (1, 1, 2)
    bed.ends_well((0, vm))


def test_killed_while_a_switch_owes_an_answer(make_bed: MakeBed) -> None:
    """Side b does not answer: what it has taken is not known when the broker is killed. The owner is not touched."""
    bed = make_bed(managed=True)
    vm = running(bed)
    b = bed.switches[1]
    b.stop()
    bed.client.unpark("vm0", Side.B)  # an answer is due from b
    for _ in range(2):
        bed.broker.restart(signal.SIGKILL)
        bed.wait_owner(Side.A)
        assert vm.send(16) == 16
        vm.drain()
    assert not vm.hung_up
    b.go_on()
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    assert connections(bed) in ((1, 1, 1), (1, 1, 2))  # if killed before that was kept, b connects again
    bed.ends_well((0, vm))


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.03, 0.3])
def test_killed_again_while_a_standby_hangs(make_bed: MakeBed, pause: float) -> None:
    """Before the broker that continues has stored a state of its own, and while it waits for side b."""
    bed = make_bed(managed=True)
    vm = running(bed)
    b = bed.switches[1]
    b.stop()
    bed.client.unpark("vm0", Side.B)
    for _ in range(2):
        time.sleep(pause)
        bed.broker.restart(signal.SIGKILL)
    for _ in range(2):
        bed.wait_owner(Side.A)
        assert vm.send(16) == 16
        vm.drain()
        bed.wait(lambda: bed.client.status().unsaved == 0, "stored while side b hangs")
        bed.broker.restart(signal.SIGKILL)
    assert not vm.hung_up
    b.go_on()
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    assert connections(bed)[0] == 1
    bed.ends_well((0, vm))


def test_killed_after_a_row_of_moves(make_bed: MakeBed) -> None:
    """The side that gave the rings away has not said yet that it left its capture rings."""
    bed = make_bed(managed=True)
    vm = running(bed)
    a = bed.switches[0]
    with Traffic([vm], PACKETS):
        assert bed.client.move_many(["vm0"], Side.B)[1] is None
        a.stop()
        settling = threading.Thread(target=undelivered, args=(bed,))
        settling.start()
        time.sleep(0.05)
        bed.broker.restart(signal.SIGKILL)
        settling.join()
        bed.wait_owner(Side.B)
        assert not vm.hung_up
        a.go_on()
        bed.client.park("vm0", Side.A)
        bed.client.move("vm0", Side.A)
    assert connections(bed) == (1, 1, 1)
    bed.ends_well((0, vm))


def undelivered(bed: Bed) -> None:
    with contextlib.suppress(BrokerError), bed.broker.client() as client:
        client.undelivered("vm0")


@pytest.mark.parametrize(("side", "answered"), [(Side.A, 1), (Side.B, 2)], ids=["letting go", "taking"])
def test_killed_while_the_rings_change_hands(make_bed: MakeBed, side: Side, answered: int) -> None:
    """One side stands still in the middle of the handover, so the owner of the rings is not known. Until both sides
    have answered, each is asked to release the rings, neither is given them, and QEMU is not heard."""
    bed = make_bed(managed=True, fence_ms=5000)
    vm = running(bed)
    struck = bed.switches[side is Side.B]
    struck.fail_at_fence(0, answered, signal.SIGSTOP)
    moving = threading.Thread(target=move, args=(bed,))
    moving.start()
    bed.wait_stopped(struck)
    bed.broker.restart(signal.SIGKILL)
    moving.join()
    found = bed.client.vm("vm0")
    assert (found.owner, vm.hung_up) == (None, False)
    struck.go_on()
    bed.wait(lambda: bed.owner() is not None, "an owner")
    assert connections(bed) == (1, 1, 1)
    bed.ends_well((0, vm))


def move(bed: Bed) -> None:
    with contextlib.suppress(BrokerError), bed.broker.client(1.0) as client:
        client.move("vm0", Side.B)


def test_killed_with_half_a_message_of_qemus(make_bed: MakeBed) -> None:
    bed = make_bed(managed=True)
    vm = running(bed)
    message = messages.build_ring_value(Request.SET_VRING_ENABLE, 0, 1)
    vm.say(message[:3])
    time.sleep(0.1)
    kept(bed)
    bed.broker.restart(signal.SIGKILL)
    vm.say(message[3:])
    vm.reboot()
    assert connections(bed) == (1, 1, 1)
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
    bed.wait(lambda: bed.broker.stored() == 2, "its slot is gone")
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
    with pytest.raises(BrokerError, match="only systemd can replace"):
        replace_broker(bed.broker.config, System(), bed.broker.config_path, 10.0)


def test_vms_are_served_on_though_no_socket_can_be_made(make_bed: MakeBed) -> None:
    """There is no inode left in run_dir when a broker continues with the VMs of one that was killed."""
    bed = make_bed(managed=True)
    vm = running(bed)
    config, log, before = bed.broker.config, bed.broker.log, bed.broker.pid
    sockets = [config.broker_socket, *(config.vhost_socket(side, "vm0") for side in Side)]
    for path in sockets:
        path.unlink()
        path.mkdir()  # nothing can be put in its place
    os.kill(before, signal.SIGKILL)
    eventually(lambda: log.read_text().count("serves 1 VMs") == 2, log.read_text)
    bed.switches[0].kill()
    assert vm.send(16) == 16
    vm.drain()  # through the other one
    for path in sockets:
        path.rmdir()
    eventually(config.broker_socket.is_socket, log.read_text)
    bed.wait_owner(Side.B)
    bed.switch(Side.A)
    bed.client.park("vm0", Side.A)
    bed.client.move("vm0", Side.A)
    bed.ends_well((0, vm), doubled=16)

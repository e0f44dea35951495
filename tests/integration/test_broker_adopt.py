"""VMs that a switch serves without the broker are taken over and given back, with front and back ends of the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovs_hotswap.backends import AbsenceCause
from ovs_hotswap.errors import BrokerError, StateUnknown, TryAgain
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.messages import Feature
from tests.support.adopt_bed import MakeDirect, make_direct
from tests.support.vhost_qemu import GUEST_FEATURES, Traffic

__all__ = ["make_direct"]


def test_a_vm_stays_with_its_switch_while_the_broker_has_its_socket(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    vm = bed.client.vm("vm0")
    assert vm.absent is not None
    assert vm.absent.cause is AbsenceCause.DIRECT
    assert (vm.owner, vm.qemu) == (None, None)
    assert bed.broker.path("vm0.qemu").is_socket()
    assert bed.direct()
    bed.ends_well()


def test_a_vm_is_taken_over_under_traffic_without_a_disconnect(make_direct: MakeDirect) -> None:
    bed = make_direct(vms=2, pairs=4).serve()
    with Traffic(bed.qemus, 1 << 16):
        for name in ("vm0", "vm1"):
            vm = bed.adopt(name)
            assert vm.qemu == os.getpid()
            assert vm.confirmed_on(Side.B)
    assert not bed.direct()
    bed.wait(lambda: all(vm.switches[Side.A].parked for vm in bed.client.vms()), "parked on the first switch")
    for name in ("vm0", "vm1"):
        bed.client.move(name, Side.A)
        bed.client.move(name, Side.B)
    bed.ends_well()
    for qemu in bed.qemus:  # everything that QEMU says comes to the broker
        qemu.reboot(features=GUEST_FEATURES & ~(1 << Feature.RING_EVENT_IDX))
        qemu.reboot(features=GUEST_FEATURES | 1 << Feature.RING_INDIRECT_DESC)  # more than when it was taken over
        qemu.set_active_pairs(1)
        qemu.set_active_pairs(4)
        qemu.change_memory(3)
    bed.ends_well()


def test_what_is_prepared_is_undone_and_the_vm_stays_where_it_is(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    usual = bed.broker.descriptors()
    bed.prepare()[1].close()
    assert bed.client.vm("vm0").switches[Side.B].parked
    with pytest.raises(BrokerError, match="is being taken over"):
        bed.client.call("adopt_reconnect", vm="vm0", to="b")
    bed.client.adopt_cancel("vm0")
    bed.wait(lambda: bed.client.vm("vm0").switches[Side.B].connected, "switch b again")
    assert bed.client.vm("vm0").memory_bytes == 0
    assert bed.broker.descriptors() == usual
    assert bed.direct()
    bed.ends_well()


def test_a_switch_that_dies_when_it_is_to_release_the_rings(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.prepare()[1].close()
    bed.a.fail_at_fence(0, 1, signal.SIGKILL)  # it answers the question before the handover alone
    bed.enter()
    vm = bed.client.adopt_finish("vm0")
    assert vm.qemu == os.getpid()
    bed.wait(lambda: bed.owner() is Side.B, "on b")
    bed.ends_well()


def test_a_switch_that_dies_before_anything_was_asked(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.client.park("vm0", Side.B)
    bed.prepare()[1].close()
    bed.a.kill()
    bed.qemus[0].drop()  # its end is closed by the kernel, and QEMU sees it
    bed.wait(lambda: not bed.client.vm("vm0").memory_bytes, "what was prepared is undone")
    with pytest.raises(TryAgain, match="has not been prepared"):
        bed.client.adopt_enter("vm0", [])
    bed.qemus[0].accept()
    bed.qemus[0].initialise()
    bed.qemus[0].start_driver(bed.qemus[0].used_indices())
    bed.wait(lambda: bed.owner() is Side.B, "on b")
    bed.ends_well(doubled=32)


@pytest.mark.parametrize("answered", [0, 1])
def test_the_new_switch_dies_during_the_handover(make_direct: MakeDirect, answered: int) -> None:
    """Before or after the first switch has released the rings: it gets them back on its own connection with QEMU."""
    bed = make_direct().serve()
    bed.prepare()[1].close()
    bed.b.fail_at_fence(0, answered, signal.SIGKILL)
    with pytest.raises(BrokerError):
        bed.enter()
    vm = bed.client.vm("vm0")
    assert (vm.qemu, vm.memory_bytes) == (None, 0)
    assert bed.direct()
    bed.ends_well(doubled=32)
    bed.start_b()
    assert bed.adopt().confirmed_on(Side.B)  # it works with another switch
    bed.ends_well(doubled=32)


def test_a_switch_that_does_not_release_the_rings_in_time(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.prepare()[1].close()
    bed.a.fail_at_fence(0, 1, signal.SIGSTOP)
    with pytest.raises(StateUnknown):
        bed.enter()
    bed.a.go_on()
    bed.wait(lambda: bed.client.vm("vm0").absent is not None, "as before")
    assert bed.direct()
    bed.ends_well()
    assert bed.adopt().confirmed_on(Side.B)
    bed.ends_well()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_broker_that_ends_after_it_has_prepared(make_direct: MakeDirect, number: signal.Signals) -> None:
    bed = make_direct(managed=True).serve()
    bed.prepare()[1].close()
    bed.broker.restart(number)
    assert bed.direct()
    bed.ends_well()
    bed.wait(lambda: bed.client.vm("vm0").switches[Side.B].connected, "switch b again")
    assert bed.adopt().confirmed_on(Side.B)
    bed.ends_well()


def test_a_broker_that_ends_after_it_has_taken_over_continues(make_direct: MakeDirect) -> None:
    bed = make_direct(managed=True).serve()
    bed.adopt()
    bed.wait(lambda: bed.client.status().unsaved == 0, "stored")
    bed.broker.restart(signal.SIGKILL)
    bed.wait(lambda: bed.owner() is Side.B, "continued")
    bed.qemus[0].reboot()
    bed.ends_well()


def test_a_successor_takes_over_the_shared_socket(make_direct: MakeDirect) -> None:
    bed = make_direct(vms=2).serve()
    bed.adopt("vm0")
    bed.broker.succeed()
    assert bed.owner("vm0") is Side.B
    absent = bed.client.vm("vm1").absent
    assert absent is not None
    assert absent.cause is AbsenceCause.DIRECT
    assert bed.adopt("vm1").confirmed_on(Side.B)
    qemu = bed.qemus[1]
    qemu.quit()
    qemu.listen()  # it replaces the socket that the successor has inherited
    bed.wait(lambda: bed.broker.path("vm1.qemu").exists() and bed.broker.path("vm1").exists(), "moved away")
    qemu.accept()
    qemu.initialise()
    qemu.start_driver()
    bed.ends_well()


@pytest.mark.parametrize("b", [False, True])
def test_a_vm_is_taken_over_and_stays_with_its_switch(make_direct: MakeDirect, b: bool) -> None:
    """Its QEMU notices nothing, whether another switch is there as well."""
    bed = make_direct(vms=2, pairs=4).serve(b=b)
    with Traffic(bed.qemus, 1 << 16):
        for name in ("vm0", "vm1"):
            assert bed.adopt(name, Side.A).qemu == os.getpid()
            bed.wait(lambda name=name: bed.owner(name) is Side.A, "it is served again")  # type: ignore[misc]
    assert not bed.direct()
    bed.ends_well()
    assert not any(qemu.hung_up for qemu in bed.qemus)
    for qemu in bed.qemus:
        qemu.reboot(features=GUEST_FEATURES & ~(1 << Feature.RING_EVENT_IDX))
        qemu.set_active_pairs(1)
        qemu.set_active_pairs(4)
    if not b:
        bed.start_b()
    for name in ("vm0", "vm1"):
        bed.client.park(name, Side.B)
        bed.client.move(name, Side.B)
    bed.ends_well()


@pytest.mark.parametrize("to", list(Side))
def test_a_switch_that_dies_before_it_has_read_what_it_was_sent(make_direct: MakeDirect, to: Side) -> None:
    """What the dead switch has not read lies where QEMU's next message will come from."""
    bed = make_direct().serve()
    bed.client.park("vm0", Side.B)
    bed.prepare(to=to)[1].close()
    bed.a.stop()
    with ThreadPoolExecutor() as pool:
        entered = pool.submit(bed.enter)
        time.sleep(0.2)
        bed.a.kill()
        entered.result(20)
    bed.client.adopt_finish("vm0")
    bed.wait(lambda: bed.owner() is Side.B, "on b")
    assert bed.client.vm("vm0").memory_regions == bed.qemus[0].regions
    bed.ends_well(doubled=32)
    assert not bed.qemus[0].hung_up
    bed.qemus[0].reboot()
    bed.ends_well(doubled=32)


@pytest.mark.parametrize("answers", [1, 2, 3, 4])
@pytest.mark.parametrize("to", list(Side))
def test_a_switch_that_dies_at_any_answer_while_it_is_entered(make_direct: MakeDirect, to: Side, answers: int) -> None:
    """Its QEMU is listened to afterwards in any case."""
    bed = make_direct().serve()
    bed.client.park("vm0", Side.B)
    bed.prepare(to=to)[1].close()
    bed.a.fail_at_fence(0, answers, signal.SIGKILL)
    with contextlib.suppress(BrokerError, StateUnknown):
        bed.enter()
    bed.wait(lambda: bed.client.vm("vm0").confirmed_on(Side.A if bed.a.runs else Side.B), "served")
    bed.qemus[0].reboot()
    bed.ends_well(doubled=32)


@pytest.mark.parametrize("to", list(Side))
def test_a_switch_that_hangs_up_while_it_is_entered(make_direct: MakeDirect, to: Side) -> None:
    """It cannot map what it is sent. The broker has a duplicate of the end that it closes, and sees no end."""
    bed = make_direct(unmapped=1).serve()
    bed.client.park("vm0", Side.B)
    bed.prepare(to=to)[1].close()
    with contextlib.suppress(BrokerError, StateUnknown):
        bed.enter()
    bed.wait(lambda: bed.owner() is not None, "served")
    bed.ends_well(doubled=64)
    bed.qemus[0].reboot()
    bed.ends_well(doubled=64)


def test_a_qemu_that_leaves_while_it_is_prepared_is_seen_by_its_switch(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.prepare()[1].close()
    bed.qemus[0].drop()
    bed.wait(lambda: bed.client.vm("vm0").switches[Side.A].connected, "the switch comes to the broker")
    bed.wait(lambda: not bed.client.vm("vm0").memory_bytes, "what was prepared is undone")
    bed.qemus[0].accept()
    bed.qemus[0].initialise()
    bed.qemus[0].start_driver(bed.qemus[0].used_indices())
    bed.wait(lambda: bed.owner() is not None, "served")
    bed.ends_well(doubled=32)


@pytest.mark.parametrize("to", list(Side))
def test_a_switch_that_dies_after_qemu_has_continued(make_direct: MakeDirect, to: Side) -> None:
    """It is not known where QEMU's own messages begin in what the switch has not read: QEMU gets a new connection."""
    bed = make_direct().serve()
    bed.client.park("vm0", Side.B)
    bed.prepare(to=to)[1].close()
    bed.a.stop()
    with pytest.raises(StateUnknown):
        bed.enter()
    bed.a.kill()
    qemu = bed.qemus[0]
    qemu.wait_hung_up()
    qemu.accept()
    qemu.initialise()
    qemu.start_driver(qemu.used_indices())
    bed.wait(lambda: bed.owner() is Side.B, "on b")
    bed.ends_well(doubled=32)


def test_a_vm_that_was_to_stay_is_left_alone_again(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    usual = bed.broker.descriptors()
    bed.prepare(to=Side.A)[1].close()
    bed.client.adopt_cancel("vm0")
    assert bed.broker.descriptors() == usual
    assert bed.direct()
    bed.ends_well()
    assert bed.adopt().confirmed_on(Side.B)


def test_a_vm_is_taken_over_by_a_new_connection(make_direct: MakeDirect) -> None:
    """For the same switch, without a standby. QEMU sees its back end go, and takes up the broker's connection."""
    bed = make_direct().serve(b=False)
    qemu, snapshot = bed.qemus[0], bed.snapshot()
    fetched = bed.fetched(snapshot)

    def takes_up() -> None:
        qemu.wait_hung_up()
        qemu.accept()
        qemu.initialise()
        qemu.start_driver(qemu.used_indices())

    with ThreadPoolExecutor() as pool:
        served = pool.submit(takes_up)
        end = os.dup(fetched.switch_end.fileno())
        fetched.close()
        vm = bed.client.adopt_reconnect("vm0", Side.A, end)
        os.close(end)
        served.result(10)
    assert vm.confirmed_on(Side.A)
    assert not bed.direct()
    bed.ends_well()


def test_a_vm_is_given_back_to_the_only_switch(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.adopt()
    bed.wait(lambda: bed.client.vm("vm0").switches[Side.A].parked, "the first switch is back")
    qemu = bed.qemus[0]
    with pytest.raises(BrokerError, match="both switches"):
        bed.client.give_back("vm0")
    bed.client.move("vm0", Side.A)
    bed.b.kill()
    bed.wait(lambda: not bed.client.vm("vm0").switches[Side.B].connected, "switch b has ended")
    with ThreadPoolExecutor() as pool:
        hung_up = pool.submit(qemu.wait_hung_up)
        bed.client.give_back("vm0")
        hung_up.result(10)
    qemu.accept()
    qemu.initialise()
    qemu.start_driver(qemu.used_indices())
    assert bed.direct()
    assert bed.client.vms() == []
    assert not bed.broker.path("vm0.qemu").exists()
    bed.ends_well()


def test_a_direct_vm_that_leaves_the_file_gets_its_socket_back(make_direct: MakeDirect) -> None:
    bed = make_direct(vms=2).serve()
    bed.broker.write_ports(["vm1"])
    assert bed.client.reload() == []
    assert [vm.name for vm in bed.client.vms()] == ["vm1"]
    assert bed.broker.path("vm0").is_socket()
    assert not bed.broker.path("vm0.qemu").exists()
    bed.broker.write_ports(["vm0", "vm1"])
    bed.client.reload()
    assert (absent := bed.client.vm("vm0").absent)  # at once: an upgrade takes over those that are direct
    assert absent.cause is AbsenceCause.DIRECT
    bed.wait(lambda: bed.client.vm("vm0").switches[Side.B].connected, "claimed again")
    assert bed.adopt("vm0").confirmed_on(Side.B)
    bed.ends_well()


def test_a_qemu_that_ends_and_starts_again_is_followed(make_direct: MakeDirect) -> None:
    bed = make_direct().serve()
    bed.adopt()
    qemu, moved = bed.qemus[0], bed.broker.path("vm0.qemu")
    qemu.quit()
    bed.wait(lambda: bed.broker.path("vm0").exists(), "the broker listens again")
    bed.wait(lambda: not moved.exists(), "what QEMU has left is removed")
    for _ in range(3):
        qemu.listen()
        bed.wait(moved.exists, "moved away")
        qemu.accept()
        qemu.initialise()
        qemu.start_driver()
        bed.ends_well()
        qemu.quit()


def test_a_process_that_is_no_switch_is_refused(make_direct: MakeDirect) -> None:
    bed = make_direct().serve(b=False)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bed.broker.path("vm0")))
        assert other.recv(1) == b""
    assert f"process {os.getpid()} refused" in (bed.client.vm("vm0").last_error or "")

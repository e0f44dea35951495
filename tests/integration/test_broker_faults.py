"""Switches that hang up, hang, die or come twice at every point of a move: never two owners, and service again."""

from __future__ import annotations

import resource
import signal
import threading
import time

import pytest

from ovs_hotswap.errors import BrokerError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.messages import Feature
from tests.support.broker_bed import PACKETS, Bed, MakeBed
from tests.support.vhost_device import FEATURES
from tests.support.vhost_qemu import FakeQemu, Traffic
from tests.support.vhost_switch import SwitchProcess


def test_owner_hangs_up_and_reconnects(make_bed: MakeBed) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu(pairs=2)
    bed.client.park("vm0", Side.B)
    for _ in range(3):
        vm.send(50)
        active.hang_up(0)
        vm.drain()
        bed.wait_owner(Side.A)
    assert not vm.hung_up
    bed.ends_well((0, vm))
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_standby_hangs_up_and_is_parked_again(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    standby = bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    standby.hang_up(0)
    bed.wait(lambda: bed.broker.log.read_text().count("switch b connected") == 2, "hang-up")
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_parked_standby_takes_over_from_a_killed_owner(make_bed: MakeBed) -> None:
    bed = make_bed(3)
    active = bed.switch(Side.A)
    bed.switch(Side.B)
    vms = [bed.qemu(f"vm{k}", pairs=k + 1) for k in range(3)]
    for k in range(3):
        bed.client.park(f"vm{k}", Side.B)
    with Traffic(vms, PACKETS // 2):
        time.sleep(0.05)
        active.kill()
        for k in range(3):
            bed.wait_owner(Side.B, f"vm{k}")
    bed.ends_well(*enumerate(vms), doubled=32)
    bed.switch(Side.A)
    for k in range(3):
        bed.client.park(f"vm{k}", Side.A)
        bed.client.move(f"vm{k}", Side.A)
    bed.ends_well(*enumerate(vms), doubled=32)


def test_killed_owner_without_a_standby_is_replaced_by_the_next_process(make_bed: MakeBed) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    vm = bed.qemu()
    bed.wait_owner(Side.A)
    active.kill()
    vm.send(20)
    bed.wait(lambda: bed.client.vm("vm0").owner is None, "no side owns it")
    bed.switch(Side.A)
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm), doubled=32)


def test_standby_that_was_busy_when_the_owner_died_takes_over_later(make_bed: MakeBed) -> None:
    """Nothing else happens to the VM after that: the broker must come back to it by itself."""
    bed = make_bed()
    active = bed.switch(Side.A)
    standby = bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    standby.stop()
    bed.client.unpark("vm0", Side.B)
    with pytest.raises(BrokerError, match="timed out"), bed.broker.client(timeout=0.1) as hurried:
        hurried.park("vm0", Side.B)
    with pytest.raises(BrokerError, match="under way"):
        bed.client.move("vm0", Side.B)
    active.kill()
    bed.wait(lambda: not bed.connected(Side.A), "death noticed")
    standby.go_on()
    bed.wait_owner(Side.B)
    bed.ends_well((0, vm), doubled=32)


def test_old_side_that_hangs_before_the_move_stays_the_owner(make_bed: MakeBed) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    active.stop()
    for message in ("did not answer", "under way"):
        with pytest.raises(BrokerError, match=message):
            bed.client.move("vm0", Side.B)
        assert (bed.client.vm("vm0").owner, bed.client.vm("vm0").certainty) == ("a", "owns")
    active.go_on()
    bed.ends_well((0, vm))
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_old_side_that_hangs_keeps_the_rings(make_bed: MakeBed) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    active.fail_at_fence(0, 1, signal.SIGSTOP)
    with pytest.raises(BrokerError, match="did not release"):
        bed.client.move("vm0", Side.B)
    assert bed.client.vm("vm0").owner == "a"
    with pytest.raises(BrokerError, match="not a confirmed owner"):
        bed.client.move("vm0", Side.B)
    vm.send(30)
    time.sleep(0.05)
    assert not vm.drained()
    active.go_on()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


@pytest.mark.parametrize(("answered", "message"), [(0, "did not answer"), (1, "did not release")])
def test_old_side_that_hangs_and_dies_is_replaced(make_bed: MakeBed, answered: int, message: str) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    active.fail_at_fence(0, answered, signal.SIGSTOP)
    with pytest.raises(BrokerError, match=message):
        bed.client.move("vm0", Side.B)
    active.kill()
    bed.wait_owner(Side.B)
    bed.ends_well((0, vm), doubled=32)


def test_new_side_that_hangs_before_the_move_cuts_nobody_off(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    standby = bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    standby.stop()
    for message in ("did not answer", "under way"):
        with pytest.raises(BrokerError, match=message):
            bed.client.move("vm0", Side.B)
        bed.wait_owner(Side.A)
        bed.ends_well((0, vm))
    standby.go_on()
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def hangs_with_the_rings(bed: Bed) -> tuple[SwitchProcess, FakeQemu]:
    """The new side, which stands still with the rings of a VM, and that."""
    bed.switch(Side.A)
    standby = bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    standby.fail_at_fence(0, 2, signal.SIGSTOP)
    with pytest.raises(StateUnknown, match="did not confirm"):
        bed.client.move("vm0", Side.B)
    return standby, vm


def test_new_side_that_hangs_with_the_rings_is_asked_for_them_back(make_bed: MakeBed) -> None:
    bed = make_bed()
    standby, vm = hangs_with_the_rings(bed)
    time.sleep(0.5)
    vm.send(30)
    time.sleep(0.05)
    assert not vm.drained()
    assert bed.client.vm("vm0").owner == "b"
    with pytest.raises(BrokerError):
        bed.client.move("vm0", Side.A)
    standby.go_on()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))


def test_new_side_that_hangs_with_the_rings_for_a_moment_keeps_them(make_bed: MakeBed) -> None:
    bed = make_bed()
    standby, vm = hangs_with_the_rings(bed)
    standby.go_on()
    bed.wait(lambda: bed.owner() is not None, "an owner")
    bed.ends_well((0, vm))


def test_move_back_waits_for_a_new_side_that_comes_to(make_bed: MakeBed) -> None:
    """Move back like a rollback: the uncertainty ends when the side answers."""
    bed = make_bed(fence_ms=200)
    standby, vm = hangs_with_the_rings(bed)
    later = threading.Timer(0.8, standby.go_on)  # long after the fence, and before the move back gives up
    later.start()
    bed.client.move("vm0", Side.A)
    later.join()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))


def test_new_side_that_hangs_with_the_rings_and_dies_gives_them_back(make_bed: MakeBed) -> None:
    bed = make_bed()
    standby, vm = hangs_with_the_rings(bed)
    standby.kill()
    bed.wait_owner(Side.A)
    bed.ends_well((0, vm))


@pytest.mark.parametrize(
    ("dying", "answered", "survivor"),
    [(Side.A, 0, Side.B), (Side.A, 1, Side.B), (Side.B, 0, Side.A), (Side.B, 1, Side.A), (Side.B, 2, Side.A)],
)
def test_side_that_dies_within_a_move(make_bed: MakeBed, dying: Side, answered: int, survivor: Side) -> None:
    """Strike at the old side's first fence, when nothing has begun, and at its last, when it is to release the rings;
    at the new side's first two, when nothing has begun, and at its last, when it has the rings."""
    bed = make_bed()
    switches = {side: bed.switch(side) for side in Side}
    vm = bed.qemu(pairs=2)
    bed.client.park("vm0", Side.B)
    vm.send(100)
    switches[dying].fail_at_fence(0, answered, signal.SIGKILL)
    with pytest.raises((BrokerError, StateUnknown), match="hung up"):
        bed.client.move("vm0", Side.B)
    bed.wait_owner(survivor)
    bed.ends_well((0, vm), doubled=32)
    bed.switch(dying)
    bed.client.park("vm0", dying)
    bed.client.move("vm0", dying)
    bed.ends_well((0, vm), doubled=32)


@pytest.mark.parametrize("frozen", [False, True])
def test_second_process_on_a_side_is_refused_and_harms_nobody(make_bed: MakeBed, frozen: bool) -> None:
    bed = make_bed()
    active = bed.switch(Side.A)
    vm = bed.qemu()
    vm.send(20)
    vm.drain()
    if frozen:
        active.stop()
    intruder = bed.switch(Side.A, wait=False)
    bed.wait(lambda: "refused" in (bed.client.vm("vm0").last_error or ""), "refusal")
    assert bed.client.vm("vm0").switches[Side.A].pid == active.pid
    assert bed.client.vm("vm0").owner == "a"
    if frozen:
        active.go_on()
    vm.send(200)
    vm.drain()
    assert list(intruder.touches.spans()) == []
    intruder.kill()
    bed.ends_well((0, vm))


def test_process_that_was_cut_off_but_lives_keeps_others_out(make_bed: MakeBed) -> None:
    """Its connection is gone, its device may not be: only its death or its return proves the rings free."""
    bed = make_bed()
    active = bed.switch(Side.A, reconnect_s=1000.0)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    active.hang_up(0)
    bed.wait(lambda: bed.client.vm("vm0").certainty == "cut", "cut off")
    intruder = bed.switch(Side.A, wait=False)
    bed.wait(lambda: "refused" in (bed.client.vm("vm0").last_error or ""), "refusal")
    with pytest.raises(BrokerError, match="not a confirmed owner"):
        bed.client.move("vm0", Side.B)
    active.kill()
    bed.wait(lambda: bed.owner() is not None, "a side owns it")
    bed.ends_well((0, vm), doubled=32)
    assert intruder.pid != active.pid


def test_standby_that_lacks_features_is_not_parked(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    vm = bed.qemu()
    lacking = FEATURES & ~(1 << Feature.NET_MRG_RXBUF) & ~(1 << Feature.RING_EVENT_IDX)
    bed.switch(Side.B, features=lacking)
    with pytest.raises(BrokerError, match="NET_MRG_RXBUF, RING_EVENT_IDX"):
        bed.client.park("vm0", Side.B)
    with pytest.raises(BrokerError, match="not parked"):
        bed.client.move("vm0", Side.B)
    assert bed.client.vm("vm0").switches[Side.B].missing == ("NET_MRG_RXBUF", "RING_EVENT_IDX")
    vm.drain()
    vm.reboot(features=1 << Feature.VERSION_1)
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_guest_that_takes_features_its_home_lacks_is_served_by_the_other_side(make_bed: MakeBed) -> None:
    """QEMU connected while only side b was there; side a, its home, came before the guest chose its features."""
    bed = make_bed(home=Side.A)
    bed.switch(Side.B)
    vm = bed.qemu(boot=False)
    vm.accept()
    vm.initialise()
    bed.switch(Side.A, features=FEATURES & ~(1 << Feature.NET_MRG_RXBUF))
    vm.start_driver()
    bed.wait_owner(Side.B)
    bed.ends_well((0, vm))


def test_a_move_that_cannot_be_prepared_leaves_the_owner_as_it_is(make_bed: MakeBed) -> None:
    """A file size limit makes the broker fail to write to ring memory; nothing has been sent to a switch yet."""
    bed = make_bed()
    vm = bed.running()
    limit = resource.prlimit(bed.broker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(bed.broker.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
    with pytest.raises(BrokerError, match="its move cannot be prepared: File too large"):
        bed.client.move("vm0", Side.B)
    resource.prlimit(bed.broker.pid, resource.RLIMIT_FSIZE, limit)
    assert bed.owner("vm0") is Side.A
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))

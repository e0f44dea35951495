"""A VM's life in a real broker's process: boot, moves under traffic, resets, QEMU leaving, memory and queues changing.

The peers are written for tests: they record which guest rings they touched when. The real QEMU and the real Open
vSwitch are in the other integration tests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank, has_rank, set_thread_rank
from ovs_hotswap.vhostuser.messages import Feature
from tests.support.broker_bed import PACKETS, MakeBed
from tests.support.vhost_device import FEATURES
from tests.support.vhost_qemu import Traffic
from tests.support.waiting import eventually


@pytest.mark.parametrize("pairs", [1, 3])
def test_guest_boots_through_the_broker(make_bed: MakeBed, pairs: int) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    vm = bed.qemu(pairs=pairs)
    bed.wait_owner(Side.A)
    vm.send(200)
    vm.drain()
    bed.wait(lambda: vm.drained() and vm.guest is not None and len(vm.guest.received) == 200, "echo")
    assert vm.guest is not None
    assert sorted(vm.guest.received) == list(range(200))
    shown = bed.client.vm("vm0")
    assert (shown.owner, shown.certainty, len(shown.rings)) == ("a", "owns", 2 * pairs)
    assert not shown.features_used >> 34 & 1
    bed.ends_well((0, vm))


def test_moves_there_and_back_under_traffic(make_bed: MakeBed) -> None:
    bed = make_bed(2)
    bed.switch(Side.A)
    bed.switch(Side.B)
    vms = [bed.qemu("vm0"), bed.qemu("vm1", pairs=2)]
    for name in ("vm0", "vm1"):
        bed.client.park(name, Side.B)
    with Traffic(vms, PACKETS // 2):
        for turn in range(200):
            for name in ("vm0", "vm1"):
                moved = bed.client.move(name, Side.B if turn % 2 == 0 else Side.A)
                assert moved.total_us > 0
    assert bed.client.vm("vm0").moves == 200
    assert vms[0].next_packet > 200
    bed.ends_well((0, vms[0]), (1, vms[1]))
    for vm in vms:
        assert vm.guest is not None
        assert len(set(vm.guest.received)) == len(vm.guest.received)


def test_the_switches_notify_pipes_are_used_for_a_row_of_moves(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.running()
    pipes = {side: os.pipe2(os.O_NONBLOCK) for side in Side}
    threads = {side: MessageThread(1, end) for side, (_, end) in pipes.items()}
    for turn, to in enumerate((Side.B, Side.A, Side.B), 1):
        moved, fault = bed.client.move_many(["vm0"], to, threads)
        assert (len(moved), fault) == (1, None)
        assert bed.owner() is to
        for read, _ in pipes.values():
            turns, rest = divmod(len(os.read(read, 1 << 16)), 16)
            assert turns in (2, 3), turn  # two rings, and one more where the switch's thread has another core
            assert not rest
    before = bed.broker.descriptors()
    for _ in range(20):
        bed.client.move_many(["vm0"], Side.B, threads)
    assert bed.broker.descriptors() <= before  # one that was being closed then may be gone
    for ends in pipes.values():
        for end in ends:
            os.close(end)


def test_what_is_no_notify_pipe_is_refused(make_bed: MakeBed, tmp_path: Path) -> None:
    bed = make_bed()
    bed.running()
    read, write = os.pipe2(os.O_NONBLOCK)
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK)
    before = bed.broker.descriptors()
    for wrong in (read, file):
        with pytest.raises(BrokerError, match="notify pipe of a: not a pipe"):
            bed.client.move_many(["vm0"], Side.B, {Side.B: MessageThread(1, write), Side.A: MessageThread(1, wrong)})
    with pytest.raises(BrokerError, match="2 descriptors too many"):
        bed.client.call("move_many", vms=["vm0"], to="b", descriptors=[write, write])
    with pytest.raises(BrokerError, match="vms takes no descriptors"):
        bed.client.call("vms", descriptors=[write])
    with socket.socket(socket.AF_UNIX) as other:  # more than belong to one request
        other.connect(str(bed.broker.config.broker_socket))
        for _ in range(2):
            socket.send_fds(other, [b"{"], [write] * 200)
        assert other.recv(1) == b""
    assert bed.owner() is Side.A
    eventually(lambda: bed.broker.descriptors() == before, "no descriptor is left")  # pipes are closed by a thread
    for end in (read, write, file):
        os.close(end)


@pytest.mark.parametrize(
    "threads",
    [[1], {"a": 1}, {"a": {}}, {"a": {"tid": 1, "pipe": True}}, {"a": {"tid": float("inf"), "pipe": False}},
     {"a": {"tid": "x", "pipe": False}}],
)  # fmt: skip
def test_threads_that_are_none(make_bed: MakeBed, threads: object) -> None:
    bed = make_bed()
    with pytest.raises(BrokerError, match="threads: a tid and whether there is a pipe"):
        bed.client.call("move_many", vms=["vm0"], to="b", threads=threads)


def test_a_full_pipe_that_its_owner_would_wait_for_does_not_stop_the_broker(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.running()
    read, write = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    for to in (Side.B, Side.A):
        assert bed.client.move_many(["vm0"], to, {side: MessageThread(1, write) for side in Side})[1] is None
        assert bed.owner() is to
    os.close(read)  # as when the switch has died
    assert bed.client.move_many(["vm0"], Side.B, {Side.A: MessageThread(1, write)})[1] is None
    os.close(write)


def test_the_side_that_takes_the_rings_waits_until_the_other_has_let_go(make_bed: MakeBed) -> None:
    bed = make_bed(fence_ms=500)
    bed.running()
    active, standby = bed.switches
    threads = {side: MessageThread(switch.pid, None) for side, switch in zip(Side, bed.switches, strict=True)}
    set_thread_rank(standby.pid, Rank.TAKES)
    if not has_rank(standby.pid):
        pytest.skip("real-time priority is not permitted")

    def rank() -> int:
        return os.sched_getparam(standby.pid).sched_priority

    active.stop()
    with ThreadPoolExecutor() as pool:
        moved = pool.submit(bed.client.move_many, ["vm0"], Side.B, threads)
        eventually(lambda: rank() == Rank.WAITS or moved.done(), "the standby waits", poll_s=0.001)
        assert not moved.done()
        _, fault = moved.result()
    assert fault is not None
    assert "switch a did not answer" in fault.message
    assert rank() == Rank.TAKES
    active.go_on()
    bed.wait(lambda: bed.client.move_many(["vm0"], Side.B, threads)[1] is None, "the move")
    assert bed.owner() is Side.B
    assert rank() == Rank.TAKES
    assert not has_rank(active.pid)


def test_many_are_moved_by_one_request_up_to_a_fault(make_bed: MakeBed) -> None:
    names = ["vm0", "vm1", "vm2"]
    bed = make_bed(3)
    bed.switch(Side.A)
    bed.switch(Side.B)
    vms = [bed.qemu(name) for name in names]
    for name in names:
        bed.wait_owner(Side.A, name)
        bed.client.park(name, Side.B)
    with Traffic(vms, PACKETS // 3):
        for turn in range(50):
            moved, fault = bed.client.move_many(names, Side.B if turn % 2 == 0 else Side.A)
            assert ([each.vm for each in moved], fault) == (names, None)
    bed.client.unpark("vm1", Side.B)
    moved, fault = bed.client.move_many(names, Side.B)
    assert [each.vm for each in moved] == ["vm0"]
    assert isinstance(fault, BrokerError)
    assert "vm1 cannot move to b: switch b is not parked" in fault.message
    assert [bed.owner(name) for name in names] == [Side.B, Side.A, Side.A]
    bed.ends_well(*enumerate(vms))


def test_a_frame_is_rescued_if_a_copy_comes_at_the_wrong_moment(make_bed: MakeBed) -> None:
    """The new side has its copies of some frames before a move. The old side delivers those that it has in time; those
    that it has after the move are not delivered, however late it is."""
    bed = make_bed()
    a, b = bed.switch(Side.A), bed.switch(Side.B)
    vm = bed.qemu()
    bed.wait_owner(Side.A)
    bed.client.park("vm0", Side.B)
    in_time, late, only_new = (bytes([n]) * 40 for n in range(3))
    assert bed.client.arm(["vm0"], Side.B) == ["vm0"]
    for frame in (in_time, late):
        b.deliver(0, frame)
    a.deliver(0, in_time)
    bed.client.move("vm0", Side.B)
    b.deliver(0, only_new)
    time.sleep(0.3)
    for frame in (late, only_new):
        a.deliver(0, frame)
    assert bed.client.undelivered("vm0") == [late]
    assert bed.client.undelivered("vm0") == []
    bed.ends_well((0, vm))


def test_a_vm_that_is_armed_and_not_moved_is_served_on(make_bed: MakeBed) -> None:
    bed = make_bed()
    vm = bed.running()
    assert bed.client.arm(["vm0"], Side.B) == ["vm0"]
    assert bed.client.arm(["vm0"], Side.A) == []
    vm.reboot()
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_of_a_vm_that_is_not_moved_after_all_nothing_is_kept(make_bed: MakeBed) -> None:
    bed = make_bed()
    a, b = bed.switch(Side.A), bed.switch(Side.B)
    vm = bed.qemu()
    bed.wait_owner(Side.A)
    bed.client.park("vm0", Side.B)
    assert bed.client.arm(["vm0"], Side.B) == ["vm0"]
    b.deliver(0, bytes(40))
    bed.client.disarm(["vm0"])
    bed.wait(lambda: bool(bed.client.vm("vm0").switches[Side.B].parked), "parked again")
    bed.client.move("vm0", Side.B)
    a.deliver(0, bytes(40))
    assert bed.client.undelivered("vm0") == []
    bed.ends_well((0, vm))


def test_a_guest_that_nobody_serves_is_told(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    b = bed.switch(Side.B)
    vm = bed.qemu()
    bed.wait_owner(Side.A)
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    assert bed.client.unserved(["vm0"]) == []
    vm.send(8)
    vm.drain()
    bed.client.move("vm0", Side.A)
    bed.client.move("vm0", Side.B)
    b.stop()
    vm.send(8)
    assert bed.client.unserved(["vm0"]) == ["vm0"]
    b.go_on()
    bed.wait(lambda: bed.client.unserved(["vm0"]) == [], "served")
    bed.ends_well((0, vm))


@pytest.mark.parametrize("owner", Side)
def test_guest_reboots_while_the_other_side_is_parked(make_bed: MakeBed, owner: Side) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu(pairs=2)
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", owner)
    for _ in range(3):
        assert vm.send(100) == 100
        vm.drain()
        vm.reboot()
        bed.wait_owner(owner)
    vm.send(10)
    vm.drain()
    bed.client.move("vm0", owner.other)
    assert vm.send(10) == 10
    vm.drain()
    vm.reboot(features=1 << Feature.VERSION_1)
    bed.ends_well((0, vm))
    bed.client.move("vm0", owner)
    bed.ends_well((0, vm))


def test_reset_reports_the_bases_at_which_the_guest_goes_on(make_bed: MakeBed) -> None:
    """QEMU's stop and cont: the rings stay, and packets that wait in them are sent after it."""
    bed = make_bed()
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu(pairs=2)
    bed.client.park("vm0", Side.B)
    vm.send(70)
    vm.drain()
    bed.client.move("vm0", Side.B)
    bases = vm.stop_driver()
    assert bases == [35, 35, 35, 35]
    assert vm.guest is not None
    vm.next_packet += vm.guest.send(vm.next_packet, 5)
    vm.start_driver(bases)
    vm.drain()
    bed.ends_well((0, vm))


def test_qemu_quits_and_comes_back(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    for _ in range(3):
        vm.send(10)
        vm.drain()
        vm.quit()
        bed.wait(lambda: bed.client.vm("vm0").qemu is None, "broker sees QEMU leave")
        vm.listen()
        vm.boot()
        bed.wait_owner(Side.B)
    bed.ends_well((0, vm))
    bed.client.move("vm0", Side.A)
    bed.ends_well((0, vm))


def test_guest_changes_its_number_of_queues(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu(pairs=4)
    bed.client.park("vm0", Side.B)
    for turn, pairs in enumerate((1, 3, 4)):
        vm.drain()
        vm.set_active_pairs(4)
        bed.client.move("vm0", Side.B if turn % 2 == 0 else Side.A)
        assert vm.send(40) == 40
        vm.drain()
        vm.set_active_pairs(pairs)
        wanted = [k < 2 * pairs for k in range(8)]
        bed.wait(lambda: [ring.enabled for ring in bed.client.vm("vm0").rings] == wanted, f"{pairs} pairs")  # noqa: B023
    vm.set_active_pairs(4)
    bed.ends_well((0, vm))


def test_memory_table_changes_and_eight_regions_leave_no_room_to_park(make_bed: MakeBed) -> None:
    bed = make_bed()
    bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu()
    bed.client.park("vm0", Side.B)
    for turn, regions in enumerate((5, 7, 1, 3)):
        vm.change_memory(regions)
        bed.client.move("vm0", Side.B if turn % 2 == 0 else Side.A)
        assert vm.send(20) == 20
        vm.drain()
    vm.change_memory(8)
    assert "8 regions" in str(bed.client.vm("vm0").unparkable)
    with pytest.raises(BrokerError, match="8 regions"):
        bed.client.park("vm0", Side.B)
    with pytest.raises(BrokerError, match="not parked"):
        bed.client.move("vm0", Side.B)
    assert vm.send(20) == 20
    vm.drain()
    vm.change_memory(4)
    bed.client.park("vm0", Side.B)
    bed.client.move("vm0", Side.B)
    bed.ends_well((0, vm))


def test_a_vm_that_had_no_guest_starts_on_the_side_that_is_active_by_then(make_bed: MakeBed) -> None:
    """Whether or not the broker was told to look again."""
    bed = make_bed(vms=2)
    a = bed.switch(Side.A)
    bed.switch(Side.B)
    vm = bed.qemu("vm0")
    bed.wait_owner(Side.A)
    bed.client.park("vm0", Side.B)
    a.kill()
    bed.wait_owner(Side.B)
    bed.broker.config.active_file.write_text("b\n")
    other = bed.qemu("vm1")
    bed.wait_owner(Side.B, "vm1")
    assert bed.client.vm("vm1").home == "b"
    bed.ends_well((0, vm), (1, other), doubled=1)


def test_a_qemu_that_starts_again_is_offered_what_all_sides_have(make_bed: MakeBed) -> None:
    """The standby offers more and is back before the side that is active."""
    more = FEATURES | 1 << Feature.NET_CSUM
    bed = make_bed()
    bed.switch(Side.A, reconnect_s=1.0)
    bed.switch(Side.B, features=more, reconnect_s=0.2)
    vm = bed.qemu(features=more)
    bed.wait_owner(Side.A)
    for _ in range(2):
        vm.quit()
        vm.listen()
        vm.boot()
        bed.wait_owner(Side.A)
        assert "NET_CSUM" not in bed.client.vm("vm0").feature_names
    bed.ends_well((0, vm))

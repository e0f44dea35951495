"""patches/dpdk/22.11 at work, in the patched switch; the stock one shows the old behaviour."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.patched_bed import PatchedBed
from tests.support.patched_bed import bed as bed
from tests.support.threads import thread_states
from tests.support.vhost_qemu import FakeQemu
from tests.support.waiting import eventually

_READ = re.compile(r"\((?P<socket>\S+)\) read message VHOST_USER_SET_VRING_ADDR")


def test_messages_that_wait_are_handled_in_one_turn(bed: PatchedBed) -> None:
    """Two front ends have each sent a handover's messages before the switch looks at the first of them."""
    vms = [bed.vm(f"vm{number}", pairs=4) for number in range(2)]
    said = {vm: b"".join(messages.build_ring_address(ring, vm.address(ring)) for ring in range(8)) for vm in vms}
    assert turns(bed, said, 16) == ([8, 8] if bed.is_patched else [1] * 16)


def test_one_connection_does_not_keep_the_others_waiting(bed: PatchedBed) -> None:
    """More than a turn's worth: 64 messages are handled, then the other connection has its turn."""
    vms = [bed.vm(f"vm{number}") for number in range(2)]
    said = {vm: messages.build_ring_address(0, vm.address(0)) * 100 for vm in vms}
    assert turns(bed, said, 200) == ([64, 64, 36, 36] if bed.is_patched else [1] * 200)


def turns(bed: PatchedBed, said: Mapping[FakeQemu, bytes], messages: int) -> list[int]:
    """How many messages of one connection are handled before one of the other, if all are there from the start."""
    log = bed.instance.paths.log
    for vm in said:
        vm.number(Request.GET_FEATURES)  # what was said before is done
    eventually(lambda: thread_states(bed.pid, "vhost-events") == {"S"}, "the thread waits for messages")
    begin = log.stat().st_size
    with standing_still(bed):
        for vm, data in said.items():
            vm.say(data)

    def order() -> list[str]:
        with log.open() as lines:
            lines.seek(begin)
            return [found["socket"] for found in _READ.finditer(lines.read())]

    eventually(lambda: len(order()) == messages, "the log is written")
    return [sum(1 for _ in same) for _, same in itertools.groupby(order())]


@contextlib.contextmanager
def standing_still(bed: PatchedBed) -> Iterator[None]:
    """No thread of the switch runs in the block."""

    os.kill(bed.pid, signal.SIGSTOP)
    try:
        eventually(lambda: thread_states(bed.pid) == {"T"}, "all threads have stopped")
        yield
    finally:
        os.kill(bed.pid, signal.SIGCONT)


def test_a_closed_connection_proves_that_the_rings_are_free(bed: PatchedBed) -> None:
    """DPDK gives a device up because of a message that it cannot handle; the front end then sees the end of the
    stream. What is still mapped at that moment may still be used."""
    bed.vm("other")
    bed.configure(pmd_maxsleep="10000")  # destroy_device waits for the PMD thread, which then sleeps most of the time
    bed.wait_iterations(2000)  # the sleep grows by 1 us in each
    mapped = []
    for number in range(5 if bed.is_patched else 30):  # of the stock one, one that is caught is enough
        vm = bed.vm(f"vm{number}")
        assert bed.maps(vm)
        vm.say(messages.build(Request.SET_MEM_TABLE, b""))
        vm.wait_hung_up()
        mapped.append(bed.maps(vm))
        if mapped[-1]:
            break
    assert any(mapped) is not bed.is_patched, mapped


def test_the_first_buffer_after_a_hand_over_is_signalled(bed: PatchedBed) -> None:
    """Event index: the back end signalled index 10, another one served the ring, and the ring comes back such that the
    index is about to be 10 again, which the guest waits for. Nothing between 10 and 10 means no interrupt."""
    vm = bed.vm("vm0")
    assert vm.send(10) == 10
    vm.drain()
    assert vm.guest is not None
    ring, layout = vm.guest.rings[1], vm.layouts[1]
    vm.say(messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 0))
    vm.number(Request.GET_FEATURES)  # the ring is not touched any more
    ring.posted = ring.reclaimed = 9
    ring.view.available[1] = ring.view.used16[1] = 9
    used_event = layout.available + 4 + 2 * layout.size  # virtio 1.2, 2.7.6
    vm.memory.view[used_event : used_event + 2].cast("H")[0] = 9
    called(vm.calls[1])
    vm.say(messages.build_ring_address(1, vm.address(1)))
    vm.say(messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 1))
    assert vm.send(1) == 1
    vm.drain()
    bed.wait_iterations(10)  # the index is shown before the call is made
    assert called(vm.calls[1]) is bed.is_patched


def called(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def test_connections_are_watched_by_epoll(bed: PatchedBed) -> None:
    vms = [bed.vm("vm0")]
    before = watched(bed.pid)
    vms += [bed.vm("vm1"), bed.vm("vm2")]
    assert watched(bed.pid) - before == (2 if bed.is_patched else 0)
    for vm in vms:
        vm.quit()
    eventually(lambda: watched(bed.pid) == before - (1 if bed.is_patched else 0), "closed connections are not watched")


def test_connections_come_and_go(bed: PatchedBed) -> None:
    """The set of connections after many have gone: the places of closed ones are used again."""
    keeps = bed.vm("keeps")
    with FakeQemu(bed.socket("goes")) as vm:
        bed.add_port("goes")
        for _ in range(5):  # DPDK connects again after up to a second
            vm.accept()
            vm.number(Request.GET_FEATURES)
            vm.drop()
            keeps.number(Request.GET_FEATURES)
    assert keeps.send(8) == 8
    keeps.drain()


def watched(pid: int) -> int:
    """File descriptors in the epoll sets of process ``pid`` (proc_pid_fdinfo(5))."""
    total = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            if "eventpoll" in str(path.readlink()):
                text = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
                total += sum(line.startswith("tfd:") for line in text.splitlines())
    return total

"""A descriptor whose closing waits holds up no other work."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker.persist import recovery, takeover
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.snapshot import VmParts
from ovs_hotswap.broker.persist.state_slot import StateSlot
from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.fd_closing import Closer, close, hang_up
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd
from tests.support.front_end import BITS, Bench
from tests.support.waiting import eventually
from tests.unit.broker_bed import Listening

LINGER_S = 20


def lingering() -> tuple[int, socket.socket, socket.socket]:
    """A TCP socket whose last close waits for ``LINGER_S``, its other end, which reads nothing, and the listener."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    reader, _ = listener.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        return sender.detach(), reader, listener


def _epoll() -> int:
    """One that may have any number of descriptors in it."""
    with select.epoll() as made:
        return os.dup(made.fileno())


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_a_socket_that_lingers_holds_nobody_up() -> None:
    fd, reader, listener = lingering()
    with reader, listener:
        done = threading.Event()

        def act() -> None:
            OwnedFd(fd).close()
            done.set()

        threading.Thread(target=act, daemon=True).start()
        assert done.wait(LINGER_S / 2)


def test_eventfds_and_memory_are_closed_at_once(tmp_path: Path) -> None:
    for fd in (os.eventfd(0), os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), os.memfd_create("m")):
        OwnedFd(fd).close()
        assert not is_open(fd)


@pytest.mark.usefixtures("stuck")
def test_others_are_closed_aside() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        here, there = os.pipe()
        made = [here, there, os.open(directory, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY),
                _epoll()]  # fmt: skip
        for fd in made:
            OwnedFd(fd).close()
        assert all(map(is_open, made))
        for fd in made:
            os.close(fd)


def test_much_memory_is_freed_by_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch, stuck: Closer) -> None:
    """The descriptor is a guest's, and no other process has it any longer."""
    freeing = Closer(threads=0)
    fd = os.memfd_create("memory")
    os.posix_fallocate(fd, 0, 4 << 20)
    with monkeypatch.context() as patch:
        patch.setattr("ovs_hotswap.fd_closing._freeing", freeing)
        close(fd)
        assert is_open(fd)
    close(fd)  # others wait during this
    eventually(lambda: not is_open(fd), "it is freed")


@pytest.mark.parametrize("stuck", [1, 2])
def test_no_more_threads_than_allowed(stuck: int) -> None:
    closer, held = Closer(threads=2), [lingering() for _ in range(stuck)]
    before = threading.active_count()
    try:
        for fd, _, _ in held:
            closer.close(fd)
        plain = [os.eventfd(0) for _ in range(20)]
        for fd in plain:
            closer.close(fd)
        assert threading.active_count() <= before + 2
        if stuck == 1:
            eventually(lambda: not any(map(is_open, plain)), "the others are closed")
        else:
            time.sleep(0.1)
            assert all(map(is_open, plain))  # they wait, and no caller waits with them
    finally:
        for _, reader, listener in held:
            reader.close()  # a reset ends the lingering
            listener.close()
    eventually(lambda: not any(map(is_open, plain)), "all are closed")


# -- our own descriptors, while all threads wait for those that others have sent ---------------------------------------


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Closer:
    """What is closed by a thread stays open."""
    closer = Closer(threads=0)
    monkeypatch.setattr("ovs_hotswap.fd_closing._closer", closer)
    return closer


@pytest.fixture
def bench(stuck: Closer) -> Iterator[Bench]:
    """A VM with a QEMU and both switches."""
    made = Bench()
    for side in Side:
        made.connect(side)
    made.plug(speaks_pf=True, protocol=0, bits=BITS, owner_first=True)
    yield made
    made.close()


def test_a_duplicate_of_a_connection_is_closed_at_once(stuck: Closer) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        made = channel.duplicate()
        number = made.fileno()
        made.close()
        assert not is_open(number)
        channel.close()
        assert theirs.recv(1) == b""


def test_a_descriptor_that_was_detached_stays_open() -> None:
    owned = OwnedFd(os.eventfd(0))
    number = owned.detach()
    owned.close()
    assert is_open(number)
    with pytest.raises(ValueError, match="closed"):
        owned.detach()
    os.close(number)


def test_a_state_that_was_made_leaves_nothing_open(bench: Bench, stuck: Closer) -> None:
    before = os.listdir("/proc/self/fd")
    with recovery.parts(bench.vm) as state:
        assert state.qemu is not None
        assert state.links.keys() == set(Side)
    assert os.listdir("/proc/self/fd") == before


def test_a_successor_has_one_descriptor_of_each_connection(bench: Bench, stuck: Closer) -> None:
    old, new = socket.socketpair()
    control, successors, listener = (socket.socket(socket.AF_UNIX) for _ in range(3))
    given = [(bench.vm, {Side.A: listener})]
    handing = threading.Thread(target=lambda: takeover.hand_over(old, control, successors, given))
    fresh = Bench()
    with old, new, control, successors, listener:
        handing.start()
        inherited = takeover._receive(new)
        new.sendall(b"R")
        handing.join()
        parts, listeners = inherited.vms["vm0"]
        assert isinstance(parts, VmParts)
        recovery.restore(fresh.vm, parts, lambda pid, born: None)
    assert not stuck._waiting
    assert inherited.successors is not None
    for each in (inherited.control, inherited.successors, *listeners.values()):
        each.close()
    fresh.close()


# -- what is left unread in a connection -------------------------------------------------------------------------------


class Watched:
    """A descriptor of others; ``is_closed`` says whether no process has it any longer."""

    def __init__(self) -> None:
        self.given, self._end = socket.socketpair()
        self._end.setblocking(False)

    def send(self, to: socket.socket, flags: int = 0) -> None:
        """Leave it to its receiver alone."""
        rights = array.array("i", [self.given.fileno()])  # ``socket.send_fds`` forgets the flags
        to.sendmsg([b"y"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)
        self.given.close()

    @property
    def is_closed(self) -> bool:
        try:
            return self._end.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._end.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def release(closer: Closer) -> None:
    """Have a thread close what waits."""
    closer._may_start = 1
    closer.close(os.eventfd(0))


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
def test_what_is_left_unread_is_closed_by_a_thread(stuck: Closer, watched: Watched, flags: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        watched.send(theirs, flags)
        hang_up(ours)
        assert theirs.recv(1) == b""  # all the same
        assert not watched.is_closed
        release(stuck)
        eventually(lambda: watched.is_closed, "it is closed")


def test_a_connection_in_which_nothing_is_left_is_closed_at_once(stuck: Closer) -> None:
    ours, theirs = socket.socketpair()
    other = ours.dup()
    with theirs, other:
        hang_up(ours)
        assert not stuck._waiting
        assert theirs.recv(1) == b""  # whether or not a process has a duplicate


def test_what_comes_with_an_urgent_byte_is_closed_by_a_thread(stuck: Closer, watched: Watched) -> None:
    """The kernel would close it itself when it passes the byte over, and the reader would wait for that."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        watched.send(theirs, socket.MSG_OOB)
        theirs.send(bytes(11))
        with pytest.raises(ProtocolError):
            channel.receive()
        channel.close()
        assert not watched.is_closed
    release(stuck)
    eventually(lambda: watched.is_closed, "it is closed")


def test_descriptors_beyond_what_is_read_of_a_message_are_closed_by_a_thread(stuck: Closer, watched: Watched) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs, watched.given:
        null = os.eventfd(0)
        socket.send_fds(theirs, [b"x"], [null] * 200 + [watched.given.fileno()])
        os.close(null)
    with pytest.raises(ProtocolError, match="descriptors"):
        channel.receive()
    channel.close()
    assert not watched.is_closed
    release(stuck)
    eventually(lambda: watched.is_closed, "it is closed")


@pytest.fixture
def keeping(bench: Bench) -> StateSaver:
    slot = StateSlot(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    return StateSaver(bench.loop, {"vm0": slot}, keeps=True)


def kept_longer(bench: Bench, peer: socket.socket) -> list[bool]:
    """For each change that the state slot is given, whether ``peer`` had seen the end of its connection before: then
    the slot's may have been the last duplicate."""
    found = list[bool]()

    def look() -> None:
        poller = select.poll()
        poller.register(peer, select.POLLRDHUP)
        found.append(bool(poller.poll(0)))

    bench.vm.journal = Listening(look, bench.vm.journal)
    return found


@pytest.mark.parametrize("saved", [False, True])
def test_what_a_qemu_left_unread_is_closed_by_a_thread(
    bench: Bench, keeping: StateSaver, stuck: Closer, watched: Watched, saved: bool
) -> None:
    """The slot has a duplicate of its connection."""
    keeping.add(bench.vm)
    if saved:
        assert keeping.save()
    qemu = bench.front.socket
    assert qemu is not None
    qemu.send(b"\xff" * 12)
    watched.send(qemu)
    longer = kept_longer(bench, qemu)
    while bench.vm.qemu is not None:
        bench.loop.call_soon(bench.loop.stop)
        bench.loop.run_forever()
    assert longer[:2] == [False, False]  # the first for what it has sent
    assert qemu.recv(1) == b""
    assert not watched.is_closed
    release(stuck)
    eventually(lambda: watched.is_closed, "it is closed")
    keeping.remove("vm0", forget=True)


@pytest.mark.parametrize("left", [False, True])
def test_so_it_is_with_an_earlier_brokers_connection(
    bench: Bench, keeping: StateSaver, stuck: Closer, watched: Watched, left: bool
) -> None:
    """``left``: the VM is released before its QEMU may see the end."""
    bench.hang_up()
    ours, theirs = socket.socketpair()
    with theirs:
        keeping.add(bench.vm, OwnedFd(ours.detach()))
        watched.send(theirs)
        if left:
            keeping.remove("vm0", forget=True)
        else:
            longer = kept_longer(bench, theirs)
            assert not keeping.defers_qemu_close("vm0")
            assert longer == [False]
        assert theirs.recv(1) == b""
        assert not watched.is_closed
        release(stuck)
        eventually(lambda: watched.is_closed, "it is closed")
    keeping.remove("vm0", forget=True)


@pytest.mark.parametrize("kept", [False, True])
def test_a_connection_that_another_broker_has_does_not_end(
    bench: Bench, keeping: StateSaver, stuck: Closer, watched: Watched, kept: bool
) -> None:
    if kept:
        keeping.add(bench.vm)
        keeping.remove("vm0", forget=False)
    else:
        bench.vm.shared = True
    with recovery.parts(bench.vm) as state:
        assert state.qemu is not None
        others = [os.dup(each.fileno()) for each in (state.qemu, *(link.connection for link in state.links.values()))]
    qemu, switches = bench.front.socket, [port.socket for port in bench.ports.values()]
    assert qemu is not None
    watched.send(qemu)
    bench.vm.close()
    for end in (qemu, *switches):
        assert end is not None
        with pytest.raises(BlockingIOError):
            end.recv(1)
    with socket.socket(fileno=others[0]) as next_ones:
        _, (number,), _, _ = socket.recv_fds(next_ones, 1, 1)
    os.close(number)
    for each in others[1:]:
        os.close(each)
    assert watched.is_closed


# -- one that sends what cannot be closed ------------------------------------------------------------------------------


def test_one_whose_descriptors_wait_for_ever_takes_not_all_threads() -> None:
    closer, held = Closer(threads=4, each=2), [lingering() for _ in range(6)]
    try:
        for fd, _, _ in held:
            closer.close(fd, 7)
        others = [os.eventfd(0) for _ in range(20)]
        for number, fd in enumerate(others):
            closer.close(fd, 100 + number % 3)
        eventually(lambda: not any(map(is_open, others)), "the others' are closed")
        assert closer.pending(7) == 6
        assert closer.pending(100) == 0
    finally:
        for _, reader, listener in held:
            reader.close()
            listener.close()
    eventually(lambda: closer.pending(7) == 0, "all are closed")


def test_nothing_more_is_taken_from_one_whose_descriptors_cannot_be_closed(bench: Bench, stuck: Closer) -> None:
    vm, me = bench.vm, os.getpid()
    assert vm.qemu is not None
    assert vm.qemu.peer_pid == me
    for _ in range(65):
        stuck.close(os.eventfd(0), me)
    vm._read_qemu()
    assert vm.qemu is None
    assert vm.burdened
    assert not vm.wants_qemu
    assert vm.absence is not None
    assert "cannot be closed" in vm.absence.text
    for _ in range(2):
        os.close(stuck._waiting[me].popleft())
    assert not vm.burdened

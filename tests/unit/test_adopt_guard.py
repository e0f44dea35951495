"""The guarded section between a QEMU and a switch, of which each is a thread or a process of the test."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.adopt import guard
from ovs_hotswap.adopt.fetching import Fetched
from ovs_hotswap.adopt.guard import Guarded, guarded
from ovs_hotswap.adopt.log_reader import FENCE, Since
from ovs_hotswap.adopt.snapshot import LogMark, Snapshot
from ovs_hotswap.errors import StateUnknown, TryAgain
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.messages import HEADER, Request
from tests.unit.test_adopt_snapshot import snapshot

QUESTION = messages.build(Request.GET_QUEUE_NUM)


def answer(request: int) -> bytes:
    return HEADER.pack(request, messages.VERSION | messages.REPLY, 8) + struct.pack("<Q", 1)


class Bed:
    """A connection whose switch is a thread that answers what it reads and notes the request in a log."""

    def __init__(self) -> None:
        self.qemu, self.switch = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.qemu.setblocking(False)
        self.log: list[str] = []
        self.dropped = False
        self.stopped = False
        self.delay_s = 0.0
        self.silent_log = False
        self.before_answer: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while head := self.switch.recv(HEADER.size):
                request = HEADER.unpack(head)[0]
                time.sleep(self.delay_s)
                self.before_answer()
                self.switch.sendall(answer(request))
                if not self.silent_log:
                    self.log.append(f"VHOST_USER_{Request(request).name}")

    @contextlib.contextmanager
    def stop(self, pid: int, deadline: float) -> Iterator[None]:
        self.stopped = True
        try:
            yield
        finally:
            self.stopped = False

    def look(self, mark: LogMark, path: Path) -> Since:
        return Since(tuple(self.log), self.dropped, False)

    def enter(self, fetched: Fetched, limit_s: float = 0.5) -> contextlib.AbstractContextManager[Guarded]:
        return guarded(snapshot(), fetched, limit_s, stop=self.stop, look=self.look)

    def close(self) -> None:
        for each in (self.qemu, self.switch):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join()


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.close()


def fetched_of(qemu_end: socket.socket, switch_end: socket.socket) -> Fetched:
    whole: Snapshot = snapshot()
    ends = [OwnedFd(os.dup(each.fileno()), own=True) for each in (qemu_end, switch_end)]
    return Fetched.of(whole, [*ends, *(OwnedFd(os.eventfd(0)) for _ in range(5))])


@pytest.fixture
def fetched(bed: Bed) -> Iterator[Fetched]:
    made = fetched_of(bed.qemu, bed.switch)
    yield made
    made.close()


def flags(end: socket.socket) -> bool:
    return os.get_blocking(end.fileno())


def test_a_quiet_connection_is_entered_and_left_without_a_trace(bed: Bed, fetched: Fetched) -> None:
    before = flags(bed.qemu), flags(bed.switch)
    for _ in range(20):
        bed.log.clear()
        with bed.enter(fetched) as section:
            assert bed.stopped
            assert section.began <= section.proven <= section.deadline
        assert not bed.stopped
        assert section.stopped_s > 0
    assert (flags(bed.qemu), flags(bed.switch)) == before
    with pytest.raises(BlockingIOError):
        bed.qemu.recv(1)


def test_a_question_of_qemu_gets_its_answer_back(bed: Bed, fetched: Fetched) -> None:
    """The switch handles QEMU's question only after QEMU was stopped: its answer comes before the fence's."""
    bed.delay_s = 0.05
    bed.qemu.send(messages.build(Request.GET_FEATURES))
    time.sleep(0.01)  # the switch has read it, so that neither end has anything unread
    with pytest.raises(TryAgain, match="put back"), bed.enter(fetched):
        pytest.fail("the section was entered")
    assert not bed.stopped
    bed.qemu.setblocking(True)
    assert bed.qemu.recv(100) == answer(Request.GET_FEATURES)


def test_something_unread_is_left_alone(bed: Bed, fetched: Fetched) -> None:
    bed.switch.send(answer(Request.GET_FEATURES))
    with pytest.raises(TryAgain, match="20 bytes to QEMU"), bed.enter(fetched):
        pytest.fail("the section was entered")
    assert bed.qemu.recv(100) == answer(Request.GET_FEATURES)
    assert bed.log == []


@pytest.mark.parametrize("name", ["VHOST_USER_SET_VRING_CALL", "VHOST_USER_SET_MEM_TABLE"])
def test_a_message_since_the_snapshot_is_noticed(bed: Bed, fetched: Fetched, name: str) -> None:
    bed.log.append(name)
    with pytest.raises(TryAgain, match=name), bed.enter(fetched):
        pytest.fail("the section was entered")
    assert not bed.stopped


def test_a_snapshot_is_used_once(bed: Bed, fetched: Fetched) -> None:
    """The question of the first time would be taken for that of the second, and the log for complete."""
    with bed.enter(fetched):
        pass
    with pytest.raises(TryAgain, match="used before"), bed.enter(fetched):
        pytest.fail("the section was entered")


def test_a_log_that_lacks_the_question_is_no_proof(bed: Bed, fetched: Fetched) -> None:
    bed.silent_log = True
    with pytest.raises(StateUnknown, match="not in its log") as caught, bed.enter(fetched, 0.05):
        pytest.fail("the section was entered")
    assert "dpdk/log-set" in (caught.value.hint or "")


def test_a_log_with_lines_left_out_is_no_proof(bed: Bed, fetched: Fetched) -> None:
    bed.dropped = True
    with pytest.raises(StateUnknown, match="left out"), bed.enter(fetched):
        pytest.fail("the section was entered")


def test_ends_of_two_connections_are_noticed(bed: Bed) -> None:
    """So it is with a VM that is adopted already: QEMU's end leads to the broker, and the switch's end as well."""
    other = Bed()
    mixed = fetched_of(bed.qemu, other.switch)
    try:
        with pytest.raises(StateUnknown, match="not of one connection"), bed.enter(mixed):
            pytest.fail("the section was entered")
        with pytest.raises(BlockingIOError):
            bed.qemu.recv(1)
    finally:
        mixed.close()
        other.close()


def test_an_answer_to_qemu_stays_where_it_is_if_it_could_not_be_put_back(bed: Bed) -> None:
    """The ends are of two connections, and QEMU waits for an answer: QEMU gets it, and ours is taken away behind it."""
    other = Bed()
    mixed = fetched_of(bed.qemu, other.switch)
    bed.delay_s = 0.05
    bed.qemu.send(messages.build(Request.GET_FEATURES))
    time.sleep(0.01)
    got: list[bytes] = []

    def read_as_qemu_does() -> None:
        while bed.stopped or not got:
            with contextlib.suppress(BlockingIOError):
                got.append(bed.qemu.recv(len(answer(Request.GET_FEATURES))) if not bed.stopped else b"")
            got[:] = [each for each in got if each]
            time.sleep(0.001)

    bed.stopped = True
    reader = threading.Thread(target=read_as_qemu_does)
    reader.start()
    try:
        with pytest.raises(TryAgain), bed.enter(mixed):
            pytest.fail("the section was entered")
        reader.join()
        assert got == [answer(Request.GET_FEATURES)]
        with pytest.raises(BlockingIOError):
            bed.qemu.recv(1)
    finally:
        mixed.close()
        other.close()


def test_an_answer_that_comes_after_the_limit_is_not_left_to_qemu(bed: Bed, fetched: Fetched) -> None:
    """The limit is over when it comes, so the section is not entered; the answer is read nevertheless."""
    bed.delay_s = 0.1
    with pytest.raises(StateUnknown, match=r"the proof took|not in its log"), bed.enter(fetched, 0.02):
        pytest.fail("the section was entered")
    with pytest.raises(BlockingIOError):
        bed.qemu.recv(1)


def test_an_answer_that_comes_after_qemu_continued_is_not_left_to_it(
    bed: Bed, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_ANSWER_S", 0.05)
    bed.delay_s = 0.2
    continued: list[bool] = []
    bed.before_answer = lambda: continued.append(not bed.stopped)
    with pytest.raises(TryAgain, match="did not answer"), bed.enter(fetched, 0.02):
        pytest.fail("the section was entered")
    assert continued == [True]
    with pytest.raises(BlockingIOError):
        bed.qemu.recv(1)


@pytest.mark.parametrize("taken_at", [1, 2], ids=["before the peek", "between the peek and the read"])
def test_qemu_may_take_what_was_announced_as_readable(
    bed: Bed, fetched: Fetched, monkeypatch: pytest.MonkeyPatch, taken_at: int
) -> None:
    """QEMU runs again while the late answer is awaited, and reads from the same end."""
    monkeypatch.setattr(guard, "_ANSWER_S", 0.02)
    monkeypatch.setattr(guard, "_LATE_S", 0.3)
    bed.delay_s = 0.1
    announced: list[int] = []
    readable = guard._readable

    def taken(end: socket.socket, deadline: float) -> bool:
        found = readable(end, deadline)
        if found:
            announced.append(1)
            if len(announced) == taken_at:
                bed.qemu.recv(100)
        return found

    monkeypatch.setattr(guard, "_readable", taken)
    with pytest.raises(StateUnknown, match="does not answer"), bed.enter(fetched, 0.01):
        pytest.fail("the section was entered")
    assert len(announced) == taken_at


def test_a_switch_that_never_answers_is_reported_with_what_may_follow(
    bed: Bed, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_ANSWER_S", 0.02)
    monkeypatch.setattr(guard, "_LATE_S", 0.05)
    bed.delay_s = 0.3
    with pytest.raises(StateUnknown, match="does not answer"), bed.enter(fetched, 0.01):
        pytest.fail("the section was entered")
    assert not bed.stopped


def test_a_switch_that_has_hung_up_is_noticed(bed: Bed, fetched: Fetched) -> None:
    bed.switch.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TryAgain), bed.enter(fetched):
        pytest.fail("the section was entered")


def test_qemu_continues_after_an_error_of_the_block(bed: Bed, fetched: Fetched) -> None:
    with pytest.raises(ZeroDivisionError), bed.enter(fetched):
        _ = 1 / 0
    assert not bed.stopped


def test_the_fence_is_a_message_that_the_log_names() -> None:
    assert f"VHOST_USER_{Request(HEADER.unpack(QUESTION)[0]).name}" == FENCE

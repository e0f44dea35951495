"""The moments in which a broker enters a running connection, guarded against messages of QEMU.

If QEMU sent something in these moments, both it and the broker would read the other's answers, and a guest can lose its
network by that. So QEMU is stopped, and then it is proven that nothing is under way and that QEMU has sent nothing
since the snapshot was taken:

1. Both ends have nothing to read.
2. A question goes to the switch through QEMU's end: GET_QUEUE_NUM, which no QEMU asks on a connection that is set up.
   The switch answers in order. An answer that comes first is QEMU's and is put back for it.
3. While the answer is unread, the switch's end has something unread at its peer (SIOCOUTQ). So the two ends are of one
   connection.
4. The question is in the switch's log, and no other message of this connection since the mark of the snapshot. A log
   that lacks lines does not have the question either.

If one of these fails, QEMU continues, and nothing has changed for it or for the switch.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.adopt.fetching import Fetched
from ovs_hotswap.adopt.log_files import since
from ovs_hotswap.adopt.log_reader import FENCE, RECONNECT, Since
from ovs_hotswap.adopt.processes import borrowed
from ovs_hotswap.adopt.snapshot import LogMark, Snapshot
from ovs_hotswap.adopt.stopping import Stopped
from ovs_hotswap.errors import StateUnknown, TryAgain
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.messages import HEADER, Request

LIMIT_S = 0.1
_ANSWER_S = 1.0  # longer than the limit: an answer that is left to QEMU would be taken for that to another question
_LATE_S = 5.0
_LOOK_S = 0.0003
_QUESTION = messages.build(Request.GET_QUEUE_NUM)

Stop = Callable[[int, float], contextlib.AbstractContextManager[object]]
Look = Callable[[LogMark, Path], Since]


@dataclass(slots=True)
class Guarded:
    """The guarded section. ``began`` and ``deadline`` are ``time.monotonic()``; QEMU should continue by the deadline.

    ``proven`` is when the proof was complete. ``ended`` is when QEMU continued, after the section.
    """

    began: float
    deadline: float
    proven: float = 0.0
    ended: float | None = None

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def stopped_s(self) -> float:
        """For how long QEMU has been, or was, stopped."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began


@contextlib.contextmanager
def guarded(
    snapshot: Snapshot, fetched: Fetched, limit_s: float = LIMIT_S, *, stop: Stop = Stopped, look: Look = since
) -> Iterator[Guarded]:
    """Stop QEMU, prove that the connection is quiet and as the snapshot says, and let the block run.

    QEMU then continues. It also continues if the block raises, and if this process is killed (``Stopped``). The block
    should end by the deadline, ``limit_s`` after QEMU was stopped. The flags of both ends stay as they are: they are
    shared with QEMU and the switch.

    Raises TryAgain if QEMU or the switch has been active: another snapshot is needed for another attempt. Raises
    StateUnknown for what another attempt does not help. In both cases nothing has changed.
    """
    _heard(snapshot, look)  # a question of an earlier attempt would be taken for this one's
    began = time.monotonic()
    section = Guarded(began, began + limit_s)
    late: OwnedFd | None = None
    try:
        with stop(snapshot.qemu.pid, section.deadline):
            _quiet(fetched)
            if not _ask(fetched, section.deadline):
                late = fetched.qemu_end
                raise TryAgain(f"{snapshot.socket}: the switch did not answer in {_ANSWER_S:g} s")
            _unheard(snapshot, section.deadline, look)
            _quiet(fetched)
            section.proven = time.monotonic()
            if section.proven >= section.deadline:
                raise TryAgain(
                    f"{snapshot.socket}: the proof took {section.stopped_s * 1000:.0f} ms; the switch is busy"
                )
            yield section
    finally:
        section.ended = time.monotonic()
        if late is not None:
            _drain(late, snapshot)


def _quiet(fetched: Fetched) -> None:
    """Raise TryAgain if one of the ends has something to read."""
    to_qemu, to_switch = _unread(fetched.qemu_end), _unread(fetched.switch_end)
    if to_qemu or to_switch:
        raise TryAgain(f"{to_switch} bytes to the switch and {to_qemu} bytes to QEMU are under way")


def _ask(fetched: Fetched, deadline: float) -> bool:
    """Ask the question and read the answer; return false if it has not come. Raises TryAgain and StateUnknown."""
    theirs: list[bytes] = []
    end = max(deadline, time.monotonic() + _ANSWER_S)
    with borrowed(fetched.qemu_end) as qemu_end, borrowed(fetched.switch_end) as switch_end:
        try:
            qemu_end.send(_QUESTION, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise TryAgain(f"the switch takes no message: {error.strerror}") from error
        answered = False
        while not answered and _readable(qemu_end, end):
            ours = _next_request(qemu_end) == Request.GET_QUEUE_NUM
            if not _unread_at_peer(switch_end):
                if not ours:  # QEMU's own answer could not be put back, so it is left where it is
                    return False
                _message(qemu_end, end)
                raise StateUnknown("the two ends are not of one connection",
                                   hint="`ovs-hotswap vm list` says whether the VM is adopted already")  # fmt: skip
            answer = _message(qemu_end, end)
            if answer is None:
                break
            answered = ours
            theirs += [] if ours else [answer]
        for answer in theirs:
            switch_end.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if answered and theirs:
        raise TryAgain(f"QEMU waits for {len(theirs)} answers of the switch, which were put back for it")
    return answered


def _next_request(end: socket.socket) -> int | None:
    """Return the request that the next message names, which stays unread; ``None`` if its header is not there yet."""
    head = _received(end, HEADER.size, socket.MSG_PEEK) or b""
    return int(HEADER.unpack(head)[0]) if len(head) == HEADER.size else None


def _received(end: socket.socket, count: int, flags: int = 0) -> bytes | None:
    """Return at most ``count`` bytes; ``None`` if nothing is there. QEMU reads from the same end once it runs again, so
    it may have taken what poll(2) announced."""
    try:
        return end.recv(count, flags | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


def _unheard(snapshot: Snapshot, deadline: float, look: Look) -> None:
    """Return when the question, and nothing else since the snapshot, is in the log. Raises TryAgain and StateUnknown,
    the latter if it is not there by the deadline."""
    while not _heard(snapshot, look, questions=1):
        if time.monotonic() >= deadline:
            raise StateUnknown(
                f"{snapshot.log.path}: a message that the switch has answered is not in its log",
                hint="`ovs-appctl dpdk/log-set lib.vhost.config:info`, `ovs-appctl vlog/set dpdk:file:info`",
            )
        time.sleep(_LOOK_S)


def _heard(snapshot: Snapshot, look: Look, questions: int = 0) -> bool:
    """Whether the log has a question since the snapshot. Raises TryAgain if it has anything else, or more than
    ``questions`` of them, and StateUnknown if it lacks lines."""
    found = look(snapshot.log, snapshot.socket)
    if found.ended:
        raise TryAgain(f"{snapshot.socket}: the switch has closed the connection since the snapshot")
    if found.dropped:
        raise StateUnknown(f"{snapshot.log.path}: lines were left out", hint=RECONNECT)
    if others := [name for name in found.messages if name != FENCE]:
        raise TryAgain(f"{snapshot.socket}: {len(others)} messages since the snapshot, the last {others[-1]}")
    if len(found.messages) > questions:
        raise TryAgain(f"{snapshot.socket}: the snapshot was used before")
    return bool(found.messages)


def _message(end: socket.socket, deadline: float) -> bytes | None:
    """Return one whole message, or ``None`` if it has not come by the deadline."""
    data = b""
    while (missing := HEADER.size + (HEADER.unpack_from(data)[2] if len(data) >= HEADER.size else 0) - len(data)) > 0:
        if not _readable(end, deadline):
            return None
        more = _received(end, missing)
        if more == b"":
            raise TryAgain("the switch has closed the connection")
        data += more or b""
    return data


def _drain(end: OwnedFd, snapshot: Snapshot) -> None:
    """Read the answer that came too late, before QEMU takes it for another one. Raises StateUnknown if none comes."""
    deadline = time.monotonic() + _LATE_S
    with borrowed(end) as qemu_end:
        while _readable(qemu_end, deadline):
            if _next_request(qemu_end) == Request.GET_QUEUE_NUM and _message(qemu_end, deadline):
                return
            if time.monotonic() >= deadline:  # what is there is QEMU's
                break
            time.sleep(_LOOK_S)
    raise StateUnknown(
        f"{snapshot.socket}: the switch does not answer. If it ever answers the question that was put to it, the VM's"
        " QEMU may take that for the answer to a question of its own",
        hint="restart the switch: it does not handle this VM's messages",
    )


def _readable(end: socket.socket, deadline: float) -> bool:
    poller = select.poll()
    poller.register(end, select.POLLIN)
    left = deadline - time.monotonic()
    return bool(poller.poll(max(0.0, left * 1000)))


def _unread(end: OwnedFd) -> int:
    """Return the bytes that the owner of this end has not read (FIONREAD, unix(7))."""
    return _number(fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)))


def _unread_at_peer(end: socket.socket) -> int:
    """Return the memory of what was written to this end and is unread at the other end (net/unix/af_unix.c,
    ``unix_outq_len``)."""
    return _number(fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, bytes(4)))


def _number(data: bytes) -> int:
    return int(struct.unpack("i", data)[0])

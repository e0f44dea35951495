"""Hits a process at a moment: while nothing is under way, in a step of an upgrade, or in the middle of a hand-over.

The journal is on the disk before a step acts, so a step has begun when it says so. The orchestrator is stopped for the
instant in which the other process is struck, and the journal is read again while it stands: so it is known in which
step it was.

A hand-over takes less than a millisecond. To strike within it, the broker is stopped when it has put the new switch on
its capture rings (``vhost.move``), as its log tells, until the request for the move waits for it, unread. As long as
there is none it is let run for a few milliseconds now and then: it may owe the answer to what was asked before. Then
the old switch is stopped and the broker continued, which waits for the old one's answer. That it does is visible from
outside, because it gives itself real-time priority for the length of a swap, and otherwise only when a switch has died.
Then the new switch is stopped and the old one continued: it lets go, and until the new one is continued the guest's
rings are nobody's, or the new one's without its confirmation.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ovs_hotswap.plan.journal import parse
from ovs_hotswap.plan.records import Kind
from ovs_hotswap.priority import Rank
from ovs_hotswap.system import System

_LOOK_S = 0.0005


class Missed(Exception):
    """The moment was over before it could be struck."""


class Trail:
    """Follows a journal that another process writes."""

    def __init__(self, current: Path) -> None:
        self._current = current
        self._read: tuple[int, int] | None = None
        self._step: str | None = None

    def step(self) -> str | None:
        """The step that the journal says was begun last and has not ended; ``None`` between two or without a plan.

        Cheap while nothing was written.
        """
        try:
            status = self._current.stat()
        except FileNotFoundError:
            self._read = self._step = None
            return None
        if self._read != (status.st_ino, status.st_size):
            self._read = status.st_ino, status.st_size
            self._step = self._parse()
        return self._step

    def _parse(self) -> str | None:
        try:
            contents = parse(self._current.read_bytes(), str(self._current))
        except FileNotFoundError:
            return None
        if contents is None:
            return None
        within: str | None = None
        for record in contents.records:
            if record.kind is Kind.START:
                within = record.step
            elif record.kind in (Kind.DONE, Kind.FAILED, Kind.UNDO, Kind.END, Kind.COMMIT):
                within = None
        return within


def halt(pid: int, system: System) -> None:
    """Have all threads of ``pid`` stand still."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 1.0
    while not system.stopped(pid) and system.alive(pid) and time.monotonic() < end:
        time.sleep(0)


def go_on(pid: int) -> None:
    """Continue ``pid``, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stopped(pid: int, system: System) -> Iterator[None]:
    """``pid`` stands still."""
    halt(pid, system)
    try:
        yield
    finally:
        go_on(pid)


@contextlib.contextmanager
def attentive() -> Iterator[None]:
    """Real-time priority: a step may take no longer than a slice of somebody else's processor time."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(Rank.MOVES + 1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def until(true: Callable[[], bool], child: subprocess.Popen[bytes], seconds: float) -> None:
    """Look again and again. Raises Missed if ``child`` ends before, or after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        if child.poll() is not None or time.monotonic() >= end:
            raise Missed
        time.sleep(_LOOK_S)


class Log:
    """What is written to a log from now on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._text = b""

    def has(self, text: bytes) -> bool:
        self._text += self._file.read()
        return text in self._text

    def close(self) -> None:
        self._file.close()


def asked(by: int, of: int, system: System) -> bool:
    """Whether a request of process ``by`` waits, unread, in a socket of process ``of``."""
    asking, reading = _sockets(by), _sockets(of)
    for line in system.run(["ss", "-Hx"]).stdout.splitlines():  # ss(8): netid state received sent, twice name and inode
        words = line.split()
        if len(words) >= 8 and words[2] != "0" and words[5] in reading and words[7] in asking:
            return True
    return False


def _sockets(pid: int) -> set[str]:
    """Inode numbers."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind, _, inode = os.readlink(path).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def in_swap(broker: int) -> bool:
    """Whether the broker is between the two ends of a hand-over."""
    try:
        return os.sched_getscheduler(broker) == os.SCHED_FIFO
    except ProcessLookupError:
        return False

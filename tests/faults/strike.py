"""Strikes a process at a moment: while nothing is under way, in a step of an upgrade, or in the middle of a handover.

The journal is on the disk before a step acts, so a step has begun when the journal says so. The orchestrator is stopped
for the moment in which the other process is struck, and the journal is read again during that time: so it is known in
which step it was.

A handover takes less than a millisecond. To strike within it, the broker is stopped when its log says that it has put
the new switch on its capture rings (``broker.mover``), until the request for the move waits for it, unread. As long as
there is no request, the broker runs for a few milliseconds from time to time, because it may owe an earlier answer.
Then the old switch is stopped and the broker is continued, which waits for the old switch's answer. This is visible
from outside, because the broker gives itself real-time priority for the length of a swap, and otherwise only when a
switch has died. Then the new switch is stopped and the old one is continued, which releases the rings. Until the new
switch is continued, the guest's rings have no owner, or belong to the new switch without its confirmation.
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
        """The step that has begun and not ended, as the journal says; ``None`` between two steps or without a plan.

        The journal is only read if it has changed.
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
    """Stop all threads of ``pid``."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 1.0
    while not system.stopped(pid) and system.alive(pid) and time.monotonic() < end:
        time.sleep(0)


def go_on(pid: int) -> None:
    """Continue ``pid``, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def stopped(pid: int, system: System) -> Iterator[None]:
    """Keep ``pid`` stopped during the block."""
    halt(pid, system)
    try:
        yield
    finally:
        go_on(pid)


@contextlib.contextmanager
def attentive() -> Iterator[None]:
    """Run with real-time priority during the block: a step may be shorter than a time slice of another process."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(Rank.MOVES + 1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def until(true: Callable[[], bool], child: subprocess.Popen[bytes], seconds: float) -> None:
    """Poll until ``true``. Raises Missed if ``child`` ends before, or after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        if child.poll() is not None or time.monotonic() >= end:
            raise Missed
        time.sleep(_LOOK_S)


class Log:
    """The text that is written to a log from now on."""

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
    """The inode numbers of a process's sockets."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind, _, inode = os.readlink(path).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found


def in_swap(broker: int) -> bool:
    """Whether the broker is in the middle of a handover."""
    try:
        return os.sched_getscheduler(broker) == os.SCHED_FIFO
    except ProcessLookupError:
        return False

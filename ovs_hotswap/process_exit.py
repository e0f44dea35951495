"""Notices the end of a process as soon as it cannot touch memory any more.

A process that is killed loses its memory first and its descriptors next, and only when all of those are released is it
dead for ``waitpid`` and pidfds (kernel/exit.c, ``do_exit``). For an ovs-vswitchd that takes 30 to 50 ms where it has
packet sockets and taps, and longer for a device that is reset. What matters for its guests' rings is the memory. There
is no event for that, but one right after it: POSIX locks end when the last thread lets go of the descriptor table
(fs/locks.c, ``locks_remove_posix``), before the slow releases, and Open vSwitch holds one on its pid file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_FLOCK = struct.Struct("hhqqi")  # struct flock of 64-bit Linux: type, whence, start, length, pid


def has_memory(pid: int, proc: Path = PROC) -> bool:
    """Whether any thread of ``pid`` can still read or write memory; false for a process that is gone.

    A thread gives its address space up on its way out (``exit_mm``) and never gets one again, and nobody but a thread
    with one can start another. Its ``statm`` is zero from then on (fs/proc/array.c, ``proc_pid_statm``). What ``proc``
    does not show proves nothing: it may be mounted with ``hidepid``, or there may be no descriptor to look with.
    """
    try:
        for thread in os.listdir(proc / str(pid) / "task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if not (proc / str(pid) / "task" / thread / "statm").read_bytes().startswith(b"0 "):
                    return True
    except OSError:
        return _lives(pid)
    return False


def start_time(pid: int, proc: Path = PROC) -> int | None:
    """When ``pid`` was started, in clock ticks since the boot (field 22 of proc_pid_stat(5)); 0 if it is gone, ``None``
    if it lives and ``proc`` does not show it. Two processes that have had the same pid differ in it."""
    try:
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except OSError:
        return None if _lives(pid) else 0


def _lives(pid: int) -> bool:
    """Whether a process has not ended; what cannot be found out is taken for life."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        return not readable(pidfd)
    finally:
        os.close(pidfd)


def readable(fd: int, timeout_s: float = 0.0) -> bool:
    """Whether a descriptor is, or becomes within that time, readable: of a pidfd, whether its process has ended."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(int(timeout_s * 1000)))


@dataclass(frozen=True, slots=True)
class Process:
    """A process that a later reader can recognise. ``born`` is its ``start_time``. ``None`` means that it is not known:
    then any process with that pid is taken for it."""

    pid: int
    born: int | None = None


class ExitWatch:
    """The end of process ``pid``, which lives. ``locks``: files on one of which it may hold a POSIX lock.

    ``born`` is when it was started, if ``proc`` shows that. ``fileno`` becomes readable when it may have ended,
    ``ended`` tells. Raises ProcessLookupError if it has, OSError if it cannot be watched.
    """

    def __init__(self, pid: int, locks: Iterable[Path] = (), proc: Path = PROC) -> None:
        self.pid, self._proc = pid, proc
        with contextlib.ExitStack() as stack:
            self._pidfd = os.pidfd_open(pid)
            stack.callback(os.close, self._pidfd)
            self.born = start_time(pid, proc)
            self._unlocked = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._unlocked)
            self._either = stack.enter_context(select.epoll())
            self._either.register(self._pidfd, select.EPOLLIN)
            self._either.register(self._unlocked, select.EPOLLIN)
            for path in locks:
                self._await_unlocked(path)
            self._open = stack.pop_all()

    def fileno(self) -> int:
        return self._either.fileno()

    def ended(self) -> bool:
        """Whether it cannot touch memory any more."""
        for descriptor, _ in self._either.poll(0):
            if descriptor == self._pidfd:
                return True
            os.eventfd_read(self._unlocked)
        return not has_memory(self.pid, self._proc)

    def kill(self) -> None:
        """End it: SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        self._open.close()

    def _await_unlocked(self, path: Path) -> None:
        """There is no way to poll for a lock: a thread waits, for as long as the process lives. Where there can be no
        thread, the end of the process is noticed all the same, a little later."""
        with contextlib.suppress(OSError, RuntimeError), contextlib.ExitStack() as stack:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, file)
            held = fcntl.fcntl(file, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            kind, _, _, _, holder = _FLOCK.unpack(held)
            if kind == fcntl.F_UNLCK or holder != self.pid:
                return
            told = os.dup(self._unlocked)
            stack.callback(os.close, told)
            threading.Thread(target=_wait, args=(file, told), name=f"exit of {self.pid}", daemon=True).start()
            stack.pop_all()


def _wait(file: int, told: int) -> None:
    try:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
    finally:
        os.close(file)  # ends the lock at once: the file may be the next process's already
        os.eventfd_write(told, 1)
        os.close(told)

"""Notices the end of a process as soon as the process cannot touch memory any longer.

A process that is killed loses its memory first and its descriptors next. Only when all descriptors are released is it
dead for ``waitpid`` and pidfds (kernel/exit.c, ``do_exit``). For an ovs-vswitchd that takes 30 to 50 ms if it has
packet sockets and taps, and longer for a device that is reset. What matters for its guests' rings is the memory. The
loss of the memory has no event of its own, but an event follows right after it: POSIX locks end when the last thread
releases the descriptor table (fs/locks.c, ``locks_remove_posix``), before the slow releases, and Open vSwitch holds
such a lock on its pid file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
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

    A thread gives up its address space on its way out (``exit_mm``) and never gets one again, and only a thread that
    has an address space can start another thread. Its ``statm`` is zero from then on (fs/proc/array.c,
    ``proc_pid_statm``). What ``proc`` does not show proves nothing: it may be mounted with ``hidepid``, or this process
    may have no descriptor left with which to look.
    """
    try:
        for thread in os.listdir(proc / str(pid) / "task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if not (proc / str(pid) / "task" / thread / "statm").read_bytes().startswith(b"0 "):
                    return True
    except OSError:
        return lives(pid)
    return False


def start_time(pid: int, proc: Path = PROC) -> int | None:
    """Return when ``pid`` was started, in clock ticks since the boot (field 22 of proc_pid_stat(5)).

    Returns 0 if the process is gone, and ``None`` if it lives and ``proc`` does not show it. Two processes that have
    had the same pid have different start times.
    """
    try:
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except OSError:
        return None if lives(pid) else 0


def parent_of(pid: int, proc: Path = PROC) -> int | None:
    """Return the parent of a process (field 4 of proc_pid_stat(5)); ``None`` if the process has ended."""
    try:
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


def lives(pid: int) -> bool:
    """Whether a process has not ended. If that cannot be found out, it counts as alive."""
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


def locks_memory(pid: int, proc: Path = PROC) -> bool:
    """Whether a process has locked memory: what ``--mlockall`` locks is in VmLck, which is 0 otherwise
    (proc_pid_status(5)). Returns false if that cannot be read."""
    try:
        status = (proc / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return False
    found = re.search(r"^VmLck:\s*(\d+) kB$", status, re.MULTILINE)
    return found is not None and int(found[1]) > 0


def readable(fd: int, timeout_s: float = 0.0) -> bool:
    """Whether a descriptor is readable or becomes so in ``timeout_s``. A pidfd is readable if its process has ended."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(int(timeout_s * 1000)))


@dataclass(frozen=True, slots=True)
class Process:
    """A process that a later reader can recognise.

    ``born`` is its ``start_time``. If that is not known (``None``), any process with that pid is taken for this one.
    """

    pid: int
    born: int | None = None


class ExitWatch:
    """Watches for the end of process ``pid``. ``locks`` are files on one of which it may hold a POSIX lock.

    ``born`` is when the process was started, if ``proc`` shows that. ``fileno`` becomes readable when the process may
    have ended; ``ended`` says whether it has. Raises ProcessLookupError if it has ended already, and OSError if it
    cannot be watched.
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
        """Whether the process cannot touch memory any longer."""
        for descriptor, _ in self._either.poll(0):
            if descriptor == self._pidfd:
                return True
            os.eventfd_read(self._unlocked)
        return not has_memory(self.pid, self._proc)

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        self._open.close()

    def _await_unlocked(self, path: Path) -> None:
        """Start a thread that waits for the end of the process's lock, because a lock cannot be polled.

        If no thread can be started, the end of the process is noticed by its pidfd, a little later.
        """
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

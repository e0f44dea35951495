"""Threads of another process: their states, and one of them held (ptrace(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_CONT, _DETACH, _SEIZE, _INTERRUPT = 7, 17, 0x4206, 0x4207  # linux/ptrace.h
_WALL = 0x40000000  # linux/wait.h: wait for a thread, too
_SLEEPS = ("35", "230")  # nanosleep and clock_nanosleep (asm/unistd_64.h)
_TRIES = 1000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def thread_names(pid: int) -> dict[int, str]:
    """The names of the threads of ``pid``."""
    return {int(path.name): (path / "comm").read_text().strip() for path in Path(f"/proc/{pid}/task").iterdir()}


def thread_states(pid: int, name: str | None = None) -> set[str]:
    """States (proc_pid_stat(5)) of the threads of ``pid``, or of those called ``name``."""
    chosen = [tid for tid, called in thread_names(pid).items() if name in (None, called)]
    stats = [Path(f"/proc/{pid}/task/{tid}/stat").read_text() for tid in chosen]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def unusual(pid: int) -> dict[str, tuple[int, int]]:
    """Threads of ``pid`` that are not scheduled as the kernel schedules by itself: policy and nice value, by name."""
    found = {}
    for tid, name in thread_names(pid).items():
        how = os.sched_getscheduler(tid), os.getpriority(os.PRIO_PROCESS, tid)
        if how != (os.SCHED_OTHER, 0):
            found[name] = how
    session = Path(f"/proc/{pid}/autogroup").read_text().split()[-1]
    return {**found, "its session": (os.SCHED_OTHER, int(session))} if session != "0" else found


@contextlib.contextmanager
def policies_seen(pid: Callable[[], int | None]) -> Iterator[set[int]]:
    """The scheduling policies that the first thread of a process has in the block, once it is there."""
    seen: set[int] = set()
    left = threading.Event()

    def look() -> None:
        while not left.wait(0.005):
            with contextlib.suppress(OSError):
                if (number := pid()) is not None:
                    seen.add(os.sched_getscheduler(number))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        left.set()
        thread.join()


@contextlib.contextmanager
def held(tid: int) -> Iterator[None]:
    """Thread ``tid``, which sleeps now and then, does not wake up in the block; the other threads of its process run.
    Elsewhere it could have a lock that they need. The tracer is the thread that enters."""
    _ptrace(_SEIZE, tid)
    try:
        for again in range(_TRIES):
            if again:
                _ptrace(_CONT, tid)
                time.sleep(0.001)
            _ptrace(_INTERRUPT, tid)
            os.waitpid(tid, _WALL)
            if Path(f"/proc/{tid}/syscall").read_text().split()[0] in _SLEEPS:
                break
        else:
            raise AssertionError(f"thread {tid} does not sleep")
        yield
    finally:
        _ptrace(_DETACH, tid)


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace {request:#x} of thread {tid}: {os.strerror(error)}")

"""Low priority for processes that run beside switches that serve VMs, so that they take no time from these switches.

A thread at low priority has the policy SCHED_IDLE, which nothing else gives to a switch. So it can be seen of any
process at any time, and it can be ended without a record of the earlier state, because that policy leaves the nice
value as it is. A kernel with autogroups (sched(7)) shares the cores among sessions before it looks at threads, so the
session of a daemon gets the nice value 19 as well.

A new thread has the priority of the thread that creates it. To end low priority, all threads of a process are therefore
visited repeatedly until none of them is low.

One thread becomes low again by itself: Open vSwitch writes its log with POSIX AIO (lib/async-append-aio.c), and the
thread that glibc makes for that takes the priority that the logging thread had (sysdeps/pthread/aio_misc.c). It ends
after a second without work. It alone has no name of its own, so it is known by the name of its process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ovs_hotswap.process_exit import readable

_NORMAL = os.sched_param(0)
_LOW_SESSION, _SESSION = "19", "0"
_ROUNDS = 20
_POLL_S = 0.02
_CLONE_S = 0.001


def threads_of(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the id and name of each thread of a process; nothing if it has ended."""
    for thread in _tasks(pid):
        with contextlib.suppress(OSError):
            yield thread, Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()


def low_threads(pid: int) -> dict[int, str]:
    """Return the names of the threads of a process that are at low priority: all of them if its session is. The thread
    that writes its log does not count, because no VM waits for it."""
    names = dict(threads_of(pid))
    return {thread: names[thread] for thread in _low(pid, names) if thread == pid or names[thread] != names.get(pid)}


def serve(pid: int) -> bool:
    """End the low priority of all threads of a process. Return whether none is left; if not, it is not permitted."""
    if _session(pid) == _LOW_SESSION:
        _set_session(pid, _SESSION)
    raised = False
    for _ in range(_ROUNDS):
        left = _low(pid, _tasks(pid))
        if not left and not raised:
            return True
        for thread in left:
            _raise(thread)
        if not left:  # a thread that was low may be making another, which cannot be seen yet
            time.sleep(_CLONE_S)
        raised = bool(left)
    return not low_threads(pid)


class Background:
    """Keeps processes at low priority during a block.

    ``pids`` returns the processes; each is lowered as soon as it exists. Threads whose name is ``spared`` keep their
    priority: beside a thread that never sleeps, a low one on the same core would not run at all.

    Low priority ends at the end of the block. It ends earlier after ``patience_s`` seconds, because on a busy machine
    it may mean no progress; when the process ``serving`` ends, because VMs then wait; and when another process has
    ended it for one of the processes.
    """

    def __init__(
        self, pids: Callable[[], Iterable[int]], spared: Callable[[str], bool], serving: int, patience_s: float
    ) -> None:
        self._pids, self._spared, self._serving = pids, spared, serving
        self._end = time.monotonic() + patience_s
        self._left = threading.Event()
        self._lowered: dict[int, set[int]] = {}  # threads by process
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    @property
    def active(self) -> bool:
        """Whether low priority has not ended yet."""
        return self._thread.is_alive()

    def __exit__(self, *_error: object) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError), _process(self._serving) as ended:
                while not (self._left.wait(_POLL_S) or ended() or self._over()):
                    for pid in self._pids():
                        self._lower(pid)
        finally:
            for pid in self._lowered:
                serve(pid)

    def _over(self) -> bool:
        return time.monotonic() >= self._end or any(_is_there(pid) and not _is_low(pid) for pid in self._lowered)

    def _lower(self, pid: int) -> None:
        if pid not in self._lowered and _session(pid) == _SESSION:
            _set_session(pid, _LOW_SESSION)
        lowered = self._lowered.setdefault(pid, set())
        for thread, name in threads_of(pid):
            if self._spared(name):
                if _is_low(thread):
                    _raise(thread)
            elif thread not in lowered:
                with contextlib.suppress(OSError):
                    if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                        os.sched_setscheduler(thread, os.SCHED_IDLE, _NORMAL)
                lowered.add(thread)


@contextlib.contextmanager
def _process(pid: int) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the process has ended which has this pid now. Raises OSError if none has."""
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda: readable(descriptor)
    finally:
        os.close(descriptor)


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _tasks(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def _low(pid: int, threads: Iterable[int]) -> list[int]:
    session = _session(pid) == _LOW_SESSION
    return [thread for thread in threads if session or _is_low(thread)]


def _is_low(thread: int) -> bool:
    with contextlib.suppress(OSError):
        return os.sched_getscheduler(thread) == os.SCHED_IDLE
    return False


def _raise(thread: int) -> None:
    with contextlib.suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_OTHER, _NORMAL)


def _session(pid: int) -> str:
    """Return the nice value of the autogroup of a process that leads its session, or an empty text if it has none."""
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            return Path(f"/proc/{pid}/autogroup").read_text().rpartition("nice ")[2].strip()
    return ""


def _set_session(pid: int, nice: str) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(nice)

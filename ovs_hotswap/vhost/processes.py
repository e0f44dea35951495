"""Which of the switches' processes have ended: the one proof that a silent switch is off the rings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Processes:
    """Watches processes by pidfd, which cannot mistake a recycled pid for the process it was opened for.

    ``ended_callback(pid)`` is called in the event loop once all threads of a tracked process have ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ended_callback: Callable[[int], None]) -> None:
        self._loop = loop
        self._callback = ended_callback
        self._pidfds: dict[int, int] = {}

    def track(self, pid: int) -> None:
        """Watch ``pid`` from now on; called while its connection is open, so that the pid is still its own."""
        if pid in self._pidfds:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._callback, pid)
            return
        self._pidfds[pid] = pidfd
        self._loop.add_reader(pidfd, self._ended, pid)

    def ended(self, pid: int) -> bool:
        """Whether a process that was tracked is dead."""
        return pid not in self._pidfds

    def _ended(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        self._callback(pid)

    def close(self) -> None:
        for pidfd in self._pidfds.values():
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()

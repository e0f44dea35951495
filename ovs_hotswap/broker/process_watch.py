"""Finds out which of the switches' processes have ended: the only proof that a silent switch is off the rings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ovs_hotswap.process_exit import ExitWatch, Process

log = logging.getLogger(__name__)

_AGAIN_S = 1.0


class Processes:
    """Watches processes by pidfd (``ExitWatch``), which never mistakes a recycled pid for the original process.

    ``ended_callback(pid)`` is called in the event loop when no thread of a tracked process can touch memory any longer.
    ``pid_files``: the files on which a switch may hold a lock.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ended_callback: Callable[[int], None], pid_files: Sequence[Path] = ()
    ) -> None:
        self._loop = loop
        self._callback = ended_callback
        self._pid_files = pid_files
        self._exits: dict[int, ExitWatch] = {}
        self._later: dict[int, int | None] = {}  # start times of processes that cannot be watched yet
        self._doubted: set[int] = set()

    def track(self, pid: int, born: int | None = None) -> None:
        """Watch ``pid`` from now on. Raises OSError if it cannot be watched.

        The caller has a connection to the process that is open, so that the pid is still its own. If that is not
        certain, ``born`` is when the process was started.
        """
        if pid in self._exits:
            return
        try:
            made = ExitWatch(pid, self._pid_files)
        except ProcessLookupError:
            self._gone(pid)
            return
        if None not in (born, made.born) and made.born != born:
            made.close()
            self._gone(pid)
            return
        self._later.pop(pid, None)
        self._exits[pid] = made
        self._loop.add_reader(made.fileno(), self._look, pid)

    def _gone(self, pid: int) -> None:
        self._later.pop(pid, None)
        self._loop.call_soon(self._callback, pid)

    def mind(self, pid: int, born: int | None) -> None:
        """Watch a process of an earlier broker's time, as ``track`` does.

        If this process has too few descriptors for that, it is tried again, and the process counts as alive until then.
        """
        try:
            self.track(pid, born)
        except OSError as error:
            if pid not in self._later:
                log.error("process %d cannot be watched yet, and counts as alive: %s", pid, error.strerror)
            self._later[pid] = born
            self._loop.call_later(_AGAIN_S, self._mind_again, pid)

    def _mind_again(self, pid: int) -> None:
        if pid in self._later:
            self.mind(pid, self._later[pid])

    def known(self, pid: int) -> Process:
        """Return a tracked process with its start time.

        A process that is not tracked has ended. Its start time is 0, so that another one with its pid differs from it.
        """
        return Process(pid, self._exits[pid].born if pid in self._exits else self._later.get(pid, 0))

    def doubt(self, pid: int) -> None:
        """Check soon whether a process has ended, because one of its connections closed."""
        if pid in self._exits and pid not in self._doubted:
            self._doubted.add(pid)
            self._loop.call_soon(self._look, pid)

    def ended(self, pid: int) -> bool:
        """Whether a process that was tracked has ended."""
        return pid not in self._exits and pid not in self._later

    def kill(self, pid: int) -> None:
        """Send SIGKILL to a tracked process; ``ended_callback`` is called as for any end."""
        if (found := self._exits.get(pid)) is not None:
            found.kill()

    def _look(self, pid: int) -> None:
        self._doubted.discard(pid)
        found = self._exits.get(pid)
        if found is None or not found.ended():
            return
        del self._exits[pid]
        self._loop.remove_reader(found.fileno())
        found.close()
        self._callback(pid)

    def close(self) -> None:
        for each in self._exits.values():
            self._loop.remove_reader(each.fileno())
            each.close()
        self._exits.clear()
        self._later.clear()

"""Says when something was made, removed or renamed in a directory, by the kernel's signal for that (dnotify).

The signal carries nothing, and several become one: who is called looks at everything. The broker also looks once a
second, so that a kernel without dnotify (CONFIG_DNOTIFY) only makes it later.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Set
from pathlib import Path

log = logging.getLogger(__name__)

_EVENTS = fcntl.DN_CREATE | fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT


class DirectoryWatch:
    """Calls ``changed`` in the event loop of the main thread after a change in one of the directories of ``watch``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop, self._changed = loop, changed
        self._open: dict[Path, tuple[int, tuple[int, int]]] = {}
        self._handles = False

    def watch(self, directories: Set[Path]) -> None:
        """Watch these directories and no others. One that does not exist is tried again at the next call."""
        for path in self._open.keys() - directories:
            os.close(self._open.pop(path)[0])
        for path in directories:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            found = path.stat()
            if path in self._open and self._open[path][1] == (found.st_dev, found.st_ino):
                return
            made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        if path in self._open:  # another directory has taken its place
            os.close(self._open.pop(path)[0])
        self._open[path] = made, (found.st_dev, found.st_ino)
        try:
            if not self._handles:  # its default action ends the process
                self._loop.add_signal_handler(signal.SIGIO, self._changed)
                self._handles = True
            fcntl.fcntl(made, fcntl.F_NOTIFY, _EVENTS)
        except OSError as error:
            log.warning("%s: changes are only seen once a second: %s", path, error.strerror)

    def close(self) -> None:
        for made, _ in self._open.values():
            os.close(made)
        self._open.clear()
        if self._handles:
            self._loop.remove_signal_handler(signal.SIGIO)
            # A signal that is already under way must not end the process.
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            self._handles = False

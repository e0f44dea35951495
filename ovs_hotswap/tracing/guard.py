"""A process that removes what a trace has made when the trace's own process ends without having done it.

It is a child that waits for the end of a pipe whose other end only its parent has. The kernel closes that end however
the parent ends, by SIGKILL as well. A parent that is stopped is not waited for beyond the deadline of the trace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import time
from collections.abc import Callable

_DONE = b"d"
_TRIES, _PAUSE_S = 5, 1.0


class Guard:
    """Calls ``remove`` in a child when this process has ended, or ``seconds`` have passed, before ``done`` was called.
    ``remove`` may raise any Exception, and is then called again, a few times. It must not need threads of this process
    or descriptors that are open: the child has none of them. Raises OSError if there can be no child."""

    def __init__(self, remove: Callable[[], object], seconds: float) -> None:
        reader, self._writer = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(self._writer)
            raise
        if self.pid == 0:
            try:
                _wait_and_remove(reader, remove, seconds)
            finally:
                os._exit(0)
        os.close(reader)

    def done(self) -> None:
        """End the child: there is nothing left to remove."""
        with contextlib.suppress(OSError):  # the child has ended
            os.write(self._writer, _DONE)
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _wait_and_remove(reader: int, remove: Callable[[], object], seconds: float) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    kept = _alone_with(reader)
    if select.select([kept], [], [], seconds)[0] and os.read(kept, 1) == _DONE:
        return
    for _ in range(_TRIES):
        with contextlib.suppress(Exception):
            remove()
            return
        time.sleep(_PAUSE_S)


def _alone_with(reader: int) -> int:
    """Close every descriptor but this one, and return its number: a lock, a terminal or a connection of the parent must
    not stay open because of the child."""
    empty = os.open(os.devnull, os.O_RDWR)
    kept = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 3)
    for number in range(3):
        os.dup2(empty, number)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, kept)
    os.closerange(kept + 1, most if most != resource.RLIM_INFINITY else 1 << 20)
    return kept

"""Closing a descriptor that another process made, without ever blocking.

The last ``close`` of an open file may block: a TCP socket lingers for as long as its owner has set (SO_LINGER,
socket(7)), a file of FUSE or NFS is flushed by its server, and freeing the pages of a guest's memory takes 60 ms per
GiB. QEMUs send eventfds and memory; a hostile QEMU may send anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
import threading
from collections import Counter, deque

_F_GET_SEALS = 1034  # fcntl(2); shared memory and huge pages have seals, other files have none
_THREADS = 32
_EACH = 2
_MOST = 64  # descriptors of one sender
_SMALL = 1 << 20  # bytes of memory, which are freed in less than 0.1 ms


class Closer:
    """Closes descriptors in at most ``threads`` threads, which are started when they are first needed.

    While all threads are blocked, further descriptors stay open. Of the descriptors from one *sender*, at most ``each``
    are closed at a time, so that a sender whose descriptors block indefinitely does not take all threads. A sender is
    a process; 0 stands for an unknown one and has no such limit.
    """

    def __init__(self, threads: int = _THREADS, each: int = _EACH) -> None:
        self._may_start, self._each = threads, each
        self._idle = 0
        self._waiting: dict[int, deque[int]] = {}  # by sender, in the order of their turns
        self._at_work: Counter[int] = Counter()
        self._changed = threading.Condition()

    def close(self, fd: int, sender: int = 0) -> None:
        """Have ``fd`` closed soon. The caller no longer owns it."""
        with self._changed:
            self._waiting.setdefault(sender, deque()).append(fd)
            start = self._may_start > 0 and self._idle == 0 and self._next() is not None
            self._may_start -= start
            self._idle += start  # the thread takes a descriptor at once
            self._changed.notify()
        if start:
            try:
                threading.Thread(target=self._run, name="closer", daemon=True).start()
            except RuntimeError:  # no thread can be started now: the next call tries again
                with self._changed:
                    self._may_start += 1
                    self._idle -= 1

    def pending(self, sender: int) -> int:
        """Return how many descriptors of ``sender`` are not closed yet."""
        with self._changed:
            return len(self._waiting.get(sender, ())) + self._at_work[sender]

    def _next(self) -> int | None:
        """Return the sender whose turn it is, or ``None``."""
        return next((sender for sender in self._waiting if not sender or self._at_work[sender] < self._each), None)

    def _run(self) -> None:
        with self._changed:
            while True:
                while (sender := self._next()) is None:
                    self._changed.wait()
                queue = self._waiting.pop(sender)
                fd = queue.popleft()
                if queue:
                    self._waiting[sender] = queue
                self._at_work[sender] += 1
                self._idle -= 1
                self._changed.release()
                try:
                    os.close(fd)
                except OSError:  # the descriptor is closed nevertheless (close(2), "Dealing with error returns")
                    pass
                finally:
                    self._changed.acquire()
                self._idle += 1
                self._at_work[sender] -= 1
                if not self._at_work[sender]:
                    del self._at_work[sender]


def is_eventfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


def is_memory(found: os.stat_result, fd: int) -> bool:
    """Whether ``fd`` is shared memory or huge pages. ``found`` is what fstat(2) returned for it."""
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return True


_closer = Closer()
_freeing = Closer(threads=2)  # for memory alone, so that other descriptors cannot delay freeing it


def burdens(sender: int) -> bool:
    """Whether so many descriptors of ``sender`` wait to be closed that it should not be allowed to send more."""
    return _closer.pending(sender) > _MOST


def close(fd: int, sender: int = 0) -> None:
    """Close ``fd`` now if that cannot block, otherwise soon in another thread. ``sender``: the process that sent it."""
    found = os.fstat(fd)
    if is_memory(found, fd):
        if found.st_blocks * 512 > _SMALL:
            _freeing.close(fd)
        else:
            os.close(fd)
    elif is_eventfd(fd):
        os.close(fd)
    else:
        _closer.close(fd, sender)


def hang_up(connection: socket.socket, peer: int = 0) -> None:
    """Close a connection so that the peer sees its end even if another process has a duplicate.

    The kernel also closes the descriptors that were left unread in the connection (unix(7), SCM_RIGHTS), which may
    block as well. If something was left unread, another thread closes the connection.
    """
    with contextlib.suppress(OSError):  # the peer may be gone
        connection.shutdown(socket.SHUT_RDWR)  # nothing more comes in
    (unread,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    if unread:
        _closer.close(connection.detach(), peer)
    else:
        connection.close()

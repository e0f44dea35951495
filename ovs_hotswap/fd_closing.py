"""Closing a descriptor that somebody else made, without ever waiting for it.

The last ``close`` of an open file may wait: a TCP socket lingers for as long as its owner has said (SO_LINGER,
socket(7)), a file of FUSE or NFS is flushed by whoever serves it, and the pages of a guest's memory are freed, which
takes 60 ms a GiB. What QEMUs send is eventfds and memory; a hostile one may send anything.
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

_F_GET_SEALS = 1034  # fcntl(2); shared memory and huge pages have seals, files of others have none
_THREADS = 32
_EACH = 2
_MOST = 64  # descriptors of one sender
_SMALL = 1 << 20  # bytes of memory, which are freed in less than 0.1 ms


class Closer:
    """Closes in ``threads`` threads at most, which are started when first needed. While all of them wait, what is to be
    closed waits, too, and stays open.

    Of what one *sender* has sent, ``each`` are closed at a time, so that one whose descriptors wait for ever takes not
    all of the threads. A sender is a process; 0 stands for nobody in particular, and has no such bound.
    """

    def __init__(self, threads: int = _THREADS, each: int = _EACH) -> None:
        self._may_start, self._each = threads, each
        self._idle = 0
        self._waiting: dict[int, deque[int]] = {}  # by sender; the one that is next comes first
        self._at_work: Counter[int] = Counter()
        self._changed = threading.Condition()

    def close(self, fd: int, sender: int = 0) -> None:
        """Have ``fd`` closed soon. It is the caller's no more."""
        with self._changed:
            self._waiting.setdefault(sender, deque()).append(fd)
            start = self._may_start > 0 and self._idle == 0 and self._next() is not None
            self._may_start -= start
            self._idle += start  # it takes one at once
            self._changed.notify()
        if start:
            try:
                threading.Thread(target=self._run, name="closer", daemon=True).start()
            except RuntimeError:  # no thread is to be had now: the next call tries again
                with self._changed:
                    self._may_start += 1
                    self._idle -= 1

    def pending(self, sender: int) -> int:
        """How many that ``sender`` has sent are not closed yet."""
        with self._changed:
            return len(self._waiting.get(sender, ())) + self._at_work[sender]

    def _next(self) -> int | None:
        """Whose turn it is."""
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
                except OSError:  # it is closed all the same (close(2), "Dealing with error returns")
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
    """Whether ``fd``, of which ``found`` is told, is shared memory or huge pages."""
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return True


_closer = Closer()
_freeing = Closer(threads=2)  # of its own, so that memory does not stay because others wait


def burdens(sender: int) -> bool:
    """Whether so much that ``sender`` has sent waits to be closed that nothing more is to be taken from it."""
    return _closer.pending(sender) > _MOST


def close(fd: int, sender: int = 0) -> None:
    """Close ``fd`` now if that takes no time, else soon."""
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
    """Close a connection of ours so that the peer sees its end, whoever has a duplicate. What was left unread in it is
    closed with it, by the kernel (unix(7), SCM_RIGHTS), and that may wait as well."""
    with contextlib.suppress(OSError):  # the peer may be gone
        connection.shutdown(socket.SHUT_RDWR)  # nothing more comes in
    (unread,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    if unread:
        _closer.close(connection.detach(), peer)
    else:
        connection.close()

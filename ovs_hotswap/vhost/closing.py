"""Closing a descriptor that somebody else made, without ever waiting for it.

The last ``close`` of an open file may wait: a TCP socket lingers for as long as its owner has said (SO_LINGER,
socket(7)), a file of FUSE or NFS is flushed by whoever serves it, and the pages of a guest's memory are freed, which
takes 60 ms a GiB. What QEMUs send is eventfds and memory; a hostile one may send anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import socket
import stat
import struct
import termios
import threading

_F_GET_SEALS = 1034  # fcntl(2); shared memory and huge pages have seals, files of others have none
_THREADS = 16
_SMALL = 1 << 20  # bytes of memory, which are freed in less than 0.1 ms


class Closer:
    """Closes in ``threads`` threads at most, which are started when first needed. While all of them wait, what is to be
    closed waits, too, and stays open."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._idle = 0
        self._may_start = threads
        self._lock = threading.Lock()

    def close(self, fd: int) -> None:
        """Have ``fd`` closed soon. It is the caller's no more."""
        self._waiting.put(fd)
        with self._lock:
            start = self._may_start > 0 and self._waiting.qsize() > self._idle
            self._may_start -= start
        if start:
            try:
                threading.Thread(target=self._run, name="closer", daemon=True).start()
            except RuntimeError:  # no thread is to be had now: the next call tries again
                with self._lock:
                    self._may_start += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            fd = self._waiting.get()
            with self._lock:
                self._idle -= 1
            try:
                os.close(fd)
            except OSError:  # it is closed all the same (close(2), "Dealing with error returns")
                continue


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


def close(fd: int) -> None:
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
        _closer.close(fd)


def hang_up(connection: socket.socket) -> None:
    """Close a connection of ours so that the peer sees its end, whoever has a duplicate. What was left unread in it is
    closed with it, by the kernel (unix(7), SCM_RIGHTS), and that may wait as well."""
    with contextlib.suppress(OSError):  # the peer may be gone
        connection.shutdown(socket.SHUT_RDWR)  # nothing more comes in
    (unread,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    if unread:
        _closer.close(connection.detach())
    else:
        connection.close()

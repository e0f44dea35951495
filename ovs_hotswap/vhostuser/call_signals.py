"""Signalling call eventfds without ever blocking on one.

The VM's QEMU shares the open file of each eventfd: it can clear O_NONBLOCK and fill the counter at any time, even
between a check whether a write would block and the write. No flag of a single write helps (``eventfd_write`` in the
kernel ignores RWF_NOWAIT), and an eventfd cannot be opened a second time. The eventfds are therefore signalled as the
kernel's own drivers signal them, with ``eventfd_signal``, which adds what there is room for and returns: an
asynchronous read that completes at once (of zero bytes, from /dev/null) names the eventfd to signal on completion
(fs/aio.c, IOCB_FLAG_RESFD). One system call signals all rings of a VM.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import struct
import threading
from collections.abc import Sequence

log = logging.getLogger(__name__)

_SETUP, _GETEVENTS, _SUBMIT = 206, 208, 209  # x86-64
_MOST = 256  # at a time: the rings of a VM (``messages.MAX_RINGS``)
_EVENT_SIZE = 32
_IOCB = struct.Struct("<QIIHhIQQqQII")  # struct iocb of linux/aio_abi.h
_READ = 0  # IOCB_CMD_PREAD
_SIGNALS = 1  # IOCB_FLAG_RESFD
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_ONE = (1).to_bytes(8, "little")

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: nothing here waits


class Signaller:
    """The kernel's context for asynchronous reads. A process needs only one.

    The kernel may refuse it: fs.aio-max-nr limits what all processes have together, and any process may use it up. The
    kernel is asked again at each signal; until it agrees, threads write to the eventfds. A VM can block such a thread,
    so there are at most ``threads`` of them. ``room`` is the number of reads that the context is to hold.
    """

    def __init__(self, threads: int = 32, room: int = _MOST) -> None:
        self._room = room
        self._context = ctypes.c_ulong(0)
        self._nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT_SIZE * _MOST)
        self._at_once = (ctypes.c_long * 2)(0, 0)
        self._free = threading.BoundedSemaphore(threads)
        self._told = False

    def ready(self) -> bool:
        """Whether there is a context; if there is none, the kernel is asked for it now."""
        if self._context.value:
            return True
        failed = bool(_libc.syscall(_SETUP, ctypes.c_long(self._room), ctypes.byref(self._context)))
        if failed and not self._told:
            self._told = True
            reason = os.strerror(ctypes.get_errno())
            log.warning("no asynchronous I/O (%s; see `sysctl fs.aio-nr fs.aio-max-nr`): threads signal guests", reason)
        return not failed

    def calls(self, descriptors: Sequence[int]) -> Calls:
        """Prepare a signal for each of these eventfds."""
        return Calls(self, self._nothing, descriptors)

    def submit(self, count: int, places: ctypes.c_void_p) -> int:
        """Submit the first ``count`` reads at ``places`` and return how many were made; -1 if not even the first was.

        The completion events are discarded.
        """
        made: int = _libc.syscall(_SUBMIT, self._context, ctypes.c_long(count), places)
        _libc.syscall(_GETEVENTS, self._context, ctypes.c_long(0), ctypes.c_long(_MOST), self._events, self._at_once)
        return made

    def write_aside(self, descriptors: Sequence[int]) -> None:
        """Write to the eventfds in a thread, unless too many such threads are blocked already."""
        if not self._free.acquire(blocking=False):
            return
        own: list[int] = []
        try:
            own += (os.dup(descriptor) for descriptor in descriptors)
            threading.Thread(target=self._write, args=(own,), daemon=True).start()
        except (OSError, RuntimeError):  # no descriptor, no thread
            _close(own)
            self._free.release()

    def _write(self, own: list[int]) -> None:
        try:
            for descriptor in own:
                with contextlib.suppress(OSError):
                    os.write(descriptor, _ONE)
        finally:
            _close(own)
            self._free.release()


class Calls:
    """Eventfds that are to be signalled. The constructor builds every buffer, so ``signal`` is system calls only."""

    def __init__(self, signaller: Signaller, nothing: int, descriptors: Sequence[int]) -> None:
        self._signaller = signaller
        self._descriptors = tuple(descriptors)
        self._count = count = len(descriptors)
        self._reads = ctypes.create_string_buffer(
            b"".join(_IOCB.pack(0, 0, 0, _READ, 0, nothing, 0, 0, 0, 0, _SIGNALS, each) for each in descriptors)
        )
        start = ctypes.addressof(self._reads)
        self._places = (ctypes.c_void_p * count)(*range(start, start + count * _IOCB.size, _IOCB.size))
        self._first = ctypes.addressof(self._places)

    def signal(self) -> None:
        """Add one to each counter that has room for it. A descriptor that is no eventfd is skipped."""
        if not self._count:
            return
        if not self._signaller.ready():
            self._signaller.write_aside(self._descriptors)
            return
        done = 0
        while done < self._count:
            made = self._signaller.submit(self._count - done, ctypes.c_void_p(self._first + done * _POINTER))
            done += max(1, made)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@functools.cache
def signaller() -> Signaller:
    """Return the signaller of this process."""
    return Signaller()

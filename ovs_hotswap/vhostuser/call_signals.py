"""Signalling call eventfds without ever waiting for one.

The VM's QEMU shares the open file of each: it can take O_NONBLOCK off and fill the counter at any time, also between a
question whether a write would block and the write. No flag of a single write helps (``eventfd_write`` in the kernel
knows no RWF_NOWAIT), and an eventfd cannot be opened a second time. So they are signalled as the kernel's own drivers
do it, with ``eventfd_signal``, which adds what there is room for and goes on: an asynchronous read that is over at once
(nothing, of /dev/null) names the eventfd that is to hear of it (fs/aio.c, IOCB_FLAG_RESFD). That is also one system
call for all rings of a VM.
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
_MOST = 256  # at a time: the rings of a VM (``wire.MAX_RINGS``)
_EVENT_SIZE = 32
_IOCB = struct.Struct("<QIIHhIQQqQII")  # struct iocb of linux/aio_abi.h
_READ = 0  # IOCB_CMD_PREAD
_SIGNALS = 1  # IOCB_FLAG_RESFD
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_ONE = (1).to_bytes(8, "little")

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: nothing here waits


class Signaller:
    """A kernel's context for asynchronous reads: one in a process.

    The kernel may have none to give: fs.aio-max-nr bounds what all processes have, and any of them may take it. It is
    asked again each time; until then threads write, which a VM may hold up, ``threads`` of them at most.
    ``room``: for how many reads to ask.
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
        """Whether there is a context, got now if need be."""
        if self._context.value:
            return True
        failed = bool(_libc.syscall(_SETUP, ctypes.c_long(self._room), ctypes.byref(self._context)))
        if failed and not self._told:
            self._told = True
            reason = os.strerror(ctypes.get_errno())
            log.warning("no asynchronous I/O (%s; see `sysctl fs.aio-nr fs.aio-max-nr`): threads signal guests", reason)
        return not failed

    def calls(self, descriptors: Sequence[int]) -> Calls:
        """A signal for each of these eventfds, prepared."""
        return Calls(self, self._nothing, descriptors)

    def submit(self, count: int, places: ctypes.c_void_p) -> int:
        """How many of these reads were made; -1 if the first cannot be. What they leave is thrown away."""
        made: int = _libc.syscall(_SUBMIT, self._context, ctypes.c_long(count), places)
        _libc.syscall(_GETEVENTS, self._context, ctypes.c_long(0), ctypes.c_long(_MOST), self._events, self._at_once)
        return made

    def write_aside(self, descriptors: Sequence[int]) -> None:
        """Write in a thread, unless too many are held up already."""
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
    """Eventfds that are to be signalled. All is built here; ``signal`` is system calls only."""

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
        """Add one to each counter that has room for it. What is no eventfd is passed over."""
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
    """This process's."""
    return Signaller()

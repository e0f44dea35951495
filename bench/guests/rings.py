"""Guest memory and split rings (virtio 1.2, 2.7) of many simulated VMs, as their drivers see them.

Stores to shared memory are single aligned ones in program order, which is enough on x86 (total store order).
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tests.support.vhost_rings import Layout, RingView

PAGE, HUGE_PAGE = 4096, 2 << 20
_PROT_READ_WRITE, _MAP_SHARED, _MAP_FIXED = 3, 1, 16
_NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT
_WRITE_ONLY = 2  # VIRTQ_DESC_F_WRITE


@dataclass(frozen=True, slots=True)
class Shape:
    """How the memory of each of ``vms`` VMs is laid out: ``pairs`` queue pairs, rings of ``ring_size`` descriptors, a
    buffer of ``buffer`` bytes for each. ``page``: size of its pages. Ring ``2 k`` of a VM receives, ``2 k + 1`` sends.
    ``begin``: bytes of memory before the first ring. ``receive_size``: the descriptors of receive rings, if they are
    fewer than ``ring_size``.
    """

    vms: int
    pairs: int = 1
    ring_size: int = 256
    buffer: int = 2048
    page: int = PAGE
    begin: int = 0
    receive_size: int | None = None

    @property
    def rings(self) -> int:
        """Rings of one VM."""
        return 2 * self.pairs

    @property
    def stride(self) -> int:
        """Bytes from one ring's begin to the next one's."""
        return Layout.at(0, self.ring_size, self.buffer).end

    @property
    def layouts(self) -> list[Layout]:
        found = [Layout.at(self.begin + ring * self.stride, self.ring_size, self.buffer) for ring in range(self.rings)]
        # Their parts stay where those of the longest ring are: ``Bank.used`` looks for all of them at the same places.
        return [replace(each, size=self.receive_size or each.size) if ring % 2 == 0 else each
                for ring, each in enumerate(found)]  # fmt: skip

    @property
    def memory(self) -> int:
        """Bytes of one VM's memory."""
        return -(-(self.begin + self.rings * self.stride) // self.page) * self.page


class Bank:
    """The memory of all VMs in one mapping, so that all rings' used indices can be read in one go.

    ``descriptors`` are the VMs' memfds, each of ``shape.memory`` bytes. Nothing made of it may be used when it is gone.
    """

    def __init__(self, shape: Shape, descriptors: Sequence[int]) -> None:
        self.shape = shape
        self._size = len(descriptors) * shape.memory
        self._reserve = mmap.mmap(-1, self._size + HUGE_PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._reserve))
        self._start = -(-start // HUGE_PAGE) * HUGE_PAGE
        for number, descriptor in enumerate(descriptors):
            _map_at(self._start + number * shape.memory, shape.memory, descriptor)
        self._view = memoryview((ctypes.c_ubyte * self._size).from_address(self._start)).cast("B")

    def memory(self, vm: int) -> memoryview:
        size = self.shape.memory
        return self._view[vm * size : (vm + 1) * size]

    @cached_property
    def used(self) -> npt.NDArray[np.uint16]:
        """The live used index of each ring: one row for each VM."""
        shape = self.shape
        octets = np.frombuffer(self._view, np.uint8).reshape(-1, shape.memory)
        words = octets[:, shape.begin : shape.begin + shape.rings * shape.stride].view(np.uint16)
        at = Layout.at(0, shape.ring_size, shape.buffer).used // 2 + 1
        return words.reshape(-1, shape.rings, shape.stride // 2)[:, :, at]


def _map_at(address: int, size: int, descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    if libc.mmap(address, size, _PROT_READ_WRITE, _MAP_SHARED | _MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), "guest memory cannot be mapped")


class RingFault(Exception):
    """The switch gave back what it was not given: it is out of step, or two are on one ring."""


class DriverRing:
    """The driver's end of one ring. Buffers may come back in any order.

    It polls, so it asks for no interrupts: by the flag, and with the event index by an index that is far away (virtio
    1.2, 2.7.7 and 2.7.10).
    """

    def __init__(self, memory: memoryview, layout: Layout, buffer: int, *, writable: bool) -> None:
        self._memory, self._layout, self._buffer = memory, layout, buffer
        self.view = RingView(
            memory[layout.descriptors :], memory[layout.available :], memory[layout.used :], layout.size
        )
        self.free = deque(range(layout.size))
        self.offered = 0
        self.taken_back = 0
        self._out = [False] * layout.size
        self._event = memory[layout.available + 4 + 2 * layout.size :][:2].cast("H")
        self.view.available[0] = _NO_INTERRUPT
        self._event[0] = 0x8000
        for head in range(layout.size):
            self.view.descriptors[2 * head] = layout.buffers + buffer * head
            self.view.descriptors[2 * head + 1] = buffer | (_WRITE_ONLY << 32 if writable else 0)

    @property
    def outstanding(self) -> int:
        return self.offered - self.taken_back

    def buffer(self, head: int) -> memoryview:
        start = self._layout.buffers + self._buffer * head
        return self._memory[start : start + self._buffer]

    def write(self, head: int, data: bytes | bytearray) -> None:
        """Put ``data`` into a buffer that is not offered; its descriptor then covers so much."""
        start = self._layout.buffers + self._buffer * head
        self._memory[start : start + len(data)] = data
        self.view.descriptors[2 * head + 1] = len(data)

    def offer(self, head: int) -> None:
        """Give a buffer, taken from ``free``, to the switch."""
        self._out[head] = True
        self.view.offer(self.offered, head)
        self.offered += 1

    def collect(self, used: int) -> list[tuple[int, int]]:
        """Take back what the switch has used up to index ``used``: (head, bytes written). Raises RingFault."""
        count = (used - self.taken_back) & 0xFFFF
        if count > self.outstanding:
            raise RingFault(f"used index {used}: {count} buffers given back, {self.outstanding} were there")
        taken = []
        for number in range(self.taken_back, self.taken_back + count):
            slot = 1 + 2 * (number % self._layout.size)
            head = self.view.used32[slot]
            if head >= self._layout.size or not self._out[head]:
                raise RingFault(f"used index {number & 0xFFFF}: descriptor {head} was not with the switch")
            self._out[head] = False
            taken.append((head, self.view.used32[slot + 1]))
        self.taken_back += count
        self._event[0] = (self.taken_back + 0x8000) & 0xFFFF
        return taken

    def close(self) -> None:
        self.view.close()
        self._event.release()

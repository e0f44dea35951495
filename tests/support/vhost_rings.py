"""Guest memory and split rings (virtio 1.2, 2.7) for the vhost-user peers of the tests, and what those record.

Everything that two processes share lies in memfds. 16-bit ring indices are written through ``memoryview.cast("H")``:
``struct.pack_into`` zero-fills before it writes, so that the other side would see an index of 0 for an instant.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = 4096
BUFFER = 64  # bytes of one packet buffer
_WRITE_ONLY = 2  # VIRTQ_DESC_F_WRITE


def page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


class Shared:
    """A memfd and a mapping of it, both closed by ``close``. ``fd`` given: another process's memfd."""

    def __init__(self, name: str, size: int, fd: int | None = None) -> None:
        self.fd = os.memfd_create(name) if fd is None else fd
        self.size = size
        if fd is None:
            os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)

    def close(self) -> None:
        self.view.release()
        with contextlib.suppress(BufferError):  # a view of a ring is still held: unmapped with it
            self._map.close()
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a ring's three parts and its buffers lie: bytes from the start of guest memory."""

    size: int
    descriptors: int
    available: int
    used: int
    buffers: int
    end: int

    @classmethod
    def at(cls, start: int, size: int, buffer: int = BUFFER) -> Layout:
        """A ring at ``start`` with a buffer of ``buffer`` bytes for each of its ``size`` descriptors."""
        available = start + page_up(16 * size)
        used = available + page_up(6 + 2 * size)
        buffers = used + page_up(6 + 8 * size)
        return cls(size, start, available, used, buffers, buffers + page_up(buffer * size))


class RingView:
    """Typed views of one split ring, from either side. ``close`` before the memory is unmapped."""

    def __init__(self, descriptors: memoryview, available: memoryview, used: memoryview, size: int) -> None:
        self.size = size
        self.descriptors = descriptors[: 16 * size].cast("Q")
        self.available = available[: 4 + 2 * size].cast("H")
        self.used16 = used[:4].cast("H")
        self.used32 = used[: 4 + 8 * size].cast("I")

    def offer(self, index: int, head: int) -> None:
        """Put ``head`` into slot ``index`` of the available ring and show it."""
        self.available[2 + index % self.size] = head
        self.available[1] = (index + 1) & 0xFFFF

    def give_back(self, index: int, head: int, length: int) -> None:
        """Fill used slot ``index``; ``used16[1]`` shows it."""
        slot = 1 + 2 * (index % self.size)
        self.used32[slot] = head
        self.used32[slot + 1] = length

    def close(self) -> None:
        for view in (self.descriptors, self.available, self.used16, self.used32):
            view.release()


class GuestRing:
    """The driver's end of one ring. TX buffers carry a 64-bit sequence number, RX buffers receive one."""

    def __init__(self, memory: memoryview, layout: Layout, guest_base: int, *, writable: bool) -> None:
        memory[layout.descriptors : layout.end] = bytes(layout.end - layout.descriptors)
        self.layout = layout
        self.view = RingView(
            memory[layout.descriptors :], memory[layout.available :], memory[layout.used :], layout.size
        )
        self._payload = memory[layout.buffers : layout.buffers + BUFFER * layout.size].cast("Q")
        self.posted = 0
        self.reclaimed = 0
        for index in range(layout.size):
            self.view.descriptors[2 * index] = guest_base + layout.buffers + BUFFER * index
            self.view.descriptors[2 * index + 1] = BUFFER | (_WRITE_ONLY << 32 if writable else 0)

    @property
    def room(self) -> int:
        return self.layout.size - (self.posted - self.reclaimed)

    def post(self, value: int) -> None:
        """Offer the next buffer, holding ``value``. Buffers come back in order, as all back ends here give them."""
        head = self.posted % self.layout.size
        self._payload[head * (BUFFER // 8)] = value
        self.view.offer(self.posted, head)
        self.posted += 1

    def collect(self) -> list[int]:
        """Take back what the back end has used, and return the values in those buffers."""
        count = (self.view.used16[1] - self.reclaimed) & 0xFFFF
        if count > self.posted - self.reclaimed:
            raise AssertionError(f"used index ran ahead: {count} used of {self.posted - self.reclaimed} offered")
        heads = [self.view.used32[1 + 2 * ((self.reclaimed + k) % self.layout.size)] for k in range(count)]
        self.reclaimed += count
        return [self._payload[head * (BUFFER // 8)] for head in heads]

    def close(self) -> None:
        self.view.close()
        self._payload.release()


class Ledger(Shared):
    """How often each packet was taken off a ring, by whichever switch: one byte per VM and sequence number."""

    def __init__(self, vms: int, packets: int, fd: int | None = None) -> None:
        super().__init__("ledger", vms * packets, fd)
        self.vms = vms
        self.packets = packets

    def count(self, vm: int, sequence: int) -> None:
        index = vm * self.packets + sequence
        self.view[index] = min(self.view[index] + 1, 255)

    def counts(self, vm: int, packets: int) -> bytes:
        return bytes(self.view[vm * self.packets : vm * self.packets + packets])

    def lost_and_doubled(self, vm: int, packets: int) -> tuple[int, int]:
        counts = self.counts(vm, packets)
        return counts.count(0), sum(count > 1 for count in counts)


@dataclass(frozen=True, slots=True)
class Span:
    """One time during which a switch touched a ring of a guest: first and last touch, CLOCK_MONOTONIC nanoseconds."""

    vm: int
    ring: int
    begin: int
    end: int
    packets: int


class Touches(Shared):
    """A switch's own record of the guest rings it touched; outlives the switch's process.

    A touch is stamped before and after. A process that is stopped within a touch stamps its end when it is continued.
    """

    _FIELDS = 5

    def __init__(self, capacity: int, fd: int | None = None) -> None:
        super().__init__("touches", 8 * (1 + capacity * self._FIELDS), fd)
        self.capacity = capacity
        self._words = self.view.cast("Q")

    def begin(self, vm: int, ring: int) -> int:
        """A new span; returns its number."""
        number = self._words[0]
        if number >= self.capacity:
            raise AssertionError("record of touches is full")
        at = 1 + number * self._FIELDS
        now = time.monotonic_ns()
        self._words[at], self._words[at + 1] = vm, ring
        self._words[at + 2], self._words[at + 3] = now, now
        self._words[0] = number + 1
        return number

    def touched(self, number: int, packets: int) -> None:
        at = 1 + number * self._FIELDS
        self._words[at + 3] = time.monotonic_ns()
        self._words[at + 4] += packets

    def spans(self) -> Iterator[Span]:
        for number in range(self._words[0]):
            at = 1 + number * self._FIELDS
            yield Span(*self._words[at : at + self._FIELDS])

    def close(self) -> None:
        self._words.release()
        super().close()


def overlaps(one: Touches, other: Touches) -> list[tuple[Span, Span]]:
    """Pairs of spans in which two switches had the same ring of the same VM at the same time: must be empty."""
    mine: dict[tuple[int, int], list[Span]] = {}
    for span in one.spans():
        mine.setdefault((span.vm, span.ring), []).append(span)
    return [
        (left, right)
        for right in other.spans()
        for left in mine.get((right.vm, right.ring), [])
        if left.begin <= right.end and right.begin <= left.end
    ]

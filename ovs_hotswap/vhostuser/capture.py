"""Capture rings: frames for a guest that arrive while its rings change hands are captured, so that none is lost.

While a VM is moved, both switches output every frame for it (the copy goes over the peer link), and only the owner's is
delivered. A frame that the old side handles after it released the rings, and the new side before it got them, would be
delivered by neither. Around that moment the receive rings of both back ends are therefore parked not on the empty ring
but on *capture rings*, whose buffers belong to the broker. A frame that both sides captured was delivered by neither:
it is given to the guest afterwards, through the new owner. A frame that only one side captured was delivered by the
other.

The frames that the new side captured must reach back as far as a copy may lag behind. So the new side is put on its
capture rings early, and buffers that are full are offered to it again: its rings hold the latest frames. The old side's
capture rings hold the first frames after it released the guest's rings.

A VM's capture rings take no more memory than their buffers, and a buffer is as long as the VM's MTU requires. What all
VMs take at once is limited by ``capture_memory.Room``: a VM that finds no room there is not moved yet, and its guest
receives its frames as before.

The ring layouts are virtio 1.2, 2.7; the header before each frame is 5.1.6.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState
from ovs_hotswap.vhostuser.messages import Descriptor, Feature, RingAddress
from ovs_hotswap.vhostuser.reconcile import CAPTURE_OFFSET, CAPTURE_SIZE, SCRATCH_GUEST_ADDRESS, SCRATCH_USER_ADDRESS

PAIRS = 8  # queue pairs that have capture rings
BUFFERS = 256  # a power of two, as the sizes of rings are (virtio 1.2, 2.7)
LONGEST_MTU = 9000
MAX_RING = 4096  # entries; the parts of a larger ring would not fit before the buffers

_AVAILABLE = 0x10000
_USED = 0x14000
_BUFFERS = 0x20000
_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")
_WRITE = 2  # VIRTQ_DESC_F_WRITE
_NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT
_NEVER = 0x8000  # a used_event that is passed once in 65536 frames; the guest then looks at its rings in vain

_PAGE = 4 << 10
_GRAIN = 2 << 10  # bytes: a buffer for an MTU of 1500 is half a page
_AROUND = 34  # bytes around an IP packet: two VLAN tags, the Ethernet header and the one of virtio
_MOST_SPANNED = (64 << 10) // _GRAIN + 1
_HEADER = struct.Struct("<BBHHHH")  # virtio_net_hdr of a legacy device without mergeable buffers
_SPAN = struct.Struct("<H")  # num_buffers, which all others have behind it
_NEEDS_CSUM = 1
_GSO_NONE = 0


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A frame from a capture ring. ``segments``: it stands for several frames (GSO) and can only be counted."""

    frame: bytes
    segments: bool = False


class CaptureRings:
    """The capture rings of one VM for one move from side ``old`` to the other.

    ``scratch`` is the VM's scratch memory, ``mtu`` its MTU in bytes, or ``None`` if it is not known.
    """

    def __init__(self, scratch: Descriptor, state: GuestState, old: Side, mtu: int | None = None) -> None:
        self._scratch = scratch
        self._buffer = buffer_size(mtu)
        self.old = old
        self._features = state.features or 0
        self._sizes = _sizes(state)
        self._counts = {(side, index): 0 for side in Side for index in self._sizes}
        self._words: memoryview | None = None

    def _indices(self) -> memoryview:
        """Return the capture rings as 16-bit words.

        They are mapped, because the rings of all VMs are rolled while others are moved. The scratch memory is sealed
        against shrinking, so reading the mapping cannot fail.
        """
        if self._words is None:
            rings = mmap.mmap(self._scratch.fileno(), CAPTURE_SIZE, offset=CAPTURE_OFFSET)
            self._words = memoryview(rings).cast("H")
        return self._words

    def unmap(self) -> None:
        """Release the mapping, and the descriptor that it holds, while no buffers are recycled."""
        self._words = None

    def arm(self) -> None:
        """Fill the capture rings of both sides with empty buffers. No back end may be on them. Raises OSError."""
        self._indices()
        for side, index in self._counts:
            arm(self._scratch, side, index, self._sizes[index], self._buffer)
            self._counts[side, index] = 0

    def places(self, side: Side) -> dict[int, RingAddress]:
        return {index: address(side, index, self._buffer) for index in self._sizes}

    def recycle(self) -> None:
        """Offer the new side again the buffers that it has filled."""
        side, words = self.old.other, self._indices()
        for index, size in self._sizes.items():
            before = self._counts[side, index]
            count = self._count(side, index)
            if count != before:  # the ring names the buffers already
                words[self._word(side, index, _AVAILABLE)] = (count + min(BUFFERS, size)) % (1 << 16)

    def _count(self, side: Side, index: int) -> int:
        """Return how many buffers a side has filled since the ring was armed; a buffer counts each time."""
        before, used = self._counts[side, index], self._indices()[self._word(side, index, _USED)]
        self._counts[side, index] = before + (used - before) % (1 << 16)
        return self._counts[side, index]

    def _word(self, side: Side, index: int, part: int) -> int:
        return _word(side, index, part, self._buffer)

    def same(self, other: CaptureRings) -> bool:
        """Whether the rings are for the same guest and move."""
        return (self.old, self._features, self._sizes, self._buffer) == (
            other.old, other._features, other._sizes, other._buffer)  # fmt: skip

    def undelivered(self) -> list[CapturedFrame]:
        """Return the frames that neither side delivered, and free the buffers. Both sides must be off the rings.

        The two sides may have put a frame on different rings, because each chooses the ring by the thread that carries
        the frame. Frames are therefore compared over all rings of a side.
        """
        caught: dict[Side, list[CapturedFrame]] = {side: [] for side in Side}
        for side in Side:
            for index, size in self._sizes.items():
                count = self._count(side, index)
                caught[side] += collect(self._scratch, side, index, size, count, self._features, self._buffer)
        self.free()
        return undelivered(caught[self.old], caught[self.old.other])

    def free(self) -> None:
        """Return the memory of the buffers to the kernel. Both sides must be off the rings."""
        self.unmap()
        free(self._scratch)


def _sizes(state: GuestState) -> dict[int, int]:
    """Return the size, in entries, of each started ring that has a capture ring."""
    sizes = {index: state.rings[index].size for index in state.started}
    return {index: size for index, size in sizes.items() if size is not None and can_capture(index, size)}


def buffer_size(mtu: int | None) -> int:
    """Return the bytes of a buffer that holds a frame of this MTU. An unknown MTU (``None``) counts as LONGEST_MTU."""
    needed = (LONGEST_MTU if mtu is None else mtu) + _AROUND
    return -(-needed // _GRAIN) * _GRAIN


def needed(sizes: Iterable[int], mtu: int | None) -> int:
    """Return the most bytes of memory that the capture rings of both sides take for receive rings of these sizes."""
    return 2 * sum(
        3 * _PAGE + _DESCRIPTOR.size * size + -(-min(BUFFERS, size) * buffer_size(mtu) // _PAGE) * _PAGE
        for size in sizes)  # fmt: skip


def needed_by(state: GuestState, mtu: int | None) -> int:
    """Return the most bytes of memory that the capture rings of both sides take for this guest's started rings."""
    return needed(_sizes(state).values(), mtu)


def free(scratch: Descriptor) -> None:
    """Return the memory of all capture rings to the kernel. No back end may be on them."""
    with mmap.mmap(scratch.fileno(), CAPTURE_SIZE, offset=CAPTURE_OFFSET) as rings:
        rings.madvise(mmap.MADV_REMOVE)


def written(scratch: Descriptor) -> int:
    """Return the bytes of memory that capture rings take now, including those that an earlier broker armed."""
    try:
        os.lseek(scratch.fileno(), CAPTURE_OFFSET, os.SEEK_DATA)
    except OSError:  # there are none behind it (lseek(2), ENXIO)
        return 0
    return os.fstat(scratch.fileno()).st_blocks * 512


def is_place(address: RingAddress | None) -> bool:
    """Whether a ring address lies in the capture rings, so that a back end that has it is on a capture ring."""
    first = SCRATCH_USER_ADDRESS + CAPTURE_OFFSET
    return address is not None and first <= address.descriptors < first + CAPTURE_SIZE


def can_capture(index: int, size: int) -> bool:
    """Whether there is a capture ring for ring ``index``: receive rings (even) of the first pairs have one."""
    return index % 2 == 0 and index < 2 * PAIRS and size <= MAX_RING and size.bit_count() == 1


def stride(buffer: int) -> int:
    """Return the bytes from one capture ring with buffers of ``buffer`` bytes to the next."""
    return _BUFFERS + BUFFERS * buffer


def reach(pairs: int | None, mtu: int | None) -> int:
    """Return up to where, in the scratch memory, the capture rings of a VM with so many queue pairs and this MTU lie. A
    number that is not known counts as PAIRS."""
    count = PAIRS if pairs is None else min(pairs, PAIRS)
    return CAPTURE_OFFSET + 2 * count * stride(buffer_size(mtu))


def _start(side: Side, index: int, buffer: int) -> int:
    """Return the offset, in the scratch memory, of a side's capture ring for receive ring ``index``. Those of one queue
    pair lie side by side, so that those of a VM with few queue pairs reach not far (``reach``)."""
    return CAPTURE_OFFSET + (index + (side is Side.B)) * stride(buffer)


def address(side: Side, index: int, buffer: int) -> RingAddress:
    """Return where the capture ring for ring ``index`` lies for the back end of ``side``."""
    start = SCRATCH_USER_ADDRESS + _start(side, index, buffer)
    return RingAddress(flags=0, descriptors=start, used=start + _USED, available=start + _AVAILABLE, log=0)


def arm(scratch: Descriptor, side: Side, index: int, size: int, buffer: int) -> None:
    """Fill a capture ring of ``size`` entries with empty buffers of ``buffer`` bytes each. No back end may be on it."""
    fd, start = scratch.fileno(), _start(side, index, buffer)
    table, available = _empty(start, size, buffer)
    os.pwrite(fd, table, start)
    os.pwrite(fd, bytes(4), start + _USED)
    os.pwrite(fd, available, start + _AVAILABLE)


@functools.cache  # there are few different arguments, and this is half of the time that a move takes beside its swap
def _empty(start: int, size: int, buffer: int) -> tuple[bytes, bytes]:
    """Return descriptor table and available ring of an empty capture ring that starts at offset ``start``."""
    count = min(BUFFERS, size)
    first = SCRATCH_GUEST_ADDRESS + start + _BUFFERS
    table = b"".join(_DESCRIPTOR.pack(first + n * buffer, buffer, _WRITE, 0) for n in range(count))
    numbers = b"".join(n.to_bytes(2, "little") for n in range(count)) * (size // count)
    header = _NO_INTERRUPT.to_bytes(2, "little") + count.to_bytes(2, "little")
    return table, header + numbers + _NEVER.to_bytes(2, "little")


@functools.cache
def _word(side: Side, index: int, part: int, buffer: int) -> int:
    """Return where a ring's index (``part`` is ``_AVAILABLE`` or ``_USED``) is among the 16-bit words of all rings."""
    return (_start(side, index, buffer) - CAPTURE_OFFSET + part) // 2 + 1


def collect(
    scratch: Descriptor, side: Side, index: int, size: int, count: int, features: int, buffer: int
) -> list[CapturedFrame]:
    """Return the last frames in a capture ring, in the order in which the back end put them there.

    The back end must be off the ring. ``count`` buffers have been filled since the ring was armed, of which the last
    ones are still there. ``buffer`` is the size of a buffer in bytes, ``features`` are the guest's.
    """
    fd, start = scratch.fileno(), _start(side, index, buffer)
    elements = os.pread(fd, _USED_ELEMENT.size * size, start + _USED + 4)
    filled = []
    for position in range(max(0, count - min(BUFFERS, size)), count):
        number, length = _USED_ELEMENT.unpack_from(elements, _USED_ELEMENT.size * (position % size))
        filled.append(os.pread(fd, min(length, buffer), start + _BUFFERS + (number % BUFFERS) * buffer))
    return parse_frames(filled, features)


def parse_frames(filled: Sequence[bytes], features: int) -> list[CapturedFrame]:
    """Return the frames that are in filled buffers.

    With mergeable buffers a frame may span several buffers; the header in the first says how many. The very first
    buffer may be the rest of a frame: what is parsed from that equals no frame of the other side, so it does no harm.
    """
    merged = bool(features >> Feature.NET_MRG_RXBUF & 1)
    long_header = merged or bool(features >> Feature.VERSION_1 & 1)
    header_size = _HEADER.size + (_SPAN.size if long_header else 0)
    found: list[CapturedFrame] = []
    position = 0
    while position < len(filled):
        first = filled[position]
        if len(first) < header_size:
            position += 1
            continue
        header = _HEADER.unpack_from(first)
        span = min(max(1, *_SPAN.unpack_from(first, _HEADER.size)), _MOST_SPANNED) if merged else 1
        frame = first[header_size:] + b"".join(filled[position + 1 : position + span])
        found.append(CapturedFrame(_finished(frame, header), segments=header[1] != _GSO_NONE))
        position += span
    return found


def _finished(frame: bytes, header: tuple[int, ...]) -> bytes:
    """Return ``frame`` with the checksum that a switch left to the guest's device (VIRTIO_NET_HDR_F_NEEDS_CSUM)."""
    flags, _, _, _, start, offset = header
    if not flags & _NEEDS_CSUM or start + offset + 2 > len(frame):
        return frame
    checksum = ~_sum(frame[start:]) & 0xFFFF
    return frame[: start + offset] + (checksum or 0xFFFF).to_bytes(2, "big") + frame[start + offset + 2 :]


def _sum(data: bytes) -> int:
    """Return the ones' complement sum of RFC 1071."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def undelivered(old: Iterable[CapturedFrame], new: Iterable[CapturedFrame]) -> list[CapturedFrame]:
    """Return the frames that both sides captured, in the new side's order.

    Of several equal frames, as many are returned as both sides have.
    """
    left = Counter(each.frame for each in old)
    found = []
    for each in new:
        if left[each.frame] > 0:
            left[each.frame] -= 1
            found.append(each)
    return found

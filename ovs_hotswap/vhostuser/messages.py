"""The vhost-user wire format, without I/O.

The sources of all numbers are QEMU's ``docs/interop/vhost-user.rst`` and DPDK's ``lib/vhost/vhost_user.h``. Integers
are in the host's byte order, which is little endian on every machine that this program supports.

``FrameReader`` cuts a byte stream into frames; ``parse`` turns a frame into a typed ``Message``; the functions below
``parse`` build frames. Descriptors travel beside the bytes as objects with a ``serial`` (``Descriptor``); this module
never looks into them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser.unsupported import not_carried

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
REGION = struct.Struct("<QQQQ")
MEMORY_HEADER = struct.Struct("<II")
LOG = struct.Struct("<QQ")

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

MAX_PAYLOAD = 4096  # bytes; the largest message carried here is a memory table: 264 bytes
MAX_REGIONS = 8  # VHOST_MEMORY_BASELINE_NREGIONS (QEMU), VHOST_MEMORY_MAX_NREGIONS (DPDK)
MAX_RINGS = 256  # VHOST_MAX_VRING (DPDK): 128 queue pairs
MAX_RING_SIZE = 32768  # virtio 1.2, 2.7

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 0x100


class Descriptor(Protocol):
    """A received file descriptor, owned by the holder of the object. ``serial`` never repeats within a process."""

    @property
    def serial(self) -> int: ...
    def fileno(self) -> int: ...
    def detach(self) -> int: ...
    def close(self) -> None: ...


class Request(enum.IntEnum):
    """The requests that a front end sends to a back end, as far as the broker carries them."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    SET_INFLIGHT_FD = 32
    SET_STATUS = 39
    GET_STATUS = 40


class Feature(enum.IntEnum):
    """Virtio and vhost feature bits that the broker carries between the two sides (virtio 1.2, 5.1.3 and 6)."""

    NET_CSUM = 0
    NET_GUEST_CSUM = 1
    NET_CTRL_GUEST_OFFLOADS = 2
    NET_MTU = 3
    NET_MAC = 5
    NET_GSO = 6
    NET_GUEST_TSO4 = 7
    NET_GUEST_TSO6 = 8
    NET_GUEST_ECN = 9
    NET_GUEST_UFO = 10
    NET_HOST_TSO4 = 11
    NET_HOST_TSO6 = 12
    NET_HOST_ECN = 13
    NET_HOST_UFO = 14
    NET_MRG_RXBUF = 15
    NET_STATUS = 16
    NET_CTRL_VQ = 17
    NET_CTRL_RX = 18
    NET_CTRL_VLAN = 19
    NET_CTRL_RX_EXTRA = 20
    NET_GUEST_ANNOUNCE = 21
    NET_MQ = 22
    NET_CTRL_MAC_ADDR = 23
    NOTIFY_ON_EMPTY = 24
    LOG_ALL = 26
    ANY_LAYOUT = 27
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    IN_ORDER = 35


# Not carried, and therefore never offered to QEMU: IOMMU_PLATFORM (33) needs the back-end request channel;
# RING_PACKED (34) cannot be recovered from used->idx (QEMU does not, DPDK 22.11 does not); RING_RESET (40) and
# NOTIFICATION_DATA (38) have messages that DPDK does not know.
CARRIED_FEATURES = sum(1 << bit for bit in Feature)


class ProtocolFeature(enum.IntEnum):
    """Protocol feature bits that the broker carries."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    NET_MTU = 4
    STATUS = 16


# Masked: SLAVE_REQ (5) and SLAVE_SEND_FD (10), since a second channel would bypass the broker; PAGEFAULT (8);
# CONFIG (9); HOST_NOTIFIER (11); INFLIGHT_SHMFD (12), since DPDK recovers a split ring from used->idx.
CARRIED_PROTOCOL_FEATURES = sum(1 << bit for bit in ProtocolFeature)
_FEATURE_NAMES = {int(bit): bit.name for bit in Feature}


def feature_names(bits: int) -> list[str]:
    """Return the names of the set bits, lowest first; a bit without a name here is called ``bit 34``."""
    return [_FEATURE_NAMES.get(bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1]


@dataclass(frozen=True, slots=True)
class Region:
    """One memory region: guest physical address, size, address in QEMU and offset in the descriptor, in bytes."""

    guest_address: int
    size: int
    user_address: int
    offset: int
    descriptor: Descriptor

    def holds(self, user_address: int, length: int) -> bool:
        return self.user_address <= user_address and user_address + length <= self.user_address + self.size

    def overlaps(self, start: int, size: int) -> bool:
        return self.user_address < start + size and start < self.user_address + self.size


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Where a split ring lies in QEMU's address space. Bit 0 of ``flags``: log writes to the used ring at ``log``."""

    flags: int
    descriptors: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class Empty:
    pass


@dataclass(frozen=True, slots=True)
class Number:
    value: int


@dataclass(frozen=True, slots=True)
class RingValue:
    """A ring's index and one number: size, base or enable."""

    index: int
    value: int


@dataclass(frozen=True, slots=True)
class RingPlace:
    index: int
    address: RingAddress


@dataclass(frozen=True, slots=True)
class RingDescriptor:
    """A kick, call or error eventfd of a ring. ``None``: the front end sent none on purpose (poll instead of kick)."""

    index: int
    descriptor: Descriptor | None


@dataclass(frozen=True, slots=True)
class MemoryTable:
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class DirtyLog:
    """Shared memory in which a back end marks the pages that it wrote; size and offset in ``descriptor`` in bytes."""

    size: int
    offset: int
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class OneDescriptor:
    descriptor: Descriptor


Body: TypeAlias = Empty | Number | RingValue | RingPlace | RingDescriptor | MemoryTable | DirtyLog | OneDescriptor


@dataclass(frozen=True, slots=True)
class Frame:
    """A message whose payload has not been parsed yet."""

    request: int
    flags: int
    payload: bytes
    descriptors: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Message:
    request: Request
    need_reply: bool
    body: Body

    @property
    def ring(self) -> int | None:
        """The index of the ring that the message is about, or ``None`` if it is about none."""
        return self.body.index if isinstance(self.body, RingValue | RingPlace | RingDescriptor) else None


class FrameReader:
    """Cuts a byte stream into frames.

    The kernel delivers descriptors with the first byte of the message with which they were sent, and never merges
    bytes beyond it (unix(7)). The caller must therefore read at most ``wanted`` bytes at a time.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: list[Descriptor] = []
        self._header: tuple[int, int, int] | None = None

    @property
    def wanted(self) -> int:
        """How many bytes may be read next; at least 1."""
        size = HEADER.size if self._header is None else self._header[2]
        return size - len(self._buffer)

    @property
    def half(self) -> tuple[bytes, tuple[Descriptor, ...]]:
        """The bytes and descriptors of a message that is not complete; between two messages there are none."""
        head = b"" if self._header is None else HEADER.pack(*self._header)
        return head + bytes(self._buffer), tuple(self._descriptors)

    def feed(self, data: bytes, descriptors: Sequence[Descriptor]) -> Frame | None:
        """Take what was read, at most ``wanted`` bytes, and return a frame when it is complete, else ``None``.

        Raises ProtocolError for a wrong version, an oversized payload or too many descriptors. The descriptors of the
        incomplete message belong to this object until ``close``.
        """
        self._buffer += data
        self._descriptors += descriptors
        if len(self._descriptors) > MAX_REGIONS:
            raise ProtocolError(f"{len(self._descriptors)} descriptors in one message, at most {MAX_REGIONS}")
        if self._header is None:
            if len(self._buffer) < HEADER.size:
                return None
            request, flags, size = HEADER.unpack(bytes(self._buffer))
            if flags & VERSION_MASK != VERSION:
                raise ProtocolError(f"request {request}: version {flags & VERSION_MASK}, expected {VERSION}")
            if size > MAX_PAYLOAD:
                raise ProtocolError(f"request {request}: payload of {size} bytes, at most {MAX_PAYLOAD}")
            self._header = (request, flags, size)
            self._buffer.clear()
        request, flags, size = self._header
        if len(self._buffer) < size:
            return None
        frame = Frame(request, flags, bytes(self._buffer), tuple(self._descriptors))
        self._header = None
        self._buffer.clear()
        self._descriptors = []
        return frame

    def close(self) -> None:
        """Close the descriptors of a message that was never completed."""
        for descriptor in self._descriptors:
            descriptor.close()
        self._descriptors = []


def _ring_index(value: int) -> int:
    if value >= MAX_RINGS:
        raise ProtocolError(f"ring {value}, at most {MAX_RINGS - 1}")
    return value


def _size(frame: Frame, size: int) -> None:
    if len(frame.payload) != size:
        raise ProtocolError(f"{Request(frame.request).name}: payload of {len(frame.payload)} bytes, expected {size}")


def _empty(frame: Frame) -> Empty:
    _size(frame, 0)
    return Empty()


def _number(frame: Frame) -> Number:
    _size(frame, U64.size)
    return Number(U64.unpack(frame.payload)[0])


def _ring_value(frame: Frame) -> RingValue:
    _size(frame, VRING_STATE.size)
    index, value = VRING_STATE.unpack(frame.payload)
    return RingValue(_ring_index(index), value)


def _ring_size(frame: Frame) -> RingValue:
    body = _ring_value(frame)
    if not 0 < body.value <= MAX_RING_SIZE or body.value & (body.value - 1):
        raise ProtocolError(f"ring {body.index}: size {body.value} is not a power of 2 up to {MAX_RING_SIZE}")
    return body


def _ring_base(frame: Frame) -> RingValue:
    body = _ring_value(frame)
    if body.value > 0xFFFF:
        raise ProtocolError(f"ring {body.index}: base {body.value:#x} does not fit a split ring's 16 bits")
    return body


def _ring_place(frame: Frame) -> RingPlace:
    _size(frame, VRING_ADDR.size)
    index, flags, descriptors, used, available, log = VRING_ADDR.unpack(frame.payload)
    return RingPlace(_ring_index(index), RingAddress(flags, descriptors, used, available, log))


def _ring_descriptor(frame: Frame) -> RingDescriptor:
    _size(frame, U64.size)
    (value,) = U64.unpack(frame.payload)
    none = bool(value & VRING_NO_FD)
    if len(frame.descriptors) != (0 if none else 1):
        raise ProtocolError(f"{Request(frame.request).name}: {len(frame.descriptors)} descriptors, value {value:#x}")
    return RingDescriptor(_ring_index(value & VRING_INDEX_MASK), None if none else frame.descriptors[0])


def _memory_table(frame: Frame) -> MemoryTable:
    if len(frame.payload) < MEMORY_HEADER.size:
        raise ProtocolError(f"SET_MEM_TABLE: payload of {len(frame.payload)} bytes is too short")
    count, _ = MEMORY_HEADER.unpack_from(frame.payload)
    if not 0 < count <= MAX_REGIONS or len(frame.descriptors) != count:
        raise ProtocolError(f"SET_MEM_TABLE: {count} regions with {len(frame.descriptors)} descriptors")
    if len(frame.payload) < MEMORY_HEADER.size + count * REGION.size:
        raise ProtocolError(f"SET_MEM_TABLE: payload of {len(frame.payload)} bytes for {count} regions")
    regions = []
    for number in range(count):
        fields = REGION.unpack_from(frame.payload, MEMORY_HEADER.size + number * REGION.size)
        if any(fields[k] + fields[1] >= 1 << 64 for k in (0, 2, 3)) or fields[1] == 0:
            raise ProtocolError(f"SET_MEM_TABLE: region {number} is empty or wraps around")
        guest_address, size, user_address, offset = fields
        regions.append(Region(guest_address, size, user_address, offset, frame.descriptors[number]))
    return MemoryTable(tuple(regions))


def _dirty_log(frame: Frame) -> DirtyLog:
    _size(frame, LOG.size)
    if len(frame.descriptors) != 1:
        raise ProtocolError(f"SET_LOG_BASE: {len(frame.descriptors)} descriptors, expected 1")
    size, offset = LOG.unpack(frame.payload)
    return DirtyLog(size, offset, frame.descriptors[0])


def _one_descriptor(frame: Frame) -> OneDescriptor:
    if len(frame.descriptors) != 1:
        raise ProtocolError(f"{Request(frame.request).name}: {len(frame.descriptors)} descriptors, expected 1")
    return OneDescriptor(frame.descriptors[0])


_BODIES: dict[Request, Callable[[Frame], Body]] = {
    Request.GET_FEATURES: _empty,
    Request.SET_FEATURES: _number,
    Request.SET_OWNER: _empty,
    Request.RESET_OWNER: _empty,
    Request.SET_MEM_TABLE: _memory_table,
    Request.SET_LOG_BASE: _dirty_log,
    Request.SET_LOG_FD: _one_descriptor,
    Request.SET_BACKEND_REQ_FD: _one_descriptor,
    Request.SET_INFLIGHT_FD: _one_descriptor,
    Request.SET_VRING_NUM: _ring_size,
    Request.SET_VRING_ADDR: _ring_place,
    Request.SET_VRING_BASE: _ring_base,
    Request.GET_VRING_BASE: _ring_value,
    Request.SET_VRING_KICK: _ring_descriptor,
    Request.SET_VRING_CALL: _ring_descriptor,
    Request.SET_VRING_ERR: _ring_descriptor,
    Request.GET_PROTOCOL_FEATURES: _empty,
    Request.SET_PROTOCOL_FEATURES: _number,
    Request.GET_QUEUE_NUM: _empty,
    Request.SET_VRING_ENABLE: _ring_value,
    Request.SEND_RARP: _number,
    Request.NET_SET_MTU: _number,
    Request.SET_STATUS: _number,
    Request.GET_STATUS: _empty,
}
_WITH_DESCRIPTORS = {
    Request.SET_MEM_TABLE,
    Request.SET_LOG_BASE,
    Request.SET_LOG_FD,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_INFLIGHT_FD,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ERR,
}


def parse(frame: Frame) -> Message:
    """Return the message in a frame that came from a front end.

    Raises ProtocolError for a request that the broker does not carry, a wrong size, a wrong number of descriptors or a
    value out of range. The caller owns the frame's descriptors in every case.
    """
    try:
        request = Request(frame.request)
    except ValueError as error:
        raise ProtocolError(not_carried(frame.request)) from error
    if frame.flags & REPLY:
        raise ProtocolError(f"{request.name}: a reply where a request was due")
    if frame.descriptors and request not in _WITH_DESCRIPTORS:
        raise ProtocolError(f"{request.name}: carries {len(frame.descriptors)} descriptors, expected none")
    return Message(request, bool(frame.flags & NEED_REPLY), _BODIES[request](frame))


def build(request: Request, payload: bytes = b"", flags: int = VERSION) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


def build_number(request: Request, value: int, flags: int = VERSION) -> bytes:
    return build(request, U64.pack(value), flags)


def build_ring_value(request: Request, index: int, value: int, flags: int = VERSION) -> bytes:
    return build(request, VRING_STATE.pack(index, value), flags)


def build_ring_address(index: int, at: RingAddress, flags: int = VERSION) -> bytes:
    payload = VRING_ADDR.pack(index, at.flags, at.descriptors, at.used, at.available, at.log)
    return build(Request.SET_VRING_ADDR, payload, flags)


def build_ring_descriptor(request: Request, index: int, *, present: bool) -> bytes:
    return build_number(request, index if present else index | VRING_NO_FD)


def build_memory_table(regions: Sequence[Region]) -> bytes:
    table = b"".join(REGION.pack(r.guest_address, r.size, r.user_address, r.offset) for r in regions)
    return build(Request.SET_MEM_TABLE, MEMORY_HEADER.pack(len(regions), 0) + table)


def build_log(log: DirtyLog) -> bytes:
    return build(Request.SET_LOG_BASE, LOG.pack(log.size, log.offset))


def reply(request: Request, payload: bytes = b"") -> bytes:
    return build(request, payload, VERSION | REPLY)


def parse_reply(frame: Frame, expected: Request) -> int | None:
    """Return the number in a back end's reply, or ``None`` if the reply is empty (SET_LOG_BASE).

    For GET_VRING_BASE that is the base. Raises ProtocolError if the frame is no reply to ``expected``.
    """
    if not frame.flags & REPLY or frame.request != expected or frame.descriptors:
        raise ProtocolError(f"answer to {expected.name} expected, got request {frame.request} flags {frame.flags:#x}")
    if expected is Request.SET_LOG_BASE:
        return None
    _size(frame, U64.size)
    if expected is Request.GET_VRING_BASE:
        return _ring_base(frame).value
    return int(U64.unpack(frame.payload)[0])

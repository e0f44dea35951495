"""The frames that simulated guests send: UDP over IPv4, with who sent it when as which, and a checksum.

Pure. A payload is the fields of ``Stamp``, a filler that differs from stream to stream, and the CRC-32 of both.
Addresses are of 198.18.0.0/15, which RFC 2544 sets aside for benchmarks: no host answers to them.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

ETHERNET, IPV4, UDP = 14, 20, 8
HEADERS = ETHERNET + IPV4 + UDP
_PORT = 50_000
_FIELDS = struct.Struct("<QQHH")
_CRC = struct.Struct("<I")
_TYPE = struct.Struct(">H")
SHORTEST = HEADERS + _FIELDS.size + _CRC.size


class Stamp(NamedTuple):
    """``sent``: CLOCK_MONOTONIC, nanoseconds. ``source``: number of the sending port, ``queue`` its queue pair (of a
    remote host: the number of the VM that the stream is for)."""

    sequence: int
    sent: int
    source: int
    queue: int


class Broken(Exception):
    """A frame of ours whose checksum is wrong."""


class Writer:
    """Writes the frames of one stream, each of ``size`` bytes behind ``header`` bytes of zeros (``virtio_net_hdr``
    without offloads: virtio 1.2, 5.1.6). ``flows``: the frames come from so many UDP ports in turn."""

    def __init__(
        self, source: int, queue: int, macs: tuple[str, str], size: int, header: int, flows: int = 1
    ) -> None:  # fmt: skip
        if size < SHORTEST:
            raise ValueError(f"a frame has {SHORTEST} bytes at least, not {size}")
        self._source, self._queue, self._flows = source, queue, flows
        filler = random.Random(source << 16 | queue).randbytes(size - SHORTEST)
        headers = _headers(source, queue, macs, size)
        self.frame = bytearray(header) + headers + bytes(_FIELDS.size) + filler + bytes(_CRC.size)
        self._fields = header + HEADERS
        self._port_at = header + ETHERNET + IPV4
        (self._port,) = _TYPE.unpack_from(self.frame, self._port_at)
        self._end = len(self.frame) - _CRC.size
        self._covered = memoryview(self.frame)[self._fields : self._end]

    def make(self, sequence: int, now: int) -> bytearray:
        """The frame; the same object each time."""
        if self._flows > 1:
            _TYPE.pack_into(self.frame, self._port_at, self._port + sequence % self._flows)
        _FIELDS.pack_into(self.frame, self._fields, sequence, now, self._source, self._queue)
        _CRC.pack_into(self.frame, self._end, zlib.crc32(self._covered))
        return self.frame


def read(frame: memoryview) -> Stamp | None:
    """The stamp in a frame; ``None`` if the frame is not one of ours. Raises Broken."""
    if len(frame) < SHORTEST or _TYPE.unpack_from(frame, 12) != (0x0800,) or _TYPE.unpack_from(frame, 36) != (_PORT,):
        return None
    end = len(frame) - _CRC.size
    if zlib.crc32(frame[HEADERS:end]) != _CRC.unpack_from(frame, end)[0]:
        raise Broken
    return Stamp(*_FIELDS.unpack_from(frame, HEADERS))


def _headers(source: int, queue: int, macs: tuple[str, str], size: int) -> bytes:
    own, target = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    total = size - ETHERNET
    addresses = bytes([198, 18, source >> 8, source & 255, 198, 19, queue >> 8, queue & 255])
    ip = struct.pack(">BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, 17, 0) + addresses
    ip = ip[:10] + _checksum(ip).to_bytes(2, "big") + ip[12:]
    # A UDP checksum of 0 means that there is none (RFC 768).
    udp = struct.pack(">HHHH", _PORT + 1 + queue % 1000, _PORT, total - IPV4, 0)
    return target + own + b"\x08\x00" + ip + udp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

"""Checksums of packets."""

from __future__ import annotations

import struct

_CRC32C = 0x82F63B78  # the polynomial of RFC 9260, appendix A, with its bits reversed


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of ``data``, in which the field of the checksum itself is 0."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """Return the checksum of an SCTP packet (RFC 9260, appendix A); SCTP sends its lowest byte first."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (_CRC32C if value & 1 else 0)
    return value ^ 0xFFFFFFFF

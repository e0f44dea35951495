"""Frames as VMs send them, for tests of `trace`."""

from __future__ import annotations

import struct
from ipaddress import ip_address

VM1, VM2, FAR = "52:54:00:64:00:01", "52:54:00:64:00:02", "52:54:00:64:ff:fe"
ALL = "ff:ff:ff:ff:ff:ff"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes, *tags: int) -> bytes:
    """``tags``: the numbers of VLANs, the outermost first."""
    inner = b"".join(struct.pack("!HH", 0x8100, tag) for tag in tags)
    return mac(target) + mac(source) + inner + struct.pack("!H", kind) + payload


def ipv4(source: str, target: str, protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"",
         ttl: int = 64, tos: int = 0) -> bytes:  # fmt: skip
    """``fragment``: the flags and the offset, as they are in the header."""
    words = 5 + len(options) // 4
    header = struct.pack("!BBHHHBBH", 0x40 | words, tos, words * 4 + len(payload), 1, fragment, ttl, protocol, 0)
    return header + ip_address(source).packed + ip_address(target).packed + options + payload


def ipv6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    header = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return header + ip_address(source).packed + ip_address(target).packed + payload


def tcp(source: int, target: int, flags: int = 0x10, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIHHHH", source, target, 1, 2, 0x5000 | flags, 512, 0, 0) + payload


def udp(source: int, target: int, payload: bytes = b"x" * 16) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def icmp(kind: int = 8, code: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, 7, 1) + b"x" * 56


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """``sender``, ``target``: MAC and IP address."""
    ends = b"".join(mac(hardware) + ip_address(address).packed for hardware, address in (sender, target))
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + ends


def solicitation(source: str, target: str, asks: str, hardware: str) -> bytes:
    """A neighbour solicitation in IPv6."""
    message = struct.pack("!BBHI", 135, 0, 0, 0) + ip_address(asks).packed + bytes([1, 1]) + mac(hardware)
    return ipv6(source, target, 58, message)


PING = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 1, icmp()))
PONG = ethernet(FAR, VM1, 0x0800, ipv4("10.0.0.254", "10.0.0.1", 1, icmp(0)))
SYN = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 6, tcp(40000, 80, 0x02)))
ACK = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 6, tcp(40000, 80, 0x10)))

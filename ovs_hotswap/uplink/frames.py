"""Frames that prove an uplink, and the sockets that send and see them on kernel devices.

Out: the instance sends an ordinary ARP request, and a neighbour answers it. The answer goes to the VTEP's MAC, so the
kernel's device sees it, whichever side has the overlay's traffic. What the request says about the VTEP is true for both
sides. It goes only to the neighbour, and it is not an ARP probe (RFC 5227, 2.1.1), which a host that is about to take
the address would have to treat as a conflict. The host's kernel and the other instance may send the same question, so
our frames carry a mark.

In: a VXLAN packet of network 0, which no VM has, is put into the representor of the instance's VF. From there it takes
the way of every VXLAN packet, and the instance counts it as a packet of an unknown network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol, TypeVar

from ovs_hotswap.errors import UplinkError

ETH_P_ALL, ETH_P_ARP, ETH_P_IP = 0x0003, 0x0806, 0x0800
PROBE_VNI = 0  # RFC 7348 allows it; the VNIs of an intent begin at 1
VXLAN_UDP_PORT = 4789
_ARP_REQUEST, _ARP_REPLY = 1, 2
MARK_BYTES = 18  # the padding of ARP up to the shortest Ethernet frame without its checksum, 60 bytes (IEEE 802.3)
# The inner frame: a local experimental ethertype (IEEE 802, 9.2.3) between locally administered addresses.
_INNER = bytes.fromhex("02000000000f02000000000e88b5")
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
# Classic BPF (include/uapi/linux/filter.h): only ARP, so that the overlay's packets cost a comparison each.
_ONLY_ARP = ((0x28, 0, 0, 12), (0x15, 0, 1, ETH_P_ARP), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Host:
    """A host on the underlay, with its IPv4 address and its MAC."""

    address: str
    mac: str


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def arp_request(asker: Host, target: Host, mark: bytes) -> bytes:
    """An ARP request by ``asker`` for the address of ``target``, sent only to ``target`` (RFC 826; RFC 1122, 2.3.2.1).
    ``mark``: the padding, which distinguishes it from the requests of others."""
    header = _mac(target.mac) + _mac(asker.mac) + struct.pack("!H", ETH_P_ARP)
    body = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, _ARP_REQUEST)
    body += _mac(asker.mac) + IPv4Address(asker.address).packed + bytes(6) + IPv4Address(target.address).packed
    return header + body + mark


def asks(frame: bytes, asker: Host, target: Host, mark: bytes) -> bool:
    """Whether ``frame`` asks the same as ``arp_request(asker, target, mark)`` but has another mark."""
    return (_is_arp(frame, _ARP_REQUEST) and frame[42 : 42 + len(mark)] != mark
            and frame[28:32] == IPv4Address(asker.address).packed
            and frame[38:42] == IPv4Address(target.address).packed)  # fmt: skip


def answers(frame: bytes, asker: Host, target: Host) -> bool:
    """Whether ``frame`` answers a request by ``asker`` for the address of ``target``."""
    return (_is_arp(frame, _ARP_REPLY) and frame[0:6] == _mac(asker.mac)
            and frame[28:32] == IPv4Address(target.address).packed
            and frame[38:42] == IPv4Address(asker.address).packed)  # fmt: skip


def _is_arp(frame: bytes, operation: int) -> bool:
    return len(frame) >= 42 and frame[12:14] == struct.pack("!H", ETH_P_ARP) and frame[20:22] == bytes([0, operation])


def vxlan_probe(source: Host, vtep: Host, mtu: int) -> bytes:
    """A VXLAN packet of network 0 from ``source`` to ``vtep`` with the UDP checksum 0 (RFC 7348, section 5). Its IP
    packet has ``mtu`` bytes, the most that the underlay carries, because a device may pass only shorter packets."""
    vxlan = struct.pack("!II", 0x08000000, PROBE_VNI << 8) + _INNER.ljust(mtu - 36, b"\0")
    udp = struct.pack("!HHHH", 49152, VXLAN_UDP_PORT, 8 + len(vxlan), 0) + vxlan
    words = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    addresses = IPv4Address(source.address).packed + IPv4Address(vtep.address).packed
    total = sum(struct.unpack("!10H", words + addresses))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = words[:10] + struct.pack("!H", checksum) + addresses
    return _mac(vtep.mac) + _mac(source.mac) + struct.pack("!H", ETH_P_IP) + header + udp


class Ear(Protocol):
    def heard(self, seconds: float) -> list[bytes]:
        """The ARP frames that the device has passed since the last call, in both directions. Waits up to ``seconds``
        for one. Raises UplinkError."""


class Sockets(Protocol):
    """Raw access to the devices of one network namespace. All methods raise UplinkError."""

    def listen(self, device: str) -> contextlib.AbstractContextManager[Ear]: ...

    def send(self, device: str, frame: bytes) -> None: ...


def in_namespace(namespace: str | None, act: Callable[[], Result]) -> Result:
    """Call ``act`` in a thread of its own within the network namespace; sockets that ``act`` makes stay in it. Returns
    the result of ``act``. Raises UplinkError for an OSError."""
    result: list[Result] = []
    faults: list[OSError] = []

    def run() -> None:
        try:
            if namespace is not None:
                _enter(namespace)
            result.append(act())
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if faults:
        where = f"network namespace {namespace}" if namespace else "network devices"
        raise UplinkError(f"{where}: {faults[0]}") from faults[0]
    return result[0]


def _enter(namespace: str) -> None:
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


class PacketSockets:
    """Packet sockets (packet(7)) in ``namespace``; ``None`` is this process's own namespace."""

    def __init__(self, namespace: str | None) -> None:
        self._namespace = namespace

    @contextlib.contextmanager
    def listen(self, device: str) -> Iterator[Ear]:
        with in_namespace(self._namespace, lambda: _arp_socket(device)) as found:
            yield _SocketEar(found)

    def send(self, device: str, frame: bytes) -> None:
        def act() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
                sender.bind((device, 0))
                sender.send(frame)

        in_namespace(self._namespace, act)


def _arp_socket(device: str) -> socket.socket:
    """A socket that sees only the device's ARP frames: it is bound last, when its filter is on. It is bound to
    ETH_P_ALL because a bridge or bond above the device takes frames before sockets of one protocol see them
    (net/core/dev.c, __netif_receive_skb_core)."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _ONLY_ARP))
        found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                         struct.pack("@HP", len(_ONLY_ARP), ctypes.addressof(program)))  # fmt: skip
        found.setblocking(False)
        found.bind((device, ETH_P_ALL))
    except OSError:
        found.close()
        raise
    return found


class _SocketEar:
    def __init__(self, heard: socket.socket) -> None:
        self._socket = heard

    def heard(self, seconds: float) -> list[bytes]:
        end, frames = time.monotonic() + seconds, []
        try:
            while select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
                frames.append(self._socket.recv(2048))
                break
        except OSError as error:
            raise UplinkError(f"a packet socket: {error}") from error
        return frames

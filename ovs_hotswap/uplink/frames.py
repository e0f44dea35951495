"""Frames that prove an uplink, and the sockets that send and see them on kernel devices.

Out: the instance sends an ordinary question for a neighbour's MAC (an ARP request, or a neighbour solicitation of
IPv6), and the neighbour answers it. The answer goes to the VTEP's MAC, so the kernel's device sees it, whichever side
has the overlay's traffic. What the question says about the VTEP is true for both sides. It goes only to the neighbour,
and it is not one that asks whether the VTEP's address is free (RFC 5227, 2.1.1; RFC 4862, 5.4.2), to which a host that
is about to take the address would have to react. The host's kernel and the other instance may send the same question,
so our frames carry a mark.

In: a packet of a tunnel for network 0, which no VM has, is put into the representor of the instance's VF. From there it
takes the way of every such packet, and the instance counts it as a packet of an unknown network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Literal, Protocol, TypeVar

from ovs_hotswap.checksums import internet_checksum
from ovs_hotswap.errors import UplinkError

ETH_P_ALL, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q = 0x0003, 0x0806, 0x0800, 0x86DD, 0x8100
BROADCAST = "ff:ff:ff:ff:ff:ff"
PROBE_VNI = 0  # RFC 7348 and RFC 8926 allow it; the VNIs of an intent begin at 1
VXLAN_UDP_PORT = 4789
_ARP_REQUEST, _ARP_REPLY = 1, 2
_SOLICITATION, _ADVERTISEMENT = 135, 136  # RFC 4861, 4.3 and 4.4
_SOLICITED, _OVERRIDE = 0x40, 0x20  # the flags S and O of an advertisement
_ALL_NODES, _ALL_NODES_MAC = bytes.fromhex("ff020000000000000000000000000001"), "33:33:00:00:00:01"  # RFC 2464, 7
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
_TARGET_MAC = bytes([2, 1])  # RFC 4861, 4.6.1: its type, and its length in units of 8 bytes
_NONCE, _NONCE_BYTES = bytes([14, 1]), 6  # RFC 3971, 5.3.2
_ETHERNET_IN_GENEVE = 0x6558  # RFC 8926, 3.4
MARK_BYTES = 18  # the padding of ARP up to the shortest Ethernet frame without its checksum, 60 bytes (IEEE 802.3)
# The inner frame: a local experimental ethertype (IEEE 802, 9.2.3) between locally administered addresses.
_INNER = bytes.fromhex("02000000000f02000000000e88b5")
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_SOL_PACKET = 263  # include/linux/socket.h
_PACKET_AUXDATA = 8  # include/uapi/linux/if_packet.h, as are the next two
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TP_STATUS_VLAN_VALID = 1 << 4
# Classic BPF (include/uapi/linux/filter.h): only what asks for and tells MACs, so that the overlay's packets cost a few
# comparisons each.
_ONLY_NEIGHBOURS = (
    (0x01, 0, 0, 0),  # x = 0: the bytes of a tag
    (0x28, 0, 0, 12), (0x15, 0, 1, ETH_P_8021Q), (0x01, 0, 0, 4),  # x = 4 if there is one
    (0x48, 0, 0, 12), (0x15, 6, 0, ETH_P_ARP), (0x15, 0, 6, ETH_P_IPV6),
    (0x50, 0, 0, 20), (0x15, 0, 4, socket.IPPROTO_ICMPV6),
    (0x50, 0, 0, 54), (0x35, 0, 2, _SOLICITATION), (0x25, 1, 0, _ADVERTISEMENT),
    (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0),
)  # fmt: skip

Tunnel = Literal["vxlan", "geneve"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Host:
    """A host on the underlay, with its IP address and its MAC; BROADCAST if that is not known. ``asker``: the address
    with which this host speaks to it, if that is not the VTEP's."""

    address: str
    mac: str
    asker: str | None = None


def question(asker: Host, target: Host, mark: bytes, vlan: int | None = None) -> bytes:
    """A question by ``asker`` for the MAC of ``target``'s address, sent only to ``target`` (RFC 1122, 2.3.2.1; RFC
    4861, 7.3.3) if its MAC is known. ``mark``: MARK_BYTES that distinguish it from the questions of others."""
    own, sought = ip_address(asker.address).packed, ip_address(target.address).packed
    if _is_ipv6(target):
        to = sought
        if target.mac == BROADCAST:  # to the solicited-node multicast address (RFC 4291, 2.7.1; RFC 2464, 7)
            to = _SOLICITED_NODE + sought[-3:]
            target = Host(target.address, (b"\x33\x33" + to[-4:]).hex(":"))
        # The mark, of which a part is enough, is the nonce: hosts that do not know it ignore it (RFC 4861, 4.3).
        options = bytes([1, 1]) + _mac(asker.mac) + _NONCE + mark[:_NONCE_BYTES]
        message = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + sought + options
        checked = _with_checksum(message, 2, own, to, socket.IPPROTO_ICMPV6)
        packet = _ipv6(own, to, socket.IPPROTO_ICMPV6, 255, checked)
        return _ethernet(asker, target, vlan, ETH_P_IPV6, packet)
    body = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, _ARP_REQUEST)  # RFC 826
    body += _mac(asker.mac) + own + bytes(6) + sought
    return _ethernet(asker, target, vlan, ETH_P_ARP, body + mark)


def announcement(host: Host, vlan: int | None = None) -> bytes:
    """An ARP announcement (RFC 5227, section 3), or an unsolicited advertisement of IPv6 to all hosts (RFC 4861,
    7.2.6): hosts that know another MAC for the address of ``host`` replace it."""
    if not _is_ipv6(host):
        return question(host, Host(host.address, BROADCAST), bytes(MARK_BYTES), vlan)
    own = ip_address(host.address).packed
    message = struct.pack("!BBHB3x", _ADVERTISEMENT, 0, 0, _OVERRIDE) + own + _TARGET_MAC + _mac(host.mac)
    checked = _with_checksum(message, 2, own, _ALL_NODES, socket.IPPROTO_ICMPV6)
    packet = _ipv6(own, _ALL_NODES, socket.IPPROTO_ICMPV6, 255, checked)
    return _ethernet(host, Host(host.address, _ALL_NODES_MAC), vlan, ETH_P_IPV6, packet)


def asks(frame: bytes, asker: Host, target: Host, mark: bytes, vlan: int | None = None) -> bool:
    """Whether ``frame`` asks the same as ``question(asker, target, mark, vlan)`` but has another mark."""
    own, sought = ip_address(asker.address).packed, ip_address(target.address).packed
    if _is_ipv6(target):
        packet = _discovery(frame, vlan, _SOLICITATION)
        return packet[8:24] == own and packet[48:64] == sought and _NONCE + mark[:_NONCE_BYTES] not in packet[64:]
    packet = _arp(frame, vlan, _ARP_REQUEST)
    return packet[14:18] == own and packet[24:28] == sought and packet[28 : 28 + len(mark)] != mark


def answers(frame: bytes, asker: Host, target: Host, vlan: int | None = None) -> bool:
    """Whether ``frame`` answers a question by ``asker`` for the MAC of ``target``'s address."""
    own, sought = ip_address(asker.address).packed, ip_address(target.address).packed
    if frame[0:6] != _mac(asker.mac):
        return False
    if _is_ipv6(target):
        packet = _discovery(frame, vlan, _ADVERTISEMENT)
        return packet[24:40] == own and packet[48:64] == sought and bool(packet[44] & _SOLICITED)
    packet = _arp(frame, vlan, _ARP_REPLY)
    return packet[14:18] == sought and packet[24:28] == own


def tunnel_probe(
    source: Host, vtep: Host, mtu: int, vlan: int | None = None, udp_port: int = VXLAN_UDP_PORT,
    tunnel: Tunnel = "vxlan",
) -> bytes:  # fmt: skip
    """A packet of a tunnel for network 0 from ``source`` to ``vtep``. Its IP packet has ``mtu`` bytes, the most that
    the underlay carries, because a device may pass only shorter packets. The UDP checksum is 0 over IPv4 (RFC 7348,
    section 5), but not over IPv6, where not every host takes this (RFC 6936, section 4)."""
    header = struct.pack("!II", 0x08000000, PROBE_VNI << 8)
    if tunnel == "geneve":
        header = struct.pack("!HHI", 0, _ETHERNET_IN_GENEVE, PROBE_VNI << 8)
    own, to = ip_address(source.address).packed, ip_address(vtep.address).packed
    udp_bytes = mtu - (40 if _is_ipv6(vtep) else 20)
    udp = struct.pack("!HHHH", 49152, udp_port, udp_bytes, 0) + (header + _INNER).ljust(udp_bytes - 8, b"\0")
    if _is_ipv6(vtep):
        checked = _with_checksum(udp, 6, own, to, socket.IPPROTO_UDP)
        return _ethernet(source, vtep, vlan, ETH_P_IPV6, _ipv6(own, to, socket.IPPROTO_UDP, 64, checked))
    words = struct.pack("!BBHHHBBH", 0x45, 0, mtu, 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    head = words[:10] + struct.pack("!H", internet_checksum(words + own + to)) + own + to
    return _ethernet(source, vtep, vlan, ETH_P_IP, head + udp)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _is_ipv6(host: Host) -> bool:
    return ":" in host.address


def _ethernet(source: Host, target: Host, vlan: int | None, protocol: int, payload: bytes) -> bytes:
    tag = b"" if vlan is None else struct.pack("!HH", ETH_P_8021Q, vlan)
    return _mac(target.mac) + _mac(source.mac) + tag + struct.pack("!H", protocol) + payload


def _ipv6(source: bytes, target: bytes, protocol: int, hop_limit: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, hop_limit) + source + target + payload


def answerer(frame: bytes, askers: Collection[str], vlan: int | None = None) -> Host | None:
    """The host that answers a question by one of the addresses ``askers`` with ``frame``; ``None`` if this is not an
    answer. The MAC in an advertisement of IPv6 is that of its option (RFC 4861, 4.4), or else the sender's."""
    packet = _arp(frame, vlan, _ARP_REPLY)
    if packet:
        known = str(ip_address(packet[24:28])) in askers
        return Host(str(ip_address(packet[14:18])), packet[8:14].hex(":")) if known else None
    packet = _discovery(frame, vlan, _ADVERTISEMENT)
    if not packet or str(ip_address(packet[24:40])) not in askers or not packet[44] & _SOLICITED:
        return None
    option = packet[64:72]
    mac = option[2:8] if option[:2] == _TARGET_MAC else frame[6:12]
    return Host(str(ip_address(packet[48:64])), mac.hex(":"))


def _with_checksum(payload: bytes, at: int, source: bytes, target: bytes, protocol: int) -> bytes:
    """The payload of an IPv6 packet with its checksum at byte ``at``, where it has zeros (RFC 8200, 8.1)."""
    found = internet_checksum(source + target + struct.pack("!II", len(payload), protocol) + payload)
    return payload[:at] + struct.pack("!H", found or 0xFFFF) + payload[at + 2 :]


def _payload(frame: bytes, vlan: int | None, protocol: int) -> bytes:
    """What ``frame`` carries, or nothing if it has another tag than ``vlan`` or is of another protocol."""
    kind, tag, kind_within = struct.unpack_from("!HHH", frame.ljust(18, b"\0"), 12)
    if kind != ETH_P_8021Q:
        return frame[14:] if kind == protocol and vlan is None else b""
    # A tag with the number 0 gives only a priority (IEEE 802.1Q, 9.6).
    return frame[18:] if kind_within == protocol and (tag & 0xFFF) == (vlan or 0) else b""


def _arp(frame: bytes, vlan: int | None, operation: int) -> bytes:
    """The ARP packet, or nothing if ``frame`` does not carry one of this operation."""
    packet = _payload(frame, vlan, ETH_P_ARP)
    return packet if len(packet) >= 28 and packet[6:8] == bytes([0, operation]) else b""


def _discovery(frame: bytes, vlan: int | None, kind: int) -> bytes:
    """The IPv6 packet of neighbour discovery, or nothing if ``frame`` does not carry a message of this kind from a host
    on this link (RFC 4861, 7.1)."""
    packet = _payload(frame, vlan, ETH_P_IPV6)
    if len(packet) < 64 or packet[6:8] != bytes([socket.IPPROTO_ICMPV6, 255]) or packet[40:42] != bytes([kind, 0]):
        return b""
    return packet


class Ear(Protocol):
    def heard(self, seconds: float) -> list[bytes]:
        """The frames that ask for and tell MACs, with their tags, that the devices have passed since the last call, in
        both directions. Waits up to ``seconds`` for one. Raises UplinkError."""


class Sockets(Protocol):
    """Raw access to the devices of one network namespace. All methods raise UplinkError."""

    def listen(self, *devices: str) -> contextlib.AbstractContextManager[Ear]: ...

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
    def listen(self, *devices: str) -> Iterator[Ear]:
        """Listen on all devices. One that is missing is passed over while there is another."""
        found: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            for number, device in enumerate(devices, 1):
                try:
                    opened = in_namespace(self._namespace, partial(_neighbours_socket, device))
                    found.append(stack.enter_context(opened))
                except UplinkError:
                    if number == len(devices) and not found:
                        raise
            yield _SocketEar(found)

    def send(self, device: str, frame: bytes) -> None:
        def act() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
                sender.bind((device, 0))
                sender.send(frame)

        in_namespace(self._namespace, act)


def _neighbours_socket(device: str) -> socket.socket:
    """A socket that sees only the device's frames that ask for and tell MACs: it is bound last, when its filter is on.
    It is bound to ETH_P_ALL because a bridge or bond above the device takes frames before sockets of one protocol see
    them (net/core/dev.c, __netif_receive_skb_core)."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _ONLY_NEIGHBOURS))
        found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                         struct.pack("@HP", len(_ONLY_NEIGHBOURS), ctypes.addressof(program)))  # fmt: skip
        found.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        found.setblocking(False)
        found.bind((device, ETH_P_ALL))
    except OSError:
        found.close()
        raise
    return found


class _SocketEar:
    def __init__(self, heard: list[socket.socket]) -> None:
        self._sockets = heard

    def heard(self, seconds: float) -> list[bytes]:
        try:
            return [_frame(each) for each in select.select(self._sockets, [], [], max(0.0, seconds))[0]]
        except OSError as error:
            raise UplinkError(f"a packet socket: {error}") from error


def _frame(heard: socket.socket) -> bytes:
    frame, beside, _flags, _from = heard.recvmsg(2048, socket.CMSG_SPACE(_AUXDATA.size))
    return _as_on_the_wire(frame, beside)


def _as_on_the_wire(frame: bytes, beside: Iterable[tuple[int, int, bytes]]) -> bytes:
    """The frame with its tag, which the kernel takes off on arrival and tells of beside the frame (packet(7),
    PACKET_AUXDATA)."""
    for level, kind, data in beside:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _length, _captured, _mac_at, _net_at, tag, protocol = _AUXDATA.unpack(data)
            if status & _TP_STATUS_VLAN_VALID:
                return frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]
    return frame

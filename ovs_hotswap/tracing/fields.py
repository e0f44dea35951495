"""Takes a frame apart into the fields that Open vSwitch matches. This module is pure.

The fields have the names and groups of the datapath's flows (lib/odp-util.c, format_odp_key_attr), so that they can be
compared with these, and written as one for ``ofproto/trace``. A frame may be cut: what is missing is left out, as Open
vSwitch itself leaves it out of a packet that is too short (lib/flow.c, miniflow_extract).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
WITH_PORTS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
NO, FIRST, LATER = "no", "first", "later"  # fragments
_EXTENSIONS = frozenset({0, 43, 44, 51, 60, 135})  # of IPv6, as lib/flow.c, parse_ipv6_ext_hdrs__ follows them
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns")
_DISCOVERY = {135: "a neighbour solicitation", 136: "a neighbour advertisement", 133: "a router solicitation",
              134: "a router advertisement", 143: "a multicast listener report"}  # fmt: skip

Group = Mapping[str, int | str]
_NONE: Group = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a frame. ``groups``: by the name of a group, such as ``ipv4``; a group with one field has it under
    an empty name. Addresses are numbers. ``tags``: of VLANs, the outermost first, each with its protocol. ``length``:
    of the whole frame in bytes, as its own headers say it."""

    groups: Mapping[str, Group]
    tags: tuple[tuple[int, int], ...]
    length: int

    def get(self, group: str, name: str = "") -> int | str | None:
        return self.groups.get(group, _NONE).get(name)

    def number(self, group: str, name: str = "") -> int:
        """A field that is a number; 0 if the frame does not have it."""
        found = self.get(group, name)
        return found if isinstance(found, int) else 0

    @property
    def source_mac(self) -> str:
        return mac_text(self.number("eth", "src"))

    @property
    def target_mac(self) -> str:
        return mac_text(self.number("eth", "dst"))

    @property
    def kind(self) -> int:
        """The Ethernet type of what is inside the tags."""
        return self.number("eth_type")

    @property
    def addresses(self) -> tuple[str, str] | None:
        """Who sends and who is to receive, as IP addresses; of ARP the addresses that it is about."""
        if self.kind == IPV4 and "ipv4" in self.groups:
            return str(IPv4Address(self.number("ipv4", "src"))), str(IPv4Address(self.number("ipv4", "dst")))
        if self.kind == IPV6 and "ipv6" in self.groups:
            return str(IPv6Address(self.number("ipv6", "src"))), str(IPv6Address(self.number("ipv6", "dst")))
        if self.kind == ARP and "arp" in self.groups:
            return str(IPv4Address(self.number("arp", "sip"))), str(IPv4Address(self.number("arp", "tip")))
        return None

    @property
    def protocol(self) -> int | None:
        """The number of the protocol in IP; ``None`` if it is not IP."""
        found = self.get("ipv4", "proto") if self.kind == IPV4 else self.get("ipv6", "proto")
        return found if isinstance(found, int) else None

    @property
    def ports(self) -> tuple[int, int] | None:
        group = WITH_PORTS.get(self.protocol or 0)
        if group is None or group not in self.groups:
            return None
        return self.number(group, "src"), self.number(group, "dst")

    @property
    def begins(self) -> bool:
        """Whether it is the first packet of a TCP connection."""
        return self.protocol == TCP and self.number("tcp_flags") & 0x12 == 0x02


def mac_text(number: int) -> str:
    return number.to_bytes(6, "big").hex(":")


def dissect(frame: bytes) -> Fields:
    """Return the fields of a frame, which may be cut. Raises ValueError if it has no Ethernet header."""
    if len(frame) < 14:
        raise ValueError(f"a frame of {len(frame)} bytes has no Ethernet header")
    groups: dict[str, Group] = {"eth": {"src": _number(frame[6:12]), "dst": _number(frame[:6])}}
    at, tags = 12, list[tuple[int, int]]()
    kind = _number(frame[at : at + 2])
    while kind in (VLAN, QINQ) and len(frame) >= at + 6:
        tags.append((kind, _number(frame[at + 2 : at + 4])))
        at += 4
        kind = _number(frame[at : at + 2])
    groups["eth_type"] = {"": kind}
    inside, length = frame[at + 2 :], len(frame)
    read = {IPV4: _ipv4, IPV6: _ipv6, ARP: _arp}.get(kind)
    if read is not None and (said := read(inside, groups)) is not None:
        length = max(length, at + 2 + said)
    return Fields(groups, tuple(tags), length)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _arp(data: bytes, groups: dict[str, Group]) -> int | None:
    if len(data) < 28 or data[:6] != bytes([0, 1, 8, 0, 6, 4]):
        return None
    groups["arp"] = {"sip": _number(data[14:18]), "tip": _number(data[24:28]), "op": _number(data[6:8]),
                     "sha": _number(data[8:14]), "tha": _number(data[18:24])}  # fmt: skip
    return None


def _ipv4(data: bytes, groups: dict[str, Group]) -> int | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header, (total, fragment) = (data[0] & 15) * 4, struct.unpack_from("!2xH2xH", data)
    frag = NO if not fragment & 0x3FFF else LATER if fragment & 0x1FFF else FIRST
    groups["ipv4"] = {"src": _number(data[12:16]), "dst": _number(data[16:20]), "proto": data[9], "tos": data[1],
                      "ttl": data[8], "frag": frag}  # fmt: skip
    if frag != LATER and header >= 20:
        _transport(data[9], data[header:], groups)
    return int(total)


def _ipv6(data: bytes, groups: dict[str, Group]) -> int | None:
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    first, payload, following, hops = struct.unpack_from("!IHBB", data)
    at, frag = 40, NO
    while following in _EXTENSIONS and len(data) >= at + 8:
        before, following = following, data[at]
        if before == 44:
            offset = _number(data[at + 2 : at + 4])
            frag = LATER if offset & 0xFFF8 else FIRST if offset & 1 else frag
            at += 8
        else:
            at += (data[at + 1] + 2) * 4 if before == 51 else (data[at + 1] + 1) * 8  # RFC 4302, 2.2; RFC 8200, 4
        if frag == LATER:
            break
    groups["ipv6"] = {"src": _number(data[8:24]), "dst": _number(data[24:40]), "label": first & 0xFFFFF,
                      "proto": following, "tclass": first >> 20 & 0xFF, "hlimit": hops, "frag": frag}  # fmt: skip
    if frag != LATER:
        _transport(following, data[at:], groups)
    return 40 + int(payload)


def _transport(protocol: int, data: bytes, groups: dict[str, Group]) -> None:
    if protocol in WITH_PORTS and len(data) >= (14 if protocol == TCP else 8):
        source, target = struct.unpack_from("!HH", data)
        groups[WITH_PORTS[protocol]] = {"src": source, "dst": target}
        if protocol == TCP:
            groups["tcp_flags"] = {"": _number(data[12:14]) & 0xFFF}
    elif protocol in (ICMP, ICMPV6) and len(data) >= 8:
        groups["icmp" if protocol == ICMP else "icmpv6"] = {"type": data[0], "code": data[1]}
        if protocol == ICMPV6 and data[0] in (135, 136) and len(data) >= 24:
            groups["nd"] = {"target": _number(data[8:24]), **_link_address(data)}


def _link_address(data: bytes) -> Group:
    """The MAC in a message of neighbour discovery, if its first option has it (RFC 4861, 4.6.1)."""
    name = {1: "sll", 2: "tll"}.get(data[24]) if len(data) >= 32 else None
    return {} if name is None else {name: _number(data[26:32])}


# ---------------------------------------------------------------------------------------------------------- in words


def words(found: Fields) -> str:
    """Return what the frame is, as a person writes it."""
    tags = "".join(f"VLAN {tag & 0xFFF}, " for _, tag in found.tags)
    between = found.addresses
    if found.kind == ARP and between is not None:
        asks = found.number("arp", "op") == 1
        return tags + (f"ARP: who has {between[1]}, asks {between[0]}" if asks else
                       f"ARP: {between[0]} is at {mac_text(found.number('arp', 'sha'))}")  # fmt: skip
    if between is None:
        return f"{tags}Ethernet type {found.kind:#06x} from {found.source_mac} to {found.target_mac}"
    ends, ports = between, found.ports
    if ports is not None:
        ends = tuple(f"[{end}]:{port}" if ":" in end else f"{end}:{port}"
                     for end, port in zip(between, ports, strict=True))  # type: ignore[assignment]  # fmt: skip
    return f"{tags}{_protocol(found)} {ends[0]} to {ends[1]}"


def _protocol(found: Fields) -> str:
    group = WITH_PORTS.get(found.protocol or 0)
    part = {NO: "", FIRST: ", the first fragment of a packet", LATER: ", a later fragment of a packet"}.get(
        str(found.get("ipv4", "frag") or found.get("ipv6", "frag")), ""
    )
    if found.protocol == TCP and "tcp_flags" in found.groups:
        flags = found.number("tcp_flags")
        return f"TCP [{' '.join(name for bit, name in enumerate(_FLAGS) if flags >> bit & 1) or 'none'}]{part}"
    if group is not None:
        return group.upper() + part
    if "icmp" in found.groups:
        kind = found.number("icmp", "type")
        name = {8: "ping", 0: "answer to a ping", 3: "unreachable", 11: "time exceeded"}.get(kind, f"type {kind}")
        return f"ICMP ({name}){part}"
    if "icmpv6" in found.groups:
        kind = found.number("icmpv6", "type")
        name = {128: "ping", 129: "answer to a ping", **_DISCOVERY}.get(kind, f"type {kind}")
        return f"ICMPv6 ({name}){part}"
    return f"IP protocol {found.protocol}{part}"


# ----------------------------------------------------------------------------------------------- as a flow to ask about


def as_flow(found: Fields, in_port: str, tunnel: str = "", tags: tuple[tuple[int, int], ...] | None = None) -> str:
    """Return the fields as a flow of the datapath (lib/odp-util.c, parse_odp_key_mask_attr) for ``ofproto/trace``.
    ``in_port``: the datapath's number. ``tunnel``: the text of the group, if it came by one. ``tags``: those with which
    it came, if they are others than those that it has now."""
    parts = [tunnel] if tunnel else []
    parts.append(f"in_port({in_port})")
    parts.append(f"eth(src={found.source_mac},dst={found.target_mac})")
    inner = [f"eth_type({found.kind:#06x})", *_network(found)]
    for kind, tag in reversed(found.tags if tags is None else tags):
        # An Open vSwitch with vlan-limit 1 has no room for a tag within a tag: then the inner one is payload.
        inner = [f"eth_type({kind:#06x})", f"vlan(vid={tag & 0xFFF},pcp={tag >> 13})", f"encap({','.join(inner)})"]
    return ",".join([*parts, *inner])


def _network(found: Fields) -> list[str]:
    parts = list[str]()
    between = found.addresses
    if between is None:
        return parts
    source, target = between
    if found.kind == ARP:
        sha, tha = mac_text(found.number("arp", "sha")), mac_text(found.number("arp", "tha"))
        return [f"arp(sip={source},tip={target},op={found.number('arp', 'op')},sha={sha},tha={tha})"]
    ends, group = f"src={source},dst={target}", "ipv4" if found.kind == IPV4 else "ipv6"
    get = found.groups[group]
    if found.kind == IPV4:
        parts.append(f"ipv4({ends},proto={get['proto']},tos={get['tos']:#x},ttl={get['ttl']},frag={get['frag']})")
    else:
        parts.append(f"ipv6({ends},label={get['label']:#x},proto={get['proto']},tclass={get['tclass']:#x},"
                     f"hlimit={get['hlimit']},frag={get['frag']})")  # fmt: skip
    for name in WITH_PORTS.values():
        if name in found.groups:
            parts.append(f"{name}(src={found.number(name, 'src')},dst={found.number(name, 'dst')})")
    if "tcp_flags" in found.groups:
        parts.append(f"tcp_flags({found.number('tcp_flags'):#x})")
    for name in ("icmp", "icmpv6"):
        if name in found.groups:
            parts.append(f"{name}(type={found.number(name, 'type')},code={found.number(name, 'code')})")
    if "nd" in found.groups:
        ends = "".join(f",{name}={mac_text(int(value))}" for name, value in found.groups["nd"].items()
                       if name != "target")  # fmt: skip
        parts.append(f"nd(target={IPv6Address(found.number('nd', 'target'))}{ends})")
    return parts

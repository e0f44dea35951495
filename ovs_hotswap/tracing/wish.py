"""Which packets a trace is to show: the words of a user, as a test of a frame, as a match of OpenFlow and as a filter
of the kernel. This module is pure.

All three are made of the same terms. The test is exact. The kernel's filter keeps other packets from being copied to
this process, and the match, where a mirror can have one, keeps the switch from copying them at all; each lets through
at least what the test lets through.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from ovs_hotswap.diagnose.target import is_address, is_mac
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.tracing.fields import ARP, ICMP, ICMPV6, IPV4, IPV6, QINQ, SCTP, TCP, UDP, VLAN, Fields

PROTOCOLS: dict[str, tuple[int, int | None]] = {
    "tcp": (0, TCP), "udp": (0, UDP), "sctp": (0, SCTP), "icmp": (IPV4, ICMP), "icmp6": (IPV6, ICMPV6),
    "arp": (ARP, None), "ip": (IPV4, None), "ip6": (IPV6, None),
}  # fmt: skip
"""The words of `--proto`: the Ethernet type, 0 for both versions of IP, and the protocol in it."""
_EITHER = (IPV4, IPV6)


@dataclass(frozen=True, slots=True)
class Wish:
    """Packets from ``source`` to ``target``, each a MAC (lower case) or an IP address; ``None`` if any will do.
    ``proto``: a key of ``PROTOCOLS``, or the number of a protocol in IP. ``port``: of either end. ``answers``: also the
    packets of the other direction."""

    source: str | None = None
    target: str | None = None
    proto: str | None = None
    port: int | None = None
    answers: bool = False

    @property
    def everything(self) -> bool:
        return (self.source, self.target, self.proto, self.port) == (None, None, None, None)

    @property
    def ways(self) -> tuple[Wish, ...]:
        """The directions, each of which has no answers."""
        there = replace(self, answers=False)
        back = replace(there, source=self.target, target=self.source)
        return (there, back) if self.answers and there != back else (there,)

    def takes(self, found: Fields) -> bool:
        """Whether a frame is one of these packets."""
        return any(each._takes(found) for each in self.ways)

    def _takes(self, found: Fields) -> bool:
        ends = ((self.source, found.source_mac, 0), (self.target, found.target_mac, 1))
        for wanted, mac, number in ends:
            if wanted is not None and wanted != mac and wanted != (found.addresses or ("", ""))[number]:
                return False
        kinds, protocol = self.kinds, self.protocol
        if (kinds and found.kind not in kinds) or (protocol is not None and found.protocol != protocol):
            return False
        return self.port is None or self.port in (found.ports or ())

    @property
    def kinds(self) -> tuple[int, ...]:
        """The Ethernet types that the packets can have; none if any."""
        if self.proto is not None:
            kind = PROTOCOLS.get(self.proto, (0, None))[0]
            found: tuple[int, ...] = (kind,) if kind else _EITHER
        else:
            found = _EITHER if self.port is not None else ()
        addresses = [each for each in (self.source, self.target) if each is not None and not is_mac(each)]
        if not addresses:
            return found
        allowed = (IPV6,) if any(":" in each for each in addresses) else (IPV4, ARP)
        return tuple(kind for kind in found or allowed if kind in allowed)

    @property
    def protocol(self) -> int | None:
        if self.proto is None:
            return None
        return int(self.proto) if self.proto.isdecimal() else PROTOCOLS[self.proto][1]

    def text(self) -> str:
        """Return the wish in words."""
        parts = [] if self.proto is None else [self.proto]
        parts += [] if self.source is None else [f"from {self.source}"]
        parts += [] if self.target is None else [f"to {self.target}"]
        parts += [] if self.port is None else [f"port {self.port}"]
        return " ".join(parts or ["all packets"]) + (
            ", and the answers" if self.answers and not self.everything else ""
        )


def address(text: str) -> str | None:
    """Return a MAC or an IP address as ``Wish`` has it; ``None`` if ``text`` is neither."""
    if is_mac(text):
        return text.lower()
    return str(ip_address(text)) if is_address(text) else None


def checked(wish: Wish) -> Wish:
    """Return the wish. Raises ConfigError if no packet can be one of these."""
    pair = [each for each in (wish.source, wish.target) if each is not None and not is_mac(each)]
    if len({":" in each for each in pair}) > 1:
        raise ConfigError("one address is of IPv4 and the other of IPv6: no packet has both")
    if wish.port is not None and wish.proto is not None and wish.protocol not in (TCP, UDP, SCTP):
        raise ConfigError(f"packets of {wish.proto} have no ports", hint="leave out --port, or use --proto tcp or udp")
    if (wish.proto is not None or pair) and not wish.kinds:
        raise ConfigError(f"no packet of {wish.proto} has such an address", hint="leave out --proto")
    return wish


# --------------------------------------------------------------------------------------------- as a filter of a mirror


def mirror_filters(wish: Wish) -> tuple[str | None, ...]:
    """Return the matches, one for each mirror, which let through all of these packets; ``None`` for everything.

    Addresses and protocol are in them, and ports are not: each field that a mirror looks at makes the datapath's flows
    finer (ofproto/ofproto-dpif-xlate.c, mirror_packet), and a flow for each port would cost the VM more upcalls than
    the copies cost.
    """
    found = [_match(each, kind) for each in wish.ways for kind in each.kinds or (None,)]
    return tuple(dict.fromkeys(found)) if all(found) else (None,)


def _match(wish: Wish, kind: int | None) -> str | None:
    parts = [] if kind is None else [f"dl_type={kind:#06x}"]
    if wish.protocol is not None:
        parts.append(f"nw_proto={wish.protocol}")
    addresses = {IPV4: ("nw_src", "nw_dst"), IPV6: ("ipv6_src", "ipv6_dst"), ARP: ("arp_spa", "arp_tpa")}
    for number, (wanted, mac) in enumerate(((wish.source, "dl_src"), (wish.target, "dl_dst"))):
        if wanted is not None:
            name = mac if is_mac(wanted) else addresses[kind or IPV4][number]
            parts.append(f"{name}={wanted}")
    return ",".join(parts) or None


# ------------------------------------------------------------------------------------------------ as a kernel's filter

Instruction = tuple[int, int, int, int]
# Classic BPF (include/uapi/linux/bpf_common.h): load a word, half word or byte of the frame; load X with the length of
# an IPv4 header; load a half word at X; compare; return.
_WORD, _HALF, _BYTE, _HEADER, _AT_X, _EQUALS, _RETURN = 0x20, 0x28, 0x30, 0xB1, 0x48, 0x15, 0x06
_ALL = 0xFFFF
Term = tuple[tuple[Instruction, ...], int]
"""Instructions that load a value, and the value that it must be."""


def kernel_filter(wish: Wish) -> tuple[Instruction, ...]:
    """Return a program of classic BPF for frames as a packet socket sees them, without their outermost tag. It lets
    through all of these packets, and what it does not look into: frames with a second tag, and the ports in IPv6."""
    program: list[Instruction] = [
        (_HALF, 0, 0, 12),
        (_EQUALS, 1, 0, VLAN),
        (_EQUALS, 0, 1, QINQ),
        (_RETURN, 0, 0, _ALL),
    ]
    for each in wish.ways:
        for kind in each.kinds or (None,):
            ends = [None] if each.port is None or kind != IPV4 else [0, 2]
            for end in ends:
                program += _block([*_terms(each, kind), *_port(each, end)])
    return (*program, (_RETURN, 0, 0, 0))


def _block(terms: Sequence[Term]) -> list[Instruction]:
    """Return the instructions that accept a frame if all terms hold, and otherwise continue behind them."""
    left = sum(len(load) + 1 for load, _ in terms) + 1  # with the block's own return
    found: list[Instruction] = []
    for load, value in terms:
        left -= len(load) + 1
        found += [*load, (_EQUALS, 0, left, value)]
    return [*found, (_RETURN, 0, 0, _ALL)]


def _terms(wish: Wish, kind: int | None) -> Iterator[Term]:
    if kind is not None:
        yield ((_HALF, 0, 0, 12),), kind
    for wanted, mac_at, ipv4_at, arp_at, ipv6_at in ((wish.source, 6, 26, 28, 22), (wish.target, 0, 30, 38, 38)):
        if wanted is None:
            continue
        if is_mac(wanted):
            packed = bytes.fromhex(wanted.replace(":", ""))
            yield ((_WORD, 0, 0, mac_at),), int.from_bytes(packed[:4], "big")
            yield ((_HALF, 0, 0, mac_at + 4),), int.from_bytes(packed[4:], "big")
        elif kind in (IPV4, ARP):
            yield ((_WORD, 0, 0, ipv4_at if kind == IPV4 else arp_at),), int(IPv4Address(wanted))
        else:
            for number, word in enumerate(struct.unpack("!4I", IPv6Address(wanted).packed)):
                yield ((_WORD, 0, 0, ipv6_at + 4 * number),), word
    if wish.protocol is not None and kind == IPV4:
        yield ((_BYTE, 0, 0, 23),), wish.protocol


def _port(wish: Wish, end: int | None) -> Iterator[Term]:
    """The term for the port of the sender (``end`` 0) or of the receiver (2)."""
    if end is not None and wish.port is not None:
        yield ((_HEADER, 0, 0, 14), (_AT_X, 0, 0, 14 + end)), wish.port

"""The packets that make a switch's connection tracking have an entry, and what it does with each.

A switch cannot be given an entry. It makes one for a packet that a packet-out sends through ``ct(commit)``; the
direction of that packet becomes the original one (lib/conntrack.c, conn_not_found). Further packets, in either
direction, bring the entry to its state. No packet leaves the switch: the actions are one ``ct`` without a table, which
neither outputs nor recirculates (ofproto/ofproto-dpif-xlate.c, compose_conntrack_action).

Packets carry valid checksums, because the switch checks them (lib/conntrack.c, extract_l4), and their MAC addresses do
not matter. TCP numbers are invented, so the switch must not check them (``dpctl/ct-disable-tcp-seq-chk``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from itertools import product

from ovs_hotswap.checksums import crc32c, internet_checksum
from ovs_hotswap.clone.conntrack_entries import ICMP, ICMPV6, SCTP, TCP, UDP, WITH_PORTS, Entry, Tuple

HELPERS = frozenset({"ftp", "tftp"})  # those of lib/conntrack.c
_ETHERNET = {False: bytes.fromhex("0200000000020200000000010800"), True: bytes.fromhex("02000000000202000000000186dd")}
_REQUESTS = {ICMP: (8, 13, 15), ICMPV6: (128,)}  # lib/conntrack-icmp.c takes only these as the first packet
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_SENT, _ACKNOWLEDGED = 77_777_777, 99_999_999  # the original end's numbers; the other end's are these exchanged
_WINDOW = 65535
# The states that lib/conntrack-tcp.c uses (lib/ct-dpif.h, CT_DPIF_TCP_STATES), in their order.
_CLOSED, _SYN_SENT, _ESTABLISHED, _CLOSING, _FIN_WAIT_2, _TIME_WAIT = (
    "CLOSED", "SYN_SENT", "ESTABLISHED", "CLOSING", "FIN_WAIT_2", "TIME_WAIT"
)  # fmt: skip
_ORDER = {state: rank for rank, state in enumerate(
    (_CLOSED, _SYN_SENT, _ESTABLISHED, _CLOSING, _FIN_WAIT_2, _TIME_WAIT))}  # fmt: skip
# Without a timeout policy, an entry of UDP, ICMP or another protocol that has been answered has at most this many
# seconds left, and one that has not been answered begins with 60 (lib/conntrack-tp.c).
_ANSWERED_S = 30

Packet = tuple[bytes, str]
"""An Ethernet frame, and the OpenFlow actions for it."""
TcpStep = tuple[bool, int]
"""A packet of the original end (``False``) or of the other one, and its TCP flags."""


def obstacle(entry: Entry, *, sctp_ports: bool = True) -> str | None:
    """Return why an entry cannot be made by packets, in words that fit several entries; ``None`` if it can.

    ``sctp_ports``: the new side tracks SCTP with its ports, as OVS 3.2 and later do.
    """
    original, reply = entry.original, entry.reply
    if entry.helper is not None and entry.helper not in HELPERS:
        return f"the helper {entry.helper} is not known"
    if entry.protocol in WITH_PORTS and not (original.source_port and original.target_port):
        return "they have no ports (OVS 3.1 tracks SCTP without ports)"
    if entry.protocol == SCTP and not sctp_ports:
        return "the new side tracks SCTP without ports"
    if original.icmp is not None and (original.icmp[1] not in _REQUESTS[entry.protocol] or reply.icmp is None):
        return "they did not begin with an ICMP request"
    if original.icmp is not None and reply.icmp is not None and original.icmp[0] != reply.icmp[0]:
        return "the identifier of ICMP is translated"
    if _source_changed(entry) and _target_changed(entry):
        return "source and destination are both translated"
    if entry.protocol == TCP and tcp_steps(entry.states or ("", "")) is None:
        return f"the TCP states {' and '.join(entry.states or ('unknown',))} cannot be reached"
    return None


def reduction(entry: Entry) -> str | None:
    """Return what an entry loses when it is made again; ``None`` if that is only the time until it expires and, for
    TCP, the sequence numbers."""
    if entry.parent is not None:
        return "they are no longer related to the connections that announced them"
    if entry.helper == "ftp" and (_source_changed(entry) or _target_changed(entry)):
        return "FTP's commands were translated, and the numbers that this shifted are no longer corrected"
    return None


def packets(entry: Entry, *, default_timeouts: bool = True) -> list[Packet]:
    """Return the packets that make ``entry``, in their order.

    ``default_timeouts``: its zone has no timeout policy, so that the time which is left shows that it was not answered
    yet. If it may have been, it is made as one that was. Call it only for entries without an ``obstacle``.
    """
    commit, look = _commit(entry), f"ct(zone={entry.zone})"
    if entry.protocol == TCP:
        steps = tcp_steps(entry.states or ("", "")) or ()
        found = [(_tcp(entry.reply if back else entry.original, back, flags), look) for back, flags in steps]
        return [(found[0][0], commit), *found[1:]]
    made = [(frame(entry.protocol, entry.original), commit)]
    if not default_timeouts or entry.timeout is None or entry.timeout <= _ANSWERED_S:
        made.append((frame(entry.protocol, entry.reply), look))
    return made


def frame(protocol: int, packet: Tuple) -> bytes:
    """Return a packet of ``packet``'s direction, with as little data as its protocol allows; not for TCP."""
    if packet.icmp is not None:
        identifier, kind, code = packet.icmp
        return _frame(protocol, packet, struct.pack("!BBHHH", kind, code, 0, identifier, 0), 2)
    ports = struct.pack("!HH", packet.source_port, packet.target_port)
    if protocol == UDP:
        return _frame(protocol, packet, ports + struct.pack("!HH", 8, 0), 6)
    if protocol == SCTP:  # a DATA chunk with one byte (RFC 9260, 3.3.1)
        chunk = struct.pack("!BBHIHHIB3x", 0, 3, 17, 1, 0, 0, 0, 0)
        checked = crc32c(ports + bytes(8) + chunk)
        return _frame(protocol, packet, ports + bytes(4) + struct.pack("<I", checked) + chunk)
    return _frame(protocol, packet, bytes(8))


@cache
def tcp_steps(states: tuple[str, str]) -> tuple[TcpStep, ...] | None:
    """Return the shortest row of packets that leads to the states of both ends, or ``None`` if there is none.

    The first one is an ACK of the original end: the switch takes it for one of a connection that it has not seen
    begin (lib/conntrack-tcp.c, tcp_valid_new).
    """
    begin = (_SYN_SENT, _CLOSED)
    known: dict[tuple[str, str], tuple[TcpStep, ...]] = {begin: ((False, _ACK),)}
    waiting = [begin]
    for now in waiting:
        for flags, back in product((_ACK, _FIN | _ACK, _RST | _ACK, _SYN), (True, False)):
            after = _after(now, back, flags)
            if after not in known:
                known[after] = (*known[now], (back, flags))
                waiting.append(after)
    return known.get(states)


def _after(states: tuple[str, str], back: bool, flags: int) -> tuple[str, str]:
    """Return the states after a packet whose numbers are not checked (lib/conntrack-tcp.c, tcp_conn_update)."""
    sender, receiver = reversed(states) if back else states
    sender = max(sender, _SYN_SENT, key=_ORDER.__getitem__)
    if flags & _FIN:
        sender = max(sender, _CLOSING, key=_ORDER.__getitem__)
    if flags & _ACK:
        receiver = {_SYN_SENT: _ESTABLISHED, _CLOSING: _FIN_WAIT_2}.get(receiver, receiver)
    if flags & _RST:
        sender = receiver = _TIME_WAIT
    return (receiver, sender) if back else (sender, receiver)


def _commit(entry: Entry) -> str:
    parts = ["commit", f"zone={entry.zone}", *_translation(entry)]
    if entry.helper is not None:
        parts.append(f"alg={entry.helper}")
    fields = [f"set_field:{value:#x}->{name}" for value, name in ((entry.mark, "ct_mark"), (entry.labels, "ct_label"))
              if value]  # fmt: skip
    if fields:
        parts.append(f"exec({','.join(fields)})")
    return f"ct({','.join(parts)})"


def _translation(entry: Entry) -> Iterator[str]:
    """A range of one address and one port is the only one that the switch tries (lib/conntrack.c,
    nat_get_unique_tuple)."""
    reply = entry.reply
    if _source_changed(entry):
        yield f"nat(src={_end(entry.protocol, reply.target, reply.target_port)})"
    elif _target_changed(entry):
        yield f"nat(dst={_end(entry.protocol, reply.source, reply.source_port)})"


def _source_changed(entry: Entry) -> bool:
    original, reply = entry.original, entry.reply
    return (reply.target, reply.target_port) != (original.source, original.source_port)


def _target_changed(entry: Entry) -> bool:
    original, reply = entry.original, entry.reply
    return (reply.source, reply.source_port) != (original.target, original.target_port)


def _end(protocol: int, address: str, port: int) -> str:
    if protocol not in WITH_PORTS:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tcp(packet: Tuple, back: bool, flags: int) -> bytes:
    numbers = (_ACKNOWLEDGED, _SENT) if back else (_SENT, _ACKNOWLEDGED)
    ports = packet.source_port, packet.target_port
    return _frame(TCP, packet, struct.pack("!HHIIBBHHH", *ports, *numbers, 5 << 4, flags, _WINDOW, 0, 0), 16)


def _frame(protocol: int, packet: Tuple, payload: bytes, checksum_at: int | None = None) -> bytes:
    """Return the frame of an IP packet with ``payload``, whose checksum, if it is one with the addresses (RFC 8200,
    8.1), or ICMP's, belongs at byte ``checksum_at``."""
    ends = ip_address(packet.source).packed + ip_address(packet.target).packed
    if checksum_at is not None:
        pseudo = b"" if protocol == ICMP else ends + struct.pack("!II", len(payload), protocol)
        checked = internet_checksum(pseudo + payload) or 0xFFFF
        payload = payload[:checksum_at] + struct.pack("!H", checked) + payload[checksum_at + 2 :]
    if packet.ipv6:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
        header = header[:10] + struct.pack("!H", internet_checksum(header + ends)) + ends
    return _ETHERNET[packet.ipv6] + header + payload

"""A connection tracking that exists only in a test: it takes frames with actions, and prints its entries.

It follows lib/conntrack.c and lib/conntrack-tcp.c of OVS for frames of packet-outs, with TCP's numbers unchecked. A
frame that OVS would not track (a wrong checksum or length) is a fault of the test.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address

from ovs_hotswap.checksums import crc32c, internet_checksum

_ACTIONS = re.compile(
    r"ct\((?P<commit>commit,)?zone=(?P<zone>\d+)"
    r"(?:,nat\((?P<kind>src|dst)=(?P<to>[^)]*)\))?(?:,alg=(?P<alg>\w+))?"
    r"(?:,exec\((?P<set>[^)]*)\))?\)"
)
_NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_ORDER = ["CLOSED", "SYN_SENT", "ESTABLISHED", "CLOSING", "FIN_WAIT_2", "TIME_WAIT"]
_REPLIES = {8: 0, 13: 14, 15: 16, 128: 129}
End = tuple[str, int]


@dataclass(frozen=True)
class Key:
    zone: int
    protocol: int
    source: End
    target: End
    icmp: tuple[int, int] | None = None

    def reversed(self) -> Key:
        icmp = None if self.icmp is None else (self.icmp[0], _REPLIES[self.icmp[1]])
        return Key(self.zone, self.protocol, self.target, self.source, icmp)

    def text(self) -> str:
        ends = f"src={self.source[0]},dst={self.target[0]}"
        if self.icmp is not None:
            return f"{ends},id={self.icmp[0]},type={self.icmp[1]},code=0"
        return f"{ends},sport={self.source[1]},dport={self.target[1]}"


@dataclass
class Connection:
    key: Key
    reply: Key
    mark: int = 0
    labels: int = 0
    helper: str | None = None
    states: tuple[str, str] = ("SYN_SENT", "CLOSED")
    answered: bool = False

    def line(self) -> str:
        parts = [_NAMES.get(self.key.protocol, str(self.key.protocol)), f"orig=({self.key.text()})"]
        parts += [f"reply=({self.reply.text()})", "id=3405691582"]
        parts += [f"zone={self.key.zone}"] * (self.key.zone != 0)
        parts.append(f"timeout={29 if self.answered else 59}")
        parts += [f"mark={self.mark}"] * (self.mark != 0) + [f"labels={self.labels:#x}"] * (self.labels != 0)
        if self.key.protocol == 6:
            parts.append(f"protoinfo=(state_orig={self.states[0]},state_reply={self.states[1]},flags_orig=BE_LIBERAL)")
        return ",".join(parts + ([f"helper={self.helper}"] if self.helper else []))


class Conntrack:
    def __init__(self) -> None:
        self.connections: list[Connection] = []

    def dump(self) -> str:
        return "".join(f"{each.line()}\n" for each in self.connections)

    def packet_out(self, frame: bytes, actions: str) -> None:
        action = _ACTIONS.fullmatch(actions)
        assert action, actions  # one ct() and nothing that outputs, sends on or recirculates
        key, flags = _read(frame, int(action["zone"]))
        known = next((each for each in self.connections if key in (each.key, each.reply)), None)
        if known is not None:
            track(known, key == known.reply, flags)
        elif action["commit"]:
            self.connections.append(self._new(key, action))

    def _new(self, key: Key, action: re.Match[str]) -> Connection:
        reply = key.reversed()
        if action["to"]:
            with_port = key.protocol in (6, 17, 132)
            address, _, port = action["to"].rpartition(":") if with_port else (action["to"], "", "0")
            end = (address.strip("[]"), int(port))
            reply = replace(reply, target=end) if action["kind"] == "src" else replace(reply, source=end)
        fields = dict(each.split("->")[::-1] for each in (action["set"] or "").split(",") if each)
        values = {name: int(text.removeprefix("set_field:"), 16) for name, text in fields.items()}
        return Connection(key, reply, values.get("ct_mark", 0), values.get("ct_label", 0), action["alg"])


def track(connection: Connection, back: bool, flags: int) -> None:
    connection.answered |= back
    sender, receiver = connection.states[::-1] if back else connection.states
    sender = _later(sender, "SYN_SENT")
    if flags & 1:  # FIN
        sender = _later(sender, "CLOSING")
    if flags & 16:  # ACK
        receiver = {"SYN_SENT": "ESTABLISHED", "CLOSING": "FIN_WAIT_2"}.get(receiver, receiver)
    if flags & 4:  # RST
        sender = receiver = "TIME_WAIT"
    connection.states = (receiver, sender) if back else (sender, receiver)


def _later(one: str, other: str) -> str:
    return max(one, other, key=_ORDER.index)


def _read(frame: bytes, zone: int) -> tuple[Key, int]:
    """The key and the TCP flags of a frame whose checksums and lengths are right."""
    packet = frame[14:]
    if frame[12:14] == b"\x08\x00":
        (length,) = struct.unpack_from("!H", packet, 2)
        assert (packet[0], length, internet_checksum(packet[:20])) == (0x45, len(packet), 0)
        protocol, ends, payload = packet[9], packet[12:20], packet[20:]
    else:
        assert (frame[12:14], packet[0] >> 4) == (b"\x86\xdd", 6)
        (length,) = struct.unpack_from("!H", packet, 4)
        protocol, ends, payload = packet[6], packet[8:40], packet[40:]
        assert length == len(payload)
    half = len(ends) // 2
    source, target = str(ip_address(ends[:half])), str(ip_address(ends[half:]))
    pseudo = b"" if protocol == 1 else ends + struct.pack("!II", len(payload), protocol)
    if protocol in (1, 6, 17, 58):
        assert internet_checksum(pseudo + payload) == 0
    if protocol == 132:
        (checksum,) = struct.unpack_from("<I", payload, 8)
        assert crc32c(payload[:8] + bytes(4) + payload[12:]) == checksum
    if protocol in (1, 58):
        kind, code, _, identifier, _ = struct.unpack("!BBHHH", payload)
        assert code == 0
        return Key(zone, protocol, (source, 0), (target, 0), (identifier, kind)), 0
    ports = struct.unpack_from("!HH", payload) if protocol in (6, 17, 132) else (0, 0)
    assert protocol not in (6, 17, 132) or all(ports)
    return Key(zone, protocol, (source, ports[0]), (target, ports[1])), payload[13] if protocol == 6 else 0

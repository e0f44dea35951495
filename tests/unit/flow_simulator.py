"""A small interpreter of the flow syntax that the overlay's tables use, written from the OpenFlow 1.4 specification.

It reads the very lines that go to ovs-ofctl and shares no code with what renders them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

LOCAL = -2
_RESERVED = {"LOCAL": LOCAL}
# Fields of UDP packets, with the version of IP that they ask for; 0 is either. A packet may have tags before it.
_OF_UDP = {"udp": 4, "nw_dst": 4, "udp6": 6, "ipv6_dst": 6, "tp_dst": 0}


@dataclass(frozen=True)
class Packet:
    """``tags``: (TPID, VLAN ID), outermost first. ``udp``: (destination address, destination port) of an IP packet."""

    src: str
    dst: str
    tags: tuple[tuple[int, int], ...] = ()
    payload: int = 0
    udp: tuple[str, int] | None = None
    tun_id: int = 0
    tun_dst: str = ""


@dataclass(frozen=True)
class Entry:
    priority: int
    match: tuple[tuple[str, str], ...]
    actions: tuple[str, ...]
    cookie: int


class Pipeline:
    """One bridge. ``hits`` counts packets per cookie, as the bridge's own counters do. ``samples`` are the packets that
    the action sample looks at, with the action's arguments."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.tables: dict[int, list[Entry]] = {}
        self.hits: dict[int, int] = {}
        self.samples: list[tuple[dict[str, str], Packet]] = []
        for line in lines:
            head, _, actions = line.partition(" actions=")
            pairs = [tuple(item.partition("=")[::2]) for item in head.split(",")]
            fields = {key: value for key, value in pairs}
            table, priority = int(fields.pop("table")), int(fields.pop("priority"))
            cookie = int(fields.pop("cookie"), 16)
            entry = Entry(priority, tuple(fields.items()), tuple(re.findall(r"[^,(]+(?:\([^)]*\))?", actions)), cookie)
            self.tables.setdefault(table, []).append(entry)
        for entries in self.tables.values():
            entries.sort(key=lambda entry: -entry.priority)

    def receive(self, port: int, packet: Packet) -> list[tuple[int, Packet]]:
        """The (port, packet) pairs that leave the bridge for a packet that came in by ``port``."""
        run = _Run(self, port, packet)
        run.lookup(0)
        return run.sent


class _Run:
    def __init__(self, pipeline: Pipeline, port: int, packet: Packet) -> None:
        self.pipeline = pipeline
        self.port = port
        self.packet = packet
        self.metadata = 0
        self.registers = {"reg0": 0}
        self.sent: list[tuple[int, Packet]] = []

    def lookup(self, table: int) -> None:
        hit = [entry for entry in self.pipeline.tables.get(table, []) if all(self.holds(*item) for item in entry.match)]
        if not hit:
            return
        assert len(hit) == 1 or hit[0].priority > hit[1].priority, f"ambiguous: {hit}"
        self.pipeline.hits[hit[0].cookie] = self.pipeline.hits.get(hit[0].cookie, 0) + 1
        following = None
        for action in hit[0].actions:
            following = self.act(action) or following
        if following is not None:  # goto_table takes effect after the actions of this table
            self.lookup(following)

    def holds(self, field: str, value: str) -> bool:
        packet = self.packet
        if field == "in_port":
            return self.port == _number(value)
        if field == "dl_dst" and "/" in value:
            want, mask = (int(part.replace(":", ""), 16) for part in value.split("/"))
            return int(packet.dst.replace(":", ""), 16) & mask == want
        if field == "dl_vlan":
            return bool(packet.tags) and packet.tags[0][1] == int(value)
        if field in _OF_UDP and (packet.udp is None or _OF_UDP[field] not in (0, _version(packet.udp[0]))):
            return False
        have = {
            "dl_src": packet.src, "dl_dst": packet.dst, "tun_id": packet.tun_id, "metadata": self.metadata,
            "nw_dst": packet.udp and packet.udp[0], "ipv6_dst": packet.udp and packet.udp[0],
            "tp_dst": packet.udp and packet.udp[1], "udp": "", "udp6": "", **self.registers,
        }  # fmt: skip
        return str(have[field]) == value

    def act(self, action: str) -> int | None:
        name, _, value = action.partition(":")
        if name == "goto_table":
            return int(value)
        if name == "write_metadata":
            self.metadata = int(value)
        elif name == "set_field":
            self.assign(*value.split("->"))
        elif name == "push_vlan":
            self.packet = replace(self.packet, tags=((int(value, 16), 0), *self.packet.tags))
        elif name == "pop_vlan":
            assert self.packet.tags, "pop_vlan of an untagged packet"
            self.packet = replace(self.packet, tags=self.packet.tags[1:])
        elif bundle := re.fullmatch(r"bundle\(eth_src,0,active_backup,ofport,members:(\d+)[\d,]*\)", action):
            self.act(f"output:{bundle[1]}")  # the links of all members are up here
        elif name == "output" or name in _RESERVED:
            port = _number(value or name)
            # OpenFlow would suppress this output (section 5.6), but nothing would suppress the peer link's copy.
            assert port != self.port, "output to the port of arrival"
            self.sent.append((port, self.packet))
        elif sample := re.fullmatch(r"sample\((.*)\)", action):
            given = dict(each.partition("=")[::2] for each in sample[1].split(","))
            self.pipeline.samples.append((given, self.packet))
        elif resubmit := re.fullmatch(r"resubmit\(,(\d+)\)", action):
            self.lookup(int(resubmit[1]))
        else:
            assert action == "drop", action
        return None

    def assign(self, value: str, field: str) -> None:
        if field in self.registers:
            self.registers[field] = int(value)
        elif field == "tun_id":
            self.packet = replace(self.packet, tun_id=int(value))
        elif field in ("tun_dst", "tun_ipv6_dst"):
            assert (":" in value) is (field == "tun_ipv6_dst"), f"{field} of {value}"
            self.packet = replace(self.packet, tun_dst=value)
        elif field == "vlan_vid":
            assert int(value) & 0x1000, "vlan_vid without OFPVID_PRESENT"
            self.packet = replace(
                self.packet, tags=((self.packet.tags[0][0], int(value) & 0xFFF), *self.packet.tags[1:])
            )
        else:
            raise AssertionError(f"set_field of {field}")


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _number(port: str) -> int:
    return _RESERVED[port] if port in _RESERVED else int(port)

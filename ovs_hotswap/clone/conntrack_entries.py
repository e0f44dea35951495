"""Entries of the connection tracking of a switch, as ``dpctl/dump-conntrack -m -s`` prints them.

The format is the same from OVS 3.1 to 3.7 (lib/ct-dpif.c, ct_dpif_format_entry). With ``-m`` it has the TCP state of
each end, with ``-s`` the seconds until an entry expires. It has no sequence numbers and no counters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
# lib/ct-dpif.c, ct_dpif_format_ipproto; other protocols are printed as numbers.
PROTOCOLS = {"icmp": ICMP, "igmp": 2, "tcp": TCP, "udp": UDP, "dccp": 33, "icmpv6": ICMPV6, "sctp": SCTP,
             "udplite": 136}  # fmt: skip
WITH_PORTS = frozenset({TCP, UDP, SCTP})
_LINE = re.compile(r"(?P<protocol>\w+),orig=\((?P<original>[^()]*)\),reply=\((?P<reply>[^()]*)\)(?P<rest>.*)")
_FIELD = re.compile(r",(\w+)=(?:\(([^()]*)\)|([^,()]*))")
_EXPECTED = re.compile(r"\w+,orig=\(")


@dataclass(frozen=True, slots=True)
class Tuple:
    """Packets of one direction: addresses, and ports or what ICMP has instead of them.

    Ports are 0 for protocols that the switch tracks without ports. ``icmp`` is the identifier, the type and the code.
    """

    source: str
    target: str
    source_port: int = 0
    target_port: int = 0
    icmp: tuple[int, int, int] | None = None

    @property
    def ipv6(self) -> bool:
        return ":" in self.source


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection. ``protocol`` is the number of RFC 5237, ``reply`` the tuple of the answers, which shows address
    translation. ``states`` are the TCP states of the ends that send ``original`` and ``reply``. ``helper`` is ``ftp``
    or ``tftp``; ``parent`` the tuple of the connection that announced this one; ``timeout`` is in seconds. The last two
    are not compared, because they cannot be carried over."""

    protocol: int
    original: Tuple
    reply: Tuple
    zone: int = 0
    mark: int = 0
    labels: int = 0
    states: tuple[str, str] | None = None
    helper: str | None = None
    parent: str | None = field(default=None, compare=False)
    timeout: int | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        return self.zone, self.protocol, self.original

    @property
    def reply_key(self) -> Key:
        return self.zone, self.protocol, self.reply

    def __str__(self) -> str:
        """A short text for a message."""
        names = {number: name for name, number in PROTOCOLS.items()}
        ports = (f":{self.original.source_port}", f":{self.original.target_port}")
        source, target = ports if self.protocol in WITH_PORTS else ("", "")
        zone = f" in zone {self.zone}" if self.zone else ""
        protocol = names.get(self.protocol, f"protocol {self.protocol}")
        return f"{protocol} {self.original.source}{source} to {self.original.target}{target}{zone}"


Key = tuple[int, int, Tuple]


@dataclass(frozen=True, slots=True)
class Dump:
    """``unread`` are lines that are no entry as it is known here."""

    entries: tuple[Entry, ...] = ()
    unread: tuple[str, ...] = ()


def parse_dump(text: str) -> Dump:
    entries, unread = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            entries.append(_entry(line))
        except (KeyError, ValueError):
            unread.append(line)
    return Dump(tuple(entries), tuple(unread))


def count_expectations(text: str) -> int:
    """Return how many connections helpers wait for, from ``dpctl/dump-conntrack-exp`` (OVS 3.2 and later)."""
    return sum(_EXPECTED.match(line) is not None for line in text.splitlines())


def _entry(line: str) -> Entry:
    """Raise KeyError or ValueError if the line is no entry."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(line)
    rest = {name: within or plain for name, within, plain in _FIELD.findall(found["rest"])}
    protocol = found["protocol"]
    number = int(protocol) if protocol.isdecimal() else PROTOCOLS[protocol]
    states = None
    if number == TCP:
        ends = _fields(rest["protoinfo"])
        states = ends["state_orig"], ends["state_reply"]
    return Entry(
        number, _tuple(found["original"]), _tuple(found["reply"]), int(rest.get("zone", 0)), int(rest.get("mark", 0)),
        int(rest.get("labels", "0x0"), 16), states, rest.get("helper"), rest.get("parent"),
        int(rest["timeout"]) if "timeout" in rest else None,
    )  # fmt: skip


def _tuple(text: str) -> Tuple:
    found = _fields(text)
    ends = str(ip_address(found["src"])), str(ip_address(found["dst"]))
    if "id" in found:
        return Tuple(*ends, icmp=(_number(found["id"]), _number(found["type"], 0xFF), _number(found["code"], 0xFF)))
    return Tuple(*ends, _number(found["sport"]), _number(found["dport"]))


def _number(text: str, most: int = 0xFFFF) -> int:
    if not 0 <= (number := int(text)) <= most:
        raise ValueError(text)
    return number


def _fields(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``missing``: only the active side has it. ``changed``: both sides have it, the active's first, and it differs.
    ``extra``: only the new side has it."""

    missing: tuple[Entry, ...]
    changed: tuple[tuple[Entry, Entry], ...]
    extra: tuple[Entry, ...]


def compare(active: Iterable[Entry], new: Iterable[Entry]) -> Comparison:
    """Compare two dumps. A connection is the same one if the new side would find it by its packets, even if it knows
    the answers as the original direction."""
    ours = {entry.key: entry for entry in active}
    theirs = {entry.key: entry for entry in new}
    answers = {entry.reply_key for entry in theirs.values()}
    return Comparison(
        tuple(entry for key, entry in ours.items() if key not in theirs and key not in answers),
        tuple((entry, theirs[key]) for key, entry in ours.items() if key in theirs and theirs[key] != entry),
        tuple(_extra(ours, theirs)),
    )


def _extra(ours: dict[Key, Entry], theirs: dict[Key, Entry]) -> Iterator[Entry]:
    answers = {entry.reply_key for entry in ours.values()}
    return (entry for key, entry in theirs.items() if key not in ours and key not in answers)

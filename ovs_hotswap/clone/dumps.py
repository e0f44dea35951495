"""What ``ovs-ofctl`` prints of a bridge, as plain data: TLV map, meters, groups, flows, ports and tables.

This module is pure. The texts are those of OVS 2.13 to 3.5 (lib/ofp-*.c), always printed by the same ovs-ofctl for both
instances and in the same version of OpenFlow, so that equal things have equal texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ovs_hotswap.overlay.tables import cookie_kind

_WIRE = 0x6F76736877  # the cookies of wire mode without their last 16 bits (wire.mirror_flows)
DEFAULT_PRIORITY = 0x8000  # OpenFlow's, which ovs-ofctl does not print
_NUMBER = re.compile(
    r"(cookie|duration|table|table_id|n_packets|n_bytes|idle_timeout|hard_timeout|importance|idle_age|hard_age)"
    r"=([^,]*), "
)
_FLAG = re.compile(
    r"(send_flow_rem|check_overlap|reset_counts|no_packet_counts|no_byte_counts|allow_hidden_fields|no_readonly_table) "
)
# The flags of a flow that are copied. The switch keeps one more (include/openvswitch/ofp-flow.h, OFPUTIL_FF_STATE):
# with `check_overlap` the new side would refuse a flow that overlaps another one, depending on their order.
_KEPT_FLAGS = frozenset({"send_flow_rem", "no_packet_counts", "no_byte_counts", "reset_counts"})
# OpenFlow 1.0 has one of them, and gives `reset_counts` to each flow that is added (lib/ofp-flow.c,
# ofputil_decode_flow_mod_flags).
_LEGACY_FLAGS = frozenset({"send_flow_rem"})
# Actions of OpenFlow 1.0 that a later version has no exact form for (lib/ofp-actions.c, encode_SET_VLAN_VID and
# others): it shows the first two as push_vlan, which puts a second tag on a tagged frame; for the others it demands a
# match on the protocol.
_LEGACY = re.compile(r"(?:^|[,(])(?:mod_vlan_vid|mod_vlan_pcp|mod_nw_\w+|mod_tp_\w+|enqueue)[:(]")
_MAYBE_LEGACY = re.compile(r"(?:^|[,(])(?:mod_|enqueue|set_queue|push_vlan|set_field)")
_PRIORITY = re.compile(r"priority=(\d+)(?:,|$)")
_GROUP = re.compile(r"group_id=(\d+),(.*)")
_METER = re.compile(r"meter=(\S+) (.*?)bands=\s*(.*)", re.DOTALL)
_TLV = re.compile(r"^\s*(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+(\d+)\s+(tun_metadata\d+)\s*$", re.MULTILINE)
_PORT = re.compile(r"^ (\w+)\([^\n]*\n +config: +(\S[^\n]*)$", re.MULTILINE)
_TABLE = re.compile(
    r"^  table (\d+):\n +eviction=(\w+)[^\n]*\n +vacancy=(\w+)(?: vacancy_down=(\d+)% vacancy_up=(\d+)%)?", re.MULTILINE
)
_VERSION = re.compile(r"\(OF1\.(\d)\)")
_UNREADABLE = "***"  # lib/ofp-print.c: "***decode error", for what this ovs-ofctl does not know

PORT_FLAGS = {"NO_STP": "no-stp", "NO_RECV": "no-receive", "NO_RECV_STP": "no-receive-stp", "NO_FLOOD": "no-flood",
              "NO_FWD": "no-forward", "NO_PACKET_IN": "no-packet-in", "PORT_DOWN": "down"}  # fmt: skip
"""The flags of a port (lib/ofp-port.c), and the words that set them with ``ovs-ofctl mod-port``."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What tells a flow from all others. ``match``: without the priority."""

    table: int
    priority: int
    match: str

    @property
    def text(self) -> str:
        return f"table={self.table},priority={self.priority}{',' if self.match else ''}{self.match}"


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow. ``idle`` and ``hard`` are its timeouts in seconds, 0 for none; ``age`` how long it has been there.

    ``legacy``: whether it has an action that only OpenFlow 1.0 has an exact form for. It is then written so."""

    key: Key
    actions: str
    cookie: int = 0
    idle: int = 0
    hard: int = 0
    importance: int = 0
    flags: frozenset[str] = frozenset()
    legacy: bool = False
    age: float = field(default=0.0, compare=False)

    @property
    def text(self) -> str:
        """The flow as ``ovs-ofctl`` takes it."""
        numbers = {"idle_timeout": self.idle, "hard_timeout": self.hard, "importance": self.importance}
        parts = [self.key.text, *(f"{name}={value}" for name, value in numbers.items() if value), *sorted(self.flags)]
        return f"cookie={self.cookie:#x},{','.join(parts)},actions={self.actions}"

    @property
    def timed(self) -> bool:
        return bool(self.idle or self.hard)

    def kept(self) -> Flow:
        """Return the flow without timeouts: until the cut no packet renews it on the new side."""
        return replace(self, idle=0, hard=0)

    def armed(self) -> Flow:
        """Return the flow with the time that it has left. When it was last used is not carried over: an idle one lives
        on for its whole timeout."""
        return replace(self, hard=max(1, self.hard - math.floor(self.age)) if self.hard else 0)


@dataclass(frozen=True, slots=True)
class Tlv:
    """One mapping of a tunnel option (``add-tlv-map``)."""

    option_class: str
    option_type: str
    length: int

    def text(self, name: str) -> str:
        return f"{{class={self.option_class},type={self.option_type},len={self.length}}}->{name}"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What OpenFlow has programmed on one bridge.

    ``version`` is the version of OpenFlow it was read with, in tenths (15). ``tlvs``: by field. ``meters``, ``groups``:
    what follows the id, by id. ``ports``: the flags of each port that has any. ``tables``: settings other than the
    default. ``fragments``: what becomes of them (``set-frags``).
    """

    version: int
    tlvs: Mapping[str, Tlv] = field(default_factory=dict)
    meters: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[int, str] = field(default_factory=dict)
    flows: Mapping[Key, Flow] = field(default_factory=dict)
    ports: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tables: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    fragments: str = "normal"


def is_ours(cookie: int) -> bool:
    """Whether a flow with this cookie is one of ovs-hotswap's: of the overlay or of wire mode."""
    return cookie_kind(cookie) is not None or cookie >> 16 == _WIRE


def parse_version(dump: str) -> int:
    """Return the version of OpenFlow of a reply, in tenths. That of 1.0 is not printed (lib/ofp-print.c)."""
    found = _VERSION.search(dump)
    return 10 + int(found[1]) if found else 10


def parse_flow(line: str) -> Flow:
    """Return the flow in one line of ``dump-flows``. Raises ValueError."""
    head, found, actions = f" {line.strip()}".partition(" actions=")
    if not found:
        raise ValueError(f"not a flow: {line}")
    numbers, flags, rest = _head(head)
    legacy = _LEGACY.search(actions) is not None
    return Flow(
        key=_key(numbers.get("table", "0"), rest),
        actions=actions,
        cookie=int(numbers.get("cookie", "0"), 16),
        idle=int(numbers.get("idle_timeout", "0")),
        hard=int(numbers.get("hard_timeout", "0")),
        importance=int(numbers.get("importance", "0")),
        flags=flags & (_LEGACY_FLAGS if legacy else _KEPT_FLAGS),
        legacy=legacy,
        age=float(numbers.get("duration", "0s").rstrip("s")),
    )


def _head(text: str) -> tuple[dict[str, str], frozenset[str], str]:
    """Return the numbers and flags before a flow's match, and the match with the priority."""
    head, numbers, flags = f"{text.strip()} ", {}, set()
    while match := _NUMBER.match(head) or _FLAG.match(head):
        if match.re is _NUMBER:
            numbers[match[1]] = match[2]
        else:
            flags.add(match[1])
        head = head[match.end() :]
    return numbers, frozenset(flags), head.strip()


def _key(table: str, text: str) -> Key:
    found = _PRIORITY.match(text)
    priority, match = (int(found[1]), text[found.end() :]) if found else (DEFAULT_PRIORITY, text)
    return Key(int(table), priority, match)


def parse_flows(dump: str, ours: Callable[[int], bool] = is_ours) -> dict[Key, Flow]:
    """Return the flows of a dump that are not ``ours``, by their key. Raises ValueError for what cannot be read."""
    _see_readable(dump)
    flows = [parse_flow(line) for line in dump.splitlines() if "actions=" in line]
    return {flow.key: flow for flow in flows if not ours(flow.cookie)}


def maybe_legacy(flow: Flow) -> bool:
    """Whether a flow, as a later version of OpenFlow than 1.0 shows it, may have an action of 1.0."""
    return _MAYBE_LEGACY.search(flow.actions) is not None


def parse_internal(dump: str) -> dict[Key, str]:
    """Return the actions of each flow as the switch holds them, from ``ovs-appctl bridge/dump-flows``
    (ofproto/ofproto.c, flow_stats_ds), which no version of OpenFlow has changed. Hidden flows are among them."""
    found = {}
    for line in dump.splitlines():
        head, marker, actions = line.partition("actions=")
        if marker:
            numbers, _, rest = _head(head.removesuffix(","))
            found[_key(numbers.get("table_id", "0"), rest)] = actions.strip()
    return found


def as_held(flows: Mapping[Key, Flow], held: Mapping[Key, str]) -> dict[Key, Flow]:
    """Return flows with the actions that the switch holds where those are of OpenFlow 1.0."""
    return {
        key: replace(flow, actions=held[key], flags=flow.flags & _LEGACY_FLAGS, legacy=True)
        if _LEGACY.search(held.get(key, ""))
        else flow
        for key, flow in flows.items()
    }


def parse_groups(dump: str) -> dict[int, str]:
    """Return the groups of ``dump-groups``. Raises ValueError."""
    _see_readable(dump)
    return {int(found[1]): found[2].strip() for found in _GROUP.finditer(dump)}


def parse_meters(dump: str) -> dict[str, str]:
    """Return the meters of ``dump-meters`` as ``add-meter`` takes them. Raises ValueError.

    An id is a number, or one of the meters that ovs-vswitchd itself uses: ``slowpath``, ``controller``.
    """
    _see_readable(dump)
    meters = {}
    for block in re.split(r"^(?=meter=)", dump, flags=re.MULTILINE)[1:]:
        found = _METER.match(block)
        if found is None:
            raise ValueError(f"not a meter: {block}")
        meters[found[1]] = ",".join([*found[2].split(), f"bands={','.join(found[3].split())}"])
    return meters


def parse_tlvs(dump: str) -> dict[str, Tlv]:
    """Return the mappings of ``dump-tlv-map``, by field."""
    return {found[4]: Tlv(found[1], found[2], int(found[3])) for found in _TLV.finditer(dump)}


def parse_ports(dump: str) -> dict[str, frozenset[str]]:
    """Return the flags of each port of ``dump-ports-desc`` that has any. ``LOCAL`` is one of them."""
    ports = {found[1]: frozenset(found[2].split()).intersection(PORT_FLAGS) for found in _PORT.finditer(dump)}
    return {port: flags for port, flags in ports.items() if flags}


def parse_tables(dump: str) -> dict[int, tuple[str, ...]]:
    """Return the settings of ``dump-table-desc`` that are not the default, as ``mod-table`` takes them."""
    tables = {}
    for number, eviction, vacancy, down, up in _TABLE.findall(dump):
        settings = ["evict"] if eviction == "on" else []
        settings += [f"vacancy:{down},{up}"] if vacancy == "on" else []
        if settings:
            tables[int(number)] = tuple(settings)
    return tables


def _see_readable(dump: str) -> None:
    if _UNREADABLE in dump:
        line = next(line for line in dump.splitlines() if _UNREADABLE in line)
        raise ValueError(f"ovs-ofctl cannot read it: {line.strip()[:120]}")

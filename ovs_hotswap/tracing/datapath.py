"""Reads the flows of the datapath with all that they match, and compares packets with them. This module is pure.

``dpctl/dump-flows`` prints what the datapath really does, and when it did it last (lib/odp-util.c, odp_flow_format).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ovs_hotswap.tracing.fields import Fields

_PACKETS = re.compile(r", packets:(?P<count>\d+), bytes:\d+, used:(?:(?P<seconds>[\d.]+)s|never)")
_RECIRCULATES = re.compile(r"\brecirc\((?P<id>0x[0-9a-f]+)\)")
_THREAD = re.compile(r"^flow-dump from (?:pmd on cpu core: (?P<core>\d+)|the main thread|non-dpdk interfaces)")
_UFID = re.compile(r"^ufid:(?P<ufid>[0-9a-f-]+), ")
_ZERO_MASK = re.compile(r"/[0x:.]+$")
_SET = re.compile(r"[+](\w+)")  # flags that are set
_STATES = ("new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat")  # lib/odp-util.c, odp_ct_state_to_string
_COPY = re.compile(r"(?P<before>^|,)(?:trunc\(\d+\),)?(?P<port>\d+)(?=,|$)")
_MAC = re.compile(r"^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$")
_FLAG = {name: 1 << bit for bit, name in enumerate(("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"))}
_FRAGMENTS = {"no": frozenset({"no"}), "first": frozenset({"first"}), "later": frozenset({"later"}),
              "yes": frozenset({"first", "later"})}  # fmt: skip
_COMPARED = frozenset({"eth", "eth_type", "ipv4", "ipv6", "arp", "tcp", "udp", "sctp", "icmp", "icmpv6", "nd",
                       "tcp_flags"})  # fmt: skip


class Value(NamedTuple):
    """A value and the bits of it that count."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow of the datapath. ``groups``: what it matches, as the text within the brackets. ``used_s``: seconds since
    its last packet; ``None`` if none came. ``ufid``: its number, and ``core``: that of its PMD thread, if the switch
    was asked for them."""

    text: str
    groups: Mapping[str, str]
    packets: int
    used_s: float | None
    actions: str
    ufid: str = ""
    core: str = ""

    @property
    def in_port(self) -> str:
        return self.groups.get("in_port", "")

    @property
    def recirculated(self) -> str:
        """The number with which packets come from an earlier flow, ``0x0`` if from a port."""
        return _hexadecimal(self.groups.get("recirc_id", "0"))

    @property
    def next(self) -> str | None:
        """The number with which the packets are looked up again."""
        found = _RECIRCULATES.search(self.actions)
        return None if found is None else found["id"]

    @property
    def tunnel(self) -> str:
        """The group of the tunnel by which packets came, as it is written; empty if by none."""
        return f"tunnel({self.groups['tunnel']})" if "tunnel" in self.groups else ""

    @property
    def asked_tunnel(self) -> str:
        """The tunnel as a value without masks, and with a TTL: ``ofproto/trace`` takes no tunnel without one
        (lib/odp-util.c, odp_tun_key_from_attr__)."""
        if "tunnel" not in self.groups:
            return ""
        parts = [_exact(each) for each in _split(self.groups["tunnel"])]
        ttl = [] if any(each.startswith("ttl=") for each in parts) else ["ttl=64"]
        return f"tunnel({','.join([*ttl, *parts])})"

    @property
    def state(self) -> str | None:
        """The flags of connection tracking that the flow matches, such as ``+est-new+trk``."""
        text = self.groups.get("ct_state")
        if text is None or not text[:1].isdecimal():
            return text
        value, _, mask = text.partition("/")  # as it is printed with -m
        bits, counted = int(value, 0), int(mask or "0xff", 0)
        return "".join("-+"[bits >> bit & 1] + name for bit, name in enumerate(_STATES) if counted >> bit & 1)


def _exact(field: str) -> str:
    """Return a field of a tunnel as a value without a mask."""
    if field.startswith(("flags(+", "flags(-")):
        return f"flags({'|'.join(_SET.findall(field)) or '0'})"
    return field if "(" in field else field.partition("/")[0]


def _hexadecimal(text: str) -> str:
    return hex(int(text.partition("/")[0], 0))


def parse(text: str, copies: str | None = None) -> tuple[Flow, ...]:
    """Return the flows. What is not one is left out, such as the headings of threads. ``copies``: the number of the
    port to which a trace's mirrors copy; these outputs are left out, as they are there only because of the trace."""
    flows, core = list[Flow](), ""
    for line in text.splitlines():
        if (heading := _THREAD.match(line)) is not None:
            core = heading["core"] or ""
        elif (found := _flow(line, copies, core)) is not None:
            flows.append(found)
    return tuple(flows)


def _flow(line: str, copies: str | None, core: str) -> Flow | None:
    match, separator, actions = line.strip().partition(", actions:")
    counted = _PACKETS.search(match)
    if not separator or counted is None:
        return None
    text, ufid = match[: counted.start()], ""
    if (number := _UFID.match(text)) is not None:  # with it come all fields, also those that are not matched
        ufid, text = number["ufid"], text[number.end() :]
        text = ",".join(part for each in _split(text) if (part := _matched(each)))
        actions = actions.partition(", dp-extra-info:")[0]
    groups = dict(_groups(text))
    if "encap" in groups:  # what is inside a tag
        groups |= dict(_groups(groups.pop("encap")))
    used = None if counted["seconds"] is None else float(counted["seconds"])
    return Flow(text, groups, int(counted["count"]), used, without_copies(actions.strip(), copies), ufid, core)


def _matched(part: str) -> str:
    """Return a group without the fields of which the flow matches no bit; an empty text if none is left."""
    name, bracket, content = part.partition("(")
    if not bracket:
        return part
    kept = [field for field in _split(content.removesuffix(")")) if not _ZERO_MASK.search(field)]
    return f"{name}({','.join(kept)})" if kept else ""


def without_copies(actions: str, copies: str | None) -> str:
    """Return the actions without outputs to the port ``copies``, each with the cut before it (lib/odp-util.c,
    format_odp_action)."""
    if copies is None:
        return actions
    found = _COPY.sub(lambda each: each[0] if each["port"] != copies else each["before"], actions)
    parts = [part for part in _split(found) if part]
    return ",".join(parts) or "drop"


def _split(text: str) -> Iterator[str]:
    """Yield the parts between commas that are within no brackets."""
    depth, begin = 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _groups(text: str) -> Iterator[tuple[str, str]]:
    for part in _split(text):
        name, bracket, content = part.strip().partition("(")
        if bracket:
            yield name, content.removesuffix(")")


# ------------------------------------------------------------------------------------------------------------ matching


def matches(flow: Flow, found: Fields, changed: Iterable[str] = ()) -> bool:
    """Whether a packet with these fields can be one of the flow's. ``changed``: groups whose values were changed before
    or after, and cannot be compared."""
    skipped = frozenset(changed)
    if "vlan" not in skipped and not _tag_matches(flow, found):
        return False
    return all(
        _group_matches(name, content, found)
        for name, content in flow.groups.items()
        if name in _COMPARED and name not in skipped
    )


def _tag_matches(flow: Flow, found: Fields) -> bool:
    tag = found.tags[0][1] if found.tags else None
    if "vlan" not in flow.groups:
        return tag is None or "eth_type" not in flow.groups
    if tag is None:
        return False
    named = {"vid": tag & 0xFFF, "pcp": tag >> 13, "tci": tag}
    return all(_equal(named[name], _value(text)) for name, text in _pairs(flow.groups["vlan"]) if name in named)


def _group_matches(group: str, content: str, found: Fields) -> bool:
    if group == "tcp_flags":
        return _equal(found.get(group), _flags(content))
    for name, text in _pairs(content):
        has = found.get(group, name)
        if name == "frag":
            if has not in _FRAGMENTS.get(text, {text}):
                return False
        elif not _equal(has, _value(text)):
            return False
    return True


def _pairs(content: str) -> Iterator[tuple[str, str]]:
    for part in content.split(","):
        name, separator, text = part.partition("=")
        yield (name, text) if separator else ("", part)


def _equal(has: int | str | None, wanted: Value | None) -> bool:
    """Whether a field has the value. One that could not be read says nothing against it."""
    if wanted is None or not isinstance(has, int):
        return wanted is None or wanted.mask == 0 or has is not None
    return has & wanted.mask == wanted.value & wanted.mask


def _value(text: str) -> Value | None:
    """Return a value with its mask; ``None`` if it is of a form that is not known."""
    value, _, mask = text.partition("/")
    try:
        if _MAC.match(value):
            return Value(int(value.replace(":", ""), 16), int(mask.replace(":", ""), 16) if mask else (1 << 48) - 1)
        if ":" in value:
            return Value(int(IPv6Address(value)), int(IPv6Address(mask)) if mask else (1 << 128) - 1)
        if "." in value:
            return Value(int(IPv4Address(value)), int(IPv4Address(mask)) if mask else (1 << 32) - 1)
        return Value(int(value, 0), int(mask, 0) if mask else -1)
    except ValueError:
        return None


def _flags(text: str) -> Value | None:
    """Return flags of TCP, which are written as ``syn|ack``, as ``+syn-ack`` or as a number."""
    if text[:1] in "+-":
        named = re.findall(r"([+-])(\w+)", text)
        if not all(name in _FLAG for _, name in named):
            return None
        mask = sum(_FLAG[name] for _, name in named)
        return Value(sum(_FLAG[name] for sign, name in named if sign == "+"), mask)
    names = text.split("|")
    if all(name in _FLAG for name in names):
        return Value(sum(_FLAG[name] for name in names), 0xFFF)
    return _value(text)


# ------------------------------------------------------------------------------------------------------------- actions


_CHANGING = {
    "set(eth": {"eth"}, "set(ipv4": {"ipv4"}, "set(ipv6": {"ipv6"}, "set(tcp": {"tcp"}, "set(udp": {"udp"},
    "set(sctp": {"sctp"}, "set(arp": {"arp"}, "set(icmp": {"icmp", "icmpv6"}, "set(nd": {"nd"}, "push_vlan": {"vlan"},
    "pop_vlan": {"vlan"}, "nat": {"ipv4", "ipv6", "tcp", "udp", "sctp", "icmp", "icmpv6"},
}  # fmt: skip
_CHANGE = re.compile("|".join(rf"\b{re.escape(word)}" for word in _CHANGING))


def changes(actions: str) -> set[str]:
    """Return the groups of fields that the actions change."""
    return set().union(*(_CHANGING[each] for each in _CHANGE.findall(actions)))


def same_actions(one: str, other: str) -> bool:
    """Whether two texts of actions are the same, with whatever numbers they recirculate: ``ofproto/trace`` may give the
    same state another number."""
    return _RECIRCULATES.sub("recirc()", one) == _RECIRCULATES.sub("recirc()", other)

"""What lines of ovs-ofctl's dump-flows and dump-groups use that matters while a host is taken over. This module is
pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ovs_hotswap.stock.facts import MarkUse

MOST = 8  # uses of pkt_mark that are kept
_MARK = r"(?:pkt_mark|NXM_NX_PKT_MARK(?:\[\d*(?:\.\.\d+)?\])?)"
_SETS = re.compile(rf"(?:set_field:|load:)(0x[0-9a-f]+|\d+)(/[0-9a-fx]+)?->{_MARK}", re.IGNORECASE)
_COMPUTES = re.compile(rf"(?:move:[^,]*->|pop:){_MARK}|->{_MARK}(?:\[|,.*learn)", re.IGNORECASE)
_PART = re.compile(r"NXM_NX_PKT_MARK\[(?!\]|0\.\.31\])", re.IGNORECASE)
_USES = re.compile(_MARK, re.IGNORECASE)
_ALL = re.compile(r"(?:^|[,(=])(?:output:)?ALL(?:,|$|\))", re.IGNORECASE)
_TABLE = re.compile(r"\btable=(\d+)\b")
_HIGHEST = re.compile(r"\bpriority=65535\b")
_DEAD_VLAN = re.compile(r"\bdl_vlan=4095\b|\bvlan_tci=0x[01]?fff/0x1fff\b")
_IDENTITY_NAT = re.compile(r"\bnat\((?:src|dst)\)")


def is_ours(line: str) -> bool:
    """Whether a flow is one of ovs-hotswap's: their cookies begin with the letters ``ovs`` (``wire.mirror_flows``)."""
    return "cookie=0x6f7673" in line


def mark_uses(lines: Iterable[str]) -> tuple[MarkUse, ...]:
    """Return the first uses of ``pkt_mark``, those that set it before those that only match on it."""
    found = [use for line in lines for use in _uses(line.strip())]
    return tuple(sorted(found, key=lambda use: use.sets is None and not use.computed)[:MOST])


def _uses(line: str) -> Iterator[MarkUse]:
    if not _USES.search(line):
        return
    set_here = list(_SETS.finditer(line))
    for found in set_here:
        part = found[2] is not None or _PART.search(found[0]) is not None
        yield MarkUse(line, int(found[1], 0), part)
    if not set_here:
        yield MarkUse(line, computed=_COMPUTES.search(line) is not None)


def output_to_all(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the first flows and groups that output to ALL, which includes ports that are kept from floods."""
    return tuple(line.strip() for line in lines if _ALL.search(line.partition("actions=")[2]))[:MOST]


def highest(flows: Iterable[str]) -> tuple[str, ...]:
    """Return the first flows of table 0 that no other one can precede. Those for VLAN 4095, by which Neutron's agent
    drops what comes from ports that are not bound, are left out: no frame has that VLAN."""
    found = (line.strip() for line in flows if table_of(line) == 0 and _HIGHEST.search(line.partition("actions=")[0]))
    return tuple(line for line in found if not _DEAD_VLAN.search(line))[:MOST]


def tables(flows: Iterable[str]) -> tuple[int, ...]:
    """Return the tables that have flows."""
    return tuple(sorted({table_of(line) for line in flows}))


def table_of(flow: str) -> int:
    found = _TABLE.search(flow.partition("actions=")[0])
    return int(found[1]) if found else 0


def has_identity_nat(lines: Iterable[str]) -> bool:
    """Whether a connection is committed with NAT to the address that it has already, as OVN does it: ``nat(src)``."""
    return any(_IDENTITY_NAT.search(line) for line in lines)

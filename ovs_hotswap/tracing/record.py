"""Reads the switch's record of which flows of the tables it made a flow of the datapath from. This module is pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A flow of the tables from which the switch made a flow of the datapath. ``bridge`` is empty if the switch does
    not name it, as Open vSwitch 3.5. ``priority`` is ``None`` if no flow of the table matched."""

    bridge: str
    table: int
    priority: int | None
    cookie: int
    match: str
    actions: str


_RULE = re.compile(
    r"^\s*(?:cookie=(?P<cookie>0x[0-9a-f]+), )?(?:table_id=(?P<table>\d+), )?duration=\d+s, "
    r"n_packets=\d+, n_bytes=\d+, (?:n_offload_packets=\d+, n_offload_bytes=\d+, )?"
    r"(?:priority=(?P<priority>\d+),?)?(?P<match>.*?),?actions=(?P<actions>.*)$"
)
_MISSED = re.compile(r"^\s*table_id=(?P<table>\d+), no match$")
_BRIDGE = re.compile(r"^[^\s=]+$")
_DEFAULT_PRIORITY = 0x8000  # OFP_DEFAULT_PRIORITY, which is not printed


def parse_record(text: str) -> tuple[Rule, ...]:
    """Return what ``ofproto/detrace`` prints of a flow of the datapath, as from Open vSwitch 3.4 on
    (ofproto/ofproto-dpif-xlate-cache.c, xlate_xcache_format); nothing if the switch has no record of it."""
    rules, bridge = list[Rule](), ""
    for line in text.splitlines():
        if (found := _RULE.match(line)) is not None:
            rules.append(Rule(bridge, int(found["table"] or 0), int(found["priority"] or _DEFAULT_PRIORITY),
                              int(found["cookie"] or "0", 16), found["match"], found["actions"]))  # fmt: skip
        elif (missed := _MISSED.match(line)) is not None:
            rules.append(Rule(bridge, int(missed["table"]), None, 0, "", "drop"))
        elif _BRIDGE.match(line):
            bridge = line
    return tuple(rules)

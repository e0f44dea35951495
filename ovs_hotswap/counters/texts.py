"""Readers of what Open vSwitch prints about its counters. This module is pure.

A line of a form that only a later version prints is skipped. A text in which nothing of the expected form is found
raises ValueError where a counter of 0 would otherwise be reported for one that was not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ovs_hotswap.counters.values import ConntrackCounts, PmdCounters, PortCounters, ZoneLimit

_EVENT = re.compile(r"^(?P<name>\w+)\s+[\d.]+/sec\s+[\d.]+/sec\s+[\d.]+/sec\s+total: (?P<total>\d+)$")
_NEVER = re.compile(r"^\d+ events never hit$")
_THREAD = re.compile(r"^(?P<kind>pmd|main) thread(?: numa_id (?P<numa>\d+))?(?: core_id (?P<core>\d+))?:$")
_COUNT = re.compile(r"^\s+(?P<name>[a-z][a-z .]*): (?P<value>\d+)\b")
_PMD_FIELDS = {
    "idle cycles": "idle_cycles", "processing cycles": "busy_cycles", "packets received": "received",
    "packet recirculations": "recirculated", "miss with success upcall": "missed", "miss with failed upcall": "lost",
    "emc hits": "emc_hits", "smc hits": "smc_hits", "megaflow hits": "megaflow_hits",
}  # fmt: skip
_PORT = re.compile(r"^\s*port\s+(?P<number>\d+|LOCAL): rx ")
_DIRECTION = re.compile(r"\b(rx|tx) (?=pkts=)")
_PAIR = re.compile(r"\b(?P<name>[A-Za-z]\w*)=(?P<value>\d+)\b")
_PORT_NAMES = {"pkts": "packets", "bytes": "bytes", "drop": "dropped", "errs": "errors"}
_FLOW = re.compile(r"^ *cookie=(0x[0-9a-f]+), [^\n]*?\bn_packets=(\d+), n_bytes=(\d+)", re.MULTILINE)
_DEFAULT_LIMIT = re.compile(r"^default limit=(\d+)$", re.MULTILINE)
_ZONE = re.compile(r"^zone=(\d+),\s*limit=(\d+),\s*count=(\d+)$", re.MULTILINE)
LOCAL_PORT = 0xFFFE  # OFPP_LOCAL, OpenFlow 1.0, 5.2.1, which Open vSwitch keeps as the number of the bridge's own port


def coverage(text: str) -> dict[str, int]:
    """Return how often each event has happened, from ``coverage/show`` (lib/coverage.c, coverage_read)."""
    found, whole = {}, False
    for line in text.splitlines():
        if event := _EVENT.match(line):
            found[event["name"]] = int(event["total"])
        whole = whole or _NEVER.match(line) is not None
    if not whole:
        raise ValueError("coverage/show: the line that counts the events that never happened is missing")
    return found


def pmds(text: str) -> tuple[PmdCounters, ...]:
    """Return the threads of ``dpif-netdev/pmd-stats-show`` (lib/dpif-netdev.c, format_pmd_thread and
    pmd_info_show_stats). A thread that has not run yet has no cycles."""
    found: list[tuple[int | None, int | None, dict[str, int]]] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            numa, core = (None if thread[key] is None else int(thread[key]) for key in ("numa", "core"))
            found.append((numa, None if thread["kind"] == "main" else core, {}))
        elif found and (count := _COUNT.match(line)) and (name := _PMD_FIELDS.get(count["name"])):
            found[-1][2][name] = int(count["value"])
    return tuple(PmdCounters(numa, core, **counts) for numa, core, counts in found)


def port_statistics(text: str) -> dict[int, dict[str, int]]:
    """Return the statistics of each port by its OpenFlow number, from ``ovs-ofctl -O OpenFlow14 --no-names dump-ports``
    (lib/ofp-port.c, ofputil_format_port_stats), under the names that ``Interface.statistics`` has. They are those of
    this moment, whereas the database's are up to five seconds old."""
    found: dict[int, dict[str, int]] = {}
    here: dict[str, int] = {}
    for line in text.splitlines():
        if port := _PORT.match(line):
            here = found[LOCAL_PORT if port["number"] == "LOCAL" else int(port["number"])] = {}
        if direction := _DIRECTION.search(line):
            pairs = _PAIR.finditer(line[direction.end() :])
            here |= {f"{direction[1]}_{_PORT_NAMES[pair['name']]}": int(pair["value"]) for pair in pairs
                     if pair["name"] in _PORT_NAMES}  # fmt: skip
        elif line.startswith(" " * 22):  # the port's own counters stand deeper than everything else
            here |= {pair["name"]: int(pair["value"]) for pair in _PAIR.finditer(line)}
    return found


def flow_packets(text: str) -> dict[int, tuple[int, int]]:
    """Return the packets and the bytes of all flows with one cookie, by cookie, from ``ovs-ofctl dump-flows``."""
    found: dict[int, tuple[int, int]] = {}
    for flow in _FLOW.finditer(text):
        cookie = int(flow[1], 16)
        packets, size = found.get(cookie, (0, 0))
        found[cookie] = packets + int(flow[2]), size + int(flow[3])
    return found


def conntrack(connections: str, most: str, limits: str) -> ConntrackCounts:
    """Return the connections from ``dpctl/ct-get-nconns``, ``dpctl/ct-get-maxconns`` and ``dpctl/ct-get-limits``
    (lib/dpctl.c; lib/ct-dpif.c, ct_dpif_format_zone_limits)."""
    default = _DEFAULT_LIMIT.search(limits)
    zones = tuple(ZoneLimit(*map(int, zone.groups())) for zone in _ZONE.finditer(limits))
    return ConntrackCounts(int(connections), int(most), int(default[1]) if default else 0, zones)


PORT_COLUMNS = ("name", "type", "ofport", "link_state", "admin_state", "mtu", "error", "ingress_policing_rate",
                "statistics")  # fmt: skip
"""The columns of the table Interface from which ``ports`` makes its values."""


def ports(rows: list[Mapping[str, Any]]) -> dict[str, PortCounters]:
    """Return the interfaces from rows of the table Interface with ``PORT_COLUMNS``, as RFC 7047, 5.1 writes them."""
    return {row["name"]: _port(row) for row in rows}


def _port(row: Mapping[str, Any]) -> PortCounters:
    ofport = _number(row["ofport"])
    return PortCounters(
        row["name"], row["type"], ofport if ofport is not None and ofport >= 0 else None,
        _up(row["link_state"]), _up(row["admin_state"]), _number(row["mtu"]), next(_atoms(row["error"]), None),
        _number(row["ingress_policing_rate"]) or 0, dict(row["statistics"][1]),
    )  # fmt: skip


def _atoms(value: Any) -> Iterator[Any]:
    """Yield the elements of a set, or of a single value."""
    yield from value[1] if isinstance(value, list) and value and value[0] == "set" else [value]


def _number(value: Any) -> int | None:
    found = next(_atoms(value), None)
    return None if found is None else int(found)


def _up(value: Any) -> bool | None:
    found = next(_atoms(value), None)
    return None if found is None else found == "up"

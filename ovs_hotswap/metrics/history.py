"""What upgrades and the watchdog have done since the first look at this host, from journals and events. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ovs_hotswap.metrics.catalogue import GAP_BUCKETS, HANDOVER_BUCKETS
from ovs_hotswap.metrics.histogram import Histogram
from ovs_hotswap.plan.records import Facts, Kind, Phase, Record
from ovs_hotswap.watchdog.health import Signal

_DIED = re.compile(r"\binstance [ab] (?:died|is stopped|has ended|does not run)\b|\bovs-vswitchd has ended\b")
EVENTS = (
    "failover", "rings", "failover-uplink", "uplink", "standby", "standby-died", "database", "start-failed", "restart",
    "flows-lost",
    "uplink-back", "uplink-restored", "gave-up", "not-parked", "trial", "quarantine", "trial-ended", "next-hop",
    "next-hop-fault", "nics",
)  # fmt: skip
"""The events of the watchdog (docs/json.md), which are counted from 0: of a counter that appears with its first event,
Prometheus would not see the growth."""
COMMITTED, ROLLED_BACK = "committed", "rolled_back"


@dataclass(frozen=True, slots=True)
class EventsRead:
    """How far the file of events was read: its inode, which a rotation keeps, and the bytes that were read."""

    inode: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """``rollbacks``: by step and reason. ``begun``: there was a first look, and what happened before it is not counted.
    Otherwise a boot, after which some of the older journals and events are still there, would look like upgrades and
    failovers. ``journal``: the name of the newest journal that is counted."""

    upgrades: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((COMMITTED, ROLLED_BACK), 0))
    rollbacks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    failovers: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Signal), 0))
    events: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(EVENTS, 0))
    handovers: Histogram = field(default_factory=lambda: Histogram.empty(HANDOVER_BUCKETS))
    failover_gaps: Histogram = field(default_factory=lambda: Histogram.empty(GAP_BUCKETS))
    uplink_gaps: Histogram = field(default_factory=lambda: Histogram.empty(GAP_BUCKETS))
    begun: bool = False
    journal: str = ""
    read: EventsRead = EventsRead()


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended upgrade, of which ``name`` is the journal. ``step`` and ``reason`` say why it was rolled back."""

    name: str
    committed: bool
    step: str = ""
    reason: str = ""
    handovers: tuple[float, ...] = ()
    uplink_gap: float | None = None

    @classmethod
    def of(cls, name: str, phase: Phase, records: Iterable[Record], facts: Facts) -> Ended:
        """Make it from a journal. ``facts``: all that its steps have recorded."""
        moves, gap = facts.get("moves"), facts.get("uplink_gap_ms")
        handovers = tuple(float(us) / 1e6 for us in moves.values() if isinstance(us, int | float)) \
            if isinstance(moves, Mapping) else ()  # fmt: skip
        committed = phase is Phase.FINISHED
        step, reason = ("", "") if committed else why_back(records)
        return cls(name, committed, step, reason, handovers, gap / 1e3 if isinstance(gap, int | float) else None)


def why_back(records: Iterable[Record]) -> tuple[str, str]:
    """Return the step that failed, or an empty text, and the reason of a rollback: its first failure counts."""
    for record in records:
        if record.kind in {Kind.FAILED, Kind.TURNED_BACK}:
            if record.text.startswith("interrupted"):  # plan/interrupts.py
                return record.step, "interrupted"
            return record.step, "instance_died" if _DIED.search(record.text) else "failed"
    return "", "asked"


def with_upgrades(history: History, ended: Iterable[Ended]) -> History:
    """Return the history with upgrades that it did not have, the oldest first."""
    for each in ended:
        outcome = COMMITTED if each.committed else ROLLED_BACK
        history = replace(
            history,
            upgrades=_more(history.upgrades, outcome),
            rollbacks=history.rollbacks if each.committed else _more(history.rollbacks, (each.step, each.reason)),
            handovers=history.handovers.plus(each.handovers),
            uplink_gaps=history.uplink_gaps.plus([] if each.uplink_gap is None else [each.uplink_gap]),
            journal=each.name,
        )
    return history


def with_events(history: History, events: Iterable[Mapping[str, Any]], read: EventsRead) -> History:
    """Return the history with events that it did not have. ``read``: how far the file was read with them."""
    for event in events:
        kind = str(event.get("event"))
        history = replace(history, events=_more(history.events, kind))
        if kind == "failover":
            gap = _gap(event.get("ms"))
            history = replace(
                history,
                failovers=_more(history.failovers, str(event.get("signal") or "")),
                failover_gaps=history.failover_gaps.plus([] if gap is None else [gap]),
            )
    return replace(history, read=read)


def _gap(stages: object) -> float | None:
    """Return the seconds until the VMs had their new owner; where the broker did not say, until that was recorded."""
    found = stages if isinstance(stages, dict) else {}
    value = found.get("owned", found.get("recorded"))
    return value / 1e3 if isinstance(value, int | float) else None


def _more(counts: Mapping[Any, int], key: Any) -> dict[Any, int]:
    return {**counts, key: counts.get(key, 0) + 1}

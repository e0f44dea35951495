"""Counters of packets that never go backwards: what an instance counted is kept when another takes its place. Pure.

Every instance counts from its own start, and a standby counts copies as drops. So what is exported is a sum of growth:
what each instance has counted from one look to the next, as far as it is a loss (``counters.drops.losses``). What an
instance counts between the last look at it and its end is lost. Of a process that was there before the first look, what
it had counted before that is not taken: which of it were copies is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ovs_hotswap.counters.drops import Drop, Duty, Reason, drops, losses
from ovs_hotswap.counters.values import FlowCount, SwitchCounters
from ovs_hotswap.model import Side

Process = tuple[int, int | None]
Counts: TypeAlias = Mapping[str, int]
"""Counts by a text, so that thousands of them are written as JSON at once. That of a drop has its reason, port and VNI,
that of a flow its kind, VNI and ofport, each with a blank between them (``drop_key``, ``flow_key``)."""
_PARTS = ("ports", "flows", "coverage")
_TOTALS = ("rx_packets", "tx_packets", "rx_dropped", "tx_dropped")  # a port sets all its counters back at once
_SETTLES_S = 6.0  # other_config:stats-update-interval, which is 5 s by default, and what a look takes


@dataclass(frozen=True, slots=True)
class Seen:
    """The last look at a side. ``fresh``: its ``process`` began after the first look, so all that it counts is new.
    ``parts``: those that were read of it. ``drops`` and ``flows``: what it had counted, without zeros. ``totals``: all
    packets of each port, which become fewer only if the port has set its counters back."""

    process: Process | None
    fresh: bool = False
    parts: frozenset[str] = frozenset()
    drops: Counts = field(default_factory=dict)
    flows: Counts = field(default_factory=dict)
    totals: Counts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tally:
    """The sums. ``drops``: losses. ``flows``: packets by kind. ``moves``: by VM, of which ``moves_seen`` is what the
    broker last said. ``time``: of the last look, in seconds since the epoch. ``serving``: the side that served each VM
    then. ``moved``: when a VM was last seen to be served by another side than before."""

    drops: Counts = field(default_factory=dict)
    flows: Counts = field(default_factory=dict)
    moves: Counts = field(default_factory=dict)
    moves_seen: Counts = field(default_factory=dict)
    time: float = 0.0
    serving: Mapping[str, Side] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[Side, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counted:
    """One look at what is counted. ``ofports``: of each VM's port, ``None`` if these are not known. ``serving``: the
    side that serves each VM; a VM of which that is not known is missing. ``moves``: of each VM."""

    time: float
    sides: Mapping[Side, SwitchCounters]
    ofports: Mapping[str, int] | None
    serving: Mapping[str, Side]
    moves: Counts = field(default_factory=dict)


def drop_key(reason: str, port: str = "", vni: int = 0) -> str:
    return f"{reason} {port} {vni}"


def drop_of(key: str) -> tuple[Reason, str, int]:
    """Return the reason, the port and the VNI of a ``drop_key``. Raises ValueError if it is none."""
    reason, port, vni = key.split(" ")
    return Reason(reason), port, int(vni)


def flow_key(flow: FlowCount) -> str:
    return f"{flow.kind} {flow.vni} {flow.ofport}"


def advance(tally: Tally, now: Counted) -> Tally:
    """Return the sums after one more look. No sum is less than before, unless its VM is gone. While it is not known
    which ports are VMs', nothing is added up: the look after that has all the growth."""
    ofports = now.ofports
    if ofports is None:
        return tally
    sums, flows = dict(tally.drops), dict(tally.flows)
    seen = dict(tally.seen)
    for side, counters in now.sides.items():
        before = _before(tally.seen.get(side), counters)
        counted = {part: _counted(part, counters, ofports) for part in _PARTS}
        totals = {name: sum(map(port.count, _TOTALS)) for name, port in (counters.ports or {}).items()}
        reset = {name for name, total in totals.items() if total < before.totals.get(name, 0)}
        grown = [drop for part, found in counted.items() if not _first(part, before)
                 for drop in _grown(before, found, reset if part == "ports" else None)]  # fmt: skip
        duties = {drop.port: _duty(side, drop.port, tally, now) for drop in grown if drop.port in ofports}
        for drop in losses(grown, duties):
            key = drop_key(drop.reason, drop.port, drop.vni)
            sums[key] = sums.get(key, 0) + drop.packets
        _add_flows(flows, before, counters)
        seen[side] = _after(before, counters, counted, totals, reset)
        for drop in (drop for found in counted.values() for drop in found if drop.port not in ofports):
            sums.setdefault(drop_key(drop.reason, drop.port, drop.vni), 0)  # so that the first drop shows as growth
    gone = tally.serving.keys() - ofports.keys()
    serving = {vm: side for vm, side in {**tally.serving, **now.serving}.items() if vm in ofports}
    moved = {vm: now.time for vm, side in serving.items() if tally.serving.get(vm, side) is not side}
    return Tally(
        {key: packets for key, packets in sums.items() if drop_of(key)[1] not in gone} if gone else sums,
        flows,
        *_moves(tally, now.moves, gone),
        now.time,
        serving,
        {vm: at for vm, at in {**tally.moved, **moved}.items() if vm in serving},
        seen,
    )


def _moves(tally: Tally, now: Counts, gone: Set[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the moves of each VM, and what the broker says of them, which another broker may count from 0."""
    sums = dict(tally.moves)
    for vm, count in now.items():
        known = tally.moves_seen.get(vm, 0)
        sums[vm] = sums.get(vm, 0) + (count - known if count >= known else count)
    told = {**tally.moves_seen, **now}
    return {vm: sum_ for vm, sum_ in sums.items() if vm not in gone}, {
        vm: n for vm, n in told.items() if vm not in gone
    }


def _before(last: Seen | None, counters: SwitchCounters) -> Seen:
    """Return what the process that runs now had counted at the last look."""
    if last is None:
        return Seen(counters.process)
    if last.process != counters.process:
        return Seen(counters.process, fresh=True)
    return last


def _counted(part: str, counters: SwitchCounters, ofports: Mapping[str, int]) -> tuple[Drop, ...]:
    alone: dict[str, Any] = {part: getattr(counters, part)}
    return drops(SwitchCounters(counters.process, **alone), ofports)


def _first(part: str, before: Seen) -> bool:
    """Whether a part is read for the first time of a process that had counted before anyone looked."""
    return part not in before.parts and not before.fresh


def _grown(before: Seen, now: Iterable[Drop], reset: Set[str] | None) -> Iterator[Drop]:
    """Yield what was counted since the last look. ``reset``: the ports that have set their counters back since, so that
    all they count is new; what another port counts is never less than before, except that the difference of two
    counters (NOT_READY, NO_BUFFER) may seem so, as they were not read at the same instant. ``None``: a counter that is
    less than before was set back by itself, as that of a flow that was replaced."""
    for drop in now:
        known = before.drops.get(drop_key(drop.reason, drop.port, drop.vni), 0)
        if drop.port in reset if reset is not None else drop.packets < known:
            known = 0
        if drop.packets > known:
            yield Drop(drop.reason, drop.packets - known, drop.port, drop.vni)


def _add_flows(sums: dict[str, int], before: Seen, counters: SwitchCounters) -> None:
    """Add the growth of each cookie's packets to the sum of its kind."""
    first = _first("flows", before)
    for flow in counters.flows or ():
        known = flow.packets if first else before.flows.get(flow_key(flow), 0)
        grown = flow.packets - known if flow.packets >= known else flow.packets
        sums[flow.kind] = sums.get(flow.kind, 0) + grown


def _after(
    before: Seen, counters: SwitchCounters, counted: Mapping[str, Iterable[Drop]], totals: Counts, reset: Set[str]
) -> Seen:
    read = {part for part in _PARTS if getattr(counters, part) is not None}
    known = dict(before.drops)
    for part, drops_ in counted.items():
        for drop in drops_:
            key = drop_key(drop.reason, drop.port, drop.vni)
            keeps = part == "ports" and drop.port not in reset
            if packets := max(drop.packets, known.get(key, 0)) if keeps else drop.packets:
                known[key] = packets
            else:
                known.pop(key, None)
    flows = before.flows
    if counters.flows is not None:
        flows = {flow_key(flow): flow.packets for flow in counters.flows if flow.packets}
    return Seen(before.process, before.fresh, before.parts | read, known, flows, {**before.totals, **totals})


def _duty(side: Side, vm: str, tally: Tally, now: Counted) -> Duty:
    """Return what a side was for a VM between the last look and this one. Where it is not known who serves the VM,
    nothing has changed since it was known. What a switch counted in a move shows up to five seconds later."""
    first, last = tally.serving.get(vm), now.serving.get(vm)
    first, last = first or last, last or first
    if first is None:
        return Duty.SERVED
    settling = vm in tally.moved and 0 <= tally.time - tally.moved[vm] < _SETTLES_S  # the clock may be set back
    if settling or first is not last:
        return Duty.MOVED
    return Duty.SERVED if side is last else Duty.STOOD_BY


VM_REASONS = (
    Reason.RING_FULL, Reason.NOT_READY, Reason.MTU, Reason.QOS, Reason.OFFLOAD, Reason.POLICING, Reason.SPOOFED,
    Reason.MOVED,
)  # fmt: skip
"""The reasons for which packets of a single VM are dropped."""


def vm_drops(sums: Counts, vms: Iterable[str]) -> Iterator[tuple[str, Reason, int]]:
    """Yield the drops of each VM by reason, with 0 where there are none, so that the first one shows as growth."""
    found: dict[tuple[str, Reason], int] = {}
    for key, packets in sums.items():
        reason, port, _vni = drop_of(key)
        found[port, reason] = found.get((port, reason), 0) + packets
    for vm in vms:
        for reason in VM_REASONS:
            yield vm, reason, found.get((vm, reason), 0)

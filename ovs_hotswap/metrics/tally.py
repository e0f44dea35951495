"""Counters of packets that never go backwards: what an instance counted is kept when another takes its place. Pure.

Every instance counts from its own start, and a standby counts copies as drops. So what is exported is a sum of growth:
what each instance has counted from one look to the next, as far as it is a loss (``counters.drops.losses``). What an
instance counts between the last look at it and its end is lost. Of a process that was there before the first look, what
it had counted before that is not taken: which of it were copies is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

from ovs_hotswap.counters.drops import DIFFERENCES, Drop, Duty, Reason, drops, losses
from ovs_hotswap.counters.values import FlowCount, PortCounters, SwitchCounters
from ovs_hotswap.model import Side

Process = tuple[int, int | None]
Counts: TypeAlias = Mapping[str, int]
"""Counts by a text, so that thousands of them are written as JSON at once. That of a drop has its reason, port and VNI,
that of a flow its kind, VNI and ofport, each with a blank between them (``drop_key``, ``flow_key``)."""
_PARTS = ("ports", "flows", "coverage")
_SETTLES_S = 6.0  # other_config:stats-update-interval, which is 5 s by default, and what a look takes
_FORGET_S = 3600.0
_BY_DEVICE = frozenset({Reason.NIC_MISSED, Reason.NO_BUFFER})
_RECONFIGURED = "bridge_reconfigure"  # vswitchd/bridge.c: what it has counted begins in the database with the first one


@dataclass(frozen=True, slots=True)
class Seen:
    """The last look at a side. ``fresh``: its ``process`` began after the first look, so all that it counts is new.
    ``configured``: the process has its ports, and the database has what it has counted. ``drops``: what it had counted,
    without zeros, by the part that was read. ``flows``: the same of each cookie. ``ports``: of each port the packets
    that it had received, and those that it had dropped when sending (``_resets``)."""

    process: Process | None
    fresh: bool = False
    configured: bool = False
    drops: Mapping[str, Counts] = field(default_factory=dict)
    flows: Counts = field(default_factory=dict)
    ports: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tally:
    """The sums. ``vms``: the VMs of the last look. ``drops``: losses. ``flows``: packets by kind. ``moves``: by VM, of
    which ``moves_seen`` is what the broker last said. ``time``: of the last look, in seconds since the epoch.
    ``serving``: the side that served each VM then. ``moved``: when a VM was last seen to be served by another side than
    before. ``missing``: since when no switch has a counter of the host any more, by its ``drop_key``."""

    vms: tuple[str, ...] = ()
    drops: Counts = field(default_factory=dict)
    flows: Counts = field(default_factory=dict)
    moves: Counts = field(default_factory=dict)
    moves_seen: Counts = field(default_factory=dict)
    time: float = 0.0
    serving: Mapping[str, Side] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, float] = field(default_factory=dict)
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


@lru_cache(maxsize=1 << 16)  # a scrape asks for the same ones as the scrape before
def drop_of(key: str) -> tuple[Reason, str, int]:
    """Return the reason, the port and the VNI of a ``drop_key``; a name of a port may have blanks. Raises ValueError if
    it is none."""
    reason, _, rest = key.partition(" ")
    port, _, vni = rest.rpartition(" ")
    return Reason(reason), port, int(vni)


def flow_key(flow: FlowCount) -> str:
    return f"{flow.kind} {flow.vni} {flow.ofport}"


def advance(tally: Tally, now: Counted) -> Tally:
    """Return the sums after one more look. No sum is less than before. Those of a VM that is gone end; those of the
    host with a port or a VNI that no switch has any more end an hour later. While it is not known which ports are VMs',
    nothing is added up: the look after that has all the growth."""
    ofports = now.ofports
    if ofports is None:
        return tally
    sums, flows = dict(tally.drops), dict(tally.flows)
    seen = dict(tally.seen)
    here: set[str] = set()
    for side, counters in now.sides.items():
        before, counters = _before(tally.seen.get(side), counters)
        counted = {part: _counted(part, counters, ofports) for part in _PARTS}
        ports = {name: _traffic(port, before.ports.get(name, (0, 0))) for name, port in (counters.ports or {}).items()}
        reset = {"ports": _resets(before, counters.ports or {}, ports, counted["ports"])}
        grown = [drop for part, found in counted.items() if not _first(part, before)
                 for drop in _grown(before.drops.get(part, {}), found, reset.get(part, _Resets()))]  # fmt: skip
        duties = {drop.port: _duty(side, drop.port, tally, now) for drop in grown if drop.port in ofports}
        for drop in losses(grown, duties):
            key = drop_key(*drop.place)
            sums[key] = sums.get(key, 0) + drop.packets
        _add_flows(flows, before, counters)
        seen[side] = _after(before, counters, counted, ports, reset["ports"])
        here |= {key for found in counted.values() for key, drop in found.items() if drop.port not in ofports}
    for key in here:
        sums.setdefault(key, 0)  # so that the first drop shows as growth
    gone = set(tally.vms) - ofports.keys()
    vms = ofports.keys() | gone
    missing = _missing(tally, now, {key for key in sums if key not in here and drop_of(key)[1] not in vms})
    ended = {key for key, since in missing.items() if now.time - since > _FORGET_S}
    serving = {vm: side for vm, side in {**tally.serving, **now.serving}.items() if vm in ofports}
    moved = {vm: now.time for vm, side in serving.items() if tally.serving.get(vm, side) is not side}
    return Tally(
        tuple(ofports),
        {key: packets for key, packets in sums.items() if key not in ended and drop_of(key)[1] not in gone},
        flows,
        *_moves(tally, now.moves, ofports.keys()),
        now.time,
        serving,
        {vm: at for vm, at in {**tally.moved, **moved}.items() if vm in serving},
        {key: since for key, since in missing.items() if key not in ended},
        seen,
    )


def _missing(tally: Tally, now: Counted, absent: Set[str]) -> dict[str, float]:
    """Return since when each counter of the host is ``absent``, of those with a port or VNI. The others are as many as
    there are reasons. If a part of a running switch could not be read, nothing is known to be absent."""
    running = [each for each in now.sides.values() if each.process is not None]
    if not running or any(part in each.unknown for each in running for part in ("ports", "flows")):
        return dict(tally.missing)
    placed = (key for key in absent if drop_of(key)[1:] != ("", 0))
    return {key: tally.missing.get(key, now.time) for key in placed}


def _moves(tally: Tally, now: Counts, vms: Set[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the moves of each of the ``vms``, and what the broker says of them, which another broker may count from
    0."""
    sums = dict(tally.moves)
    for vm, count in now.items():
        known = tally.moves_seen.get(vm, 0)
        sums[vm] = sums.get(vm, 0) + (count - known if count >= known else count)
    told = {**tally.moves_seen, **now}
    return {vm: sum_ for vm, sum_ in sums.items() if vm in vms}, {vm: n for vm, n in told.items() if vm in vms}


def _before(last: Seen | None, counters: SwitchCounters) -> tuple[Seen, SwitchCounters]:
    """Return what the process that runs now had counted at the last look, and what can be used of this one. A side on
    which nothing runs now keeps what was seen of it: its process may only have been overlooked.

    Until a new ovs-vswitchd has made its ports, the database has what the one before had counted.
    """
    if last is None:
        last = Seen(counters.process, configured=counters.process is not None)
    if counters.process is None:
        return last, SwitchCounters(None)
    if last.process != counters.process:
        last = Seen(counters.process, fresh=True)
    if not last.configured:
        if not (counters.coverage or {}).get(_RECONFIGURED):
            return last, replace(counters, ports=None)
        last = replace(last, configured=True)
    return last, counters


def _counted(part: str, counters: SwitchCounters, ofports: Mapping[str, int]) -> dict[str, Drop]:
    """Return the drops of one part by their ``drop_key``."""
    alone: dict[str, Any] = {part: getattr(counters, part)}
    return {drop_key(*drop.place): drop for drop in drops(SwitchCounters(counters.process, **alone), ofports)}


def _traffic(port: PortCounters, before: tuple[int, int]) -> tuple[int, int]:
    """Return what a port has received, and what it has dropped when sending. A port whose guest is not connected does
    not tell (lib/netdev-dpdk.c, netdev_dpdk_vhost_get_stats): then it is what it told ``before``."""
    told = port.statistics
    return told.get("rx_packets", before[0]), told.get("tx_dropped", before[1])


@dataclass(frozen=True, slots=True)
class _Resets:
    """The ports that have set counters back since the last look: their ``own``, and those that their ``device`` keeps
    for a port, which a NIC does, and vhost does for as long as a guest is connected."""

    own: Set[str] = frozenset()
    device: Set[str] = frozenset()


def _resets(
    before: Seen, ports: Mapping[str, PortCounters], now: Mapping[str, tuple[int, int]], counted: Mapping[str, Drop]
) -> _Resets:
    """Find the resets. A port sets all its own counters back at once, ``tx_dropped`` among them (lib/netdev-dpdk.c,
    dpdk_vhost_reconfigure_helper), and what it counts never becomes less otherwise. A NIC's device begins again only
    with a new port."""
    known = before.drops.get("ports", {})
    both = [(name, traffic, before.ports[name]) for name, traffic in now.items() if name in before.ports]
    device = {name for name, (received, _), (last, _) in both if received < last}
    own = {name for name, (_, dropped), (_, last) in both if dropped < last}
    own |= {name for name in device if not ports[name].vhost}
    own |= {drop.port for key, drop in counted.items()
            if drop.reason not in _BY_DEVICE | DIFFERENCES and drop.packets < known.get(key, 0)}  # fmt: skip
    return _Resets(own, device)


def _first(part: str, before: Seen) -> bool:
    """Whether a part is read for the first time of a process that had counted before anyone looked."""
    return part not in before.drops and not before.fresh


def _grown(before: Counts, now: Mapping[str, Drop], reset: _Resets) -> Iterator[Drop]:
    """Yield what was counted since the last look."""
    for key, drop in now.items():
        known = _known(before.get(key, 0), drop, reset)
        if drop.packets > known:
            yield Drop(drop.reason, drop.packets - known, drop.port, drop.vni)


def _known(before: int, drop: Drop, reset: _Resets) -> int:
    """Return what a counter had counted at the last look, or 0 if it was set back since: then all of it is new.

    A counter that is less than before was set back by itself, as that of a flow that was replaced. A difference of two
    counters (NOT_READY, NO_BUFFER) may only seem so, as they are not read at the same instant. What a NIC has missed is
    counted by the device, which keeps it when the switch makes the port again.
    """
    if not before:
        return 0
    set_back = drop.port in (reset.device if drop.reason in _BY_DEVICE else reset.own)
    return 0 if set_back or (drop.packets < before and drop.reason not in DIFFERENCES) else before


def _add_flows(sums: dict[str, int], before: Seen, counters: SwitchCounters) -> None:
    """Add the growth of each cookie's packets to the sum of its kind. Many flows may have one cookie. Where these have
    fewer packets than before, one of them was replaced or is gone, and nothing is known of the growth of the others."""
    first = _first("flows", before)
    for flow in counters.flows or ():
        known = flow.packets if first else before.flows.get(flow_key(flow), 0)
        sums[flow.kind] = sums.get(flow.kind, 0) + max(0, flow.packets - known)


def _after(
    before: Seen, counters: SwitchCounters, counted: Mapping[str, Mapping[str, Drop]],
    ports: Mapping[str, tuple[int, int]], reset: _Resets,
) -> Seen:  # fmt: skip
    """Return what is known for the next look. A port, a flow or an event that is gone is forgotten: it would count from
    0. A difference keeps the most that it was, so that no packet of it is counted twice."""
    known = dict(before.drops)
    for part, found in counted.items():
        if getattr(counters, part) is not None:
            last = before.drops.get(part, {})
            counts = {key: max(drop.packets, _known(last.get(key, 0), drop, reset))
                      if drop.reason in DIFFERENCES else drop.packets for key, drop in found.items()}  # fmt: skip
            known[part] = {key: packets for key, packets in counts.items() if packets}
    flows = before.flows
    if counters.flows is not None:
        flows = {flow_key(flow): flow.packets for flow in counters.flows if flow.packets}
    return replace(before, drops=known, flows=flows, ports=before.ports if counters.ports is None else ports)


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

"""What the active instance has dropped, and what of it while we looked. This module is pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ovs_hotswap.counters.drops import DIFFERENCES, Drop, Reason, drops, growth
from ovs_hotswap.counters.values import SwitchCounters
from ovs_hotswap.diagnose.facts import Facts
from ovs_hotswap.diagnose.found import Dropped


def grown(facts: Facts) -> tuple[Drop, ...]:
    """What was dropped while we looked. A counter that could not be read at both looks is unknown and has nothing here:
    all that it ever counted would otherwise be taken for new. The same holds for all counters of a switch that was
    started again in between."""
    switch = facts.switch
    if switch is None or switch.before is None or switch.after is None:
        return ()
    before, after = switch.before, switch.after
    if before.process != after.process:
        return ()
    vms = _numbers(facts)
    found = growth(drops(_common(before, after), vms), drops(_common(after, before), vms))
    return tuple(each for each in found if _sure(each, found))


def _common(counters: SwitchCounters, other: SwitchCounters) -> SwitchCounters:
    """The counters without the parts and ports that the other look has not."""
    ports = {name: port for name, port in (counters.ports or {}).items() if name in (other.ports or {})}
    return replace(
        counters, ports=ports, flows=counters.flows if other.flows is not None else None,
        coverage=counters.coverage if other.coverage is not None else None,
    )  # fmt: skip


def _sure(drop: Drop, found: tuple[Drop, ...]) -> bool:
    """Whether packets were dropped for this reason for sure. What is the rest of a port's drops may be some packets too
    many while the reasons that are taken away from it grow themselves (``counters.drops.DIFFERENCES``)."""
    if drop.reason not in DIFFERENCES:
        return True
    named = sum(each.packets for each in found if each.port == drop.port and each.reason not in DIFFERENCES)
    return drop.packets > named


def dropped(facts: Facts, vm: str | None) -> tuple[Dropped, ...]:
    """Every drop counter that is not 0, those that grow first. With our own flows, the count of all packets without an
    output repeats what these flows have counted."""
    switch = facts.switch
    if switch is None or switch.after is None:
        return ()
    vms = _numbers(facts)
    now = {each.place: each.packets for each in grown(facts)}
    found = [
        Dropped(
            each.port if each.port in vms else None, each.vni or None, each.reason, each.packets, now.get(each.place, 0)
        )
        for each in drops(switch.after, vms)
        if each.packets and not (each.reason is Reason.PIPELINE and facts.wanted.overlay)
    ]
    asked = [each for each in found if vm is None or each.vm in (None, vm)]
    return tuple(sorted(asked, key=lambda each: (-each.now, each.vm or "", each.reason)))


def overflows(facts: Facts) -> Mapping[str, int]:
    """How many packets each port has dropped while we looked because its ring was full."""
    return {each.port: each.packets for each in grown(facts) if each.reason is Reason.RING_FULL}


def _numbers(facts: Facts) -> dict[str, int]:
    return {vm.name: vm.ofport for vm in facts.wanted.vms.values()}

"""The reports of the demo's upgrades, with what the guests saw in the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ovs_hotswap.lab.phases import GuestGaps, Phase
from ovs_hotswap.lab.pings import PingStats
from ovs_hotswap.reports.document import Gap, GapSource, Pings, RunReport, VmPart
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.system import System


def with_guests(report: RunReport, phase: Phase, quiet: Phase, restart_ms: float | None) -> RunReport:
    """Return the report with the pings of the phase in which it was made, and of the phase in which nothing was done.
    ``restart_ms``: the longest gap in a plain restart of the switch."""
    floor = {(each.guest, each.target): each.longest_gap_ms for each in quiet.pings}
    where = {(each.guest, each.target): each for each in phase.gaps}
    known = {vm.name: vm for vm in report.vms}
    vms = []
    for name in dict.fromkeys([*known, *(each.guest for each in phase.pings)]):
        own = [each for each in phase.pings if each.guest == name]
        pings = tuple(_pings(each, where.get((name, each.target)), floor.get((name, each.target))) for each in own)
        vms.append(_with_gap(replace(known.get(name, VmPart(name)), pings=pings), phase.gaps))
    return replace(report, vms=tuple(vms), restart_ms=restart_ms)


def _pings(seen: PingStats, gaps: GuestGaps | None, quiet_ms: float | None) -> Pings:
    return Pings(seen.target, seen.sent, seen.lost, seen.duplicated, seen.longest_gap_ms,
                 None if gaps is None else gaps.handover, quiet_ms)  # fmt: skip


def _with_gap(vm: VmPart, gaps: Sequence[GuestGaps]) -> VmPart:
    """The VM with the longest gap that its guest saw, if it saw one."""
    seen = [(each.longest_ms, each.target) for each in vm.pings if each.longest_ms is not None]
    if not seen:
        return vm
    ms, target = max(seen)
    step = next((each.step for each in gaps if (each.guest, each.target) == (vm.name, target)), None)
    found = (*vm.gaps, Gap(GapSource.GUEST, ms, None, step, target))
    return replace(vm, gaps=tuple(sorted(found, key=lambda gap: -gap.ms)))


def keep(reports: Sequence[RunReport], directory: Path, system: System) -> list[Path]:
    """Write the reports into a directory in which those of earlier demos are, and return the paths of their pages.
    Raises HostError."""
    store = Reports(directory, system)
    return [store.page(store.write(each).id) for each in reports]

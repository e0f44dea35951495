"""A report beside earlier ones of the same kind. This module is pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.reports.document import Outcome, RunKind, RunReport, StageResult
from ovs_hotswap.reports.words import quantile

MOST = 10
"""How many earlier runs are shown."""
SLOW = 1.5
"""A step that took so many times its usual time is marked, if it took longer by more than ``SLOW_S``."""
SLOW_S = 0.2
_ENOUGH = 2  # runs, from which on there is a usual time


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run by which it is compared.

    ``vms``: how many passed from one instance to another. ``p50_us``, ``p99_us``, ``worst_us``: 50 % and 99 % of all
    handovers, and the longest. ``longest_ms``: the longest gap of any VM.
    """

    report: RunReport
    vms: int
    p50_us: float | None
    p99_us: float | None
    worst_us: float | None
    longest_ms: float | None

    @classmethod
    def of(cls, report: RunReport) -> Figures:
        times = [vm.handover_us for vm in report.moved if vm.handover_us is not None]
        worst = report.worst
        return cls(report, len(report.passed), quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1.0),
                   None if worst is None else worst[1].ms)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """``earlier``: the newest first. ``usual``: the median of the seconds that each step took in them; a step that was
    done in fewer than two of them is missing."""

    own: Figures
    earlier: tuple[Figures, ...]
    usual: Mapping[str, float]

    def slow(self, step: str, seconds: float) -> bool:
        """Whether a step took clearly longer than usual."""
        usual = self.usual.get(step)
        return usual is not None and seconds > SLOW * usual and seconds - usual > SLOW_S


def alike(one: RunReport, other: RunReport) -> bool:
    """Whether two runs can be compared: two failovers, or two runs of the same plan."""
    failovers = [each.kind is RunKind.FAILOVER for each in (one, other)]
    return all(failovers) or (not any(failovers) and one.steps == other.steps)


def compare(report: RunReport, others: Sequence[RunReport]) -> Comparison:
    """Compare a run with those among ``others`` that were begun before it and are like it. One that was refused shows
    nothing."""
    before = [each for each in others if each.id != report.id and each.started < report.started
              and each.outcome is not Outcome.REFUSED and alike(report, each)]  # fmt: skip
    before.sort(key=lambda each: -each.started)
    took: dict[str, list[float]] = {}
    for each in before[:MOST]:
        done: dict[str, float] = {}
        for stage in each.stages:
            if not stage.undo and stage.result is StageResult.DONE:
                done[stage.name] = done.get(stage.name, 0.0) + stage.seconds
        for name, seconds in done.items():
            took.setdefault(name, []).append(seconds)
    usual = {name: statistics.median(seconds) for name, seconds in took.items() if len(seconds) >= _ENOUGH}
    return Comparison(Figures.of(report), tuple(Figures.of(each) for each in before[:MOST]), usual)

"""Figures and outcomes in words, for the page and for the terminal. This module is pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from ovs_hotswap.model import Severity
from ovs_hotswap.reports.document import Gap, GapSource, Outcome, RunKind, RunReport, Stage, StageResult

SOURCES = {
    GapSource.HANDOVER: "neither instance had its rings",
    GapSource.FAILOVER: "from the detection until the standby had its rings",
    GapSource.UPLINK: "no instance had the uplink",
    GapSource.STOPPED: "QEMU stood still while the broker entered",
    GapSource.GUEST: "its guest got no answer",
}
SEVERITIES = (Severity.ERROR, Severity.UNKNOWN, Severity.WARNING, Severity.OK)


def milliseconds(ms: float | None) -> str:
    """0.06 ms, 8.4 ms, 120 ms, 1.31 s."""
    if ms is None:
        return "-"
    if ms >= 1000:
        return seconds(ms / 1e3)
    return f"{ms:.2f} ms" if ms < 1 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def seconds(value: float | None) -> str:
    """38 ms, 1.31 s, 12.4 s, 4 min 05 s."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def clock(time: float) -> str:
    """A time in UTC."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}"


def several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def title(report: RunReport) -> str:
    """How it ended, in a few words."""
    what = f"{report.kind}".capitalize()
    match report.outcome:
        case Outcome.DONE if report.kind is RunKind.FAILOVER:
            return f"Failover from {report.old} to {report.new}"
        case Outcome.INCOMPLETE:
            return f"Failover from {report.old} to {report.new} left VMs behind"
        case Outcome.DONE:
            back = report.kind is RunKind.ROLLBACK
            return f"{'Rolled back' if back else 'Upgraded'} to {report.release or 'an unknown release'}"
        case Outcome.ROLLED_BACK:
            return f"{what} undone"
        case Outcome.REFUSED:
            return f"{what} refused: nothing was changed"
        case Outcome.UNFINISHED:
            return f"{what} not finished"


def about(report: RunReport) -> str:
    """What it was about, in one line."""
    if report.kind is RunKind.FAILOVER:
        return f"instance {report.old}: {report.reason or 'the reason is not known'}"
    old, new = (report.labels.get(name or "", name or "?") for name in (report.previous, report.release))
    return f"{old} on {report.old or '?'} → {new} on {report.new or '?'}"


def stage_name(stage: Stage) -> str:
    return f"undo {stage.name}" if stage.undo else stage.name


def stage_note(stage: Stage) -> str:
    """What is to be said of a stage besides its time."""
    if stage.result is StageResult.DONE:
        return ""
    return f"{stage.result}{f': {stage.text}' if stage.text else ''}"


def gap_text(gap: Gap) -> str:
    """A gap with what it was and where."""
    what = f"{SOURCES[gap.source]}{f' from {gap.target}' if gap.target else ''}"
    return f"{milliseconds(gap.ms)}, {what}{f', in {gap.step}' if gap.step else ''}"


def why(report: RunReport) -> list[str]:
    """What ended it early, one text for each line; empty if nothing did."""
    if report.outcome is Outcome.DONE:
        return []
    if report.kind is RunKind.FAILOVER:
        return [report.failure] if report.failure else []
    found = []
    if report.failure and report.failure not in (report.message or ""):
        found.append(f"Step {report.failed_step or 'commit'} failed: {report.failure}")
    elif not report.failure and report.outcome is Outcome.ROLLED_BACK:
        found.append("No step failed: it was undone by order.")
    elif not report.failure and report.outcome is Outcome.UNFINISHED and report.stages:
        found.append(f"It stopped in the step {report.stages[-1].name}.")
    return [*found, *(report.message or "").splitlines()]


def advice(report: RunReport) -> str | None:
    """The command that helps next."""
    if report.hint:
        return report.hint
    if report.outcome is Outcome.UNFINISHED:
        return "`ovs-hotswap status`, then `ovs-hotswap resume` or `ovs-hotswap rollback`"
    return "`ovs-hotswap vm list`" if report.outcome is Outcome.INCOMPLETE else None

"""The page of `diagnose` for people. This module is pure."""

from __future__ import annotations

from collections.abc import Iterator

from ovs_hotswap.diagnose.finding_lines import Line, findings, heading, headline, wrapped
from ovs_hotswap.diagnose.found import Path, Report
from ovs_hotswap.model import Severity

_DROPS = 12


def lines(report: Report, width: int = 100) -> Iterator[Line]:
    """The page. ``width``: in characters; text that is longer is wrapped."""
    about = report.vm or "this host"
    to = f" to {report.to}" if report.to else ""
    active = f"instance {report.active} is active" if report.active is not None else "no instance is active"
    yield None, f"{about}{to}: {active}, counters watched for {report.seconds:g} s"
    yield None, ""
    yield from findings(report.findings, width, "`ovs-hotswap --json diagnose`")
    if report.seen:
        yield from heading("What was seen")
        wide = max(len(each.about) for each in report.seen)
        for each in report.seen:
            yield from wrapped(f"  {each.about:<{wide}}  ", each.text, width)
    if report.paths:
        yield from heading("Where the flows lead")
        for path in report.paths:
            yield from _path(path, width)
    yield from _drops(report)
    if report.limits:
        yield from heading("Not judged")
        for text in report.limits:
            yield from wrapped("  - ", text, width)


def _path(path: Path, width: int) -> Iterator[Line]:
    severity = Severity.ERROR if path.delivered is False else None
    yield from wrapped("  ", path.question, width, severity)
    for number, step in enumerate(path.steps, 1):
        yield from wrapped(f"    {number}. ", step, width)


def _drops(report: Report) -> Iterator[Line]:
    if not report.drops:
        return
    yield from heading("Packets dropped since the switch began to count")
    wide = max([len(each.vm or "-") for each in report.drops] + [2])
    yield None, f"  {'VM':<{wide}}  {'VNI':<8}  {'reason':<24} {'packets':>12} {'now':>8}"
    for each in report.drops[:_DROPS]:
        where = f"{each.vm or '-':<{wide}}  {each.vni or '-':<8}"
        yield None, f"  {where}  {each.reason:<24} {each.packets:>12} {each.now:>8}"
    if len(report.drops) > _DROPS:
        yield None, f"  and {len(report.drops) - _DROPS} more: `ovs-hotswap --json diagnose` has all"


def headlines(report: Report) -> list[str]:
    """A line for each finding, for a report that is followed."""
    return [headline(each) for each in report.findings]

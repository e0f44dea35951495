"""The page of `diagnose` for people. This module is pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ovs_hotswap.diagnose.found import Finding, Path, Report
from ovs_hotswap.model import Severity

_MARKS = {Severity.ERROR: "FAIL", Severity.WARNING: "WARN", Severity.UNKNOWN: "?", Severity.OK: "ok"}
_ALIKE = 3  # findings that differ in the VM alone and are shown whole
_OF_ONE_CAUSE = 4  # findings that differ in more
_DROPS = 12

Line = tuple[Severity | None, str]
"""A line of the page, and the severity that it shows, if any."""


def lines(report: Report, width: int = 100) -> Iterator[Line]:
    """The page. ``width``: in characters; text that is longer is wrapped."""
    about = report.vm or "this host"
    to = f" to {report.to}" if report.to else ""
    active = f"instance {report.active} is active" if report.active is not None else "no instance is active"
    yield None, f"{about}{to}: {active}, counters watched for {report.seconds:g} s"
    yield None, ""
    if not report.findings:
        yield Severity.OK, f"{_MARKS[Severity.OK]:<5} nothing that was looked at is wrong"
    shown = dict[str, int]()
    for finding, more in _grouped(report.findings):
        shown[finding.cause] = number = shown.get(finding.cause, 0) + 1
        if number <= _OF_ONE_CAUSE:
            yield from _finding(finding, more, width)
    for cause, number in shown.items():
        if number > _OF_ONE_CAUSE:
            yield None, f"      and {number - _OF_ONE_CAUSE} more [{cause}]: `ovs-hotswap --json diagnose` has all"
    if report.seen:
        yield from _heading("What was seen")
        wide = max(len(each.about) for each in report.seen)
        for each in report.seen:
            yield from _wrapped(f"  {each.about:<{wide}}  ", each.text, width)
    if report.paths:
        yield from _heading("Where the flows lead")
        for path in report.paths:
            yield from _path(path, width)
    yield from _drops(report)
    if report.limits:
        yield from _heading("Not judged")
        for text in report.limits:
            yield from _wrapped("  - ", text, width)


def _grouped(findings: Sequence[Finding]) -> Iterator[tuple[Finding, list[str]]]:
    """Yield each finding, with the VMs that have the same one and are not shown themselves."""
    by_cause = dict[tuple[str, str], list[Finding]]()
    for each in findings:
        same = each.text.replace(each.vm, "") if each.vm else each.text
        by_cause.setdefault((each.cause, same), []).append(each)
    for group in by_cause.values():
        shown = group if len(group) <= _ALIKE else group[:1]
        for each in shown:
            yield each, [other.vm or "" for other in group if other not in shown]


def _finding(finding: Finding, more: Sequence[str], width: int) -> Iterator[Line]:
    mark = f"{_MARKS[finding.severity]:<5} "
    text = f"{finding.text} [{finding.cause}]"
    yield from _wrapped(mark, text, width, finding.severity)
    if more:
        yield from _wrapped("      ", f"the same of {len(more)} more: {', '.join(more)}", width)
    for each in finding.evidence:
        yield from _wrapped("      seen: ", each, width)
    yield from _wrapped("      next: ", finding.command, width, whole=True)


def _path(path: Path, width: int) -> Iterator[Line]:
    severity = Severity.ERROR if path.delivered is False else None
    yield from _wrapped("  ", path.question, width, severity)
    for number, step in enumerate(path.steps, 1):
        yield from _wrapped(f"    {number}. ", step, width)


def _drops(report: Report) -> Iterator[Line]:
    if not report.drops:
        return
    yield from _heading("Packets dropped since the switch began to count")
    wide = max([len(each.vm or "-") for each in report.drops] + [2])
    yield None, f"  {'VM':<{wide}}  {'VNI':<8}  {'reason':<24} {'packets':>12} {'now':>8}"
    for each in report.drops[:_DROPS]:
        where = f"{each.vm or '-':<{wide}}  {each.vni or '-':<8}"
        yield None, f"  {where}  {each.reason:<24} {each.packets:>12} {each.now:>8}"
    if len(report.drops) > _DROPS:
        yield None, f"  and {len(report.drops) - _DROPS} more: `ovs-hotswap --json diagnose` has all"


def _heading(text: str) -> Iterator[Line]:
    yield None, ""
    yield None, text


def _wrapped(start: str, text: str, width: int, severity: Severity | None = None, *, whole: bool = False,
             ) -> Iterator[Line]:  # fmt: skip
    """``whole``: the text has commands, which are not broken."""
    if whole:
        yield severity, start + text
        return
    for number, part in enumerate(textwrap.wrap(text, max(40, width - len(start)), break_on_hyphens=False)):
        yield severity if not number else None, (start if not number else " " * len(start)) + part


def headlines(report: Report) -> list[str]:
    """A line for each finding, for a report that is followed."""
    return [f"{_MARKS[each.severity]:<5} {each.text} [{each.cause}]" for each in report.findings]

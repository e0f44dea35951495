"""Findings as lines for people, as `diagnose` and `bursts` print them. This module is pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from ovs_hotswap.model import Severity

MARKS = {Severity.ERROR: "FAIL", Severity.WARNING: "WARN", Severity.UNKNOWN: "?", Severity.OK: "ok"}
_ALIKE = 3  # findings that differ in the VM alone and are shown whole
_OF_ONE_CAUSE = 4  # findings that differ in more

Line = tuple[Severity | None, str]
"""A line of a page, and the severity that it shows, if any."""


class Shown(Protocol):
    """What a finding has for people. ``cause``: the name of its kind, which never changes. ``vm``: the VM that alone is
    concerned. ``evidence``: what was seen, with its source. ``command``: what to type next."""

    @property
    def cause(self) -> str: ...
    @property
    def severity(self) -> Severity: ...
    @property
    def vm(self) -> str | None: ...
    @property
    def text(self) -> str: ...
    @property
    def evidence(self) -> tuple[str, ...]: ...
    @property
    def command(self) -> str: ...


Kind = TypeVar("Kind", bound=Shown)


def findings(found: Sequence[Shown], width: int, everything: str) -> Iterator[Line]:
    """Yield the findings, or that there are none. ``width``: in characters; text that is longer is wrapped.
    ``everything``: the command that shows all of them."""
    if not found:
        yield Severity.OK, f"{MARKS[Severity.OK]:<5} nothing that was looked at is wrong"
    shown = dict[str, int]()
    for finding, more in _grouped(found):
        shown[finding.cause] = number = shown.get(finding.cause, 0) + 1
        if number <= _OF_ONE_CAUSE:
            yield from _finding(finding, more, width)
    for cause, number in shown.items():
        if number > _OF_ONE_CAUSE:
            yield None, f"      and {number - _OF_ONE_CAUSE} more [{cause}]: {everything} has all"


def _grouped(found: Sequence[Kind]) -> Iterator[tuple[Kind, list[str]]]:
    """Yield each finding, with the VMs that have the same one and are not shown themselves."""
    by_cause = dict[tuple[str, str], list[Kind]]()
    for each in found:
        same = each.text.replace(each.vm, "") if each.vm else each.text
        by_cause.setdefault((each.cause, same), []).append(each)
    for group in by_cause.values():
        shown = group if len(group) <= _ALIKE else group[:1]
        for each in shown:
            yield each, [other.vm or "" for other in group if other not in shown]


def _finding(finding: Shown, more: Sequence[str], width: int) -> Iterator[Line]:
    mark = f"{MARKS[finding.severity]:<5} "
    yield from wrapped(mark, f"{finding.text} [{finding.cause}]", width, finding.severity)
    if more:
        yield from wrapped("      ", f"the same of {len(more)} more: {', '.join(more)}", width)
    for each in finding.evidence:
        yield from wrapped("      seen: ", each, width)
    yield from wrapped("      next: ", finding.command, width, whole=True)


def headline(finding: Shown) -> str:
    """Return the line of a finding in a report that is followed."""
    return f"{MARKS[finding.severity]:<5} {finding.text} [{finding.cause}]"


def heading(text: str) -> Iterator[Line]:
    yield None, ""
    yield None, text


def wrapped(start: str, text: str, width: int, severity: Severity | None = None, *, whole: bool = False,
            ) -> Iterator[Line]:  # fmt: skip
    """``whole``: the text has commands, which are not broken."""
    if whole:
        yield severity, start + text
        return
    for number, part in enumerate(textwrap.wrap(text, max(40, width - len(start)), break_on_hyphens=False)):
        yield severity if not number else None, (start if not number else " " * len(start)) + part

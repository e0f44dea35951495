"""Short texts about many things. This module is pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ovs_hotswap.model import Finding, Severity

SHOWN = 3  # how many examples are shown
_LONGEST = 120  # characters of an example
_ALIKE = 8  # how many findings of one check are shown that differ in more than the item


def some(items: Sequence[str], apart: str = ", ") -> str:
    """Return the items as one text, or a few of them and how many more there are."""
    if len(items) <= SHOWN + 1:
        return apart.join(items)
    return f"{apart.join(items[:SHOWN])} and {len(items) - SHOWN} more"


def short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel writes them: ``{0, 1, 2, 5}`` becomes ``0-2,5``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def listed(text: str) -> frozenset[int]:
    """Return the numbers of a list such as ``0-2,5``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def summary(
    findings: Sequence[Finding], everything: str = "`ovs-hotswap --json check --release NAME`"
) -> list[Finding]:
    """Return findings as people can read them, in the order in which they were found. ``everything``: the command that
    lists them all.

    Findings that say the same about many things become one finding, with the number and some examples.
    """
    groups: dict[tuple[str, Severity, str], list[Finding]] = {}
    for finding in findings:
        same = finding.text.replace(finding.item, "\0") if finding.item else finding.text
        groups.setdefault((finding.check, finding.severity, same), []).append(finding)
    found: list[Finding] = []
    for group in groups.values():
        found += [_one(group)] if len(group) > SHOWN else [_cut(each) for each in group]
    return _capped(found, everything)


def _cut(finding: Finding) -> Finding:
    return replace(finding, text=finding.text.replace(finding.item, short(finding.item))) if finding.item else finding


def _one(group: Sequence[Finding]) -> Finding:
    first = _cut(group[0])
    if first.item is None:
        return replace(first, text=f"{first.text} ({len(group)} times)")
    others = some([short(each.item or "") for each in group[1:]], "; ")
    return replace(first, text=f"{len(group)} times: {first.text}; also of {others}")


def _capped(findings: Sequence[Finding], everything: str) -> list[Finding]:
    counts: dict[tuple[str, Severity], int] = {}
    found = []
    for finding in findings:
        key = finding.check, finding.severity
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= _ALIKE:
            found.append(finding)
    return found + [
        Finding(check, severity, f"and {count - _ALIKE} more", f"{everything} lists all")
        for (check, severity), count in counts.items()
        if count > _ALIKE
    ]

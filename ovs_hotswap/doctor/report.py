"""What doctor reports: sections from the bottom of a host to its VMs, and the findings in them. This module is pure.

Every finding that is not ``ok`` is made by a ``Kind`` or adopted by one, so that ``catalogue`` can list them all and a
test can plant each of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.model import Finding, Severity


class Section(enum.StrEnum):
    CPU = "cpu"
    MEMORY = "memory"
    DEVICES = "devices"
    KERNEL = "kernel"
    VERSIONS = "versions"
    UNITS = "units"
    ACCESS = "access"
    CLOCK = "clock"
    DISK = "disk"
    RELEASES = "releases"
    CONFIGURATION = "configuration"
    OVERLAY = "overlay"
    BROKER = "broker"
    INSTANCES = "instances"
    STANDBY = "standby"
    UPLINK = "uplink"
    VMS = "vms"


@dataclass(frozen=True, slots=True)
class Found:
    """A finding in its section. ``hint`` is the command that fixes it. ``safe``: `doctor --fix` may run that command,
    because it takes effect at once and what it changes can be put back."""

    section: Section
    check: str
    severity: Severity
    text: str
    hint: str | None = None
    item: str | None = None
    safe: bool = False

    @property
    def finding(self) -> Finding:
        return Finding(self.check, self.severity, self.text, self.hint, self.item)


@dataclass(frozen=True, slots=True)
class Kind:
    """One finding that doctor can report. ``hint``: the command of an adopted finding, which brings none or only says
    what to change. ``safe`` is as in ``Found``."""

    section: Section
    check: str
    severity: Severity
    hint: str = ""
    safe: bool = False

    def __call__(self, text: str, hint: str, item: str | None = None, *, safe: bool | None = None) -> Found:
        return Found(self.section, self.check, self.severity, text, hint, item, self.safe if safe is None else safe)


def ok(section: Section, check: str, text: str) -> Found:
    return Found(section, check, Severity.OK, text)


def healthy(found: Iterable[Found], section: Section, check: str, text: str) -> list[Found]:
    """Return the findings, or the text as what is well if there are none."""
    return list(found) or [ok(section, check, text)]


class Adopter:
    """Takes findings of checks that other commands make, too, into a section."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds = {(kind.section, kind.check, kind.severity): kind for kind in kinds}

    def __call__(self, section: Section, findings: Iterable[Finding], *, safe: bool = True) -> Iterator[Found]:
        """Yield each finding in ``section``. One that no kind describes stays as it is. With ``safe=False`` none is
        safe, whatever its kind says."""
        for each in findings:
            kind = self._kinds.get((section, each.check, each.severity))
            hint = "; ".join(filter(None, (each.hint, kind.hint if kind is not None else None))) or None
            may = safe and kind is not None and kind.safe
            yield Found(section, each.check, each.severity, each.text, hint, each.item, may)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many findings there are of each severity."""

    ok: int
    warning: int
    error: int
    unknown: int

    @classmethod
    def of(cls, found: Iterable[Found]) -> Counts:
        severities = [each.severity for each in found]
        return cls(*(severities.count(each) for each in Severity))


@dataclass(frozen=True, slots=True)
class Report:
    """What `doctor --json` prints. ``ready``: no finding is an error, and everything could be seen. ``changed`` has the
    commands that `doctor --fix` or `--undo` has run."""

    sections: tuple[Section, ...]
    findings: tuple[Found, ...]
    counts: Counts
    ready: bool
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, sections: Sequence[Section], found: Iterable[Found], changed: Sequence[str] = ()) -> Report:
        findings = tuple(found)
        counts = Counts.of(findings)
        return cls(tuple(sections), findings, counts, not counts.error and not counts.unknown, tuple(changed))


def by_section(found: Iterable[Found], sections: Iterable[Section]) -> Mapping[Section, list[Found]]:
    """Return the findings of each section, without the same finding twice."""
    seen = list(dict.fromkeys(found))
    return {section: [each for each in seen if each.section is section] for section in sections}

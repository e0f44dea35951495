"""The report of one upgrade, rollback or failover. This module is pure.

A field that is not known is ``None``, and never estimated. Times are seconds since the epoch, by the host's clock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ovs_hotswap.model import Severity, Side

FORMAT = 1


class RunKind(enum.StrEnum):
    """What was done. ``ROLLBACK``: the command `rollback` after a finished upgrade, which is an upgrade back. The
    rollback of an unfinished upgrade belongs to the report of that upgrade."""

    UPGRADE = "upgrade"
    ROLLBACK = "rollback"
    FAILOVER = "failover"


class Outcome(enum.StrEnum):
    """How it ended. ``REFUSED``: nothing was changed. ``UNFINISHED``: it was interrupted, or a step failed after which
    only `resume` or `rollback` helps. ``INCOMPLETE``: a failover that left VMs behind."""

    DONE = "done"
    ROLLED_BACK = "rolled back"
    REFUSED = "refused"
    UNFINISHED = "unfinished"
    INCOMPLETE = "incomplete"


class StageResult(enum.StrEnum):
    """``INTERRUPTED``: nothing says how it ended, because the process that did it was killed."""

    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a plan that was done, or undone if ``undo`` is set, from ``begin`` to ``end``; or a stage of a
    failover. ``text``: why it failed."""

    name: str
    begin: float
    end: float
    undo: bool = False
    result: StageResult = StageResult.DONE
    text: str = ""

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.begin)


class GapSource(enum.StrEnum):
    """Where a gap was seen.

    ``HANDOVER``: on the broker's or QEMU's clock, neither side had the VM's rings. ``FAILOVER``: from the moment at
    which the failure was detected until the standby had the rings. ``UPLINK``: no instance had the uplink, so nothing
    came from other hosts or went there. ``STOPPED``: QEMU stood still while the broker entered its connection.
    ``GUEST``: a guest got no answer to its pings, which only a lab can see.
    """

    HANDOVER = "handover"
    FAILOVER = "failover"
    UPLINK = "uplink"
    STOPPED = "stopped"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Gap:
    """A time of ``ms`` milliseconds in which a VM had no network, or not all of it. ``step``: the step or stage that
    ran for most of it. ``target``: whose answers were missing, of a gap that a guest saw."""

    source: GapSource
    ms: float
    begin: float | None = None
    step: str | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Pings:
    """What one guest's pings of one target showed in the run. ``quiet_ms``: the longest gap while nothing was done,
    which is the noise of the machine. ``around_ms``: the longest gap around the VM's handover."""

    target: str
    sent: int
    lost: int
    duplicated: int
    longest_ms: float | None
    around_ms: float | None = None
    quiet_ms: float | None = None


@dataclass(frozen=True, slots=True)
class VmPart:
    """What became of one VM.

    ``handover_us``: the microseconds of its handover, or of the one by which it was moved back. ``since``: when its
    owner got the rings, if that was in the run. ``gaps``: the longest first. ``apart``: why it did not pass. ``note``:
    how it passed, if it is not known how long that took.
    """

    name: str
    handover_us: float | None = None
    since: float | None = None
    gaps: tuple[Gap, ...] = ()
    apart: str | None = None
    note: str | None = None
    pings: tuple[Pings, ...] = ()

    @property
    def longest(self) -> Gap | None:
        return self.gaps[0] if self.gaps else None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One finding of the step ``step``. Findings that say the same about many things are one."""

    step: str
    check: str
    severity: Severity
    text: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened during the run, at ``time``."""

    time: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """``id``: its time in UTC and its kind, such as ``20261129-081500-upgrade``. ``host``: the host's name.
    ``program``: the version of ovs-hotswap. ``labels``: the versions of the releases by name. ``steps``: the names of
    the plan's steps, or of the stages, in order; ``descriptions``: what they do, by name. ``committed``: when the
    commit was.

    ``reason``: why it was begun, of a failover. ``failed_step`` and ``failure``: what ended it early. ``message`` and
    ``hint``: the last words that the operator read then. ``protected_after_s``: the seconds from a failover until a
    standby was ready again. ``restart_ms``: the longest gap in a plain restart of the switch, measured in the same lab.
    """

    version: int = FORMAT
    id: str
    kind: RunKind
    outcome: Outcome
    host: str
    program: str
    started: float
    ended: float
    old: Side | None = None
    new: Side | None = None
    previous: str | None = None
    release: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    failed_step: str | None = None
    failure: str | None = None
    message: str | None = None
    hint: str | None = None
    steps: tuple[str, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    committed: float | None = None
    stages: tuple[Stage, ...] = ()
    vms: tuple[VmPart, ...] = ()
    uplink_gap_ms: float | None = None
    protected_after_s: float | None = None
    restart_ms: float | None = None
    warnings: tuple[str, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    happenings: tuple[Happening, ...] = ()

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended - self.started)

    @property
    def passed(self) -> list[VmPart]:
        """The VMs that passed from one instance to another, by a handover or because the broker took them over."""
        return [vm for vm in self.vms if vm.gaps or vm.note]

    @property
    def moved(self) -> list[VmPart]:
        """The VMs whose handover was timed."""
        return [vm for vm in self.vms if vm.handover_us is not None]

    @property
    def lost(self) -> int | None:
        """The packets that guests lost; ``None`` if no guest counted them."""
        seen = [pings.lost for vm in self.vms for pings in vm.pings]
        return sum(seen) if seen else None

    @property
    def worst(self) -> tuple[VmPart, Gap] | None:
        """The VM with the longest gap of all, and that gap."""
        found = [(vm, vm.gaps[0]) for vm in self.vms if vm.gaps]
        return max(found, key=lambda each: each[1].ms, default=None)

"""What `bursts` reports: findings, worst first, and what was seen of threads and ports. This module is pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from ovs_hotswap.bursts.values import Cost
from ovs_hotswap.model import Severity, Side


class Cause(enum.StrEnum):
    """Why packets are lost in bursts, or may be at the next one. The values never change. Of two causes the first one
    explains more."""

    GUEST_TAKES_NOTHING = "guest-takes-nothing"
    PMD_PREEMPTED = "pmd-preempted"
    PMD_OVERLOADED = "pmd-overloaded"
    NEW_FLOWS = "new-flows"
    PMD_SLEEPS = "pmd-sleeps"
    RX_RING_SHORT = "rx-ring-short"
    RX_MISSED = "rx-missed"
    TX_RING_SHORT = "tx-ring-short"
    GUEST_QUEUES_UNUSED = "guest-queues-unused"
    GUEST_SLOW = "guest-slow"
    GUEST_RING_SHORT = "guest-ring-short"
    LOAD_UNBALANCED = "load-unbalanced"
    QUEUES_UNBALANCED = "queues-unbalanced"
    GUEST_SENDS_BURSTS = "guest-sends-bursts"
    FLOW_CACHE = "flow-cache"
    NOT_SEEN = "not-seen"


_WORST = (Severity.ERROR, Severity.UNKNOWN, Severity.WARNING)
_ORDER = {cause: number for number, cause in enumerate(Cause)}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of the switch's database: ``key`` of the map ``column`` in the row ``row`` of ``table``, which is empty
    for Open_vSwitch. ``value`` is ``None`` if the key is not there."""

    table: str
    row: str
    column: str
    key: str
    value: str | None

    @property
    def place(self) -> tuple[str, str, str, str]:
        return self.table, self.row, self.column, self.key

    @property
    def words(self) -> tuple[str, ...]:
        """The command of ovs-vsctl that makes it so."""
        row = self.row or "."
        if self.value is None:
            return "remove", self.table, row, self.column, self.key
        return "set", self.table, row, f"{self.column}:{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class Advice:
    """A change that helps, and that can be made while packets flow. ``name``: by which `--apply` knows it. ``effect``:
    what the change itself does to packets, in a sentence. ``stops``: packets of a port stop for a time."""

    name: str
    settings: tuple[Setting, ...]
    effect: str
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding. ``port``: where packets are lost. ``vm``: the VM that alone is concerned. ``lost``: packets while we
    looked. ``evidence``: what was seen, with its source. ``command``: what to type next. ``advice``: the name of the
    change that `--apply` can make; ``effect``: what that does to packets."""

    cause: Cause
    severity: Severity
    vm: str | None
    port: str | None
    lost: int
    text: str
    evidence: tuple[str, ...]
    command: str
    advice: str | None = None
    effect: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, with the change that it advises."""

    finding: Finding
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class ThreadLoad:
    """A PMD thread. ``busy``: the share of the time in which it had packets; ``peak``: the same in the interval in
    which it was largest; both ``None`` if the switch does not say. ``waits``: the share of the time for which it waited
    for its core. ``queues``: that it polls."""

    core: int
    numa: int | None
    busy: float | None
    peak: float | None
    waits: float
    queues: int


@dataclass(frozen=True, slots=True)
class PortLoad:
    """A port with packets. ``rx`` and ``tx``: packets a second, as the switch sees them; ``rx_peak`` and ``tx_peak``:
    in the interval with the most. ``lost``: packets. ``lossy``: the intervals in which packets were lost."""

    port: str
    rx: int
    rx_peak: int
    tx: int
    tx_peak: int
    lost: int
    lossy: int


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made, or would be. ``row`` is empty for Open_vSwitch. ``before`` and ``after``: ``None`` if the
    key is not there. ``seconds``: how long the switch took to make it; ``None`` if it was not made."""

    advice: str
    table: str
    row: str
    column: str
    key: str
    before: str | None
    after: str | None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What `bursts --json` prints. ``vm``: what was asked about. ``seconds``: how long counters were watched, in
    ``intervals``. ``applied``: what `--apply` changed, or with `--dry-run` would change. ``limits``: what cannot be
    judged here."""

    vm: str | None
    active: Side | None
    seconds: float
    intervals: int
    findings: tuple[Finding, ...]
    threads: tuple[ThreadLoad, ...]
    ports: tuple[PortLoad, ...]
    cost: Cost
    limits: tuple[str, ...]
    applied: tuple[Made, ...] = ()

    @property
    def worst(self) -> Severity:
        """The severity of the first finding; ``OK`` if there is none."""
        return self.findings[0].severity if self.findings else Severity.OK


def ordered(found: Iterable[Found]) -> list[Found]:
    """Return the findings worst first: by severity, then by what was lost, then by what explains more."""

    def key(each: Found) -> tuple[int, int, int, str]:
        finding = each.finding
        return _WORST.index(finding.severity), -finding.lost, _ORDER[finding.cause], finding.port or ""

    return sorted(found, key=key)

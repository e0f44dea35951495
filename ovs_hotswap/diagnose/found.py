"""What `diagnose` reports: findings, worst first. This module is pure.

``Cause`` has every finding that can be made. Its members stand in the order in which they explain each other: what ends
the network of every VM comes first, and what is only seen because of something else comes after it. So the first
finding of a report is the one to act on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from ovs_hotswap.model import Severity, Side


class Cause(enum.StrEnum):
    """Why packets do not pass, or may not pass for long. The values never change."""

    BROKER_GONE = "broker-gone"
    NO_ACTIVE = "no-active-instance"
    INSTANCE_DEAD = "instance-dead"
    INSTANCE_STOPPED = "instance-stopped"
    INSTANCE_SILENT = "instance-silent"
    PMD_STARVED = "pmd-starved"
    PMD_STANDS = "pmd-stands-still"
    POOL_EMPTY = "packet-pool-empty"
    QUARANTINE = "quarantine"
    NO_GUEST = "no-guest"
    NO_DRIVER = "no-driver-in-guest"
    NO_OWNER = "no-owner"
    OTHER_OWNER = "other-owner"
    GUEST_HUNG = "guest-hung"
    PORT_MISSING = "port-missing"
    PORT_DOWN = "port-down"
    PORT_BLOCKED = "port-blocked"
    NOT_POLLED = "port-not-polled"
    RING_NOT_SERVED = "ring-not-served"
    UPLINK_PORT = "uplink-port"
    UPLINK_RULE = "uplink-rule"
    ROUTE_MISSING = "route-missing"
    NEIGHBOUR_MISSING = "neighbour-missing"
    NEIGHBOUR_WRONG = "neighbour-wrong"
    FLOWS_DIFFER = "flows-differ"
    UPLINK_SILENT = "uplink-silent"
    WRONG_VNI = "wrong-vni"
    WRONG_VTEP = "wrong-vtep"
    VTEP_SILENT = "vtep-silent"
    SPOOFED = "spoofed"
    UNKNOWN_VNI = "unknown-vni"
    UNKNOWN_MAC = "unknown-mac"
    MTU = "mtu"
    CONNTRACK_FULL = "conntrack-full"
    CONNTRACK_INVALID = "conntrack-invalid"
    POLICED = "policed"
    RING_FULL = "ring-full"
    UPCALL_LOST = "upcall-lost"
    DROPPED = "dropped"
    FLOWS_DROP = "flows-drop"
    UPLINK_DEGRADED = "uplink-degraded"
    DATABASE_GONE = "database-gone"
    UNFINISHED = "upgrade-unfinished"
    TRACE_LEFT = "trace-left"
    NOT_PROTECTED = "not-protected"
    NOT_SEEN = "not-seen"


WARNINGS = frozenset({
    Cause.NO_DRIVER, Cause.UNKNOWN_VNI, Cause.UNKNOWN_MAC, Cause.CONNTRACK_INVALID, Cause.POLICED, Cause.RING_FULL,
    Cause.DROPPED, Cause.UPLINK_DEGRADED, Cause.DATABASE_GONE, Cause.UNFINISHED, Cause.TRACE_LEFT,
    Cause.NOT_PROTECTED,
})  # fmt: skip
"""The causes that cut off a part of the traffic, which may be intended, or none yet."""
_WORST = (Severity.ERROR, Severity.UNKNOWN, Severity.WARNING)
_ORDER = {cause: number for number, cause in enumerate(Cause)}


@dataclass(frozen=True, slots=True)
class Found:
    """A finding. ``text``: what is wrong and what that means, in sentences. ``evidence``: what was seen, with its
    source. ``command``: what to type next. ``vm``: the VM that alone is concerned, or ``None``."""

    cause: Cause
    text: str
    evidence: tuple[str, ...]
    command: str
    vm: str | None = None

    @property
    def severity(self) -> Severity:
        if self.cause is Cause.NOT_SEEN:
            return Severity.UNKNOWN
        return Severity.WARNING if self.cause in WARNINGS else Severity.ERROR


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding as `diagnose --json` prints it."""

    cause: Cause
    severity: Severity
    vm: str | None
    text: str
    evidence: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Packets that were dropped for one reason. ``packets``: since the switch started to count; ``now``: while
    `diagnose` looked. ``vm`` and ``vni`` are ``None`` if it is not known whose packets they were."""

    vm: str | None
    vni: int | None
    reason: str
    packets: int
    now: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that was looked at, and what was seen of it, whether it is a fault or not."""

    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Path:
    """What the flows do with a packet of the VM. ``question``: the packet in words. ``steps``: what happens to it, in
    order. ``delivered``: whether it leaves by a port; ``None`` if that is not known."""

    question: str
    steps: tuple[str, ...]
    delivered: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """What `diagnose --json` prints. ``vm`` and ``to``: what was asked about. ``seconds``: how long the counters were
    watched. ``seen``: on the way of the packets of ``vm``, in their order. ``limits``: what cannot be judged here."""

    vm: str | None
    to: str | None
    active: Side | None
    seconds: float
    findings: tuple[Finding, ...]
    seen: tuple[Seen, ...]
    paths: tuple[Path, ...]
    drops: tuple[Dropped, ...]
    limits: tuple[str, ...]

    @property
    def worst(self) -> Severity:
        """The severity of the first finding; ``OK`` if there is none."""
        return self.findings[0].severity if self.findings else Severity.OK


def ordered(found: Iterable[Found]) -> list[Found]:
    """Return the findings worst first, each once."""
    return sorted(
        dict.fromkeys(found), key=lambda each: (_WORST.index(each.severity), _ORDER[each.cause], each.vm or "")
    )


def finding(found: Found) -> Finding:
    return Finding(found.cause, found.severity, found.vm, found.text, found.evidence, found.command)


def not_seen(what: str, why: str, command: str | None) -> Found:
    """Return the finding about a part that could not be read."""
    return Found(Cause.NOT_SEEN, f"{what} could not be read, so nothing is said about it.", (why,), command or
                 "`ovs-hotswap status`")  # fmt: skip

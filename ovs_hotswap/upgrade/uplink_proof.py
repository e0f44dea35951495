"""Prove the uplink of an instance with frames, and watch it with the VMs' traffic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ovs_hotswap.errors import HotswapError, SwitchError, UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.uplink_ends import UplinkEnds
from ovs_hotswap.model import Finding, Proof, Severity, Side, Way
from ovs_hotswap.overlay.tables import KIND_MASK, Kind, cookie
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.switch.answering import see_answering
from ovs_hotswap.upgrade import checks, uplink_checks
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.uplink_checks import Passed

# Open vSwitch adds packets of its caches to the flows' counters every half second (ofproto-dpif-upcall.c).
SAMPLE_S = 1.0
_SURE_S = 4.0  # until a count of 0 is believed: the threads that add the packets may have to wait for a core
_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters at the time ``at``, in seconds of the monotonic clock. ``Passed`` explains the fields."""

    at: float
    sent: int
    received: int
    given: int | None
    taken: int | None

    def until(self, later: Counters) -> Passed:
        def between(first: int | None, second: int | None) -> int | None:
            known = first is not None and second is not None and second >= first
            return second - first if known and first is not None and second is not None else None

        return Passed(
            later.at - self.at, max(0, later.sent - self.sent), max(0, later.received - self.received),
            between(self.given, later.given), between(self.taken, later.taken),
        )  # fmt: skip


def prove(host: Host, side: Side, way: Way | None = None) -> Proof:
    """Prove the side's uplink with frames, in one ``way`` or both. Raises SwitchError and UplinkError."""
    see_answering(host.instances[side])
    return host.uplink.prove(side, UplinkEnds(host.openflow).end(side), way)


def counters(host: Host, side: Side) -> Counters:
    """Read the counters of a side. Raises SwitchError and UplinkError."""
    flows, steered = host.openflow(side), host.uplink.steered(side)
    return Counters(
        host.system.monotonic(), flows.packets(cookie(Kind.TO_UPLINK)),
        flows.packets(cookie(Kind.FROM_TUNNEL), KIND_MASK),
        None if steered is None else steered.given, None if steered is None else steered.taken,
    )  # fmt: skip


def check(host: Host, active: Side, begun: Counters | None) -> list[Finding]:
    """Check the uplink of the instance that has the traffic: its devices and rules, frames in both directions, and what
    has passed since ``begun``. Raises SwitchError and UplinkError."""
    found = host.uplink.check()
    if any(each.severity is Severity.ERROR for each in found):
        return found
    if host.uplink.owner() is None:  # another program steers it, or it is not steered yet
        return found
    if begun is not None and any(each.check == uplink_checks.PROGRAMS for each in found):
        found = uplink_checks.steering(found, _something(host, active, begun))
    return found + uplink_checks.proof(active, prove(host, active))


def _something(host: Host, side: Side, begun: Counters) -> Passed:
    """What has passed since ``begun``. Returns as soon as anything has come in, or it is certain that nothing does."""
    while True:
        now = begun.until(counters(host, side))
        if now.received or now.given or now.seconds >= _SURE_S:
            return now
        host.system.sleep(_AGAIN_S)


# ------------------------------------------------------------------------------------------------- in an upgrade


def prove_new(context: Upgrade, run: StepContext) -> None:
    """Prove the new instance's uplink before any VM depends on it. Raises SwitchError if it passes less than the old
    one's."""
    host, new, old = context.host, context.new, context.old
    try:
        found = prove(host, new)
    except UplinkError as error:
        run.warn(f"instance {new}'s uplink is not proven: {error.message}")
        return
    compared = None
    if not (found.out and found.into) and not context.look().old_lost:
        with contextlib.suppress(HotswapError):  # the old one may be faulty, which may be why it is replaced
            compared = prove(host, old)
    tell(run, uplink_checks.proof(new, found, compared))


def begin(context: Upgrade, run: StepContext) -> None:
    """Record the old instance's counters in the journal, unless this was done before."""
    if not context.look().old_lost and "uplink_begun" not in run.facts:
        with contextlib.suppress(HotswapError):
            run.remember(uplink_begun=asdict(counters(context.host, context.old)))


def end(context: Upgrade, run: StepContext) -> None:
    """Record what has passed on the old instance: since ``begin``, or in the last second if that was slower, because
    traffic that is over by now is not expected on the new instance."""
    begun: Any = run.facts.get("uplink_begun")
    if context.look().old_lost or not isinstance(begun, dict) or "uplink_before" in run.facts:
        return
    host, since = context.host, Counters(**begun)
    with contextlib.suppress(HotswapError):
        late = counters(host, context.old)
        host.system.sleep(SAMPLE_S)
        last = late.until(counters(host, context.old))
        before = since.until(late)
        if before.seconds > 0 and last.seconds > 0:  # a resumed upgrade may have another clock
            run.remember(uplink_before=asdict(min(before, last, key=lambda each: each.received / each.seconds)))


class Traffic:
    """What passes on a side after the traffic was steered to it, counted from the first ``look``. Counters that cannot
    be read are only a warning: other checks judge whether the instance lives."""

    def __init__(self, host: Host, side: Side, before: Passed | None = None) -> None:
        self._host, self._side, self._before = host, side, before
        self._begun: Counters | None = None
        self._early = True

    @staticmethod
    def of(context: Upgrade, run: StepContext) -> Traffic:
        before: Any = run.facts.get("uplink_before")
        return Traffic(context.host, context.new, Passed(**before) if isinstance(before, dict) else None)

    def look(self) -> None:
        """Judge the traffic once, before a long soak is over, so that VMs that are cut off do not wait for its end.
        Raises SwitchError."""
        if self._begun is None:
            with contextlib.suppress(HotswapError):
                self._begun = counters(self._host, self._side)
        elif self._early and self._elapsed >= _SURE_S:
            self._early = False
            checks.verdict(self._now(), SwitchError)

    def findings(self) -> list[Finding]:
        """The findings at the end of a soak. Waits until they are certain, if packets seem to be missing. Raises
        SwitchError."""
        self.look()
        self._host.system.sleep(max(0.0, SAMPLE_S - self._elapsed))
        while (found := self.settled()) is None:
            self._host.system.sleep(_AGAIN_S)
        return found

    def settled(self) -> list[Finding] | None:
        """The findings, or ``None`` while it is too early for them. Does not wait."""
        if self._elapsed < SAMPLE_S:
            return None
        found, sure = self._now(), self._elapsed >= _SURE_S
        return found if sure or all(each.severity is not Severity.ERROR for each in found) else None

    @property
    def _elapsed(self) -> float:
        return _SURE_S if self._begun is None else self._host.system.monotonic() - self._begun.at

    def _now(self) -> list[Finding]:
        try:
            begun = self._begun or counters(self._host, self._side)
            passed = begun.until(counters(self._host, self._side))
        except HotswapError as error:
            text = f"instance {self._side}'s uplink is not proven by traffic: {error.message}"
            return [Finding(uplink_checks.NAME, Severity.WARNING, text, error.hint)]
        return uplink_checks.traffic(self._side, passed, self._before)


def tell(run: StepContext, findings: Iterable[Finding]) -> None:
    """Report the findings that are warnings. Raises SwitchError if one is an error."""
    for each in checks.verdict(findings, SwitchError):
        if each.severity is Severity.WARNING:
            run.warn(each.text)

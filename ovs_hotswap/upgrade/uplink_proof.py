"""Prove the uplink of an instance with frames, and watch it with the VMs' traffic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ovs_hotswap.errors import HotswapError, SwitchError, UplinkError
from ovs_hotswap.host import uplink_ports
from ovs_hotswap.host.host import Host
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
    arrived: int = 0

    def until(self, later: Counters) -> Passed:
        def between(first: int | None, second: int | None) -> int | None:
            known = first is not None and second is not None and second >= first
            return second - first if known and first is not None and second is not None else None

        return Passed(
            later.at - self.at, max(0, later.sent - self.sent), max(0, later.received - self.received),
            between(self.given, later.given), between(self.taken, later.taken), max(0, later.arrived - self.arrived),
        )  # fmt: skip


def prove(host: Host, side: Side, way: Way | None = None) -> Proof:
    """Prove the side's uplink with frames, in one ``way`` or both. Raises SwitchError and UplinkError."""
    see_answering(host.instances[side])
    return host.uplink.prove(side, host.uplink_ends.end(side), way)


def counters(host: Host, side: Side) -> Counters:
    """Read the counters of a side. Raises SwitchError and UplinkError."""
    flows, steered = host.openflow(side), host.uplink.steered(side)
    return Counters(
        host.system.monotonic(), flows.packets(cookie(Kind.TO_UPLINK)),
        flows.packets(cookie(Kind.FROM_TUNNEL), KIND_MASK),
        None if steered is None else steered.given, None if steered is None else steered.taken,
        sum(flows.arrived(port) for port in set(uplink_ports.numbers(host.config))),
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
    elif begun is not None:
        found = found + _rule(host, active, begun)
    return found + uplink_checks.proof(active, prove(host, active)) + _gap(host)


def _gap(host: Host) -> list[Finding]:
    if host.config.uplink.both_open:
        return []
    text = ("only one instance can have the NIC open: while an upgrade closes it on one and opens it on the other, VMs "
            "do not reach other hosts; they reach each other all the time")  # fmt: skip
    return [Finding("uplink gap", Severity.WARNING, text, "the gap is in the upgrade's report, in milliseconds")]


def _rule(host: Host, side: Side, begun: Counters) -> list[Finding]:
    """Judge the counter of the rule that steers to the active side. Waits only if packets pass by the rule."""
    seen = begun.until(counters(host, side))
    if seen.given is None or seen.given or max(seen.sent, seen.received) < uplink_checks.ENOUGH:
        return []
    host.system.sleep(SAMPLE_S)
    middle = counters(host, side)
    host.system.sleep(_SURE_S)
    end = counters(host, side)
    return uplink_checks.rule(side, begun.until(end), middle.until(end))


def _something(host: Host, side: Side, begun: Counters) -> Passed:
    """What has passed since ``begun``. Returns as soon as anything has come in, or it is certain that nothing does."""
    while True:
        now = begun.until(counters(host, side))
        if now.received or now.given or now.seconds >= _SURE_S:
            return now
        host.system.sleep(_AGAIN_S)


# ------------------------------------------------------------------------------------------------- in an upgrade


def prove_new(context: Upgrade, run: StepContext) -> None:
    """Prove the new instance's uplink before any VM depends on it, and record the proof in the journal. Raises
    SwitchError if it passes less than the old one's. An uplink that the old instance has to close first is proven on
    that one, for ``prove_taken``."""
    host, new, old = context.host, context.new, context.old
    if not host.config.uplink.both_open:
        if not context.look().old_lost and "uplink_proven" not in run.facts:
            with contextlib.suppress(HotswapError):
                run.remember(uplink_proven=prove(host, old).fact())
        return
    found, fault, compared = Proof(), None, Proof()
    try:
        found = prove(host, new)
    except UplinkError as error:
        fault = error
    if not (found.out and found.into) and not context.look().old_lost:
        with contextlib.suppress(HotswapError):  # the old one may be faulty, which may be why it is replaced
            compared = prove(host, old)
    run.remember(uplink_proof=found.fact())
    if fault is None:
        tell(run, uplink_checks.proof(new, found, compared))
        return
    text = f"instance {new}'s uplink is not proven: {fault.message}"
    if compared.out and compared.into:
        raise SwitchError(f"{text}; instance {old}'s is", hint=fault.hint)
    run.warn(text)


def steer(context: Upgrade, run: StepContext, side: Side) -> None:
    """Steer the uplink to ``side``. If no instance could have it for a while, record in the journal for how long, in
    milliseconds. Raises UplinkError."""
    gap_s = context.host.uplink.steer(side)
    if gap_s is not None:
        earlier = run.facts.get("uplink_gap_ms")
        gap_ms = round(gap_s * 1e3, 1)
        run.remember(uplink_gap_ms=gap_ms + (earlier if isinstance(earlier, float) else 0.0))
        run.progress(f"for {gap_ms:.0f} ms no instance had the uplink")


def prove_taken(context: Upgrade, run: StepContext) -> None:
    """Prove an uplink that the new instance could open only now. Raises SwitchError if it passes less than on the old
    one, before any VM is moved."""
    if context.host.config.uplink.both_open:
        return
    before: Any = run.facts.get("uplink_proven")
    compared = Proof.restored(before) if isinstance(before, dict) else None
    found = prove(context.host, context.new)
    run.remember(uplink_proof=found.fact())
    tell(run, uplink_checks.proof(context.new, found, compared))


def begin(context: Upgrade, run: StepContext) -> None:
    """Record the old instance's counters in the journal, unless this was done before."""
    if not context.look().old_lost and "uplink_begun" not in run.facts:
        with contextlib.suppress(HotswapError):
            run.remember(uplink_begun=asdict(counters(context.host, context.old)))


def end(context: Upgrade, run: StepContext) -> None:
    """Record what has passed on the old instance: all since ``begin``, and what to expect of the new one. This is the
    same, or the last second if that was slower, because traffic that is over by now does not come again."""
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
            slower = min(before, last, key=lambda each: each.received / each.seconds)
            run.remember(uplink_before=asdict(slower), uplink_carried=asdict(before))


def see_silence(host: Host) -> None:
    """Raises SwitchError if other hosts still send to the instance that does not have the traffic: their packets would
    be lost without it."""
    found = [each for each in host.uplink.check() if each.check == uplink_checks.PEERS]
    checks.verdict([replace(each, severity=Severity.ERROR) for each in found], SwitchError)


class Traffic:
    """What passes on a side after the traffic was steered to it, counted from the first ``look``. ``before``: what is
    expected. ``carried``: what the other side has carried. ``proof``: that of this side's uplink by frames.

    Counters that cannot be read are a warning if the uplink is proven otherwise: other checks judge whether the
    instance lives."""

    def __init__(
        self, host: Host, side: Side, before: Passed | None = None, carried: Passed | None = None,
        proof: Proof | None = None,
    ) -> None:  # fmt: skip
        self._host, self._side, self._before, self._carried = host, side, before, carried
        self._proof = (proof or Proof()).of_any()  # the step prove has judged each NIC
        self._begun: Counters | None = None
        self._due = [(_SURE_S, self._now), (uplink_checks.PATIENCE_S, self._unshown)]  # the judgements before the end

    @staticmethod
    def of(context: Upgrade, run: StepContext) -> Traffic:
        def passed(name: str) -> Passed | None:
            fact: Any = run.facts.get(name)
            return Passed(**fact) if isinstance(fact, dict) else None

        proof: Any = run.facts.get("uplink_proof")
        return Traffic(context.host, context.new, passed("uplink_before"), passed("uplink_carried"),
                       Proof.restored(proof) if isinstance(proof, dict) else None)  # fmt: skip

    def look(self) -> None:
        """Judge the traffic before a long soak is over, so that VMs that are cut off do not wait for its end. Raises
        SwitchError."""
        if self._begun is None:
            with contextlib.suppress(HotswapError):
                self._begun = counters(self._host, self._side)
        elif self._due and self._elapsed >= self._due[0][0]:
            _, judge = self._due.pop(0)
            checks.verdict(judge(), SwitchError)

    @property
    def waiting(self) -> bool:
        """Whether packets must still be shown to pass, and there is time for that."""
        if self._begun is None or self._elapsed >= uplink_checks.PATIENCE_S:
            return False
        try:
            open_yet = uplink_checks.undecided(self._passed(), self._before, self._proof)
        except HotswapError:
            open_yet = False
        return open_yet or bool(self._unshown())

    def findings(self) -> list[Finding]:
        """The findings at the end of a soak. Waits until they are certain, if packets seem to be missing. Raises
        SwitchError."""
        self.look()
        self._host.system.sleep(max(0.0, SAMPLE_S - self._elapsed))
        while (found := self.settled()) is None:
            self._host.system.sleep(_AGAIN_S)
        return found + self._unshown()

    def settled(self) -> list[Finding] | None:
        """The findings, or ``None`` while it is too early for them. Does not wait."""
        if self._elapsed < SAMPLE_S:
            return None
        found, sure = self._now(), self._elapsed >= _SURE_S
        return found if sure or all(each.severity is not Severity.ERROR for each in found) else None

    @property
    def _elapsed(self) -> float:
        return _SURE_S if self._begun is None else self._host.system.monotonic() - self._begun.at

    def _passed(self) -> Passed:
        begun = self._begun or counters(self._host, self._side)
        return begun.until(counters(self._host, self._side))

    def _now(self) -> list[Finding]:
        try:
            return uplink_checks.traffic(self._side, self._passed(), self._before, self._proof)
        except HotswapError as error:
            text = f"instance {self._side}'s uplink is not proven by traffic: {error.message}"
            return [Finding(uplink_checks.NAME, Severity.WARNING, text, error.hint)]

    def _unshown(self) -> list[Finding]:
        try:
            passed = self._passed()
        except HotswapError:
            passed = Passed(self._elapsed, 0, 0)
        return uplink_checks.unshown(self._side, passed, self._carried, self._proof)


def tell(run: StepContext, findings: Iterable[Finding]) -> None:
    """Report the findings that are warnings. Raises SwitchError if one is an error."""
    for each in checks.verdict(findings, SwitchError):
        if each.severity is Severity.WARNING:
            run.warn(each.text)

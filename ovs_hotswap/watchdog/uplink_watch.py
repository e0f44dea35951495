"""Proves the uplinks of both instances again and again: if the standby's uplink passes nothing, a failover loses
packets. It also compares the counter of the steering's rule with what the active instance receives.

The proofs that once succeeded are remembered, because after a failover there is no other instance to compare with.
"""

from __future__ import annotations

import logging
import threading

from ovs_hotswap.errors import HotswapError, UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Proof, Severity, Side, Way
from ovs_hotswap.upgrade import uplink_checks, uplink_proof
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)

_GOOD_S, _BAD_S = 60.0, 15.0  # until the next proof
_OWNER_S = 5.0  # between two questions which instance has the uplink
_MORE_S = 0.3  # after a proof that took less, the next one follows in the same turn
PROOF_S = _MORE_S + 2.5
"""About how long ``look`` takes at most, in seconds."""


class WireWatch:
    """Proves the uplinks. The keeper calls ``look`` in every turn in which it has nothing else to do. A call takes at
    most about ``PROOF_S``: the proofs of uplinks that pass nothing are spread over several turns."""

    def __init__(self, board: StatusFile) -> None:
        self._board = board
        self._not_before = float("-inf")
        self._once = Proof()
        self._found: dict[Side, Finding] = {}
        self._active: Side | None = None
        self._counted: list[uplink_proof.Counters] = []  # those of the active side, in the last two rounds
        self._left: list[tuple[Side, Way]] = []  # still to be proven in this round
        self._proof = Proof()  # what is proven so far of the present side
        self._failover: Side | None = None  # the target of a failover that is still to be reported
        self._traffic: uplink_proof.Traffic | None = None  # the target's traffic since its uplink was proven

    @property
    def under_way(self) -> bool:
        """Whether a round of proofs has begun and not ended."""
        return bool(self._left)

    def look(self, host: Host, active: Side) -> None:
        """Prove the uplinks of both instances if it is time, or continue a round. Never raises for a fault of the
        host."""
        if active is not self._active:
            self._active, self._left, self._traffic, self._counted = active, [], None, []
            self._failover = active if self._failover is active else None
            if not host.config.uplink.both_open:  # the other one has no uplink any longer
                self._forget(active.other)
        begun = host.system.monotonic()
        if not self._left and begun >= self._not_before:
            sides = (active, active.other) if host.config.uplink.both_open else (active,)
            self._left = [(side, way) for side in sides for way in Way]
            self._proof = Proof()
        while self._left and host.system.monotonic() - begun < _MORE_S:
            self._step(host, active)
        self._tell_failover()

    def after_failover(self, active: Side) -> None:
        """Make the next looks report in the events whether packets pass on the side where the VMs are now."""
        self._failover, self._left, self._traffic, self._not_before = active, [], None, float("-inf")

    def _step(self, host: Host, active: Side) -> None:
        """Prove one way of one side."""
        side, way = self._left.pop(0)
        try:
            if side is active or self._runs(host, side):
                found = uplink_proof.prove(host, side, way)
                self._proof = self._proof.joined(found)
                if any(each is side for each, _ in self._left):
                    return
                self._remember(self._proof)
                found_rule = self._rule(host, side) if side is active else []
                self._tell(side, uplink_checks.proof(side, self._proof, self._once, spare=True) + found_rule)
            else:
                self._forget(side)
        except HotswapError:  # it has ended, or does not answer: the keeper acts on that
            pass
        self._left = [each for each in self._left if each[0] is not side]
        self._proof = Proof()
        if side is active and self._failover is side:
            self._traffic = uplink_proof.Traffic(host, side)
            self._traffic.look()
        bad = any(each.severity is not Severity.OK for each in self._found.values())
        self._not_before = host.system.monotonic() + (_BAD_S if bad else _GOOD_S)

    def _rule(self, host: Host, active: Side) -> list[Finding]:
        """Judge the rule's counter over the last two rounds. It is only a warning here, because packets may pass."""
        try:
            now = uplink_proof.counters(host, active)
        except HotswapError:
            self._counted = []
            return []
        earlier, self._counted = self._counted, [*self._counted[-1:], now]
        if len(earlier) < 2:
            return []
        found = uplink_checks.rule(active, earlier[0].until(now), earlier[1].until(now))
        return [Finding(each.check, Severity.WARNING, each.text, each.hint) for each in found]

    def _tell_failover(self) -> None:
        side = self._failover
        if side is None or self._traffic is None:
            return
        found = self._found.get(side)
        if found is not None and found.severity is not Severity.ERROR:
            passed = self._traffic.settled()
            if passed is None:
                return
            (found,) = passed
        self._failover = self._traffic = None
        if found is not None:
            self._board.event("failover-uplink", side=side, severity=found.severity, text=found.text)

    def require(self, side: Side) -> None:
        """Raises UplinkError if the last proof of the side's uplink has failed."""
        found = self._found.get(side)
        if found is not None and found.severity is Severity.ERROR:
            raise UplinkError(found.text, hint=found.hint)

    def worse(self, side: Side) -> bool:
        """Whether the last proof of the side's uplink has failed, and that of the other one has not. Any thread may
        call this."""
        found, other = self._found.get(side), self._found.get(side.other)
        lost = found is not None and found.severity is Severity.ERROR
        return lost and not (other is not None and other.severity is Severity.ERROR)

    def _runs(self, host: Host, side: Side) -> bool:
        return host.instances[side].pid() is not None

    def _remember(self, proof: Proof) -> None:
        self._once = self._once.joined(proof)

    def _tell(self, side: Side, found: list[Finding]) -> None:
        before = self._found.get(side)
        self._found[side] = worst = max(found, key=lambda each: list(Severity).index(each.severity))
        if before is None or before.severity is not worst.severity:
            log.log(logging.WARNING if worst.severity is Severity.ERROR else logging.INFO, "%s", worst.text)
            if worst.severity is Severity.ERROR or before is not None:
                self._board.event("uplink", side=side, severity=worst.severity, text=worst.text)
        self._publish()

    def _forget(self, side: Side) -> None:
        self._found.pop(side, None)
        self._publish()

    def _publish(self) -> None:
        self._board.update(uplinks={
            str(side): {"severity": str(each.severity), "text": each.text} for side, each in sorted(self._found.items())
        })  # fmt: skip


class OneUplink:
    """Opens an uplink that only one instance can have on the active one if none has it, for example because an upgrade
    was killed while it handed the uplink over. The keeper calls ``look`` in every turn in which it has nothing else to
    do."""

    def __init__(self, board: StatusFile, turning: threading.Lock) -> None:
        """``turning`` is held while the uplink is steered."""
        self._board, self._turning = board, turning
        self._not_before = float("-inf")

    def look(self, host: Host, active: Side) -> None:
        """Raises UplinkError, and BusyError while an upgrade runs."""
        now = host.system.monotonic()
        if host.config.uplink.both_open or now < self._not_before or host.instances[active].pid() is None:
            return
        self._not_before = now + _OWNER_S
        if host.uplink.owner() is not None:
            return
        with host.lock(), self._turning:
            if host.recorded_active() is active and host.uplink.owner() is None:
                host.uplink.steer(active)
                self._board.event("uplink-back", dead=None, to=active)

"""The watchdog's look at both instances' uplinks: a standby whose uplink passes nothing is no refuge for packets, and a
fail-over to one is not healthy.

What neighbours answered once is remembered: after a fail-over there is no other instance to compare with.
"""

from __future__ import annotations

import contextlib
import logging

from ovs_hotswap.errors import HotswapError, UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side
from ovs_hotswap.upgrade import uplinkchecks, wire
from ovs_hotswap.upgrade.host import Host
from ovs_hotswap.upgrade.watchlog import Board

log = logging.getLogger(__name__)

_GOOD_S, _BAD_S = 60.0, 15.0  # until it is proven again


class WireWatch:
    """``look`` is called in every turn of the keeper in which there is nothing else to do."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._not_before = float("-inf")
        self._once = Proof()
        self._found: dict[Side, Finding] = {}

    def look(self, host: Host, active: Side, *, now: bool = False) -> None:
        """Prove the uplinks of both instances if it is time, or ``now``. Never raises for a fault of the host."""
        if host.system.monotonic() < self._not_before and not now:
            return
        with contextlib.suppress(HotswapError):  # it has ended: what follows is the keeper's
            proven = wire.prove(host, active)
            self._remember(proven)
            self._tell(active, uplinkchecks.proof(active, proven, self._once))
        with contextlib.suppress(HotswapError):  # also where the active instance does not answer
            if self._runs(host, active.other):
                parked = wire.prove(host, active.other)
                self._remember(parked)
                self._tell(active.other, uplinkchecks.proof(active.other, parked, self._once))
            else:
                self._forget(active.other)
        bad = any(each.severity is not Severity.OK for each in self._found.values())
        self._not_before = host.system.monotonic() + (_BAD_S if bad else _GOOD_S)

    def after_failover(self, host: Host, active: Side) -> None:
        """Say in the events whether packets pass where the VMs are now. Never raises for a fault of the host."""
        self.look(host, active, now=True)
        found = self._found.get(active)
        if found is not None and found.severity is not Severity.ERROR:
            with contextlib.suppress(HotswapError):
                (found,) = wire.Traffic(host, active).findings()
        if found is not None:
            self._board.event("failover-uplink", side=active, severity=found.severity, text=found.text)

    def require(self, side: Side) -> None:
        """Raises UplinkError if the side's uplink was seen to pass nothing."""
        found = self._found.get(side)
        if found is not None and found.severity is Severity.ERROR:
            raise UplinkError(found.text, hint=found.hint)

    def worse(self, side: Side) -> bool:
        """Whether the side's uplink was seen to pass nothing, and the other one's was not. Any thread's."""
        found, other = self._found.get(side), self._found.get(side.other)
        lost = found is not None and found.severity is Severity.ERROR
        return lost and not (other is not None and other.severity is Severity.ERROR)

    def _runs(self, host: Host, side: Side) -> bool:
        return host.instances[side].pid() is not None

    def _remember(self, proof: Proof) -> None:
        self._once = Proof(proof.out or self._once.out, proof.into or self._once.into)

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

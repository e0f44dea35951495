"""The uplink of a host whose switch owns the whole NIC: only one of the two instances can have it open.

So to steer the traffic is to close the uplink on one instance and to open it on the other. In between no packet passes
between the VMs and other hosts. VMs of this host reach each other all the time, and after the gap each of them reaches
other hosts from either side: in the window, what an instance without the uplink sends goes over the peer link
(``overlay.tables``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ovs_hotswap.errors import HotswapError, SwitchError, UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.uplink.frames import MARK_BYTES, Host, question
from ovs_hotswap.uplink.proof import End

_ASKED = 6  # the most neighbours that are asked: one answer is enough
_LINK_S = 15.0  # until the NIC has agreed on a speed with the other end
_PROOF_S = 3.0  # the switch adds packets of a known flow to its counters every half second
_AGAIN_S = 0.1
_HINT = "`ovs-hotswap status`, `ovs-hotswap instance list`"


class Ports(Protocol):
    """What this driver asks of the two instances. All methods raise SwitchError, and the last two also HostError."""

    def end(self, side: Side) -> End: ...

    def answers(self, side: Side) -> int:
        """The number of neighbours' answers to this host that the side has counted on its uplink."""

    def has_uplink(self, side: Side) -> bool:
        """Whether the side's datapath has the uplink. If its process has ended, it does not."""

    def link_up(self, side: Side) -> bool:
        """Whether the side reports the uplink's link as up, which may be some seconds late."""

    def open_uplink(self, side: Side) -> None:
        """Open the uplink on a side while the other does not have it; if this fails, it is not open."""

    def release_uplink(self, side: Side) -> None:
        """Close the uplink on a side, and return when the device is free."""


@dataclass(slots=True)
class ExclusiveUplink:
    """The driver. ``vtep``: the address and MAC that the VTEP has on either side. ``neighbours``: on-link hosts that a
    proof can ask. ``quick``: ``steer`` returns when the datapath has the uplink, and does not wait for its link.
    ``vlan``: the underlay's tag."""

    ports: Ports
    vtep: Host
    neighbours: Sequence[Host] = ()
    quick: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    vlan: int | None = None
    _mark: bytes = field(default_factory=lambda: os.urandom(MARK_BYTES), init=False)

    def owner(self) -> Side | None:
        """The side whose datapath has the uplink. Raises UplinkError if an instance that runs does not answer."""
        try:
            found = [side for side in Side if self.ports.has_uplink(side)]
        except SwitchError as error:
            text = f"which instance has the uplink is not known: {error.message}"
            raise UplinkError(text, hint=error.hint or _HINT) from error
        if len(found) > 1:
            raise UplinkError("both instances have the uplink in their datapaths", hint=_HINT)
        return next(iter(found), None)

    def steer(self, side: Side) -> float | None:
        """Close the uplink on the other side if it is open there, and open it on ``side``. If that fails, the other
        side has it again, or the error says that it does not. Returns the seconds from the first to the last act."""
        before = self.owner()
        if before is side:
            return None
        begun = self.clock()
        try:
            if before is not None:
                self.ports.release_uplink(before)
            self.ports.open_uplink(side)
            if not self.quick:
                self._await_link(side)
        except Exception as error:  # whatever it is, the other side must have the uplink again
            after = "" if before is None else self._give_back(before, begun)
            text = f"instance {side} did not get the uplink: {_cause(error)}{after}"
            hint = error.hint if isinstance(error, HotswapError) else None
            raise UplinkError(text, hint=hint or f"the log of instance {side}") from error
        gap_s = self.clock() - begun
        if self.owner() is not side:
            raise UplinkError(f"instance {side} has lost the uplink again", hint=f"the log of instance {side}")
        return None if before is None else gap_s

    def _await_link(self, side: Side) -> None:
        """Wait until a neighbour answers, or the instance reports that the link is up."""
        before, end = self.ports.answers(side), self.clock() + _LINK_S
        while not (self._asked(side, before) or self.ports.link_up(side)):
            if self.clock() >= end:
                raise UplinkError(f"its link is down after {_LINK_S:g} s", hint="cable, speed, port of the other end")
            self.sleep(_AGAIN_S)

    def _give_back(self, side: Side, begun: float) -> str:
        """Open the uplink on ``side`` again, where it was open at ``begun``. Returns in words whether it is open."""
        try:
            if self.ports.has_uplink(side.other):
                self.ports.release_uplink(side.other)
            self.ports.open_uplink(side)
        except Exception as error:  # noqa: BLE001 - it is reported beside the first fault
            return f"; instance {side} did not get it back, so neither instance may have it: {_cause(error)}"
        return f"; instance {side} has it again, after {self.clock() - begun:.1f} s"

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        """Ask neighbours for their addresses until one answers. An answer has come through this uplink, as has the
        question, so it proves both directions. Without one, only what is sent is known not to arrive."""
        if not self.neighbours:
            return Proof()
        answered = self.ports.has_uplink(side) and self._answered(side)
        return Proof(
            out=None if way is Way.INTO else answered, into=True if answered and way is not Way.OUT else None
        )  # fmt: skip

    def _answered(self, side: Side) -> bool:
        before, until = self.ports.answers(side), self.clock() + _PROOF_S
        while not self._asked(side, before):
            if self.clock() >= until:
                return False
            self.sleep(_AGAIN_S)
        return True

    def _asked(self, side: Side, before: int) -> bool:
        """Ask each neighbour once more, and return whether one has answered since the count was ``before``."""
        end = self.ports.end(side)
        for neighbour in self.neighbours[:_ASKED]:
            asker = replace(self.vtep, address=neighbour.asker or self.vtep.address)
            end.send(question(asker, neighbour, self._mark, self.vlan))
        return bool(self.neighbours) and self.ports.answers(side) > before

    def steered(self, side: Side) -> Steered | None:
        """``None``: nothing stands between the instance and the wire that could count."""
        return None

    def clear(self) -> None:
        """Close the uplink on the instance that has it."""
        owner = self.owner()
        if owner is None:
            return
        try:
            self.ports.release_uplink(owner)
        except SwitchError as error:
            raise UplinkError(error.message, hint=error.hint) from error

    def check(self) -> list[Finding]:
        try:
            owner = self.owner()
        except HotswapError as error:
            return [Finding("uplink", Severity.ERROR, error.message, error.hint)]
        has = f"instance {owner} has it" if owner else "no instance has it yet"
        return [Finding("uplink", Severity.OK, f"one NIC, which only one instance can have open: {has}")]


def _cause(error: Exception) -> str:
    return error.message if isinstance(error, HotswapError) else repr(error)

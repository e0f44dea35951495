"""What every driver of an uplink does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ovs_hotswap.model import Finding, Proof, Side, Steered, Way
from ovs_hotswap.overlay.tables import Voice
from ovs_hotswap.uplink.proof import End


class Speaker(End, Protocol):
    """An instance's end of its uplink that can speak for the VTEP's address. All methods raise SwitchError."""

    def received(self) -> int:
        """The number of tunnelled packets that have come in on the uplink for this instance's MAC."""

    def senders(self, seconds: float) -> list[str]:
        """The hosts whose tunnelled packets have come in within the last ``seconds``."""

    def answers(self) -> int:
        """The number of answers to questions of a proof that have come in."""

    def speaks(self) -> bool:
        """Whether the instance answers for the VTEP's address."""

    def speak(self, address: str, voice: Voice, frames: Sequence[bytes] = (), vlan: int | None = None) -> None:
        """Make the instance answer for the VTEP's ``address``, or not, and then send ``frames`` on the uplink.
        ``vlan``: the tag of the underlay's packets."""

    def announce(self, frames: Sequence[bytes]) -> None:
        """Send ``frames`` on the uplink."""

    def mac(self) -> str | None:
        """The MAC of the uplink's device; ``None`` if it has none, or there is no uplink."""


class Uplink(Protocol):
    """One NIC's steering. All methods but ``check`` raise UplinkError."""

    def owner(self) -> Side | None:
        """The side that gets the overlay's traffic now, as the kernel reports it; ``None`` if neither does.

        A ``quick`` uplink remembers what this finds, so that the next ``steer`` is faster.
        """

    def steer(self, side: Side) -> float | None:
        """Give the traffic to ``side``, without losing a packet if the driver can do so, and read the result back to
        check it. A repeated call changes nothing.

        Returns for how long, in seconds, neither side could have the traffic; ``None`` if there was no such time.
        """

    def prove(self, side: Side, end: Speaker, way: Way | None = None) -> Proof:
        """Whether packets pass between ``side``'s instance and the wire, whichever side has the traffic. No traffic is
        steered, and the frames that are sent change nothing on VMs and other hosts. Takes up to some seconds, or, for
        one ``way`` only, up to about two. Also raises SwitchError."""

    def steered(self, side: Side) -> Steered | None:
        """The packets that the steering has handled for ``side``; ``None`` if it does not count them, or ``side`` does
        not have the traffic."""

    def clear(self) -> None:
        """Remove what ``steer`` made, and nothing else. A repeated call changes nothing."""

    def check(self) -> list[Finding]:
        """Check the devices and rules. Nothing is changed."""


@runtime_checkable
class ShowsRules(Protocol):
    """A driver that can show its rules."""

    def rules(self) -> list[str]:
        """The rules that are in place, in words. Raises UplinkError."""


def rules_of(uplink: Uplink) -> list[str]:
    """The rules of an uplink in words; none if its driver has no rules. Raises UplinkError."""
    return uplink.rules() if isinstance(uplink, ShowsRules) else []


@runtime_checkable
class WaitsForHosts(Protocol):
    """A driver whose steering waits for other hosts, and that asks the instances for its owner."""

    def steer_at_once(self, side: Side) -> None:
        """Give the traffic to ``side`` and do not wait until other hosts follow; what is left to do is done in the
        background. Raises UplinkError."""


def steer_again(uplink: Uplink, side: Side) -> None:
    """Give the traffic, which has been lost, to ``side`` again, within about a second. Raises UplinkError."""
    if isinstance(uplink, WaitsForHosts):
        uplink.steer_at_once(side)
    else:
        uplink.steer(side)


def looks_every_s(uplink: Uplink) -> float:
    """How often to look for its owner, in seconds. To ask the instances costs several runs of programs."""
    return 15.0 if isinstance(uplink, WaitsForHosts) else 3.0

"""What every driver of an uplink does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ovs_hotswap.model import Finding, Proof, Side, Steered, Way
from ovs_hotswap.uplink.proof import End


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

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
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

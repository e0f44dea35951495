"""An uplink that something else steers: a bond that shows traffic to both VFs, an SDN controller, or an operator."""

from __future__ import annotations

from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.uplink.proof import End


class NoUplink:
    """Steers nothing. It knows of no owner, so ``owner`` is always ``None``."""

    def owner(self) -> Side | None:
        return None

    def steer(self, side: Side) -> None:
        """Does nothing."""

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        """Proves nothing: the host has no device on which the frames could be seen."""
        return Proof()

    def steered(self, side: Side) -> Steered | None:
        return None

    def clear(self) -> None:
        """Does nothing."""

    def check(self) -> list[Finding]:
        return [Finding("uplink", Severity.OK, 'driver "none": the uplink is steered by something else')]

"""The instances' ends of their uplinks, as the uplink's driver uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import UPLINK_PORT
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.switch.openflow import OpenFlow


@dataclass(frozen=True, slots=True)
class UplinkEnd:
    """One instance's end of its uplink (``uplink.proof.End``). ``flows``: the flows of its bridge."""

    flows: OpenFlow

    def send(self, frame: bytes) -> None:
        self.flows.packet_out(frame, f"output:{UPLINK_PORT}")

    def probes(self) -> int:
        return self.flows.packets(cookie(Kind.DROP_UNKNOWN_VNI))


@dataclass(frozen=True, slots=True)
class UplinkEnds:
    """The ends of both instances (``uplink.base.Switches``). ``openflow`` gives the flows of a side's bridge."""

    openflow: Callable[[Side], OpenFlow]

    def end(self, side: Side) -> UplinkEnd:
        return UplinkEnd(self.openflow(side))

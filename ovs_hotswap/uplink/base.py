"""The uplink: what brings the overlay's traffic from the NIC to the active instance, and the choice of its driver."""

from __future__ import annotations

from typing import Protocol

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Finding, Proof, Side, Steered, Way
from ovs_hotswap.overlay.intent import ETHERNET_MTU, Intent
from ovs_hotswap.uplink.frames import Host, PacketSockets
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.uplink.proof import End
from ovs_hotswap.uplink.rtnl import RtnlTrafficControl
from ovs_hotswap.uplink.tc import TcUplink


class Uplink(Protocol):
    """One NIC's steering. All methods but ``check`` raise UplinkError."""

    def owner(self) -> Side | None:
        """The instance that gets the overlay's traffic now, read back from the kernel; ``None``: neither.

        What it finds makes the next ``steer`` by this object turn the traffic sooner.
        """

    def steer(self, side: Side) -> None:
        """Give the traffic to ``side``, without losing a packet where the driver can, and prove it by reading back.

        Doing it again changes nothing.
        """

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        """Whether packets pass between ``side``'s instance and the wire, whoever has the traffic; none is turned, and
        what is sent tells VMs and other hosts nothing new. Takes up to seconds, or, of
        one ``way`` alone, up to about two. Raises SwitchError as well."""

    def steered(self, side: Side) -> Steered | None:
        """What the steering has handled for ``side``; ``None`` where that is not counted, or it has not the traffic."""

    def clear(self) -> None:
        """Remove what ``steer`` made and nothing else. Doing it again changes nothing."""

    def check(self) -> list[Finding]:
        """What is right and wrong with the devices and rules; changes nothing."""


def make_uplink(config: Config, intent: Intent, *, quick: bool = False) -> Uplink:
    """The driver that the configuration names. Raises ConfigError if it lacks a device.

    ``quick``: for who turns traffic away from a dead instance: it stays connected to the kernel between uses, and turns
    the traffic before it looks.
    """
    uplink = config.uplink
    if uplink.driver == "none":
        return NoUplink()
    if uplink.device is None or uplink.representor_a is None or uplink.representor_b is None:
        raise ConfigError('uplink: driver "tc" needs device, representor_a and representor_b')
    return TcUplink(
        device=uplink.device,
        representors={Side.A: uplink.representor_a, Side.B: uplink.representor_b},
        vtep=intent.vtep.address,
        mac=intent.vtep.mac,
        mtu=ETHERNET_MTU if intent.vtep.mtu is None else intent.vtep.mtu,
        control=RtnlTrafficControl(uplink.namespace, keep=quick),
        sockets=PacketSockets(uplink.namespace),
        neighbours=[Host(each.address, each.mac) for each in intent.neighbours],
        quick=quick,
    )

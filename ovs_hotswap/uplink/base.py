"""The uplink, which brings the overlay's traffic from the NIC to the active instance, and the choice of its driver."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Protocol, runtime_checkable

from ovs_hotswap.config import Config, UplinkConfig
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Finding, Proof, Side, Steered, Way
from ovs_hotswap.overlay.intent import ETHERNET_MTU, Intent
from ovs_hotswap.uplink.exclusive import ExclusiveUplink, Ports
from ovs_hotswap.uplink.flower import FlowerUplink
from ovs_hotswap.uplink.frames import BROADCAST, Host, PacketSockets
from ovs_hotswap.uplink.i40e import I40eUplink
from ovs_hotswap.uplink.i40e_card import KernelCards
from ovs_hotswap.uplink.i40e_rules import Plan
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.uplink.proof import End
from ovs_hotswap.uplink.redirect import RedirectUplink
from ovs_hotswap.uplink.rtnl import RtnlTrafficControl
from ovs_hotswap.uplink.tc import TcUplink


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


class Switches(Ports, Protocol):
    """What a driver may ask of the two instances. All methods raise SwitchError."""

    def end(self, side: Side) -> End:
        """The instance's end of its uplink, which sends and counts frames."""


@runtime_checkable
class ShowsRules(Protocol):
    """A driver that can show its rules."""

    def rules(self) -> list[str]:
        """The rules that are in place, in words. Raises UplinkError."""


def rules_of(uplink: Uplink) -> list[str]:
    """The rules of an uplink in words; none if its driver has no rules. Raises UplinkError."""
    return uplink.rules() if isinstance(uplink, ShowsRules) else []


def steer_to_started(uplink: Uplink, side: Side) -> None:
    """Give the traffic to an instance that has just been started, which has reset its virtual function. An X710 may
    have lost the rule for that and report it as before, so it is made again there. Raises UplinkError."""
    if isinstance(uplink, I40eUplink):
        uplink.clear()
    uplink.steer(side)


def make_uplink(config: Config, intent: Intent, switches: Switches, *, quick: bool = False) -> Uplink:
    """Make the driver that the configuration names. Raises ConfigError if the configuration lacks a device.

    ``quick``: for failovers, which steer traffic away from a dead instance. The driver stays connected to the kernel
    between uses, and steers before it looks at the devices.
    """
    uplink = config.uplink
    match uplink.driver:
        case "none":
            return NoUplink()
        case "tc":
            return _redirect(TcUplink, uplink, intent, quick=quick)
        case "switchdev":
            return _redirect(FlowerUplink, uplink, intent, quick=quick)
        case "i40e":
            return _i40e(uplink, intent, quick=quick)
        case "exclusive":
            vtep = intent.vtep
            return ExclusiveUplink(switches, Host(vtep.address, vtep.mac), _hosts(intent), quick, vlan=vtep.vlan)
    raise ConfigError(f'uplink: this version has no driver "{uplink.driver}"')


def _redirect(kind: type[RedirectUplink], uplink: UplinkConfig, intent: Intent, *, quick: bool) -> Uplink:
    if uplink.device is None or uplink.representor_a is None or uplink.representor_b is None:
        raise ConfigError(f'uplink: driver "{uplink.driver}" needs device, representor_a and representor_b')
    return kind(
        device=uplink.device,
        representors={Side.A: uplink.representor_a, Side.B: uplink.representor_b},
        match=Match(intent.vtep.address, intent.vtep.port, intent.vtep.vlan),
        mac=intent.vtep.mac,
        mtu=ETHERNET_MTU if intent.vtep.mtu is None else intent.vtep.mtu,
        control=RtnlTrafficControl(uplink.namespace, keep=quick),
        sockets=PacketSockets(uplink.namespace),
        neighbours=_hosts(intent),
        tunnel=intent.vtep.tunnel,
        quick=quick,
    )


def _i40e(uplink: UplinkConfig, intent: Intent, *, quick: bool) -> Uplink:
    if uplink.device is None or uplink.vf_a is None or uplink.vf_b is None:
        raise ConfigError('uplink: driver "i40e" needs device, vf_a and vf_b')
    if uplink.vf_a == uplink.vf_b or len(set(uplink.locations)) != 2:
        raise ConfigError("uplink: vf_a and vf_b must differ, and so must the two locations")
    if ip_address(intent.vtep.address).version != 4:
        raise ConfigError(
            f'uplink: driver "i40e" has no rules for IPv6, and the VTEP is {intent.vtep.address}',
            hint='give the VTEP an IPv4 address, or set uplink.driver = "announce"',
        )
    first, second = uplink.locations
    return I40eUplink(
        device=uplink.device,
        plan=Plan(
            vfs={Side.A: uplink.vf_a, Side.B: uplink.vf_b},
            locations={Side.A: first, Side.B: second},
            port=intent.vtep.port,
            address=intent.vtep.address if uplink.match == "address" else None,
        ),
        vtep=Host(intent.vtep.address, intent.vtep.mac.lower()),
        mtu=ETHERNET_MTU if intent.vtep.mtu is None else intent.vtep.mtu,
        cards=KernelCards(uplink.device, uplink.namespace, keep=quick),
        sockets=PacketSockets(uplink.namespace),
        neighbours=_hosts(intent),
        quick=quick,
    )


def _hosts(intent: Intent) -> list[Host]:
    """The neighbours that a proof can ask."""
    links = {each.address: intent.vtep.interface_to(each.address) for each in intent.neighbours}
    return [Host(each.address, each.mac or BROADCAST, str(link.ip) if (link := links[each.address]) else None)
            for each in intent.neighbours]  # fmt: skip

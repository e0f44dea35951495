"""The uplink, which brings the overlay's traffic from the NIC to the active instance, and the choice of its driver."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Protocol

from ovs_hotswap.config import Config
from ovs_hotswap.config_uplink import NicConfig, UplinkConfig
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import ETHERNET_MTU, Intent
from ovs_hotswap.system import System
from ovs_hotswap.uplink.announce import AnnounceUplink
from ovs_hotswap.uplink.announced import AnnouncedFile
from ovs_hotswap.uplink.driver import ShowsRules as ShowsRules
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.driver import Uplink as Uplink
from ovs_hotswap.uplink.driver import looks_every_s as looks_every_s
from ovs_hotswap.uplink.driver import rules_of as rules_of
from ovs_hotswap.uplink.driver import steer_again as steer_again
from ovs_hotswap.uplink.exclusive import ExclusiveUplink, Ports
from ovs_hotswap.uplink.flower import FlowerUplink
from ovs_hotswap.uplink.frames import BROADCAST, Host, PacketSockets
from ovs_hotswap.uplink.i40e import I40eUplink
from ovs_hotswap.uplink.i40e_card import KernelCards
from ovs_hotswap.uplink.i40e_rules import Plan
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.nic_links import NicLinks
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.uplink.pair import Nic, PairUplink
from ovs_hotswap.uplink.proof import Answers
from ovs_hotswap.uplink.redirect import RedirectUplink
from ovs_hotswap.uplink.rtnl import RtnlTrafficControl
from ovs_hotswap.uplink.tc import TcUplink


class Switches(Ports, Protocol):
    """What a driver may ask of the two instances. All methods raise SwitchError."""

    def end(self, side: Side, nic: int = 0) -> Speaker:
        """The instance's end of its uplink, which sends frames by one NIC and counts them. Raises SwitchError also if
        no process would answer."""


def steer_to_started(uplink: Uplink, side: Side) -> None:
    """Give the traffic to an instance that has just been started, which has reset its virtual functions. An X710 may
    have lost the rule for that and report it as before, so it is made again there. Raises UplinkError."""
    if isinstance(uplink, PairUplink):
        uplink.forget(I40eUplink)
    elif isinstance(uplink, I40eUplink):
        uplink.clear()
    uplink.steer(side)


def make_uplink(
    config: Config, intent: Intent, switches: Switches, *, quick: bool = False, answers: Answers | None = None
) -> Uplink:
    """Make the driver that the configuration names. Raises ConfigError if the configuration lacks a device.

    ``quick``: for failovers, which steer traffic away from a dead instance. The driver stays connected to the kernel
    between uses, and steers before it looks at the devices. ``answers``: shared with the driver of another NIC.
    """
    uplink = config.uplink
    if uplink.second is not None and uplink.driver != "none":
        return _pair(config, uplink.second, intent, switches, quick=quick)
    match uplink.driver:
        case "none":
            return NoUplink()
        case "tc":
            return _redirect(TcUplink, uplink, intent, quick=quick, answers=answers)
        case "switchdev":
            return _redirect(FlowerUplink, uplink, intent, quick=quick, answers=answers)
        case "i40e":
            return _i40e(uplink, intent, quick=quick, answers=answers)
        case "exclusive":
            vtep = intent.vtep
            return ExclusiveUplink(switches, Host(vtep.address, vtep.mac), _hosts(intent), quick, vlan=vtep.vlan)
        case "announce":
            return _announce(config, intent, switches, quick=quick)
    raise ConfigError(f'uplink: this version has no driver "{uplink.driver}"')


def _pair(config: Config, second: NicConfig, intent: Intent, switches: Switches, *, quick: bool) -> Uplink:
    """Make a driver for each NIC, from the configuration as it would be with this NIC alone."""
    uplink = config.uplink
    answers = Answers(tuple(nic.device for nic in uplink.nics if nic.device is not None))
    nics = []
    for number, nic in enumerate((uplink, second), 1):
        alone = uplink.model_copy(update={**{key: getattr(nic, key) for key in NicConfig.model_fields}, "second": None})
        one = config.model_copy(update={"uplink": alone})
        nics.append(
            Nic(nic.device or f"NIC {number}", make_uplink(one, intent, switches, quick=quick, answers=answers))
        )
    return PairUplink(nics, make_links(config, quick=quick), switches.end, quick=quick)


def make_links(config: Config, *, quick: bool = False) -> NicLinks:
    """What knows which NICs have a link. ``quick``: stay connected to the kernel; then only one thread may use it."""
    uplink = config.uplink
    return NicLinks(RtnlTrafficControl(uplink.namespace, keep=quick), [nic.device for nic in uplink.nics])


def _redirect(
    kind: type[RedirectUplink], uplink: UplinkConfig, intent: Intent, *, quick: bool, answers: Answers | None
) -> Uplink:
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
        answers=answers,
        quick=quick,
    )


def _i40e(uplink: UplinkConfig, intent: Intent, *, quick: bool, answers: Answers | None) -> Uplink:
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
        answers=answers,
        vlan=intent.vtep.vlan,
        quick=quick,
    )


def _announce(config: Config, intent: Intent, switches: Switches, *, quick: bool) -> Uplink:
    macs = {side: mac for side in Side if (mac := config.instance(side).uplink_mac) is not None}
    if len(macs) < len(Side):
        raise ConfigError('uplink: driver "announce" needs instances.a.uplink_mac and instances.b.uplink_mac')
    vtep = intent.vtep
    if vtep.link_addresses:
        raise ConfigError(
            f'uplink: driver "announce" announces the VTEP\'s address {vtep.address} on its link, and the VTEP has '
            f"link_addresses, so routers send to {vtep.link_addresses[0]} instead",
            hint="give the VTEP an address on the link of its next hops, without link_addresses",
        )
    return AnnounceUplink(
        vtep=vtep.address,
        vlan=vtep.vlan,
        macs=macs,
        neighbours=_hosts(intent),
        silence_s=config.uplink.silence_s,
        switches=switches,
        record=AnnouncedFile(config.announced_file, System()),
        quick=quick,
    )


def _hosts(intent: Intent) -> list[Host]:
    """The neighbours that a proof can ask."""
    links = {each.address: intent.vtep.interface_to(each.address) for each in intent.neighbours}
    return [Host(each.address, each.mac or BROADCAST, str(link.ip) if (link := links[each.address]) else None)
            for each in intent.neighbours]  # fmt: skip

"""The uplink's ports on the instances' bridges: one for each NIC, or one for both if DPDK bonds them.

Open vSwitch itself chooses a NIC by the links that its ports report. That is not enough: the link of a virtual function
may be forced to be up, and some drivers of DPDK do not report it. So the flows name only the NICs whose physical
function has a link, and are written again when that changes (``watchdog.nic_watch``).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import saved_settings
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import SECOND_UPLINK, UPLINK, UPLINK_PORT
from ovs_hotswap.overlay.tables import NIC_PORTS, Kind, UplinkPorts, cookie, two_ports
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.memory import Uplink
from ovs_hotswap.switch.net_bonding import bonded
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.switch.ovsdb import INTERFACE_TABLES, PortSpec
from ovs_hotswap.uplink.nic_links import NicLinks

_LOOK_S = 1.0


class Bridges(Protocol):
    """The parts of a host that have to do with the uplink's ports."""

    instances: dict[Side, Instance]

    @property
    def config(self) -> Config: ...

    @property
    def intent(self) -> Intent: ...

    @property
    def nic_links(self) -> NicLinks: ...

    def openflow(self, side: Side) -> OpenFlow:
        """The side's bridge. Raises SwitchError."""


def names(config: Config) -> list[str]:
    """The names of the uplink's ports. On a host that others program these are the ports with devices of their own."""
    if config.program is Program.CLONE:
        return sorted({name for side in Side for name in config.instance(side).port_devices})
    return [UPLINK, SECOND_UPLINK] if two(config) else [UPLINK]


def numbers(config: Config) -> tuple[int, ...]:
    """The OpenFlow port by which each NIC is reached."""
    return NIC_PORTS if two(config) else (UPLINK_PORT,) * len(config.uplink.nics)


def two(config: Config) -> bool:
    """Whether a bridge has a port for each of two NICs."""
    return config.uplink.second is not None and config.uplink.bond != "dpdk"


def specs(host: Bridges, side: Side) -> tuple[PortSpec, ...]:
    """The uplink's ports on the side's bridge."""
    devargs = list(host.config.instance(side).devices)
    if len(devargs) > 1 and not two(host.config):
        release = host.instances[side].release()
        devargs = [bonded(devargs, "" if release is None else release.dpdk_version)]
    return tuple(
        _spec(name, number, args, host.intent)
        for name, number, args in zip(names(host.config), NIC_PORTS, devargs, strict=False)
    )


def first(config: Config, intent: Intent, side: Side) -> PortSpec:
    """The port of the only NIC, or of the first one."""
    return _spec(UPLINK, UPLINK_PORT, config.instance(side).uplink_devargs, intent)


def _spec(name: str, number: int, devargs: str, intent: Intent) -> PortSpec:
    return PortSpec(name, "dpdk", number, {"dpdk-devargs": devargs}, mtu=intent.vtep.mtu)


def ports(config: Config, live: Sequence[int]) -> UplinkPorts:
    """The uplink's ports in the flows. ``live``: the numbers of the NICs that have a link."""
    return two_ports(config.uplink.bond, live) if two(config) else UplinkPorts()


def choices(config: Config) -> Iterator[tuple[int, ...]]:
    """The numbers of the NICs by which packets may leave, in each possible way."""
    if two(config):
        for size in (2, 1):
            yield from itertools.combinations(range(len(NIC_PORTS)), size)


def use(host: Bridges, side: Side, live: Sequence[int]) -> None:
    """Let packets leave the side's bridge by the NICs that have a link. All else of its flows stays, also the tag that
    packets get before. Raises SwitchError."""
    openflow, leave = host.openflow(side), ports(host.config, live).leave
    for before in openflow.actions(cookie(Kind.TO_UPLINK)):
        openflow.set_actions(cookie(Kind.TO_UPLINK), before.partition("bundle(")[0] + leave)


def queues(host: Bridges) -> tuple[Uplink, ...]:
    """For each port of the uplink, the queues that need the most buffers: of a running instance's, and of those that
    were recorded for the next boot. An instance that is started is given the same ones. Both NICs of a bond have
    queues like those of its one port."""
    found = {name: [Uplink(), Uplink.of(saved_settings.port_options(host.config, name))] for name in names(host.config)}
    for instance in host.instances.values():
        with contextlib.suppress(HotswapError), instance.database(_LOOK_S, INTERFACE_TABLES) as database:
            interfaces = database.interfaces()
            for name, seen in found.items():
                seen += [Uplink.of(interfaces[name].options)] if name in interfaces else []
    most = [max(seen, key=lambda each: each.rx_queues * each.rx_ring + each.tx_ring) for seen in found.values()]
    return tuple(most * (len(host.config.uplink.nics) // len(most)))

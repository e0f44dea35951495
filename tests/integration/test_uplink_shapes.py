"""Upgrades over an underlay that is not the simplest one: IPv6, in a VLAN, with tunnels on another UDP port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions, WireOptions
from ovs_hotswap.model import Proof, Release, Side
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.switch.netns import Namespaces
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.switch.tunnel import ANCHORS
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.lab_bed import serving_lab

ROUNDS = int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))
TREE_NAME = "trixie"
WIRE = WireOptions(ipv6=True, vlan=100, udp_port=8472)


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture(scope="module")
def bed(system: System, tree_release: Release) -> Iterator[Lab]:
    """A lab with two guests that ping each other and the remote end, on an active instance of the host's release."""

    def add_tree(lab: Lab) -> None:
        Releases(lab.config, system).add(TREE_NAME, from_directory=Path(str(tree_release.root)))

    with serving_lab(system, "ovsh-us-", options=GuestOptions(mtu=WIRE.tunnel_mtu, wire=WIRE), prepare=add_tree) as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


def carries(host: Host, side: Side) -> None:
    """All of the overlay's packets have the shape: the remote host takes only such, and nothing else has come."""
    assert host.uplink.owner() is side
    assert host.openflow(side).packets(cookie(Kind.FROM_UPLINK)) > 0
    assert host.openflow(side).packets(cookie(Kind.TO_UPLINK)) > 0
    assert host.uplink.prove(side, host.uplink_ends.end(side)) == Proof(True, True)


def test_an_upgrade_and_back_lose_nothing(bed: Lab, host: Host) -> None:
    for _ in range(ROUNDS):
        begun = bed.pings.mark()
        assert Upgrader(host).upgrade(TREE_NAME, nobody).committed
        carries(host, Side.B)
        assert Upgrader(host).rollback(nobody).committed
        carries(host, Side.A)
        assert [(seen.guest, seen.target, seen.lost) for seen in bed.pings.between(begun, bed.pings.mark())] == [
            (guest.name, target.name, 0) for guest in bed.layout.guests for target in guest.targets
        ]


def test_what_leaves_the_intent_leaves_the_instance(bed: Lab, host: Host, system: System) -> None:
    """The address, a route and the UDP port of the tunnels are changed, and put back."""
    path, before = bed.config.overlay, bed.config.overlay.read_text()
    assert host.uplink.owner() is Side.A

    def programmed(host: Host) -> tuple[set[str], set[str], str]:
        found = Namespaces().addresses(host.config.bridge, host.instances[Side.A].paths.netns)
        own = {each for each in found if not each.startswith("fe80:")}
        with host.instances[Side.A].database() as database:
            options = database.interfaces()["vxlan"].options
        routes = {route.destination for route in host.tunnels(Side.A).routes() if route.user} - {*ANCHORS}
        return own, routes, options["dst_port"]

    route = '\n[[route]]\ndestination = "fd00:9::/32"\ngateway = "fd00:1f::2"\n[[remote]]'
    changed = before.replace("fd00:1f::1/64", "fd00:1f::9/64").replace("\n[[remote]]", route).replace("8472", "8473")
    try:
        path.write_text(changed)
        Host(bed.config, system).follow_intent([Side.A])
        assert programmed(host) == ({"fd00:1f::9/64"}, {"fd00:9::/32"}, "8473")
        assert Host(bed.config, system).uplink.owner() is Side.A, "the filter is for the new address and port"
        assert host.uplink.owner() is None
    finally:
        path.write_text(before)
        host.follow_intent([Side.A])
    assert programmed(host) == ({"fd00:1f::1/64"}, set(), "8472")
    assert host.uplink.owner() is Side.A
    bed.pings.wait_flowing(30.0)

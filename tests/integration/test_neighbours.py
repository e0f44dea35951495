"""Next hops that are resolved and followed while VMs ping, on the real Open vSwitch, QEMU and Linux neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import REMOTE_INNER, REMOTE_INNER_MAC, REMOTE_VTEP, REMOTE_VTEP_MAC, VNI, VTEP_MAC
from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.tunnel import ANCHORS
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import collect
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.watchdog.next_hop_watch import NextHopWatch
from ovs_hotswap.watchdog.status_file import StatusFile, last_events
from tests.support.lab_bed import serving_lab

OTHER_MAC, THIRD_MAC = "52:54:00:1f:00:22", "52:54:00:1f:00:33"
Follow = Callable[[Callable[[Host], bool]], None]


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    """A lab with one guest, which pings the remote host, on an active instance. The remote host's MAC is not in the
    overlay file."""

    def forget_mac(lab: Lab) -> None:
        overlay = lab.layout.overlay_file
        overlay.write_text(overlay.read_text().replace(f'mac = "{REMOTE_VTEP_MAC}"\n', ""))

    with serving_lab(system, "ovsh-nb-", vms=1, prepare=forget_mac) as lab:
        yield lab


@pytest.fixture
def follow(bed: Lab, system: System) -> Follow:
    """Looks as the watchdog does until something is true."""
    host, watch = Host(bed.config, system), NextHopWatch(StatusFile(bed.config, system))

    def until(true: Callable[[Host], bool]) -> None:
        while not true(host):
            watch.look(host)
            time.sleep(0.1)

    return until


def macs(host: Host, side: Side = Side.A) -> dict[str, str]:
    return {each.address: each.mac for each in host.tunnels(side).neighbours()}


def route(host: Host) -> set[str | None]:
    return {each.gateway for each in host.tunnels(Side.A).routes() if each.user and each.destination not in ANCHORS}


def inside(bed: Lab, system: System, script: str, *, remote: bool = True) -> None:
    name = bed.layout.remote_namespace if remote else bed.layout.host_namespace
    system.run(["ip", "netns", "exec", name, "sh", "-ec", script])


def longest(bed: Lab, begun: Mark) -> str:
    gaps = [gap.ms for found in bed.pings.gaps(begun, bed.pings.mark()).values() for gap in found]
    return f"longest gap between answers: {max(gaps) / 1e3:.2f} s"


def reported(bed: Lab) -> list[str]:
    return [text for each in last_events(bed.config, 100) if each["event"] == "next-hop" for text in each["changes"]]


def test_a_neighbour_without_a_mac_is_resolved_before_the_first_vm_is_served(bed: Lab, system: System) -> None:
    host = Host(bed.config, system)
    assert macs(host)[REMOTE_VTEP] == REMOTE_VTEP_MAC
    found = [each for each in collect.precheck(host, Side.A, Side.B, "host") if each.check == "next hops"]
    assert [each.severity for each in found] == [Severity.OK]


def test_a_neighbour_that_gets_another_mac_is_followed(bed: Lab, system: System, follow: Follow) -> None:
    host = Host(bed.config, system)
    begun = bed.pings.mark()
    inside(bed, system, f"ip link set net0 address {OTHER_MAC}")
    follow(lambda host: macs(host).get(REMOTE_VTEP) == OTHER_MAC)
    bed.pings.wait_flowing(10.0)
    print(longest(bed, begun))
    assert reported(bed) == [f"next hop {REMOTE_VTEP} is at {OTHER_MAC} now, before at {REMOTE_VTEP_MAC}"]
    assert host.underlay.in_use().macs == {REMOTE_VTEP: OTHER_MAC}


def test_a_route_that_leaves_the_intent_takes_no_other_with_it(bed: Lab, system: System) -> None:
    """Open vSwitch takes tunnel packets only at addresses of devices that it has a route to."""
    overlay = bed.layout.overlay_file
    before = overlay.read_text()
    overlay.write_text(f'{before}\n[[route]]\ndestination = "10.9.0.0/16"\ngateway = "{REMOTE_VTEP}"\n')
    Host(bed.config, system).follow_intent([Side.A])
    assert route(Host(bed.config, system)) == {REMOTE_VTEP}
    overlay.write_text(before)
    begun = bed.pings.mark()
    Host(bed.config, system).follow_intent([Side.A])
    assert route(Host(bed.config, system)) == set()
    bed.pings.wait_flowing(10.0)
    print("lost:", [each.lost for each in bed.pings.between(begun, bed.pings.mark())], longest(bed, begun))


ROUTERS = f"""
ip addr flush dev net0
for n in 1 2; do
    ip link add link net0 name router$n type macvlan mode bridge
    ip addr add 192.0.2.$((2 * n - 2))/31 dev router$n
    ip link set router$n up
    ip route add 10.0.0.1/32 via 192.0.2.$((2 * n - 1)) dev router$n metric $n
done
ip addr add 10.0.0.2/32 dev lo
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.router1.rp_filter=0 net.ipv4.conf.router2.rp_filter=0
sysctl -qw net.ipv4.conf.all.arp_ignore=1
ip link del vxlan{VNI}
ip link add vxlan{VNI} address {REMOTE_INNER_MAC} type vxlan id {VNI} local 10.0.0.2 dstport 4789 nolearning
ethtool -K vxlan{VNI} rx off tx off tso off gso off gro off
bridge fdb append 00:00:00:00:00:00 dev vxlan{VNI} dst 10.0.0.1
ip link set vxlan{VNI} mtu 1450 up
ip addr add {REMOTE_INNER}/16 dev vxlan{VNI}
"""
LOOPBACK = """[vtep]
address = "10.0.0.1/32"
link_addresses = ["192.0.2.1/31", "192.0.2.3/31"]
"""
NEXT_HOPS = """[[neighbour]]
address = "192.0.2.0"
[[neighbour]]
address = "192.0.2.2"
[[route]]
destination = "10.0.0.2/32"
gateway = ["192.0.2.0", "192.0.2.2"]
"""


def test_a_vtep_on_a_loopback_survives_the_end_of_its_preferred_next_hop(
    bed: Lab, system: System, follow: Follow
) -> None:
    overlay = bed.layout.overlay_file
    vms = overlay.read_text().partition("[[vm]]")[2].partition("[[remote]]")[0]
    overlay.write_text(
        f'{LOOPBACK}mac = "{VTEP_MAC}"\n[[vm]]{vms}{NEXT_HOPS}'
        f'[[remote]]\nvni = {VNI}\nmac = "{REMOTE_INNER_MAC}"\nvtep = "10.0.0.2"\n'
    )
    inside(bed, system, ROUTERS)
    inside(bed, system, "ip addr flush dev pf0; ip addr add 10.0.0.1/32 dev pf0; ip addr add 192.0.2.1/31 dev pf0;"
           "ip addr add 192.0.2.3/31 dev pf0", remote=False)  # fmt: skip
    host = Host(bed.config, system)
    host.follow_intent([Side.A], untried=True)
    bed.pings.wait_flowing(10.0)
    assert set(macs(host)) >= {"192.0.2.0", "192.0.2.2"}
    assert route(host) == {"192.0.2.0"}
    begun = bed.pings.mark()
    inside(bed, system, "ip link set router1 down")
    follow(lambda host: route(host) == {"192.0.2.2"})
    bed.pings.wait_flowing(10.0)
    print(longest(bed, begun))
    inside(bed, system, "ip link set router1 up; ip route add 10.0.0.1/32 via 192.0.2.1 dev router1 metric 1")
    follow(lambda host: route(host) == {"192.0.2.0"})
    bed.pings.wait_flowing(10.0)
    assert "10.0.0.2/32 goes through 192.0.2.2 now, before through 192.0.2.0" in reported(bed)


def test_an_upgrade_asks_before_the_move(bed: Lab, system: System) -> None:
    """The preferred next hop has another MAC, which no watchdog has seen yet."""
    inside(bed, system, f"ip link set router1 address {THIRD_MAC}")
    Upgrader(Host(bed.config, system)).upgrade("host", lambda _event: None, force=True)
    bed.pings.wait_flowing(10.0)
    host = Host(bed.config, system)
    assert host.underlay.notes()[Side.B].neighbours["192.0.2.0"] == THIRD_MAC == macs(host, Side.B)["192.0.2.0"]
    assert [(vm.name, vm.owner) for vm in host.backends.vms()] == [("vm1", Side.B)]

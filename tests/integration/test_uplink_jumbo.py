"""Upgrades under full frames on an underlay with an MTU of 9000, on the real Open vSwitch and QEMU: between the guests
and to the remote host. ``OVS_HOTSWAP_UPLINK_ROUNDS``: how often there and back; over IPv6 as well if it
is more than once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ovs_hotswap.errors import PrecheckFailed
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions, WireOptions
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.datapath import ports_with_mtus
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import collect
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.lab_bed import serving_lab

ROUNDS = int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))
WIRES = [WireOptions(mtu=9000), WireOptions(mtu=9000, ipv6=True)][: 2 if ROUNDS > 1 else 1]


@pytest.fixture(scope="module", params=WIRES, ids=lambda wire: f"mtu={wire.mtu}{',ipv6' if wire.ipv6 else ''}")
def bed(request: pytest.FixtureRequest, system: System) -> Iterator[Lab]:
    """A lab with two guests whose longest packets just fit into the tunnels, on an active instance."""
    wire = request.param
    with serving_lab(system, "ovsh-mtu-", options=GuestOptions(mtu=wire.tunnel_mtu, wire=wire)) as lab:
        yield lab


def test_full_frames_pass_through_an_upgrade_and_back(bed: Lab, system: System) -> None:
    begun = bed.pings.mark()
    for _ in range(ROUNDS):
        for side in (Side.B, Side.A):
            host = Host(bed.config, system)
            Upgrader(host).upgrade("host", lambda _event: None, force=True)
            assert {vm.owner for vm in host.backends.vms()} == {side}
            mtus = ports_with_mtus(host.instances[side].paths)
            assert (mtus["uplink"].mtu, mtus["vm1"].mtu) == (9000, bed.layout.options.mtu)
            assert [_too_long(host, side, vm.name) for vm in host.intent.vms] == [0, 0], "they are the peer link's"
    seen = bed.pings.between(begun, bed.pings.mark())
    assert all(each.sent for each in seen)
    assert [(each.guest, each.target, each.lost) for each in seen if each.lost] == []


def test_the_pings_fill_the_underlays_frames(bed: Lab, system: System) -> None:
    """The remote end counts them: the bytes of each packet that came from a guest are those of a full frame."""
    before, after = _received(bed, system), (0, 0)
    bed.pings.wait_flowing(10.0)
    while after[0] < before[0] + 50:
        after = _received(bed, system)
    frame = bed.layout.options.wire.mtu + 14
    assert (after[1] - before[1]) / (after[0] - before[0]) > 0.9 * frame, "ARP alone is short"


def test_a_device_that_is_too_narrow_is_named_before_anything_changes(bed: Lab, system: System) -> None:
    host, tool = Host(bed.config, system), ["ip", "netns", "exec", bed.layout.host_namespace, "ip", "link", "set"]
    assert [each for each in collect.mtus(host, Side.A) if each.severity is not Severity.OK] == []
    system.run([*tool, "rep-b", "mtu", "1500"])
    try:
        with pytest.raises(PrecheckFailed, match="rep-b has MTU 1500, the underlay 9000") as caught:
            Upgrader(host).upgrade("host", lambda _event: None, force=True)
        assert str(caught.value.hint).startswith(
            f"ip netns exec {bed.layout.host_namespace} ip link set rep-b mtu 9000"
        )
    finally:
        system.run([*tool, "rep-b", "mtu", "9000"])


def _too_long(host: Host, side: Side, port: str) -> int:
    """The packets that the instance has dropped at a port because they are longer than its MTU."""
    column = "statistics:ovs_tx_mtu_exceeded_drops"
    database = f"--db=unix:{host.instances[side].paths.db_socket}"
    return int(host.system.run(["ovs-vsctl", database, "--if-exists", "get", "Interface", port, column]).stdout or 0)


def _received(bed: Lab, system: System) -> tuple[int, int]:
    """The packets and bytes that the remote host's device has received."""
    inside = ["ip", "netns", "exec", bed.layout.remote_namespace, "cat"]
    base = "/sys/class/net/net0/statistics/rx_"
    packets, octets = system.run([*inside, f"{base}packets", f"{base}bytes"]).stdout.split()
    return int(packets), int(octets)

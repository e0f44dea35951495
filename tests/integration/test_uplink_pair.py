"""Two NICs behind one VTEP on the real Open vSwitch and QEMU: upgrades over both, and the loss of either.

``OVS_HOTSWAP_UPLINK_ROUNDS``: how often the upgrade and the way back are repeated.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from ovs_hotswap.config_file import load_config
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance, stop_for_good
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions, WireOptions
from ovs_hotswap.model import Proof, Severity, Side
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import collect, uplink_proof
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.uplink.pair import PairUplink
from ovs_hotswap.watchdog.nic_watch import NicWatch
from ovs_hotswap.watchdog.status_file import StatusFile
from tests.support.lab_bed import serving_lab

ROUNDS = int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))
NICS = [0, 1] if ROUNDS > 1 else [0]  # those that lose their link: usually only the one by which packets leave


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    with serving_lab(
        system, "ovsh-2n-", "\n[upgrade]\nsoak_s = 1.0\n", options=GuestOptions(wire=WireOptions(pair=True))
    ) as lab:
        yield lab


def test_an_upgrade_and_the_way_back_lose_nothing(bed: Lab, system: System) -> None:
    host = Host(bed.config, system)
    assert isinstance(host.uplink, PairUplink)
    begun = bed.pings.mark()
    for _ in range(2 * ROUNDS):
        Upgrader(Host(bed.config, system)).upgrade("host", nobody, force=True)
    assert [(seen.guest, seen.lost) for seen in bed.pings.between(begun, bed.pings.mark()) if seen.lost] == []
    assert host.uplink.owner() is Side.A


@pytest.fixture
def host(bed: Lab, system: System) -> Iterator[Host]:
    """Packets leave by a NIC with a link before and after each test, as the watchdog sees to it."""
    host = Host(bed.config, system)
    watch = NicWatch(lambda: Host(bed.config, system, quick=True), StatusFile(bed.config, system))
    watch.start()
    yield host
    watch.close()
    assert {vm.owner for vm in host.backends.vms()} == {host.recorded_active()}
    bed.pings.wait_flowing(30.0)


@contextlib.contextmanager
def without_link(bed: Lab, system: System, nic: int) -> Iterator[None]:
    """Take down the switch's port of a NIC, and wait until the other one carries the packets. Afterwards the link is up
    again."""
    set_link(bed, system, nic, "down")
    try:
        yield
    finally:
        set_link(bed, system, nic, "up")


def set_link(bed: Lab, system: System, nic: int, state: str) -> None:
    begun = bed.pings.mark()
    system.run(["ip", "-n", bed.layout.remote_namespace, "link", "set", bed.layout.nics[nic].remote, state])
    time.sleep(1.0)
    bed.pings.wait_flowing(10.0)
    seen = bed.pings.between(begun, bed.pings.mark())
    gaps, lost = [each.longest_gap_ms for each in seen], [each.lost for each in seen]
    print(f"NIC {nic} {state}: longest gaps in ms {gaps}, lost {lost}")


@pytest.mark.parametrize("nic", NICS)
def test_a_nic_that_has_no_link_before_an_upgrade_is_named(bed: Lab, host: Host, system: System, nic: int) -> None:
    with without_link(bed, system, nic):
        active = host.active()
        found = collect.precheck(host, active, active.other, "host")
        warnings = [each.text for each in found if each.severity is Severity.WARNING]
        assert f"pf{nic} has no link: all of the overlay's packets use pf{1 - nic}" in warnings
        begun = bed.pings.mark()
        Upgrader(host).upgrade("host", nobody, force=True)
        assert [seen for seen in bed.pings.between(begun, bed.pings.mark()) if seen.lost] == []


@pytest.mark.parametrize("nic", NICS)
def test_a_nic_that_loses_its_link_during_an_upgrade(bed: Lab, host: Host, system: System, nic: int) -> None:
    with contextlib.ExitStack() as stack:

        def strike(event: Event) -> None:
            if event.step == "steer" and event.kind is EventKind.DONE:
                stack.enter_context(without_link(bed, system, nic))

        Upgrader(host).upgrade("host", strike, force=True)
        begun = bed.pings.mark()
        time.sleep(1.0)
        assert [seen for seen in bed.pings.between(begun, bed.pings.mark()) if seen.lost] == []


def test_a_bond_of_dpdk_forwards(bed: Lab, system: System) -> None:
    """Both NICs are behind one port, whose arguments are those of the release (DPDK 22.11). The bond gives its members
    as many queues as it has itself, and net_af_packet has only those of ``qpairs``."""
    host = Host(bed.config, system)
    side = host.active()
    stop_for_good(host, side)
    text = bed.config_path.read_text()
    bond = text.replace('driver = "tc"', 'driver = "tc"\nbond = "dpdk"').replace(
        "qdisc_bypass=1", "qdisc_bypass=1,qpairs=2"
    )
    bed.config_path.write_text(bond)
    try:
        bonded = Host(load_config(bed.config_path), system)
        start_instance(bonded, side, bonded.releases.get("host"))
        socket = bonded.instances[side].paths.db_socket
        system.run(["ovs-vsctl", f"--db=unix:{socket}", "set", "Interface", "uplink", "options:n_rxq=2"])
        bed.pings.wait_flowing(30.0)
        with bonded.instances[side].database() as database:
            interfaces = database.interfaces()
        assert "uplink2" not in interfaces
        assert interfaces["uplink"].options["dpdk-devargs"].startswith("net_bonding0,mode=1,slave=eth_af_packet0,")
        proof = uplink_proof.prove(bonded, side)
        # The bond receives only from the NIC by which it sends.
        assert proof.nics == (("pf0", Proof(True, True)), ("pf1", Proof(True, False)))
        stop_for_good(bonded, side)
    finally:
        bed.config_path.write_text(text)
    start_instance(host, side, host.releases.get("host"))
    bed.pings.wait_flowing(30.0)

"""The driver ``announce`` on real packets: the host's VFs are ports of a bridge that learns, as of a NIC and a fabric,
and the remote host resolves the VTEP's address. ``OVS_HOTSWAP_UPLINK_ROUNDS``: how many upgrades there and back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from ovs_hotswap.errors import RolledBack
from ovs_hotswap.host.flow_tables import tables
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.layout import REMOTE_DEVICE, REMOTE_VTEP, VF_MACS, VTEP, WireOptions
from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.ports import UPLINK_PORT
from ovs_hotswap.overlay.tables import Form, lines
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.switch.instance import State
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.upgrade.uplink_checks import PEERS
from tests.support.lab_bed import SHORT_SOAK, serving_lab
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))


@contextlib.contextmanager
def announced(system: System, wire: WireOptions) -> Iterator[Lab]:
    """A lab with two guests that ping each other and the remote end, on an active instance."""
    with serving_lab(
        system,
        "ovsh-an-",
        SHORT_SOAK + "[watch]\ncrash_limit = 100\nhang_ms = 3000\n",
        options=GuestOptions(mtu=wire.tunnel_mtu, wire=wire),
    ) as lab:
        yield lab


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    with announced(system, WireOptions(driver="announce")) as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


def unobserved(_event: Event) -> None:
    """An observer that does not look."""


def remote(bed: Lab, *argv: str) -> str:
    return System().run(["ip", "netns", "exec", bed.layout.remote_namespace, "ip", "neigh", *argv]).stdout


def learnt(bed: Lab) -> str:
    """The MAC to which the remote host sends what is for the VTEP."""
    words = remote(bed, "show", bed.layout.options.wire.vtep).split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else "none"


def lost(bed: Lab, since: Mark) -> list[object]:
    return [each for each in bed.pings.between(since, bed.pings.mark()) if each.lost]


def there_and_back(bed: Lab, host: Host) -> None:
    begun = bed.pings.mark()
    for _ in range(2 * ROUNDS):
        old = host.active()
        Upgrader(host).upgrade("host", unobserved, force=True)
        assert host.active() is host.uplink.owner() is old.other
        assert learnt(bed) == VF_MACS[old.other]
        assert host.instances[old].status().state is State.STOPPED
        assert host.openflow(old.other).diff(lines(tables(host, old.other, Form.FINAL))) == []
    assert lost(bed, begun) == []
    assert [each.severity for each in host.uplink.check()] == [Severity.OK]
    assert host.openflow(host.active()).port_mac(UPLINK_PORT) == VF_MACS[host.active()]


def test_an_upgrade_and_the_way_back_lose_nothing_over_ipv6_in_a_vlan(system: System) -> None:
    wire = WireOptions(driver="announce", ipv6=True, vlan=100)
    with announced(system, wire) as lab:  # first, because one lab at a time is enough for a small machine
        host = Host(lab.config, system)
        there_and_back(lab, host)
        proof = uplink_proof.prove(host, host.active())
        assert (proof.out, proof.into) == (True, True)


def test_an_upgrade_and_the_way_back_lose_nothing(bed: Lab, host: Host) -> None:
    there_and_back(bed, host)


@contextlib.contextmanager
def static_entry(bed: Lab, side: Side) -> Iterator[None]:
    """The remote host does not learn the VTEP's MAC during the block."""
    entry = (VTEP, "lladdr", VF_MACS[side], "dev", REMOTE_DEVICE, "nud")
    remote(bed, "replace", *entry, "permanent")
    try:
        yield
    finally:
        remote(bed, "replace", *entry, "reachable")


def test_a_host_that_does_not_learn_is_named_and_loses_nothing(bed: Lab, host: Host) -> None:
    active = host.active()
    begun = bed.pings.mark()
    with static_entry(bed, active):
        text = rf"step steer failed: .*{REMOTE_VTEP} still sends to instance {active}'s {VF_MACS[active]}"
        with pytest.raises(RolledBack, match=text) as caught:
            Upgrader(host).upgrade("host", unobserved, force=True)
    assert "ip neigh show" in (caught.value.hint or "")
    assert host.active() is host.uplink.owner() is active
    assert learnt(bed) == VF_MACS[active]
    assert lost(bed, begun) == []


def test_a_failover_is_announced_and_a_standby_is_silent(bed: Lab, host: Host) -> None:
    old = host.active()
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log"):
        pid = host.instances[old].pid()
        assert pid is not None
        for _ in range(3):  # the standby has the same address, and hears the same questions
            remote(bed, "flush", "dev", REMOTE_DEVICE)
            bed.pings.wait_flowing(10.0)
            assert learnt(bed) == VF_MACS[old]
        proof = uplink_proof.prove(host, old.other)
        assert (proof.out, proof.into) == (True, True)
        assert learnt(bed) == VF_MACS[old], "a proof teaches nothing"
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: host.recorded_active() is old.other, "no failover")
        eventually(lambda: learnt(bed) == VF_MACS[old.other], "the remote host has not learnt")
        bed.pings.wait_flowing(30.0)
        assert host.uplink.owner() is old.other
        wait_protected(host, old.other)
        assert host.openflow(old).diff(lines(tables(host, old, Form.FINAL))) == []
        with static_entry(bed, old):
            found: list[str] = []

            def named() -> bool:
                found[:] = [each.text for each in host.uplink.check() if each.check == PEERS]
                return bool(found) and REMOTE_VTEP in found[0]

            eventually(named, "the host that sends to the standby is not named")
        remote(bed, "flush", "dev", REMOTE_DEVICE)
        bed.pings.wait_flowing(30.0)

"""The NIC that one instance has at a time, on the real Open vSwitch, with QEMU guests and a pair of veths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.errors import RolledBack, UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import PF, REMOTE, GuestOptions, WireOptions
from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.uplink.frames import in_namespace
from tests.support.lab_bed import serving_lab
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("OVS_HOTSWAP_UPLINK_ROUNDS", "1"))


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    """A lab with two guests that ping each other and the remote end; instance a is active and has the NIC."""
    with serving_lab(system, "ovsh-ux-", options=GuestOptions(wire=WireOptions(driver="exclusive"))) as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


def lost_among_vms(bed: Lab, begun: Mark) -> list[tuple[str, int]]:
    found = bed.pings.between(begun, bed.pings.mark())
    return [(each.guest, each.lost) for each in found if each.target != REMOTE and each.lost]


def test_an_upgrade_and_back_loses_nothing_between_vms_and_reports_the_gap(
    bed: Lab, host: Host, system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2 * ROUNDS):
        new = host.active().other
        begun = bed.pings.mark()
        report = Upgrader(Host(bed.config, system)).upgrade("host", nobody, force=True)
        bed.pings.wait_flowing(30.0)
        assert lost_among_vms(bed, begun) == []
        found = bed.pings.between(begun, bed.pings.mark())
        seen = {each.guest: (each.lost, round(each.longest_gap_ms or 0)) for each in found if each.target == REMOTE}
        with capsys.disabled():
            print(f"\nto {new}: no instance had the NIC for {report.uplink_gap_ms} ms; of the pings of the remote host "
                  f"were lost, and the longest gap in ms was: {seen}")  # fmt: skip
        assert report.uplink_gap_ms is not None
        assert report.committed
        assert host.uplink.owner() is new
        assert arp_ignore(host.instances[new].paths.netns) == "8", "its kernel would answer with the MAC of the NIC"


def arp_ignore(namespace: str) -> str:
    return in_namespace(namespace, Path(f"/proc/sys/net/ipv4/conf/{PF}/arp_ignore").read_text).strip()


def test_a_nic_that_the_new_instance_cannot_open_is_given_back(bed: Lab, host: Host, system: System) -> None:
    old = host.active()
    begun = bed.pings.mark()
    config = bed.config.model_copy(deep=True)
    config.instance(old.other).__dict__["uplink_devargs"] += ",framecnt=no-number"
    with pytest.raises(RolledBack, match=rf"step steer failed: .*; instance {old} has it again"):
        Upgrader(Host(config, system)).upgrade("host", nobody, force=True)
    assert host.uplink.owner() is old
    bed.pings.wait_flowing(30.0)
    assert lost_among_vms(bed, begun) == []


def released(host: Host) -> bool:
    try:
        return host.uplink.owner() is None
    except UplinkError:  # an instance is starting
        return False


def test_an_upgrade_that_is_killed_while_no_instance_has_the_nic_is_finished(
    bed: Lab, host: Host, system: System
) -> None:
    old = host.active()
    begun = bed.pings.mark()
    command = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.config_path), "upgrade", "--release", "host"]
    with subprocess.Popen([*command, "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as upgrade:
        eventually(lambda: released(host), "the NIC is not released", 60.0, poll_s=0.005)
        upgrade.kill()
    assert host.uplink.owner() is None
    assert Upgrader(Host(bed.config, system)).resume(nobody).committed
    assert host.uplink.owner() is host.active() is old.other
    bed.pings.wait_flowing(30.0)
    assert lost_among_vms(bed, begun) == []


def test_the_standby_opens_the_nic_of_an_active_instance_that_dies_or_hangs(
    bed: Lab, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log"):
        for number in (signal.SIGKILL, signal.SIGSTOP)[: 1 if ROUNDS == 1 else 2]:
            old = host.active()
            pid = host.instances[old].pid()
            assert pid is not None
            begun = bed.pings.mark()
            os.kill(pid, number)
            eventually(lambda: host.recorded_active() is old.other, "no failover")  # noqa: B023
            assert host.uplink.owner() is old.other
            bed.pings.wait_flowing(30.0)
            found = bed.pings.between(begun, bed.pings.mark())
            with capsys.disabled():
                print(f"\n{number.name}: longest gaps in ms:", {
                    (each.guest, each.target): round(each.longest_gap_ms or 0) for each in found
                })  # fmt: skip
            wait_protected(host, old.other)
            assert host.uplink.owner() is old.other

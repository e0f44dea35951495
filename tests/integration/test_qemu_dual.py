"""The back-end mode ``qemu-dual`` on the patched QEMU that ``make packages`` builds, with the real Open vSwitch: an
upgrade and back without a broker, a crash, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.errors import BrokerError, RolledBack
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.model import Release, Side
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.qemu.monitor import Command, Monitors
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.patched_bed import prefix

TREE_NAME = "trixie"


@contextmanager
def dual_lab(system: System, tree: Release, vms: int, first: str, *device: str) -> Iterator[Lab]:
    """A lab on whose instance a of the release ``first`` the guests run; ``device``: properties of theirs."""
    qemu = str(prefix("qemu-7.2") / "bin/qemu-system-x86_64")
    options = GuestOptions(backend=BackendMode.QEMU_DUAL, qemu=qemu, device=device)
    lab = Lab(Path(tempfile.mkdtemp(prefix="ovsh-qd-")), vms, system, options)
    try:
        lab.up()
        lab.config_path.write_text(f"{lab.config_path.read_text()}\n[upgrade]\nsoak_s = 0.3\n[watch]\nhang_ms = 3000\n")
        Releases(lab.config, system).add(TREE_NAME, from_directory=Path(str(tree.root)))
        host = Host(lab.config, system)
        start_instance(host, Side.A, host.releases.get(first))
        lab.pings.wait_flowing(60.0)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def bed(system: System, tree_release: Release) -> Iterator[Lab]:
    """A lab with two guests, each of whose QEMU has instance a for its first switch."""
    with dual_lab(system, tree_release, 2, "host") as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


def served_by(host: Host, side: Side) -> None:
    vms = host.backends.vms()
    assert [(vm.owner, vm.certainty) for vm in vms] == [(side, "owns")] * 2
    assert host.active() is side
    assert host.uplink.owner() is side


def test_there_and_back_without_a_broker(bed: Lab, host: Host) -> None:
    first = bed.pings.mark()
    report = Upgrader(host).upgrade(TREE_NAME, lambda _event: None)
    assert sorted(report.moves) == ["vm1", "vm2"]
    served_by(host, Side.B)
    assert not host.running(Side.A)
    Upgrader(host).rollback(lambda _event: None)
    served_by(host, Side.A)
    bed.pings.wait_flowing(60.0)
    stats = bed.pings.between(first, bed.pings.mark())
    # There are no capture rings: what arrives for a guest in the fraction of a millisecond of a move is lost.
    assert all(each.lost <= each.sent // 100 for each in stats)
    assert all(each.sent > 0 for each in stats)
    assert bed.guests[0].boots() == 1


def test_a_failure_puts_everything_back(bed: Lab, host: Host) -> None:
    def strike(event: Event) -> None:
        if event.kind is EventKind.DONE and event.step == "move":
            pid = host.instances[Side.B].pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(RolledBack):
        Upgrader(host).upgrade(TREE_NAME, strike)
    served_by(host, Side.A)
    bed.pings.wait_flowing(60.0)


def test_a_crash_is_survived_by_each_qemu_itself(bed: Lab, host: Host) -> None:
    active = host.active()
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log"):
        before = {vm.name: vm.moves for vm in host.backends.vms()}
        pid = host.instances[active].pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        host.wait(lambda: host.recorded_active() is active.other, 20.0, lambda: "no failover is recorded")
        wait_protected(host, active.other)
        bed.pings.wait_flowing(60.0)
        served_by(host, active.other)
        assert {vm.name: vm.moves for vm in host.backends.vms()} == {vm: count + 1 for vm, count in before.items()}


def test_a_vm_in_quarantine_is_served_by_nobody_and_then_goes_on(bed: Lab, host: Host) -> None:
    """An instance that is started, and one that takes over, do not serve it either."""
    active = host.active()
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log"):
        wait_protected(host, active)
        found = host.backends.quarantine("vm2", "by order")
        assert (found.owner, found.quarantine) == (None, "by order")
        pid = host.instances[active].pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        host.wait(lambda: host.recorded_active() is active.other, 20.0, lambda: "no failover is recorded")
        wait_protected(host, active.other)
        owners = {vm.name: vm.owner for vm in host.backends.vms()}
        assert owners == {"vm1": active.other, "vm2": None}
        for side in Side:
            assert not host.has_port(side, "vm2")
        host.backends.release("vm2")
        wait_protected(host, active.other)
        host.wait(lambda: host.backends.vm("vm2").owner is active.other, 20.0, lambda: "no instance serves vm2")
        bed.pings.wait_flowing(60.0)
    served_by(host, active.other)


def test_a_vm_that_is_started_during_an_upgrade_is_moved_too(bed: Lab, system: System) -> None:
    """Its QEMU may meet either instance first. Until then no socket listens for it, and nothing waits for that."""
    soak = bed.config.upgrade.model_copy(update={"soak_s": 4.0})
    host = Host(bed.config.model_copy(update={"upgrade": soak}), system)
    active = host.active()
    if host.running(active.other):
        host.instances[active.other].stop()
    bed.stop_guest("vm2")

    def start(event: Event) -> None:
        if event.kind is EventKind.DONE and event.step == "move":
            bed.start_guest("vm2")

    Upgrader(host).upgrade("host", start, force=True)
    bed.pings.wait_flowing(60.0)
    served_by(host, active.other)


def test_events_tell_of_each_swap(bed: Lab, host: Host) -> None:
    """QEMU writes its events on every monitor, also on that of a management tool."""
    active = host.active()
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log"):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(bed.layout.guest_file("vm1", "qmp")))
            stream = monitor.makefile("rwb")
            stream.readline()
            stream.write(b'{"execute": "qmp_capabilities"}\n')
            stream.flush()
            stream.readline()
            host.backends.move("vm1", active.other)
            event = json.loads(stream.readline())
            while event.get("event") != "VHOST_USER_SWAPPED":
                event = json.loads(stream.readline())
            host.backends.move("vm1", active)
    assert event["data"]["netdev"] == "network"
    assert event["data"]["reason"] == "command"
    assert (event["data"]["from"], event["data"]["to"]) == (f"side-{active}", f"side-{active.other}")


def test_a_vm_is_not_moved_to_a_side_that_is_not_there(host: Host) -> None:
    other = host.active().other
    if host.running(other):
        host.instances[other].stop()
    with pytest.raises(BrokerError, match="vm vm1: vhost-user-swap: "):
        host.backends.move("vm1", other)
    assert host.backends.vm("vm1").owner == host.active()


def test_a_stock_qemu_does_not_know_the_question(bed: Lab, system: System) -> None:
    path = bed.layout.directory / "stock.qmp"
    pid = system.spawn(["qemu-system-x86_64", "-S", "-M", "none", "-display", "none", "-qmp",
                        f"unix:{path},server=on,wait=off"], log=bed.layout.directory / "stock.log")  # fmt: skip
    try:
        Host(bed.config, system).wait(path.exists, 10.0, lambda: "QEMU does not start")
        answer = Monitors(lambda _vm: path, 5.0).ask({"vm1": Command("query-vhost-user-backends")})["vm1"]
    finally:
        system.kill(pid)
    assert answer.error is not None
    assert "qemu-patches" in (answer.error.hint or "")


def test_a_feature_that_the_older_switch_lacks_keeps_a_vm_from_it(system: System, tree_release: Release) -> None:
    """Open vSwitch 3.5 offers NET_CSUM, 3.1 does not: what was offered to the guest stays on offer."""
    with dual_lab(system, tree_release, 1, TREE_NAME) as lab:
        host = Host(lab.config, system)
        with pytest.raises(RolledBack, match=r"step park failed.*bits 0;"):
            Upgrader(host).upgrade("host", lambda _event: None, force=True)
        assert [vm.owner for vm in host.backends.vms()] == [Side.A]


def test_a_feature_that_the_guest_was_not_offered_does_not(system: System, tree_release: Release) -> None:
    with dual_lab(system, tree_release, 1, TREE_NAME, "csum=off") as lab:
        host = Host(lab.config, system)
        Upgrader(host).upgrade("host", lambda _event: None, force=True)
        assert [vm.owner for vm in host.backends.vms()] == [Side.B]
        lab.pings.wait_flowing(60.0)

"""The lab on the real QEMU, kernel and Open vSwitch. The guests' ports connect straight to QEMU: no broker here."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import netns

from ovs_hotswap.errors import LabError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import GuestOptions, Lab, PingStats
from ovs_hotswap.lab.layout import REMOTE
from ovs_hotswap.lab.leftovers import lab_processes, mounts_below
from ovs_hotswap.model import Side
from ovs_hotswap.system import System

SYSTEM = System()
BOOT_S = 120.0  # on a machine that is busy with something else


class DirectHost(Host):
    def switch_socket(self, side: Side, vm: str) -> Path:
        return self.config.qemu_socket(vm)


def start_switch(lab: Lab) -> DirectHost:
    host = DirectHost(lab.config, SYSTEM)
    host.instances[Side.A].start(host.releases.get("host"))
    host.program(Side.A)
    host.uplink.steer(Side.A)
    return host


def instance_prefix(lab: Lab) -> str:
    return f"ovsh-{hashlib.sha1(bytes(lab.layout.run_dir)).hexdigest()[:8]}-"


def remains(lab: Lab) -> list[str]:
    """Whatever of the lab is still on the machine."""
    directory = lab.layout.directory
    names = {lab.layout.host_namespace, lab.layout.remote_namespace}
    names |= {name for name in netns.listnetns() if name.startswith(instance_prefix(lab))}
    found = [f"process {pid}" for pid in lab_processes(directory, SYSTEM)]
    found += [f"namespace {name}" for name in netns.listnetns() if name in names]
    found += [f"mount {point}" for point in mounts_below(directory, Path("/proc/self/mountinfo").read_text())]
    return found + ([str(directory)] if directory.exists() else [])


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a lab may be made; the test fails if anything of the lab is there afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ovsh-lab-"))
    path.rmdir()
    yield path
    lab = Lab.existing(path, SYSTEM)
    try:
        assert remains(lab) == []
    finally:
        lab.down()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Lab, DirectHost]]:
    """A lab of two guests with a switch, for the tests that leave it as it was."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="ovsh-lab-")), 2, SYSTEM)
    try:
        lab.up()
        host = start_switch(lab)
        lab.wait_guests(BOOT_S)
        lab.pings.wait_flowing(BOOT_S)
        yield lab, host
    finally:
        lab.down()
    assert remains(lab) == []


def during(lab: Lab, seconds: float) -> dict[tuple[str, str], PingStats]:
    first = lab.pings.mark()
    SYSTEM.sleep(seconds)
    return {(stats.guest, stats.target): stats for stats in lab.pings.between(first, lab.pings.mark(), 10.0)}


def test_guests_talk_to_each_other_and_to_the_remote_vtep(running: tuple[Lab, DirectHost]) -> None:
    lab, _ = running
    found = during(lab, 2.0)
    assert set(found) == {("vm1", "vm2"), ("vm1", REMOTE), ("vm2", "vm1"), ("vm2", REMOTE)}
    for stats in found.values():
        assert stats.sent > 10
        assert (stats.lost, stats.duplicated) == (0, 0)
    assert lab.status().up
    assert [guest.ready for guest in lab.status().guests] == [True, True]


def test_another_process_can_ask(running: tuple[Lab, DirectHost]) -> None:
    lab, _ = running
    other = Lab.existing(lab.layout.directory, SYSTEM)
    assert [guest.pid for guest in other.guests] == [guest.pid for guest in lab.guests]
    assert all(stats.received for stats in during(other, 1.0).values())


def test_what_the_uplink_loses_is_counted(running: tuple[Lab, DirectHost]) -> None:
    lab, host = running
    host.uplink.clear()
    first = lab.pings.mark()
    SYSTEM.sleep(1.0)
    second = lab.pings.mark()
    host.uplink.steer(Side.A)
    lab.pings.wait_flowing(BOOT_S)
    for stats in lab.pings.between(first, second, patience_s=5.0):
        assert stats.sent > 10
        if stats.target == REMOTE:
            assert stats.lost > 10
        else:
            assert stats.lost == 0


def test_commands_in_a_guest(running: tuple[Lab, DirectHost]) -> None:
    lab, _ = running
    guest = lab.guest("vm1")
    assert guest.run("cat /sys/class/net/eth0/mtu") == "1450\n"
    assert "1430 bytes from" in guest.run("ping -c 3 -s 1422 10.100.255.254")  # the whole MTU, unfragmented
    with pytest.raises(LabError, match="exited with 3: oops"):
        guest.run("echo oops; exit 3")
    with pytest.raises(LabError, match="did not end"):
        guest.run("sleep 2", timeout=0.2)


def test_reset_boots_again_and_pings_go_on(running: tuple[Lab, DirectHost]) -> None:
    lab, _ = running
    guest = lab.guest("vm2")
    boots = guest.boots()
    guest.reset()
    SYSTEM.sleep(0.1)
    end = SYSTEM.monotonic() + BOOT_S
    while guest.boots() == boots and SYSTEM.monotonic() < end:
        SYSTEM.sleep(0.1)
    assert guest.boots() == boots + 1
    lab.pings.wait_flowing(BOOT_S)
    assert all(stats.lost == 0 for stats in during(lab, 1.0).values())


def test_up_again_changes_nothing(running: tuple[Lab, DirectHost]) -> None:
    lab, _ = running
    pids = [guest.pid for guest in lab.guests]
    Lab(lab.layout.directory, 2, SYSTEM).up()
    assert [guest.pid for guest in lab.guests] == pids
    with pytest.raises(LabError, match="lab of 2 guests"):
        Lab(lab.layout.directory, 3, SYSTEM).up()
    with pytest.raises(LabError, match="other options"):
        Lab(lab.layout.directory, 2, SYSTEM, GuestOptions(memory_mb=128)).up()


def test_two_queue_pairs_in_huge_pages(directory: Path) -> None:
    lab = Lab(directory, 1, SYSTEM, GuestOptions(queues=2, hugepages=True))
    lab.up()
    start_switch(lab)
    lab.wait_guests(BOOT_S)
    lab.pings.wait_flowing(BOOT_S)
    assert lab.guest("vm1").run("ls -d /sys/class/net/eth0/queues/rx-*").count("rx-") == 2
    status = Path(f"/proc/{lab.guest('vm1').pid}/status").read_text()
    assert "HugetlbPages:\t   98304 kB" in status  # proc_pid_status(5): all of the guest's 96 MiB
    lab.down()


def test_down_after_everything_was_killed(directory: Path) -> None:
    lab = Lab(directory, 2, SYSTEM)
    lab.up()
    host = start_switch(lab)
    pids = [host.instances[Side.A].status().vswitchd_pid, lab.guest("vm1").pid]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    for path in (lab.guest("vm1").pid_file, lab.guest("vm2").pid_file):  # nothing must rest on them
        path.unlink()
    lab.config_path.write_text("broken")
    assert Lab.existing(directory, SYSTEM).down()
    assert not Lab.existing(directory, SYSTEM).down()


def test_down_without_the_directory(directory: Path) -> None:
    lab = Lab(directory, 1, SYSTEM)
    lab.up()
    shutil.rmtree(directory)
    assert lab.down()


def test_up_mends_a_lab(directory: Path) -> None:
    lab = Lab(directory, 2, SYSTEM)
    lab.up()
    second = lab.guest("vm2").pid
    lab.stop_guest("vm1")
    netns.remove(lab.layout.remote_namespace)
    assert not lab.status().up
    lab.up()
    assert lab.status().up
    assert lab.guest("vm2").pid == second
    lab.down()


def test_two_labs_at_once(directory: Path) -> None:
    lab = Lab(directory, 1, SYSTEM)
    other = Lab(directory.with_name(f"{directory.name}2"), 1, SYSTEM)
    try:
        lab.up()
        other.up()
        lab.down()
        assert other.status().up
    finally:
        other.down()
    assert remains(other) == []


def test_a_failed_up_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = directory.with_name(f"{directory.name}-bin")
    tools.mkdir()
    try:
        broken = tools / "qemu-system-x86_64"
        broken.write_text("#!/bin/sh\necho no accelerator >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        with pytest.raises(LabError, match="vm1: QEMU ended: no accelerator"):
            Lab(directory, 2, SYSTEM).up()
    finally:
        shutil.rmtree(tools)

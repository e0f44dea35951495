"""The main job on the real Open vSwitch, DPDK and QEMU, and what may go wrong with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker.lifecycle import stop_broker
from ovs_hotswap.config import Active
from ovs_hotswap.errors import (
    BrokerError,
    CommandError,
    HotswapError,
    PrecheckFailed,
    ReleaseError,
    RolledBack,
    SwitchError,
)
from ovs_hotswap.host import settings_transfer
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import adopt, restore
from ovs_hotswap.host.standby import await_ports
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.hugepages import read_pool
from ovs_hotswap.model import Release, Severity, Side
from ovs_hotswap.overlay.tables import Form, lines, render
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.reports.document import GapSource, Outcome, RunKind, RunReport, StageResult
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import run_report
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.support.lab_bed import bring_up
from tests.support.threads import policies_seen, thread_names, unusual

GUESTS = 2
TREE_NAME = "trixie"


def nobody(_event: Event) -> None:
    """An observer that does not look."""


@pytest.fixture(scope="module")
def bed(system: System, tree_release: Release) -> Iterator[Lab]:
    """A lab with two guests that ping each other and the remote end, on an active instance of the host's release."""
    directory = Path(tempfile.mkdtemp(prefix="ovsh-up-"))
    lab = Lab(directory, GUESTS, system)
    try:
        lab.up()
        lab.config_path.write_text(f"{lab.config_path.read_text()}\n[upgrade]\nsoak_s = 0.3\n")
        Releases(lab.config, system).add(TREE_NAME, from_directory=Path(str(tree_release.root)))
        bring_up(lab, system)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def host(bed: Lab, system: System) -> Iterator[Host]:
    """The lab's host, with instance a active before and after each test."""
    host = Host(bed.config, system)
    assert host.active() is Side.A
    yield host
    if host.active() is not Side.A:
        Upgrader(host).rollback(nobody)
    assert host.active() is Side.A


def untouched(bed: Lab, host: Host) -> None:
    """The old instance serves every VM with its final tables, and nothing of the standby is left."""
    vms = host.backends.vms()
    assert {vm.owner for vm in vms} == {"a"}
    assert not any(vm.switches[Side.B].connected for vm in vms)
    assert host.uplink.owner() is Side.A
    assert host.openflow(Side.A).diff(lines(render(host.intent, Form.FINAL))) == []
    assert host.instances[Side.B].status().state is State.STOPPED
    assert not host.instances[Side.B].paths.run_dir.exists()
    with host.instances[Side.A].database() as database:
        assert "peer" not in database.interfaces()
    bed.pings.wait_flowing(30.0)


def newest_report(host: Host) -> RunReport:
    return Reports(run_report.directory(host.config), host.system).all()[0]


def vsctl(host: Host, side: Side, *words: str) -> str:
    socket = host.instances[side].paths.db_socket
    return host.system.run(["ovs-vsctl", "--timeout=10", f"--db=unix:{socket}", *words]).stdout.strip()


def test_the_operator_s_settings_are_carried_over(bed: Lab, host: Host) -> None:
    """And back again; a port that cannot be is named by the check. Then all of it is taken away."""
    vsctl(host, Side.A, "set", "Interface", "vm1", "ingress_policing_rate=368000", "--", "set", "Port", "vm2", "qos=@q",
          "--", "--id=@q", "create", "QoS", "type=egress-policer", "other-config:cir=46000000", "--",
          "add-port", "br0", "span0", "--", "set", "Interface", "span0", "type=internal")  # fmt: skip
    vsctl(host, Side.A, "--", "--id=@p", "get", "Port", "span0", "--", "--id=@m", "create", "Mirror", "name=m1",
          "select-all=true", "output-port=@p", "--", "set", "Bridge", "br0", "mirrors=@m",
          "other-config:mac-table-size=99", "--",
          "set", "Open_vSwitch", ".", "other_config:max-idle=30000")  # fmt: skip
    assert settings_transfer.keep(host, Side.A)
    found = {finding.text for finding in Upgrader(host).check(TREE_NAME) if finding.check == "settings"}
    assert len(found) == 1
    assert "carried over" in found.pop()
    assert Upgrader(host).upgrade(TREE_NAME, nobody).committed

    def carried(side: Side) -> None:
        assert vsctl(host, side, "get", "Interface", "vm1", "ingress_policing_rate") == "368000"
        assert vsctl(host, side, "--bare", "--columns=other_config", "list", "QoS") == "cir=46000000"
        assert vsctl(host, side, "get", "Port", "span0", "_uuid") == vsctl(
            host, side, "get", "Mirror", "m1", "output_port"
        )
        assert vsctl(host, side, "get", "Bridge", "br0", "other_config:mac-table-size") == '"99"'
        assert vsctl(host, side, "get", "Open_vSwitch", ".", "other_config:max-idle") == '"30000"'

    carried(Side.B)
    assert Upgrader(host).rollback(nobody).committed
    carried(Side.A)
    host.instances[Side.A].stop()  # as a boot does, which empties the run directory
    host.config.active_file.unlink()
    assert restore(host) is not None
    carried(Side.A)
    bed.pings.wait_flowing(30.0)
    vsctl(host, Side.A, "set", "Interface", "vm1", "ingress_policing_rate=0", "--", "clear", "Port", "vm2", "qos", "--",
          "clear", "Bridge", "br0", "mirrors", "--", "del-port", "br0", "span0", "--", "remove", "Open_vSwitch", ".",
          "other_config", "max-idle", "--", "remove", "Bridge", "br0", "other_config", "mac-table-size")  # fmt: skip


def test_upgrade_and_rollback_lose_nothing(bed: Lab, host: Host) -> None:
    before = bed.pings.mark()
    report = Upgrader(host).upgrade(TREE_NAME, nobody)
    assert report.committed
    assert set(report.moves) == {"vm1", "vm2"}
    assert host.active() is Side.B
    assert host.instances[Side.A].status().state is State.STOPPED
    release = host.instances[Side.B].status().release
    assert release is not None
    assert release.name == TREE_NAME
    there = newest_report(host)
    back = Upgrader(host).rollback(nobody)
    assert back.committed
    for found, kind, name in ((there, RunKind.UPGRADE, TREE_NAME), (newest_report(host), RunKind.ROLLBACK, "host")):
        assert (found.kind, found.outcome, found.release) == (kind, Outcome.DONE, name)
        assert [stage.name for stage in found.stages] == list(found.steps)
        assert {vm.name: [(gap.source, gap.step) for gap in vm.gaps] for vm in found.vms} == {
            name: [(GapSource.HANDOVER, "move")] for name in ("vm1", "vm2")
        }
        assert {vm.handover_us for vm in found.vms} == set((report if found is there else back).moves.values())
        assert {check.step for check in found.checks} == {"precheck", "postcheck"}
        assert found.committed is not None
    assert back.release == "host"
    time.sleep(0.5)
    seen = bed.pings.between(before, bed.pings.mark())
    assert sum(stats.sent for stats in seen) > 100
    assert {(stats.guest, stats.target): stats.lost for stats in seen if stats.lost} == {}
    untouched(bed, host)


def test_an_instance_is_at_low_priority_while_it_starts_and_never_while_it_serves(bed: Lab, host: Host) -> None:
    upgrader, serving = Upgrader(host), host.instances[Side.A].pid()
    assert serving is not None
    os.sched_setscheduler(serving, os.SCHED_IDLE, os.sched_param(0))  # ended by the upgrade, which it does not hinder
    for side in (Side.B, Side.A):
        with policies_seen(host.instances[side].pid) as seen:
            report = upgrader.upgrade(TREE_NAME, nobody) if side is Side.B else upgrader.rollback(nobody)
        assert report.committed
        assert seen == {os.SCHED_IDLE, os.SCHED_OTHER}
        for pid in (host.instances[side].pid(), host.instances[side].database_pid()):
            assert pid is not None
            assert unusual(pid) == {}
    findings = {each.check: each.severity for each in Upgrader(host).check(TREE_NAME)}
    assert findings["priority"] is Severity.OK


def test_a_warm_old_instance_can_be_kept(bed: Lab, host: Host) -> None:
    Upgrader(host).upgrade(TREE_NAME, nobody, keep_old=True)
    assert host.instances[Side.A].status().state is State.RUNNING
    assert host.active() is Side.B
    Upgrader(host).rollback(nobody)
    assert host.active() is Side.A


@pytest.mark.parametrize(
    "step", ["start-standby", "ports", "join-peer-link", "flows-active", "park", "steer", "move", "soak"]
)
def test_a_failure_before_the_commit_puts_everything_back(bed: Lab, host: Host, step: str) -> None:
    def interrupt(event: Event) -> None:
        if event.step == step and event.kind is EventKind.STARTED:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RolledBack, match=f"step {step} failed: interrupted by SIGTERM") as error:
        Upgrader(host).upgrade(TREE_NAME, interrupt)
    untouched(bed, host)
    found = newest_report(host)
    assert (found.outcome, found.failed_step, found.message) == (Outcome.ROLLED_BACK, step, error.value.message)
    assert found.stages[-1].name == "start-standby"
    assert found.stages[-1].undo


def killed_at(bed: Lab, step: str) -> None:
    """Run an upgrade in a process that is killed (SIGKILL) when it starts ``step``."""
    program = f"""
import os, signal
from pathlib import Path
from ovs_hotswap.config_file import load_config
from ovs_hotswap.system import System
from ovs_hotswap.host.host import Host
from ovs_hotswap.upgrade.upgrade import Upgrader
def watch(event):
    if event.step == {step!r} and event.kind == "started":
        os.kill(os.getpid(), signal.SIGKILL)
Upgrader(Host(load_config(Path({str(bed.config_path)!r})), System())).upgrade({TREE_NAME!r}, watch)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("step", ["database", "join-peer-link", "park", "move", "soak"])
def test_a_killed_upgrade_is_rolled_back(bed: Lab, host: Host, step: str) -> None:
    killed_at(bed, step)
    assert Upgrader(host).unfinished() is not None
    report = Upgrader(host).rollback(nobody)
    assert not report.committed
    untouched(bed, host)
    with pytest.raises(PrecheckFailed, match="no unfinished upgrade"):
        Upgrader(host).resume(nobody)


@pytest.mark.parametrize("step", ["flows-standby", "steer", "flows-final", "retire"])
def test_a_killed_upgrade_is_resumed(bed: Lab, host: Host, step: str) -> None:
    before = bed.pings.mark()
    killed_at(bed, step)
    assert Upgrader(host).resume(nobody).committed
    assert host.active() is Side.B
    found = newest_report(host)
    assert found.outcome is Outcome.DONE
    assert [stage.name for stage in found.stages if stage.result is StageResult.INTERRUPTED] == [step]
    time.sleep(0.5)
    assert sum(stats.lost for stats in bed.pings.between(before, bed.pings.mark())) == 0


@pytest.mark.parametrize("step", ["ports", "soak"])
def test_what_a_killed_upgrade_left_at_low_priority_does_not_serve_so(bed: Lab, host: Host, step: str) -> None:
    killed_at(bed, step)
    pid = host.instances[Side.B].pid()
    assert pid is not None
    for thread in thread_names(pid):
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    Path(f"/proc/{pid}/autogroup").write_text("19")
    assert Upgrader(host).resume(nobody).committed
    assert unusual(pid) == {}


def test_a_second_upgrade_is_refused_while_one_is_under_way(bed: Lab, host: Host) -> None:
    found: list[str] = []

    def try_another(event: Event) -> None:
        if event.step == "prove" and event.kind is EventKind.STARTED:
            with pytest.raises(HotswapError, match="already under way"):
                Upgrader(Host(bed.config, System())).upgrade(TREE_NAME, nobody)
            found.append("refused")

    Upgrader(host).upgrade(TREE_NAME, try_another)
    assert found == ["refused"]


def test_an_unknown_release_changes_nothing(bed: Lab, host: Host) -> None:
    with pytest.raises(ReleaseError, match="no-such"):
        Upgrader(host).upgrade("no-such", nobody)
    assert Upgrader(host).unfinished() is None
    untouched(bed, host)


def test_a_release_with_a_wrong_binary_changes_nothing(bed: Lab, host: Host, tmp_path: Path) -> None:
    """The tree was good when it was added and is broken since."""
    broken = tmp_path / "tree"
    tree = Path(str(host.releases.get(TREE_NAME).root))
    subprocess.run(["cp", "-a", "--reflink=auto", str(tree), str(broken)], check=True)
    host.releases.add("broken", from_directory=broken)
    try:
        binary = broken / "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
        binary.write_bytes(b"not a program")
        with pytest.raises(HotswapError, match="broken"):
            Upgrader(host).upgrade("broken", nobody)
        untouched(bed, host)
    finally:
        host.releases.remove("broken")


def with_memory(bed: Lab, memory_mb: int, system: System) -> Host:
    """The host with another bound on the memory of instance b."""
    changed = bed.config.instances.b.model_copy(update={"memory_mb": memory_mb})
    return Host(
        bed.config.model_copy(update={"instances": bed.config.instances.model_copy(update={"b": changed})}), system
    )


def test_a_standby_without_huge_pages_does_not_start(bed: Lab, host: Host) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    before = pool.read_text()
    pool.write_text(str(read_pool().used + 10))
    try:
        with pytest.raises(
            PrecheckFailed, match=r"huge pages: NUMA node 0: the standby needs \d+ MiB, 20 MiB are free"
        ):
            Upgrader(host).upgrade(TREE_NAME, nobody)
    finally:
        pool.write_text(before)
    untouched(bed, host)


def test_a_standby_that_may_not_take_what_it_needs_does_not_start(bed: Lab, host: Host, system: System) -> None:
    with pytest.raises(PrecheckFailed, match=r"packet pool: instance b needs \d+ MiB .* may take 64 MiB") as failure:
        Upgrader(with_memory(bed, 64, system)).upgrade(TREE_NAME, nobody)
    assert "set instances.b.memory_mb to" in (failure.value.hint or "")
    untouched(bed, host)


def test_an_instance_whose_pool_is_too_small_is_no_standby(bed: Lab, host: Host, system: System) -> None:
    """Open vSwitch halves the pool until it fits, and says so in its log alone."""
    small = with_memory(bed, 64, system)
    small.instances[Side.B].start(small.releases.get("host"))
    try:
        small.program_database(Side.B)
        assert [pool.buffers for pool in small.packet_pools(Side.B)] == [16_384]
        socket = f"--db=unix:{small.instances[Side.B].paths.db_socket}"
        queues = ["set", "Interface", "uplink", "options:n_rxq=8"]
        subprocess.run(["ovs-vsctl", socket, "--no-wait", *queues], check=True, timeout=20)
        with pytest.raises(SwitchError, match="its packet pool on NUMA node 0 has 16384 buffers"):
            await_ports(small, Side.B)
    finally:
        small.instances[Side.B].stop()
    untouched(bed, host)


def test_the_old_flows_must_be_the_intents(bed: Lab, host: Host) -> None:
    flows = lines(render(host.intent, Form.FINAL))
    host.openflow(Side.A).replace([*flows, "table=0,priority=1,in_port=1 actions=NORMAL"])
    try:
        with pytest.raises(PrecheckFailed, match="NORMAL"):
            Upgrader(host).upgrade(TREE_NAME, nobody)
    finally:
        host.openflow(Side.A).replace(flows)
    untouched(bed, host)


def test_a_vm_whose_qemu_is_not_there_does_not_hinder(bed: Lab, host: Host) -> None:
    bed.stop_guest("vm2")
    try:
        findings = Upgrader(host).check(TREE_NAME)
        absent = [finding for finding in findings if finding.check == "QEMU"]
        assert [(finding.severity, "vm2" in finding.text) for finding in absent] == [(Severity.WARNING, True)]
        report = Upgrader(host).upgrade(TREE_NAME, nobody)
        assert set(report.moves) == {"vm1"}
    finally:
        bed.start_guest("vm2")
    bed.pings.wait_flowing(60.0)
    assert host.backends.vm("vm2").owner == "b"


def test_a_guest_that_reboots_meanwhile_comes_back(bed: Lab, host: Host) -> None:
    def reboot(event: Event) -> None:
        if event.step == "park" and event.kind is EventKind.DONE:
            bed.guest("vm1").reset()

    with contextlib.suppress(RolledBack):  # a reboot during a move may well be a reason to go back
        Upgrader(host).upgrade(TREE_NAME, reboot)
    bed.pings.wait_flowing(60.0)


def test_a_qemu_that_leaves_and_comes_back_finds_its_network(bed: Lab, host: Host) -> None:
    for _ in range(2):
        bed.stop_guest("vm1")
        bed.start_guest("vm1")
        bed.pings.wait_flowing(60.0)
    assert host.backends.vm("vm1").owner == "a"


def test_an_instance_whose_record_was_lost_becomes_the_active_one_again(bed: Lab, host: Host) -> None:
    before, pid = bed.pings.mark(), host.instances[Side.A].pid()
    host.config.active_file.unlink()
    host.config.restore_file.unlink()
    assert adopt(host, Side.A)
    assert host.last_active() == Active(side=Side.A, release="host")
    assert host.instances[Side.A].pid() == pid
    assert Upgrader(host).upgrade(TREE_NAME, nobody).committed
    assert sum(stats.lost for stats in bed.pings.between(before, bed.pings.mark())) == 0


def test_status_names_an_unfinished_upgrade(bed: Lab, host: Host) -> None:
    killed_at(bed, "park")
    try:
        program = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.config_path), "status"]
        text = System().run(program).stdout
        assert "an unfinished upgrade (forward)" in text
        with pytest.raises(CommandError, match="exit 10"):
            System().run([*program[:-1], "upgrade", "--release", TREE_NAME])
    finally:
        Upgrader(host).rollback(nobody)
    untouched(bed, host)


def test_a_changed_overlay_is_applied_under_running_vms(bed: Lab, host: Host) -> None:
    """A VM more, and one less again: the others lose nothing."""
    program = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.config_path), "--json", "overlay", "apply"]
    before, intent = bed.pings.mark(), bed.config.overlay.read_text()
    more = '[[vm]]\nname = "later"\nofport = 99\nmac = "52:54:00:64:09:09"\nvni = 100\n'
    try:
        bed.config.overlay.write_text(f"{intent}\n{more}")
        dry = json.loads(System().run([*program, "--dry-run"]).stdout)
        assert not dry["applied"]
        assert any("in_port=99" in line for line in dry["diff"]["a"])
        assert "later" not in {vm.name for vm in host.backends.vms()}
        assert json.loads(System().run(program).stdout)["sides"] == ["a"]
        with host.instances[Side.A].database() as database:
            assert database.interfaces()["later"].ofport == 99
        assert host.backends.vm("later").qemu is None
    finally:
        bed.config.overlay.write_text(intent)
        System().run(program)
    assert "later" not in {vm.name for vm in host.backends.vms()}
    time.sleep(0.5)
    assert sum(stats.lost for stats in bed.pings.between(before, bed.pings.mark())) == 0
    untouched(bed, host)


def test_no_vm_is_let_go_of_while_its_switch_stands_still(bed: Lab, host: Host, system: System) -> None:
    """The VM is kept when the broker is to be stopped, and when the VM is no longer in the intent."""
    overlay, intent = bed.config.overlay, bed.config.overlay.read_text()
    head, vm1, rest = intent.partition('[[vm]]\nname = "vm1"\n')
    pid = host.instances[Side.A].pid()
    assert pid is not None
    qemu = host.backends.vm("vm1").qemu
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerError, match=f"the broker keeps running: .* vm1: switch a .process {pid}."):
            stop_broker(bed.config, system)
        overlay.write_text(head + rest[rest.index("[[") :])
        with pytest.raises(BrokerError, match=f"kept .* VM vm1: switch a .process {pid}."):
            Host(bed.config, system).follow_intent([Side.A])
        assert host.backends.vm("vm1").qemu == qemu
    finally:
        os.kill(pid, signal.SIGCONT)
    host.wait(lambda: "vm1" not in {vm.name for vm in host.backends.vms()}, 10.0, lambda: "vm1 has not left")
    Host(bed.config, system).follow_intent([Side.A])
    with host.instances[Side.A].database() as database:
        assert "vm1" not in database.interfaces()
    overlay.write_text(head + vm1 + rest)
    Host(bed.config, system).follow_intent([Side.A])
    host.wait(lambda: host.backends.vm("vm1").certainty == "owns", 10.0, lambda: "vm1 is not served again")
    untouched(bed, host)


def test_after_a_reboot_there_is_nothing_left_to_undo(bed: Lab, host: Host, system: System) -> None:
    """What a reboot leaves of an upgrade: its journal, and no process."""
    killed_at(bed, "soak")
    stop_broker(bed.config, system)
    for side in Side:
        host.instances[side].stop()
    bed.config.active_file.unlink()
    for guest in bed.guests:
        bed.stop_guest(guest.name)
    assert not Upgrader(host).rollback(nobody).committed
    assert Upgrader(host).unfinished() is None
    for guest in bed.guests:
        bed.start_guest(guest.name)
    bring_up(bed, system)
    untouched(bed, Host(bed.config, system))

"""The watchdog on the real Open vSwitch, DPDK and QEMU: what becomes of the VMs when the active instance fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.background import low_threads
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host import standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form, lines, render
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.reports.document import Outcome, RunKind, RunReport
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.switch.instance import State
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import run_report
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.watchdog import report, status_file
from tests.support.lab_bed import SHORT_SOAK, serving_lab
from tests.support.threads import unusual
from tests.support.waiting import eventually

GUESTS = 2


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    """A lab with two guests on an active instance, and no standby yet."""
    with serving_lab(
        system, "ovsh-wd-", SHORT_SOAK + "[watch]\ncrash_limit = 100\ncrash_window_s = 10\nhang_ms = 3000\n", vms=GUESTS
    ) as lab:
        yield lab


def log(bed: Lab) -> Path:
    """The log of every watchdog of the bed."""
    return bed.layout.directory / "watch.log"


@pytest.fixture(autouse=True)
def no_traceback(bed: Lab) -> Iterator[None]:
    yield
    assert "Traceback" not in (log(bed).read_text() if log(bed).exists() else "")


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


@pytest.fixture
def watched(bed: Lab, host: Host) -> Iterator[int]:
    """A watchdog with a standby that is ready."""
    with watchdog(host, bed.config_path, log(bed)) as pid:
        yield pid


def failovers(host: Host) -> list[dict[str, Any]]:
    return [event for event in status_file.last_events(host.config, 100) if event["event"] == "failover"]


def served_by(host: Host, side: Side) -> None:
    """Check that ``side`` alone owns each VM's rings, that the uplink is steered to it, and that it is recorded."""
    for vm in host.backends.vms():
        assert (vm.owner, vm.certainty) == (side, "owns")
        assert vm.switches[side].role == "owner"
        assert vm.switches[side.other].role in {None, "idle", "parked"}
    assert host.uplink.owner() is side
    assert host.active() is side


def see_report(host: Host, event: dict[str, Any]) -> None:
    """Check that the failover left a report with the times of every VM, and that it is complete after a while."""
    reports = Reports(run_report.directory(host.config), host.system)

    def own() -> list[RunReport]:
        return [each for each in reports.all() if each.started == event["detected"] and each.protected_after_s]

    eventually(lambda: bool(own()), "no report of the failover")
    (found,) = own()
    assert (found.kind, found.outcome, found.new) == (RunKind.FAILOVER, Outcome.DONE, event["to"])
    assert len(found.passed) == GUESTS
    assert all(vm.since is not None and vm.handover_us is None for vm in found.vms)
    assert "Failover from" in reports.page(found.id).read_text()


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "process"), (signal.SIGTERM, "process"), (signal.SIGSTOP, "stopped")]
)
def test_every_vm_moves_when_the_active_dies_or_hangs(
    bed: Lab, host: Host, watched: int, number: signal.Signals, reason: str
) -> None:
    old = host.active()
    pid = host.instances[old].pid()
    assert pid is not None
    known, before = len(failovers(host)), bed.pings.mark()
    os.kill(pid, number)
    eventually(lambda: host.recorded_active() is old.other, "no failover")
    assert not System().has_memory(pid)
    served_by(host, old.other)
    bed.pings.wait_flowing(30.0)
    (event,) = failovers(host)[known:]
    assert (event["from"], event["to"], event["signal"]) == (old, old.other, reason)
    assert (event["moved"], event["left"]) == (GUESTS, [])
    assert ("fenced" in event["ms"]) is (number is signal.SIGSTOP)
    wait_protected(host, old.other)
    served_by(host, old.other)
    see_report(host, event)
    assert host.instances[old].pid() not in (None, pid)
    assert host.pmd_sleep(old.other) == host.config.instance(old.other).pmd_sleep_us
    serving, standing_by = (host.instances[side].pid() for side in (old.other, old))
    assert serving is not None
    assert standing_by is not None
    assert unusual(serving) == {}
    assert low_threads(standing_by) == {}
    time.sleep(0.3)
    seen = bed.pings.between(before, bed.pings.mark())
    assert {stats.guest: stats.duplicated for stats in seen if stats.duplicated} == {}


def test_a_standby_that_dies_is_replaced(bed: Lab, host: Host, watched: int) -> None:
    active = host.active()
    pid = host.instances[active.other].pid()
    assert pid is not None
    before = bed.pings.mark()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: host.instances[active.other].pid() not in (None, pid), "no new standby")
    wait_protected(host, active)
    served_by(host, active)
    time.sleep(0.3)
    assert sum(stats.received for stats in bed.pings.between(before, bed.pings.mark())) > 100


def test_an_uplink_whose_filters_were_taken_is_steered_again(bed: Lab, host: Host, watched: int) -> None:
    active = host.active()
    eventually(lambda: report.read(host.config, host.system)["uplinks"], "the watchdog has not looked at the uplinks")
    host.uplink.clear()
    eventually(lambda: host.uplink.owner() is active, "the uplink is not steered again")
    bed.pings.wait_flowing(30.0)
    served_by(host, active)

    def restored() -> list[dict[str, Any]]:
        return [each for each in status_file.last_events(host.config, 100) if each["event"] == "uplink-restored"]

    eventually(restored, "there is no event")
    assert [(each["side"], each["found"]) for each in restored()] == [(active, None)]


def test_a_vm_that_comes_later_is_parked(bed: Lab, host: Host, watched: int) -> None:
    bed.stop_guest("vm2")
    eventually(lambda: host.backends.vm("vm2").qemu is None, "QEMU is still there")
    bed.start_guest("vm2")
    bed.pings.wait_flowing(60.0)
    wait_protected(host)
    eventually(lambda: host.backends.vm("vm2").owner == host.active(), "vm2 is not on the active side")
    served_by(host, host.active())


def test_a_change_of_the_overlay_reaches_both(bed: Lab, host: Host, watched: int) -> None:
    file = bed.layout.overlay_file
    before = file.read_text()
    more = '[[vm]]\nname = "late"\nofport = 99\nmac = "52:54:00:64:09:09"\nvni = 100\n\n[[remote]]'
    file.write_text(before.replace("[[remote]]", more, 1))

    def programmed() -> bool:
        new = Host(bed.config, System())
        wanted = lines(render(new.intent, Form.FINAL))
        return all(new.openflow(side).diff(wanted) == [] for side in Side)

    try:
        eventually(lambda: "late" in [vm.name for vm in host.backends.vms()], "the broker has no VM late")
        eventually(programmed, "the flow tables are the old ones")
    finally:
        file.write_text(before)
    eventually(lambda: "late" not in [vm.name for vm in host.backends.vms()], "the broker still has VM late")
    eventually(programmed, "the flow tables are not the old ones again")


def test_an_upgrade_moves_to_the_standby_that_is_there(bed: Lab, host: Host, watched: int) -> None:
    """It runs the wanted release. The watchdog does not touch the instances while the upgrade is under way."""
    active = host.active()
    warm = host.instances[active.other].pid()
    states: list[object] = []

    def look(event: Event) -> None:
        if event.step == "soak" and event.kind is EventKind.STARTED:
            eventually(lambda: keeping() == "an upgrade is not finished", "the watchdog has seen it")
            time.sleep(2.5)  # more than it takes to look again
            states.append(keeping())

    def keeping() -> object:
        return (status_file.read_state(bed.config) or {}).get("keeping")

    before = bed.pings.mark()
    assert Upgrader(host).upgrade("host", look, force=True).committed
    assert states == ["an upgrade is not finished"]
    assert host.instances[active.other].pid() == warm
    wait_protected(host, active.other)
    served_by(host, active.other)
    assert host.pmd_sleep(active.other) == host.config.instance(active.other).pmd_sleep_us
    time.sleep(0.3)
    assert [(stats.guest, stats.lost) for stats in bed.pings.between(before, bed.pings.mark()) if stats.lost] == []


def test_an_active_that_dies_in_an_upgrade_is_failed_over(bed: Lab, host: Host, watched: int) -> None:
    """VMs are parked on the other side, so they are safe there, whatever becomes of the upgrade itself."""
    active = host.active()
    found: list[Side | None] = []

    def kill(event: Event) -> None:
        if event.step == "soak" and event.kind is EventKind.STARTED:
            pid = host.instances[active].pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: host.recorded_active() is active.other, "no failover")
            found.append(host.uplink.owner())

    assert Upgrader(host).upgrade("host", kill, force=True).committed
    assert found == [active.other]
    wait_protected(host, active.other)
    served_by(host, active.other)
    bed.pings.wait_flowing(30.0)


def test_an_upgrade_that_is_interrupted_goes_on_where_the_vms_fled(bed: Lab, host: Host, watched: int) -> None:
    active = host.active()

    def kill(event: Event) -> None:
        if event.step == "soak" and event.kind is EventKind.STARTED:
            pid = host.instances[active].pid()
            assert pid is not None
            System().kill(pid, grace=0)
            os.kill(os.getpid(), signal.SIGTERM)

    assert Upgrader(host).upgrade("host", kill, force=True).committed
    wait_protected(host, active.other)
    served_by(host, active.other)
    bed.pings.wait_flowing(30.0)
    wanted = lines(render(host.intent, Form.FINAL))
    eventually(lambda: host.openflow(active.other).diff(wanted) == [], "the window form is still there")


def test_the_standby_outlives_the_watchdog(bed: Lab, host: Host) -> None:
    with watchdog(host, bed.config_path, log(bed)):
        before = {side: host.instances[side].pid() for side in Side}
    with watchdog(host, bed.config_path, log(bed)) as pid:
        eventually(lambda: (status_file.read_state(bed.config) or {}).get("pid") == pid, "no state")
        eventually(lambda: (status_file.read_state(bed.config) or {}).get("keeping") == "ready", "not ready")
        assert {side: host.instances[side].pid() for side in Side} == before


def test_off_keeps_no_standby(bed: Lab, host: Host, system: System) -> None:
    standby.end_standby(host, host.active().other)
    text = bed.config_path.read_text()
    bed.config_path.write_text(text.replace("[watch]", '[watch]\nmode = "off"'))
    try:
        program = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.config_path), "watch"]
        assert "off" in system.run([*program, "run"]).stdout
        assert "does not run, mode off" in system.run([*program, "status"]).stdout
    finally:
        bed.config_path.write_text(text)
    assert host.instances[host.active().other].status().state is State.STOPPED


def test_a_database_server_of_the_active_that_ended_is_started_again(bed: Lab, host: Host, watched: int) -> None:
    """Without it the switch forwards, and takes no flows."""
    instance = host.instances[host.active()]
    pid, lost = instance.pid(), instance.database_pid()
    assert lost is not None
    before = bed.pings.mark()
    os.kill(lost, signal.SIGKILL)
    eventually(lambda: instance.database_pid() not in {None, lost}, "a database server")
    assert instance.pid() == pid
    flows = lines(render(host.intent, Form.FINAL))
    eventually(lambda: served(host, flows), "flows are taken again")
    seen = bed.pings.between(before, bed.pings.mark())
    assert sum(each.lost for each in seen) == 0
    eventually(lambda: "database" in [event["event"] for event in status_file.last_events(bed.config, 3)], "the event")


def served(host: Host, flows: list[str]) -> bool:
    try:
        return host.openflow(host.active()).diff(flows) == []
    except SwitchError:
        return False

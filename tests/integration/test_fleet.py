"""A fleet of six hosts goes through an upgrade with Ansible: two canaries with QEMU guests, then waves with simulated
ones, in which three hosts fail in different ways and roll themselves back.

The tests are one story, in the order in which they stand, because making the hosts takes most of the time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.model import Release
from ovs_hotswap.switch.release import Releases
from ovs_hotswap.system import System
from tests.support.fleet_bed import PLAY_S, FleetBed, FleetHost, find_sshd
from tests.support.waiting import eventually

pytest.importorskip("ansible.module_utils.basic", reason="the extra `ansible` is not installed")

RELEASE = "trixie"
CANARY, SECOND, REFUSES, DOES_NOT_START, DIES, LATE = "h1", "h2", "h3", "h4", "h5", "h6"
VARIABLES: dict[str, Any] = {
    "upgrade_release": RELEASE,
    "upgrade_canary_soak": 2,
    "upgrade_waves": [3, 1],
    "upgrade_standby_wait": 60,
}
FLOW = "table=99,priority=1"


@pytest.fixture(scope="module")
def bed(system: System, tree_release: Release) -> Iterator[FleetBed]:
    assert find_sshd(), "apt-packages.txt has openssh-server"
    with contextlib.ExitStack() as stack:
        bed = FleetBed(stack, system)
        for name in (CANARY, SECOND, REFUSES, DOES_NOT_START, DIES, LATE):
            host = bed.add(name, qemu=name in (CANARY, SECOND))
            Releases(host.lab.config, system).add(RELEASE, from_directory=Path(str(tree_release.root)))
        for host in bed.hosts.values():
            host.wait_ready()
        bed.write_inventory([CANARY, SECOND])
        yield bed


@pytest.fixture(scope="module")
def begun(bed: FleetBed) -> dict[str, Mark]:
    """Where the pings of the QEMU guests were before the first upgrade."""
    return {name: bed.hosts[name].lab.pings.mark() for name in (CANARY, SECOND)}


def openflow(host: FleetHost, *words: str) -> None:
    socket = host.host.instances[host.host.active()].paths.run_dir / f"{host.lab.config.bridge}.mgmt"
    host.system.run(["ovs-ofctl", "-O", "OpenFlow14", words[0], f"unix:{socket}", *words[1:]])


@contextlib.contextmanager
def broken_standby(host: FleetHost) -> Iterator[None]:
    """An instance that is started in the block ends at once, because DPDK does not know one of its arguments."""
    path = host.lab.config_path
    text = path.read_text()
    path.write_text(text.replace('dpdk_extra = "--no-pci"', 'dpdk_extra = "--no-pci --no-such-option"'))
    try:
        yield
    finally:
        path.write_text(text)


def test_the_wanted_state_of_a_host_is_reached_once(bed: FleetBed) -> None:
    """The role `host` finds the files as they shall be. Packages and units are not of this machine."""
    host = bed.hosts[LATE]
    config = host.lab.config
    host.lab.config_path.parent.chmod(0o755)
    for path in (host.lab.config_path, config.overlay):
        path.chmod(0o644)
    text = "{{ lookup('ansible.builtin.file', %s, rstrip=false) }}"
    wanted: dict[str, Any] = {"host_packages": [], "host_units": False, "host_config": text % "ovs_hotswap_config_file",
              "host_overlay": text % f"'{config.overlay}'"}  # fmt: skip
    bed.run("site", "--limit", LATE, **wanted)
    assert bed.changed("site") == set()
    bed.run("site", "--limit", LATE, "--check", **{**wanted, "host_overlay": config.overlay.read_text() + "# new\n"})
    assert bed.changed("site") == {LATE}


def test_check_mode_finds_what_would_fail_and_changes_nothing(bed: FleetBed, begun: dict[str, Mark]) -> None:
    openflow(bed.hosts[REFUSES], "add-flow", f"{FLOW},actions=NORMAL")
    before = {name: host.identity() for name, host in bed.hosts.items()}
    bed.run("upgrade", "--check", code=2, **{**VARIABLES, "upgrade_waves": ["100%"]})
    assert {name: host.identity() for name, host in bed.hosts.items()} == before
    assert not bed.runs.exists()
    assert bed.changed("upgrade") == {CANARY, SECOND, DOES_NOT_START, DIES, LATE}
    text = bed.text("upgrade", 100_000)
    failed = [line for line in text.splitlines() if line.startswith("fatal:")]
    assert {line.partition("[")[2].partition("]")[0] for line in failed} == {REFUSES}, failed
    assert "cannot be on two instances at once" in "".join(failed)


def test_a_control_node_that_is_killed_leaves_no_host_half_way(bed: FleetBed) -> None:
    """Three hosts are under way. Each of them ends, or rolls itself back, without it."""

    def under_way(records: dict[str, dict[str, Any]]) -> bool:
        return all(records.get(name, {}).get("job") for name in (REFUSES, DOES_NOT_START, DIES))

    with broken_standby(bed.hosts[DOES_NOT_START]), bed.hosts[DIES].struck_in("move") as struck:
        child = bed.play("upgrade", **VARIABLES)
        try:
            bed.wait_recorded(under_way, "three hosts under way", child)
        finally:
            bed.kill(child)
        assert bed.states() == {CANARY: "upgraded", SECOND: "upgraded", REFUSES: "running", DOES_NOT_START: "running",
                                DIES: "running"}  # fmt: skip
        for name in (DOES_NOT_START, DIES):
            eventually(bed.hosts[name].has_ended, f"an ended upgrade of {name}", 120.0, poll_s=0.5)
    assert struck
    for name in (DOES_NOT_START, DIES):
        assert bed.hosts[name].ask("status")["last"]["committed"] is False
        assert bed.hosts[name].ask("status")["active"] == "a"


def test_the_next_run_reports_what_became_of_them_and_is_stopped_by_the_threshold(bed: FleetBed) -> None:
    before = {name: host.identity() for name, host in bed.hosts.items()}
    bed.run("upgrade", code=2, **VARIABLES)
    assert len(list(bed.runs.iterdir())) == 1, "the run was continued"
    assert bed.states() == {CANARY: "upgraded", SECOND: "upgraded", REFUSES: "failed", DOES_NOT_START: "rolled_back",
                            DIES: "rolled_back"}  # fmt: skip
    records = bed.records()
    assert "cannot be on two instances at once" in records[REFUSES]["reason"]
    for name in (DOES_NOT_START, DIES):
        assert records[name]["report"]["error"]["exit_code"] == 5
        assert records[name]["watch"]["ready"], "the watchdog has made a standby again"
    assert [records[name]["wave"] for name in (CANARY, SECOND, REFUSES, DIES)] == ["canary", "canary", 1, 1]
    run = json.loads((bed.newest() / "run.json").read_text())
    assert "3 hosts failed, and at most 0 may" in run["stopped"]
    assert {name: host.identity() for name, host in bed.hosts.items()} == before, "nothing was upgraded a second time"


def test_the_second_run_finishes_and_leaves_finished_hosts_alone(bed: FleetBed) -> None:
    """It is paused first: no host is begun as long as the file is there."""
    openflow(bed.hosts[REFUSES], "del-flows", "table=99")
    before = {name: bed.hosts[name].identity() for name in (CANARY, SECOND)}
    pause = bed.runs / "second" / "pause"
    pause.parent.mkdir()
    pause.touch()
    child = bed.play("upgrade", upgrade_run_id="second", **VARIABLES)
    try:
        eventually(lambda: bed.text("upgrade").rpartition("TASK [")[2].count("no longer paused"), "a pause", 60.0)
        assert bed.records() == {}
        pause.unlink()
        assert child.wait(PLAY_S) == 0, bed.text("upgrade")
    finally:
        bed.kill(child)
    assert bed.states() == {CANARY: "unchanged", SECOND: "unchanged", REFUSES: "upgraded", DOES_NOT_START: "upgraded",
                            DIES: "upgraded", LATE: "upgraded"}  # fmt: skip
    assert bed.changed("upgrade") == {REFUSES, DOES_NOT_START, DIES, LATE}
    assert {name: bed.hosts[name].identity() for name in (CANARY, SECOND)} == before
    for record in bed.records().values():
        assert record["watch"]["ready"]
        assert record["check"]["ready"]
        assert record["reason"] is None
    run = json.loads((bed.newest() / "run.json").read_text())
    assert run["ended"]
    assert run["stopped"] is None
    summary = json.loads((bed.newest() / "summary.json").read_text())
    assert summary["verdict"] == "complete", summary
    assert all((bed.newest() / f"summary.{kind}").stat().st_size for kind in ("txt", "html"))


def test_a_dry_run_on_a_finished_host_has_nothing_to_do(bed: FleetBed) -> None:
    """This is what check mode reports."""
    planned = bed.hosts[LATE].ask("upgrade", "--release", RELEASE, "--dry-run")
    assert planned["ready"]
    assert planned["changed"] is False
    assert bed.hosts[LATE].ask("upgrade", "--release", "host", "--dry-run")["changed"] is True


def test_a_rollback_undoes_just_what_the_run_did(bed: FleetBed) -> None:
    """It is limited to two hosts, to save time: one that the run has upgraded, and one that it found upgraded."""
    before = bed.hosts[CANARY].identity()
    options: dict[str, Any] = {
        "rollback_run": bed.newest().name,
        "rollback_waves": ["100%"],
        "upgrade_standby_wait": 60,
    }
    bed.run("rollback", "--limit", f"{CANARY},{LATE}", **options)
    assert bed.changed("rollback") == {LATE}
    assert bed.hosts[CANARY].identity() == before
    status = bed.hosts[LATE].ask("status")
    assert status["last"]["release"] == "host"
    assert status["last"]["committed"]


def test_no_guest_has_lost_a_frame(bed: FleetBed, begun: dict[str, Mark]) -> None:
    for name, mark in begun.items():
        pings = bed.hosts[name].lab.pings
        assert [(each.guest, each.lost) for each in pings.between(mark, pings.mark()) if each.lost] == []
    lost = {name: bed.hosts[name].lost() for name in (REFUSES, DOES_NOT_START, LATE)}
    assert set(lost.values()) == {0}, lost

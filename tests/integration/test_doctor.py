"""doctor on a real host: a lab on which all is well, and then with faults planted in the real thing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.doctor.report import Section
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.system import System
from tests.integration.conftest import MakeConfig
from tests.support.json_schema import faults
from tests.support.lab_bed import serving_lab
from tests.support.waiting import eventually
from tools import schema

GUESTS = 2
PAGES = Path("/sys/devices/system/node/node0/hugepages/hugepages-2048kB")
DOCTOR = json.loads((schema.DIRECTORY / "doctor.schema.json").read_text())


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Lab]:
    with serving_lab(system, "ovsh-dr-", "\n[watch]\ncrash_limit = 100\nhang_ms = 3000\n", vms=GUESTS) as lab:
        yield lab


@pytest.fixture
def host(bed: Lab, system: System) -> Host:
    return Host(bed.config, system)


@dataclass(frozen=True)
class Examined:
    status: int
    document: dict[str, Any]

    def of(self, severity: str) -> set[tuple[str, str]]:
        """The section and the name of each finding of a severity."""
        return {(each["section"], each["check"]) for each in self.document["findings"] if each["severity"] == severity}

    def hints(self, section: str, check: str) -> list[str]:
        return [each["hint"] for each in self.document["findings"]
                if (each["section"], each["check"]) == (section, check) and each["severity"] != "ok"]  # fmt: skip


def doctor(config_path: Path, *arguments: str) -> Examined:
    """Run doctor as a process of its own. A process that hangs does not keep it longer than its own deadlines allow."""
    argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(config_path), "--json", "doctor", *arguments]
    done = System().run(argv, timeout=60.0, check=False)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert faults(DOCTOR, document) == []
    return Examined(done.status, document)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process from running."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def watched(bed: Lab, host: Host) -> Iterator[int]:
    with watchdog(host, bed.config_path, bed.layout.directory / "watch.log") as pid:
        yield pid


def test_a_host_on_which_all_is_well_has_no_error(bed: Lab, host: Host) -> None:
    with watched(bed, host):
        found = doctor(bed.config_path)
    assert (found.of("error"), found.of("unknown"), found.status) == (set(), set(), 0)
    assert {section for section, _ in found.of("ok") | found.of("warning")} == {str(each) for each in Section}
    assert {("broker", "answers"), ("instances", "active"), ("standby", "standby"), ("vms", "VMs")} <= found.of("ok")


def test_the_document_as_text_has_every_section(bed: Lab, system: System) -> None:
    argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(bed.config_path), "doctor"]
    text = system.run(argv, check=False).stdout
    assert [line.split()[1] for line in text.splitlines()[:-1] if not line.startswith(" ")] == list(Section)


def test_a_broker_that_hangs_is_an_error_and_its_vms_are_unknown(bed: Lab, host: Host) -> None:
    with stopped(host.broker.status().pid):
        found = doctor(bed.config_path)
    assert ("broker", "answers") in found.of("error")
    assert ("vms", "VMs") in found.of("unknown")
    assert not [check for section, check in found.of("ok") if section == "vms"]
    assert found.status == 4
    assert ("broker", "answers") in doctor(bed.config_path).of("ok")


def test_a_switch_that_hangs_does_not_hold_doctor_up(bed: Lab, host: Host) -> None:
    pid = host.instances[Side.A].pid()
    assert pid is not None
    with stopped(pid):
        found = doctor(bed.config_path)
    assert ("instances", "answers") in found.of("error")
    assert found.status == 4
    bed.pings.wait_flowing(30.0)


def test_a_standby_that_was_killed_is_found(bed: Lab, host: Host) -> None:
    with watched(bed, host) as watchdog_pid:
        standby = host.instances[host.active().other]
        pid = standby.pid()
        assert pid is not None
        with stopped(watchdog_pid):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: standby.status().state is State.DEAD, "it lives")
            found = doctor(bed.config_path, "--section", "instances", "--section", "standby")
        assert ("instances", "instance") in found.of("error")
        assert found.status == 4
        wait_protected(host, host.active())


def test_huge_pages_that_are_gone_are_added_and_taken_away_again(bed: Lab, host: Host) -> None:
    if host.running(Side.B):
        host.instances[Side.B].stop()
    before = int((PAGES / "nr_hugepages").read_text())
    try:
        (PAGES / "nr_hugepages").write_text(str(before - int((PAGES / "free_hugepages").read_text())))
        few = int((PAGES / "nr_hugepages").read_text())
        found = doctor(bed.config_path, "--section", "memory")
        assert ("memory", "huge pages") in found.of("error")
        (hint,) = found.hints("memory", "huge pages")
        fixed = doctor(bed.config_path, "--section", "memory", "--fix", "--yes")
        assert fixed.document["changed"] == [hint]
        assert ("memory", "huge pages") in fixed.of("ok")
        assert int((PAGES / "nr_hugepages").read_text()) > few
        undone = doctor(bed.config_path, "--section", "memory", "--undo", "--yes")
        assert ("memory", "huge pages") in undone.of("error")
        assert int((PAGES / "nr_hugepages").read_text()) == few
    finally:
        (PAGES / "nr_hugepages").write_text(str(before))


def test_the_mode_of_the_control_socket_is_put_right(bed: Lab) -> None:
    socket = bed.config.broker_socket
    socket.chmod(0o666)
    assert ("access", "control socket") in doctor(bed.config_path, "--section", "access").of("error")
    fixed = doctor(bed.config_path, "--section", "access", "--fix", "--yes")
    assert fixed.document["changed"] == [f"chmod 660 {socket}"]
    assert (socket.stat().st_mode & 0o777, fixed.of("error")) == (0o660, set())
    doctor(bed.config_path, "--undo", "--yes", "--section", "access")
    assert socket.stat().st_mode & 0o777 == 0o666
    socket.chmod(0o660)


def test_an_overlay_that_is_broken_is_found_and_does_not_hide_the_rest(bed: Lab) -> None:
    text = bed.config.overlay.read_text()
    try:
        bed.config.overlay.write_text(text.replace("vni = ", "vni = -", 1))
        found = doctor(bed.config_path)
    finally:
        bed.config.overlay.write_text(text)
    assert ("overlay", "values") in found.of("error")
    assert ("broker", "answers") in found.of("ok")
    assert found.status == 4


@pytest.mark.parametrize(
    ("options", "check"),
    [("size=4m", "space"), ("size=1g,nr_inodes=8", "inodes"), ("size=1g,ro", "read-only")],
)
def test_a_disk_without_room_is_found(
    make_config: MakeConfig, system: System, tmp_path: Path, options: str, check: str
) -> None:
    config = make_config()
    config.state_dir.mkdir()
    path = tmp_path / "config.toml"
    path.write_text(as_toml(config.model_dump(mode="json", exclude_none=True)))
    system.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(config.state_dir)])
    try:
        found = doctor(path, "--section", "disk")
    finally:
        system.run(["umount", str(config.state_dir)])
    assert (found.of("error"), found.status) == ({("disk", check)}, 4)
    assert doctor(path, "--section", "disk").status == 0


def as_toml(table: dict[str, Any], prefix: str = "") -> str:
    """Write tables of plain values; what is JSON is TOML for these."""
    plain = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict))
    deeper = [as_toml(value, f"{prefix}{key}.") for key, value in table.items() if isinstance(value, dict)]
    return "\n".join([f"[{prefix.rstrip('.')}]\n{plain}" if prefix else plain, *deeper])

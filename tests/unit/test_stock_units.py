"""The drop-ins of the distribution's units, and the script in the place of ovs-ctl. test_stock_systemd.py has them in
front of a real systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from ovs_hotswap.controllers.ovs_ctl import OvsCtl
from ovs_hotswap.controllers.stock_units import StockUnits, findings, shield_text
from ovs_hotswap.errors import CommandError, HostError
from ovs_hotswap.model import Severity
from ovs_hotswap.switch.monitors import end_family, end_monitors, monitor_of
from ovs_hotswap.system import System
from tests.unit.fake_system import FakeSystem


class Systemctl(FakeSystem):
    """systemd with the units of Debian, and dpkg."""

    def __init__(self, *units: str) -> None:
        super().__init__(self.answer)
        self.units, self.status = units, 0

    def answer(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[:2] == ["systemctl", "show"]:
            name = argv[-1].removesuffix(".service")
            return 0, "loaded" if name in self.units else "not-found"
        return self.status, ""


def units(tmp_path: Path, system: Systemctl, *, booted: bool = True) -> StockUnits:
    return StockUnits("openvswitch-switch", system, Path("/opt/x y/ovs-hotswap"), etc=tmp_path / "etc",
                      run=tmp_path / "run", booted=tmp_path if booted else tmp_path / "none")  # fmt: skip


DEBIAN = ("openvswitch-switch", "ovs-vswitchd", "ovsdb-server")


def drop_ins(directory: Path) -> dict[str, str]:
    return {path.parent.name.removesuffix(".service.d"): path.read_text() for path in directory.rglob("*.conf")}


def test_reload_upgrades_for_good_and_the_undo_leaves_nothing(tmp_path: Path) -> None:
    system = Systemctl(*DEBIAN)
    made = units(tmp_path, system)
    for _ in range(2):
        made.install()
    assert made.installed()
    assert list(drop_ins(tmp_path / "etc")) == ["openvswitch-switch"]
    text = drop_ins(tmp_path / "etc")["openvswitch-switch"]
    assert text.endswith("ExecReload=\nExecReload='/opt/x y/ovs-hotswap' upgrade --release host\n")
    assert [argv for argv in system.ran if "daemon-reload" in argv] == [("systemctl", "daemon-reload")]
    for _ in range(2):
        made.remove()
    assert not made.installed()
    assert list((tmp_path / "etc").iterdir()) == []
    assert len([argv for argv in system.ran if "daemon-reload" in argv]) == 2


def test_a_shield_is_for_every_unit_and_until_the_next_boot(tmp_path: Path) -> None:
    made = units(tmp_path, Systemctl(*DEBIAN))
    made.shield()
    found = drop_ins(tmp_path / "run")
    assert sorted(found) == sorted(DEBIAN)
    assert all("RefuseManualStop=yes" in text and "Restart=" not in text for text in found.values())
    made.retire()
    assert all("ExecStop=\nRestart=no\n" in text for text in drop_ins(tmp_path / "run").values())
    made.shield()
    assert drop_ins(tmp_path / "run") == found
    made.unshield()
    assert drop_ins(tmp_path / "run") == {}


def test_a_reload_of_one_daemon_is_none(tmp_path: Path) -> None:
    made = units(tmp_path, Systemctl(*DEBIAN))
    made.shield()
    text = drop_ins(tmp_path / "run")
    assert "upgrade --release host" not in text["ovs-vswitchd"].partition("[Service]")[2]
    assert "ExecReload=\n" in text["ovs-vswitchd"]
    assert "upgrade --release host" in text["openvswitch-switch"].partition("[Service]")[2]


def test_only_units_that_are_there_get_a_drop_in(tmp_path: Path) -> None:
    made = units(tmp_path, Systemctl("openvswitch-switch"))
    made.shield()
    assert list(drop_ins(tmp_path / "run")) == ["openvswitch-switch"]
    nothing = units(tmp_path / "other", Systemctl(*DEBIAN), booted=False)
    nothing.shield()
    nothing.install()
    assert drop_ins(tmp_path / "other") == {}


def test_every_text_says_how_to_upgrade_and_how_to_give_up() -> None:
    for daemon in (True, False):
        text = shield_text("ovs-vswitchd", Path("/x/ovs-hotswap"), daemon=daemon, retired=False)
        assert "ovs-hotswap upgrade --release host" in text
        assert "ovs-hotswap stock unshield" in text


def test_findings_name_the_command_that_helps() -> None:
    assert findings(installed=True, shielded={"ovs-vswitchd": True}, adopted=True) == []
    assert findings(installed=True, shielded={"ovs-vswitchd": False}, adopted=False) == []
    (finding,) = findings(installed=False, shielded={}, adopted=False)
    assert (finding.severity, finding.hint) == (Severity.WARNING, "`ovs-hotswap stock install`")
    (finding,) = findings(installed=True, shielded={"ovs-vswitchd": False}, adopted=True)
    assert (finding.severity, finding.hint, finding.item) == (
        Severity.ERROR, "`ovs-hotswap stock shield`", "ovs-vswitchd",
    )  # fmt: skip


class Dpkg(FakeSystem):
    """dpkg, to which the script belongs or not."""

    def __init__(self, *, owns: bool) -> None:
        super().__init__(self.answer)
        self.owns = owns

    def answer(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "dpkg-query":
            return (0, "openvswitch-switch: x") if self.owns else (1, "no path found")
        own, script = Path(argv[4]), Path(argv[6])
        if argv[5] == "--add":
            script.rename(own)
        else:
            own.rename(script)
        return 0, ""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The distribution's script, which says what it was called with, and as what."""
    made = tmp_path / "a b" / "ovs-ctl"
    made.parent.mkdir()
    made.write_text('#!/bin/sh\necho "$0" "$@"\n')
    made.chmod(0o755)
    return made


def call(script: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([script, *words], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_while_shielded_only_what_ends_the_daemons_is_refused(script: Path, tmp_path: Path) -> None:
    before = script.read_text()
    shield = tmp_path / "shield"
    made = OvsCtl(Dpkg(owns=True), shield, script=script)
    for _ in range(2):
        assert made.install()
    for shielded in (False, True):
        if shielded:
            shield.touch()
        assert call(script, "--system-id=random", "start") == (0, f"{script}.distrib --system-id=random start\n", "")
        for verb in ("stop", "restart", "force-reload-kmod"):
            status, output, error = call(script, "--no-ovsdb-server", verb)
            assert (status, output == "") == ((1, True) if shielded else (0, False))
            assert ("ovs-hotswap upgrade --release host" in error) is shielded
    for _ in range(2):
        made.remove()
    assert (script.read_text(), os.listdir(script.parent)) == (before, ["ovs-ctl"])


def test_a_script_that_is_no_packages_stays(script: Path, tmp_path: Path) -> None:
    before = script.read_text()
    made = OvsCtl(Dpkg(owns=False), tmp_path / "shield", script=script)
    assert not made.install()
    assert not made.installed()
    assert script.read_text() == before


def test_a_monitor_is_found_by_what_it_says_of_itself(tmp_path: Path) -> None:
    for pid, parent in ((20, 10), (21, 11), (22, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (ovs-vswitchd (x)) S {parent} 0 0")
    system = FakeSystem()
    system.processes = {1: ["/sbin/init"], 10: ["ovs-vswitchd: monitoring pid 20 (healthy)"], 20: ["ovs-vswitchd"],
                        11: ["ovs-vswitchd: monitoring pid 2 (healthy)"], 21: ["ovs-vswitchd"]}  # fmt: skip
    assert [monitor_of(pid, system, tmp_path) for pid in (20, 21, 22, 23)] == [10, None, None, None]
    assert end_monitors((20, 21), system, tmp_path) == (10,)
    assert system.killed == [(10, 0)]


def test_a_monitor_ends_with_what_it_has_started_since() -> None:
    """A real one, which starts a daemon again as soon as it dies, however fast it is ended."""
    program = """
import os, signal, sys, time
while True:
    child = os.fork()
    if not child:
        time.sleep(60)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        died = int(monitor.stdout.readline())
        os.kill(died, signal.SIGKILL)
        again = int(monitor.stdout.readline())
        reaper = threading.Thread(target=monitor.wait)  # otherwise it stays a zombie, which counts as alive
        reaper.start()
        ended = end_family(monitor.pid, System())
        reaper.join()
    assert set(ended) >= {monitor.pid, again}
    assert not System().alive(again)
    assert end_family(monitor.pid, System()) == (monitor.pid,)  # it may be repeated


def test_a_diversion_that_fails_is_an_error_with_a_hint(script: Path, tmp_path: Path) -> None:
    class Broken(Dpkg):
        def answer(self, argv: Sequence[str]) -> tuple[int, str]:
            if argv[0] == "dpkg-divert":
                raise CommandError("dpkg-divert: exit 2")
            return super().answer(argv)

    with pytest.raises(HostError, match="exit 2"):
        OvsCtl(Broken(owns=True), tmp_path / "shield", script=script).install()

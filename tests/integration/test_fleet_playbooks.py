"""The playbooks of the collection, run by Ansible on hosts that are files (`tests/support/stand_in.py`): what becomes
of a run when hosts, connections and control nodes fail in ways that real hosts would take hours to show.

`test_fleet.py` has the playbooks on real hosts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import stand_in
from tests.support.collection import install
from tests.support.waiting import eventually

pytest.importorskip("ansible.module_utils.basic", reason="the extra `ansible` is not installed")

BIN = Path(sys.executable).parent
NAMES = ("h1", "h2", "h3", "h4")
_PLAY_S = 240.0


class Fleet:
    """Four hosts, of which h1 is the canary. A host is cut off as long as the file ``cut-NAME`` is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs = directory / "runs"
        install(directory / "collections")
        self.ssh = self._program("ssh", stand_in.SSH)
        program = f'#!/bin/sh\nexec {sys.executable} {stand_in.__file__} "$@"\n'
        self.program = self._program("ovs-hotswap", program)
        for name in NAMES:
            self.set(name, **stand_in.NEW)
        self.inventory()

    def _program(self, name: str, text: str) -> Path:
        path = self.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def inventory(self, canaries: tuple[str, ...] = ("h1",), **variables: object) -> None:
        every: dict[str, object] = {
            "ansible_connection": "ssh", "ansible_ssh_executable": str(self.ssh),
            "ansible_ssh_transfer_method": "piped", "ansible_python_interpreter": sys.executable,
            "ovs_hotswap_program": str(self.program), "upgrade_runs": str(self.runs), "upgrade_poll": 1,
            "upgrade_grace": 2, "upgrade_reconnect": 60, "upgrade_standby_wait": 1, "upgrade_canary_soak": 0,
            "upgrade_soak_every": 0.2, **variables,
        }  # fmt: skip

        def of(name: str) -> dict[str, object]:
            return {"ovs_hotswap_config_file": str(self.path(name)),
                    "ansible_ssh_extra_args": f"cut={self.directory}/cut-{name}",
                    "ansible_async_dir": f"{self.directory}/async-{name}"}  # fmt: skip

        groups: dict[str, object] = {
            "ovs_hotswap": {"hosts": {name: of(name) for name in NAMES}, "vars": every},
            "ovs_hotswap_canaries": {"hosts": dict.fromkeys(canaries)},
        }
        (self.directory / "inventory.json").write_text(json.dumps({"all": {"children": groups}}))

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def state(self, name: str) -> dict[str, Any]:
        return stand_in.read(self.path(name))

    def set(self, name: str, **fields: object) -> None:
        before = self.state(name) if self.path(name).exists() else {}
        stand_in.write(self.path(name), {**before, **fields})

    def cut(self, name: str, off: bool = True) -> None:
        path = self.directory / f"cut-{name}"
        path.touch() if off else path.unlink()

    def play(self, name: str, *options: str, **variables: object) -> subprocess.Popen[str]:
        argv = [str(BIN / "ansible-playbook"), "-i", str(self.directory / "inventory.json"),
                f"ovs_hotswap.ovs_hotswap.{name}", "-e", json.dumps(variables), *options]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")} | {
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "2",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        log = (self.directory / f"{name}.log").open("a")
        return subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, start_new_session=True
        )

    def run(self, name: str, *options: str, code: int = 0, **variables: object) -> str:
        """Run a playbook to its end. Returns what it printed."""
        child = self.play(name, *options, **variables)
        try:
            assert child.wait(_PLAY_S) == code, self.text(name)
        finally:
            self.end(child)
        return self.text(name)

    def end(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.wait()

    def text(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()[-12_000:]

    def upgrade(self, *options: str, code: int = 0, **variables: object) -> str:
        given = {"upgrade_release": "trixie", "upgrade_waves": [1, 2], **variables}
        return self.run("upgrade", *options, code=code, **given)

    def newest(self) -> Path:
        return max(self.runs.iterdir(), key=lambda path: path.stat().st_mtime)

    def records(self, run: Path | None = None) -> dict[str, dict[str, Any]]:
        files = [json.loads(path.read_text()) for path in (run or self.newest()).glob("hosts/*.json")]
        return {each["host"]: each for each in files}

    def states(self, run: Path | None = None) -> dict[str, str]:
        return {name: record["state"] for name, record in sorted(self.records(run).items())}

    def wait_recorded(self, true: Callable[[dict[str, dict[str, Any]]], bool], what: str) -> None:
        def look() -> bool:
            return self.runs.exists() and bool(list(self.runs.iterdir())) and true(self.records())

        eventually(look, what, 120.0, poll_s=0.05)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_a_run_and_its_rollback(fleet: Fleet) -> None:
    fleet.upgrade()
    assert fleet.states() == dict.fromkeys(NAMES, "upgraded")
    assert [fleet.records()[name]["wave"] for name in NAMES] == ["canary", 1, 2, 2]
    assert [fleet.state(name)["release"] for name in NAMES] == ["trixie"] * 4
    run = fleet.newest()
    fleet.run("rollback", rollback_run=run.name)
    assert [fleet.state(name)["release"] for name in NAMES] == ["host"] * 4
    assert fleet.states(run / "rollback") == dict.fromkeys(NAMES, "upgraded")
    summary = json.loads((run / "rollback" / "summary.json").read_text())
    assert summary["headline"] == "Complete: all 4 hosts are back from trixie"


def test_a_canary_that_fails_is_the_last_host_that_is_touched(fleet: Fleet) -> None:
    fleet.set("h1", fault="rolled back")
    text = fleet.upgrade(code=2)
    assert fleet.states() == {"h1": "rolled_back"}
    assert [fleet.state(name)["acts"] for name in NAMES[1:]] == [[], [], []]
    assert "1 host failed, and at most 0 may (h1: rolled back for a test)" in text


def test_patterns_of_hosts_may_be_of_any_form(fleet: Fleet) -> None:
    """Canaries that a comma separates, of hosts that a comma separates; one canary is not among the hosts."""
    fleet.upgrade(ovs_hotswap_hosts="h1,h2,h3", upgrade_canaries="h1,h2,h4", upgrade_waves=["100%"])
    assert [fleet.records()[name]["wave"] for name in NAMES[:3]] == ["canary", "canary", 1]
    assert fleet.state("h4")["acts"] == []


def test_a_host_that_is_lost_in_its_upgrade_is_asked_later_and_can_be_undone(fleet: Fleet) -> None:
    """The upgrade ends without the connection. The run is continued by its name, and undone."""
    fleet.inventory(upgrade_reconnect=1)
    fleet.set("h2", takes_s=5.0)
    child = fleet.play("upgrade", upgrade_release="trixie", upgrade_waves=[1, 2])
    try:
        fleet.wait_recorded(lambda records: bool(records.get("h2", {}).get("job")), "h2 under way")
        eventually(lambda: fleet.state("h2")["unfinished"] is not None, "an upgrade of h2", 60.0)
        fleet.cut("h2")
        assert child.wait(_PLAY_S) == 2, fleet.text("upgrade")
    finally:
        fleet.end(child)
    assert fleet.states() == {"h1": "upgraded", "h2": "unreachable"}
    eventually(lambda: fleet.state("h2")["release"] == "trixie", "the end of the upgrade", 60.0)
    fleet.cut("h2", off=False)
    run = fleet.newest()
    fleet.upgrade(upgrade_run_id=run.name)
    assert fleet.states() == dict.fromkeys(NAMES, "upgraded")
    assert fleet.records()["h2"]["report"]["committed"]
    assert fleet.state("h2")["acts"] == [["upgrade", "trixie"]], "it is not upgraded again"
    fleet.run("rollback", "--limit", "h2", rollback_run=run.name)
    assert fleet.state("h2")["release"] == "host"


def test_a_host_that_reboots_in_its_upgrade_does_not_hold_up_the_wave(fleet: Fleet) -> None:
    """Its task never ends, and its journal says that the upgrade was interrupted."""
    fleet.set("h2", takes_s=600.0)
    child = fleet.play("upgrade", upgrade_release="trixie", upgrade_waves=[1, 2])
    try:
        fleet.wait_recorded(lambda records: bool(records.get("h2", {}).get("job")), "h2 under way")
        eventually(lambda: fleet.state("h2")["unfinished"] is not None, "an upgrade of h2", 60.0)
        fleet.cut("h2")
        os.killpg(fleet.state("h2")["group"], signal.SIGKILL)
        fleet.set("h2", unfinished={**fleet.state("h2")["unfinished"], "rebooted": True})
        eventually(lambda: "reached again" in fleet.text("upgrade").rpartition("TASK [")[2], "a lost host", 60.0)
        fleet.cut("h2", off=False)
        assert child.wait(_PLAY_S) == 2, fleet.text("upgrade")
    finally:
        fleet.end(child)
    assert fleet.states() == {"h1": "upgraded", "h2": "failed"}
    assert "was interrupted (phase forward)" in fleet.records()["h2"]["reason"]


def test_what_a_lost_control_node_did_not_read_is_read_and_a_soak_is_not_repeated(fleet: Fleet) -> None:
    fleet.upgrade(upgrade_canary_soak=0.5)
    before = fleet.records()
    assert before["h1"]["soaked"]
    run = fleet.newest()
    for path, changes in (("run.json", {"ended": None}), ("hosts/h3.json", {"check": None, "watch": None})):
        (run / path).write_text(json.dumps({**json.loads((run / path).read_text()), **changes}))
    fleet.upgrade(upgrade_canary_soak=0.5)
    after = fleet.records()
    assert after["h3"]["check"]["ready"]
    assert after["h1"]["soaked"] == before["h1"]["soaked"]
    assert [fleet.state(name)["acts"] for name in NAMES] == [[["upgrade", "trixie"]]] * 4


def test_a_run_that_is_not_there_is_not_undone(fleet: Fleet) -> None:
    assert "has no run typo, so nothing was undone" in fleet.run("rollback", code=2, rollback_run="typo")


def test_check_mode_touches_nothing(fleet: Fleet) -> None:
    fleet.upgrade("--check")
    assert not fleet.runs.exists()
    assert [fleet.state(name)["acts"] for name in NAMES] == [[]] * 4

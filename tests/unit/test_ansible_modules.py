"""The modules of the Ansible collection run the real program, as far as it needs no switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.steps import upgrade_plan
from tests.support.collection import PROGRAM, install, run_module

pytest.importorskip("ansible.module_utils.basic", reason="the extra `ansible` is not installed")


class Host:
    """A host of which only the files are there."""

    def __init__(self, directory: Path) -> None:
        self.etc, self.state = directory / "etc", directory / "state"
        for path in (self.etc, directory / "run", self.state, directory / "collections"):
            path.mkdir()
        self.collections = install(directory / "collections")
        self.config, self.overlay = self.etc / "config.toml", self.etc / "overlay.toml"
        self.text = EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(self.overlay))
        self.text = self.text.replace("# run_dir = ", "run_dir = ").replace("# state_dir = ", "state_dir = ")
        self.text = self.text.replace('"/run/ovs-hotswap"', f'"{directory}/run"').replace(
            '"/var/lib/ovs-hotswap"', f'"{self.state}"'
        )

    def __call__(self, name: str, /, *, check: bool = False, **options: Any) -> dict[str, Any]:
        files: dict[str, Any] = {"program": str(PROGRAM), "config_file": str(self.config)}
        return run_module(self.collections, name, check=check, **files, **options)

    def write(self) -> None:
        self.config.write_text(self.text)
        self.overlay.write_text(OVERLAY)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_config_writes_both_files_once(host: Host) -> None:
    wanted: dict[str, Any] = {"content": host.text, "overlay": OVERLAY, "mode": "0640"}
    tried = host("config", check=True, **wanted)
    assert tried["changed"]
    assert not list(host.etc.iterdir())
    first = host("config", **wanted)
    assert first["changed"]
    assert first["config"]["overlay"] == str(host.overlay)
    assert first["overlay"]["vms"] == 2
    assert {each["after_header"]: each["after"] for each in first["diff"]} == {
        str(host.config): host.text, str(host.overlay): OVERLAY
    }  # fmt: skip
    assert host.config.read_text() == host.text
    assert host.overlay.read_text() == OVERLAY
    assert host.overlay.stat().st_mode & 0o777 == 0o640
    again = host("config", **wanted)
    assert not again["changed"]
    assert again["diff"] == []


def test_config_replaces_nothing_if_a_file_is_not_valid(host: Host) -> None:
    host.write()
    refused = host("config", content=host.text.replace("soak_s = 5", "soak_s = -1").replace("# soak_s", "soak_s"))
    assert refused["failed"]
    assert refused["rc"] == 3
    assert "soak_s" in refused["msg"]
    refused = host("config", overlay=OVERLAY.replace("52:54:00", "zz"))
    assert refused["error"]["class"] == "ConfigError"
    assert (host.config.read_text(), host.overlay.read_text()) == (host.text, OVERLAY)


def test_config_changes_the_mode_alone(host: Host) -> None:
    host.write()
    for path in (host.config, host.overlay):
        path.chmod(0o644)
    assert host("config", mode="0600", check=True)["changed"]
    assert host.config.stat().st_mode & 0o777 == 0o644
    assert host("config", mode="0600")["changed"]
    assert not host("config", mode="0600")["changed"]
    assert host.config.stat().st_mode & 0o777 == 0o600


def test_config_needs_a_file_or_a_text(host: Host) -> None:
    assert "`content` is needed" in host("config", overlay=OVERLAY)["msg"]


def test_config_applies_an_overlay_where_nothing_runs(host: Host) -> None:
    """Nothing differs in check mode; without it, the broker is needed, and its absence is a failure with a hint."""
    host.write()
    assert host("config", apply=True, check=True)["applied"] == {}
    assert not host("config", apply=True)["changed"]
    failed = host("config", overlay=OVERLAY + "\n# changed\n", apply=True)
    assert failed["rc"] == 7
    assert "`ovs-hotswap broker start`" in failed["hint"]


def test_host_info_shows_what_is_known(host: Host) -> None:
    host.write()
    seen = host("host_info", gather=["status", "releases", "check", "config", "doctor"], release="host", check=True)
    assert not seen["changed"]
    assert seen["status"]["active"] is None
    assert seen["release"] is None
    assert "host" in [each["name"] for each in seen["releases"]]
    assert not seen["check"]["ready"]
    assert seen["config"]["bridge"] == "br0"
    assert "broker" in {each["section"] for each in seen["doctor"]["findings"] if each["severity"] == "error"}
    assert "`release` is needed" in host("host_info", gather=["check"])["msg"]


def test_a_program_that_is_missing_is_named(host: Host) -> None:
    failed = run_module(host.collections, "host_info", program="ovs-hotswap-that-is-not-there")
    assert failed["failed"]
    assert "ovs-hotswap-that-is-not-there is not installed" in failed["msg"]


def test_release_is_made_and_removed_once(host: Host, tmp_path: Path) -> None:
    host.write()
    assert not host("release", name="gone", state="absent")["changed"]
    tried = host("release", name="custom", from_directory=str(tmp_path), check=True)
    assert tried["changed"]
    assert tried["diff"] == {"before": "host\n", "after": "custom\nhost\n"}
    failed = host("release", name="custom", from_directory=str(tmp_path))
    assert failed["rc"] == 11
    assert "is missing" in failed["msg"]


def test_release_adopts_and_removes(host: Host) -> None:
    """An entry as `release add` writes one; the program in it does not run, so that it is only listed and removed."""
    host.write()
    entry = host.state / "releases" / "old"
    entry.mkdir(parents=True)
    (entry / "release.json").write_text(json.dumps({"adopted": str(host.etc), "created": 1.0}))
    assert host("release", name="old", state="absent", check=True)["changed"]
    assert entry.exists()
    assert host("release", name="old", state="absent")["changed"]
    assert not entry.exists()
    assert not host("release", name="old", state="absent")["changed"]


@pytest.mark.parametrize("check", [True, False])
def test_upgrade_fails_with_the_program_s_document(host: Host, check: bool) -> None:
    host.write()
    failed = host("upgrade", release="host", check=check)
    assert failed["failed"]
    assert "broker start" in failed["msg"]
    assert failed["rc"] == (4 if check else 7)
    assert failed["outcome"] == ("precheck_failed" if check else "failed")


def test_rollback_without_an_upgrade_changes_nothing(host: Host) -> None:
    host.write()
    done = host("rollback", release="trixie")
    assert (done["changed"], done["report"]) == (False, None)


def test_rollback_does_not_take_what_is_unknown_for_nothing_to_undo(host: Host) -> None:
    host.write()
    journal = host.state / "journal" / "current.jsonl"
    journal.parent.mkdir()
    journal.write_text("this is no journal\n")
    failed = host("rollback", release="trixie")
    assert (failed["failed"], failed["outcome"]) == (True, "unknown")
    assert "it cannot be known whether this host runs trixie" in failed["msg"]


def test_a_configuration_that_is_not_valid_can_be_replaced(host: Host) -> None:
    host.write()
    host.config.write_text("broken")
    assert host("config", content=host.text)["changed"]


def test_watch_tells_that_nothing_watches(host: Host) -> None:
    host.write()
    assert host("watch")["watch"]["running"] is False
    failed = host("watch", wait=0.1, every=0.05)
    assert "no standby is ready" in failed["problem"]
    failed = host("watch", soak=0.1)
    assert "the watchdog does not run" in failed["msg"]


def test_watch_accepts_a_host_without_a_watchdog(host: Host) -> None:
    host.write()
    host.config.write_text(host.text.replace('# mode = "automatic"', 'mode = "off"'))
    done = host("watch", wait=0.1, soak=0.1, every=0.05)
    assert done["watch"]["mode"] == "off"


def test_an_interrupted_upgrade_is_not_touched(host: Host) -> None:
    host.write()
    parameters: dict[str, Any] = {"old": "a", "new": "b", "release": "trixie", "previous": "host", "before": None,
                                  "keep_old": False, "leave_out": []}  # fmt: skip
    with Journals(host.state, System()).begin("upgrade", upgrade_plan().shape, parameters=parameters, versions={}):
        pass
    seen = host("host_info")["status"]["unfinished"]
    assert seen["parameters"]["release"] == "trixie"
    for wanted in ({"content": host.text + "# new\n"}, {"overlay": OVERLAY + "# new\n"}):
        for check in (True, False):
            refused = host("config", check=check, **wanted)
            assert refused["outcome"] == "busy", "no file is replaced under an upgrade"
    assert not host("config", content=host.text)["changed"]
    assert (host.config.read_text(), host.overlay.read_text()) == (host.text, OVERLAY)
    tried = host("upgrade", release="trixie", unfinished="rollback", check=True)
    assert tried["changed"]
    assert host("rollback", release="trixie", check=True)["changed"]
    assert host("host_info")["status"]["unfinished"] == seen

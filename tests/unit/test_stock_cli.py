"""``check`` and ``config init`` on a host that others program, as far as no switch has to run for it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.cli import main, stock_cmd
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output, plain
from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError, HostError, PrecheckFailed
from ovs_hotswap.model import Finding
from ovs_hotswap.stock.facts import Facts
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.stock_checks import StockReport, Terms, judge
from tests.support.json_schema import faults
from tests.unit.stock_sample import DATABASE, HEALTHY, LOG
from tools import schema

Run = Callable[..., tuple[int, str, str]]
CLONE = """program = "clone"
[stock]
run_dir = "{directory}/openvswitch"
[instances.a]
pmd_cores = [0]
port_devices = {{ up = "x" }}
[instances.b]
pmd_cores = [0]
port_devices = {{ up = "y" }}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command line; returns its exit code, output and errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        code = main.run(["--config", str(tmp_path / "config.toml"), *arguments], App(Output(out=out, err=err)))
        return code, out.getvalue(), err.getvalue()

    (tmp_path / "config.toml").write_text(CLONE.format(directory=tmp_path))
    return command


def test_the_document_is_as_its_schema_says() -> None:
    report = StockReport.of(HEALTHY, judge(HEALTHY, Terms(devices=["up"])))
    document: Any = json.loads(json.dumps(asdict(report), default=plain))
    published = json.loads((schema.DIRECTORY / "check-clone.schema.json").read_text())
    assert faults(published, document) == []
    assert faults(published, {**document, "vms": [{"name": "vm1"}]}) != []
    document["switch"]["other_config"]["dpdk-init"] = True
    assert faults(published, document) == ["document.switch.other_config.dpdk-init: True is not of type string"]


def test_a_switch_that_does_not_run_is_refused(run: Run) -> None:
    code, text, err = run("check")
    assert code == PrecheckFailed.exit_code
    assert "no ovs-vswitchd runs" in text
    assert "db.sock: get_schema: cannot connect" in err
    code, text, err = run("check", "--json")
    assert (code, err) == (PrecheckFailed.exit_code, "")
    document = json.loads(text)
    assert document["ready"] is False
    assert document["switch"]["vswitchd_pid"] is None
    assert document["vms"] == []


def test_what_is_found_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(config: Config, system: System, left_out: tuple[str, ...]) -> tuple[Facts, list[Finding]]:
        return HEALTHY, judge(HEALTHY, Terms(None, ["up"], left_out, DATABASE, LOG))

    monkeypatch.setattr(stock_cmd, "examine", found)
    code, text, _ = run("check")
    assert code == 0
    assert "OVS 3.1.3, DPDK 22.11.9, process 100" in text
    assert "virtual function: 0000:03:02.0" in text
    assert "vm1  br-int  client  1       300   7.2      /run/vm1.qmp  1" in text
    assert "FAIL" not in text
    assert "WARN" not in text


def test_other_hosts_need_a_release(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CLONE.format(directory=tmp_path).replace("clone", "overlay"))
    code, _, err = run("check")
    assert code == ConfigError.exit_code, "an overlay host has an uplink and an intent"
    assert "overlay" in err


def test_a_configuration_is_not_replaced_unless_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "config.toml").read_text()
    code, _, err = run("config", "init")
    assert code == ConfigError.exit_code
    assert "exists already" in err
    code, _, err = run("config", "init", "--force", "--stock-run-dir", str(tmp_path / "openvswitch"))
    assert code == ConfigError.exit_code
    assert "the distribution's switch does not run" in err
    assert (tmp_path / "config.toml").read_text() == before


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--pmd-cores", "many"], "no list of cores"), (["--second-device", "up"], "must be PORT=DEVARGS")],
)
def test_options_of_another_shape(run: Run, options: list[str], text: str) -> None:
    code, _, err = run("config", "init", "--force", *options)
    assert code == 2
    assert text in err


def test_a_configuration_is_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(paths: object, system: object) -> Facts:
        return HEALTHY

    monkeypatch.setattr(stock_cmd, "survey", found)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    (tmp_path / "config.toml").unlink()
    code, text, err = run("config", "init", "--second-device", "up=0000:03:02.1", "--json")
    assert (code, err) == (0, "")
    written = (tmp_path / "config.toml").read_text()
    assert json.loads(text) == {"file": str(tmp_path / "config.toml"), "config": written}
    assert 'port_devices = { "up" = "0000:03:02.1" }' in written
    assert run("config", "check")[0] == 0
    code, _, err = run("config", "init", "--force", "--second-device", "up=0000:03:02.0")
    assert code == ConfigError.exit_code, "the first instance has this device"
    assert "names the device of" in err
    assert (tmp_path / "config.toml").read_text() == written
    monkeypatch.setattr(System, "write_atomic", _refused)
    assert run("config", "init", "--force")[0] == HostError.exit_code


def _refused(self: System, path: Path, text: str) -> None:
    raise HostError(f"{path}: Read-only file system")

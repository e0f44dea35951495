"""What others have programmed is given back to an instance that is started again, and only to the right one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.clone import database
from ovs_hotswap.clone.dumps import Pipeline, parse_flows
from ovs_hotswap.clone.kept_pipelines import from_json, to_json
from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.host import kept_flows
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import RESTORE_WAIT
from ovs_hotswap.switch.paths import InstanceRecord
from ovs_hotswap.system import System
from tests.unit.test_kept_pipelines import rows

FLOW = " cookie=0x7, table=0, priority=9,ip actions=drop\n"
PIPELINE = Pipeline(version=15, flows=parse_flows(FLOW))


class Bed:
    """``sent``: the bundles that bridges were sent. ``done``: what became of the switch, in order."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sides = {side: {"pmd_cores": [0], "port_devices": {"dpdk0": side}} for side in Side}
        self.config = Config.model_validate({
            "program": "clone", "run_dir": str(directory / "run"), "state_dir": str(directory / "state"),
            "instances": sides,
        })  # fmt: skip
        self.host = Host(self.config, System())
        self.sent: dict[str, tuple[str, ...]] = {}
        self.done: list[str] = []
        self.refusing: set[str] = set()
        bed = self

        class Bridge:
            def __init__(self, _system: System, _paths: object, name: str) -> None:
                self.name = name

            def read(self, version: int | None = None) -> Pipeline:
                return PIPELINE if version is None else Pipeline(version=version)

            def send(self, commands: Any) -> None:
                if self.name in bed.refusing:
                    raise SwitchError("it refuses")
                bed.sent[self.name] = commands.bundle

        class Database:
            def __enter__(self) -> Database:
                return self

            def __exit__(self, *_: object) -> None: ...

            def set_other_config(self, values: dict[str, str | None]) -> None:
                bed.done += [f"{key} {value}" for key, value in values.items()]

        monkeypatch.setattr(kept_flows, "BridgePipeline", Bridge)
        monkeypatch.setattr(database, "read", lambda _paths: type("Contents", (), {"rows": rows(br1="c")}))
        monkeypatch.setattr(type(self.host.instances[Side.B]), "database", lambda *_, **__: Database())
        monkeypatch.setattr(
            type(self.host.cloning.well_known), "lead_to", lambda *_: self.done.append("well-known paths")
        )

    @property
    def file(self) -> Path:
        return self.config.flows_file(Side.B)

    def started(self, at: float) -> None:
        """Instance b is another process from now on."""
        path = self.host.instances[Side.B].paths.record
        path.parent.mkdir(parents=True, exist_ok=True)
        record = InstanceRecord(release="r", root=None, ovs_version="3.5", dpdk_version="24.11", started=at, starter=1)
        path.write_text(record.model_dump_json())


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(tmp_path, monkeypatch)


def test_flows_come_back_before_the_switch_forwards_and_programs_find_it(bed: Bed) -> None:
    bed.started(1.0)
    kept_flows.keep(bed.host, Side.B)
    kept_flows.drop_others(bed.host, Side.B)
    bed.started(2.0)
    assert kept_flows.go_on(bed.host, Side.B) == []
    assert {name: len(bundle) for name, bundle in bed.sent.items()} == {"br0": 1}
    assert bed.done == [f"{RESTORE_WAIT} None", "well-known paths"]
    assert from_json(bed.file.read_bytes())[0] == 2.0, "it may end again before they are kept the next time"


def test_flows_of_an_earlier_process_are_not_given_back(bed: Bed) -> None:
    """An upgrade has ended that process in the meantime, so the flows are as old as it is."""
    bed.started(1.0)
    kept_flows.keep(bed.host, Side.B)
    bed.started(2.0)
    kept_flows.drop_others(bed.host, Side.B)
    assert not bed.file.exists()
    (lacking,) = kept_flows.go_on(bed.host, Side.B)
    assert "br0" in lacking
    assert "not kept" in lacking
    assert bed.done == [f"{RESTORE_WAIT} None", "well-known paths"], "it forwards nevertheless"


def test_a_start_that_failed_leaves_them_for_the_next_one(bed: Bed) -> None:
    bed.started(1.0)
    kept_flows.keep(bed.host, Side.B)
    bed.host.instances[Side.B].paths.record.unlink()
    kept_flows.drop_others(bed.host, Side.B)
    assert bed.file.exists()


def test_a_bridge_that_refuses_keeps_no_other_thing_from_being_done(bed: Bed) -> None:
    bed.started(1.0)
    kept_flows.keep(bed.host, Side.B)
    bed.refusing.add("br0")
    (lacking,) = kept_flows.go_on(bed.host, Side.B)
    assert lacking == "bridge br0 does not have the flows that it had: it refuses"
    assert bed.done == [f"{RESTORE_WAIT} None", "well-known paths"]


def test_the_age_of_flows_is_told(bed: Bed) -> None:
    """Without a watchdog they are those of the last upgrade."""
    bed.started(1.0)
    kept_flows.keep(bed.host, Side.B)
    then = bed.file.stat().st_mtime - 3600
    os.utime(bed.file, (then, then))
    (lacking,) = kept_flows.go_on(bed.host, Side.B)
    assert "60 minutes ago" in lacking


def test_a_damaged_file_is_told_and_dropped(bed: Bed) -> None:
    bed.started(1.0)
    bed.file.write_text("{")
    (lacking,) = kept_flows.go_on(bed.host, Side.B)
    assert str(bed.file) in lacking
    kept_flows.drop_others(bed.host, Side.B)
    assert not bed.file.exists()


def test_what_was_kept_is_what_is_given_back(bed: Bed) -> None:
    bed.started(7.0)
    kept_flows.keep(bed.host, Side.B)
    assert bed.file.read_bytes() == to_json(7.0, {"br0": PIPELINE})

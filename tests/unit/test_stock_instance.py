"""The distribution's switch as one of the two instances: real processes in its place, real files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker.vm_source import SwitchProcesses
from ovs_hotswap.config import Config, Program
from ovs_hotswap.controllers.well_known import WellKnown
from ovs_hotswap.errors import StateUnknown, SwitchError
from ovs_hotswap.model import Life, Release, Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.paths import InstancePaths, read_stock, recorded_stock
from ovs_hotswap.switch.stock_instance import StockInstance, forget, instance_class, recognise
from ovs_hotswap.system import System

RUNNING = Release("host", None, "3.1.0", "22.11.1")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "openvswitch").mkdir()
    instance = {"pmd_cores": [0], "uplink_devargs": "0000:03:02.0"}
    return Config.model_validate({
        "program": "clone", "instances": {"a": instance, "b": instance}, "state_dir": str(tmp_path / "state"),
        "run_dir": f"/tmp/ovsh-{tmp_path.name[-20:]}", "stock": {"run_dir": str(tmp_path / "openvswitch")},
    })  # fmt: skip


@pytest.fixture
def daemons(config: Config) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two processes whose pids are in the pid files of the distribution's daemons."""
    started = {name: subprocess.Popen(["sleep", "600"]) for name in ("ovs-vswitchd", "ovsdb-server")}
    for name, process in started.items():
        (config.stock.run_dir / f"{name}.pid").write_text(f"{process.pid}\n")
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def test_without_a_record_both_instances_are_ours(config: Config) -> None:
    assert {instance_class(config, side) for side in Side} == {Instance}
    assert InstancePaths.of(config, Side.A).run_dir == config.side_dir(Side.A)


def test_a_switch_that_does_not_run_is_not_recognised(config: Config) -> None:
    with pytest.raises(SwitchError, match="distribution's ovs-vswitchd does not run"):
        recognise(config, System(), Side.A, RUNNING)
    assert read_stock(config) is None


def test_a_running_switch_is_an_instance_with_its_own_files(
    config: Config, daemons: dict[str, subprocess.Popen[bytes]]
) -> None:
    recognise(config, System(), Side.A, RUNNING)
    assert [instance_class(config, side) for side in Side] == [StockInstance, Instance]
    instance = StockInstance(config, Side.A, System())
    assert (instance.pid(), instance.database_pid()) == (daemons["ovs-vswitchd"].pid, daemons["ovsdb-server"].pid)
    assert instance.release() == RUNNING
    assert instance.life() is Life.RUNS
    assert instance.paths.vswitchd_ctl == config.stock.run_dir / f"ovs-vswitchd.{daemons['ovs-vswitchd'].pid}.ctl"
    assert instance.paths.netns == ""
    assert InstancePaths.of(config, Side.B).run_dir == config.side_dir(Side.B)


def test_its_files_have_their_second_names_as_soon_as_there_are_any(
    config: Config, daemons: dict[str, subprocess.Popen[bytes]]
) -> None:
    recognise(config, System(), Side.A, RUNNING)
    (config.stock.run_dir / "db.sock").touch()
    WellKnown(config.stock.run_dir, config.stock.kept_dir).keep()
    paths = InstancePaths.of(config, Side.A)
    assert paths.db_socket == config.stock.kept_dir / "db.sock"
    assert paths.vswitchd_pid.read_text() == f"{daemons['ovs-vswitchd'].pid}\n"


def test_it_is_never_started(config: Config, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    recognise(config, System(), Side.A, RUNNING)
    with pytest.raises(SwitchError, match="does not start"):
        StockInstance(config, Side.A, System()).start(RUNNING)


def test_it_is_ended_by_a_signal_and_is_no_instance_any_longer(
    config: Config, daemons: dict[str, subprocess.Popen[bytes]]
) -> None:
    recognise(config, System(), Side.A, RUNNING)
    StockInstance(config, Side.A, System()).stop()
    assert not any(System().alive(process.pid) for process in daemons.values())
    assert read_stock(config) is None
    assert not config.side_dir(Side.A).exists()
    assert len(list(config.stock.run_dir.iterdir())) == 2  # what lies at the well-known paths is not ours to remove
    forget(config)  # it may be repeated


def test_another_process_with_its_pid_is_not_taken_for_it(
    config: Config, daemons: dict[str, subprocess.Popen[bytes]]
) -> None:
    found = recognise(config, System(), Side.A, RUNNING)
    other = found.model_copy(update={"born": (found.born or 0) + 1, "ovsdb_born": (found.ovsdb_born or 0) + 1})
    config.stock_file.write_text(other.model_dump_json())
    instance = StockInstance(config, Side.A, System())
    assert instance.pid() is None
    assert instance.database_pid() is None
    assert instance.life() is Life.DEAD
    instance.kill()
    assert daemons["ovs-vswitchd"].poll() is None


@pytest.fixture
def restarted(config: Config, daemons: dict[str, subprocess.Popen[bytes]]) -> Iterator[dict[str, int]]:
    """The pids of daemons that the distribution has started after those died which were an instance."""
    recognise(config, System(), Side.A, RUNNING)
    started = {}
    for name, died in daemons.items():
        died.kill()
        died.wait()
        started[name] = subprocess.Popen([name, "600"], executable="/bin/sleep")
        (config.stock.run_dir / f"{name}.pid").write_text(f"{started[name].pid}\n")
    yield {name: each.pid for name, each in started.items()}
    for process in started.values():
        process.kill()
        process.wait()


def test_daemons_that_were_started_again_are_the_instance(config: Config, restarted: dict[str, int]) -> None:
    instance = StockInstance(config, Side.A, System())
    assert (instance.pid(), instance.database_pid()) == (restarted["ovs-vswitchd"], restarted["ovsdb-server"])
    assert instance.life() is Life.RUNS
    assert instance.paths.vswitchd_ctl.name == f"ovs-vswitchd.{restarted['ovs-vswitchd']}.ctl"
    assert SwitchProcesses(config, System()).found()[Side.A].pid == restarted["ovs-vswitchd"]
    assert recorded_stock(config) != read_stock(config)
    recognise(config, System(), Side.A, RUNNING)
    assert recorded_stock(config) == read_stock(config)


def test_a_well_known_path_that_leads_to_the_other_instance_names_no_successor(
    config: Config, restarted: dict[str, int]
) -> None:
    for name in restarted:
        path = config.stock.run_dir / f"{name}.pid"
        path.symlink_to(path.rename(path.with_name(f"other-{name}")))
    assert StockInstance(config, Side.A, System()).pid() is None
    assert read_stock(config) == recorded_stock(config)


def test_second_names_of_daemons_that_died_are_not_used(
    config: Config, daemons: dict[str, subprocess.Popen[bytes]]
) -> None:
    recognise(config, System(), Side.A, RUNNING)
    own = config.stock.run_dir / "db.sock"
    own.touch()
    names = WellKnown(config.stock.run_dir, config.stock.kept_dir)
    names.keep()
    own.unlink()
    own.touch()
    assert InstancePaths.of(config, Side.A).run_dir == config.stock.run_dir
    names.keep()
    assert InstancePaths.of(config, Side.A).run_dir == config.stock.kept_dir
    own.unlink()
    own.symlink_to("b/db.sock")
    assert InstancePaths.of(config, Side.A).run_dir == config.stock.kept_dir


def test_a_damaged_record_is_not_taken_for_none(config: Config) -> None:
    config.stock_file.parent.mkdir(parents=True, exist_ok=True)
    config.stock_file.write_text("{")
    with pytest.raises(StateUnknown, match=str(config.stock_file)):
        InstancePaths.of(config, Side.B)


def test_only_a_host_that_others_program_has_one(config: Config, daemons: dict[str, subprocess.Popen[bytes]]) -> None:
    recognise(config, System(), Side.A, RUNNING)
    assert read_stock(config.model_copy(update={"program": Program.OVERLAY})) is None

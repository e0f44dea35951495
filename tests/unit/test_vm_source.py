"""Which VMs a broker serves, and whose switch connects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_source import IntentSource, PortsSource, SwitchProcesses, vm_source
from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process, start_time
from ovs_hotswap.switch.paths import StockRecord
from ovs_hotswap.system import System
from ovs_hotswap.vm_ports import VmPort, write_ports


def config(tmp_path: Path, program: str = "clone") -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "net_null0"}
    made = Config.model_validate(
        {"program": program, "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
         "state_dir": str(tmp_path), "instances": {"a": side, "b": side}}, strict=False)  # fmt: skip
    made.run_dir.mkdir(exist_ok=True)
    return made


def ports(settings: Config, *names: str, **more: int) -> None:
    each = tuple(VmPort(name=name, bridge="br-int", ofport=1, socket=Path(f"/vhost/{name}"), **more) for name in names)
    write_ports(settings, System(), each)


def test_the_program_says_where_the_vms_come_from(tmp_path: Path) -> None:
    assert isinstance(vm_source(Settings(config(tmp_path))), PortsSource)
    assert isinstance(vm_source(Settings(config(tmp_path, "overlay"))), IntentSource)


def test_the_file_of_ports_is_followed(tmp_path: Path) -> None:
    settings = config(tmp_path)
    source = PortsSource(Settings(settings))
    assert source.read() == frozenset()
    ports(settings, "one", "two", queues=4, mtu=9000)
    assert source.read() == {"one", "two"}
    assert source.limits("one") == (4, 9000)
    shared = source.shared("one")
    assert shared is not None
    assert (shared.path, shared.qemu) == (Path("/vhost/one"), Path("/vhost/one.qemu"))
    assert source.sockets("one") == {Side.A: Path("/vhost/one")}
    ports(settings, "two")
    assert source.read() == {"two"}
    assert source.limits("two") == (1, 1500)
    assert source.all_limits() == [(1, 1500)]
    assert source.limits("one") == (None, None)
    assert source.shared("one") is shared  # it is still to be given back
    assert source.shared("three") is None


def test_the_first_file_of_ports_of_a_host_makes_its_directory(tmp_path: Path) -> None:
    settings = config(tmp_path).model_copy(update={"state_dir": tmp_path / "not" / "there"})
    ports(settings, "one")
    assert PortsSource(Settings(settings)).read() == {"one"}


def test_a_file_of_ports_that_cannot_be_read_hinders_no_successor(tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.ports_file.write_text("{")
    source = PortsSource(Settings(settings))
    with pytest.raises(ConfigError):
        source.read()


def test_the_switch_of_the_distribution_is_known_by_its_record(tmp_path: Path) -> None:
    """Its pid file may name the other instance."""
    settings = config(tmp_path)
    switches = SwitchProcesses(settings, System())
    own = Process(os.getpid(), start_time(os.getpid()))
    one, other = socket.socketpair()
    with one, other:
        assert switches.side_of(one) is None
        record = StockRecord(side=Side.B, pid=own.pid, born=own.born, ovsdb_pid=1, ovsdb_born=None)
        settings.stock_file.write_text(record.model_dump_json())
        assert switches.found() == {Side.B: own}
        assert switches.side_of(one) is Side.B
        settings.stock_file.write_text(record.model_copy(update={"born": 1}).model_dump_json())
        assert switches.side_of(one) is None  # another process with its pid
        settings.stock_file.write_text("{")
        assert switches.side_of(one) is None
        with pytest.raises(StateUnknown):
            switches.found()


def test_an_own_instance_is_known_by_its_pid_file_and_command_line(tmp_path: Path) -> None:
    settings = config(tmp_path)
    pid_file = settings.side_dir(Side.A) / "ovs-vswitchd.pid"
    pid_file.parent.mkdir()
    pid_file.write_text(f"{os.getpid()}\n")  # lives, and was not started with it
    switches = SwitchProcesses(settings, System())
    assert switches.found() == {}
    with subprocess.Popen([sys.executable, "-c", "input()", f"--pidfile={pid_file}"], stdin=subprocess.PIPE) as child:
        pid_file.write_text(f"{child.pid}\n")
        assert switches.found() == {Side.A: Process(child.pid, start_time(child.pid))}
        child.kill()
    assert switches.found() == {}


def test_the_pid_files_that_may_be_locked(tmp_path: Path) -> None:
    names = [path.parent.name for path in SwitchProcesses(config(tmp_path), System()).pid_files]
    assert names == ["a", "b", "openvswitch"]
    assert [path.parent.name for path in SwitchProcesses(config(tmp_path, "overlay"), System()).pid_files] == ["a", "b"]

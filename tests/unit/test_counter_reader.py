"""Asking a switch for its counters, against sockets that answer, refuse or stay silent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.counters.reading import PARTS, CounterReader
from ovs_hotswap.counters.values import FlowCount
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.metrics.look import HostReader
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import NoAnswer
from tests.unit.fake_system import FakeSystem
from tests.unit.test_counters import COVERAGE, PMDS, PORTS, row

Answer = Callable[[str, list[Any]], Any]
POOL = """\
mempool <ovs1ec5524300021580262144>@0x119004f2c0
  socket_id=0
  populated_size=16384
  total_obj_size=3008
  total_cache_count=0
  common_pool_count=16000
"""
FLOWS = f"""\
 cookie={cookie(Kind.DROP_SPOOFED, vni=5, ofport=10):#x}, duration=1s, table=0, n_packets=3, n_bytes=180, priority=50 actions=drop
 cookie=0x77, duration=1s, table=0, n_packets=9, n_bytes=900, priority=0 actions=NORMAL
"""  # noqa: E501
TOLD = {
    "coverage/show": COVERAGE, "dpif-netdev/pmd-stats-show": PMDS, "netdev-dpdk/get-mempool-info": POOL,
    "dpctl/ct-get-nconns": "12\n", "dpctl/ct-get-maxconns": "3000000\n", "dpctl/ct-get-limits": "default limit=10\n",
}  # fmt: skip


class Daemon:
    """Answers JSON-RPC requests at a socket, each connection in turn, until it is closed."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.asked: list[tuple[str, list[Any]]] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = json.loads(connection.recv(1 << 16))
                self.asked.append((request["method"], request["params"]))
                answer = self._answer(request["method"], request["params"])
                fault = answer if isinstance(answer, Exception) else None
                document = {"id": request["id"], "result": None if fault else answer, "error": str(fault or "") or None}
                connection.sendall(json.dumps(document).encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@dataclasses.dataclass
class Bed:
    paths: InstancePaths
    system: FakeSystem
    told: dict[str, Any]
    rows: list[dict[str, Any]]
    ctl: Daemon
    database: Daemon

    @property
    def reader(self) -> CounterReader:
        return CounterReader(self.paths, self.system, "br0", timeout=5)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    places: dict[str, Any] = {field.name: tmp_path / field.name for field in dataclasses.fields(InstancePaths)}
    paths = InstancePaths(**places | {"run_dir": tmp_path, "netns": ""})
    told: dict[str, Any] = dict(TOLD)
    rows = [row(), row(name="uplink", type="dpdk", ofport=1)]

    def command(method: str, params: list[Any]) -> Any:
        return told.get(method, RuntimeError(f'"{method}" is not a valid command'))

    def transact(method: str, params: list[Any]) -> Any:
        wheres = [operation["where"] for operation in params[1:]]
        return [{"rows": [each for each in rows if not where or each["name"] == where[0][2]]} for where in wheres]

    def run(argv: Sequence[str]) -> tuple[int, str]:
        return 0, PORTS if "dump-ports" in argv else FLOWS

    daemons = Daemon(paths.vswitchd_ctl, command), Daemon(paths.db_socket, transact)
    system = FakeSystem(run)
    paths.vswitchd_pid.write_text(f"{os.getpid()}\n")
    system.processes[os.getpid()] = ["ovs-vswitchd"]
    yield Bed(paths, system, told, rows, *daemons)
    for daemon in daemons:
        daemon.close()


def test_a_look_has_every_part(bed: Bed) -> None:
    look = bed.reader.look()
    assert look.unknown == {}
    assert look.process == (os.getpid(), start_time(os.getpid()))
    assert sorted(look.ports or {}) == ["uplink", "vm1"]
    assert (look.coverage or {})["drop_action_of_pipeline"] == 10124
    assert [thread.core for thread in look.pmds or ()] == [1, None]
    assert [pool.in_use for pool in look.pools or ()] == [384]
    assert look.conntrack is not None
    assert (look.conntrack.connections, look.conntrack.default_limit) == (12, 10)
    assert look.flows == (FlowCount("drop_spoofed", 5, 10, 3, 180),)


def test_only_the_parts_that_are_wanted_are_asked_for(bed: Bed) -> None:
    look = bed.reader.look(["coverage"])
    assert (look.ports, look.unknown) == (None, {})
    assert [method for method, _ in bed.ctl.asked] == ["coverage/show"]
    assert bed.database.asked == []


def test_ports_of_some_names_only(bed: Bed) -> None:
    assert list(bed.reader.ports(["vm1", "gone"])) == ["vm1"]


def test_the_statistics_of_this_moment(bed: Bed) -> None:
    assert bed.reader.present_ports()[10]["ovs_tx_failure_drops"] == 7


def test_a_part_that_is_refused_is_unknown_with_the_reason_and_keeps_no_other_part_from_being_read(bed: Bed) -> None:
    bed.told.pop("dpctl/ct-get-nconns")
    look = bed.reader.look()
    assert look.conntrack is None
    assert look.unknown.keys() == {"conntrack"}
    assert "not a valid command" in look.unknown["conntrack"]
    assert look.coverage is not None


@pytest.mark.parametrize(
    ("command", "text", "part"),
    [
        ("coverage/show", "", "coverage"),
        ("dpctl/ct-get-nconns", "many\n", "conntrack"),
        ("netdev-dpdk/get-mempool-info", POOL.replace("socket_id", "socket"), "pools"),
    ],
)
def test_an_answer_of_another_form_is_unknown(bed: Bed, command: str, text: str, part: str) -> None:
    bed.told[command] = text
    assert "not what this version expects" in bed.reader.look().unknown[part]


def test_an_interface_of_another_form_is_unknown(bed: Bed) -> None:
    del bed.rows[0]["statistics"]
    with pytest.raises(SwitchError, match="Interface: not what this version expects"):
        bed.reader.ports()


def test_a_switch_that_does_not_run_is_not_asked(bed: Bed) -> None:
    bed.system.processes.clear()
    look = bed.reader.look()
    assert look.process is None
    assert look.unknown.keys() == set(PARTS)
    assert bed.ctl.asked == []


def test_a_silent_switch_is_given_up_on_after_the_timeout(bed: Bed) -> None:
    bed.ctl.close()
    with socket.socket(socket.AF_UNIX) as silent:
        bed.paths.vswitchd_ctl.unlink()
        silent.bind(str(bed.paths.vswitchd_ctl))
        silent.listen(1)
        with pytest.raises(NoAnswer, match="coverage/show: no answer within"):
            CounterReader(bed.paths, bed.system, "br0", timeout=0.05).coverage()
        look = CounterReader(bed.paths, bed.system, "br0", timeout=0.05).look()
        assert look.ports is not None
        assert set(look.unknown) == set(PARTS) - {"ports"}
        assert len(set(look.unknown.values())) == 1, "it was asked once"
    bed.paths.vswitchd_ctl.unlink()


@pytest.mark.parametrize("driver", ["none", "exclusive"])
def test_a_host_whose_one_instance_runs_is_looked_at_for_its_metrics(bed: Bed, tmp_path: Path, driver: str) -> None:
    """With the driver `exclusive`, the side that has the uplink's port has the uplink."""
    tables = {name: {"pmd_cores": [0], "uplink_devargs": name} for name in "ab"}
    config = Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"), "instances": tables,
        "state_dir": str(tmp_path / "state"), "uplink": {"driver": driver},
    })  # fmt: skip
    config.overlay.write_text('[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n')
    there = InstancePaths.of(config, Side.A)
    there.run_dir.mkdir(parents=True)
    for name in ("vswitchd_ctl", "vswitchd_pid", "db_socket"):
        getattr(there, name).symlink_to(getattr(bed.paths, name))
    bed.rows[1]["ofport"] = 1
    look = HostReader(config, bed.system).look()
    assert {part for part, _ in look.unknown} == {"vms", "broker"}
    assert look.uplink is (Side.A if driver == "exclusive" else None)
    assert look.counters[Side.A].flows == (FlowCount("drop_spoofed", 5, 10, 3, 180),)
    assert look.counters[Side.A].conntrack is None, "the overlay tracks no connections"
    assert look.counters[Side.B].process is None

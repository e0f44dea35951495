"""The watchdog's part in the operator's settings, with two databases that answer as ovsdb-server does."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_uplink import UplinkConfig
from ovs_hotswap.errors import BusyError, SwitchError
from ovs_hotswap.host import saved_settings, settings_transfer, standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance, stop_for_good
from ovs_hotswap.model import Life, Release, Severity, Side
from ovs_hotswap.switch.memory import Uplink
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import NoAnswer, hangs, quick_call, transact
from ovs_hotswap.watchdog.settings_follower import SettingsWatch
from tests.unit.fake_system import FakeSystem
from tests.unit.test_settings import NAMES, SCHEMA, Database


class Server:
    """``changes``: the operations that were to change something, of each transaction."""

    def __init__(self, path: Path, database: Database) -> None:
        self.database = database
        self.changes: list[list[dict[str, Any]]] = []
        self.answer: bytes | None = None
        path.parent.mkdir(parents=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                with caller:
                    request = json.loads(caller.recv(1 << 20))
                    caller.sendall(
                        self.answer or json.dumps({"id": 0, "error": None, "result": self._result(request)}).encode()
                    )

    def _result(self, request: dict[str, Any]) -> Any:
        if request["method"] == "get_schema":
            return SCHEMA
        if request["method"] == "echo":
            return request["params"]
        operations = request["params"][1:]
        if any(each["op"] != "select" for each in operations):
            self.changes.append(operations)
            return [{"count": 1} for _ in operations]
        return [{"rows": [self._row(each["table"], uuid, row) for uuid, row in self._rows(each["table"])]}
                for each in operations]  # fmt: skip

    def _rows(self, table: str) -> Any:
        return self.database.rows[table].items()

    def _row(self, table: str, uuid: str, row: dict[str, Any]) -> dict[str, Any]:
        kinds = SCHEMA["tables"][table]["columns"]
        return {"_uuid": ["uuid", uuid], **{name: encode(value, kinds[name]["type"]) for name, value in row.items()}}


def encode(value: Any, kind: Any) -> Any:
    base = kind.get("value", kind.get("key")) if isinstance(kind, dict) else kind
    refers = isinstance(base, dict) and "refTable" in base
    if isinstance(value, dict):
        return ["map", [[key, ["uuid", held] if refers else held] for key, held in value.items()]]
    if isinstance(value, list):
        return ["set", [["uuid", each] if refers else each for each in value]]
    return value


class FakeInstance:
    def __init__(self, config: Config, side: Side, pid: int) -> None:
        self.paths = InstancePaths.of(config, side)
        self._pid = pid

    def pid(self) -> int:
        return self._pid

    def life(self) -> Life:
        return Life.RUNS

    def database_pid(self) -> int | None:
        return None

    def start(self, release: Release) -> None: ...

    def stop(self) -> None: ...

    def release(self) -> Release:
        return Release("host", None, "3.5.0", "24.11")

    @contextlib.contextmanager
    def database(self, *_: Any, **__: Any) -> Iterator[Any]:
        yield type("Database", (), {"wait_ports": lambda *_: None, "interfaces": lambda *_: {}})()


class NoUplink:
    def owner(self) -> Side | None:
        return None


class Bed:
    def __init__(self, directory: Path) -> None:
        instances = {side: {"pmd_cores": [int(side == "b")], "uplink_devargs": f"x{side}"} for side in "ab"}
        places = {
            "overlay": str(directory / "o.toml"),
            "run_dir": str(directory / "r"),
            "state_dir": str(directory / "s"),
        }
        config = Config.model_validate({**places, "instances": instances})
        vms = "".join(f'[[vm]]\nname = "{name}"\nofport = {10 + n}\nmac = "52:54:00:00:00:0{n}"\nvni = 1\n'
                      for n, name in enumerate(NAMES[1:], 1))  # fmt: skip
        config.overlay.write_text(f'[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n{vms}')
        self.system = FakeSystem()
        self.system.processes = {1: ["a"], 2: ["b"]}
        self.host = Host(config, self.system)
        self.host.instances = {side: FakeInstance(config, side, pid) for side, pid in zip(Side, (1, 2), strict=True)}  # type: ignore[misc]
        self.servers = {side: Server(self.host.instances[side].paths.db_socket, Database()) for side in Side}
        record = standby.StandbyRecord(side=Side.B, pid=2, log_level="info", scheduling=None, prepared=True)
        standby.record_path(config).write_text(record.model_dump_json())
        self.watch = SettingsWatch()

    def look(self) -> list[list[dict[str, Any]]]:
        """What the standby is to change, after the next look."""
        self.servers[Side.B].changes.clear()
        self.system.now += 5.0
        self.watch.look(self.host, Side.A)
        return self.servers[Side.B].changes

    def set(self, **columns: Any) -> None:
        self.servers[Side.A].database.set("Interface", "vm1", **columns)


@pytest.fixture
def bed() -> Iterator[Bed]:
    with tempfile.TemporaryDirectory(prefix="ovsh-") as directory:  # socket paths are short
        made = Bed(Path(directory))
        yield made
        for server in made.servers.values():
            server.close()


def test_the_standby_follows_a_change_once(bed: Bed) -> None:
    assert bed.look() == []
    bed.set(ingress_policing_rate=368000)
    ((first, *_),) = bed.look()
    assert (first["table"], first["row"]) == ("Interface", {"ingress_policing_rate": 368000})
    assert bed.look() == []
    assert bed.servers[Side.A].changes == []


def test_what_cannot_be_kept_for_the_next_boot_is_kept_later_and_told_once(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved_settings.path_of(bed.host.config)
    path.mkdir(parents=True)  # so that the file cannot be written
    (path / "inner").touch()
    bed.set(ingress_policing_rate=368000)
    bed.look()
    bed.look()
    assert caplog.text.count("are not kept for the next boot") == 1
    shutil.rmtree(path)
    bed.look()
    assert path.is_file()


def test_it_looks_every_five_seconds(bed: Bed) -> None:
    bed.look()
    bed.set(ingress_policing_rate=1)
    bed.watch.look(bed.host, Side.A)
    assert bed.servers[Side.B].changes == []


def test_nothing_is_changed_while_another_works_on_the_instances(bed: Bed) -> None:
    bed.set(ingress_policing_rate=1)
    with bed.host.lock(), pytest.raises(BusyError):
        bed.look()
    assert bed.servers[Side.B].changes == []
    assert len(bed.look()) == 1


def test_the_operator_s_pmd_sleep_is_in_the_standby_s_record(bed: Bed) -> None:
    root = bed.servers[Side.A].database.rows["Open_vSwitch"]["root"]
    root["other_config"]["pmd-sleep-max"] = "7"
    root["external_ids"]["ovs-hotswap-pmd-sleep"] = "0"
    bed.look()
    record = standby.read_record(bed.host)
    assert record is not None
    assert record.pmd_sleep_us == 7


def test_an_active_instance_that_is_started_again_gets_back_what_it_had(bed: Bed) -> None:
    bed.set(ingress_policing_rate=368000)
    bed.look()
    bed.servers[Side.A].database = Database()
    bed.host.settle_pmd_sleep = lambda *_: None  # type: ignore[method-assign]
    bed.watch.put_back(bed.host, Side.A)
    (change,) = bed.servers[Side.A].changes
    assert change[0]["row"] == {"ingress_policing_rate": 368000}


def test_an_active_instance_that_is_started_again_has_memory_for_the_queues_that_it_gets_back(bed: Bed) -> None:
    """Its database is away by then, so what was kept tells of them: also to its unit, which is another process."""
    uplink = bed.servers[Side.A].database
    uplink.set("Interface", "uplink", options={"dpdk-devargs": "xa", "n_rxq": "4", "n_rxq_desc": "4096"})
    before = bed.host.demand(Side.A).buffers
    bed.look()
    assert bed.host.demand(Side.A).uplinks == (Uplink(4, 4096),)
    assert bed.host.demand(Side.A).buffers == before + 4 * 4096 - 2048


def test_what_was_set_outlives_the_instance_and_a_boot(bed: Bed) -> None:
    bed.set(ingress_policing_rate=368000)
    root = bed.servers[Side.A].database.rows["Open_vSwitch"]["root"]
    root["other_config"]["pmd-sleep-max"] = "7"
    root["external_ids"]["ovs-hotswap-pmd-sleep"] = "0"
    wanted = settings_transfer.own(bed.host, settings_transfer.read(bed.host, Side.A))
    assert [each.severity for each in settings_transfer.unkept(wanted, {})] == [Severity.WARNING]
    bed.look()
    kept_now = saved_settings.read(bed.host.config)
    assert kept_now is not None
    assert settings_transfer.unkept(wanted, kept_now.found) == []
    assert settings_transfer.keep(bed.host, Side.A) == wanted

    bed.servers[Side.B].changes.clear()
    slept: list[tuple[Side, int | None]] = []
    bed.host.settle_pmd_sleep = lambda *given: slept.append(given)  # type: ignore[method-assign]
    bed.host.program = lambda side: None  # type: ignore[method-assign]
    bed.host.record_active(Side.B)
    assert start_instance(bed.host, Side.B, Release("host", None, "3.5.0", "24.11"))
    assert slept == [(Side.B, 7)]
    (change,) = bed.servers[Side.B].changes
    assert change[0]["row"] == {"ingress_policing_rate": 368000}
    bed.servers[Side.A].changes.clear()
    start_instance(bed.host, Side.A, Release("host", None, "3.5.0", "24.11"))
    assert bed.servers[Side.A].changes == [], "a standby is given them by who prepares it"


def test_settings_are_kept_when_an_instance_is_stopped_on_purpose(bed: Bed) -> None:
    bed.set(ingress_policing_rate=368000)
    bed.host.record_active(Side.A)
    bed.host.__dict__["uplink"] = NoUplink()
    stop_for_good(bed.host, Side.A)
    found = saved_settings.read(bed.host.config)
    assert found is not None
    assert list(found.found.values()) == [368000]


def test_settings_that_an_instance_does_not_take_are_set_aside(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    bed.set(ingress_policing_rate=368000)
    bed.look()
    bed.servers[Side.B].answer = b'{"id": 0, "error": null, "result": [{"error": "constraint violation"}]}'
    settings_transfer.give_kept(bed.host, Side.B)
    assert "does not get back its settings, which are in" in caplog.text
    assert saved_settings.read(bed.host.config) is None
    (aside,) = bed.host.config.state_dir.glob("settings.*")
    assert "368000" in aside.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"side": "c", "settings": []}'])
def test_kept_settings_that_cannot_be_read_are_none(bed: Bed, text: str) -> None:
    bed.host.config.state_dir.mkdir()
    saved_settings.path_of(bed.host.config).write_text(text)
    settings_transfer.give_kept(bed.host, Side.B)
    assert bed.servers[Side.B].changes == []


def test_a_database_that_does_not_answer_is_asked_again(bed: Bed) -> None:
    bed.set(ingress_policing_rate=1)
    for answer in (
        b"{",
        b"[1]",
        b'{"id": 0, "result": null, "error": "no"}',
        b'{"id": 0, "error": null, "result": [7]}',
    ):
        bed.servers[Side.A].answer = answer
        assert bed.look() == []
    bed.servers[Side.A].answer = None
    assert len(bed.look()) == 1


def test_what_was_carried_is_compared(bed: Bed) -> None:
    bed.set(ingress_policing_rate=368000)
    wanted = settings_transfer.own(bed.host, settings_transfer.read(bed.host, Side.A))
    (lacking,) = settings_transfer.compared(bed.host, wanted, Side.B)
    assert "interface vm1 ingress_policing_rate" in lacking.text
    (same,) = settings_transfer.compared(bed.host, wanted, Side.A)
    assert same.text == "1 carried over"
    assert settings_transfer.compared(bed.host, {}, Side.B) == []


def test_answers_that_are_none(bed: Bed) -> None:
    path = bed.host.instances[Side.A].paths.db_socket
    bed.servers[
        Side.A
    ].answer = b'{"id": 0, "error": null, "result": [{"error": "constraint violation", "details": "x"}]}'
    with pytest.raises(SwitchError, match="transact: x"):
        transact(path, [], timeout=5)
    with pytest.raises(SwitchError, match="No such file"):
        quick_call(path.with_name("none"), "x", [], timeout=5)
    bed.servers[Side.A].answer = b"{"
    with pytest.raises(SwitchError, match="not an answer"):
        quick_call(path, "x", [], timeout=5)


def test_a_server_that_is_silent_is_no_answer(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/s")
        listener.listen()
        with pytest.raises(NoAnswer, match="x: no answer"):
            quick_call(Path(directory) / "s", "x", [], timeout=0.05)


def test_a_server_that_hangs_is_told_from_one_that_is_not_there() -> None:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-"))
    assert not hangs(directory / "gone")
    server = Server(directory / "well" / "db.sock", Database())
    assert not hangs(directory / "well" / "db.sock")
    server.close()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "hung"))
        listener.listen()
        assert hangs(directory / "hung", timeout=0.05)
    shutil.rmtree(directory)


def test_the_settings_of_an_uplink_that_changes_sides_are_left_out(bed: Bed) -> None:
    """Its options come with it. Nothing of it is taken from the side where it is, either."""
    bed.host.config = bed.host.config.model_copy(update={"uplink": UplinkConfig(driver="exclusive")})
    options = {"dpdk-devargs": "xa", "n_rxq": "4"}
    bed.servers[Side.A].database.set("Interface", "uplink", options=options, ingress_policing_rate=1000)
    wanted = settings_transfer.own(bed.host, settings_transfer.read(bed.host, Side.A))
    change = settings_transfer.put(bed.host, wanted, Side.A, Side.B)
    assert [key for key in change.carried if key.row == "uplink"] == []
    assert (change.gone, change.lost) == ((), ())
    (left,) = settings_transfer.left_behind(["uplink.ingress_policing_rate"], Side.B)
    assert left.severity is Severity.WARNING
    assert settings_transfer.left_behind([], Side.B) == []

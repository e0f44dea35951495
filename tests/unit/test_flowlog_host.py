"""The flow log of a host: its rows come and go in a database, an instance is asked for what it holds before it ends,
a watchdog follows the settings, and reports say what may be missing."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.errors import BusyError, SwitchError
from ovs_hotswap.host import flow_log
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.switch import flow_log as rows
from ovs_hotswap.switch.settings import SETS
from ovs_hotswap.upgrade import steps
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.watchdog.standby_keeper import Keeper
from ovs_hotswap.watchdog.standby_plan import Task
from tests.unit.test_run_report import fail_over, reports, settle
from tests.unit.test_settings import SCHEMA, Database, maybe, refs
from tests.unit.watch_bed import Bed, FakeHost
from tests.unit.watch_bed import config as config

ON = FlowLogConfig(collectors=["192.0.2.20:4739"])


class Server:
    """An ovsdb-server with one bridge and the two tables of the flow log. ``counted``: how often ovs-vswitchd was made
    to look again. ``silent``: it does not answer. ``passed``: how often its look was waited for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "db.sock"
        self.tables: dict[str, dict[str, dict[str, Any]]] = {
            "Bridge": {"b": {"name": "br0"}}, SETS: {}, "IPFIX": {}, "Open_vSwitch": {"r": {}},
        }  # fmt: skip
        self.counted = self.passed = self._made = 0
        self.silent = self.stuck = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                request = json.loads(connection.recv(1 << 16))
                if self.silent:
                    continue
                named: dict[str, str] = {}
                results = [self._act(each, named) for each in request["params"][1:]]
                connection.sendall(json.dumps({"id": request["id"], "result": results, "error": None}).encode())

    def _act(self, operation: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
        table = self.tables[operation["table"]]
        found = {uuid: row for uuid, row in table.items()
                 if all(({"_uuid": ["uuid", uuid]} | row).get(column) == value
                        for column, _, value in operation.get("where", ()))}  # fmt: skip
        match operation["op"]:
            case "select":
                return {"rows": [{"_uuid": ["uuid", uuid], **row} for uuid, row in found.items()]}
            case "insert":
                self._made += 1
                uuid = named[operation.get("uuid-name", "")] = f"u{self._made}"
                table[uuid] = {column: ["uuid", named[value[1]]] if isinstance(value, list) and value[0] == "named-uuid"
                               else value for column, value in operation["row"].items()}  # fmt: skip
                return {"uuid": ["uuid", uuid]}
            case "update":
                for row in found.values():
                    row.update(operation["row"])
            case "mutate":
                self.counted += 1
            case "delete":
                for uuid in found:
                    del table[uuid]
                used = [row["ipfix"][1] for row in self.tables[SETS].values()]
                self.tables["IPFIX"] = {uuid: row for uuid, row in self.tables["IPFIX"].items() if uuid in used}
        return {"count": len(found)}

    @contextlib.contextmanager
    def database(self, _timeout: float, _tables: object) -> Iterator[Server]:
        if self.silent:
            raise SwitchError("no answer")
        yield self

    def wait_pass(self, _seconds: float) -> None:
        assert not self.tables[SETS], "it is to see that the row is gone"
        if self.stuck:
            raise SwitchError("its main thread may be blocked")
        self.passed += 1


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ovsh-") as directory:  # socket paths are short
        made = Server(Path(directory))
        yield made
        made.close()


class OneHost:
    """A host whose instance a has the database of ``server``."""

    def __init__(self, server: Server, flowlog: FlowLogConfig = ON) -> None:
        self.config = SimpleNamespace(flowlog=flowlog, bridge="br0")
        self.alive, self.known, self.busy = True, True, False
        instance = SimpleNamespace(
            pid=lambda: 7 if self.alive else None, release=lambda: object() if self.known else None,
            database=server.database, paths=SimpleNamespace(db_socket=server.path),
        )  # fmt: skip
        self.instances = {Side.A: instance}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        if self.busy:
            raise BusyError("an upgrade is under way")
        yield

    @property
    def host(self) -> Host:
        return cast("Host", self)


def test_rows_are_put_once_followed_and_removed(server: Server) -> None:
    assert rows.put(server.path, "br0", ON)
    ((row,), (ipfix,)) = server.tables[SETS].values(), server.tables["IPFIX"].values()
    assert (row["id"], row["bridge"], ipfix["targets"]) == (COLLECTOR_SET, ["uuid", "b"], rows.TARGET)
    assert server.counted == 1
    assert not rows.put(server.path, "br0", ON)
    assert not rows.lacks(server.path, "br0", ON)
    longer = ON.model_copy(update={"export_s": 60})
    assert rows.lacks(server.path, "br0", longer)
    assert rows.put(server.path, "br0", longer)
    assert [each["cache_active_timeout"] for each in server.tables["IPFIX"].values()] == [60]
    assert rows.put(server.path, "br0", FlowLogConfig())
    assert (server.tables[SETS], server.tables["IPFIX"]) == ({}, {})
    assert (rows.put(server.path, "br0", FlowLogConfig()), server.counted) == (False, 3)


def test_an_instance_is_asked_for_what_it_holds(server: Server) -> None:
    rows.put(server.path, "br0", ON)
    one = OneHost(server)
    assert flow_log.flush(one.host, Side.A) == ""
    assert (server.tables[SETS], server.passed) == ({}, 1)
    assert flow_log.flush(one.host, Side.A) == ""
    assert server.passed == 1, "there is nothing to wait for"


def test_without_a_flow_log_an_instance_is_not_asked(server: Server) -> None:
    server.silent = True
    assert flow_log.flush(OneHost(server, FlowLogConfig()).host, Side.A) == ""


@pytest.mark.parametrize("how", ["silent", "stuck"])
def test_an_instance_that_does_not_answer_may_leave_something_out(server: Server, how: str) -> None:
    rows.put(server.path, "br0", ON)
    setattr(server, how, True)
    text = flow_log.flush(OneHost(server).host, Side.A)
    assert text.startswith("flow log: up to 10 s of what instance a saw last may be missing: ")


def test_an_instance_that_died_may_leave_something_out_and_one_that_never_ran_does_not(server: Server) -> None:
    one = OneHost(server)
    one.alive = False
    assert "it ended by itself" in flow_log.flush(one.host, Side.A)
    one.known = False
    assert flow_log.flush(one.host, Side.A) == ""


def test_an_instance_sends_its_templates_again_and_gathers_again(server: Server) -> None:
    rows.put(server.path, "br0", ON)
    (before,) = server.tables[SETS]
    flow_log.renew(OneHost(server).host, Side.A)
    (after,) = server.tables[SETS]
    assert (before != after, server.passed) == (True, 1)
    server.stuck = True
    with pytest.raises(SwitchError, match="blocked"):
        flow_log.renew(OneHost(server).host, Side.A)
    assert len(server.tables[SETS]) == 1, "the row is there in any case"


def test_a_row_that_a_killed_command_has_left_out_comes_back_unless_work_is_under_way(server: Server) -> None:
    one = OneHost(server)
    one.busy = True
    with pytest.raises(BusyError):
        flow_log.ensure(one.host, Side.A)
    with pytest.raises(BusyError):
        flow_log.renew(one.host, Side.A)
    assert server.tables[SETS] == {}
    one.busy = False
    assert flow_log.ensure(one.host, Side.A)
    assert len(server.tables[SETS]) == 1
    one.busy = True
    assert not flow_log.ensure(one.host, Side.A), "there is nothing to do"


def test_the_row_is_ours_and_that_of_the_operator_is_carried_over() -> None:
    bridge = {"type": {"key": {"type": "uuid", "refTable": "Bridge"}}}
    schema = {"columns": {"id": {"type": "integer"}, "bridge": bridge,
                          "ipfix": maybe({"type": "uuid", "refTable": "IPFIX"}),
                          "external_ids": SCHEMA["tables"]["Bridge"]["columns"]["external_ids"]}}  # fmt: skip
    database = Database()
    tables = {**SCHEMA["tables"], SETS: schema, "IPFIX": {"columns": {"targets": refs("IPFIX")}}}
    content = {**database.rows, "IPFIX": {}, SETS: {
        "ours": {"id": COLLECTOR_SET, "bridge": "br0", "ipfix": [], "external_ids": {"ovs-hotswap": "id ipfix"}},
        "theirs": {"id": 5, "bridge": "br0", "ipfix": [], "external_ids": {"owner": "netops"}},
    }}  # fmt: skip
    from ovs_hotswap.switch.settings import Snapshot, settings

    found = settings(Snapshot({"tables": tables}, content), "br0", [])
    assert [key.row for key in found if key.table == SETS] == ["5"]


# --------------------------------------------------------------------------------------------------------- what follows


def test_a_change_of_the_flow_log_is_programmed_by_the_watchdog(config: Config) -> None:
    bed = Bed(config)
    now = FlowLogConfig()
    done: list[FlowLogConfig] = []

    class Programmed(FakeHost):
        def follow_intent(self, sides: Any, *, untried: bool = False) -> None:
            done.append(self.config.flowlog)

    def make() -> FakeHost:
        return Programmed(config.model_copy(update={"flowlog": now}), bed.world)

    keeper = Keeper(make, bed.board, lambda: now)
    while keeper.round() is not Task.NOTHING:
        pass
    assert done == [FlowLogConfig()], "a watchdog that was started programs once"
    now = ON
    assert keeper.round() is Task.PROGRAM
    assert done == [FlowLogConfig(), ON]
    assert keeper.round() is Task.NOTHING


def test_the_report_of_a_failover_says_what_may_be_missing(config: Config) -> None:
    bed = Bed(config.model_copy(update={"flowlog": ON}))
    fail_over(bed)
    settle(bed)
    (found,) = reports(bed)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("flow log: up to 10 s of what instance a saw last may be missing: ")
    assert found.warnings[0].endswith(" UTC")


def test_without_a_flow_log_a_failover_misses_nothing_of_it(config: Config) -> None:
    bed = Bed(config)
    fail_over(bed)
    settle(bed)
    assert [each.warnings for each in reports(bed)] == [()]


class Notes(StepContext):
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        super().__init__(lambda: self.kept, self.kept.update, lambda _event: None)


@pytest.mark.parametrize(("stuck", "said"), [(False, ""), (True, "flow log: up to 10 s of what instance a saw last")])
def test_an_upgrade_remembers_whether_the_old_instance_has_exported_all(
    server: Server, stuck: bool, said: str
) -> None:  # fmt: skip
    rows.put(server.path, "br0", ON)
    server.stuck, run = stuck, Notes()
    steps._flush(cast("Upgrade", SimpleNamespace(host=OneHost(server).host)), run, Side.A)
    assert run.kept["flow_log"].startswith(said)
    assert bool(run.kept.get("warnings")) is stuck
    off = Notes()
    steps._flush(cast("Upgrade", SimpleNamespace(host=OneHost(server, FlowLogConfig()).host)), off, Side.A)
    assert off.kept == {}


def test_the_words_of_the_finding() -> None:
    assert steps.exported({"flow_log": ""}, Side.A)[0].severity is Severity.OK
    assert steps.exported({"flow_log": "something"}, Side.A) == []
    assert steps.exported({}, Side.A) == []

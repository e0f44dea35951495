"""A host whose active instance exists only as sockets: a database that carries out transactions, and an ovs-vswitchd
that follows it. A trace's device and its guard are made up as well."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ovs_hotswap.config_file import load_config
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.tracing.capture import Capture, Caught, DeviceGone
from ovs_hotswap.tracing.guard import Guard
from ovs_hotswap.tracing.session import Bounds, Tracer
from ovs_hotswap.tracing.target import find
from ovs_hotswap.tracing.wish import Instruction, Wish
from tests.unit import doctor_bed
from tests.unit.fake_system import FakeSystem
from tests.unit.test_counter_reader import Daemon

ANSWERS = Path(__file__).with_name("answers") / "diagnose"
PORTS = """\
OFPST_PORT reply (OF1.4) (xid=0x2): 2 ports
  port  11: rx pkts={count}, bytes=7, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=0, bytes=8, drop=1, errs=0, coll=?
"""
SHOWN = """\
netdev@ovs-netdev:
  lookups: hit:1903 missed:20 lost:0
  flows: 20
  port 0: ovs-netdev (tap)
  port 1: vm2 (dpdkvhostuserclient: configured_rx_queues=1, mtu=1450)
  port 2: vm1 (dpdkvhostuserclient: configured_rx_queues=1, mtu=1450)
  port 3: vxlan_sys_4789 (vxlan: packet_type=ptap)
  port 4: uplink (dpdk: configured_rx_queues=1, mtu=1500)
  port 5: br0 (tap)
  port 9: ovsh-trace (tap)
"""
Table = dict[str, dict[str, Any]]
Script = Sequence[bytes] | BaseException


GONE = DeviceGone("ovsh-trace is gone")
OWN = os.getpid()
EVERYTHING, USUAL = Wish(), Bounds()


def empty(*uuids: str) -> list[Any]:
    return ["set", [["uuid", uuid] for uuid in uuids]]


def tables() -> dict[str, Table]:
    """A bridge with two VMs' ports, the second of a VLAN."""
    port = {"external_ids": ["map", []], "vlan_mode": ["set", []], "trunks": ["set", []], "cvlans": ["set", []]}
    interface = {"type": "dpdkvhostuserclient", "error": ["set", []], "external_ids": ["map", []]}
    return {
        "Open_vSwitch": {"root": {"next_cfg": 4, "cur_cfg": 4, "other_config": ["map", [["dpdk-init", "true"]]]}},
        "Bridge": {"br": {"name": "br0", "datapath_type": "netdev", "ports": empty("p1", "p2"), "mirrors": empty()}},
        "Port": {"p1": {**port, "name": "vm1", "interfaces": ["uuid", "i1"], "tag": ["set", []]},
                 "p2": {**port, "name": "vm2", "interfaces": ["uuid", "i2"], "tag": 7}},
        "Interface": {"i1": {**interface, "name": "vm1", "ofport": 10},
                      "i2": {**interface, "name": "vm2", "ofport": 11}},
        "Mirror": {},
    }  # fmt: skip


class Database:
    """An ovsdb-server with these tables. ``follows``: what ovs-vswitchd does after a transaction."""

    def __init__(self) -> None:
        self.tables = tables()
        self.filters = False
        self.follows: Callable[[], None] = self._follow
        self.log: list[list[dict[str, Any]]] = []

    def answer(self, method: str, params: list[Any]) -> Any:
        if method == "get_schema":
            columns = ["name", "filter"] if self.filters else ["name"]
            return {"tables": {"Mirror": {"columns": dict.fromkeys(columns)}}}
        operations = params[1:]
        if any(each["op"] != "select" for each in operations):
            self.log.append(copy.deepcopy(operations))
        made: dict[str, str] = {}
        results = [self._done(each, made) for each in operations]
        if made or any(each["op"] == "mutate" for each in operations):
            self.follows()
        return results

    def _done(self, operation: dict[str, Any], made: dict[str, str]) -> dict[str, Any]:
        table = self.tables[operation["table"]]
        if operation["op"] == "select":
            rows = [{"_uuid": ["uuid", uuid], **row} for uuid, row in table.items()]
            return {"rows": [{name: row[name] for name in operation["columns"] if name in row} for row in rows]}
        if operation["op"] == "insert":
            made[operation["uuid-name"]] = uuid = f"new-{operation['uuid-name']}"
            table[uuid] = self._named({"ofport": ["set", []], "error": ["set", []], **operation["row"]}, made)
            return {"uuid": ["uuid", uuid]}
        row = table[operation["where"][0][2][1]]
        if operation["op"] == "update":
            row.update(operation["row"])
            return {"count": 1}
        for column, how, value in operation["mutations"]:
            if how == "+=":
                row[column] += value
                continue
            held = [each[1] for each in row[column][1]]
            changed = [each[1] for each in self._named(value, made)[1]]
            kept = held + changed if how == "insert" else [each for each in held if each not in changed]
            row[column] = empty(*kept)
        self._collect()
        return {"count": 1}

    def _named(self, value: Any, made: dict[str, str]) -> Any:
        text = json.dumps(value)
        for name, uuid in made.items():
            text = text.replace(json.dumps(["named-uuid", name]), json.dumps(["uuid", uuid]))
        return json.loads(text)

    def _collect(self) -> None:
        """Remove the rows to which nothing refers (ovsdb/transaction.c)."""
        text = json.dumps([self.tables["Bridge"]])
        for name in ("Port", "Mirror"):
            self.tables[name] = {uuid: row for uuid, row in self.tables[name].items() if f'"{uuid}"' in text}
        text = json.dumps([self.tables["Port"]])
        self.tables["Interface"] = {uuid: row for uuid, row in self.tables["Interface"].items() if f'"{uuid}"' in text}

    def _follow(self) -> None:
        root = self.tables["Open_vSwitch"]["root"]
        root["cur_cfg"] = root["next_cfg"]
        for row in self.tables["Interface"].values():
            row["ofport"] = row["ofport"] if row["ofport"] != ["set", []] else 77


class FakeCapture(Capture):
    """A device on which the packets of ``script`` arrive: a list for each time that it is read; an empty one when the
    time is over. ``counts``: how many packets the switch has copied, at each question."""

    def __init__(self, system: FakeSystem, script: Sequence[Script], counts: Sequence[int]) -> None:
        self._system, self._script, self._counts = system, list(script), list(counts)
        self.closed = False
        self.lost = 0
        self.program: Sequence[Instruction] = ()

    def __call__(self, namespace: str | None, program: Sequence[Instruction]) -> Capture:
        self.program = program
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def read(self, most: int, seconds: float) -> list[Caught]:
        found = self._script.pop(0) if self._script else ()
        if isinstance(found, BaseException):
            raise found
        self._system.now += 0.01 if found else seconds
        self._system.wall_now += 0.01 if found else seconds
        return [Caught(self._system.wall_now, frame) for frame in found[:most]]

    @property
    def missed(self) -> int:
        return self.lost

    def copied(self) -> int:
        return self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]


class FakeGuard(Guard):
    """A guard without a process."""

    def __init__(self, remove: Callable[[], object], seconds: float) -> None:
        self.remove, self.seconds, self.ended = remove, seconds, False

    def done(self) -> None:
        self.ended = True


class Bed:
    """The VM ``vm2`` has OpenFlow port 11, which is port 1 of the datapath. ``told``: what ovs-vswitchd answers."""

    def __init__(self, directory: Path, overlay: str, config: str | None = None) -> None:
        self.directory = directory
        files = doctor_bed.Bed(directory)
        files.overlay.write_text(overlay)
        if config is not None:
            files.config.write_text(config)
        self.config = load_config(files.config)
        self.paths = InstancePaths.of(self.config, Side.A)
        self.paths.run_dir.mkdir(parents=True)
        self.config.active_file.write_text("a\n")
        self.told: dict[str, Any] = {
            "version": "ovs-vswitchd (Open vSwitch) 3.1.0\n", "revalidator/wait": "", "list-commands": "",
            "dpctl/show": SHOWN,
            "dpctl/dump-flows": (ANSWERS / "dump-flows.txt").read_text(),
            "ofproto/trace": (ANSWERS / "trace-tunnel.txt").read_text(),
        }  # fmt: skip
        self.rate = 100  # packets in each look
        self._counted = 0
        self.database = Database()
        self.system = FakeSystem(self._run)
        self.system.processes[OWN] = ["ovs-hotswap", "trace"]
        self.daemons = (
            Daemon(self.paths.vswitchd_ctl, self._command),
            Daemon(self.paths.db_socket, self.database.answer),
        )
        self.host = Host(self.config, self.system, quick=True)
        self.guards: list[FakeGuard] = []

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()

    def _command(self, method: str, _params: list[Any]) -> Any:
        return self.told.get(method, RuntimeError(f'"{method}" is not a valid command'))

    def _run(self, argv: Sequence[str]) -> tuple[int, str]:
        self._counted += self.rate
        return 0, PORTS.format(count=self._counted) if "dump-ports" in argv else ""

    def capture(self, *script: Script, counts: Sequence[int] = (0,)) -> FakeCapture:
        return FakeCapture(self.system, script, counts)

    def tracer(
        self, capture: FakeCapture, wish: Wish = EVERYTHING, bounds: Bounds = USUAL, **changes: Any
    ) -> Tracer:  # fmt: skip
        def guard(remove: Callable[[], object], seconds: float) -> FakeGuard:
            self.guards.append(FakeGuard(remove, seconds))
            return self.guards[-1]

        return Tracer(self.host, find(self.host, "vm2"), wish, bounds, capture=capture, guard=guard, **changes)

    @property
    def mirrors(self) -> list[dict[str, Any]]:
        return list(self.database.tables["Mirror"].values())

    @property
    def names(self) -> set[str]:
        return {str(row["name"]) for row in self.database.tables["Port"].values()}

    def leave(self, pid: int, born: int | None = 1) -> None:
        leave_trace(self.database, pid, born)


def leave_trace(database: Database, pid: int, born: int | None) -> None:
    """Leave what a trace of ``vm1`` by another process has made."""
    marks = ["map", [["ovs-hotswap", "trace"], ["ovs-hotswap-vm", "vm1"], ["ovs-hotswap-pid", str(pid)],
                     ["ovs-hotswap-born", str(born or "")]]]  # fmt: skip
    database.tables["Mirror"]["old"] = {"external_ids": marks}
    database.tables["Bridge"]["br"]["mirrors"] = empty("old")

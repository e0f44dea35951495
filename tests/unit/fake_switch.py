"""A switch that exists only in a test: its control socket, its database and its ovs-ofctl, for the run-time state."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import Completed, System
from tests.unit.conntrack_model import Conntrack

Answer = str | Callable[[list[str]], str]
_PACKET_OUT = re.compile(r"packet-out in_port=(\w+),packet=([0-9a-f]+),actions=(.*)")


class Refused(Exception):
    """The command is answered with an error."""


class FakeSwitch:
    """Its one bridge, ``br0``, has the ports ``vm1`` (1), ``vm2`` (2, of VLAN 5) and a device of its own.

    ``answers`` are texts, or functions of a command's arguments, by command; a test may change them. ``asked`` are the
    commands that were carried out or refused.
    """

    def __init__(self) -> None:
        self.conntrack = Conntrack()
        self.tcp_check = True
        self.fdb: dict[tuple[str, str], str] = {}  # by VLAN and MAC: the port, and "static" or an age
        self.limit = 1000  # entries of the connection tracking
        self.asked: list[tuple[str, ...]] = []
        self.flooded: list[bytes] = []
        self.answers: dict[str, Answer] = {
            "dpctl/dump-conntrack": lambda _: self.conntrack.dump(),
            "dpctl/dump-conntrack-exp": "",
            "dpctl/flush-conntrack": self._flush,
            "dpctl/ct-get-tcp-seq-chk": lambda _: f"TCP sequence checking: {self._check()}\n",
            "dpctl/ct-enable-tcp-seq-chk": lambda _: self._set_check(True),
            "dpctl/ct-disable-tcp-seq-chk": lambda _: self._set_check(False),
            "fdb/show": lambda _: self._fdb_text(),
            "fdb/add": self._fdb_add,
            "fdb/del": self._fdb_delete,
            "mdb/show": lambda _: self._refuse("multicast snooping is disabled"),
        }
        self._end = threading.Event()
        self._directory = tempfile.TemporaryDirectory()
        root = Path(self._directory.name)
        named = {each.name: root / each.name for each in fields(InstancePaths) if each.name != "netns"}
        self.paths = InstancePaths(**{**named, "run_dir": root}, netns="")
        self.system = Ofctl(self)
        self._listeners = [
            self._listen(self.paths.vswitchd_ctl, self._command),
            self._listen(self.paths.db_socket, self._transact),
        ]

    def __enter__(self) -> FakeSwitch:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._directory.cleanup()

    def hangs(self, *commands: str) -> None:
        """Have the switch answer these commands only when it ends."""
        for command in commands:
            self.answers[command] = lambda _: str(self._end.wait() or "")

    def told(self, prefix: str) -> list[tuple[str, ...]]:
        return [command for command in self.asked if command[0].startswith(prefix)]

    def _listen(self, path: Path, answer: Callable[[str, list[Any]], Any]) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        threading.Thread(target=_serve, args=(listener, answer), daemon=True).start()
        return listener

    def _command(self, name: str, arguments: list[Any]) -> str:
        given = [each for each in arguments if each != "netdev@ovs-netdev"]
        if name == "list-commands":
            return "The available commands are:\n" + "".join(f"  {each:20} [x]\n" for each in sorted(self.answers))
        self.asked.append((name, *given))
        answer = self.answers.get(name)
        if answer is None:
            raise Refused(f'"{name}" is not a valid command')
        return answer if isinstance(answer, str) else answer(given)

    def _transact(self, _name: str, arguments: list[Any]) -> list[dict[str, Any]]:
        return [{"rows": ROWS[operation["table"]]} for operation in arguments[1:]]

    def _check(self) -> str:
        return "enabled" if self.tcp_check else "disabled"

    def _set_check(self, enabled: bool) -> str:
        self.tcp_check = enabled
        return ""

    def _refuse(self, text: str) -> str:
        raise Refused(text)

    def _flush(self, arguments: list[str]) -> str:
        zone = int(arguments[0].removeprefix("zone="))
        wanted = dict(each.split("=") for each in arguments[1].split(",")) if len(arguments) > 1 else {}
        before = len(self.conntrack.connections)
        self.conntrack.connections = [
            each for each in self.conntrack.connections
            if each.key.zone != zone or (wanted and (
                str(each.key.protocol), each.key.source[0], str(each.key.source[1])
            ) != (wanted["ct_nw_proto"], wanted.get("ct_nw_src", wanted.get("ct_ipv6_src")),
                  wanted.get("ct_tp_src", "0")))
        ]  # fmt: skip
        if wanted and len(self.conntrack.connections) == before:
            raise Refused("failed to flush conntrack (No such file or directory)")
        return ""

    def _fdb_text(self) -> str:
        numbers = {"vm1": "    1", "vm2": "    2", "br0": "LOCAL"}
        rows = (f"{numbers[port]}  {int(vlan):4}  {mac}  {age:>3}\n"
                for (vlan, mac), (port, age) in ((key, held.split()) for key, held in self.fdb.items()))  # fmt: skip
        return " port  VLAN  MAC                Age\n" + "".join(rows)

    def _fdb_add(self, arguments: list[str]) -> str:
        _, port, vlan, mac = arguments
        if port not in ("vm1", "vm2", "br0"):
            raise Refused("software error, odp port is present but no ofp port")
        self.fdb[vlan, mac] = f"{port} static"
        return ""

    def _fdb_delete(self, arguments: list[str]) -> str:
        if self.fdb.get((arguments[1], arguments[2]), "").endswith("static"):
            del self.fdb[arguments[1], arguments[2]]
            return ""
        raise Refused("could not find static mac entry")

    def packet_out(self, in_port: str, frame: bytes, actions: str) -> None:
        if actions != "NORMAL":
            assert in_port == "controller"
            if len(self.conntrack.connections) < self.limit:
                self.conntrack.packet_out(frame, actions)
            return
        port = {"1": "vm1", "2": "vm2", "LOCAL": "br0"}[in_port]
        tagged = frame[12:14] == b"\x81\x00"
        assert not (tagged and port == "vm2"), "an access port takes no tag"
        vlan = str(int.from_bytes(frame[14:16], "big")) if tagged else {"vm2": "5"}.get(port, "0")
        # The port of the destination is looked up before the source is learnt (ofproto/ofproto-dpif.c, packet_xlate).
        if self.fdb.get((vlan, frame[0:6].hex(":")), "").partition(" ")[0] != port:
            self.flooded.append(frame)
        self.fdb[vlan, frame[6:12].hex(":")] = f"{port} 0"


class Ofctl(System):
    """Carries out bundles on a FakeSwitch. ``fails``: the number of the bundle, from 1, that is refused."""

    def __init__(self, switch: FakeSwitch) -> None:
        self.switch = switch
        self.fails = 0
        self.bundles: list[list[str]] = []
        self.argv: list[Sequence[str]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.argv.append(argv)
        self.bundles.append((stdin or "").splitlines())
        if len(self.bundles) == self.fails:
            return Completed(tuple(argv), 1, "", "Error OFPBFC_BAD_TYPE")
        for found in _found(self.bundles[-1]):
            self.switch.packet_out(found[1], bytes.fromhex(found[2]), found[3])
        return Completed(tuple(argv), 0, "", "")


def _found(lines: Iterable[str]) -> list[re.Match[str]]:
    found = [(line, _PACKET_OUT.fullmatch(line)) for line in lines]
    assert all(each for _, each in found), found
    return [each for _, each in found if each]


def _serve(listener: socket.socket, answer: Callable[[str, list[Any]], Any]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, answer), daemon=True).start()


def _answer(connection: socket.socket, answer: Callable[[str, list[Any]], Any]) -> None:
    with connection, contextlib.suppress(OSError):
        text = b""
        while not text.endswith(b"}"):
            if not (part := connection.recv(1 << 20)):
                return
            text += part
        message = json.loads(text)
        reply: dict[str, Any] = {"id": message["id"], "result": None, "error": None}
        try:
            reply["result"] = answer(message["method"], message["params"])
        except Refused as refused:
            reply["error"] = f"{refused}\n"
        connection.sendall(json.dumps(reply).encode())


def _port(name: str, uuid: str, tag: int | None, ofport: int) -> tuple[dict[str, Any], dict[str, Any]]:
    empty: list[Any] = ["set", []]
    port = {"_uuid": ["uuid", f"p-{uuid}"], "name": name, "interfaces": ["uuid", f"i-{uuid}"],
            "tag": empty if tag is None else tag, "vlan_mode": empty}  # fmt: skip
    return port, {"_uuid": ["uuid", f"i-{uuid}"], "name": name, "ofport": ofport, "type": ""}


_PORTS = [_port("vm1", "1", None, 1), _port("vm2", "2", 5, 2), _port("br0", "0", None, 65534)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "Bridge": [
        {"name": "br0", "datapath_type": "netdev", "ports": ["set", [port["_uuid"] for port, _ in _PORTS]]},
        {"name": "kernel", "datapath_type": "", "ports": ["set", []]},
    ],
    "Port": [port for port, _ in _PORTS],
    "Interface": [interface for _, interface in _PORTS],
    "Datapath": [{"ct_zones": ["map", [[7, ["uuid", "z"]], [8, ["uuid", "y"]]]]}],
    "CT_Zone": [
        {"_uuid": ["uuid", "z"], "timeout_policy": ["uuid", "t"]},
        {"_uuid": ["uuid", "y"], "timeout_policy": ["set", []]},
    ],
}

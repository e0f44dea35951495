"""What the back-end mode ``qemu-dual`` is tested with: a script behind real QMP sockets in place of the patched QEMU,
and two switches that have ports and nothing else. ``tests/integration/test_qemu_dual.py`` has the patched QEMU."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.qemu.answers import Netdev
from ovs_hotswap.qemu.held import VmPorts
from ovs_hotswap.switch.ovsdb import PortSpec

NETDEV: dict[str, Any] = {
    "netdev": "net0", "state": "served", "active": "sw0", "active-slot": "first", "active-pid": 1201,
    "standby": "sw1", "standby-pid": 1377, "standby-state": "parked", "swaps": 0, "last-swap-us": 0, "ring-count": 2,
    "rings": [{"index": 0, "enabled": True, "available": 256, "used": 40},
              {"index": 1, "enabled": True, "available": 52, "used": 52}],
}  # fmt: skip


def netdev(**changes: object) -> Netdev:
    return Netdev.model_validate({**NETDEV, **changes})


class Qemu(socketserver.ThreadingUnixStreamServer):
    """Answers QMP commands by ``answers``: what they return, or a function of their arguments that says so, or an
    error's class and text."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Talk)
        self.answers: dict[str, Any] = {"query-vhost-user-backends": [dict(NETDEV)]}
        self.asked: list[tuple[str, dict[str, Any]]] = []


class Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Qemu)
        self._say({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
                           "capabilities": []}})  # fmt: skip
        for request in self._requests():
            name = request["execute"]
            found: Any = {} if name == "qmp_capabilities" else self.server.answers.get(name)
            if callable(found):
                found = found(request.get("arguments", {}))
            if name != "qmp_capabilities":
                self.server.asked.append((name, request.get("arguments", {})))
            if isinstance(found, tuple):
                self._say({"error": {"class": found[0], "desc": found[1]}, "id": request.get("id")})
            else:
                self._say({"return": found, "id": request.get("id")})

    def _requests(self) -> Iterator[dict[str, Any]]:
        """QMP messages are JSON objects, with or without anything between them."""
        text = ""
        while data := self.connection.recv(1 << 16):
            text = (text + data.decode()).lstrip()
            with suppress(json.JSONDecodeError):
                while text:
                    request, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:].lstrip()
                    yield request

    def _say(self, message: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(message).encode() + b"\n")


def swapped(**changes: Any) -> list[dict[str, Any]]:
    return [{"netdev": "net0", "from": "sw0", "to": "sw1", "outcome": "swapped", "time-us": 171, "give-us": 90,
             "take-us": 81, **changes}]  # fmt: skip


class TwoBackEnds:
    """A netdev whose back ends can be swapped, and are gone as long as ``served`` says that no switch has a port."""

    def __init__(self, served: Callable[[], bool]) -> None:
        self._served, self._netdev = served, dict(NETDEV)

    @property
    def answers(self) -> dict[str, Any]:
        return {"query-vhost-user-backends": self._query, "vhost-user-swap": self._swap}

    def _query(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._netdev if self._served() else {**self._netdev, "state": "unowned", "standby-state": "absent"}]

    def _swap(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._netdev
        self._netdev = {
            **found, "active-slot": arguments["to"], "active-pid": found["standby-pid"],
            "standby-pid": found["active-pid"], "swaps": found["swaps"] + 1, "last-swap-us": 171,
        }  # fmt: skip
        return swapped()


class Switch:
    """An instance that runs. ``ports``: of VMs, by name; ``fault``: its database does not answer."""

    def __init__(self, side: Side, told: list[str], vms: Collection[str]) -> None:
        self.side, self._told = side, told
        self.ports = set(vms)
        self.fault: SwitchError | None = None
        self.number: int | None = 7

    def pid(self) -> int | None:
        return self.number

    @contextmanager
    def database(self) -> Iterator[Switch]:
        if self.fault is not None:
            raise self.fault
        yield self

    def remove_port(self, _bridge: str, name: str) -> None:
        self._told.append(f"remove {name} {self.side}")
        self.ports.discard(name)

    def add_port(self, _bridge: str, spec: PortSpec) -> None:
        self._told.append(f"add {spec.name} {self.side}")
        self.ports.add(spec.name)

    def wait_ports(self, names: list[str], timeout: float) -> None: ...


class Switches:
    """Two of them, b being the active one."""

    def __init__(self, vms: Collection[str] = ("vm1", "vm2")) -> None:
        self.told: list[str] = []
        self.both = {side: Switch(side, self.told, vms) for side in Side}
        config = SimpleNamespace(bridge="br0", upgrade=SimpleNamespace(ready_s=1.0))
        specs = tuple(PortSpec(name, "dpdkvhostuserclient", 10) for name in vms)
        self.ports = VmPorts(cast(Any, config), cast(Any, self.both), lambda _side: specs, lambda: Side.B)

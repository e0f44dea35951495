"""The decisions by which facts of several sources become a snapshot."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.adopt import log_settings
from ovs_hotswap.adopt.log_reader import Logged, LoggedRing
from ovs_hotswap.adopt.qmp_facts import QueueFact
from ovs_hotswap.adopt.snapshot import RegionFact
from ovs_hotswap.adopt.taking import PortFact, check_enabled, parse_port, place_of
from ovs_hotswap.errors import BrokerError, StateUnknown, SwitchError, TryAgain
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rxqs import RxQueue
from ovs_hotswap.system import System

NOWHERE: Any = {field.name: Path("/nowhere") for field in fields(InstancePaths)}
PATHS = InstancePaths(**{**NOWHERE, "netns": ""})
STATUS = {
    "features": "0x000000017020a783", "mode": "client", "num_of_vrings": "2", "numa": "0", "socket": "/run/vm1.sock",
    "status": "connected", "vring_0_size": "256", "vring_1_size": "1024",
}  # fmt: skip


def row(
    status: dict[str, str], kind: str = "dpdkvhostuserclient", path: str | None = "/run/vm1.sock"
) -> dict[str, Any]:
    options = {} if path is None else {"vhost-server-path": path}
    return {"type": kind, "options": ["map", [list(each) for each in options.items()]],
            "status": ["map", [list(each) for each in status.items()]]}  # fmt: skip


def test_a_port_is_read_from_its_row() -> None:
    assert parse_port("vm1", row(STATUS)) == PortFact(Path("/run/vm1.sock"), 0x17020A783, (256, 1024))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row(STATUS, kind="dpdkvhostuser"), "no dpdkvhostuserclient port, but dpdkvhostuser"),
        (row(STATUS, kind=""), "but system"),
        (row(STATUS, path=None), "no dpdkvhostuserclient port"),
        (row(STATUS | {"status": "disconnected"}), "no guest is served"),
        (row({}), "no guest is served"),
        (row(STATUS | {"num_of_vrings": "3"}), "does not describe its rings"),
        (row(STATUS | {"vring_0_size": "many"}), "does not describe its rings"),
    ],
)
def test_a_port_that_cannot_be_entered_has_a_reason(broken: dict[str, Any], reason: str) -> None:
    with pytest.raises(StateUnknown, match=reason):
        parse_port("vm1", broken)


MEMORY = (
    RegionFact(guest_address=0, size=0x80000, user_address=0x7F0000000000, offset=0, fd=9, device=1, inode=1),
    RegionFact(guest_address=0x100000, size=0x80000, user_address=0x7E0000000000, offset=0, fd=9, device=1, inode=2),
)


def queue(at: int, *, translated: bool, guest: int, size: int = 256) -> QueueFact:
    return QueueFact(size, at, at + 0x1000, at + 0x2000, translated, guest)


def test_a_ring_that_qemu_translates_is_where_it_says() -> None:
    found = place_of(0, queue(0x7E0000001000, translated=True, guest=0x101000), MEMORY)
    assert (found.size, found.descriptors, found.used) == (256, 0x7E0000001000, 0x7E0000003000)


def test_a_ring_of_a_further_pair_is_translated_by_the_regions() -> None:
    found = place_of(2, queue(0x101000, translated=False, guest=0x101000), MEMORY)
    assert (found.descriptors, found.available) == (0x7E0000001000, 0x7E0000002000)


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (queue(0x7E0000001000, translated=True, guest=0x1000), "not there by the switch's regions"),
        (queue(0x7E0000001000, translated=True, guest=0x90000), "no memory region"),
        (queue(0x90000, translated=False, guest=0x90000), "no memory region"),
        (queue(0x7E000007D901, translated=True, guest=0x17D901), "are not in one memory region"),
        (queue(0x101000, translated=False, guest=0x101000, size=0), "0 entries"),
        (queue(0x101000, translated=False, guest=0x101000, size=255), "255 entries"),
        (queue(0x7E0000001000, translated=True, guest=0x101000, size=32768), "are not in one memory region"),
    ],
)
def test_a_ring_that_the_regions_do_not_hold_is_refused(fact: QueueFact, reason: str) -> None:
    with pytest.raises(StateUnknown, match=reason):
        place_of(0, fact, MEMORY)


def logged(*enabled: bool | None) -> Logged:
    return Logged(rings=tuple(LoggedRing(60 + at, 70 + at, each) for at, each in enumerate(enabled)))


def polled(*enabled: bool) -> list[RxQueue]:
    return [RxQueue(number, 1, each) for number, each in enumerate(enabled)]


def test_enabled_rings_are_polled_and_others_are_not() -> None:
    check_enabled(logged(True, True), polled(True))
    check_enabled(logged(True, True, False, False), polled(True, False))


@pytest.mark.parametrize(
    ("rings", "queues", "reason"),
    [
        (logged(None, None), polled(True), "does not say whether ring 0"),
        (logged(True, False), polled(True), "one of the rings 0 and 1"),
        (logged(True, True), polled(), "no PMD thread"),
        (logged(True, True), polled(False), "queue 0 is not enabled"),
        (logged(True, True, False, False), polled(True, True), "queue 1 is enabled"),
    ],
)
def test_rings_of_which_the_sources_differ_are_refused(rings: Logged, queues: list[RxQueue], reason: str) -> None:
    with pytest.raises(StateUnknown, match=reason):
        check_enabled(rings, queues)


class Switch:
    """The control socket of a switch (ovs-appctl(8)), as far as its log is concerned."""

    def __init__(self, directory: Path, level: str) -> None:
        self.level, self.limited, self.fails = level, True, False
        self.paths = replace(PATHS, vswitchd_ctl=directory / "ctl")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.paths.vswitchd_ctl))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    asked = json.loads(connection.recv(65536))
                    said = self._answer(asked["method"], *asked["params"])
                    answer = {"id": asked["id"], "result": said, "error": None if said is not None else "refused"}
                    connection.sendall(json.dumps(answer).encode())

    def _answer(self, command: str, *args: str) -> str | None:
        if command == "dpdk/log-list":
            return f"Global log level is debug\nid 4: lib.vhost.config, level is {self.level}\n"
        if command == "dpdk/log-set":
            if self.fails:
                return None
            self.level = args[0].partition(":")[2]
        elif args == ("dpdk",):
            self.limited = command == "vlog/enable-rate-limit"
        return ""

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(params=["error", "info", "debug"])
def switch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Switch]:
    made = Switch(tmp_path, request.param)
    yield made
    made.close()


def test_the_log_has_everything_and_is_as_before_afterwards(switch: Switch) -> None:
    before, asked = switch.level, list[str]()

    def prove(paths: InstancePaths, port: str, system: System) -> None:
        assert switch.limited, "a line that was left out would never be announced"
        asked.append(port)
        if port == "vm1":
            raise BrokerError("its monitor has another client")

    switch.limited = False  # by an operator
    kept = log_settings.log_everything(switch.paths, ["vm1", "vm2", "vm3"], System(), prove)
    assert asked == ["vm1", "vm2"]
    assert switch.level in ("info", "debug")
    assert not switch.limited
    log_settings.log_as_before(switch.paths, log_settings.LogSettings.restored(kept.fact()))
    assert (switch.level, switch.limited) == (before, True)


def test_a_limit_stays_on_if_it_is_not_known_whether_lines_were_left_out(switch: Switch) -> None:
    def prove(paths: InstancePaths, port: str, system: System) -> None:
        raise TryAgain(f"{port}: lines were left out")

    before = switch.level
    for ports, reason in ((["vm1", "vm2"], "vm2: lines were left out"), ([], "no port")):
        with pytest.raises(StateUnknown, match=reason):
            log_settings.log_everything(switch.paths, ports, System(), prove)
        assert (switch.level, switch.limited) == (before, True)


@pytest.mark.parametrize("switch", ["error"], indirect=True)
def test_a_log_that_cannot_have_everything_is_as_before(switch: Switch) -> None:
    switch.fails = True
    with pytest.raises(SwitchError):
        log_settings.log_everything(switch.paths, ["vm1"], System(), lambda *_: None)
    assert (switch.level, switch.limited) == ("error", True)

"""A host that exists only in the test, for the watchdog to watch: two instances, VMs, an uplink."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ReleaseError, SwitchError, UplinkError
from ovs_hotswap.host import standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Life, Proof, Release, Severity, Side, Steered, Way
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.ports import UPLINK
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.datapath import DatapathPort
from ovs_hotswap.switch.instance import InstanceStatus, State
from ovs_hotswap.switch.memory import Demand, PacketPool
from ovs_hotswap.switch.ovsdb import PortSpec
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rxqs import RxQueue
from ovs_hotswap.system import files
from ovs_hotswap.uplink.proof import End
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.daemon import Guard
from ovs_hotswap.watchdog.health import Health
from ovs_hotswap.watchdog.probes import MainThreadProbe
from ovs_hotswap.watchdog.standby_keeper import Keeper
from tests.support.fake_backends import FakeBackEnds, VmStates
from tests.unit.fake_system import FakeSystem

RELEASE = Release("host", None, "3.1.0", "22.11")


class World(VmStates, FakeSystem):
    """Two instances, a broker and an uplink. ``done`` is what was done to them, in order."""

    def __init__(self, vms: list[str]) -> None:
        FakeSystem.__init__(self)
        VmStates.__init__(self, vms)
        self.processes = {1: ["a"], 2: ["b"]}
        self.pid: dict[Side, int | None] = {Side.A: 1, Side.B: 2}
        self.state = {Side.A: State.RUNNING, Side.B: State.RUNNING}
        self.stopped_pids: set[int] = set()
        self.no_database: set[Side] = set()
        self.deaf_sides: set[Side] = set()  # whose ovs-vswitchd takes no commands
        self.uplink_owner: Side | None = Side.A
        self.proofs: dict[Side, Proof] = {}
        self.outdated = False
        self.installed: Release | None = RELEASE  # None: its programs do not run
        self.unpolled: set[str] = set()
        self.start_fault: Exception | None = None
        self.program_fault: Exception | None = None
        self.full: set[str] = set()  # names of files that cannot be written, and why
        self.no_writing = errno.ENOSPC
        self.no_uplink: set[Side] = set()  # whose datapath has lost it
        self.during_stop: Callable[[], object] = lambda: None

    def write_atomic(self, path: Path, text: str) -> None:
        if path.name in self.full:
            with files(path):
                raise OSError(self.no_writing, os.strerror(self.no_writing))
        super().write_atomic(path, text)

    def see_writable(self, path: Path) -> None:
        if path.name in self.full:
            with files(path):
                raise OSError(self.no_writing, os.strerror(self.no_writing))

    def stopped(self, pid: int) -> bool:
        return pid in self.stopped_pids

    def lives(self, side: Side) -> bool:
        return self.pid[side] is not None

    def die(self, side: Side) -> None:
        """What the broker does about a death it does by itself."""
        self.pid[side] = None
        self.state[side] = State.DEAD
        for name, owner in self.owner.items():
            if owner is side and side.other in self.parked[name]:
                self.owner[name] = side.other


class FakeInstance:
    ours = True

    def __init__(self, config: Config, world: World, side: Side) -> None:
        self.world, self.side = world, side
        self.paths = InstancePaths.of(config, side)

    def pid(self) -> int | None:
        return self.world.pid[self.side]

    def listens(self) -> bool:
        return self.side not in self.world.deaf_sides

    def life(self) -> Life:
        pid = self.pid()
        if pid is None:
            return Life.DEAD
        return Life.STOPPED if pid in self.world.stopped_pids else Life.RUNS

    def database_pid(self) -> int | None:
        return None if self.side in self.world.no_database else 7

    def database(self, *_: object) -> Any:
        raise SwitchError("there is no database in this test")

    def unit(self) -> None:
        """It has no systemd unit."""

    def release(self) -> Release:
        return RELEASE

    def lacks_database(self) -> bool:
        return self.pid() is not None and self.database_pid() is None

    def restart_ovsdb(self) -> None:
        self.world.done.append(f"restart_ovsdb {self.side}")
        self.world.no_database.discard(self.side)

    def status(self) -> InstanceStatus:
        return InstanceStatus(self.side, self.world.state[self.side], self.pid(), self.database_pid(), RELEASE)

    def has_memory(self) -> bool:
        return self.pid() is not None

    def outdated(self) -> bool:
        return self.world.outdated

    def kill(self) -> None:
        self.world.done.append(f"kill {self.side}")
        self.world.die(self.side)

    def stop(self, *, keep_log: bool = False) -> None:
        self.world.done.append(f"stop {self.side}")
        if self.world.pid[self.side] is not None:
            self.world.die(self.side)
        self.world.state[self.side] = State.STOPPED
        self.world.during_stop()

    def start(self, release: Release) -> None:
        self.world.done.append(f"start {self.side} {release.name}")
        if self.world.start_fault is not None:
            raise self.world.start_fault
        self.world.pid[self.side], self.world.state[self.side] = 3, State.RUNNING
        self.world.serve()


class FakeReleases:
    def __init__(self, world: World) -> None:
        self.world = world

    def get(self, name: str) -> Release:
        if name != RELEASE.name or self.world.installed is None:
            raise ReleaseError(f"release {name} does not run")
        return self.world.installed

    def installed(self) -> Release:
        return self.get(RELEASE.name)


class FakeUplink:
    def __init__(self, world: World) -> None:
        self.world, self.failures = world, 0

    def owner(self) -> Side | None:
        return self.world.uplink_owner

    def check(self) -> list[Finding]:
        return [Finding("uplink", Severity.OK, f"steered to {self.world.uplink_owner}")]

    def clear(self) -> None:
        self.world.done.append("clear uplink")
        self.world.uplink_owner = None

    def steer(self, side: Side) -> None:
        if self.failures:
            self.failures -= 1
            raise UplinkError("the card does not answer")
        self.world.done.append(f"steer {side}")
        self.world.uplink_owner = side

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        if self.world.pid[side] is None:
            raise UplinkError("no instance runs")
        proof = self.world.proofs.get(side, Proof(True, True))
        passes = {Way.OUT: proof.out, Way.INTO: proof.into}
        self.world.now += sum(2.0 for each in Way if way in (each, None) and not passes[each])
        return proof

    def steered(self, side: Side) -> Steered | None:
        return None


class FakeHost(Host):
    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.world = world
        self.fake_uplink = FakeUplink(world)
        self.instances = {side: FakeInstance(config, world, side) for side in Side}  # type: ignore[misc]
        self.__dict__["broker"] = self.__dict__["dual"] = FakeBackEnds(world)
        self.__dict__["uplink"] = self.fake_uplink
        self.__dict__["releases"] = FakeReleases(world)

    def program(self, side: Side) -> None:
        self.world.done.append(f"program {side}")
        if self.world.program_fault is not None:
            raise self.world.program_fault

    def program_database(self, side: Side) -> None:
        if self.world.program_fault is not None:
            raise self.world.program_fault

    def set_pmd_sleep(self, side: Side, microseconds: int) -> None: ...

    def settle_pmd_sleep(self, side: Side, microseconds: int | None = None) -> None: ...

    def follow_pmd_sleep(self, side: Side) -> None: ...

    def program_tunnels(self, side: Side) -> None: ...

    def program_flows(self, side: Side, form: Form) -> None: ...

    def prefer_threads(self, side: Side, rank: Rank) -> None: ...

    def scheduling(self, side: Side) -> None: ...

    def log_level(self, side: Side) -> str:
        return "info"

    def set_log_level(self, side: Side, level: str) -> None: ...

    def link_up(self, side: Side, port: str) -> bool:
        return True

    def demand(self, side: Side) -> Demand:
        return Demand((), (), 1)

    def await_ports(self, side: Side, wanted: Iterable[PortSpec]) -> None:
        if side in self.world.no_uplink and any(port.name == UPLINK for port in wanted):
            raise SwitchError("port uplink: the datapath does not have it, so nothing passes")

    def reshaped(self, side: Side) -> list[str]:
        return []

    def has_port(self, side: Side, name: str) -> bool:
        return name in self.datapath_ports(side)

    def datapath_ports(self, side: Side) -> dict[str, DatapathPort]:
        return {} if side in self.world.no_uplink else {UPLINK: DatapathPort(UPLINK, "dpdk", 1500)}

    def packet_pools(self, side: Side) -> list[PacketPool]:
        return []

    def await_devices(self, side: Side, seconds: float) -> None:
        if side in self.world.no_database:
            raise SwitchError("db.sock: cannot connect")

    def polled(self, side: Side) -> dict[str, tuple[RxQueue, ...]]:
        return {name: (RxQueue(0, 0, True),) for name in self.world.owner if name not in self.world.unpolled}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    })  # fmt: skip


class Bed:
    def __init__(self, config: Config, *, prepared: bool = True) -> None:
        config.run_dir.mkdir()
        config.overlay.write_text('[vtep]\naddress = "172.31.0.1/24"\nmac = "52:54:00:1f:00:01"\n')
        self.config, self.world = config, World(["vm1", "vm2"])
        self.host = FakeHost(config, self.world)
        self.host.record_active(Side.A)
        if prepared:
            record = standby.StandbyRecord(side=Side.B, pid=2, log_level="info", scheduling=None, prepared=True)
            standby.record_path(config).write_text(record.model_dump_json())
        self.board = status_file.StatusFile(config, self.world)
        self.keeper = Keeper(lambda: FakeHost(config, self.world), self.board)
        self.main = MainThreadProbe(self.world.monotonic, 0.25, lambda _ctl, _timeout, _before: {0: 1})
        self.guard = Guard(self.host, self.board, self.keeper, self.main, self.follow)

    def follow(self, intent: Intent) -> FakeHost:
        self.host = FakeHost(self.config, self.world)
        self.host.intent = intent
        return self.host

    def look(self, dead: set[Side] | None = None) -> Health | None:
        self.world.now += 0.05
        verdict = self.guard.look(dead or set(), dict(self.world.pid))
        return None if verdict is None else verdict.health

    def events(self) -> list[dict[str, Any]]:
        return status_file.last_events(self.config, 100)

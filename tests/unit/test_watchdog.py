"""The watchdog's acts on a host that exists only in the test: in which order, and what it refuses to do."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BusyError, UplinkError
from ovs_hotswap.model import Release, Side
from ovs_hotswap.switch.instance import State
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import NoAnswer
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import standby, watchlog
from ovs_hotswap.upgrade.failover import Answer, Health, Task
from ovs_hotswap.upgrade.host import Host
from ovs_hotswap.upgrade.journal import Journals
from ovs_hotswap.upgrade.keeper import Keeper
from ovs_hotswap.upgrade.records import Kind, Record, Shape
from ovs_hotswap.upgrade.vitals import Deaths, MainThread
from ovs_hotswap.upgrade.watchdog import Guard, Watchdog
from tests.unit.fake_system import FakeSystem

RELEASE = Release("host", None, "3.1.0", "22.11")


class World(FakeSystem):
    """Two instances, a broker and an uplink. ``done`` is what was done to them, in order."""

    def __init__(self, vms: list[str]) -> None:
        super().__init__()
        self.done: list[str] = []
        self.processes = {1: ["a"], 2: ["b"]}
        self.pid: dict[Side, int | None] = {Side.A: 1, Side.B: 2}
        self.state = {Side.A: State.RUNNING, Side.B: State.RUNNING}
        self.owner = dict.fromkeys(vms, Side.A)
        self.parked = {name: {Side.B} for name in vms}
        self.stopped_pids: set[int] = set()
        self.no_database: set[Side] = set()
        self.uplink_owner = Side.A
        self.outdated = False

    def stopped(self, pid: int) -> bool:
        return pid in self.stopped_pids

    def die(self, side: Side) -> None:
        """What the broker does about a death it does by itself."""
        self.pid[side] = None
        self.state[side] = State.DEAD
        for name, owner in self.owner.items():
            if owner is side and side.other in self.parked[name]:
                self.owner[name] = side.other


class FakeInstance:
    def __init__(self, config: Config, world: World, side: Side) -> None:
        self.world, self.side = world, side
        self.paths = InstancePaths.of(config, side)

    def pid(self) -> int | None:
        return self.world.pid[self.side]

    def database_pid(self) -> int | None:
        return None if self.side in self.world.no_database else 7

    def release(self) -> Release:
        return RELEASE

    def lacks_database(self) -> bool:
        return self.pid() is not None and self.database_pid() is None

    def mend(self) -> None:
        self.world.done.append(f"mend {self.side}")
        self.world.no_database.discard(self.side)

    def status(self) -> Any:
        return type("Status", (), {"state": self.world.state[self.side], "release": RELEASE})

    def has_memory(self) -> bool:
        return self.pid() is not None

    def outdated(self) -> bool:
        return self.world.outdated

    def kill(self) -> None:
        self.world.done.append(f"kill {self.side}")
        self.world.die(self.side)

    def stop(self) -> None:
        self.world.done.append(f"stop {self.side}")
        self.world.pid[self.side], self.world.state[self.side] = None, State.STOPPED

    def start(self, release: Release) -> None:
        self.world.done.append(f"start {self.side} {release.name}")
        self.world.pid[self.side], self.world.state[self.side] = 3, State.RUNNING


class FakeBroker:
    def __init__(self, world: World) -> None:
        self.world = world

    def vms(self, *, read: bool = True) -> list[dict[str, Any]]:
        return [self.vm(name) for name in self.world.owner]

    def vm(self, name: str) -> dict[str, Any]:
        world = self.world
        switches = {
            side.value: {"connected": world.pid[side] is not None, "missing": [], "parked": side in world.parked[name]}
            for side in Side
        }
        return {"name": name, "qemu": 9, "owner": world.owner[name], "certainty": "owns", "owner_since": 5.0,
                "unparkable": None, "switches": switches, "rings": []}  # fmt: skip

    def park(self, name: str, side: Side) -> None:
        self.world.done.append(f"park {name} {side}")
        self.world.parked[name].add(side)
        if self.world.pid[self.world.owner[name]] is None:
            self.world.owner[name] = side

    def unpark(self, name: str, side: Side) -> None:
        self.world.parked[name].discard(side)

    def move(self, name: str, to: Side) -> None:
        self.world.done.append(f"move {name} {to}")
        self.world.owner[name] = to

    def reload(self) -> list[str]:
        self.world.done.append("reload")
        return []


class FakeUplink:
    def __init__(self, world: World) -> None:
        self.world, self.failures = world, 0

    def owner(self) -> Side:
        return self.world.uplink_owner

    def steer(self, side: Side) -> None:
        if self.failures:
            self.failures -= 1
            raise UplinkError("the card does not answer")
        self.world.done.append(f"steer {side}")
        self.world.uplink_owner = side


class FakeHost(Host):
    def __init__(self, config: Config, world: World) -> None:
        super().__init__(config, world)
        self.world = world
        self.fake_uplink = FakeUplink(world)
        self.instances = {side: FakeInstance(config, world, side) for side in Side}  # type: ignore[misc]
        self.__dict__["broker"] = FakeBroker(world)
        self.__dict__["uplink"] = self.fake_uplink

    def program(self, side: Side) -> None:
        self.world.done.append(f"program {side}")


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
        self.board = watchlog.Board(config, self.world)
        self.keeper = Keeper(lambda: FakeHost(config, self.world), self.board)
        self.main = MainThread(self.world.monotonic, 0.25, lambda _ctl, _timeout, _before: {0: 1})
        self.guard = Guard(self.host, self.board, self.keeper, self.main)

    def look(self, dead: set[Side] | None = None) -> Health | None:
        self.world.now += 0.05
        verdict = self.guard.look(dead or set(), dict(self.world.pid))
        return None if verdict is None else verdict.health

    def events(self) -> list[dict[str, Any]]:
        return watchlog.last_events(self.config, 100)


def test_a_healthy_active_is_left_alone(config: Config) -> None:
    bed = Bed(config)
    assert [bed.look() for _ in range(50)] == [Health.HEALTHY] * 50
    assert bed.world.done == []


def test_a_death_steers_and_records(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.A)
    assert bed.look({Side.A}) is Health.FAILED
    assert bed.world.done == ["steer b", "reload"]
    assert bed.host.recorded_active() is Side.B
    (event,) = bed.events()
    assert (event["event"], event["from"], event["to"], event["signal"]) == ("failover", "a", "b", "process")
    assert set(event["ms"]) == {"steered", "owned", "recorded"}
    assert (event["moved"], event["left"]) == (2, [])


def test_a_stopped_active_is_killed_before_anything_is_given_away(config: Config) -> None:
    bed = Bed(config)
    bed.world.stopped_pids = {1}
    while bed.look() is not Health.FAILED:
        assert bed.world.done == []
    assert bed.world.done == ["kill a", "steer b", "reload"]
    assert "fenced" in bed.events()[0]["ms"]


def test_a_hung_active_is_not_killed_where_there_is_nowhere_to_go(config: Config) -> None:
    """Its PMD thread stands still; another one may not."""
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    for _ in range(100):
        bed.look()
        bed.main.turn()
    assert bed.look() is Health.FAILED
    assert bed.world.done == []
    state = watchlog.read_state(config)
    assert state is not None
    assert "no standby" in state["failover_problem"]


def test_a_stopped_active_is_ended_and_started_again_where_there_is_nowhere_to_go(config: Config) -> None:
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    bed.world.stopped_pids = {1}
    for _ in range(10):
        bed.look()
    assert bed.world.done == ["kill a"]
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.RESTART


def test_an_upgrade_s_parked_vms_are_a_refuge_too(config: Config) -> None:
    bed = Bed(config, prepared=False)
    with bed.host.lock():
        bed.world.die(Side.A)
        bed.look({Side.A})
    assert bed.host.recorded_active() is Side.B


def unparked_in_upgrade(config: Config) -> Bed:
    """An upgrade has begun, its new instance is connected, and nothing is parked on it yet. The active hangs."""
    bed = Bed(config, prepared=False)
    bed.world.parked = {name: set() for name in bed.world.owner}
    with Journals(config.state_dir, bed.world).begin("upgrade", Shape(("park",))):
        pass
    bed.world.stopped_pids = {1}
    return bed


def test_an_active_that_hangs_before_an_upgrade_has_parked_is_replaced_too(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    with bed.host.lock():
        for _ in range(10):
            bed.look()
    assert bed.world.done == ["kill a", "steer b", "park vm1 b", "park vm2 b", "reload"]
    assert bed.host.recorded_active() is Side.B


def test_nobody_is_sent_to_a_new_instance_that_no_upgrade_works_on(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    for _ in range(10):
        bed.look()
    assert bed.world.done == []


def test_configurations_of_one_run_directory_have_one_lock(config: Config, tmp_path: Path) -> None:
    """The instances are the run directory's, wherever the journals are."""
    other = config.model_copy(update={"state_dir": tmp_path / "other"})
    with Bed(config).host.lock(), pytest.raises(BusyError), Host(other, FakeSystem()).lock():
        pass


def test_where_no_instance_is_left_of_an_unfinished_upgrade_the_active_is_started(config: Config) -> None:
    bed = unparked_in_upgrade(config)
    assert bed.keeper.turn() is Task.NOTHING
    for side in Side:
        bed.world.die(side)
    with bed.host.lock(), pytest.raises(BusyError):
        bed.keeper.turn()
    assert bed.world.done == []
    assert bed.keeper.turn() is Task.RESTART
    assert bed.world.done == ["start a host", "program a", "steer a"]


def test_an_upgrade_that_has_retired_the_old_instance_leaves_it_to_the_keeper(config: Config) -> None:
    bed = Bed(config, prepared=False)
    with Journals(config.state_dir, bed.world).begin("upgrade", Shape((), ("retire", "postcheck"))) as journal:
        journal.append(Record(Kind.COMMIT))
        journal.append(Record(Kind.START, "retire"))
        bed.world.pid[Side.B], bed.world.state[Side.B] = None, State.STOPPED
        assert bed.keeper.turn() is Task.NOTHING
        journal.append(Record(Kind.DONE, "retire"))
    assert bed.keeper.turn() is Task.START
    assert bed.world.done == ["start b host"]


def test_a_broker_that_forgot_what_is_parked_is_told_again(config: Config) -> None:
    bed = Bed(config)
    bed.world.parked["vm2"] = set()
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert "park vm2 b" in bed.world.done
    assert bed.world.owner["vm2"] is Side.B


def test_an_uplink_that_cannot_be_steered_is_tried_again(config: Config) -> None:
    bed = Bed(config)
    bed.host.fake_uplink.failures = 2
    bed.world.die(Side.A)
    bed.look({Side.A})
    assert bed.host.recorded_active() is Side.A
    for _ in range(50):
        bed.look()
    assert bed.host.recorded_active() is Side.B
    assert len(bed.events()) == 1


def test_the_uplink_comes_back_from_a_standby_that_dies_in_an_upgrade(config: Config) -> None:
    bed = Bed(config)
    bed.world.uplink_owner = Side.B
    bed.world.die(Side.B)
    bed.look({Side.B})
    assert bed.world.done == ["steer a"]
    assert bed.host.recorded_active() is Side.A


def test_a_standby_that_dies_changes_nothing_for_the_vms(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    bed.look({Side.B})
    assert bed.world.done == []


def test_an_instance_that_a_fail_over_counts_is_not_counted_once_more(config: Config) -> None:
    """The keeper may look between the record of the new active instance and the end of the fail-over."""
    bed = Bed(config)
    bed.keeper.expect(bed.world.now)
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.events() == []


def test_a_dead_standby_is_cleaned_and_counted(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]
    assert [event["event"] for event in bed.events()] == ["standby-died"]
    assert bed.keeper.turn() is Task.NOTHING  # the back-off
    bed.world.now += 1.5
    assert bed.keeper.turn() is Task.START


def test_a_standby_that_stands_still_is_replaced(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.stopped_pids = {2}
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.stopped_pids = set()
    bed.world.now += 1.0
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.stopped_pids = {2}
    assert bed.keeper.turn() is Task.NOTHING
    bed.world.now += 1.0
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]
    assert bed.events()[-1]["event"] == "standby-died"


def test_an_active_without_its_database_is_given_one(config: Config) -> None:
    bed = Bed(config)
    bed.world.no_database = {Side.A}
    assert bed.keeper.turn() is Task.MEND
    assert bed.world.done == ["mend a"]
    assert not bed.host.instances[Side.A].lacks_database()
    assert [event["event"] for event in bed.events()] == ["database"]


def test_a_standby_without_its_database_is_replaced(config: Config) -> None:
    bed = Bed(config)
    bed.world.no_database = {Side.B}
    assert bed.keeper.turn() is Task.CLEAN
    assert bed.world.done == ["stop b"]


def test_a_crash_loop_ends(config: Config) -> None:
    bed = Bed(config)
    for _ in range(20):
        if bed.world.pid[Side.B] is not None:
            bed.world.die(Side.B)
        bed.keeper.turn()
        bed.world.now += 20
        bed.keeper.turn()
    assert sum(each.startswith("start") for each in bed.world.done) == config.watch.crash_limit - 1
    assert bed.events()[-1]["event"] == "gave-up"
    state = watchlog.read_state(config)
    assert state is not None
    assert state["gave_up"]


def test_the_keeper_does_nothing_while_an_upgrade_holds_the_lock(config: Config) -> None:
    bed = Bed(config)
    bed.world.die(Side.B)
    with bed.host.lock(), pytest.raises(BusyError, match="already under way"):
        bed.keeper.turn()
    assert bed.world.done == []


def test_an_upgrade_waits_for_the_watchdog_and_for_nobody_else(config: Config) -> None:
    bed = Bed(config)
    own = os.getpid()
    bed.world.processes[own] = ["watch"]
    begun = bed.world.now
    with bed.host.lock():
        with pytest.raises(BusyError), bed.host.lock(60.0):
            pass
        assert bed.world.now == begun
        watchlog.lock_path(config).write_text(str(own))
        with pytest.raises(BusyError), bed.host.lock(60.0):
            pass
        assert bed.world.now >= begun + 60.0


def test_the_keeper_takes_no_lock_when_nothing_is_to_do(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    with bed.host.lock():
        assert bed.keeper.turn() is Task.NOTHING


def test_a_vm_that_the_standby_took_is_returned(config: Config) -> None:
    bed = Bed(config)
    bed.keeper._programmed = bed.keeper._stamp
    bed.world.owner["vm1"] = Side.B
    assert bed.keeper.turn() is Task.RETURN
    assert bed.world.done == ["park vm1 a", "move vm1 a"]


@pytest.mark.parametrize("other", ["release", "files"])
def test_an_upgrade_to_something_else_ends_the_standby(config: Config, other: str) -> None:
    bed = Bed(config)
    bed.world.outdated = other == "files"
    wanted = replace(RELEASE, ovs_version="9.9.9") if other == "release" else RELEASE
    assert not standby.yield_to_upgrade(bed.host, Side.A, wanted)
    assert bed.world.done == ["stop b"]
    assert bed.world.parked == {"vm1": set(), "vm2": set()}
    assert not standby.yield_to_upgrade(bed.host, Side.A, wanted)


def test_off_does_nothing(config: Config) -> None:
    off = config.model_copy(update={"watch": config.watch.model_copy(update={"mode": "off"})})
    Watchdog(off, System()).run()
    assert not config.run_dir.exists()


def test_a_second_watchdog_is_refused(config: Config) -> None:
    config.run_dir.mkdir()
    system = System()
    with system.lock(watchlog.lock_path(config), "a watchdog"), pytest.raises(BusyError, match="a watchdog is already"):
        Watchdog(config, system).run()


def test_a_half_written_event_is_skipped(config: Config) -> None:
    board = watchlog.Board(config, World([]))
    board.event("standby", side=Side.A)
    with watchlog.events_path(config).open("a") as out:
        out.write('{"event": "fail')
    assert [event["event"] for event in watchlog.last_events(config, 5)] == ["standby"]
    assert json.loads(watchlog.events_path(config).read_text().splitlines()[0])["side"] == "a"


# ------------------------------------------------------------------------------------------------------------ vitals


def test_the_main_thread_s_answer_and_silence_are_seen() -> None:
    clock = [0.0]
    replies: list[Any] = [{0: 5}, NoAnswer("no answer"), {0: 6}]

    def ask(_ctl: Path, _timeout: float, _before: Any) -> Any:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    main = MainThread(lambda: clock[0], 1.0, ask)
    main.turn()
    assert main.seen() == (False, None)  # nobody to ask
    main.watch(Path("/ctl"), 1)
    main.turn()
    assert main.seen() == (False, Answer(0.0, {0: 5}))
    main.turn()
    assert main.seen() == (True, Answer(0.0, {0: 5}))
    clock[0] = 2.0
    main.turn()
    assert main.seen() == (False, Answer(2.0, {0: 6}))
    main.watch(Path("/ctl"), 2)
    assert main.seen() == (False, None)


def test_a_death_is_told_once(tmp_path: Path) -> None:
    system, deaths = System(), Deaths()
    pid = system.spawn(["sleep", "60"], log=tmp_path / "log")
    try:
        deaths.track({Side.A: pid, Side.B: None})
        assert deaths.wait(0.01) == set()
        system.kill(pid, grace=0)
        assert deaths.wait(10.0) == {Side.A}
        assert deaths.wait(0.01) == set()
    finally:
        deaths.close()
        if system.alive(pid):
            system.kill(pid)


@pytest.mark.parametrize(("queues", "microseconds"), [(0, 2000), (1, 2000), (20, 3200), (64, 10_000), (1020, 10_000)])
def test_a_standby_with_more_queues_sleeps_longer(queues: int, microseconds: int) -> None:
    assert standby.idle_sleep_us(queues) == microseconds

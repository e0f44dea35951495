"""Following the active instance: rounds, the quiet point, and what is done after the cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ovs_hotswap.clone.changes import Changes
from ovs_hotswap.clone.compare import Commands
from ovs_hotswap.clone.dumps import Flow, Key, Pipeline
from ovs_hotswap.clone.follow import Databases, Follower, Round, foreign_bridges, foreign_ports
from ovs_hotswap.clone.rows import Rows
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from tests.unit.clone_bed import host
from tests.unit.fake_system import FakeSystem
from tests.unit.test_clone_changes import with_window
from tests.unit.test_clone_pipeline import paths

A, B = paths(Path("/run/a")), paths(Path("/run/b"))
KEY = Key(0, 1, "in_port=1")


@dataclass
class Switch:
    """A switch whose pipeline is data; ``change`` is done each time that it is read."""

    pipeline: Pipeline = field(default_factory=lambda: Pipeline(15))
    change: Callable[[], None] = lambda: None
    sent: list[Commands] = field(default_factory=list)

    def read(self, version: int | None = None, ours: object = None) -> Pipeline:
        self.change()
        return self.pipeline

    def send(self, commands: Commands) -> None:
        self.sent.append(commands)


class Bed:
    def __init__(self) -> None:
        self.system = FakeSystem()
        self.active, self.new = Switch(), Switch()
        self.rows: Rows = host()
        self.database: list[str] = []
        self.fails = 0
        databases = Databases(self._bring, lambda *_: self.database, lambda _: copy.deepcopy(self.rows))
        self.follower = Follower(self.system, A, B, Changes(), bridge=self._bridge, databases=databases)

    def _bring(self, *_: object) -> list[str]:
        if self.fails:
            self.fails -= 1
            raise SwitchError("a group is gone")
        return self.database

    def _bridge(self, at: InstancePaths, name: str) -> Switch:
        assert name == "br-int"
        return self.active if at is A else self.new


def flows(*given: Flow) -> dict[Key, Flow]:
    return {flow.key: flow for flow in given}


def test_a_round_sends_what_differs() -> None:
    bed = Bed()
    bed.active.pipeline = Pipeline(15, flows=flows(Flow(KEY, "drop", idle=5, hard=9)))
    bed.database = ["Port vm1: missing"]
    found = bed.follower.round()
    assert found.texts == ["Port vm1: missing", "br-int: + flow cookie=0x0,table=0,priority=1,in_port=1,actions=drop"]
    assert bed.new.sent == [Commands(bundle=("flow add cookie=0x0,table=0,priority=1,in_port=1,actions=drop",))]
    assert bed.active.sent == []
    assert bool(found)
    assert not Round()


def test_equal_changes_nothing() -> None:
    bed = Bed()
    bed.active.pipeline = Pipeline(15, fragments="drop")
    bed.database = ["Port vm1: missing"]
    assert bed.follower.equal() == ["Port vm1: missing", "br-int: fragments: normal, not drop"]
    assert bed.new.sent == []


def test_it_settles_when_nothing_came_for_the_quiet_time() -> None:
    bed = Bed()
    settled = bed.follower.settle(1.0, 10.0)
    assert settled.left == ()
    assert settled.rounds > 2
    assert 1.0 <= bed.system.now - 1000 < 2.0


def test_a_change_starts_the_quiet_time_again() -> None:
    bed = Bed()

    def change() -> None:
        same = Pipeline(15) if bed.system.now > 1005 else Pipeline(15, fragments="drop")
        bed.active.pipeline = same

    bed.active.change = change
    assert bed.follower.settle(1.0, 20.0).left == ()
    assert bed.system.now - 1000 > 6.0


def test_what_never_settles_is_named() -> None:
    bed = Bed()
    bed.database = ["Port vm1: missing"]
    assert bed.follower.settle(1.0, 3.0).left == ("Port vm1: missing",)
    bed.database = []
    assert bed.follower.settle(9.0, 3.0).left == ("the active side was not quiet for long enough",)


def test_a_round_that_the_active_side_outran_is_made_again() -> None:
    bed = Bed()
    bed.fails = 3
    assert bed.follower.settle(1.0, 10.0).left == ()
    bed.fails = 1000
    with pytest.raises(SwitchError, match="a group is gone"):
        bed.follower.settle(1.0, 10.0)


def test_a_side_that_has_ended_is_not_asked_again() -> None:
    bed = Bed()
    bed.fails = 1000
    with pytest.raises(SwitchError, match="a group is gone"):
        bed.follower.settle(1.0, 10.0, lambda: False)
    assert bed.fails == 999


def test_after_the_cut_only_what_controllers_changed_is_done() -> None:
    bed = Bed()
    timed, lasting, gone = Flow(KEY, "drop", idle=5), Flow(Key(1, 1, ""), "drop", cookie=6), Flow(Key(2, 1, ""), "drop")
    bed.active.pipeline = Pipeline(15, flows=flows(timed, lasting, gone))
    assert bed.follower.arm() == 1
    assert bed.new.sent == [Commands(bundle=(f"flow add {timed.text}",))]
    bed.new.sent.clear()
    added, expired = Flow(Key(4, 1, ""), "drop"), Flow(Key(5, 1, ""), "drop", hard=3)
    learning = Flow(Key(3, 1, ""), "learn(table=9,cookie=0x99,output:NXM_OF_IN_PORT[])")
    learned = Flow(Key(9, 1, "dl_dst=02:00:00:00:00:01"), "output:2", cookie=0x99)
    down = {"7": frozenset({"PORT_DOWN"})}
    bed.new.pipeline = Pipeline(15, flows=flows(timed, lasting, gone, learning, learned), ports=down)
    bed.active.pipeline = Pipeline(15, flows=flows(replace(lasting, cookie=7), added, expired, learning))
    assert len(bed.follower.late()) == 4
    assert bed.new.sent == [Commands(bundle=(
        "flow add cookie=0x7,table=1,priority=1,actions=drop", "flow add cookie=0x0,table=4,priority=1,actions=drop",
        "flow delete_strict table=2,priority=1"))]  # fmt: skip
    bed.new.pipeline = Pipeline(15, flows=flows(timed, replace(lasting, cookie=7), added, learning, learned))
    assert bed.follower.late() == []


def test_the_last_look_gives_a_switch_that_learns_another_chance() -> None:
    bed = Bed()
    bed.active.pipeline = Pipeline(15, fragments="drop")
    reads = iter(["normal", "normal", "drop"])

    def change() -> None:
        bed.new.pipeline = Pipeline(15, fragments=next(reads))

    bed.new.change = change
    assert bed.follower.equal(tries=3) == []
    assert len(bed.new.sent) == 1
    bed.new.change = lambda: None
    bed.new.pipeline = Pipeline(15)
    assert bed.follower.equal(tries=3) == ["br-int: fragments: normal, not drop"]
    assert len(bed.new.sent) == 3


def test_a_vm_that_is_down_is_followed_and_a_device_is_not() -> None:
    bed = Bed()
    down = frozenset({"PORT_DOWN"})
    bed.active.pipeline = Pipeline(15, ports={"7": down, "LOCAL": down, "60007": frozenset({"NO_FLOOD"})})
    assert bed.follower.round().texts == ["br-int: + port 7 PORT_DOWN"]
    assert bed.new.sent == [Commands(after=(("mod-port", "7", "down"),))]


def test_what_a_bridge_cannot_show_is_named() -> None:
    bed = Bed()
    assert bed.follower.unseen() == []
    bed.active.pipeline = Pipeline(10)
    (text,) = bed.follower.unseen()
    assert text.startswith("bridge br-int allows no version of OpenFlow from 1.3 on")


def test_bridges_of_ovs_hotswap_are_left_out() -> None:
    assert foreign_bridges(with_window(host())) == ["br-int"]
    ports = {"7": "dpdkvhostuserclient", "LOCAL": "internal"}
    assert foreign_ports(host(), "br-int") == ports
    assert foreign_ports(with_window(host()), "br-int") == ports
    assert foreign_ports(host(), "other") == {}

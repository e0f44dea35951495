"""The order in which VMs are handed over, and what happens when one cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovs_hotswap.backends import MoveResult, OwnerCertainty, Undelivered, VmStatus
from ovs_hotswap.config import Program
from ovs_hotswap.errors import BrokerError, HotswapError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, MessageThread, Side
from ovs_hotswap.plan.executor import Event, StepContext
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.upgrade import baseline
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.vm_ports import VmPort
from tests.support.fake_backends import FakeBackEnds, VmStates, ring_status, vm_status
from tests.unit.fake_system import FakeSystem

THREADS = {Side.A: MessageThread(3, None), Side.B: MessageThread(4, 5)}


class Guests(VmStates):
    """VMs on side a. ``bad`` cannot be moved so many times more, ``deaf`` are not served by these sides, ``odd`` have
    eight regions of memory."""

    def __init__(self, vms: Sequence[str]) -> None:
        super().__init__(vms)
        self.bad: dict[str, int] = {}
        self.deaf: dict[str, set[Side]] = {}
        self.odd: set[str] = set()


class RowsOfVms(FakeBackEnds):
    """``room``: VMs that can be armed at once. ``most``: those that were, or whose frames had not been asked for."""

    def __init__(self, states: Guests) -> None:
        super().__init__(states)
        self.guests = states
        self.calls: list[list[str]] = []
        self.asked: list[str] = []
        self.untold: set[str] = set()
        self.armed: list[str] = []
        self.room = 1000
        self.most = 0
        self.moved: list[str] = []

    def vm(self, name: str) -> VmStatus:
        rings = (ring_status(1, 10, 9 if self._deaf(name) else 10),)
        return replace(super().vm(name), rings=rings,
                       unparkable="its memory has 8 regions" if name in self.guests.odd else None)  # fmt: skip

    def _deaf(self, name: str) -> bool:
        return self.guests.owner[name] in self.guests.deaf.get(name, ())

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        return [list(names[start : start + self.room]) for start in range(0, len(names), self.room)]

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        self.armed += names
        self.most = max(self.most, len(self.armed) + len([name for name in self.moved if name not in self.asked]))
        return self.armed

    def disarm(self, names: Sequence[str]) -> None:
        self.armed = [name for name in self.armed if name not in names]

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[MoveResult], HotswapError | None]:
        assert threads is THREADS
        self.calls.append(list(names))
        moved, error = super().move_many(names, to, threads)
        done = [each.vm for each in moved]
        self.armed = [name for name in self.armed if name not in done]
        self.moved += [name for name in done if name not in self.guests.empty]
        return moved, error

    def why_not_moved(self, name: str, to: Side) -> str | None:
        bad = self.guests.bad
        if name not in self.guests.odd and not bad.get(name, 0):
            return None
        bad[name] = bad.get(name, 0) - 1
        return f"vm {name} cannot move"

    def unserved(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self._deaf(name)]

    def undelivered_many(self, names: Sequence[str]) -> Iterator[Undelivered]:
        self.asked += names
        for name in names:
            fault = BrokerError("it is gone") if name in self.untold else None
            yield Undelivered(name, [] if fault else [name.encode()], fault)


def port_of(vm: str) -> VmPort:
    return VmPort.model_construct(name=vm, bridge="br0", ofport=int(vm[2:]), socket=Path("/x"))


class Bed:
    def __init__(self, count: int) -> None:
        self.guests = Guests([f"vm{number}" for number in range(count)])
        self.broker = RowsOfVms(self.guests)
        self.sent: list[tuple[bytes, str]] = []
        self.events: list[Event] = []
        self.ranks: dict[Side, Rank] = {}
        self.facts: dict[str, Any] = {}
        self.system = FakeSystem()
        self.system.processes = {1: ["a"], 2: ["b"]}
        openflow = SimpleNamespace(packet_outs=self.sent.extend)
        instances = {side: SimpleNamespace(life=lambda: Life.RUNS) for side in Side}
        host = SimpleNamespace(
            config=SimpleNamespace(program=Program.OVERLAY),
            backends=self.broker, openflow=lambda _side, _bridge: openflow, port_of=port_of, wait=self._wait,
            control=lambda side: Path(f"/nonexistent/{side}.ctl"), prefer_threads=self._prefer,
            message_threads=lambda: contextlib.nullcontext(THREADS), system=self.system, instances=instances,
        )  # fmt: skip
        self.host = cast(Host, host)
        self.run = StepContext(lambda: self.facts, self.facts.update, self.events.append)

    @property
    def told(self) -> list[str]:
        return list(self.facts.get("warnings", []))

    def _prefer(self, side: Side, rank: Rank) -> None:
        self.ranks[side] = rank
        if side is Side.B:
            raise SwitchError("instance b ended")  # then it does not matter which threads are preferred

    def _wait(self, true: Any, seconds: float, otherwise: Any) -> None:
        if not true():
            self.system.sleep(seconds)
            raise SwitchError(otherwise())


def test_an_instance_that_stands_still_is_not_waited_for() -> None:
    bed = Bed(2)
    bed.host.instances[Side.B].life = lambda: Life.STOPPED  # type: ignore[method-assign]
    with pytest.raises(SwitchError, match="instance b is stopped"):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == []


@pytest.mark.parametrize(("count", "calls"), [(0, []), (1, [1]), (2, [1, 1]), (255, [1, 254])])
def test_one_alone_then_many(count: int, calls: list[int]) -> None:
    bed = Bed(count)
    moves = move_all(bed.host, Side.B, bed.run)
    assert [len(each) for each in bed.broker.calls] == calls
    assert set(bed.guests.owner.values()) <= {Side.B}
    assert list(moves) == bed.broker.asked == list(bed.guests.owner)
    assert [(event.item, event.count, event.total) for event in bed.events] == [
        (name, number, count) for number, name in enumerate(bed.guests.owner, 1)
    ]


@pytest.mark.parametrize("to", list(Side))
def test_the_side_that_takes_the_rings_comes_first(to: Side) -> None:
    bed = Bed(1)
    bed.guests.owner["vm0"] = to.other
    move_all(bed.host, to, bed.run)
    assert bed.ranks == {to: Rank.TAKES, to.other: Rank.GIVES}


def test_frames_are_delivered_by_the_new_owner() -> None:
    bed = Bed(2)
    move_all(bed.host, Side.B, bed.run)
    assert bed.sent == [(b"vm0", "output:0"), (b"vm1", "output:1")]


def test_frames_of_a_vm_that_is_in_the_intent_no_more_are_given_to_nobody() -> None:
    bed = Bed(3)
    bed.host.port_of = lambda vm: None if vm == "vm1" else port_of(vm)  # type: ignore[method-assign]
    assert len(move_all(bed.host, Side.B, bed.run)) == 3
    assert bed.sent == [(b"vm0", "output:0"), (b"vm2", "output:2")]


def test_no_more_vms_are_between_two_instances_than_there_is_room_for() -> None:
    bed = Bed(7)
    bed.broker.room, bed.guests.empty = 3, {"vm1"}
    moves = move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == [["vm0"], ["vm1", "vm2"], ["vm3", "vm4", "vm5"], ["vm6"]]
    assert bed.broker.most == 3
    assert [name for name, owner in bed.guests.owner.items() if owner is Side.A] == ["vm1"], "it has no rings"
    assert list(moves) == bed.broker.asked == [f"vm{number}" for number in (0, 2, 3, 4, 5, 6)]
    assert [event.count for event in bed.events] == list(range(1, 8))


@pytest.mark.parametrize("back", [False, True])
def test_a_vm_that_cannot_be_moved_takes_no_room_from_the_next_ones(back: bool) -> None:
    bed = Bed(6)
    bed.broker.room, bed.guests.bad = 2, {"vm1": 1000}
    with pytest.raises(BrokerError, match="vm1 cannot move"):
        move_all(bed.host, Side.B, bed.run, back=back)
    assert bed.broker.most == 2
    assert [name for name, owner in bed.guests.owner.items() if owner is Side.A] == ["vm1"]


def test_many_frames_are_delivered_at_once() -> None:
    bed = Bed(5)
    batches: list[int] = []
    frames = [bytes(9000)] * 50
    bed.broker.undelivered_many = lambda names: (  # type: ignore[method-assign]
        Undelivered(name, frames) for name in names)  # fmt: skip
    openflow = SimpleNamespace(packet_outs=lambda frames: batches.append(len(frames)))
    bed.host.openflow = lambda side, bridge=None: cast(OpenFlow, openflow)  # type: ignore[method-assign]
    move_all(bed.host, Side.B, bed.run)
    assert batches == [150, 100]


def test_a_vm_whose_frames_are_not_known_costs_no_other_vm_its_frames() -> None:
    bed = Bed(3)
    bed.broker.untold = {"vm1"}
    move_all(bed.host, Side.B, bed.run)
    assert bed.sent == [(b"vm0", "output:0"), (b"vm2", "output:2")]
    assert bed.told == ["VM vm1: frames that arrived during its move are not known: it is gone"]


def test_frames_that_cannot_be_delivered_are_told_and_the_others_are_delivered() -> None:
    bed = Bed(2)
    bed.broker.undelivered_many = lambda names: (  # type: ignore[method-assign]
        Undelivered(name, [name.encode()], undeliverable=int(name[-1])) for name in names)  # fmt: skip
    move_all(bed.host, Side.B, bed.run)
    assert bed.sent == [(b"vm0", "output:0"), (b"vm1", "output:1")]
    assert bed.told == [
        "VM vm1: a large frame of several segments (GSO) arrived during its move and cannot be delivered"
    ]


def test_vms_that_are_there_already_stay() -> None:
    bed = Bed(3)
    bed.guests.owner["vm1"] = Side.B
    assert list(move_all(bed.host, Side.B, bed.run)) == ["vm0", "vm2"]
    assert bed.broker.calls == [["vm0"], ["vm2"]]


def test_a_vm_without_a_guest_is_counted_but_has_no_time() -> None:
    bed = Bed(3)
    bed.guests.empty = {"vm1"}
    assert list(move_all(bed.host, Side.B, bed.run)) == ["vm0", "vm2"]
    assert [event.count for event in bed.events] == [1, 2, 3]


def test_the_vm_that_goes_alone_is_chosen() -> None:
    bed = Bed(4)
    move_all(bed.host, Side.B, bed.run, first="vm2")
    assert bed.broker.calls == [["vm2"], ["vm0", "vm1", "vm3"]]


def test_an_instance_that_serves_nobody_gets_one_vm() -> None:
    bed = Bed(10)
    bed.guests.deaf = {name: {Side.B} for name in bed.guests.owner}
    with pytest.raises(SwitchError, match="instance b does not take what the guest sends of VM vm0, instance a does"):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == [["vm0"], ["vm0"]]
    assert set(bed.guests.owner.values()) == {Side.A}


@pytest.mark.parametrize("wedged", ["vm0", "vm7"])
def test_a_vm_that_neither_side_serves_keeps_nobody_from_being_moved(wedged: str) -> None:
    bed = Bed(10)
    bed.guests.deaf = {wedged: set(Side)}
    move_all(bed.host, Side.B, bed.run)
    assert set(bed.guests.owner.values()) == {Side.B}
    assert baseline.known(bed.run) == {(wedged, 1)}
    assert bed.told == [f"VM {wedged} ring 1: stuck, 1 buffers outstanding at index 9, on both instances: not judged"]


def test_a_vm_that_was_not_served_before_is_not_tried() -> None:
    bed = Bed(3)
    bed.guests.deaf = {"vm1": set(Side)}
    baseline.remember(bed.run, {("vm1", 1)})
    move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == [["vm0"], ["vm1", "vm2"]]
    assert bed.told == []


def test_on_the_way_back_a_vm_that_is_not_served_is_named_and_no_error() -> None:
    bed = Bed(3)
    bed.guests.owner = dict.fromkeys(bed.guests.owner, Side.B)
    bed.guests.deaf = {"vm1": set(Side)}
    move_all(bed.host, Side.A, bed.run, back=True)
    assert set(bed.guests.owner.values()) == {Side.A}
    assert bed.told == ["instance a does not take what the guest sends of VM vm1"]


def test_a_vm_that_cannot_be_moved_at_once_is_moved_last() -> None:
    bed = Bed(10)
    bed.guests.bad = {"vm0": 1, "vm4": 3}
    moves = move_all(bed.host, Side.B, bed.run)
    assert list(moves) == [f"vm{number}" for number in (1, 2, 3, 5, 6, 7, 8, 9, 0, 4)]
    assert set(bed.guests.owner.values()) == {Side.B}


def test_a_vm_that_cannot_be_moved_stays_alone_and_is_named() -> None:
    bed = Bed(10)
    bed.guests.bad = {"vm4": 1000}
    bed.guests.odd = {"vm6"}
    with pytest.raises(BrokerError) as raised:
        move_all(bed.host, Side.B, bed.run)
    assert "vm4 cannot move" in raised.value.message
    assert "VM vm6 cannot be moved to b: its memory has 8 regions" in raised.value.message
    assert [name for name, owner in bed.guests.owner.items() if owner is Side.A] == ["vm4", "vm6"]
    assert bed.broker.asked == ["vm0", "vm1", "vm2", "vm3", "vm5", "vm7", "vm8", "vm9"]
    assert bed.broker.armed == []


def test_many_vms_that_cannot_be_moved_do_not_take_their_time_each() -> None:
    bed = Bed(200)
    bed.guests.bad = dict.fromkeys(bed.guests.owner, 1000)
    moving = bed.broker.move_many

    def slow(*arguments: Any) -> Any:
        bed.system.sleep(2.0)
        return moving(*arguments)

    bed.broker.move_many = slow  # type: ignore[method-assign,assignment]
    with pytest.raises(BrokerError):
        move_all(bed.host, Side.B, bed.run)
    assert len(bed.broker.calls) < 10


def test_where_an_instance_has_ended_it_is_not_a_vm_s_fault() -> None:
    bed = Bed(10)
    bed.guests.bad = {"vm4": 1}
    move_many = bed.broker.move_many

    def dies(names: Sequence[str], *rest: Any) -> Any:
        if len(names) > 1:
            bed.host.instances[Side.B].life = lambda: Life.DEAD  # type: ignore[method-assign]
        return move_many(names, *rest)

    bed.broker.move_many = dies  # type: ignore[assignment]
    with pytest.raises(BrokerError, match="vm4 cannot move"):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == [["vm0"], [f"vm{number}" for number in range(1, 10)]]


def test_a_vm_that_was_started_meanwhile_is_told_from_one_that_fled() -> None:
    vm = vm_status()
    assert vm.newcomer(Side.A)
    others: list[dict[str, Any]] = [
        {"moves": 2},
        {"owner": Side.B},
        {"certainty": OwnerCertainty.CUT},
        {"qemu": None, "owner": None},
    ]
    assert not any(replace(vm, **changed).newcomer(Side.A) for changed in others)

"""The order in which VMs are handed over, and what happens when one cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovs_hotswap.errors import BrokerError, HotswapError, SwitchError
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank
from ovs_hotswap.upgrade.host import Host
from ovs_hotswap.upgrade.moving import move_all
from ovs_hotswap.upgrade.plan import Event, Run
from ovs_hotswap.upgrade.standby import newcomers

THREADS = {Side.A: MessageThread(3, None), Side.B: MessageThread(4, 5)}


class FakeBroker:
    """VMs by name and owner; ``bad`` cannot be moved, ``deaf`` are not served by side b, ``empty`` have no guest."""

    def __init__(self, names: Sequence[str]) -> None:
        self.owner = dict.fromkeys(names, Side.A)
        self.bad = self.deaf = self.empty = ""
        self.calls: list[list[str]] = []
        self.asked: list[str] = []
        self.armed: list[str] = []

    def vms(self, *, read: bool = True) -> list[dict[str, Any]]:
        return [{"name": name, "owner": owner, "certainty": "owns", "qemu": None if name == self.empty else 7}
                for name, owner in self.owner.items()]  # fmt: skip

    def arm(self, names: Sequence[str], _to: Side) -> list[str]:
        assert self.armed == []
        self.armed = list(names)
        return self.armed

    def disarm(self, names: Sequence[str]) -> None:
        self.armed = [name for name in self.armed if name not in names]

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread]
    ) -> tuple[list[dict[str, Any]], HotswapError | None]:
        assert threads is THREADS
        self.calls.append(list(names))
        assert self.armed[: len(names)] == list(names)
        del self.armed[: len(names)]
        moved: list[dict[str, Any]] = []
        for name in names:
            if name == self.bad:
                return moved, BrokerError(f"vm {name} cannot move")
            self.owner[name] = to
            empty = name == self.empty
            moved.append({"vm": name, "owner": None if empty else to, "total_us": 0.0 if empty else 100.0})
        return moved, None

    def unserved(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name == self.deaf]

    def undelivered(self, name: str) -> list[bytes]:
        self.asked.append(name)
        return [name.encode()]


class Bed:
    def __init__(self, count: int) -> None:
        self.broker = FakeBroker([f"vm{number}" for number in range(count)])
        self.sent: list[tuple[bytes, str]] = []
        self.events: list[Event] = []
        self.ranks: dict[Side, Rank] = {}
        openflow = SimpleNamespace(packet_out=lambda frame, actions: self.sent.append((frame, actions)))
        host = SimpleNamespace(
            road=self.broker, openflow=lambda _side: openflow, ofport=lambda name: int(name[2:]), wait=self._wait,
            control=lambda side: Path(f"/nonexistent/{side}.ctl"), prefer_threads=self._prefer,
            message_threads=lambda: contextlib.nullcontext(THREADS),
        )  # fmt: skip
        self.host = cast(Host, host)
        self.run = Run(dict, lambda _facts: None, self.events.append)

    def _prefer(self, side: Side, rank: Rank) -> None:
        self.ranks[side] = rank
        if side is Side.B:
            raise SwitchError("instance b ended")  # what is preferred matters to nobody then

    @staticmethod
    def _wait(true: Any, _seconds: float, otherwise: Any) -> None:
        if not true():
            raise SwitchError(otherwise())


@pytest.mark.parametrize(("count", "calls"), [(0, []), (1, [1]), (2, [1, 1]), (255, [1, 254])])
def test_one_alone_then_many(count: int, calls: list[int]) -> None:
    bed = Bed(count)
    moves = move_all(bed.host, Side.B, bed.run)
    assert [len(each) for each in bed.broker.calls] == calls
    assert set(bed.broker.owner.values()) <= {Side.B}
    assert list(moves) == bed.broker.asked == list(bed.broker.owner)
    assert [(event.item, event.count, event.total) for event in bed.events] == [
        (name, number, count) for number, name in enumerate(bed.broker.owner, 1)
    ]


@pytest.mark.parametrize("to", list(Side))
def test_the_side_that_takes_the_rings_comes_first(to: Side) -> None:
    bed = Bed(1)
    bed.broker.owner["vm0"] = to.other
    move_all(bed.host, to, bed.run)
    assert bed.ranks == {to: Rank.TAKES, to.other: Rank.GIVES}


def test_frames_are_delivered_by_the_new_owner() -> None:
    bed = Bed(2)
    move_all(bed.host, Side.B, bed.run)
    assert bed.sent == [(b"vm0", "output:0"), (b"vm1", "output:1")]


def test_vms_that_are_there_already_stay() -> None:
    bed = Bed(3)
    bed.broker.owner["vm1"] = Side.B
    assert list(move_all(bed.host, Side.B, bed.run)) == ["vm0", "vm2"]
    assert bed.broker.calls == [["vm0"], ["vm2"]]


def test_a_vm_without_a_guest_is_counted_but_has_no_time() -> None:
    bed = Bed(3)
    bed.broker.empty = "vm1"
    assert list(move_all(bed.host, Side.B, bed.run)) == ["vm0", "vm2"]
    assert [event.count for event in bed.events] == [1, 2, 3]


def test_an_instance_that_serves_nobody_gets_one_vm() -> None:
    bed = Bed(10)
    bed.broker.deaf = "vm0"
    with pytest.raises(SwitchError, match="instance b does not take what the guest sends of VM vm0"):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.calls == [["vm0"]]


def test_what_was_moved_before_a_fault_is_delivered() -> None:
    bed = Bed(10)
    bed.broker.bad = "vm4"
    with pytest.raises(BrokerError, match="vm4 cannot move"):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.asked == ["vm0", "vm1", "vm2", "vm3"]
    assert [name for name, owner in bed.broker.owner.items() if owner is Side.B] == bed.broker.asked


def test_vms_that_are_not_moved_after_all_are_not_minded_any_more() -> None:
    bed = Bed(10)
    bed.broker.bad = "vm4"
    with pytest.raises(BrokerError):
        move_all(bed.host, Side.B, bed.run)
    assert bed.broker.armed == []


def test_a_vm_that_was_started_meanwhile_is_told_from_one_that_fled() -> None:
    vm: dict[str, Any] = {"name": "vm1", "qemu": 7, "owner": Side.A, "certainty": "owns", "moves": 0}
    assert newcomers([vm], Side.A) == ["vm1"]
    others: list[dict[str, Any]] = [
        {"moves": 2},
        {"owner": Side.B},
        {"certainty": "cut"},
        {"qemu": None, "owner": None},
    ]
    assert newcomers([{**vm, **changed} for changed in others], Side.A) == []

"""The fault matrix itself: what it consists of, and that what it judges by can fail."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest

from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.steps import upgrade_plan
from tests.faults.matrix import (
    HANDOVER,
    IDLE,
    MOMENTS,
    Cell,
    End,
    Fault,
    Mend,
    Seen,
    Serves,
    Victim,
    cells,
    expectation,
    judge,
)
from tests.faults.remote import Count
from tests.faults.strike import Trail

_MENDED = (End.DIED, End.UNFINISHED)


def test_it_has_every_step_of_an_upgrade() -> None:
    shape = upgrade_plan().shape
    assert [moment for moment in MOMENTS if moment not in (IDLE, HANDOVER)] == [*shape.before, *shape.after]
    assert MOMENTS.index(HANDOVER) == MOMENTS.index("move") + 1


def test_only_what_cannot_be_is_left_out() -> None:
    every = {Cell(fault, victim, moment) for fault in Fault for victim in Victim for moment in MOMENTS}
    every -= {cell for cell in every if cell.fault not in cell.victim.faults}
    left_out = {(cell.victim, cell.moment) for cell in every - set(cells())}
    assert left_out == {
        *((victim, HANDOVER) for victim in Victim if not victim.process),
        (Victim.ORCHESTRATOR, IDLE), (Victim.STANDBY, "precheck"), (Victim.STANDBY_DB, "precheck"),
        (Victim.ACTIVE, "postcheck"), (Victim.ACTIVE_DB, "postcheck"),
    }  # fmt: skip


def good(cell: Cell) -> Seen:
    """What a cell that went as it should has left."""
    end, mend = min(expectation(cell).ends), expectation(cell).mend
    phase = {End.UNKNOWN: "back", End.UNFINISHED: "committed", End.DIED: "forward"}.get(end)
    serves = expectation(cell).serves
    moved = serves is Serves.NEW if serves else end is End.COMMITTED or (end in _MENDED and mend is Mend.RESUME)
    return Seen(old=Side.A, active=Side.B if moved else Side.A, struck=cell.moment, end=end, phase=phase,
                last_committed=end is End.COMMITTED, requests=100, ended=True)  # fmt: skip


def test_a_gap_of_more_than_half_a_second_is_a_failure_unless_it_is_said_why_not() -> None:
    for cell in cells():
        expected = expectation(cell)
        assert expected.gap_s <= 0.5 or expected.gap_why, cell
        seen = dataclasses.replace(good(cell), outage_ms={"vm2-remote": expected.gap_s * 1e3 + 1})
        assert any("was without an answer" in text for text in judge(expected, cell, seen)), cell
    quick = {victim for victim in Victim if not victim.process}
    quick |= {Victim.BROKER, Victim.WATCHDOG, Victim.QEMU, Victim.ORCHESTRATOR, Victim.STANDBY_DB, Victim.ACTIVE_DB}
    slow = {str(cell) for cell in cells() if cell.victim in quick and expectation(cell).gap_s > 0.5}
    assert slow == {"stop broker handover"}


def test_each_cell_can_pass_and_has_a_reason() -> None:
    assert [str(cell) for cell in cells() if not expectation(cell).why] == []
    judged = {str(cell): judge(expectation(cell), cell, good(cell)) for cell in cells()}
    assert {cell: faults for cell, faults in judged.items() if faults} == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"struck": "soak"}, "struck soak"),
        ({"end": End.HANGS}, "the upgrade hangs"),
        ({"silent": ["vm2 -> remote"]}, "no answers after"),
        ({"silent_while_stopped": ["vm2 -> remote"]}, "no answers while it was stopped"),
        ({"outage_ms": {"vm2-remote": 9000.0}}, "vm2-remote was without an answer for 9.0 s"),
        ({"outage_ms": {"vm2-remote": None}}, "for ever"),
        ({"doubled": {"10.100.0.1": 1}}, "sent twice"),
        ({"active": Side.A}, "the old instance is active, not the new instance"),
        ({"requests": 0}, "nothing was counted at the remote end"),
        ({"copies": 99}, "99 answers came twice"),
        ({"faults": ["vm1 is owned by b"]}, "vm1 is owned by b"),
        ({"last_committed": False}, "but the journal is finished"),
        ({"phase": "committed"}, "but the journal is committed"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, object], complaint: str) -> None:
    cell = Cell(Fault.KILL, Victim.WATCHDOG, "move")
    found = judge(expectation(cell), cell, dataclasses.replace(good(cell), **change))  # type: ignore[arg-type]
    assert any(complaint in each for each in found), found


def request(number: int, time: float, kind: int = 8, to: bytes = b"\x0a\x64\xff\xfe") -> bytes:
    """A frame as guest-ping.pl makes it."""
    ip = bytes([0x45, 0, 0, 84, 0, 0, 0, 0, 64, 1, 0, 0]) + b"\x0a\x64\x00\x01" + to
    return bytes(14) + ip + struct.pack("!BBHHH", kind, 0, 0, 7, number & 0xFFFF) + struct.pack("<Id", number, time)


def test_a_request_that_comes_twice_is_counted() -> None:
    count = Count()
    for frame in (request(1, 0.1), request(2, 0.2), request(2, 0.2), request(1, 9.1)):
        count.take(frame)
    assert (count.requests, count.doubled) == (3, {"10.100.0.1": 1})


def test_only_requests_to_the_remote_end_are_counted() -> None:
    count = Count()
    for frame in (request(1, 0.1, kind=0), request(1, 0.1, to=b"\x0a\x64\x00\x02")):
        count.take(frame)
        count.take(frame)
    assert (count.requests, count.doubled) == (0, {})


def test_the_step_under_way_is_followed(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "journal" / "current.jsonl")
    assert trail.step() is None
    with Journals(tmp_path, System()).begin("upgrade", StepNames(("park", "move"))) as journal:
        seen = [trail.step()]
        for kind, step in ((Kind.START, "park"), (Kind.DONE, "park"), (Kind.START, "move"), (Kind.FAILED, "move")):
            journal.append(Record(kind, step))
            seen.append(trail.step())
    assert seen == [None, "park", None, "move", None]

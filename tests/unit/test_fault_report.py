"""A fault matrix that is run in pieces, and what it strikes that is no process."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Record, StepNames
from ovs_hotswap.system import System
from tests.faults.__main__ import Todo
from tests.faults.matrix import IDLE, Cell, Fault, Seen, Victim
from tests.faults.report import Report, Result, revision
from tests.faults.strike import asked
from tests.faults.things import Clocked, damage, put_away

GOOD, BAD, NEW = (Cell(Fault.KILL, victim, IDLE) for victim in (Victim.BROKER, Victim.QEMU, Victim.ACTIVE))


def report(path: Path, *, warm: bool = False, revision: str = "1", resume: bool = True) -> Report:
    return Report(path, warm=warm, revision=revision, resume=resume)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    first = report(tmp_path / "report.json")
    first.add(Result(GOOD, [], Seen(), 8.0))
    first.add(Result(BAD, ["vm2 was silent"], Seen(), 9.0))
    return tmp_path / "report.json"


def test_what_was_good_is_not_run_again(path: Path) -> None:
    second = report(path)
    assert second.left([GOOD, BAD, NEW]) == [BAD, NEW]
    second.add(Result(BAD, [], Seen(), 9.0))
    second.add(Result(NEW, [], Seen(), 9.0))
    third = report(path)
    assert third.left([GOOD, BAD, NEW]) == []
    assert sum(each.seconds for each in third.results.values()) == 26.0


@pytest.mark.parametrize("change", [{"revision": "2"}, {"warm": True}, {"resume": False}])
def test_what_was_seen_of_something_else_does_not_count(path: Path, change: dict[str, object]) -> None:
    other = report(path, **change)  # type: ignore[arg-type]
    assert other.left([GOOD, BAD]) == [GOOD, BAD]
    assert other.results == {}


def revisions(root: Path, *texts: str) -> tuple[Path, set[str]]:
    """A source below ``root``, which has the last of ``texts``, and the revisions that it was with each of them."""
    source = root / "ovs_hotswap" / "model.py"
    source.parent.mkdir()
    seen = set()
    for text in texts:
        source.write_text(text)
        seen.add(revision(root))
    return source, seen


def test_any_change_of_the_sources_is_another_revision(tmp_path: Path) -> None:
    source, seen = revisions(tmp_path, "a", "b")
    source.rename(source.with_name("other.py"))
    assert len(seen | {revision(tmp_path)}) == 3


def test_a_change_of_comments_and_docstrings_is_the_same_revision(tmp_path: Path) -> None:
    source, seen = revisions(
        tmp_path, '"""A."""\ndef f():\n    """B."""\n    return 1\n', "# c\ndef f():\n    return (1)\n"
    )
    source.write_text(source.read_text().replace("1", '"""B."""'))
    assert len(seen) == 1
    assert revision(tmp_path) not in seen


def test_a_cell_that_needs_another_bed_is_left_for_it() -> None:
    clock = Cell(Fault.BACK, Victim.CLOCK, IDLE)
    todo = Todo([GOOD, clock], 60.0)
    assert todo.take(clocked=False) == GOOD
    assert todo.take(clocked=False) is None
    assert todo.peek() == clock
    assert todo.take(clocked=True) == clock
    assert todo.peek() is None


def test_no_cell_is_begun_when_time_is_up() -> None:
    assert Todo([GOOD], 0.0).peek() is None


@pytest.mark.parametrize("fault", Victim.JOURNAL.faults)
def test_a_journal_that_is_damaged_while_it_is_written_cannot_be_read(tmp_path: Path, fault: Fault) -> None:
    journals = Journals(tmp_path, System())
    with journals.begin("upgrade", StepNames(("park", "move"))) as journal:
        journal.append(Record(Kind.START, "park"))
        damage(journals.directory, fault)
        journal.append(Record(Kind.DONE, "park"))
        with pytest.raises(StateUnknown):
            journals.read()
    put_away(journals.directory)
    assert journals.read() is None


@pytest.mark.parametrize("fault", Victim.JOURNAL.faults)
def test_where_no_journal_is_written_a_damaged_one_is_left(tmp_path: Path, fault: Fault) -> None:
    journals = Journals(tmp_path, System())
    with journals.begin("upgrade", StepNames(("park",))) as journal:
        journal.append(Record(Kind.END))
    damage(journals.directory, fault)
    assert (journals.directory / "current.jsonl").exists()
    assert len(journals.history()) == 1
    if fault is Fault.TRUNCATE:  # nothing was begun
        assert journals.read() is None
    else:
        with pytest.raises(StateUnknown):
            journals.read()


def test_a_request_that_waits_is_seen() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert not asked(os.getpid(), os.getpid(), System())
        here.send(b"move")
        assert asked(os.getpid(), os.getpid(), System())
        there.recv(16)
        assert not asked(os.getpid(), os.getpid(), System())


def test_the_clock_of_a_bed_goes_ahead_and_back(tmp_path: Path) -> None:
    system = Clocked(tmp_path)

    def off() -> float:
        text = "import time; print(time.time())"
        before = time.time()
        return float(system.run([sys.executable, "-c", text]).stdout) - before

    for fault, hour in ((Fault.AHEAD, 3600), (Fault.BACK, -3600), (None, 0)):
        system.set_clock(fault)
        assert hour <= off() < hour + 1800


def test_the_program_reads_the_time_of_day_in_one_way_alone() -> None:
    """It is that which the clock of a bed changes."""
    others = re.compile(
        r"datetime\.now|utcnow|CLOCK_REALTIME|time\.time_ns|(local|gm|c)time\(\)|import time as|from time import"
    )
    root = Path(__file__).parents[2] / "ovs_hotswap"
    assert [path for path in root.rglob("*.py") if others.search(path.read_text())] == []

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import BusyError, HostError, StateUnknown
from ovs_hotswap.plan.journal import KEPT, Journals, parse
from ovs_hotswap.plan.records import Kind, Phase, Record, StepMark, StepNames
from ovs_hotswap.system import System

SHAPE = StepNames(("check", "start"), ("retire",))


class Clock(System):
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def wall(self) -> float:
        return self.now


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    (tmp_path / "boot_id").write_text("boot-1\n")
    return Journals(tmp_path / "state", Clock(), boot_id=tmp_path / "boot_id")


def current(journals: Journals) -> Path:
    return journals.directory / "current.jsonl"


def test_what_was_written_is_read_back(journals: Journals) -> None:
    with journals.begin(
        "upgrade", SHAPE, parameters={"release": "trixie", "vms": ("vm1",)}, versions={"to": "3.5"}
    ) as j:
        j.append(Record(Kind.START, "check", {"sleep": {"a": 50}, "none": None}))
        j.append(Record(Kind.FAILED, "check", text="no\nanswer"))
    contents = journals.read()
    assert contents is not None
    assert contents.header.kind == "upgrade"
    assert contents.header.shape == SHAPE
    assert contents.header.parameters == {"release": "trixie", "vms": ["vm1"]}
    assert contents.header.versions == {"to": "3.5"}
    assert contents.header.started == contents.times[0] == 1_700_000_000.0
    assert contents.records == (
        Record(Kind.START, "check", {"sleep": {"a": 50}, "none": None}),
        Record(Kind.FAILED, "check", text="no\nanswer"),
    )
    assert contents.standing.phase is Phase.BACK


def test_nothing_under_way(journals: Journals) -> None:
    assert journals.read() is None
    assert journals.reopen() is None
    assert journals.history() == []


def test_one_plan_at_a_time(journals: Journals) -> None:
    journals.begin("upgrade", SHAPE).__exit__(None, None, None)
    with pytest.raises(BusyError, match="upgrade begun 2023-11-14 22:13:20Z is not finished") as raised:
        journals.begin("upgrade", SHAPE)
    assert raised.value.hint is not None
    assert "resume" in raised.value.hint


@pytest.mark.parametrize("tail", [b'{"record":"sta', b"{", b"\0\0\0\0", b'{"record":"start"}\0\0\n'])
def test_a_torn_last_line_is_ignored_and_removed(journals: Journals, tail: bytes) -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        journal.append(Record(Kind.START, "check"))
    with current(journals).open("ab") as file:
        file.write(tail)
    journal2 = journals.reopen()
    assert journal2 is not None
    with journal2:
        journal2.append(Record(Kind.DONE, "check"))
    contents = journals.read()
    assert contents is not None
    assert [record.kind for record in contents.records] == [Kind.START, Kind.RESUME, Kind.DONE]


@given(cut=st.integers(min_value=0))
def test_a_file_cut_anywhere_holds_a_prefix_of_its_records(cut: int) -> None:
    header = {"version": 1, "kind": "upgrade", "before": ["check"], "after": [], "started": 1.0, "boot_id": "b"}
    lines = [header, {"record": "start", "step": "check", "facts": {"é": "ü"}, "time": 1.0}]
    lines += [{"record": "done", "step": "check", "time": 2.0}, {"record": "commit", "time": 3.0}]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    data = whole[: cut % (len(whole) + 1)]
    contents = parse(data, "journal")
    if contents is None:
        assert b"\n" not in data
        return
    assert len(contents.records) == data.count(b"\n") - 1
    assert whole[: contents.size].count(b"\n") == data.count(b"\n")


@pytest.mark.parametrize(
    ("line", "replacement"),
    [(1, b"not json"), (2, b"{}"), (2, b'{"record":"dance","time":1}'), (3, b'{"record":"done","step":"check","x":1}')],
)
def test_other_damage_names_the_line(journals: Journals, line: int, replacement: bytes) -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        journal.append(Record(Kind.START, "check"))
        journal.append(Record(Kind.DONE, "check"))
    lines = current(journals).read_bytes().splitlines()
    lines[line - 1] = replacement
    current(journals).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(StateUnknown, match=rf"current\.jsonl: line {line} is not"):
        journals.read()
    with pytest.raises(StateUnknown, match=f"line {line}"):
        journals.begin("upgrade", SHAPE)


def test_a_missing_record_is_noticed(journals: Journals) -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        journal.append(Record(Kind.START, "check"))
        journal.append(Record(Kind.DONE, "check"))
    lines = current(journals).read_bytes().splitlines(keepends=True)
    current(journals).write_bytes(lines[0] + lines[2])
    with pytest.raises(StateUnknown, match=r"record 1 .*makes no sense"):
        journals.reopen()


def test_another_format_is_refused(journals: Journals) -> None:
    journals.directory.mkdir(parents=True)
    current(journals).write_text('{"version": 3, "something": "new"}\n')
    with pytest.raises(StateUnknown, match="format 3, this program knows 2"):
        journals.read()


def test_a_torn_header_means_nothing_was_begun(journals: Journals) -> None:
    journals.directory.mkdir(parents=True)
    current(journals).write_text('{"version": 1, "ki')
    assert journals.read() is None
    journals.begin("upgrade", SHAPE).__exit__(None, None, None)
    assert journals.read() is not None


def test_a_reboot_is_noticed(journals: Journals, tmp_path: Path) -> None:
    journals.begin("upgrade", SHAPE).__exit__(None, None, None)
    again = journals.reopen()
    assert again is not None
    with again:
        assert not again.rebooted
    (tmp_path / "boot_id").write_text("boot-2\n")
    contents = journals.read()
    assert contents is not None
    assert journals.rebooted(contents)
    third = journals.reopen()
    assert third is not None
    with third:
        assert third.rebooted
    fourth = journals.reopen()
    assert fourth is not None
    with fourth:
        assert not fourth.rebooted, "worked on in this boot since"


def ended(journals: Journals) -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        journal.append(Record(Kind.END))


def test_ended_plans_are_kept_the_last_twenty(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "boot_id").write_text("boot-1")
    journals = Journals(tmp_path, clock, boot_id=tmp_path / "boot_id")
    for _ in range(KEPT + 3):
        clock.now += 60
        ended(journals)
    kept = journals.history()
    assert len(kept) == KEPT
    assert kept == sorted(kept, reverse=True)
    newest = parse(kept[0].read_bytes(), "journal")
    assert newest is not None
    assert newest.header.started == clock.now
    assert newest.standing.phase is Phase.ROLLED_BACK
    assert not current(journals).exists()


def test_a_plan_whose_process_died_right_after_its_end_is_kept_too(journals: Journals) -> None:
    journals.begin("upgrade", SHAPE).__exit__(None, None, None)
    with current(journals).open("a") as file:
        file.write('{"record":"end","time":2.0}\n')
    assert journals.read() is None
    assert [contents.header.kind for contents in journals.ended()] == ["upgrade"]
    with journals.begin("rollback", SHAPE):
        assert [contents.header.kind for contents in journals.ended()] == ["upgrade"]
        assert len(journals.history()) == 1
    contents = journals.read()
    assert contents is not None
    assert contents.header.kind == "rollback"


def test_a_full_disk_leaves_no_half_record(journals: Journals) -> None:
    """RLIMIT_FSIZE makes the kernel cut a write short and refuse the next, as a full disk does."""
    import resource
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with journals.begin("upgrade", SHAPE) as journal:
            journal.append(Record(Kind.START, "check"))
            size = current(journals).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
            with pytest.raises(HostError, match="cannot be written: File too large"):
                journal.append(Record(Kind.DONE, "check"))
            assert current(journals).stat().st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            journal.append(Record(Kind.DONE, "check"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    contents = journals.read()
    assert contents is not None
    assert contents.standing.marks["check"] is StepMark.DONE


def test_facts_that_json_cannot_hold_are_refused(journals: Journals) -> None:
    with journals.begin("upgrade", SHAPE) as journal:
        with pytest.raises(TypeError, match="cannot be kept"):
            journal.append(Record(Kind.START, "check", {"path": Path("/x")}))  # type: ignore[dict-item]
    contents = journals.read()
    assert contents is not None
    assert contents.records == ()


def test_a_clock_that_was_set_back_changes_nothing_in_the_order_of_plans(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "boot_id").write_text("boot-1")
    journals = Journals(tmp_path, clock, boot_id=tmp_path / "boot_id")
    kinds = [f"plan-{number}" for number in range(KEPT + 3)]
    for kind in kinds:
        clock.now -= 3600
        with journals.begin(kind, SHAPE) as journal:
            journal.append(Record(Kind.END))
    newest = [parse(path.read_bytes(), str(path)) for path in journals.history()]
    assert [contents.header.kind for contents in newest if contents] == kinds[: -KEPT - 1 : -1]


def test_what_was_moved_away_is_no_plan_of_the_history(journals: Journals) -> None:
    """Its hint has a damaged journal moved away, and it need not go far."""
    ended(journals)
    before = journals.history()
    (journals.directory / "99999999T999999.999999Z-upgrade.jsonl").mkdir()
    ended(journals)
    before = journals.history()
    for name in ("damaged.jsonl", "current-old.jsonl", "19700101.jsonl"):
        (journals.directory / name).write_text("not json\n")
    assert journals.history() == before


def test_what_cannot_be_dropped_from_the_history_is_no_fault_of_the_next_plan(journals: Journals) -> None:
    ended(journals)
    for number in range(KEPT + 1):
        (journals.directory / f"19700101T0000{number:02}.000000Z-upgrade.jsonl").mkdir()
    journals.begin("upgrade", SHAPE).__exit__(None, None, None)
    with current(journals).open("a") as file:
        file.write('{"record":"end","time":2.0}\n')
    with journals.begin("upgrade", SHAPE):
        assert len(journals.history()) == KEPT + 3


@pytest.mark.parametrize("started", ["1e400", "-1", "1e18", "NaN", '"now"', "null"])
def test_a_time_that_is_none_is_damage(journals: Journals, started: str) -> None:
    with journals.begin("upgrade", SHAPE):
        pass
    text = current(journals).read_text()
    current(journals).write_text(text.replace("1700000000.0", started))
    with pytest.raises(StateUnknown):
        journals.read()

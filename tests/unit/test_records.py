"""What the records of a journal mean: every kind of record, where it is possible, and where it is not."""

from __future__ import annotations

import pytest

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.plan.records import Kind, Phase, PlanProgress, Record, StepMark, StepNames, advance, fold

SHAPE = StepNames(("check", "start"), ("record", "retire"))
CHECKED = [Record(Kind.START, "check"), Record(Kind.DONE, "check")]
READY = [*CHECKED, Record(Kind.START, "start"), Record(Kind.DONE, "start")]
COMMITTED = [*READY, Record(Kind.COMMIT)]
RECORDED = [*COMMITTED, Record(Kind.START, "record"), Record(Kind.DONE, "record")]
RETIRED = [*RECORDED, Record(Kind.START, "retire"), Record(Kind.DONE, "retire")]


def marks(progress: PlanProgress) -> list[str]:
    return [str(progress.marks[name]) for name in (*SHAPE.before, *SHAPE.after)]


def test_a_journal_without_records_is_a_plan_that_goes_forward_and_has_done_nothing() -> None:
    progress = fold(SHAPE, [])
    assert progress == PlanProgress.new(SHAPE)
    assert (progress.shape, progress.phase, progress.ended) == (SHAPE, Phase.FORWARD, False)
    assert marks(progress) == ["pending"] * 4
    assert (dict(progress.facts), progress.failed_step, progress.failure) == ({}, "", "")
    assert fold(StepNames(("check",)), []).marks == {"check": StepMark.PENDING}


def test_a_plan_that_meets_no_failure_is_finished() -> None:
    progress = fold(SHAPE, [*RETIRED, Record(Kind.END)])
    assert (progress.phase, progress.ended) == (Phase.FINISHED, True)
    assert marks(progress) == ["done"] * 4


def test_each_step_is_marked_as_its_last_record_says() -> None:
    assert marks(fold(SHAPE, CHECKED[:1])) == ["started", "pending", "pending", "pending"]
    assert marks(fold(SHAPE, CHECKED)) == ["done", "pending", "pending", "pending"]
    undoing = fold(SHAPE, [*CHECKED, Record(Kind.UNDO, "check")])
    assert (undoing.phase, undoing.ended) == (Phase.BACK, False)
    assert marks(undoing) == ["undoing", "pending", "pending", "pending"]
    assert marks(advance(undoing, Record(Kind.UNDONE, "check"))) == ["undone", "pending", "pending", "pending"]


def test_a_failure_before_the_commit_turns_the_plan_back_and_is_remembered() -> None:
    failed = fold(SHAPE, [Record(Kind.START, "check"), Record(Kind.FAILED, "check", text="no answer")])
    assert (failed.phase, failed.failed_step, failed.failure) == (Phase.BACK, "check", "no answer")
    back = [Record(Kind.UNDO, "check"), Record(Kind.UNDONE, "check"), Record(Kind.END)]
    ended = failed
    for record in back:
        ended = advance(ended, record)
    assert (ended.phase, ended.ended) == (Phase.ROLLED_BACK, True)
    assert (ended.failed_step, ended.failure) == ("check", "no answer")


def test_a_failure_after_the_commit_or_on_the_way_back_changes_no_direction() -> None:
    failed = fold(SHAPE, [*COMMITTED, Record(Kind.START, "record"), Record(Kind.FAILED, "record", text="full")])
    assert (failed.phase, failed.failed_step, failed.failure) == (Phase.COMMITTED, "record", "full")
    back = fold(SHAPE, [*CHECKED, Record(Kind.UNDO, "check"), Record(Kind.FAILED, "check", text="stuck")])
    assert (back.phase, back.failed_step) == (Phase.BACK, "check")


def test_a_return_after_the_commit_names_its_step_or_else_the_one_that_failed() -> None:
    failed = [*COMMITTED, Record(Kind.START, "record"), Record(Kind.FAILED, "record", text="full")]
    named = fold(SHAPE, [*failed, Record(Kind.TURNED_BACK, "retire", text="instance b died")])
    assert (named.phase, named.failed_step, named.failure) == (Phase.BACK, "retire", "instance b died")
    unnamed = fold(SHAPE, [*failed, Record(Kind.TURNED_BACK, text="instance b died")])
    assert (unnamed.phase, unnamed.failed_step, unnamed.failure) == (Phase.BACK, "record", "instance b died")


def test_facts_of_all_records_are_kept_and_a_later_value_wins() -> None:
    progress = fold(
        SHAPE,
        [
            Record(Kind.FACTS, facts={"port": 1}),
            Record(Kind.START, "check", {"sleep": {"a": 50}}),
            Record(Kind.FACTS, facts={"port": 2}),
        ],
    )
    assert progress.facts == {"port": 2, "sleep": {"a": 50}}


@pytest.mark.parametrize("kind", [Kind.FACTS, Kind.UNDO_FAILED, Kind.RESUME, Kind.FORWARD_ANYWAY])
def test_a_remark_changes_neither_the_marks_nor_the_direction(kind: Kind) -> None:
    before = fold(SHAPE, COMMITTED)
    assert advance(before, Record(kind, "check", text="why")) == before


def test_a_step_that_is_done_or_undone_may_be_started_again() -> None:
    assert marks(fold(SHAPE, [*CHECKED, Record(Kind.START, "check")]))[0] == "started"
    assert marks(fold(SHAPE, [*COMMITTED, Record(Kind.START, "record"), Record(Kind.START, "record")]))[2] == "started"


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([Record(Kind.START, "dance")], "record 1 .start dance. makes no sense: the plan has no such step"),
        ([Record(Kind.START)], "it names no step"),
        ([Record(Kind.DONE, "check")], "record 1 .*the step is pending, not started"),
        ([*CHECKED, Record(Kind.DONE, "check")], "record 3 .*the step is done, not started"),
        ([*CHECKED, Record(Kind.UNDONE, "check")], "the step is done, not undoing"),
        ([Record(Kind.UNDO, "check")], "the step was never started"),
        ([Record(Kind.START, "start")], "check not done"),
        ([*READY, Record(Kind.START, "record")], "the plan goes forward"),
        ([*COMMITTED, Record(Kind.START, "start")], "the plan goes committed"),
        ([*COMMITTED, Record(Kind.START, "retire")], "record not done"),
        ([*COMMITTED, Record(Kind.UNDO, "check")], "the plan is committed"),
        ([*CHECKED, Record(Kind.COMMIT)], "start not done"),
        ([Record(Kind.COMMIT)], "check, start not done"),
        ([*COMMITTED, Record(Kind.COMMIT)], "the plan goes committed"),
        ([*CHECKED, Record(Kind.UNDO, "check"), Record(Kind.COMMIT)], "the plan goes back"),
        ([*READY, Record(Kind.TURNED_BACK)], "the plan goes forward"),
        ([*RECORDED, Record(Kind.END)], "retire not done"),
        ([Record(Kind.END), Record(Kind.RESUME)], "record 2 .*the plan has ended"),
        ([*RETIRED, Record(Kind.END), Record(Kind.FACTS)], "the plan has ended"),
    ],
)
def test_a_record_that_no_plan_can_have_written_is_named_with_the_reason(records: list[Record], why: str) -> None:
    with pytest.raises(StateUnknown, match=why) as raised:
        fold(SHAPE, records)
    assert raised.value.hint is not None


def test_journals_of_other_versions_name_kinds_marks_and_phases_as_this_one_does() -> None:
    assert [str(kind) for kind in Kind] == [
        "start", "facts", "done", "failed", "commit", "undo", "undone", "undo-failed", "resume", "onward", "return",
        "end",
    ]  # fmt: skip
    assert [str(mark) for mark in StepMark] == ["pending", "started", "done", "undoing", "undone"]
    assert [str(phase) for phase in Phase] == ["forward", "back", "committed", "finished", "rolled back"]


def test_a_record_says_only_what_it_is_given() -> None:
    assert Record(Kind.COMMIT) == Record(Kind.COMMIT, step="", facts={}, text="")

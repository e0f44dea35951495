"""The report of a run from its journal or from the watchdog's events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.plan.records import Kind
from ovs_hotswap.reports.compose import GOES_BACK, MOVED_BACK, kept_checks, of_failover, of_plan
from ovs_hotswap.reports.document import Gap, GapSource, Outcome, RunKind, Stage, StageResult
from ovs_hotswap.reports.timeline import running, stages
from tests.support.fake_backends import vm_status
from tests.unit.report_sample import BEGUN, SHAPE, Book, moved, seen, upgrade, upgrade_book

# ------------------------------------------------------------------------------------------------------- the timeline


def test_a_stage_is_as_long_as_its_step_was() -> None:
    book = Book().step("precheck", took=2.0).step("park", took=0.5)
    assert stages(book.records, book.times) == [
        Stage("precheck", BEGUN, BEGUN + 2),
        Stage("park", BEGUN + 2, BEGUN + 2.5),
    ]


def test_a_step_that_failed_is_undone_after_that() -> None:
    book = Book().step("precheck").add(Kind.START, "park", after=0.0).add(Kind.FAILED, "park", text="no memory")
    book.undone("park").add(Kind.END)
    assert stages(book.records, book.times) == [
        Stage("precheck", BEGUN, BEGUN + 1),
        Stage("park", BEGUN + 1, BEGUN + 2, result=StageResult.FAILED, text="no memory"),
        Stage("park", BEGUN + 2, BEGUN + 3, undo=True),
    ]


def test_an_undo_that_failed_is_there_with_its_cause() -> None:
    book = Book().add(Kind.START, "park").add(Kind.UNDO, "park").add(Kind.UNDO_FAILED, "park", text="deaf")
    (_, undo) = stages(book.records, book.times)
    assert (undo.undo, undo.result, undo.text, undo.seconds) == (True, StageResult.FAILED, "deaf", 1.0)


def test_a_killed_step_ends_at_the_last_that_is_known_of_it() -> None:
    book = Book().add(Kind.START, "precheck", after=0.0).add(Kind.FACTS, "precheck", after=0.5)
    book.add(Kind.RESUME, after=3600.0).step("precheck")
    first, again = stages(book.records, book.times)
    assert first == Stage("precheck", BEGUN, BEGUN + 0.5, result=StageResult.INTERRUPTED)
    assert (again.begin, again.result) == (BEGUN + 3600.5, StageResult.DONE)


def test_a_step_that_runs_still_ends_at_the_last_record() -> None:
    book = Book().add(Kind.START, "precheck", after=0.0).add(Kind.FACTS, "precheck")
    assert stages(book.records, book.times) == [
        Stage("precheck", BEGUN, BEGUN + 1, result=StageResult.INTERRUPTED)
    ]  # fmt: skip


def test_a_failure_after_which_there_is_only_the_way_forward_is_one() -> None:
    book = Book().add(Kind.START, "park", after=0.0).add(Kind.FORWARD_ANYWAY, "park", text="a died").step("park")
    assert [(each.name, each.result) for each in stages(book.records, book.times)] == [
        ("park", StageResult.FAILED), ("park", StageResult.DONE),
    ]  # fmt: skip


def test_a_gap_is_in_the_step_that_ran_for_most_of_it() -> None:
    found = [Stage("park", 1.0, 2.0), Stage("move", 2.0, 2.1)]
    assert running(found, 1.9, 2.05) == "park"
    assert running(found, 1.99, 2.2) == "move"
    assert running(found, 2.05, 2.05) == "move"
    assert running(found, 2.2, 2.3) is None
    assert running([], 2.2, 2.3) is None
    twice = [Stage("park", 0.0, 0.4), Stage("move", 0.4, 1.0), Stage("park", 1.0, 1.4)]
    assert running(twice, 0.0, 1.4) == "park", "a step that was repeated counts as a whole"


# --------------------------------------------------------------------------------------------------------- an upgrade


def test_a_committed_upgrade_is_done() -> None:
    found = upgrade(labels={"host": "host (OVS 3.1.0)"}, descriptions={"park": "park every VM"})
    assert (found.kind, found.outcome, found.id) == (RunKind.UPGRADE, Outcome.DONE, "20261130-005320-upgrade")
    assert (found.old, found.new, found.previous, found.release) == (Side.A, Side.B, "host", "trixie")
    assert (found.seconds, found.committed) == (14.0, BEGUN + 13)
    assert found.steps == (*SHAPE.before, *SHAPE.after)
    assert found.labels == {"host": "host (OVS 3.1.0)"}
    assert found.descriptions == {"park": "park every VM"}


def test_a_handover_is_placed_in_the_step_in_which_it_was() -> None:
    vm1, vm2 = upgrade().vms
    assert vm1.handover_us == 101.0
    assert vm1.since == BEGUN + 2.5
    (gap,) = vm1.gaps
    assert (gap.source, gap.step) == (GapSource.HANDOVER, "move")
    assert gap.ms == pytest.approx(0.101)
    assert gap.begin == pytest.approx(BEGUN + 2.5 - 101e-6)
    assert vm2.since == BEGUN + 2.501


def test_of_a_journal_alone_the_handovers_have_no_time() -> None:
    found = of_plan(upgrade_book({"vm1": 120.0}).run(), seen())
    (vm,) = found.vms
    assert (vm.name, vm.handover_us, vm.since) == ("vm1", 120.0, None)
    assert vm.gaps == (Gap(GapSource.HANDOVER, 0.12, None, "move"),)


def moved_back(**facts: Any) -> Book:
    """An upgrade whose soak failed; `move` is undone from 4 to 5 seconds after its beginning."""
    book = Book().step("precheck").step("park").step("move", facts={"moves": {"vm1": 100.0}})
    book.add(Kind.START, "soak", after=0.0).add(Kind.FAILED, "soak", text="instance b died")
    book.add(Kind.UNDO, "move", after=0.0).add(Kind.FACTS, "move", after=0.9, facts=facts)
    return book.add(Kind.UNDONE, "move", after=0.1).undone("park").add(Kind.END)


def test_a_vm_that_was_moved_and_moved_back_has_both_gaps() -> None:
    back = moved("vm1", BEGUN + 4.5, 300.0, Side.A)
    found = of_plan(moved_back(**{MOVED_BACK: {"vm1": 300.04}}).run(), seen([back], message="put back", hint="`df`"))
    assert (found.outcome, found.failed_step, found.failure) == (Outcome.ROLLED_BACK, "soak", "instance b died")
    assert (found.message, found.hint, found.committed) == ("put back", "`df`", None)
    (vm,) = found.vms
    assert [(gap.step, gap.ms) for gap in vm.gaps] == [("move", pytest.approx(0.3, rel=0.01)), ("move", 0.1)]
    assert vm.longest == vm.gaps[0]
    assert (vm.handover_us, vm.since) == (300.04, BEGUN + 4.5)
    assert vm.gaps[0].begin == pytest.approx(BEGUN + 4.5)
    assert vm.gaps[1].begin is None, "when the first one was is not known any longer"


def test_a_vm_that_was_given_back_by_the_end_of_an_instance_has_no_second_handover() -> None:
    """The duration that the broker reports is that of the handover before."""
    back = moved("vm1", BEGUN + 4.5, 100.0, Side.A)
    (vm,) = of_plan(moved_back().run(), seen([back])).vms
    assert [(gap.source, gap.ms) for gap in vm.gaps] == [(GapSource.HANDOVER, 0.1)]
    assert vm.since == BEGUN + 4.5
    assert vm.note == "its owner got the rings without a handover: an instance ended, or its guest began"
    failed = {**FAILOVER, "detected": BEGUN + 4.46, "ms": {"owned": 50.0}}
    (vm,) = of_plan(moved_back().run(), seen([back], events=[failed])).vms
    assert [(gap.source, gap.step) for gap in vm.gaps] == [(GapSource.FAILOVER, "move"), (GapSource.HANDOVER, "move")]
    assert vm.gaps[0].ms == pytest.approx(40.0, abs=0.01)
    assert vm.note is None
    later = {**failed, "ms": {"owned": 30.0}}
    (vm,) = of_plan(moved_back().run(), seen([back], events=[STANDBY, later])).vms
    assert vm.note is not None, "that failover was over: its guest may have begun"


def test_a_vm_that_fled_from_a_dying_instance_passed_without_a_handover() -> None:
    found = of_plan(upgrade_book({}).run(), seen([moved("vm1", BEGUN + 2.5, 75.9)]))
    (vm,) = found.vms
    assert (vm.handover_us, vm.since, vm.gaps, vm.apart) == (None, BEGUN + 2.5, (), None)
    assert vm.note is not None
    assert found.passed == [vm]


def test_a_handover_of_another_time_is_none_of_this_run() -> None:
    before, after = moved("vm1", BEGUN - 5, 90.0), moved("vm2", BEGUN + 99, 90.0)
    assert [vm.gaps for vm in of_plan(upgrade_book({}).run(), seen([before, after])).vms] == [(), ()]


@pytest.mark.parametrize("uplink_ms", [250.0, 250])
def test_times_in_which_nothing_passed_are_gaps_of_each_moved_vm(uplink_ms: float) -> None:
    book = upgrade_book({"vm1": 100.0}, uplink_gap_ms=uplink_ms, stopped_ms={"vm1": 7.0, "vm9": 8.0})
    found = of_plan(book.run(), seen([vm_status("vm2"), vm_status("vm9", owner_since=BEGUN + 1)]))
    assert [vm.note for vm in found.vms] == [None] * 3
    gaps = {vm.name: [(gap.source, gap.ms, gap.step) for gap in vm.gaps] for vm in found.vms}
    uplink = (GapSource.UPLINK, 250.0, "steer")
    assert gaps["vm1"] == [uplink, (GapSource.STOPPED, 7.0, "adopt"), (GapSource.HANDOVER, 0.1, "move")]
    assert gaps["vm9"] == [uplink, (GapSource.STOPPED, 8.0, "adopt")]
    assert gaps["vm2"] == []
    assert found.uplink_gap_ms == 250.0
    assert found.worst == (found.vms[1], found.vms[1].gaps[0])


def test_a_vm_that_was_not_moved_says_why() -> None:
    vms = [vm_status("vm1", quarantine="it ends them"), vm_status("vm2"), vm_status("vm3", qemu=None), vm_status("vm4")]
    found = of_plan(upgrade_book({}).run(leave_out=["vm2"]), seen(vms))
    assert [vm.apart for vm in found.vms] == ["in quarantine: it ends them", "left out", "has no guest", None]


def test_a_refused_upgrade_has_changed_nothing() -> None:
    book = Book().add(Kind.START, "precheck").add(Kind.FAILED, "precheck", text="no huge pages").add(Kind.END)
    found = of_plan(book.run(), seen())
    assert (found.outcome, found.failure) == (Outcome.REFUSED, "no huge pages")


def test_an_upgrade_that_stopped_on_its_way_is_unfinished() -> None:
    assert of_plan(Book().step("precheck").run(), seen()).outcome is Outcome.UNFINISHED
    assert of_plan(Book().run(), seen()).seconds == 0.0


def test_a_rollback_of_a_finished_upgrade_is_called_so() -> None:
    found = of_plan(upgrade_book({}).run(**{GOES_BACK: True}), seen())
    assert (found.kind, found.id) == (RunKind.ROLLBACK, "20261130-005320-rollback")


def test_findings_and_warnings_are_in_the_report() -> None:
    rows = kept_checks([Finding("release", Severity.OK, "trixie"), Finding("rings", Severity.WARNING, "full", "wait")])
    book = upgrade_book({}, prechecks=rows, postchecks=[["mtu", "error", "1500", None]], warnings=["vm1: a frame"])
    found = of_plan(book.run(), seen())
    assert [(each.step, each.check, each.severity, each.hint) for each in found.checks] == [
        ("precheck", "release", Severity.OK, None), ("precheck", "rings", Severity.WARNING, "wait"),
        ("postcheck", "mtu", Severity.ERROR, None),
    ]  # fmt: skip
    assert found.warnings == ("vm1: a frame",)


@pytest.mark.parametrize("row", ["text", [1, 2, 3, 4], ["a", "b", "c"], ["mtu", "dreadful", "1500", None]])
def test_a_finding_of_another_shape_is_left_out(row: object) -> None:
    assert of_plan(upgrade_book({}, prechecks=[row]).run(), seen()).checks == ()


def test_what_the_journal_says_beside_its_steps_is_told() -> None:
    book = Book().step("precheck").add(Kind.RESUME, after=9.0)
    book.add(Kind.START, "park", after=0.0).add(Kind.FORWARD_ANYWAY, "park", text="a died; it continues").step("park")
    assert [(each.time - BEGUN, each.text) for each in of_plan(book.run(), seen()).happenings] == [
        (10.0, "an interrupted plan was taken up again"), (11.0, "a died; it continues"),
    ]  # fmt: skip


def test_what_the_watchdog_did_in_that_time_is_told() -> None:
    events = [{**FAILOVER, "time": BEGUN + after} for after in (-1.0, 2.5, 99.0)] + [{"event": "rings"}]
    book = Book().step("precheck").add(Kind.RESUME, after=9.0)
    found = of_plan(book.run(), seen(events=events))
    assert found.warnings == ("failover from a to b: its process is dead, during this run",)
    assert [(each.time - BEGUN, each.text) for each in found.happenings] == [
        (2.5, "failover from a to b: its process is dead"), (10.0, "an interrupted plan was taken up again"),
    ]  # fmt: skip


def test_a_journal_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(StateUnknown):
        of_plan(Book().add(Kind.DONE, "soak").run(), seen())


@given(st.dictionaries(st.sampled_from(["old", "new", "release", "previous", "leave_out"]), st.integers() | st.none()))
def test_parameters_of_another_kind_do_not_stop_it(parameters: dict[str, Any]) -> None:
    assert of_plan(upgrade_book({}).run(**parameters), seen()).outcome is Outcome.DONE


# --------------------------------------------------------------------------------------------------------- a failover

FAILOVER: dict[str, Any] = {
    "time": BEGUN + 0.2, "event": "failover", "from": "a", "to": "b", "signal": "process", "moved": 2, "left": [],
    "reason": "its process is dead", "detected": BEGUN, "ms": {"steered": 12.0, "owned": 8.0, "recorded": 20.0},
}  # fmt: skip
STANDBY = {"time": BEGUN + 9, "event": "standby", "side": "a", "release": "host", "after_s": 9.0}


def test_a_failover_has_its_stages_in_order_of_time() -> None:
    found = of_failover([FAILOVER], seen())
    assert found is not None
    assert (found.id, found.kind, found.outcome) == ("20261130-005320-failover", RunKind.FAILOVER, Outcome.DONE)
    assert (found.old, found.new, found.reason) == (Side.A, Side.B, "its process is dead")
    assert [(each.name, round(each.begin - BEGUN, 6), round(each.end - BEGUN, 6)) for each in found.stages] == [
        ("own", 0.0, 0.008), ("steer", 0.008, 0.012), ("record", 0.012, 0.02),
    ]  # fmt: skip
    assert found.protected_after_s is None
    assert {stage.name for stage in found.stages} < set(found.descriptions)


def test_a_vm_waited_from_the_detection_until_the_standby_had_its_rings() -> None:
    """The broker reports the duration of a handover before, which is none of this."""
    found = of_failover([FAILOVER], seen([moved("vm1", BEGUN + 0.006, 500.0)]))
    assert found is not None
    (vm,) = found.vms
    assert [(gap.source, gap.step) for gap in vm.gaps] == [(GapSource.FAILOVER, "own")]
    assert vm.gaps[0].ms == pytest.approx(6.0, abs=0.001)  # a time since the epoch has microseconds
    assert vm.handover_us is None


def test_the_broker_may_be_quicker_than_the_watchdog() -> None:
    """Nothing says when the process died."""
    found = of_failover([FAILOVER], seen([moved("vm1", BEGUN - 0.2, 500.0)]))
    assert found is not None
    (vm,) = found.vms
    assert (vm.gaps, vm.since, vm.apart) == ((), BEGUN - 0.2, None)
    assert vm.note == "it passed before the watchdog had detected the failure"
    assert found.passed == [vm]


def test_a_qemu_with_two_back_ends_reports_how_long_its_rings_had_no_owner() -> None:
    vms = [vm_status("vm1", owner=Side.B, owner_since=None, last_move_us=us) for us in (800.0, None)]
    found = of_failover([FAILOVER], seen(vms))
    assert found is not None
    assert [(vm.handover_us, vm.gaps, vm.note is None) for vm in found.vms] == [
        (800.0, (Gap(GapSource.HANDOVER, 0.8),), True), (None, (), False),
    ]  # fmt: skip


def test_vms_that_did_not_pass_are_named() -> None:
    vms = [
        moved("vm1", BEGUN + 0.006, 500.0, Side.A), moved("vm2", BEGUN - 60, 90.0), vm_status("vm3", qemu=None),
        moved("vm4", BEGUN + 0.006, 500.0), moved("vm5", BEGUN + 0.006, 500.0, Side.A), vm_status("vm6", owner=None),
    ]  # fmt: skip
    found = of_failover([{**FAILOVER, "left": ["vm1"]}], seen(vms))
    assert found is not None
    assert (found.outcome, found.failure) == (Outcome.INCOMPLETE, "VM vm1 was not moved")
    assert [vm.apart for vm in found.vms] == [
        "it was not moved", "instance b served it before", "has no guest", None, "instance a serves it",
        "no instance serves it",
    ]  # fmt: skip


def test_what_followed_until_a_standby_was_ready_belongs_to_it() -> None:
    events = [
        {**FAILOVER, "detected": 5.0}, FAILOVER,
        {"time": BEGUN + 1, "event": "rings", "stuck": ["vm1: ring 1 does not advance"]},
        {"time": BEGUN + 2, "event": "failover-uplink", "side": "b", "severity": "error", "text": "nothing passes"},
        {"time": BEGUN + 3, "event": "failover-uplink", "side": "b", "severity": "ok", "text": "all passes"},
        STANDBY, {"time": BEGUN + 99, "event": "rings", "stuck": ["later"]},
    ]  # fmt: skip
    found = of_failover(events, seen())
    assert found is not None
    assert found.started == BEGUN
    assert (found.protected_after_s, found.release) == (9.0, "host")
    assert found.warnings == ("vm1: ring 1 does not advance", "nothing passes")
    assert [each.text for each in found.happenings] == [
        "vm1: ring 1 does not advance", "nothing passes", "all passes", "instance a is ready as the standby",
    ]  # fmt: skip


WORDS = [
    ({"event": "rings", "stuck": []}, "every ring with something to send advances"),
    ({"event": "not-parked", "vm": "vm1", "cause": "full"}, "not-parked, vm vm1, cause full"),
    ({"event": "trial", "vms": ["vm1", "vm2"], "held": 3}, "trial, vms vm1, vm2, held 3"),
    ({"event": "trial", "vms": []}, "trial, vms none"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "text"), WORDS)
def test_an_event_is_put_into_words(event: dict[str, Any], text: str) -> None:
    found = of_failover([FAILOVER, {"time": BEGUN + 1, **event}], seen())
    assert found is not None
    assert [each.text for each in found.happenings] == [text]


@pytest.mark.parametrize(
    "events", [[], [STANDBY], [{**FAILOVER, "detected": None}], [{**FAILOVER, "from": "c"}], [{**FAILOVER, "to": 1}]]
)
def test_without_a_failover_there_is_no_report(events: list[dict[str, Any]]) -> None:
    assert of_failover(events, seen()) is None


def test_a_failover_whose_event_lacks_figures_has_what_is_left() -> None:
    found = of_failover([{"event": "failover", "from": "a", "to": "b", "detected": BEGUN, "ms": None}], seen())
    assert found is not None
    assert (found.stages, found.seconds, found.happenings) == ((), 0.0, ())

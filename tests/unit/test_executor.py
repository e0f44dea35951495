"""What the executor of plans tells: the events of each way that a plan can go, its records, its errors' words.

That every way ends whole or put back is the matter of ``test_plan``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ovs_hotswap.errors import (
    HostError,
    HotswapError,
    PostcheckFailed,
    PrecheckFailed,
    RolledBack,
    StateUnknown,
    SwitchError,
)
from ovs_hotswap.plan.executor import (
    Event,
    EventKind,
    Executor,
    Plan,
    ReversibleStep,
    State,
    Step,
    StepContext,
    describe,
)
from ovs_hotswap.plan.records import Facts, Kind, Phase, Record, StepMark, fold


class PowerCut(BaseException):
    """Stands for SIGKILL."""


@dataclass
class World:
    """A world with a clock. ``failing``: what each act named there raises. ``lost``: why a way is closed."""

    now: float = 100.0
    failing: dict[str, BaseException] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    lost: str = ""

    def act(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.acts.append(name)
        if name in self.failing:
            raise self.failing[name]


class Look(Step[World]):
    """Takes a second."""

    def __init__(self, name: str) -> None:
        self.name = self.description = name

    def do(self, context: World, run: StepContext) -> None:
        context.act(self.name, 1)


class Change(ReversibleStep[World]):
    """Takes two seconds, and its undo four. Its effect is there once it was done."""

    def __init__(self, name: str) -> None:
        self.name = self.description = name

    def facts(self, context: World, run: StepContext) -> Facts:
        assert f"{self.name} was" not in run.facts, "it is read once"
        return {f"{self.name} was": "absent"}

    def do(self, context: World, run: StepContext) -> None:
        context.act(self.name, 2)

    def undo(self, context: World, run: StepContext) -> None:
        assert run.fact(f"{self.name} was", str) == "absent"
        context.act(f"undo {self.name}", 4)

    def state(self, context: World, run: StepContext) -> State:
        there = run.fact(f"{self.name} was", str) == "absent" and self.name in context.acts
        return State.DONE if there else State.NOT_DONE


class Kept:
    """A journal in memory; ``full``: the kinds of records that it has no room for."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.full: set[Kind] = set()

    def append(self, record: Record) -> None:
        if record.kind in self.full:
            raise HostError(f"no space for {record.kind}")
        self.records.append(record)


def _open(_world: World) -> str:
    return ""


def a_plan(
    no_way_back: Callable[[World, Facts], str] = lambda _world, _facts: "",
    no_way_on: Callable[[World], str] = _open,
    unrestored: Callable[[World], str] = _open,
) -> Plan[World]:
    before = (Look("check"), Change("start"), Change("move"))
    after = (Change("retire"),)
    return Plan("upgrade", before, after, no_way_back=no_way_back, no_way_on=no_way_on, unrestored=unrestored)


class Bench:
    """Executes a plan from the records of a journal in memory, and notes its events."""

    def __init__(self) -> None:
        self.world, self.journal = World(), Kept()
        self.events: list[Event] = []
        self.shields = 0

    def execute(self, plan: Plan[World] | None = None, action: str = "run") -> None:
        self.events.clear()
        executor = Executor(
            plan or a_plan(), self.world, self.journal, clock=lambda: self.world.now, records=self.journal.records,
            observe=self.events.append, shield=self.shield,
        )  # fmt: skip
        getattr(executor, action)()

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        self.shields += 1
        yield
        self.shields -= 1

    def fail(self, **acts: BaseException) -> None:
        self.world.failing = {name.replace("_", " "): error for name, error in acts.items()}

    def phase(self) -> Phase:
        return fold(a_plan().shape, self.journal.records).phase

    @property
    def said(self) -> list[tuple[str, str, float | None, str]]:
        return [(event.kind.value, event.step, event.seconds, event.text) for event in self.events]


@pytest.fixture
def bench() -> Bench:
    return Bench()


CHECKED = [("started", "check", None, ""), ("done", "check", 1, "")]
STARTED = [("started", "start", None, ""), ("done", "start", 2, "")]
MOVED = [("started", "move", None, ""), ("done", "move", 2, "")]
UNDONE = [
    ("undoing", "start", None, ""),
    ("undone", "start", 4, ""),
    ("rolled-back", "", None, "everything was put back"),
]


# -- events and records ------------------------------------------------------------------------------------------------


def test_a_plan_that_runs_to_its_end(bench: Bench) -> None:
    bench.execute()
    assert bench.said == [
        *CHECKED, *STARTED, *MOVED, ("committed", "", None, ""),
        ("started", "retire", None, ""), ("done", "retire", 2, ""), ("finished", "", None, ""),
    ]  # fmt: skip
    assert bench.journal.records == [
        Record(Kind.START, "check"), Record(Kind.DONE, "check"),
        Record(Kind.START, "start", {"start was": "absent"}), Record(Kind.DONE, "start"),
        Record(Kind.START, "move", {"move was": "absent"}), Record(Kind.DONE, "move"), Record(Kind.COMMIT),
        Record(Kind.START, "retire", {"retire was": "absent"}), Record(Kind.DONE, "retire"), Record(Kind.END),
    ]  # fmt: skip
    assert bench.shields == 0


def test_a_step_that_fails_is_told_with_its_time_and_its_cause(bench: Bench) -> None:
    bench.fail(move=SwitchError("no answer", hint="wake it"))
    with pytest.raises(RolledBack) as raised:
        bench.execute()
    assert (raised.value.message, raised.value.hint) == (
        "step move failed: no answer; everything was put back", "wake it")  # fmt: skip
    assert bench.said == [
        *CHECKED, *STARTED, ("started", "move", None, ""), ("failed", "move", 2, "no answer"),
        ("undoing", "move", None, ""), ("undone", "move", 4, ""), *UNDONE,
    ]  # fmt: skip
    assert bench.journal.records[5:] == [
        Record(Kind.FAILED, "move", text="no answer"), Record(Kind.UNDO, "move"), Record(Kind.UNDONE, "move"),
        Record(Kind.UNDO, "start"), Record(Kind.UNDONE, "start"), Record(Kind.END),
    ]  # fmt: skip


def test_an_undo_that_fails_is_told_with_its_time_and_where_to_look(bench: Bench) -> None:
    bench.fail(move=SwitchError("no answer"), undo_start=SwitchError("device busy"))
    with pytest.raises(StateUnknown) as raised:
        bench.execute()
    assert raised.value.message == (
        "step start could not be undone: device busy; the steps before it were left as they are"
    )
    assert raised.value.hint == "look at `ovs-hotswap status`, then repeat `ovs-hotswap rollback`"
    assert bench.said[-2:] == [("undoing", "start", None, ""), ("undo-failed", "start", 4, "device busy")]
    assert bench.journal.records[-1] == Record(Kind.UNDO_FAILED, "start", text="device busy")
    bench.fail()
    bench.execute(action="rollback")
    assert bench.said == UNDONE
    assert bench.phase() is Phase.ROLLED_BACK


def test_a_step_that_fails_after_the_commit_is_told_and_what_was_done_is_skipped_later(bench: Bench) -> None:
    bench.fail(retire=KeyError("pid"))
    with pytest.raises(PostcheckFailed) as raised:
        bench.execute()
    assert raised.value.message == "committed, but step retire failed: KeyError: 'pid'"
    assert raised.value.hint is not None
    assert raised.value.hint.endswith("`ovs-hotswap resume`")
    assert bench.said[-2:] == [("started", "retire", None, ""), ("failed", "retire", 2, "KeyError: 'pid'")]
    bench.fail()
    bench.execute()
    assert bench.said == [
        ("skipped", "check", None, ""), ("skipped", "start", None, ""), ("skipped", "move", None, ""),
        ("started", "retire", None, ""), ("done", "retire", 2, ""), ("finished", "", None, ""),
    ]  # fmt: skip


def test_a_step_that_fails_after_the_commit_names_its_own_cure_first(bench: Bench) -> None:
    bench.fail(retire=SwitchError("no broker", hint="start it: `x`"))
    with pytest.raises(PostcheckFailed) as raised:
        bench.execute()
    assert raised.value.hint == "start it: `x`, then `ovs-hotswap resume`"


def test_a_plan_that_ended_is_not_done_again(bench: Bench) -> None:
    bench.execute()
    done = list(bench.world.acts)
    bench.execute()
    assert bench.said == []
    with pytest.raises(PrecheckFailed, match="committed"):
        bench.execute(action="rollback")
    assert bench.world.acts == done


def test_a_roll_back_that_ended_is_not_done_again(bench: Bench) -> None:
    bench.fail(move=SwitchError("no answer"))
    with pytest.raises(RolledBack):
        bench.execute()
    done = list(bench.world.acts)
    bench.execute(action="rollback")
    assert bench.said == []
    assert bench.world.acts == done


@pytest.mark.parametrize(("kind", "name"), [(Kind.COMMIT, "commit"), (Kind.END, "end")])
def test_a_commit_or_an_end_that_cannot_be_written_is_named(bench: Bench, kind: Kind, name: str) -> None:
    """It is the plan that fails there, and no step."""
    bench.journal.full = {kind}
    with pytest.raises(HotswapError, match=f"step {name} failed: no space for {kind}"):
        bench.execute()
    (failed,) = [event for event in bench.events if event.kind is EventKind.FAILED]
    assert failed.step == ""
    bench.journal.full = set()
    assert bench.phase() is (Phase.ROLLED_BACK if kind is Kind.COMMIT else Phase.COMMITTED)
    if kind is Kind.END:
        bench.execute()
        assert bench.phase() is Phase.FINISHED


def test_what_the_journal_lacks_is_told_once_and_in_the_end(bench: Bench) -> None:
    bench.fail(move=SwitchError("no answer"))
    bench.journal.full = {Kind.UNDO, Kind.UNDONE, Kind.END}
    with pytest.raises(RolledBack) as raised:
        bench.execute()
    assert raised.value.message.startswith("step move failed: no answer; everything was put back; ")
    assert raised.value.message.endswith(": no space for end")
    texts = [event.text for event in bench.events if event.kind is EventKind.PROGRESS]
    assert len(texts) == 1
    assert texts[0].startswith("no space for undo; ")


# -- what was interrupted ----------------------------------------------------------------------------------------------


def test_a_step_that_cannot_say_whether_it_is_done_is_done_again(bench: Bench) -> None:
    bench.fail(move=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute()
    bench.fail()
    bench.world.acts.remove("move")
    bench.execute()
    assert bench.said[:5] == [*CHECKED, ("skipped", "start", None, ""), *MOVED]
    again = [record for record in bench.journal.records if record.kind is Kind.START and record.step == "move"]
    assert [record.facts for record in again] == [{"move was": "absent"}, {}], "facts are of the first time"


@pytest.mark.parametrize("action", ["run", "rollback"])
def test_a_roll_back_that_nothing_failed_before_is_finished(bench: Bench, action: str) -> None:
    bench.fail(move=PowerCut(), undo_start=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute()
    with pytest.raises(PowerCut):
        bench.execute(action="rollback")
    bench.fail()
    if action == "rollback":
        bench.execute(action="rollback")
    else:
        with pytest.raises(RolledBack) as raised:
            bench.execute()
        assert raised.value.message.startswith("a roll")
        assert raised.value.message.endswith("was under way and is now finished: everything was put back")
    assert bench.said == UNDONE, "what was undone is not undone again"


def test_a_roll_back_of_a_commit_that_failed_says_so(bench: Bench) -> None:
    bench.journal.full, bench.world.failing = {Kind.COMMIT}, {"undo move": PowerCut()}
    with pytest.raises(PowerCut):
        bench.execute()
    bench.fail()
    with pytest.raises(RolledBack) as raised:
        bench.execute()
    assert raised.value.message == "step commit had failed: no space for commit; everything was put back"


def test_a_roll_back_is_shielded(bench: Bench) -> None:
    def shielded() -> None:
        assert bench.shields > 0

    plan = Plan("upgrade", (Change("start"), Change("move")), mend=lambda _world: shielded())
    bench.fail(move=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    bench.execute(plan, "rollback")
    assert bench.shields == 0


# -- ways that are closed ----------------------------------------------------------------------------------------------


def test_refusals_name_the_way_that_is_left(bench: Bench) -> None:
    bench.fail(retire=SwitchError("no answer"))
    with pytest.raises(PostcheckFailed):
        bench.execute()
    with pytest.raises(PrecheckFailed) as raised:
        bench.execute(action="rollback")
    assert raised.value.message == "the upgrade is committed: it cannot be undone step by step"
    assert raised.value.hint == "finish it with `ovs-hotswap resume`"


def test_without_a_way_back_a_plan_goes_on_once(bench: Bench) -> None:
    plan = a_plan(no_way_back=lambda world, _facts: world.lost)
    bench.world.lost = "the old one died"
    bench.fail(move=SwitchError("no answer"))
    with pytest.raises(RolledBack):
        bench.execute(plan)
    (text,) = [record.text for record in bench.journal.records if record.kind is Kind.FORWARD_ANYWAY]
    assert text.startswith("no answer; ")
    assert text.endswith("there is no way back: the old one died")
    assert ("progress", "move", None, text) in bench.said
    assert bench.world.acts.count("move") == 2
    assert bench.phase() is Phase.ROLLED_BACK


@pytest.mark.parametrize("unrestored", ["the old one died", ""])
def test_a_rollback_says_what_it_could_not_put_back(bench: Bench, unrestored: str) -> None:
    plan = a_plan(unrestored=lambda _world: unrestored)
    bench.fail(move=SwitchError("no answer"))
    with pytest.raises(RolledBack) as raised:
        bench.execute(plan)
    reached = "everything that was changed was put back, but the old one died"
    reached = reached if unrestored else "everything was put back"
    assert raised.value.message == f"step move failed: no answer; {reached}"
    assert bench.said[-1] == ("rolled-back", "", None, reached)


def test_a_rollback_ends_although_nobody_knows_what_it_has_reached(bench: Bench) -> None:
    def asked(_world: World) -> str:
        raise SwitchError("the broker does not answer")

    bench.fail(move=SwitchError("no answer"))
    with pytest.raises(RolledBack, match="put back, but what is left of it is not known: the broker does not answer"):
        bench.execute(a_plan(unrestored=asked))
    assert bench.phase() is Phase.ROLLED_BACK


def test_what_is_lost_depends_on_how_far_the_plan_has_come(bench: Bench) -> None:
    plan = a_plan(no_way_back=lambda world, facts: world.lost if "move was" in facts else "")
    bench.world.lost = "the old one died"
    bench.fail(start=SwitchError("no answer"))
    with pytest.raises(RolledBack):
        bench.execute(plan)
    assert Kind.FORWARD_ANYWAY not in {record.kind for record in bench.journal.records}


def test_going_on_without_a_way_back_needs_no_journal(bench: Bench) -> None:
    plan = a_plan(no_way_back=lambda world, _facts: world.lost)
    bench.world.lost = "the old one died"
    bench.journal.full = {Kind.COMMIT}
    bench.execute(plan)
    assert bench.events[-1].kind is EventKind.FINISHED


def test_a_roll_back_without_a_way_back_is_refused(bench: Bench) -> None:
    plan = a_plan(no_way_back=lambda world, _facts: world.lost)
    bench.fail(move=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    bench.world.lost = "the old one died"
    with pytest.raises(PrecheckFailed) as raised:
        bench.execute(plan, "rollback")
    assert raised.value.message == "there is no way back: the old one died"
    assert raised.value.hint == "finish with `ovs-hotswap resume`"
    bench.world.lost = ""
    bench.execute(plan, "rollback")
    assert bench.phase() is Phase.ROLLED_BACK


def test_without_a_way_on_even_what_was_committed_is_put_back(bench: Bench) -> None:
    plan = a_plan(no_way_on=lambda world: world.lost)
    bench.world.lost = "the new one died"
    bench.fail(retire=SwitchError("no answer", hint="wake it"))
    with pytest.raises(RolledBack) as raised:
        bench.execute(plan)
    assert (raised.value.message, raised.value.hint) == (
        "step retire failed after the commit: no answer; the new one died; everything was put back", "wake it"
    )  # fmt: skip
    assert isinstance(raised.value.__cause__, SwitchError)
    (turn,) = [record for record in bench.journal.records if record.kind is Kind.TURNED_BACK]
    assert turn.text == "no answer; the new one died"
    assert bench.world.acts[-3:] == ["undo retire", "undo move", "undo start"]


def test_a_committed_plan_that_was_interrupted_is_put_back_without_a_way_on_or_a_journal(bench: Bench) -> None:
    plan = a_plan(no_way_on=lambda world: world.lost)
    bench.fail(retire=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    bench.fail()
    bench.world.lost = "the new one died"
    bench.journal.full = set(Kind)
    with pytest.raises(RolledBack) as raised:
        bench.execute(plan)
    assert raised.value.message.startswith("step commit had failed: the new one died; everything was put back; ")
    assert raised.value.message.endswith(": no space for end")


# -- what a plan starts again ------------------------------------------------------------------------------------------


def test_what_going_back_needs_is_repaired_first_and_the_repair_may_fail(bench: Bench) -> None:
    def repair(world: World) -> None:
        world.act("repair", 0)

    plan = Plan("upgrade", (Change("start"), Change("move")), mend=repair)
    bench.fail(move=SwitchError("no answer"), repair=SwitchError("no spare part"))
    with pytest.raises(RolledBack):
        bench.execute(plan)
    assert bench.world.acts == ["start", "move", "repair", "undo move", "undo start"]


def test_an_undo_that_lacks_what_could_not_be_repaired_names_that_and_its_cure(bench: Bench) -> None:
    def repair(_world: World) -> None:
        raise SwitchError("no spare part", hint="buy one")

    bench.fail(move=SwitchError("no answer"), undo_start=SwitchError("still no answer"))
    with pytest.raises(StateUnknown) as raised:
        bench.execute(Plan("upgrade", (Change("start"), Change("move")), mend=repair))
    assert "step start could not be undone: still no answer (no spare part)" in raised.value.message
    assert raised.value.hint == "buy one, then repeat `ovs-hotswap rollback`"


def test_an_undo_that_fails_names_the_cure_of_its_own_fault(bench: Bench) -> None:
    bench.fail(move=SwitchError("no answer"), undo_start=SwitchError("no broker", hint="start it: `x`"))
    with pytest.raises(StateUnknown) as raised:
        bench.execute(Plan("upgrade", (Change("start"), Change("move"))))
    assert raised.value.hint == "start it: `x`, then repeat `ovs-hotswap rollback`"


def test_what_was_put_back_without_a_repair_names_the_cure_nevertheless(bench: Bench) -> None:
    def repair(_world: World) -> None:
        raise SwitchError("no spare part", hint="buy one")

    bench.fail(move=SwitchError("no answer"))
    with pytest.raises(RolledBack) as raised:
        bench.execute(Plan("upgrade", (Change("start"), Change("move")), mend=repair))
    assert raised.value.hint == "buy one"


def test_what_a_committed_plan_needs_is_revived_when_it_is_taken_up(bench: Bench) -> None:
    def revive(world: World) -> None:
        world.act("revive", 0)

    plan = Plan("upgrade", (Change("start"),), (Change("retire"),), revive=revive)
    bench.fail(retire=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    assert "revive" not in bench.world.acts
    bench.fail()
    bench.execute(plan)
    assert bench.world.acts == ["start", "retire", "revive", "retire"]


def test_a_plan_that_cannot_be_revived_has_not_failed_in_a_step(bench: Bench) -> None:
    def revive(world: World) -> None:
        raise SwitchError("no spare part")

    plan = Plan("upgrade", (Change("start"),), (Change("retire"),), revive=revive)
    bench.fail(retire=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    with pytest.raises(PostcheckFailed, match="step end failed: no spare part"):
        bench.execute(plan)
    assert bench.said == [("failed", "", 0, "no spare part")]


def test_the_ways_of_a_plan_are_open_unless_it_says_otherwise(bench: Bench) -> None:
    plan = Plan("upgrade", (Change("start"), Change("move")), (Change("retire"),))
    bench.fail(move=PowerCut())
    with pytest.raises(PowerCut):
        bench.execute(plan)
    bench.execute(plan, "rollback")
    assert bench.said == [("undoing", "move", None, ""), ("undone", "move", 4, ""), *UNDONE]


# -- what a step is given ----------------------------------------------------------------------------------------------


def test_a_step_without_facts_or_state_of_its_own() -> None:
    run = StepContext(dict, lambda _facts: None, lambda _event: None)
    assert Look("check").facts(World(), run) == {}
    assert Look("check").state(World(), run) is State.UNKNOWN


def test_facts_are_a_copy_that_cannot_be_changed() -> None:
    known: dict[str, str] = {"a": "1"}
    seen = StepContext(lambda: known, lambda _facts: None, lambda _event: None).facts
    known["a"] = "2"
    assert seen == {"a": "1"}
    with pytest.raises(TypeError):
        seen["a"] = "3"  # type: ignore[index]


def test_a_fact_that_is_missing_is_an_unknown_state() -> None:
    run = StepContext(dict, lambda _facts: None, lambda _event: None)
    with pytest.raises(StateUnknown) as raised:
        run.fact("pid", int)
    assert (raised.value.message, raised.value.hint) == ("the journal holds no int 'pid'", "`ovs-hotswap status`")


@pytest.mark.parametrize("earlier", [{}, {"warnings": ["old"]}, {"warnings": ("old",)}, {"warnings": "not a list"}])
def test_a_warning_is_kept_once_behind_those_before_it_and_always_told(earlier: Facts) -> None:
    facts, events = dict(earlier), list[Event]()
    kept = [*earlier["warnings"], "new"] if isinstance(earlier.get("warnings"), list | tuple) else ["new"]  # type: ignore[misc]
    writes: list[Facts] = []

    def remember(more: Facts) -> None:
        writes.append(more)
        facts.update(more)

    run = StepContext(lambda: facts, remember, events.append)
    run.warn("new")
    run.warn("new")
    assert writes == [{"warnings": kept}]
    assert events == [Event(EventKind.PROGRESS, text="new")] * 2


def test_progress_and_warnings_are_of_the_step_that_tells_them(bench: Bench) -> None:
    class Telling(Look):
        def do(self, context: World, run: StepContext) -> None:
            run.progress("half", item="vm1", count=1, total=2)
            run.remember(moved=["vm1"])
            run.warn("slow")
            assert run.facts == {"moved": ["vm1"], "warnings": ["slow"]}

    bench.execute(Plan("upgrade", (Telling("move"),)))
    assert bench.events[1:3] == [
        Event(EventKind.PROGRESS, "move", None, "half", "vm1", 1, 2), Event(EventKind.PROGRESS, "move", text="slow")
    ]  # fmt: skip
    assert bench.journal.records[1:3] == [
        Record(Kind.FACTS, "move", {"moved": ["vm1"]}), Record(Kind.FACTS, "move", {"warnings": ["slow"]})
    ]  # fmt: skip


def test_an_observer_that_fails_is_told_nothing_more(bench: Bench) -> None:
    told: list[Event] = []

    def observe(event: Event) -> None:
        told.append(event)
        raise BrokenPipeError

    Executor(a_plan(), bench.world, bench.journal, clock=lambda: 0.0, observe=observe).run()
    assert told == [Event(EventKind.STARTED, "check")]
    assert bench.phase() is Phase.FINISHED


def test_an_event_is_of_the_whole_plan_unless_it_names_a_step() -> None:
    assert Event(EventKind.COMMITTED).step == ""


def test_a_plan_may_be_run_unobserved_and_unshielded(bench: Bench) -> None:
    executor = Executor(a_plan(), bench.world, bench.journal, clock=lambda: 0.0)
    assert executor.standing.marks == dict.fromkeys(["check", "start", "move", "retire"], StepMark.PENDING)
    executor.run()
    assert bench.phase() is Phase.FINISHED


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SwitchError("no answer", hint="wake it"), "no answer"),
        (KeyboardInterrupt(), "interrupted"),
        (KeyboardInterrupt("interrupted by SIGTERM"), "interrupted by SIGTERM"),
        (KeyError("pid"), "KeyError: 'pid'"),
        (OSError(), "OSError: "),
    ],
)
def test_any_error_is_one_text(error: BaseException, text: str) -> None:
    assert describe(error) == text


def test_an_interruption_before_anything_was_changed_is_no_step_s_own_error(bench: Bench) -> None:
    bench.fail(check=KeyboardInterrupt())
    with pytest.raises(RolledBack) as raised:
        bench.execute()
    assert (raised.value.message, raised.value.hint) == (
        "step check failed: interrupted; everything was put back", None)  # fmt: skip

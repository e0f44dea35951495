"""Every plan is interrupted before, during and after each step, and then resumed or rolled back."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import (
    HostError,
    HotswapError,
    PostcheckFailed,
    PrecheckFailed,
    RolledBack,
    StateUnknown,
    SwitchError,
)
from ovs_hotswap.plan.executor import Event, EventKind, Executor, Plan, ReversibleStep, State, Step, StepContext
from ovs_hotswap.plan.interrupts import Interrupted, Interrupts
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Phase, PlanProgress, Record, StepMark, StepNames, fold
from ovs_hotswap.system import System


class PowerCut(BaseException):
    """Stands for SIGKILL: no handler of the executor may see it."""


@dataclass
class World:
    """What steps change: each reversible step has a half and a whole effect. ``trap`` is called at each point."""

    effects: dict[str, str] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    trap: Callable[[str], None] = lambda _point: None


class Look(Step[World]):
    def __init__(self, name: str) -> None:
        self.name, self.description = name, f"look at {name}"

    def do(self, context: World, run: StepContext) -> None:
        context.trap(f"before {self.name}")
        context.acts.append(f"do {self.name}")
        context.trap(f"in {self.name}")


class Change(ReversibleStep[World]):
    def __init__(self, name: str) -> None:
        self.name, self.description, self.look_at = name, f"change {name}", f"the {name} thing"

    def facts(self, context: World, run: StepContext) -> dict[str, Any]:
        return {f"{self.name} was": context.effects.get(self.name, "absent")}

    def do(self, context: World, run: StepContext) -> None:
        context.trap(f"before {self.name}")
        context.acts.append(f"do {self.name}")
        context.effects[self.name] = "half"
        context.trap(f"in {self.name}")
        context.effects[self.name] = "whole"
        context.trap(f"after {self.name}")

    def undo(self, context: World, run: StepContext) -> None:
        context.trap(f"undo {self.name}")
        context.acts.append(f"undo {self.name}")
        if run.fact(f"{self.name} was", str) == "absent":
            context.effects.pop(self.name, None)

    def state(self, context: World, run: StepContext) -> State:
        return State.DONE if context.effects.get(self.name) == "whole" else State.NOT_DONE


BEFORE = ("check", "start", "wire", "prove", "move")
AFTER = ("retire", "verify")
POINTS = [f"{when} {name}" for name in (*BEFORE, *AFTER) for when in ("before", "in")] + [
    f"after {name}" for name in ("start", "wire", "move", "retire")
]


def a_plan() -> Plan[World]:
    return Plan(
        "upgrade",
        (Look("check"), Change("start"), Change("wire"), Look("prove"), Change("move")),
        (Change("retire"), Look("verify")),
    )


def fail_at(point: str, error: BaseException) -> Callable[[str], None]:
    def trap(here: str) -> None:
        if here == point:
            raise error

    return trap


class Bench:
    """A world and a journal on the disk, which is opened again for each execution, as after a crash."""

    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.journals = Journals(directory, System())
        self.events: list[Event] = []

    def execute(self, action: str = "run", trap: Callable[[str], None] = lambda _point: None) -> None:
        self.world.trap = trap
        plan = a_plan()
        journal = self.journals.reopen() or self.journals.begin("upgrade", plan.shape)
        with journal:
            executor = Executor(
                plan, self.world, journal, records=journal.records, clock=lambda: 0.0, observe=self.events.append
            )
            getattr(executor, action)()

    @property
    def standing(self) -> PlanProgress:
        contents = self.journals.read()
        assert contents is not None, "the plan has ended"
        return contents.standing

    @property
    def ended(self) -> bool:
        return self.journals.read() is None

    def undone(self) -> list[str]:
        return [act.removeprefix("undo ") for act in self.world.acts if act.startswith("undo ")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


WHOLE = {"start": "whole", "wire": "whole", "move": "whole", "retire": "whole"}


def started_before(point: str) -> list[str]:
    """The reversible steps before the commit that were started when the plan got to ``point``."""
    return [name for name in BEFORE[: BEFORE.index(point.split()[1]) + 1] if name in WHOLE]


def committed(point: str) -> bool:
    return point.split()[1] in AFTER


def test_runs_to_its_end(bench: Bench) -> None:
    bench.execute()
    assert bench.world.effects == WHOLE
    assert bench.world.acts == [f"do {name}" for name in (*BEFORE, *AFTER)]
    assert [event.kind for event in bench.events] == [
        *[EventKind.STARTED, EventKind.DONE] * 5, EventKind.COMMITTED, *[EventKind.STARTED, EventKind.DONE] * 2,
        EventKind.FINISHED,
    ]  # fmt: skip
    assert bench.ended


@pytest.mark.parametrize("point", POINTS)
def test_failure_rolls_back_before_the_commit_and_stays_after(bench: Bench, point: str) -> None:
    expected: type[HotswapError] = RolledBack
    if committed(point):
        expected = PostcheckFailed
    elif point.endswith("check"):
        expected = SwitchError  # nothing had been changed: the step's own error
    with pytest.raises(expected, match="no answer") as raised:
        bench.execute(trap=fail_at(point, SwitchError("no answer", hint="wake it")))
    after = ", then `ovs-hotswap resume`" if committed(point) else ""
    assert raised.value.hint == f"wake it{after}"
    if expected is not SwitchError:
        assert f"step {point.split()[1]} failed" in raised.value.message
        assert isinstance(raised.value.__cause__, SwitchError)
    if not committed(point):
        assert bench.world.effects == {}
        assert bench.undone() == started_before(point)[::-1]
        assert bench.ended
        return
    assert bench.standing.phase is Phase.COMMITTED
    assert bench.undone() == []
    bench.events.clear()
    bench.execute()
    assert {event.step for event in bench.events if event.kind is EventKind.SKIPPED} >= set(BEFORE)
    assert bench.world.effects == WHOLE
    assert bench.ended


@pytest.mark.parametrize("point", POINTS)
def test_power_cut_then_resume_finishes(bench: Bench, point: str) -> None:
    with pytest.raises(PowerCut):
        bench.execute(trap=fail_at(point, PowerCut()))
    assert bench.undone() == []
    interrupted = point.split()[1]
    assert bench.standing.marks[interrupted] is StepMark.STARTED
    bench.execute()
    assert bench.world.effects == WHOLE
    assert bench.ended


@pytest.mark.parametrize("point", POINTS)
def test_power_cut_then_rollback_undoes_unless_committed(bench: Bench, point: str) -> None:
    with pytest.raises(PowerCut):
        bench.execute(trap=fail_at(point, PowerCut()))
    if committed(point):
        with pytest.raises(PrecheckFailed, match="committed"):
            bench.execute("rollback")
        assert bench.undone() == []
        return
    bench.execute("rollback")
    assert bench.world.effects == {}
    assert bench.undone() == started_before(point)[::-1]
    assert bench.ended


@pytest.mark.parametrize("action", ["run", "rollback"])
@pytest.mark.parametrize("point", ["undo move", "undo wire", "undo start"])
def test_power_cut_in_a_roll_back_goes_on_rolling_back(bench: Bench, point: str, action: str) -> None:
    def trap(here: str) -> None:
        if here == "in move":
            raise SwitchError("no answer")
        if here == point:
            raise PowerCut

    with pytest.raises(PowerCut):
        bench.execute(trap=trap)
    with pytest.raises(RolledBack, match="move had failed: no answer") if action == "run" else contextlib.nullcontext():
        bench.execute(action)
    assert bench.world.effects == {}
    assert bench.undone() == ["move", "wire", "start"]
    assert bench.ended


class CutJournal:
    """Lets ``records`` more records through, then the power goes: before or after the next one is on the disk."""

    def __init__(self, inner: Any, records: int, *, written: bool) -> None:
        self.inner, self.left, self.written = inner, records, written

    def append(self, record: Record) -> None:
        if self.left == 0:
            if self.written:
                self.inner.append(record)
            raise PowerCut
        self.left -= 1
        self.inner.append(record)


@given(
    cuts=st.lists(st.tuples(st.integers(0, 25), st.booleans(), st.booleans()), max_size=6),
    last=st.booleans(),
    failing=st.sampled_from([None, *POINTS]),
)
def test_any_row_of_power_cuts_ends_whole_or_put_back(
    cuts: list[tuple[int, bool, bool]], last: bool, failing: str | None
) -> None:
    """Cut between any two records, any number of times, resuming or rolling back in between, a step failing or not:
    in the end everything is whole if the plan was ever committed, and nothing is there if it was not."""
    trap = fail_at(failing, SwitchError("no answer")) if failing else lambda _point: None
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        plan = a_plan()
        for records, written, back in [*cuts, (1000, True, last)]:
            bench.world.trap = trap
            journal = bench.journals.reopen() or bench.journals.begin("upgrade", plan.shape)
            with journal, contextlib.suppress(PowerCut, RolledBack, PrecheckFailed, PostcheckFailed, SwitchError):
                wrapped = CutJournal(journal, records, written=written)
                executor = Executor(plan, bench.world, wrapped, records=journal.records, clock=lambda: 0.0)
                executor.rollback() if back else executor.run()
            if bench.ended:
                break
        if not bench.ended:
            assert bench.standing.phase is Phase.COMMITTED
            bench.execute()
        committed_once = '"record":"commit"' in bench.journals.history()[0].read_text()
        assert bench.world.effects == (WHOLE if committed_once else {})


def test_resume_repeats_what_the_world_has_lost(bench: Bench) -> None:
    with pytest.raises(PowerCut):
        bench.execute(trap=fail_at("before move", PowerCut()))
    del bench.world.effects["start"]  # the standby has died since
    bench.world.acts.clear()
    bench.events.clear()
    bench.execute()
    # "check" and "prove" cannot tell their state, so they are done again; "wire" is seen to be there.
    assert bench.world.acts == ["do check", "do start", "do prove", "do move", "do retire", "do verify"]
    assert [event.step for event in bench.events if event.kind is EventKind.SKIPPED] == ["wire"]
    assert bench.world.effects == WHOLE


def test_facts_are_of_the_world_before_the_step_even_if_it_is_repeated(bench: Bench) -> None:
    bench.world.effects["wire"] = "operator's"
    with pytest.raises(PowerCut):
        bench.execute(trap=fail_at("after wire", PowerCut()))
    assert bench.standing.facts["wire was"] == "operator's"
    with pytest.raises(PowerCut):
        bench.execute(trap=fail_at("in move", PowerCut()))
    assert bench.standing.facts == {"start was": "absent", "wire was": "operator's", "move was": "absent"}


def test_remembered_facts_are_on_the_disk_at_once(bench: Bench) -> None:
    class Remember(Look):
        def do(self, context: World, run: StepContext) -> None:
            run.remember(moved=["vm1"], sleep={"a": 50})
            raise PowerCut

    plan: Plan[World] = Plan("upgrade", (Remember("move"),))
    journal = bench.journals.begin("upgrade", plan.shape)
    with journal, pytest.raises(PowerCut):
        Executor(plan, bench.world, journal, clock=lambda: 0.0).run()
    assert bench.standing.facts == {"moved": ["vm1"], "sleep": {"a": 50}}


def test_a_fact_of_another_kind_is_refused() -> None:
    run = StepContext(lambda: {"sleep": "50"}, lambda _facts: None, lambda _event: None)
    assert run.fact("sleep", str) == "50"
    with pytest.raises(StateUnknown, match="no int 'sleep'"):
        run.fact("sleep", int)
    with pytest.raises(StateUnknown, match="no str 'other'"):
        run.fact("other", str)


def test_failed_undo_stops_says_where_to_look_and_can_be_repeated(bench: Bench) -> None:
    def trap(here: str) -> None:
        if here == "in move":
            raise SwitchError("no answer")
        if here == "undo wire":
            raise SwitchError("device busy")

    with pytest.raises(StateUnknown, match="wire could not be undone: device busy") as raised:
        bench.execute(trap=trap)
    assert raised.value.hint is not None
    assert "the wire thing" in raised.value.hint
    assert "ovs-hotswap rollback" in raised.value.hint
    assert bench.undone() == ["move"]
    assert bench.standing.phase is Phase.BACK
    assert bench.world.effects == {"start": "whole", "wire": "whole"}
    bench.execute("rollback")
    assert bench.world.effects == {}
    assert bench.undone() == ["move", "wire", "start"]


def test_an_error_that_is_not_ours_rolls_back_too(bench: Bench) -> None:
    with pytest.raises(RolledBack, match="KeyError: 'ofport'"):
        bench.execute(trap=fail_at("in wire", KeyError("ofport")))
    assert bench.world.effects == {}


def test_the_journal_is_written_before_the_act(bench: Bench) -> None:
    seen: dict[str, StepMark] = {}

    def trap(here: str) -> None:
        when, name = here.split()
        if when == "before":
            seen[name] = bench.standing.marks[name]

    bench.execute(trap=trap)
    assert seen == dict.fromkeys((*BEFORE, *AFTER), StepMark.STARTED)


class Full:
    """A journal with room for so many records."""

    def __init__(self, room: int) -> None:
        self.room, self.records = room, list[Record]()

    def append(self, record: Record) -> None:
        if len(self.records) == self.room:
            raise HostError("no space left")
        self.records.append(record)


RECORDS = 2 * len((*BEFORE, *AFTER)) + 2
COMMIT = 2 * len(BEFORE)


@pytest.mark.parametrize("room", range(RECORDS))
def test_without_a_journal_it_goes_back_and_never_forward(bench: Bench, room: int) -> None:
    full, told = Full(room), list[Event]()
    executor = Executor(a_plan(), bench.world, full, clock=lambda: 0.0, observe=told.append)
    expected = HostError if room <= 2 else PostcheckFailed if room > COMMIT else RolledBack
    with pytest.raises(expected, match="no space left") as raised:
        executor.run()
    begun = [step for step in a_plan().before if f"do {step.name}" in bench.world.acts]
    assert len(begun) == min(room // 2 + room % 2, len(BEFORE)), "nothing is done that was not announced"
    if expected is RolledBack:
        assert bench.world.effects == {}
        assert executor.standing.phase is Phase.ROLLED_BACK
        assert "the journal does not record all of this: no space left" in raised.value.message
    if room > 1:
        assert any("continues without the journal" in event.text for event in told)


@pytest.mark.parametrize("room", range(6))
def test_a_roll_back_is_never_stopped_by_the_journal(bench: Bench, room: int) -> None:
    """``room``: the number of the rollback's records for which there is room."""
    full = Full(RECORDS)

    def fills_up(event: Event) -> None:
        if event.kind is EventKind.FAILED:
            full.room = len(full.records) + room

    bench.world.trap = fail_at("in move", SwitchError("no answer"))
    with pytest.raises(RolledBack, match=r"step move failed: no answer; everything was put back; .*no space left"):
        Executor(a_plan(), bench.world, full, clock=lambda: 0.0, observe=fills_up).run()
    assert bench.world.effects == {}


def test_a_roll_back_that_no_disk_takes_is_in_the_history_all_the_same(bench: Bench) -> None:
    class FullJournal:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def append(self, record: Record) -> None:
            if record.kind in (Kind.UNDO, Kind.UNDONE, Kind.END):
                raise HostError("no space left")
            self.inner.append(record)

    bench.world.trap = fail_at("in move", SwitchError("no answer"))
    with bench.journals.begin("upgrade", a_plan().shape) as journal:
        executor = Executor(a_plan(), bench.world, FullJournal(journal), clock=lambda: 0.0)
        with pytest.raises(RolledBack):
            executor.run()
        journal.ended |= executor.standing.ended
    assert bench.journals.read() is None
    assert len(bench.journals.history()) == 1


def test_an_observer_that_fails_does_not_harm_the_plan(bench: Bench) -> None:
    told: list[Event] = []

    def observe(event: Event) -> None:
        told.append(event)
        raise BrokenPipeError

    plan = a_plan()
    with bench.journals.begin("upgrade", plan.shape) as journal:
        Executor(plan, bench.world, journal, clock=lambda: 0.0, observe=observe).run()
    assert bench.world.effects == WHOLE
    assert len(told) == 1


def test_events_carry_progress_and_seconds(bench: Bench) -> None:
    class Move(Look):
        def do(self, context: World, run: StepContext) -> None:
            run.progress("moved in 212 us", item="vm1", count=1, total=4)

    ticks = iter(range(100))
    events: list[Event] = []
    plan: Plan[World] = Plan("upgrade", (Move("move"),))
    with bench.journals.begin("upgrade", plan.shape) as journal:
        Executor(plan, bench.world, journal, clock=lambda: next(ticks), observe=events.append).run()
    assert events[1] == Event(EventKind.PROGRESS, "move", None, "moved in 212 us", "vm1", 1, 4)
    assert events[2] == Event(EventKind.DONE, "move", 1)


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two steps"):
        Plan("upgrade", (Look("check"),), (Look("check"),))


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([Record(Kind.START, "move")], "check, start, wire, prove not done"),
        ([Record(Kind.START, "unheard of")], "no such step"),
        ([Record(Kind.START)], "names no step"),
        ([Record(Kind.DONE, "check")], "pending, not started"),
        ([Record(Kind.COMMIT)], "not done"),
        ([Record(Kind.UNDO, "start")], "never started"),
        ([Record(Kind.UNDONE, "start")], "pending, not undoing"),
        ([Record(Kind.TURNED_BACK)], "goes forward"),
        ([Record(Kind.END), Record(Kind.START, "check")], "has ended"),
        ([Record(Kind.FAILED, "check"), Record(Kind.START, "check")], "goes back"),
    ],
)
def test_records_that_make_no_sense_are_refused(records: list[Record], why: str) -> None:
    with pytest.raises(StateUnknown, match=why) as raised:
        fold(StepNames(BEFORE, AFTER), records)
    assert f"record {len(records)} " in raised.value.message


# ------------------------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Interrupts() as held:
        yield held
    assert {number: signal.getsignal(number) for number in before} == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("point", POINTS)
def test_a_signal_rolls_back_in_order_before_the_commit(
    bench: Bench, interrupts: Interrupts, point: str, number: signal.Signals
) -> None:
    def trap(here: str) -> None:
        if here == point or here.startswith("undo"):
            send(number)

    bench.world.trap = trap
    plan = a_plan()
    expected = PostcheckFailed if committed(point) else RolledBack
    with (
        bench.journals.begin("upgrade", plan.shape) as journal,
        pytest.raises(expected, match=f"interrupted by {number.name}"),
    ):
        Executor(plan, bench.world, journal, clock=lambda: 0.0, shield=interrupts.shield).run()
    if committed(point):
        assert bench.undone() == []
        assert not bench.ended
    else:
        assert bench.world.effects == {}
        assert bench.ended


def test_a_shield_holds_a_signal_back(interrupts: Interrupts) -> None:
    passed = []
    with pytest.raises(Interrupted, match="SIGTERM"), interrupts.shield():  # noqa: PT012
        with interrupts.shield():
            send(signal.SIGTERM)
        passed.append("inner")
        send(signal.SIGINT)
        passed.append("outer")
    assert passed == ["inner", "outer"]


def test_an_error_in_a_shield_is_not_hidden_by_a_signal(interrupts: Interrupts) -> None:
    with pytest.raises(SwitchError), interrupts.shield():  # noqa: PT012
        send(signal.SIGTERM)
        raise SwitchError("no answer")

"""Plans that lose, under way, what they would go back to or what they go to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.errors import PostcheckFailed, PrecheckFailed, RolledBack, SwitchError
from ovs_hotswap.plan.executor import Executor, Plan, ReversibleStep, StepContext
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Kind, Phase
from ovs_hotswap.system import System


class Cut(BaseException):
    """Stands for SIGKILL."""


class World:
    """``effects`` are there; the steps in ``failing`` fail, ``cut`` is where the power goes."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.failing: set[str] = set()
        self.cut = ""
        self.old_lost = self.new_lost = ""


class Change(ReversibleStep[World]):
    def __init__(self, name: str) -> None:
        self.name = self.description = name

    def do(self, context: World, run: StepContext) -> None:
        if context.cut == self.name:
            raise Cut
        if self.name in context.failing:
            context.failing.discard(self.name)
            raise SwitchError(f"{self.name} does not answer")
        if self.name not in context.effects:
            context.effects.append(self.name)

    def undo(self, context: World, run: StepContext) -> None:
        if self.name in context.effects:
            context.effects.remove(self.name)


PLAN: Plan[World] = Plan(
    "upgrade",
    (Change("start"), Change("move")),
    (Change("record-active"), Change("retire")),
    no_way_back=lambda world, _facts: world.old_lost,
    no_way_on=lambda world: world.new_lost,
)
WHOLE = ["start", "move", "record-active", "retire"]


class Bench:
    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.journals = Journals(directory, System())

    def execute(self, action: str = "run") -> None:
        journal = self.journals.reopen() or self.journals.begin("upgrade", PLAN.shape)
        with journal:
            getattr(Executor(PLAN, self.world, journal, records=journal.records, clock=lambda: 0.0), action)()

    @property
    def phase(self) -> Phase | None:
        contents = self.journals.read()
        return None if contents is None else contents.standing.phase


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_cannot_go_back_goes_on(bench: Bench) -> None:
    bench.world.failing, bench.world.old_lost = {"move"}, "the old one died"
    bench.execute()
    assert bench.world.effects == WHOLE
    assert f'"record":"{Kind.FORWARD_ANYWAY}"' in bench.journals.history()[0].read_text()


def test_what_cannot_go_back_is_not_rolled_back(bench: Bench) -> None:
    bench.world.cut, bench.world.old_lost = "move", "the old one died"
    with pytest.raises(Cut):
        bench.execute()
    with pytest.raises(PrecheckFailed, match="no way back: the old one died"):
        bench.execute("rollback")
    bench.world.cut = ""
    bench.execute()
    assert bench.world.effects == WHOLE


@pytest.mark.parametrize("step", ["record-active", "retire"])
def test_what_cannot_go_on_goes_back_even_after_the_commit(bench: Bench, step: str) -> None:
    bench.world.failing, bench.world.new_lost = {step}, "the new one died"
    with pytest.raises(RolledBack, match=f"{step} failed after the commit: {step} does not answer; the new one died"):
        bench.execute()
    assert bench.world.effects == []
    assert bench.phase is None


@pytest.mark.parametrize("action", ["run", "rollback"])
@pytest.mark.parametrize("step", ["record-active", "retire"])
def test_a_committed_plan_that_was_cut_goes_back_too(bench: Bench, step: str, action: str) -> None:
    bench.world.cut = step
    with pytest.raises(Cut):
        bench.execute()
    assert bench.phase is Phase.COMMITTED
    bench.world.cut, bench.world.failing, bench.world.new_lost = "", {step}, "the new one died"
    if action == "run":
        with pytest.raises(RolledBack):
            bench.execute()
    else:
        bench.execute("rollback")
    assert bench.world.effects == []
    assert bench.phase is None


def test_a_roll_back_after_the_commit_that_is_cut_is_finished(bench: Bench) -> None:
    """The record of the turn is on the disk before anything is undone."""

    class Torn(Change):
        def undo(self, context: World, run: StepContext) -> None:
            if context.cut == f"undo {self.name}":
                raise Cut
            super().undo(context, run)

    torn = Plan("upgrade", (Torn("start"), Torn("move")), (Torn("record-active"), Torn("retire")),
                no_way_on=lambda world: world.new_lost)  # fmt: skip
    bench.world.failing, bench.world.new_lost, bench.world.cut = {"retire"}, "the new one died", "undo record-active"
    with bench.journals.begin("upgrade", torn.shape) as journal, pytest.raises(Cut):
        Executor(torn, bench.world, journal, clock=lambda: 0.0).run()
    assert bench.phase is Phase.BACK
    bench.world.cut, bench.world.new_lost = "", ""
    with pytest.raises(RolledBack, match="the new one died"):
        bench.execute()
    assert bench.world.effects == []


def test_after_the_commit_a_failure_alone_turns_nothing_back(bench: Bench) -> None:
    bench.world.failing = {"retire"}
    with pytest.raises(PostcheckFailed):
        bench.execute()
    assert bench.phase is Phase.COMMITTED
    with pytest.raises(PrecheckFailed, match="committed"):
        bench.execute("rollback")
    bench.execute()
    assert bench.world.effects == WHOLE

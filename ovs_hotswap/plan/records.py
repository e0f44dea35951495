"""The records of a plan's journal and what they mean. This module is pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ovs_hotswap.errors import StateUnknown

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Facts: TypeAlias = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class StepNames:
    """The step names of a plan, on which alone the meaning of a journal depends."""

    before: tuple[str, ...]
    after: tuple[str, ...] = ()


class Kind(enum.StrEnum):
    """The kinds of journal records. ``START`` and ``UNDO`` are on the disk before the act that they announce."""

    START = "start"
    FACTS = "facts"
    DONE = "done"
    FAILED = "failed"
    COMMIT = "commit"
    UNDO = "undo"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"
    RESUME = "resume"
    FORWARD_ANYWAY = "onward"
    TURNED_BACK = "return"
    END = "end"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a journal.

    ``text`` is the cause of a failure, or the boot id of a resume. With FORWARD_ANYWAY it is a failure before the
    commit after which there was no way back; with TURNED_BACK, a failure after the commit after which there was only
    the way back.
    """

    kind: Kind
    step: str = ""
    facts: Facts = field(default_factory=dict)
    text: str = ""


class StepMark(enum.StrEnum):
    """Where a step stands according to the journal."""

    PENDING = "pending"
    STARTED = "started"
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"


class Phase(enum.StrEnum):
    """Where the plan stands according to the journal. ``BACK``: a rollback was begun and must be finished."""

    FORWARD = "forward"
    BACK = "back"
    COMMITTED = "committed"
    FINISHED = "finished"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """The progress of a plan that a journal's records describe."""

    shape: StepNames
    marks: Mapping[str, StepMark]
    phase: Phase = Phase.FORWARD
    facts: Facts = field(default_factory=dict)
    failed_step: str = ""
    failure: str = ""

    @classmethod
    def new(cls, shape: StepNames) -> PlanProgress:
        return cls(shape, {name: StepMark.PENDING for name in (*shape.before, *shape.after)})

    @property
    def ended(self) -> bool:
        return self.phase in {Phase.FINISHED, Phase.ROLLED_BACK}

    def mark(self, step: str, mark: StepMark) -> PlanProgress:
        return replace(self, marks={**self.marks, step: mark})


def fold(shape: StepNames, records: Iterable[Record]) -> PlanProgress:
    """Return the progress that ``records`` describe of a plan of ``shape``.

    Raises StateUnknown, which names the record (1 is the first after the header), if a plan of this shape cannot have
    written them.
    """
    standing = PlanProgress.new(shape)
    for number, record in enumerate(records, 1):
        try:
            standing = advance(standing, record)
        except ValueError as error:
            raise StateUnknown(
                f"the journal's record {number} ({record.kind} {record.step}) makes no sense: {error}",
                hint="take the version of ovs-hotswap that began it, or look at each part: `ovs-hotswap status`",
            ) from error
    return standing


def advance(standing: PlanProgress, record: Record) -> PlanProgress:
    """Return ``standing`` after one more record. Raises ValueError if the record is not possible there."""
    if standing.ended:
        raise ValueError("the plan has ended")
    if record.step and record.step not in standing.marks:
        raise ValueError("the plan has no such step")
    standing = replace(standing, facts={**standing.facts, **record.facts})
    match record.kind:
        case Kind.START | Kind.DONE | Kind.UNDO | Kind.UNDONE:
            return _mark(standing, record)
        case Kind.FAILED:
            back = Phase.BACK if standing.phase is Phase.FORWARD else standing.phase
            return replace(standing, phase=back, failed_step=record.step, failure=record.text)
        case Kind.COMMIT:
            _must_be_done(standing, standing.shape.before, Phase.FORWARD)
            return replace(standing, phase=Phase.COMMITTED)
        case Kind.TURNED_BACK:
            if standing.phase is not Phase.COMMITTED:
                raise ValueError(f"the plan goes {standing.phase}")
            step = record.step or standing.failed_step
            return replace(standing, phase=Phase.BACK, failed_step=step, failure=record.text)
        case Kind.END if standing.phase is Phase.COMMITTED:
            _must_be_done(standing, standing.shape.after, Phase.COMMITTED)
            return replace(standing, phase=Phase.FINISHED)
        case Kind.END:
            return replace(standing, phase=Phase.ROLLED_BACK)
        case Kind.FACTS | Kind.UNDO_FAILED | Kind.RESUME | Kind.FORWARD_ANYWAY:
            return standing


def _mark(standing: PlanProgress, record: Record) -> PlanProgress:
    if not record.step:
        raise ValueError("it names no step")
    if record.kind is Kind.START:
        _must_be_next(standing, record.step)
        return standing.mark(record.step, StepMark.STARTED)
    if record.kind is Kind.DONE:
        _must_be(standing, record.step, StepMark.STARTED)
        return standing.mark(record.step, StepMark.DONE)
    if record.kind is Kind.UNDONE:
        _must_be(standing, record.step, StepMark.UNDOING)
        return standing.mark(record.step, StepMark.UNDONE)
    if standing.phase not in {Phase.FORWARD, Phase.BACK}:
        raise ValueError("the plan is committed")
    if standing.marks[record.step] is StepMark.PENDING:
        raise ValueError("the step was never started")
    return replace(standing.mark(record.step, StepMark.UNDOING), phase=Phase.BACK)


def _must_be(standing: PlanProgress, step: str, mark: StepMark) -> None:
    if standing.marks[step] is not mark:
        raise ValueError(f"the step is {standing.marks[step]}, not {mark}")


def _must_be_done(standing: PlanProgress, steps: Sequence[str], phase: Phase) -> None:
    if standing.phase is not phase:
        raise ValueError(f"the plan goes {standing.phase}")
    open_steps = [step for step in steps if standing.marks[step] is not StepMark.DONE]
    if open_steps:
        raise ValueError(f"{', '.join(open_steps)} not done")


def _must_be_next(standing: PlanProgress, step: str) -> None:
    """Raise ValueError unless ``step`` may start: in its section's phase, after all earlier steps of the section."""
    section, phase = standing.shape.before, Phase.FORWARD
    if step not in section:
        section, phase = standing.shape.after, Phase.COMMITTED
    _must_be_done(standing, section[: section.index(step)], phase)

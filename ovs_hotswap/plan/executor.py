"""Plans: steps with undo, divided by a commit, and executed with a journal that is written before each act.

A failure before the commit undoes every started step in reverse order, including the failed one, which may be half
done. If the state to which the undo would return is lost, the plan continues instead: its steps are repeated as after
an interruption. After the commit nothing is undone: a failure is reported, and a later run finishes the plan. The
exception is a plan whose target is lost while its origin still exists: it is undone even after the commit. A plan that
was interrupted, even by SIGKILL, is continued from the journal's records: ``Executor.run`` finishes it,
``Executor.rollback`` undoes it.

No step is begun if the journal cannot be written. A step is undone nevertheless, because a host that is left half way
is worse than a journal that lags behind: such a journal says less than was undone, and every undo may be repeated.

This module does no I/O: it is given the journal, the clock and the observer. ``records`` defines what the records mean.
"""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from ovs_hotswap.errors import HostError, HotswapError, PostcheckFailed, PrecheckFailed, RolledBack, StateUnknown
from ovs_hotswap.plan.records import Facts, Json, Kind, Phase, PlanProgress, Record, StepMark, StepNames, advance, fold

C = TypeVar("C")
T = TypeVar("T")


class State(enum.Enum):
    """Whether the effect of a step is there, as far as can be seen."""

    DONE = enum.auto()
    NOT_DONE = enum.auto()
    UNKNOWN = enum.auto()


class Step(ABC, Generic[C]):
    """A step that has nothing to undo, because it only looks or comes after the commit.

    ``name`` is the key in the journal, ``description`` the line that an operator reads. ``do`` must be idempotent: it
    is repeated if it was interrupted, and on resume if ``state`` does not return DONE.
    """

    name: str
    description: str

    def facts(self, context: C, run: StepContext) -> Facts:
        """Return what later steps or the undo need to know about the state before this step changes it.

        The facts are written to the journal with the record of the step's start. They are collected once: this is not
        called again if the step is repeated.
        """
        return {}

    @abstractmethod
    def do(self, context: C, run: StepContext) -> None: ...

    def state(self, context: C, run: StepContext) -> State:
        """Return whether the step's effect is there now. On resume this is asked for each step that was done."""
        return State.UNKNOWN


class ReversibleStep(Step[C]):
    """A step that has an undo. ``look_at`` says what the operator should inspect if the undo fails."""

    look_at: str = "`ovs-hotswap status`"

    @abstractmethod
    def undo(self, context: C, run: StepContext) -> None:
        """Put back what ``do`` changed, whether ``do`` was completed, was half done, or was already put back."""


@dataclass(frozen=True)
class Plan(Generic[C]):
    """The steps ``before`` and ``after`` the commit. Their names are unique.

    ``no_way_back`` returns why undoing the plan before the commit makes no sense, or an empty text if it does; it is
    given the facts that the steps have recorded. ``no_way_on`` returns why, after the commit, only undoing makes sense,
    or an empty text. ``mend`` starts again what the undo needs, if that is what broke. ``revive`` starts again what a
    committed plan needs that is continued after an interruption, if nothing of it is left. ``unrestored`` returns what
    is not as it was although every step was undone, such as a process that died, or an empty text.
    """

    kind: str
    before: tuple[Step[C], ...]
    after: tuple[Step[C], ...] = ()
    no_way_back: Callable[[C, Facts], str] = lambda _context, _facts: ""
    no_way_on: Callable[[C], str] = lambda _context: ""
    mend: Callable[[C], None] = lambda _context: None
    revive: Callable[[C], None] = lambda _context: None
    unrestored: Callable[[C], str] = lambda _context: ""

    def __post_init__(self) -> None:
        names = [step.name for step in (*self.before, *self.after)]
        if len(set(names)) != len(names):
            raise ValueError(f"plan {self.kind}: two steps have one name")

    @property
    def shape(self) -> StepNames:
        return StepNames(tuple(step.name for step in self.before), tuple(step.name for step in self.after))


class EventKind(enum.StrEnum):
    STARTED = "started"
    PROGRESS = "progress"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    COMMITTED = "committed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"
    FINISHED = "finished"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Event:
    """A report of progress for an observer.

    ``step`` is empty if the event is about the whole plan. ``seconds`` is how long a done, failed or undone step took.
    ``item`` names the part that a PROGRESS event is about, such as a VM, and it is number ``count`` of ``total``.
    """

    kind: EventKind
    step: str = ""
    seconds: float | None = None
    text: str = ""
    item: str | None = None
    count: int | None = None
    total: int | None = None


class JournalWriter(Protocol):
    def append(self, record: Record) -> None:
        """Write ``record`` and return when it is on the disk. Raises HostError if that fails; it is not there then."""


class StepContext:
    """What a step is given besides its context: the facts in the journal, and a way to report progress."""

    def __init__(
        self, facts: Callable[[], Facts], remember: Callable[[Facts], None], emit: Callable[[Event], None]
    ) -> None:
        self._facts, self._remember, self._emit = facts, remember, emit

    @property
    def facts(self) -> Facts:
        """All facts that any step has recorded so far."""
        return MappingProxyType(dict(self._facts()))

    def fact(self, name: str, kind: type[T]) -> T:
        """Return the fact ``name``. Raises StateUnknown if it was not recorded or is not of ``kind``."""
        value = self._facts().get(name)
        if not isinstance(value, kind):
            raise StateUnknown(f"the journal holds no {kind.__name__} {name!r}", hint="`ovs-hotswap status`")
        return value

    def texts(self, name: str) -> list[str]:
        """Return the fact ``name``, a list of texts; it is empty if it was not recorded."""
        value = self._facts().get(name)
        return [str(each) for each in value] if isinstance(value, list | tuple) else []

    def remember(self, **facts: Json) -> None:
        """Write facts to the journal. They are on the disk when this returns; only then may a step act on them."""
        self._remember(facts)

    def remember_entries(self, name: str, entries: Mapping[str, Json]) -> None:
        """Add entries to a fact that is an object, like ``remember``."""
        earlier = self._facts().get(name)
        self._remember({name: {**(earlier if isinstance(earlier, dict) else {}), **entries}})

    def warn(self, text: str) -> None:
        """Record a warning that the operator is to see at the end of the plan, and report it as progress."""
        told = self.texts("warnings")
        if text not in told:
            self._remember({"warnings": [*told, text]})
        self.progress(text)

    def progress(
        self, text: str, *, item: str | None = None, count: int | None = None, total: int | None = None
    ) -> None:
        self._emit(Event(EventKind.PROGRESS, text=text, item=item, count=count, total=total))


class Executor(Generic[C]):
    """Executes ``plan`` from where the ``records`` of an earlier, interrupted execution end.

    ``clock`` returns monotonic seconds. ``shield`` returns a context in which no signal becomes an exception; it is
    used around journal records and rollbacks. ``observe`` is called with each event, but no longer after it has raised:
    an upgrade must not fail because the terminal that shows it fails.
    """

    def __init__(
        self,
        plan: Plan[C],
        context: C,
        journal: JournalWriter,
        *,
        clock: Callable[[], float],
        records: Sequence[Record] = (),
        observe: Callable[[Event], None] = lambda _event: None,
        shield: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.plan = plan
        self.standing = fold(plan.shape, records)
        self._context, self._journal, self._clock = context, journal, clock
        self._observe, self._shield = observe, shield
        self._step = ""
        self._begun = clock()
        self._went_on = False
        self._saving = False  # a rollback, or the only way left: a journal that cannot be written does not stop it
        self._unkept = ""  # why the journal could not be written
        self._unmended: Exception | None = None  # why ``mend`` failed

    def run(self) -> None:
        """Begin the plan, or resume it in the direction in which it was going, and execute it to its end.

        Raises RolledBack if a step before the commit failed, was interrupted or could not be journalled, and everything
        was put back. If nothing had been changed, the step's own error is raised instead. Raises PostcheckFailed if a
        step after the commit failed, and StateUnknown if an undo failed.
        """
        self._turn_back_if_lost()
        if self.standing.phase is Phase.BACK:
            self.rollback()
            raise RolledBack(self._put_back(_cause_of(self.standing)))
        try:
            self._go_forward()
        except (Exception, KeyboardInterrupt) as cause:
            with self._shield():
                if not self._goes_on(cause):
                    self._stopped(cause)
                    raise
            self.run()

    def rollback(self) -> None:
        """Undo all steps that were started. This may be repeated.

        Raises PrecheckFailed after the commit, unless ``no_way_on`` applies, and before the commit if ``no_way_back``
        applies. Raises StateUnknown if an undo fails.
        """
        self._turn_back_if_lost()
        if self.standing.phase in {Phase.COMMITTED, Phase.FINISHED}:
            raise PrecheckFailed(f"the {self.plan.kind} is committed: it cannot be undone step by step",
                                 hint="finish it with `ovs-hotswap resume`")  # fmt: skip
        if self.standing.phase is Phase.FORWARD and (lost := self._no_way_back()):
            raise PrecheckFailed(f"there is no way back: {lost}", hint="finish with `ovs-hotswap resume`")
        if self.standing.phase is not Phase.ROLLED_BACK:
            with self._shield():
                self._go_back()

    def _no_way_back(self) -> str:
        return self.plan.no_way_back(self._context, self.standing.facts)

    def _turn_back_if_lost(self) -> None:
        """Turn a committed plan that was interrupted back to its origin, if ``no_way_on`` applies."""
        if self.standing.phase is Phase.COMMITTED and (lost := self.plan.no_way_on(self._context)):
            self._saving = True
            self._record(Kind.TURNED_BACK, text=lost)

    def _go_forward(self) -> None:
        if self.standing.phase is Phase.COMMITTED:
            self.plan.revive(self._context)
            for step in self.plan.before:
                self._tell(Event(EventKind.SKIPPED, step.name))
        if self.standing.phase is Phase.FORWARD:
            for step in self.plan.before:
                self._do(step)
            self._step = ""
            self._record(Kind.COMMIT)
            self._emit(EventKind.COMMITTED)
        if self.standing.phase is Phase.COMMITTED:
            for step in self.plan.after:
                self._do(step)
            self._step = ""
            self._record(Kind.END)
            self._emit(EventKind.FINISHED)

    def _do(self, step: Step[C]) -> None:
        self._step, self._begun = step.name, self._clock()
        run, mark = self._run(), self.standing.marks[step.name]
        if mark is StepMark.DONE and step.state(self._context, run) is State.DONE:
            self._emit(EventKind.SKIPPED)
            return
        self._record(Kind.START, facts=step.facts(self._context, run) if mark is StepMark.PENDING else {})
        self._emit(EventKind.STARTED)
        step.do(self._context, run)
        self._record(Kind.DONE)
        self._emit(EventKind.DONE, timed=True)

    def _goes_on(self, cause: BaseException) -> bool:
        """Whether to repeat what failed because there is no way back. This is done once: its cause was the loss."""
        if self._went_on or self.standing.phase is not Phase.FORWARD:
            return False
        lost = self._no_way_back()
        if not lost:
            return False
        self._went_on = self._saving = True
        text = f"{describe(cause)}; the plan continues, because there is no way back: {lost}"
        self._record(Kind.FORWARD_ANYWAY, text=text)
        self._emit(EventKind.PROGRESS, text=text)
        return True

    def _stopped(self, cause: BaseException) -> None:
        """Record a failure and do what the phase requires. Returns if the plan had ended or nothing was changed."""
        if self.standing.ended:
            return
        self._saving = True
        text, name = describe(cause), self._step or ("end" if self.standing.phase is Phase.COMMITTED else "commit")
        hint = cause.hint if isinstance(cause, HotswapError) else None
        self._record(Kind.FAILED, text=text)
        self._emit(EventKind.FAILED, text=text, timed=True)
        if self.standing.phase is Phase.COMMITTED:
            if lost := self.plan.no_way_on(self._context):
                self._record(Kind.TURNED_BACK, text=f"{text}; {lost}")
                self._go_back()
                text = self._put_back(f"step {name} failed after the commit: {text}; {lost};")
                raise RolledBack(text, hint=hint) from cause
            hint = f"{hint or 'repair the cause'}, then `ovs-hotswap resume`"
            raise PostcheckFailed(f"committed, but step {name} failed: {text}", hint=hint) from cause
        changed = self._go_back()
        if changed or not isinstance(cause, HotswapError):
            hint = hint or getattr(self._unmended, "hint", None)
            raise RolledBack(self._put_back(f"step {name} failed: {text};"), hint=hint) from cause

    def _put_back(self, cause: str) -> str:
        """Return ``cause`` with what the rollback has reached."""
        text = f"{cause} {self._reached()}"
        return f"{text}; the journal does not record all of this: {self._unkept}" if self._unkept else text

    def _reached(self) -> str:
        try:
            left = self.plan.unrestored(self._context)
        except Exception as error:  # noqa: BLE001 - the rollback has ended, whatever can be said of it
            left = f"what is left of it is not known: {describe(error)}"
        return f"everything that was changed was put back, but {left}" if left else "everything was put back"

    def _go_back(self) -> bool:
        """Undo the started steps in reverse order; return whether there was anything to undo."""
        self._saving = True
        self._unmended = None
        try:
            self.plan.mend(self._context)
        except Exception as error:  # noqa: BLE001 - the undo that needs it will fail, and this is why
            self._unmended = error
        changed = False
        for step in reversed((*self.plan.before, *self.plan.after)):
            if not isinstance(step, ReversibleStep) or self.standing.marks[step.name] is StepMark.PENDING:
                continue
            changed = True
            if self.standing.marks[step.name] is not StepMark.UNDONE:
                self._undo(step)
        self._step = ""
        self._record(Kind.END)
        self._emit(EventKind.ROLLED_BACK, text=self._reached())
        return changed

    def _undo(self, step: ReversibleStep[C]) -> None:
        self._step, self._begun = step.name, self._clock()
        self._record(Kind.UNDO)
        self._emit(EventKind.UNDOING)
        try:
            step.undo(self._context, self._run())
        except Exception as error:
            text, first = describe(error), getattr(error, "hint", None)
            if self._unmended is not None:
                text, first = f"{text} ({describe(self._unmended)})", getattr(self._unmended, "hint", None) or first
            self._record(Kind.UNDO_FAILED, text=text)
            self._emit(EventKind.UNDO_FAILED, text=text, timed=True)
            raise StateUnknown(
                f"step {step.name} could not be undone: {text}; the steps before it were left as they are",
                hint=f"{first or f'look at {step.look_at}'}, then repeat `ovs-hotswap rollback`",
            ) from error
        self._record(Kind.UNDONE)
        self._emit(EventKind.UNDONE, timed=True)

    def _run(self) -> StepContext:
        return StepContext(
            lambda: self.standing.facts,
            lambda facts: self._record(Kind.FACTS, facts=facts),
            lambda event: self._tell(replace(event, step=self._step)),
        )

    def _record(self, kind: Kind, *, facts: Facts | None = None, text: str = "") -> None:
        record = Record(kind, self._step, facts or {}, text)
        after = advance(self.standing, record)
        with self._shield():  # a signal between the two would leave ``standing`` behind the journal
            try:
                self._journal.append(record)
            except HostError as error:
                if not self._saving:
                    raise
                self._without_journal(error)
            self.standing = after

    def _without_journal(self, error: HostError) -> None:
        told, self._unkept = self._unkept, error.message
        if not told:
            self._emit(EventKind.PROGRESS, text=f"{error.message}; the plan continues without the journal")

    def _emit(self, kind: EventKind, *, text: str = "", timed: bool = False) -> None:
        self._tell(Event(kind, self._step, self._clock() - self._begun if timed else None, text))

    def _tell(self, event: Event) -> None:
        try:
            self._observe(event)
        except Exception:  # noqa: BLE001 - see the class: no fault of the observer may end the plan
            self._observe = lambda _event: None


def describe(error: BaseException) -> str:
    """Return a text for any error: a HotswapError's own message; for other errors, the class's name before it."""
    if isinstance(error, HotswapError):
        return error.message
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    return f"{type(error).__name__}: {error}"


def _cause_of(standing: PlanProgress) -> str:
    if not standing.failure:
        return "a rollback was under way and is now finished:"
    return f"step {standing.failed_step or 'commit'} had failed: {standing.failure};"

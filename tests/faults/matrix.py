"""The fault matrix: which process, or other part of the host, is struck how and when, and what must then be true. Pure.

``cells`` lists the matrix, ``expectation`` says what is expected of a cell, and ``judge`` compares this with what was
seen. The *active* instance is the one that is active when the cell begins. The *standby* is the other one: the
watchdog's warm standby while nothing is under way, the new instance in an upgrade.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ovs_hotswap.model import Side
from ovs_hotswap.upgrade.steps import upgrade_plan

_SHAPE = upgrade_plan().shape
IDLE, HANDOVER = "idle", "handover"
BEFORE, AFTER = _SHAPE.before, _SHAPE.after
_MOVED = BEFORE.index("move") + 1
MOMENTS = (IDLE, *BEFORE[:_MOVED], HANDOVER, *BEFORE[_MOVED:], *AFTER)


class Fault(enum.StrEnum):
    """How something is struck. EXIT: a process is asked to end, by `exit` on the control socket of a switch or its
    database, by SIGTERM otherwise. FULL: the disk of a directory has no room left. READ_ONLY: no file there can be
    opened for writing, as after an error of the disk. The newest journal is overwritten with half of itself (TRUNCATE),
    with a text that is not JSON (GARBLE), or with JSON that is not a journal (MISSHAPE). The host's clock jumps an hour
    AHEAD or BACK. Every fault except a damaged journal lasts until the upgrade has ended and the fault is repaired."""

    KILL = "kill"
    STOP = "stop"
    EXIT = "exit"
    FULL = "full"
    READ_ONLY = "read-only"
    TRUNCATE = "truncate"
    GARBLE = "garble"
    MISSHAPE = "misshape"
    AHEAD = "ahead"
    BACK = "back"


class Victim(enum.StrEnum):
    ACTIVE = "active"
    STANDBY = "standby"
    ACTIVE_DB = "active-db"
    STANDBY_DB = "standby-db"
    BROKER = "broker"
    ORCHESTRATOR = "orchestrator"
    WATCHDOG = "watchdog"
    QEMU = "qemu"
    STATE_DIR = "state-dir"
    RUN_DIR = "run-dir"
    JOURNAL = "journal"
    CLOCK = "clock"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that this victim can have."""
        return _FAULTS.get(self, (Fault.KILL, Fault.STOP, Fault.EXIT))

    @property
    def process(self) -> bool:
        return self not in _FAULTS


_FAULTS = {
    Victim.STATE_DIR: (Fault.FULL, Fault.READ_ONLY),
    Victim.RUN_DIR: (Fault.FULL,),
    Victim.JOURNAL: (Fault.TRUNCATE, Fault.GARBLE, Fault.MISSHAPE),
    Victim.CLOCK: (Fault.AHEAD, Fault.BACK),
}


@dataclass(frozen=True, slots=True)
class Cell:
    fault: Fault
    victim: Victim
    moment: str

    def __str__(self) -> str:
        return f"{self.fault} {self.victim} {self.moment}"


def possible(cell: Cell) -> bool:
    """Whether the victim exists at that moment and can have that fault. A handover writes nothing and does not read
    the time of day, so disks, journal and clock are struck in the step around it."""
    if cell.fault not in cell.victim.faults or (cell.moment == HANDOVER and not cell.victim.process):
        return False
    match cell.victim:
        case Victim.ORCHESTRATOR:
            return cell.moment != IDLE
        case Victim.STANDBY | Victim.STANDBY_DB:
            return cell.moment != BEFORE[0]  # the watchdog's standby was ended, the new instance is not started
        case Victim.ACTIVE | Victim.ACTIVE_DB:
            return cell.moment != AFTER[-1]  # it has been retired
    return True


def cells(
    faults: Iterable[Fault] = Fault, victims: Iterable[Victim] = Victim, moments: Iterable[str] = MOMENTS
) -> list[Cell]:
    """All possible cells of these faults, victims and moments, ordered by victim, fault and moment."""
    faults, moments = list(faults), list(moments)
    every = [Cell(fault, victim, moment) for victim in victims for fault in faults for moment in moments]
    return [cell for cell in every if possible(cell)]


# ------------------------------------------------------------------------------------------------- what is expected


class End(enum.StrEnum):
    """How the orchestrator ended. REFUSED: with an error, and nothing was changed. UNFINISHED: with an error after the
    commit."""

    NONE = "none"
    COMMITTED = "committed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"
    UNFINISHED = "unfinished"
    DIED = "died"
    HANGS = "hangs"


class Mend(enum.StrEnum):
    """What an operator does about an unfinished journal."""

    RESUME = "resume"
    ROLLBACK = "rollback"


class Serves(enum.StrEnum):
    """The instance that is active at the end."""

    OLD = "the old instance"
    NEW = "the new instance"
    EITHER = "either"


def since(moment: str, first: str) -> bool:
    """Whether ``moment`` is ``first`` or comes after it in an upgrade."""
    return moment != IDLE and MOMENTS.index(moment) >= MOMENTS.index(first)


def committed(moment: str) -> bool:
    return moment in AFTER


GAP_S = 0.5


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of a cell. ``ends``: how the orchestrator may end. `mend`: what an operator does if the journal
    is not finished then. ``within_s``: the seconds after the end of the upgrade within which every VM except ``spared``
    forwards again, without an operator. ``gap_s``: the longest gap of such a VM in seconds; ``gap_why`` says why it may
    be more than half a second. ``why``: the reason, for people. ``copies``: how many answers a guest may receive twice
    (a copy over the peer link that arrives late, see architecture.md); none if no VM was moved alone.
    ``while_stopped``: the VMs forward also while the process stands still. ``ended``: a process that stands still is
    ended before it could be continued. ``serves``: which instance is active at the end, if this does not follow from
    the end of the upgrade. ``journalled``: the journal says how the orchestrator ended."""

    ends: frozenset[End]
    why: str
    within_s: float = 3.0
    gap_s: float = GAP_S
    gap_why: str = ""
    mend: Mend = Mend.RESUME
    spared: frozenset[str] = frozenset()
    copies: int = 0
    while_stopped: bool = True
    ended: bool = False
    serves: Serves | None = None
    journalled: bool = True


STRUCK_VM = "vm1"
_START_S = 15.0  # an instance is started and programmed
_HANG_S = 3.0  # until an instance that stands still counts as failed, is ended, and its VMs are moved, on 2 busy cores
_STARTED = {"gap_s": _START_S, "gap_why": "there is no other instance: one is started and programmed"}
_HUNG = {"gap_s": _HANG_S, "gap_why": "what stands still counts as failed after a third of hang_ms, 1.5 s here"}
_CONFIRM_S = 5.0  # an instance that confirms nothing is given time, and ended
_LONG_S = 60.0  # a command waits for its deadline first
_DEADLINE_S = 40.0
_COPIES = 3
_COPIES_HELD = 24  # the bed itself holds broker and switches for up to 0.3 s to strike a handover: 6 pings of 4 streams
_TALKS = ("park", "move", HANDOVER)  # when the broker and a switch exchange messages about a VM


@dataclass
class Seen:
    """What was seen of a cell. ``silent``: pings without an answer after ``within_s``. ``doubled``: the number of
    requests that arrived at the remote end more than once, by sender. ``ended``: the process was dead before it could
    be continued. ``faults``: what was not as it must be at the end."""

    old: Side | None = None
    struck: str = ""
    end: End = End.NONE
    message: list[str] = field(default_factory=list)
    ended: bool = False
    silent: list[str] = field(default_factory=list)
    silent_while_stopped: list[str] = field(default_factory=list)
    outage_ms: dict[str, float | None] = field(default_factory=dict)
    phase: str | None = None
    last_committed: bool | None = None
    recorded: Side | None = None
    mended: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    active: Side | None = None
    doubled: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    copies: int = 0
    faults: list[str] = field(default_factory=list)

    def outage(self) -> float:
        """The longest gap in milliseconds; infinite if a stream had no answer."""
        gaps = self.outage_ms.values()
        return max((float("inf") if gap is None else gap for gap in gaps), default=0.0)


def expectation(cell: Cell) -> Expectation:
    """What is expected of a cell."""
    found = _RULES[cell.victim](cell.fault, cell.moment)
    assert found.gap_why or found.gap_s <= GAP_S, cell
    if cell.moment == IDLE:
        return found
    return replace(found, copies=_COPIES_HELD if cell.moment == HANDOVER else _COPIES)


def _expect(*ends: End, why: str, **more: Any) -> Expectation:
    return Expectation(frozenset(ends), why, **more)


def _undisturbed(moment: str, why: str, **more: Any) -> Expectation:
    return _expect(End.NONE if moment == IDLE else End.COMMITTED, why=why, **more)


def _active(fault: Fault, moment: str) -> Expectation:
    serves = Serves.EITHER if moment == BEFORE[0] else Serves.NEW
    return replace(_active_lost(fault, moment), ended=True, serves=serves)


def _active_lost(fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _expect(End.NONE, why="the watchdog moves every VM to its standby", **_slow(fault, moment))
    if moment == BEFORE[0]:
        why = "there is nowhere to go yet: it is refused, and the watchdog starts an instance"
        if fault is Fault.STOP:
            gap = {"gap_s": _LONG_S, "gap_why": "a command waits for its deadline before an instance is started"}
            return _expect(End.REFUSED, why=why, within_s=_LONG_S, **gap)
        return _expect(End.REFUSED, End.COMMITTED, why=why, within_s=_START_S, **_STARTED)
    if moment == BEFORE[1]:
        why = "it continues without the old one; or the warm standby, if it is not ended yet, takes the VMs and stays"
        return _expect(End.COMMITTED, End.ROLLED_BACK, why=why, within_s=_START_S, **_STARTED)
    if not since(moment, "park"):
        why = "there is no way back: it continues without the old one"
        gap = {"gap_s": _START_S, "gap_why": "the VMs are parked nowhere yet: they wait for the new one to be ready"}
        return _expect(End.COMMITTED, why=why, within_s=_START_S, **gap)
    why = "the VMs are parked on the new one; it continues without the old one"
    return _expect(End.COMMITTED, why=why, **_slow(fault, moment))


def _slow(fault: Fault, moment: str) -> dict[str, Any]:
    """How long the gap may be if the instance that serves the VMs is struck and another one is ready."""
    if fault is Fault.STOP:
        return _HUNG
    if moment == "park":
        return {"gap_s": _CONFIRM_S, "gap_why": "a VM that is not parked yet waits until it is"}
    return {}


_REPLACED = "the watchdog's standby is replaced if it is struck before the step looks at it; else all is put back"


def _standby(fault: Fault, moment: str) -> Expectation:
    return replace(_standby_lost(fault, moment), ended=True)


def _standby_lost(fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _expect(End.NONE, why="the VMs do not notice; the watchdog starts another")
    if moment == BEFORE[1]:
        return _expect(End.ROLLED_BACK, End.COMMITTED, why=_REPLACED)
    if moment == AFTER[-1] and fault is Fault.STOP:
        why = "the old one is retired: the watchdog ends the new one and starts an instance, and resume finishes"
        gap = {"gap_s": _DEADLINE_S, "gap_why": "a command waits for its deadline before an instance is started"}
        return _expect(End.UNFINISHED, why=why, within_s=_DEADLINE_S, serves=Serves.EITHER, **gap)
    if moment == AFTER[-1]:
        why = "the old one is retired: the watchdog starts the new one again, and resume finishes"
        return _expect(End.UNFINISHED, why=why, within_s=_START_S, **_STARTED)
    if moment == "retire":
        why = "all go back to the old one, or, if the new one was looked at already, it is started again"
        return _expect(
            End.ROLLED_BACK, End.UNFINISHED, why=why, within_s=_START_S, serves=Serves.EITHER, **_STARTED
        )  # fmt: skip
    if since(moment, HANDOVER):
        why = "the old one still serves every VM: all go back to it, even after the commit"
        gap = {"gap_s": _CONFIRM_S, "gap_why": "what confirms nothing is given time, and ended"}
        return _expect(
            End.ROLLED_BACK, why=why, within_s=_CONFIRM_S, **(gap if fault is Fault.STOP or moment == HANDOVER else {})
        )  # fmt: skip
    return _expect(End.ROLLED_BACK, why="the old one keeps everything until the new one has proven itself")


def _active_db(_fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _expect(End.NONE, why="packets do not pass there")
    if not since(moment, "park"):
        why = "a switch without its database takes neither ports nor flows: it gets its database back, and its own form"
        return _expect(End.COMMITTED, End.ROLLED_BACK, End.REFUSED, why=why, mend=Mend.ROLLBACK)
    return _expect(End.COMMITTED, why="the old one's database is not needed any more")


def _standby_db(_fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _expect(End.NONE, why="packets do not pass there")
    if moment == BEFORE[1]:
        return _expect(End.ROLLED_BACK, End.COMMITTED, why=_REPLACED)
    if committed(moment):
        return _expect(End.UNFINISHED, End.COMMITTED, why="the new one serves every VM; resume finishes what needs it")
    return _expect(End.ROLLED_BACK, why="the new one cannot be programmed")


def _broker(fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _expect(End.NONE, why="the connections are kept, and the next broker continues")
    if fault is Fault.STOP:
        if moment == HANDOVER:
            why = "what has arrived in that time confirms the swap; if it is too late, back to the old one"
            gap = {"gap_s": _HANG_S, "gap_why": "the rings have no owner while the broker stands still for a second"}
            return _expect(End.COMMITTED, End.ROLLED_BACK, why=why, while_stopped=False, **gap)
        return _expect(End.COMMITTED, why="calls wait for it")
    if moment in _TALKS:
        why = "the next broker continues, but starts over with a VM in the middle of a message: it cannot be moved yet"
        return _expect(End.COMMITTED, End.ROLLED_BACK, why=why)
    return _expect(End.COMMITTED, why="the connections are kept, the next broker continues and is asked again")


def _orchestrator(fault: Fault, moment: str) -> Expectation:
    if fault is Fault.STOP:
        return _expect(End.COMMITTED, why="nothing happens until it is continued")
    if fault is Fault.KILL:
        back = not committed(moment) and MOMENTS.index(moment) % 2 == 0
        return _expect(End.DIED, why="the journal says how far it came", mend=Mend.ROLLBACK if back else Mend.RESUME)
    if committed(moment):
        return _expect(End.UNFINISHED, why="after the commit it only goes forward: resume finishes")
    return _expect(End.ROLLED_BACK, why="it rolls back in order")


def _watchdog(_fault: Fault, moment: str) -> Expectation:
    return _undisturbed(moment, "what it set up stays; the next one takes it up")


def _qemu(_fault: Fault, moment: str) -> Expectation:
    return _undisturbed(moment, "only this VM is gone", spared=frozenset({STRUCK_VM}))


def _fails_over(why: str, **more: Any) -> Expectation:
    """The expectation at rest, where the active instance is killed, too: a failover needs nothing that the host has
    lost."""
    return _expect(End.NONE, why=f"{why}: a failover does not wait for that", serves=Serves.NEW, **more)


def _no_disk(_fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _fails_over("nothing can be written")
    if committed(moment):
        why = "the new one serves every VM; resume finishes when the disk takes something again"
        return _expect(End.COMMITTED, End.UNFINISHED, why=why)
    return _expect(End.REFUSED, End.ROLLED_BACK, End.COMMITTED, why="without a journal it only goes back",
                   mend=Mend.ROLLBACK, serves=Serves.EITHER, journalled=False)  # fmt: skip


def _journal(_fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _fails_over("it is not known whether an upgrade is unfinished", journalled=False)
    return _undisturbed(moment, "the orchestrator remembers what it has written", journalled=False)


def _clock(_fault: Fault, moment: str) -> Expectation:
    if moment == IDLE:
        return _fails_over("the time of day has changed")
    return _undisturbed(moment, "the time of day is for people: deadlines are those of a clock that does not step")


_RULES: Mapping[Victim, Callable[[Fault, str], Expectation]] = {
    Victim.ACTIVE: _active,
    Victim.STANDBY: _standby,
    Victim.ACTIVE_DB: _active_db,
    Victim.STANDBY_DB: _standby_db,
    Victim.BROKER: _broker,
    Victim.ORCHESTRATOR: _orchestrator,
    Victim.WATCHDOG: _watchdog,
    Victim.QEMU: _qemu,
    Victim.STATE_DIR: _no_disk,
    Victim.RUN_DIR: _no_disk,
    Victim.JOURNAL: _journal,
    Victim.CLOCK: _clock,
}


def judge(expected: Expectation, cell: Cell, seen: Seen) -> list[str]:
    """The differences between ``seen`` and ``expected``."""
    found = [*seen.problems, *seen.faults]
    if seen.struck != cell.moment:
        found.append(f"struck {seen.struck}")
    if seen.end not in expected.ends:
        found.append(f"the upgrade {seen.end}")
    if expected.ended and not seen.ended:
        found.append("the process that stood still was not ended")
    if seen.silent:
        found.append(f"no answers after {expected.within_s:g} s: {', '.join(seen.silent)}")
    found += [
        f"{stream} was without an answer for {'ever' if gap is None else f'{gap / 1e3:.1f} s'}"
        for stream, gap in seen.outage_ms.items()
        if gap is None or gap > expected.gap_s * 1e3
    ]
    if seen.silent_while_stopped:
        found.append(f"no answers while it was stopped: {', '.join(seen.silent_while_stopped)}")
    if not seen.requests:
        found.append("nothing was counted at the remote end")
    if seen.doubled:
        found.append(f"requests that were sent twice: {seen.doubled}")
    if seen.copies > expected.copies:
        found.append(f"{seen.copies} answers came twice")
    return found + (_untruths(seen) if expected.journalled else []) + _wrong_side(expected, seen)


def _wrong_side(expected: Expectation, seen: Seen) -> list[str]:
    """The fault that another instance is active than the end of the upgrade, or its repair, implies."""
    mended = Serves.NEW if expected.mend is Mend.RESUME else Serves.OLD
    follows = {
        End.NONE: Serves.OLD,
        End.COMMITTED: Serves.NEW,
        End.ROLLED_BACK: Serves.OLD,
        End.REFUSED: Serves.OLD,
        End.UNFINISHED: mended,
        End.DIED: mended,
    }
    wanted = expected.serves or follows.get(seen.end, Serves.EITHER)
    serves = Serves.OLD if seen.active is seen.old else Serves.NEW
    return [] if wanted in (serves, Serves.EITHER) else [f"{serves} is active, not {wanted}"]


def _untruths(seen: Seen) -> list[str]:
    """The fault that the journal does not say how the orchestrator ended."""
    wanted: Mapping[End, bool] = {
        End.COMMITTED: seen.phase is None and seen.last_committed is True,
        End.REFUSED: seen.phase is None,
        End.ROLLED_BACK: seen.phase is None and seen.last_committed is False,
        End.UNKNOWN: seen.phase in ("forward", "back"),
        End.UNFINISHED: seen.phase == "committed",
    }
    if wanted.get(seen.end, True):
        return []
    return [f"{seen.end}, but the journal is {seen.phase or 'finished'}, the last one committed: {seen.last_committed}"]

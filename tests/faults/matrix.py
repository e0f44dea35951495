"""The fault matrix: which process is struck how and when, and what must then be true. Pure.

``cells`` lists the matrix, ``expectation`` what is expected of a cell, ``judge`` compares that with what was seen.
The *active* instance is the one that is active when the cell begins, the *standby* the other one: the watchdog's warm
standby where nothing is under way, the new instance in an upgrade.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ovs_hotswap.model import Side
from ovs_hotswap.upgrade.steps import upgrade_plan

_SHAPE = upgrade_plan().shape
IDLE, HAND_OVER = "idle", "hand-over"
BEFORE, AFTER = _SHAPE.before, _SHAPE.after
_MOVED = BEFORE.index("move") + 1
MOMENTS = (IDLE, *BEFORE[:_MOVED], HAND_OVER, *BEFORE[_MOVED:], *AFTER)


class Fault(enum.StrEnum):
    """EXIT is the clean end: `exit` on the control socket of a switch or its database, SIGTERM to all others."""

    KILL = "kill"
    STOP = "stop"
    EXIT = "exit"


class Victim(enum.StrEnum):
    ACTIVE = "active"
    STANDBY = "standby"
    ACTIVE_DB = "active-db"
    STANDBY_DB = "standby-db"
    BROKER = "broker"
    ORCHESTRATOR = "orchestrator"
    WATCHDOG = "watchdog"
    QEMU = "qemu"


@dataclass(frozen=True, slots=True)
class Cell:
    fault: Fault
    victim: Victim
    moment: str

    def __str__(self) -> str:
        return f"{self.fault} {self.victim} {self.moment}"


def possible(cell: Cell) -> bool:
    """Whether there is such a process at that moment."""
    match cell.victim:
        case Victim.ORCHESTRATOR:
            return cell.moment != IDLE
        case Victim.STANDBY | Victim.STANDBY_DB:
            return cell.moment != BEFORE[0]  # the watchdog's was ended, the new one is not started
        case Victim.ACTIVE | Victim.ACTIVE_DB:
            return cell.moment != AFTER[-1]  # it has been retired
    return True


def cells(
    faults: Iterable[Fault] = Fault, victims: Iterable[Victim] = Victim, moments: Iterable[str] = MOMENTS
) -> list[Cell]:
    """All cells of these, by victim, fault and moment."""
    faults, moments = list(faults), list(moments)
    every = [Cell(fault, victim, moment) for victim in victims for fault in faults for moment in moments]
    return [cell for cell in every if possible(cell)]


# ------------------------------------------------------------------------------------------------- what is expected


class End(enum.StrEnum):
    """How the orchestrator ended. REFUSED: with an error and nothing changed. UNFINISHED: committed, then an error."""

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


def moment_index(moment: str) -> int:
    return MOMENTS.index(moment)


def since(moment: str, first: str) -> bool:
    """Whether ``moment`` is ``first`` or comes after it in an upgrade."""
    return moment != IDLE and MOMENTS.index(moment) >= MOMENTS.index(first)


def committed(moment: str) -> bool:
    return moment in AFTER


@dataclass(frozen=True, slots=True)
class Expectation:
    """``ends``: how the orchestrator may end. ``mend``: what an operator does if the journal is not finished then.
    ``within_s``: every VM but ``spared`` forwards again in that time, before anybody does anything. ``why``: the
    reason, for people. ``copies``: answers that a guest may receive twice (a copy over the peer link that arrives
    late, see architecture.md): none where no VM was moved one by one."""

    ends: frozenset[End]
    why: str
    within_s: float = 3.0
    mend: Mend = Mend.RESUME
    spared: frozenset[str] = frozenset()
    copies: int = 0
    while_stopped: bool = True


STRUCK_VM = "vm1"


@dataclass
class Seen:
    """What was seen of a cell. ``silent``: pings without an answer after ``within_s``. ``doubled``: requests that came
    to the remote end more than once, by sender. ``faults``: what was not as it must be in the end."""

    old: Side | None = None
    struck: str = ""
    end: End = End.NONE
    message: list[str] = field(default_factory=list)
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
    seconds: float = 0.0


ANY = frozenset(End) - {End.HANGS, End.NONE}


def expectation(cell: Cell) -> Expectation:
    return Expectation(
        frozenset({End.NONE}) if cell.moment == IDLE else ANY,
        "",
        20.0,
        copies=8,
        spared=frozenset({STRUCK_VM}) if cell.victim is Victim.QEMU else frozenset(),
    )


def judge(cell: Cell, expected: Expectation, seen: Seen) -> list[str]:
    """What of ``seen`` is not as ``expected``."""
    found = [*seen.problems, *seen.faults]
    if seen.struck != cell.moment:
        found.append(f"struck {seen.struck}")
    if seen.end not in expected.ends:
        found.append(f"the upgrade {seen.end}")
    if seen.silent:
        found.append(f"no answers after {expected.within_s:g} s: {', '.join(seen.silent)}")
    if seen.silent_while_stopped:
        found.append(f"no answers while it was stopped: {', '.join(seen.silent_while_stopped)}")
    if seen.doubled:
        found.append(f"requests that were sent twice: {seen.doubled}")
    if seen.copies > expected.copies:
        found.append(f"{seen.copies} answers came twice")
    return found + _untruths(seen)


def _untruths(seen: Seen) -> list[str]:
    """Where the journal does not say what the orchestrator's end was."""
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

"""Raises the priority of this process, if that is permitted.

Beside PMD threads that spin, an outage consists of milliseconds in which this process waits for a core.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Collection, Iterator

_NICE = -15  # PMD threads get the same while two instances live (``switch.threads``)


class Rank(enum.IntEnum):
    """Real-time priorities (SCHED_FIFO) of the threads that share a core in a handover.

    The broker (``MOVES``) sleeps until a switch answers, and must then run at once: the thread that answered would
    first look through all its connections once more. For the same reason the side that takes the rings (``TAKES``)
    comes before the side that gives them (``GIVES``). Until the rings are given, the taking side's thread comes after
    it, if the broker knows that thread (``WAITS``): the thread has then begun to handle a message and waits for the
    core, not for the next message, so it need not be woken. After the new side has answered, the broker comes last
    (``AFTER``), because that thread holds the rings' locks until it runs again.
    """

    AFTER = 1
    WAITS = 2
    GIVES = 3
    TAKES = 4
    MOVES = 5


_PARAMETERS = {rank: os.sched_param(rank) for rank in Rank}


def raise_priority() -> None:
    """Raise the priority of a daemon that sleeps until something has to happen at once, if that is permitted."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def other_cores(pmd_cores: Collection[int]) -> frozenset[int]:
    """Return the cores on which this process may run, without those of PMD threads. The set may be empty."""
    return frozenset(os.sched_getaffinity(0) - set(pmd_cores))


def control_core(pmd_cores: Collection[int]) -> frozenset[int]:
    """Return the core on which the broker hands rings over and both switches answer.

    They share one, because waking a thread on another core takes longer than handling a message. It is a core without a
    PMD thread; the set is empty if there is none.
    """
    return frozenset(sorted(other_cores(pmd_cores))[:1])


def set_own_rank(rank: Rank) -> None:
    """Set this thread's real-time priority, if that is permitted."""
    set_thread_rank(0, rank)


def set_thread_rank(thread: int, rank: Rank) -> None:
    """Set the real-time priority of another process's thread, if that is permitted and the thread lives."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_FIFO, _PARAMETERS[rank])


def has_rank(thread: int) -> bool:
    """Whether a thread has real-time priority."""
    try:
        return os.sched_getscheduler(thread) == os.SCHED_FIFO
    except OSError:
        return False


@contextlib.contextmanager
def realtime_priority(cores: Collection[int] = (), rank: Rank = Rank.AFTER) -> Iterator[None]:
    """Give this thread real-time priority in the block, for a moment in which guests have no switch.

    The thread runs on ``cores`` only, unless they are empty. Without permission nothing changes.
    """
    normal, allowed = (os.sched_getscheduler(0), os.sched_getparam(0)), os.sched_getaffinity(0)
    set_own_rank(rank)
    if cores:
        with contextlib.suppress(OSError):  # these cores are no longer allowed
            os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, *normal)

"""Priority of this process, where it is permitted: beside PMD threads that spin, milliseconds of waiting for a core are
what an outage consists of."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Collection, Iterator

_NICE = -15  # as PMD threads are given while two instances live (``switch.threads``)


class Rank(enum.IntEnum):
    """Real-time priorities (SCHED_FIFO) of those who share a core in a handover.

    The broker waits asleep for either answer and is to be run at once when it comes: the thread that gave it would look
    through all its connections once more before. For that reason too the side that takes the rings comes before the one
    that gives them. Until then it comes after it, if the broker knows its thread: that has begun to handle a message
    and waits for the core, not for the next message, so it need not be woken. Once the new side has answered, the
    broker comes last: that thread holds the rings' locks until it has run on.
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


def control_core(pmd_cores: Collection[int]) -> frozenset[int]:
    """The core, if there is one without a PMD thread, where the broker hands rings over and both switches answer: to
    wake a thread on another core takes longer than to handle a message."""
    return frozenset(sorted(os.sched_getaffinity(0) - set(pmd_cores))[:1])


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
    """Real-time priority for this thread, for a moment in which guests have no switch. ``cores``: where to be run."""
    normal, allowed = (os.sched_getscheduler(0), os.sched_getparam(0)), os.sched_getaffinity(0)
    set_own_rank(rank)
    if cores:
        with contextlib.suppress(OSError):  # they are not allowed any more
            os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, *normal)

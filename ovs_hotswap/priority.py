"""Priority of this process, where it is permitted: beside PMD threads that spin, milliseconds of waiting for a core are
what an outage consists of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

_NICE = -15  # as PMD threads are given while two instances live (``switch.threads``)


def raise_priority() -> None:
    """Of a daemon that sleeps until something has to happen at once."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def control_core(pmd_cores: Collection[int]) -> frozenset[int]:
    """The core, if there is one without a PMD thread, where the broker hands rings over and both switches answer: to
    wake a thread on another core takes longer than to handle a message."""
    return frozenset(sorted(os.sched_getaffinity(0) - set(pmd_cores))[:1])


@contextlib.contextmanager
def preferred(cores: Collection[int] = ()) -> Iterator[None]:
    """Real-time priority for this thread, for a moment in which guests have no switch. ``cores``: where to be run."""
    normal, allowed = (os.sched_getscheduler(0), os.sched_getparam(0)), os.sched_getaffinity(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
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

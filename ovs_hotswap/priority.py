"""Priority of this process, where it is permitted: beside PMD threads that spin, milliseconds of waiting for a core are
what an outage consists of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_NICE = -15  # as PMD threads are given while two instances live (``switch.threads``)


def raise_priority() -> None:
    """Of a daemon that sleeps until something has to happen at once."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """Real-time priority for this thread, for a moment in which guests have no switch."""
    normal = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, *normal)

"""How the scheduler shared the cores of PMD threads, from two looks at its account. This module is pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ovs_hotswap.diagnose.facts import CoreUse


@dataclass(frozen=True, slots=True)
class CoreTime:
    """How long, in nanoseconds, a PMD thread has run, and how long it has waited for its core though it could run
    (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). ``runnable``: it runs, or waits to. What it has
    waited is added when it gets the core; what it has run, once a second where the core has no ticks (``nohz_full``:
    kernel/sched/core.c, sched_tick_remote)."""

    core: int
    ran: int
    waited: int
    runnable: bool = False


def uses(
    before: Mapping[int, CoreTime], after: Mapping[int, CoreTime], seconds: float, moved: Collection[int] = ()
) -> tuple[CoreUse, ...]:
    """Return the use of each core on which the same thread was seen twice, ``seconds`` apart. ``moved``: the cores of
    threads that have certainly run in that time."""
    same = [(was, now) for thread, now in after.items() if (was := before.get(thread)) is not None]
    return tuple(CoreUse(now.core, _waits(was, now, seconds * 1e9, ran=now.core in moved)) for was, now in same)


def _waits(was: CoreTime, now: CoreTime, nanoseconds: float, *, ran: bool) -> float:
    if was.runnable and now.runnable and was.ran == now.ran and not ran:  # nothing was added: it never got the core
        return 1.0
    return min(1.0, (now.waited - was.waited) / nanoseconds)

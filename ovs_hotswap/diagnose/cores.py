"""Whether the PMD threads of a switch get their cores, from the scheduler's own account in ``/proc``."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.background import threads_of
from ovs_hotswap.diagnose.facts import CoreUse

_NAME = re.compile(r"^pmd-c(?P<core>\d+)/")  # lib/dpif-netdev.c, pmd_thread_main and reload
_LOOK_S = 0.2
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CoreTime:
    """How long, in nanoseconds, a PMD thread has run, and how long it has waited for its core though it could run
    (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). ``runnable``: it runs, or waits to. What it has
    waited is added when it gets the core."""

    core: int
    ran: int
    waited: int
    runnable: bool = False


def times(pid: int, proc: Path = Path("/proc")) -> dict[int, CoreTime]:
    """Return the account of each PMD thread of a process, by thread; none of a process that has ended."""
    found = {}
    for thread, name in threads_of(pid):
        if named := _NAME.match(name):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
                task = proc / str(pid) / "task" / str(thread)
                ran, waited, *_ = (task / "schedstat").read_text().split()
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                found[thread] = CoreTime(int(named["core"]), int(ran), int(waited), state == "R")
    return found


def uses(before: dict[int, CoreTime], after: dict[int, CoreTime], seconds: float) -> tuple[CoreUse, ...]:
    """Return the use of each core on which the same thread was seen twice, ``seconds`` apart."""
    same = [(was, now) for thread, now in after.items() if (was := before.get(thread)) is not None]
    return tuple(CoreUse(now.core, _waits(was, now, seconds * 1e9)) for was, now in same)


def _waits(was: CoreTime, now: CoreTime, nanoseconds: float) -> float:
    if was.runnable and now.runnable and was.ran == now.ran:  # it never got the core, so nothing was added
        return 1.0
    return min(1.0, (now.waited - was.waited) / nanoseconds)


def others(core: int, not_pid: int, proc: Path = Path("/proc"), sleep: Callable[[float], None] = time.sleep,
           ) -> tuple[str, ...]:  # fmt: skip
    """Return the threads of other processes that ran on a core in a fifth of a second: their command, the process, and
    the share of the time that they had. This looks at every thread of the host, so it is for a core in need alone."""
    before = dict(_on(core, not_pid, proc))
    sleep(_LOOK_S)
    found = [(ran - before[thread][1], name, thread) for thread, (name, ran) in _on(core, not_pid, proc)
             if thread in before and ran > before[thread][1]]  # fmt: skip
    return tuple(f"{name} (process {thread[0]}) had it for {ran / _LOOK_S / 1e9:.0%} of the time"
                 for ran, name, thread in sorted(found, reverse=True)[:_SHOWN])  # fmt: skip


def _on(core: int, not_pid: int, proc: Path) -> Iterator[tuple[tuple[int, int], tuple[str, int]]]:
    """Yield the process and thread, the name, and the nanoseconds of each thread that last ran on the core
    (proc_pid_stat(5), field 39)."""
    for process in proc.iterdir():
        if not process.name.isdecimal() or int(process.name) == not_pid:
            continue
        with contextlib.suppress(OSError):
            for task in (process / "task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
                    if int(rest.split()[36]) == core:
                        ran = int((task / "schedstat").read_text().split()[0])
                        yield (int(process.name), int(task.name)), (name, ran)

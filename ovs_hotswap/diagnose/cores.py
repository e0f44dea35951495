"""Whether the PMD threads of a switch get their cores, from the scheduler's own account in ``/proc``."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ovs_hotswap.background import threads_of
from ovs_hotswap.diagnose.core_use import CoreTime

_NAME = re.compile(r"^pmd-c(?P<core>\d+)/")  # lib/dpif-netdev.c, pmd_thread_main and reload
_LOOK_S = 0.2
_SHOWN = 3


def times(pid: int, proc: Path = Path("/proc")) -> dict[int, CoreTime]:
    """Return the account of each PMD thread of a process, by thread; none of a process that has ended. A kernel that
    keeps no account prints zeros (fs/proc/base.c, proc_pid_schedstat): then nothing is known of the thread."""
    found = {}
    for thread, name in threads_of(pid):
        if named := _NAME.match(name):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
                task = proc / str(pid) / "task" / str(thread)
                ran, waited, *_ = (task / "schedstat").read_text().split()
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                if int(ran) or int(waited):
                    found[thread] = CoreTime(int(named["core"]), int(ran), int(waited), state == "R")
    return found


def others(
    wanted: Collection[int], not_pid: int, proc: Path = Path("/proc"), sleep: Callable[[float], None] = time.sleep
) -> dict[int, tuple[str, ...]]:
    """Return the threads of other processes that ran on each of the ``wanted`` cores in a fifth of a second: their
    command, the process, and the share of the time that they had. This looks at every thread of the host, so it is for
    cores in need alone."""
    if not wanted:
        return {}
    before = {thread: ran for thread, _, _, ran in _on(wanted, not_pid, proc)}
    sleep(_LOOK_S)
    found = [(ran - before[thread], core, name, thread[0]) for thread, core, name, ran in _on(wanted, not_pid, proc)
             if ran > before.get(thread, ran)]  # fmt: skip
    by_core = {core: [each for each in sorted(found, reverse=True) if each[1] == core] for core in wanted}
    return {core: tuple(f"{name} (process {pid}) had it for {ran / _LOOK_S / 1e9:.0%} of the time"
                        for ran, _, name, pid in each[:_SHOWN]) for core, each in by_core.items()}  # fmt: skip


def _on(wanted: Collection[int], not_pid: int, proc: Path) -> Iterator[tuple[tuple[int, int], int, str, int]]:
    """Yield the process and thread, the core, the name, and the nanoseconds of each thread that last ran on one of the
    cores (proc_pid_stat(5), field 39)."""
    for process in proc.iterdir():
        if not process.name.isdecimal() or int(process.name) == not_pid:
            continue
        with contextlib.suppress(OSError):
            for task in (process / "task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
                    if (core := int(rest.split()[36])) in wanted:
                        ran = int((task / "schedstat").read_text().split()[0])
                        yield (int(process.name), int(task.name)), core, name, ran

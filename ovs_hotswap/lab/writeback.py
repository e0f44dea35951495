"""What was just installed is written back now, not while guests are looked at."""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

ENOUGH_KIB = 4096  # a machine that does nothing has some hundred
PATIENCE_S = 60.0
_POLL_S = 0.2
_LINE = re.compile(r"^(?:Dirty|Writeback): +(\d+) kB$", re.MULTILINE)


def unwritten_kib(meminfo: str) -> int:
    """What of files is in memory and not on the disk (proc_meminfo(5))."""
    return sum(map(int, _LINE.findall(meminfo)))


def _now() -> int:
    return unwritten_kib(Path("/proc/meminfo").read_text())


def wait_written(
    system: System,
    say: Callable[[str], None],
    *,
    unwritten: Callable[[], int] = _now,
    sync: Callable[[], None] = os.sync,
) -> bool:
    """Have all files written and wait for it, a minute at most. Returns whether it is done. What others write meanwhile
    is not waited for."""
    amount = unwritten()
    if amount > ENOUGH_KIB:
        say(f"waiting until what was installed is on the disk: {amount >> 10} MiB")
    thread = threading.Thread(target=sync, name="sync", daemon=True)  # it may take longer
    thread.start()
    if wait_until(thread.is_alive, PATIENCE_S, system, done=operator.not_, poll_s=_POLL_S):
        say(f"{unwritten() >> 10} MiB are still not on the disk: the guests may notice that")
        return False
    return True

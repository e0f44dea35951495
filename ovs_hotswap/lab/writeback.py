"""Writes files that were just installed to the disk now, so that this does not happen while guests are measured."""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

ENOUGH_KIB = 4096  # an idle machine has some hundred KiB
PATIENCE_S = 60.0
_POLL_S = 0.2
_LINE = re.compile(r"^(?:Dirty|Writeback): +(\d+) kB$", re.MULTILINE)


def unwritten_kib(meminfo: str) -> int:
    """The KiB of files that are in memory and not on the disk, from the text of /proc/meminfo (proc_meminfo(5))."""
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
    """Start to write all files to the disk, and wait for that, at most ``PATIENCE_S``. Returns whether it is done.
    Files that other programs write in the meantime do not count."""
    amount = unwritten()
    if amount > ENOUGH_KIB:
        say(f"waiting until what was installed is on the disk: {amount >> 10} MiB")
    thread = threading.Thread(target=sync, name="sync", daemon=True)  # it may take longer
    thread.start()
    if wait_until(thread.is_alive, PATIENCE_S, system, done=operator.not_, poll_s=_POLL_S):
        say(f"{unwritten() >> 10} MiB are still not on the disk: the guests may notice that")
        return False
    return True

"""Readers of what ``dpif-netdev/pmd-perf-show`` prints beside the counters of ``pmd-stats-show``. This module is pure.

OVS 3.1 to 3.5 print the same lines (lib/dpif-netdev-perf.c).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ovs_hotswap.switch.rxqs import THREAD

_SLEEPS = re.compile(r"^\s+- sleep iterations:\s+(?P<count>\d+)\b")
_HISTOGRAM = 14  # columns of a row: seven pairs of a value and how often it was met
_FILL = 8  # the column with the value of "max vhost qlen"
_NO_HISTOGRAM = "main thread"


def sleeps(text: str) -> dict[int, int]:
    """Return in how many iterations each PMD thread slept, by core (pmd_perf_format_overall_stats)."""
    found: dict[int, int] = {}
    core: int | None = None
    for line in text.splitlines():
        if thread := THREAD.match(line):
            core = int(thread["core"])
        elif line.startswith(_NO_HISTOGRAM):
            core = None
        elif (slept := _SLEEPS.match(line)) and core is not None:
            found[core] = int(slept["count"])
    return found


def fills(text: str) -> dict[int, int]:
    """Return in how many iterations of all threads the fullest transmit ring of a VM had at least so many packets, and
    fewer than the next number (pmd_perf_format_histograms; a row has the largest value of its own class)."""
    found: dict[int, int] = {}
    least = 0
    for line in text.splitlines():
        columns = line.split()
        if THREAD.match(line):
            least = 0
        elif len(columns) == _HISTOGRAM and columns[_FILL + 1].isdecimal():
            found[least] = found.get(least, 0) + int(columns[_FILL + 1])
            least = int(columns[_FILL]) + 1 if columns[_FILL].isdecimal() else 0
    return found


def grown(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, int]:
    """Return what each number has grown by. One that has fallen began again: it counts as it is."""
    return {key: value - was if value >= (was := before.get(key, 0)) else value for key, value in after.items()}

"""What the poll mode driver (PMD) threads of an instance do, and the DPDK log level of its vhost library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rxqs import THREAD, RxQueue, parse_pmd_rxqs
from ovs_hotswap.switch.unixctl import appctl

VHOST_LOG_TYPE = "lib.vhost.config"  # DPDK lib/vhost/vhost.c: one line and more per vhost-user message

_ITERATIONS = re.compile(r"^\s+Iterations:\s+(?P<count>\d+)\b")
_LOG_TYPE = re.compile(r"^id \d+: (?P<type>\S+), level is (?P<level>\S+)$", re.MULTILINE)


def pmd_rxqs(ctl: Path, *, timeout: float = 5.0) -> dict[str, tuple[RxQueue, ...]]:
    """Return the queues that PMD threads poll, by port. No thread polls a port that is missing. Raises SwitchError."""
    return parse_pmd_rxqs(appctl(ctl, "dpif-netdev/pmd-rxq-show", timeout=timeout))


def pmd_count(ctl: Path, *, timeout: float = 5.0) -> int:
    """Return the number of PMD threads; there are none while no port needs one. Raises SwitchError."""
    lines = appctl(ctl, "dpif-netdev/pmd-rxq-show", timeout=timeout).splitlines()
    return sum(THREAD.match(line) is not None for line in lines)


def parse_pmd_iterations(text: str) -> dict[int, int]:
    """Return the iterations of each PMD thread, by core, from ``dpif-netdev/pmd-perf-show`` (lib/dpif-netdev-perf.c,
    pmd_perf_format_overall_stats: OVS 3.1 to 3.5 print the same lines)."""
    found: dict[int, int] = {}
    core = -1
    for line in text.splitlines():
        if thread := THREAD.match(line):
            core = int(thread["core"])
        elif line.startswith("main thread"):
            core = -1
        elif (done := _ITERATIONS.match(line)) and core >= 0:
            found[core] = int(done["count"])
    return found


def pmd_iterations(ctl: Path, *, timeout: float = 5.0) -> dict[int, int]:
    """Return the iterations so far of each PMD thread, by core; none without queues. Raises SwitchError."""
    return parse_pmd_iterations(appctl(ctl, "dpif-netdev/pmd-perf-show", "-nh", timeout=timeout))


def pmd_sleep_key(ovs_version: str) -> str:
    """Return the ``other_config`` key for the longest sleep (us) of an idle PMD: renamed in OVS 3.2 (its NEWS file)."""
    numbers = re.match(r"(\d+)\.(\d+)", ovs_version)
    if numbers is None:
        raise SwitchError(f"{ovs_version!r} is not a version of Open vSwitch")
    return "pmd-sleep-max" if (int(numbers[1]), int(numbers[2])) >= (3, 2) else "pmd-maxsleep"


def pmd_sleep_us(other_config: Mapping[str, str], version: str) -> int:
    """Return the longest sleep of idle PMD threads, in microseconds, as Open vSwitch reads it (smap_get_ullong)."""
    found = other_config.get(pmd_sleep_key(version), "0")
    return int(found) if found.isdecimal() else 0


def vhost_log_level(ctl: Path, *, timeout: float = 5.0) -> str:
    """Return the present log level of the vhost library, as ``set_vhost_log_level`` takes it. Raises SwitchError."""
    listing = appctl(ctl, "dpdk/log-list", timeout=timeout)
    for found in _LOG_TYPE.finditer(listing):
        if found["type"] == VHOST_LOG_TYPE:
            return found["level"]
    raise SwitchError(f"{ctl}: DPDK has no log type {VHOST_LOG_TYPE}")


def set_vhost_log_level(ctl: Path, level: str, *, timeout: float = 5.0) -> None:
    """Set the vhost library's log level (``error``, ``info``, ...). Raises SwitchError.

    At ``info`` every vhost-user message of every VM costs the one thread that serves them several writes.
    """
    appctl(ctl, "dpdk/log-set", f"{VHOST_LOG_TYPE}:{level}", timeout=timeout)

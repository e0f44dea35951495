"""What the machine has and runs, and not only what the calling process may use of it.

The caller's affinity is narrower than the machine if cores are kept for PMD threads (isolcpus=, CPUAffinity=). The
caller's limit of descriptors is not that of an instance. A command line alone does not say what a process runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side, SwitchProcess
from ovs_hotswap.switch.launch import DESCRIPTORS
from ovs_hotswap.system import System
from ovs_hotswap.wording import listed

_PROC, _SYS = Path("/proc"), Path("/sys")
_SWITCH = "ovs-vswitchd"
_CAP_SYS_RESOURCE = 24  # capabilities(7), linux/capability.h
_DEFAULT_RUN_DIR = "/var/run/openvswitch"
# lib/eal/linux/eal_interrupts.c of DPDK, which EAL's initialisation starts; the name was changed in 23.07.
_DPDK_THREADS = ("eal-intr", "dpdk-intr")
_RUNTIME_FILE = re.compile(
    r"/dpdk/(?P<prefix>[^/\s]+)/(?:config|fbarray_\S+|hugepage_\S+)(?: \(deleted\))?$", re.MULTILINE
)


def cores(unit_group: str | None, sys: Path = _SYS, proc: Path = _PROC) -> frozenset[int]:
    """The cores on which PMD threads may run. They set their own affinity, so only the cpuset of their control group
    limits them. ``unit_group``: the group of the instance's unit, whether it exists yet or not; without a unit an
    instance stays in the caller's group."""
    online = listed(_text(sys / "devices/system/cpu/online"))
    allowed = _cpuset(sys / "fs/cgroup", unit_group, _text(proc / "self/cgroup"))
    return (online & allowed if allowed else online) or frozenset(os.sched_getaffinity(0))


def _cpuset(root: Path, unit_group: str | None, own: str) -> frozenset[int]:
    """The cpuset of a control group; empty if it has none. ``own``: the text of /proc/self/cgroup. A group for which
    the controller is not turned on has the cpuset of the next group above (Documentation/admin-guide/cgroup-v2.rst).
    With version 1 of control groups a unit has no cpuset, because systemd does not set one there."""
    groups = {name: path for _, name, path in (line.split(":", 2) for line in own.splitlines() if line.count(":") > 1)}
    first = next((path for names, path in groups.items() if "cpuset" in names.split(",")), None)
    if first is not None:
        return frozenset() if unit_group else listed(_text(root / "cpuset" / first.lstrip("/") / "cpuset.cpus"))
    group = Path((unit_group or groups.get("", "")).lstrip("/"))
    for place in (group, *group.parents):
        if found := listed(_text(root / place / "cpuset.cpus.effective")):
            return found
    return frozenset()


def descriptor_limit(host: Host, side: Side) -> int:
    """How many descriptors the side's ovs-vswitchd may have, or may have once ``switch.launch`` has started it."""
    instance = host.instances[side]
    pid = instance.pid()
    if pid is not None:
        with contextlib.suppress(OSError):  # it has just ended
            return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    text = _text(_PROC / "sys/fs/nr_open").strip()
    most = int(text) if text.isdecimal() else DESCRIPTORS
    unit = instance.unit()
    if unit is not None:
        return min(unit.descriptors(), most)
    return launched_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _text(_PROC / "self/status"), most)


def launched_limit(hard: int, status: str, most: int) -> int:
    """The limit of descriptors of an instance that a caller with the limit ``hard`` starts. ``status``: the text of the
    caller's /proc/self/status. ``most``: the kernel's limit for any process (fs.nr_open)."""
    if hard == resource.RLIM_INFINITY or hard < 0:
        return 1 << 30
    capable = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    may_raise = capable is not None and int(capable[1], 16) >> _CAP_SYS_RESOURCE & 1
    return max(hard, min(DESCRIPTORS, most)) if may_raise else hard


def running_switches(system: System, proc: Path = _PROC) -> list[SwitchProcess]:
    """Every ovs-vswitchd on the machine, ours included. The executable counts as well as the command line: Debian's
    ovs-vswitchd with DPDK has the name of the plain one in its command line."""
    found = []
    for pid in system.pids():
        argv = system.cmdline(pid)
        if not argv or _SWITCH not in f"{Path(argv[0]).name} {_executable(proc / str(pid))}":
            continue
        control = next((arg.partition("=")[2] for arg in argv if arg.startswith("--unixctl=")), "")
        run_dir = os.path.realpath(Path(control).parent if control else _DEFAULT_RUN_DIR)
        prefix = _RUNTIME_FILE.search(_text(proc / str(pid) / "maps"))
        dpdk = any(name.startswith(_DPDK_THREADS) for name in _threads(proc / str(pid)))
        found.append(SwitchProcess(pid, run_dir, prefix["prefix"] if prefix else None, dpdk or prefix is not None))
    return found


def _executable(process: Path) -> str:
    try:
        return Path(os.readlink(process / "exe").removesuffix(" (deleted)")).name
    except OSError:
        return ""


def _threads(process: Path) -> Iterator[str]:
    for task in process.glob("task/*"):
        yield _text(task / "comm").strip()


def _text(path: Path) -> str:
    """The text of a file of the kernel; empty if there is no such file, or it has just gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

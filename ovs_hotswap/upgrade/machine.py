"""What the machine has and runs, whoever asks: not what the asking process may use of it.

A caller's affinity is narrower than the machine where cores are kept for PMD threads (isolcpus=, CPUAffinity=), its
limit of descriptors is not the instance's, and a process is not what its command line says.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.model import Side
from ovs_hotswap.switch.launch import DESCRIPTORS
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.checks import SwitchProcess
from ovs_hotswap.upgrade.host import Host

_PROC, _SYS = Path("/proc"), Path("/sys")
_SWITCH = "ovs-vswitchd"
_CAP_SYS_RESOURCE = 24  # capabilities(7), linux/capability.h
_DEFAULT_RUN_DIR = "/var/run/openvswitch"
# lib/eal/linux/eal_interrupts.c of DPDK, which EAL's initialisation starts; the name was changed in 23.07.
_DPDK_THREADS = ("eal-intr", "dpdk-intr")
_RUNTIME_FILE = re.compile(
    r"/dpdk/(?P<prefix>[^/\s]+)/(?:config|fbarray_\S+|hugepage_\S+)(?: \(deleted\))?$", re.MULTILINE
)


def cores(in_unit: bool, sys: Path = _SYS, proc: Path = _PROC) -> frozenset[int]:
    """The cores on which PMD threads may run: they choose their own affinity, whatever was inherited. Without a unit an
    instance stays in the caller's control group, and so in its cpuset."""
    online = _listed(_text(sys / "devices/system/cpu/online"))
    if not in_unit:
        group = next((line[3:] for line in _text(proc / "self/cgroup").splitlines() if line.startswith("0::")), "")
        allowed = _listed(_text(sys / "fs/cgroup" / group.lstrip("/") / "cpuset.cpus.effective"))
        online = online & allowed if allowed else online
    return online or frozenset(os.sched_getaffinity(0))


def _listed(text: str) -> frozenset[int]:
    """``0-2,5`` as numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def descriptor_limit(host: Host, side: Side) -> int:
    """How many descriptors the side's ovs-vswitchd may have, or will when it is started (``switch.launch``)."""
    instance = host.instances[side]
    pid = instance.pid()
    if pid is not None:
        with contextlib.suppress(OSError):  # it ended meanwhile
            return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    in_unit = instance.unit_descriptors()
    if in_unit is not None:
        return in_unit
    return launched_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _text(_PROC / "self/status"))


def launched_limit(hard: int, status: str) -> int:
    """What becomes of the caller's hard limit when it starts an instance. ``status``: /proc/self/status."""
    if hard == resource.RLIM_INFINITY or hard < 0:
        return 1 << 30
    capable = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    may_raise = capable is not None and int(capable[1], 16) >> _CAP_SYS_RESOURCE & 1
    return max(hard, DESCRIPTORS) if may_raise else hard


def running_switches(system: System, proc: Path = _PROC) -> list[SwitchProcess]:
    """Every ovs-vswitchd on the machine, ours included. Debian's with DPDK has the plain one's name in its command
    line."""
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
    """A file of the kernel's; empty where it is not, or no more."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

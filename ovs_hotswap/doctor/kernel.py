"""The kernel: its version, whether the one that is installed runs, and its command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ovs_hotswap.doctor import boot
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, healthy
from ovs_hotswap.model import Severity

_HERE = Section.KERNEL
TOO_OLD = Kind(_HERE, "version", Severity.ERROR)
REBOOT = Kind(_HERE, "reboot", Severity.WARNING)
PENDING = Kind(_HERE, "command line", Severity.WARNING)
BALANCING = Kind(_HERE, "NUMA balancing", Severity.WARNING, safe=True)
_LEAST = (5, 3)  # pidfd_open(2)
_OURS = re.compile(r"^(isolcpus|nohz_full|rcu_nocbs|irqaffinity|hugepages|hugepagesz|default_hugepagesz|"
                   r"intel_iommu|amd_iommu|iommu)(=|$)")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """``running`` and ``installed`` are versions as in /lib/modules. ``words`` is the command line, ``configured`` the
    words that the boot loader's configuration has for the next boot. ``nodes``: the number of NUMA nodes."""

    running: str
    installed: tuple[str, ...]
    words: frozenset[str]
    configured: frozenset[str]
    nodes: int
    balancing: bool


def read(root: Root) -> Kernel:
    return Kernel(
        root.need("proc/sys/kernel/osrelease"),
        tuple(name for name in root.names("lib/modules") if root.exists(f"boot/vmlinuz-{name}")),
        frozenset(root.need("proc/cmdline").split()),
        boot.configured(root),
        len([name for name in root.names("sys/devices/system/node") if re.fullmatch(r"node\d+", name)]),
        root.text("proc/sys/kernel/numa_balancing") not in (None, "0"),
    )


def version(text: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a kernel's version: ``6.1.0-27-amd64`` becomes ``(6, 1, 0, 27)``."""
    found = re.match(r"\d+(?:[.-]\d+)*", text)
    return tuple(map(int, re.split("[.-]", found[0]))) if found else ()


def judge(facts: Kernel) -> Iterator[Found]:
    running = version(facts.running)
    if running and running < _LEAST:
        yield TOO_OLD(f"{facts.running} runs, and ovs-hotswap needs {'.'.join(map(str, _LEAST))} or newer",
                      f"`apt-get install linux-image-amd64`, then {boot.REBOOT}")  # fmt: skip
    else:
        yield from healthy([], _HERE, TOO_OLD.check, facts.running)
    newest = max(facts.installed, key=version, default="")
    if running and version(newest) > running:
        yield REBOOT(f"{newest} is installed and {facts.running} runs: the next boot changes the kernel under the VMs",
                     boot.REBOOT)  # fmt: skip
    missing = sorted(word for word in facts.configured - facts.words if _OURS.match(word))
    if missing:
        yield PENDING(f"{' '.join(missing)}: configured, and not on the command line of the kernel that runs",
                      f"`update-grub`, then {boot.REBOOT}")  # fmt: skip
    else:
        ours = " ".join(sorted(word for word in facts.words if _OURS.match(word)))
        yield from healthy([], _HERE, PENDING.check, ours or "no word about cores, huge pages or the IOMMU")
    if facts.balancing and facts.nodes > 1:
        yield BALANCING("the kernel unmaps memory to see who uses it, which holds PMD threads up",
                        "echo 0 > /proc/sys/kernel/numa_balancing")  # fmt: skip

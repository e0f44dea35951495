"""Huge pages: whether there are enough on each NUMA node, now and after a boot."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Adopter, Found, Kind, Section, healthy
from ovs_hotswap.host import memory_checks
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.memory import Demand, HugePages, Reservation
from ovs_hotswap.switch.pools import huge_page_pools

_HERE = Section.MEMORY
MOUNT = Kind(_HERE, "mount", Severity.ERROR)
AT_BOOT = Kind(_HERE, "after a boot", Severity.WARNING)
_DEFAULT_KIB = 2048  # the size that vm.nr_hugepages is about, unless default_hugepagesz= says otherwise
_SPARE = 4  # huge pages are added by doctor only if a quarter of the memory stays available

_SYSCTL = re.compile(r"^\s*vm[./]nr_hugepages\s*=", re.MULTILINE)
_TMPFILES = re.compile(r"^w\S*\s+/sys/\S*/nr_hugepages\s", re.MULTILINE)
_CMDLINE = re.compile(r"\bhugepages=")
_SETTERS = (("etc/sysctl.d", _SYSCTL), ("usr/lib/sysctl.d", _SYSCTL), ("etc/tmpfiles.d", _TMPFILES),
            ("usr/lib/tmpfiles.d", _TMPFILES))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """The huge pages of each node. ``mounted``: a process can map them (hugetlbfs). ``kept``: something gives the host
    its huge pages at boot. ``available_mib`` and ``total_mib``: the host's ordinary memory."""

    pools: tuple[HugePages, ...]
    mounted: bool
    kept: bool
    available_mib: int
    total_mib: int


@dataclass(frozen=True, slots=True)
class Need:
    """What an instance that does not run needs when it is started, on each of ``nodes``; at most ``limit_mib`` are
    allowed. ``demand`` is ``None`` if each port has a packet pool of its own, so that only the limit is known."""

    side: Side
    nodes: frozenset[int]
    limit_mib: int
    wanted: Reservation
    demand: Demand | None


def read(root: Root) -> Memory:
    """Read the facts. Raises OSError if /proc or /sys is not there."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB$", root.need("proc/meminfo"), re.MULTILINE))
    mounts = [line.split() for line in root.need("proc/mounts").splitlines()]
    return Memory(
        tuple(huge_page_pools(root.need_directory("sys/kernel/mm").parents[1])),
        any(len(words) > 2 and words[2] == "hugetlbfs" for words in mounts),
        _kept(root),
        int(values.get("MemAvailable", 0)) >> 10,
        int(values.get("MemTotal", 0)) >> 10,
    )


def _kept(root: Root) -> bool:
    texts = [(root.text("proc/cmdline") or "", _CMDLINE), (root.text("etc/sysctl.conf") or "", _SYSCTL)]
    texts += [(root.text(f"{place}/{name}") or "", setter) for place, setter in _SETTERS for name in root.names(place)]
    return any(setter.search(text) for text, setter in texts)


def judge(facts: Memory, needs: Collection[Need], adopt: Adopter) -> Iterator[Found]:
    """Judge the memory for the instances that do not run. All memory of those that run is theirs already."""
    for need in needs:
        if need.demand is not None:
            yield from adopt(_HERE, memory_checks.allowed(need.side, need.demand, need.wanted, need.limit_mib))
    if needs:
        yield from _pages(facts, needs, adopt)
    if not facts.mounted:
        yield MOUNT("no huge pages are mounted, so DPDK cannot map any",
                    "mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages")  # fmt: skip
    pages = [pool for pool in facts.pools if pool.total]
    if pages and not facts.kept:
        yield AT_BOOT("nothing that doctor knows of gives the host its huge pages at boot: no instance would start",
                      _at_boot(pages))  # fmt: skip
    elif pages and facts.mounted:
        text = ", ".join(f"node {pool.node}: {pool.free} of {pool.total} x {pool.size_kib} KiB free" for pool in pages)
        yield from healthy([], _HERE, MOUNT.check, f"mounted; {text}")


def _at_boot(pages: Collection[HugePages]) -> str:
    size = max(pages, key=lambda pool: pool.total * pool.size_kib).size_kib
    total = sum(pool.total for pool in pages if pool.size_kib == size)
    if size == _DEFAULT_KIB:
        return f"echo vm.nr_hugepages={total} > /etc/sysctl.d/80-ovs-hotswap.conf"
    words = f"hugepagesz={size >> 10}M hugepages={total}"
    return f"sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{words} /' /etc/default/grub && update-grub"


def _pages(facts: Memory, needs: Collection[Need], adopt: Adopter) -> Iterator[Found]:
    """Check the free pages. Two instances that are to be started on one node need the sum there."""
    whom = "the standby needs" if len(needs) == 1 else "the two instances need"
    by_need: dict[int, set[int]] = {}
    for node in sorted({node for need in needs for node in need.nodes}):
        mib = sum(need.wanted.mib for need in needs if node in need.nodes)
        by_need.setdefault(mib, set()).add(node)
    for mib, nodes in by_need.items():
        others = {node for need in needs for node in need.nodes} - nodes
        pools = [pool for pool in facts.pools if pool.node not in others]
        enough = facts.available_mib - mib * len(nodes) > facts.total_mib // _SPARE
        yield from adopt(_HERE, memory_checks.huge_pages(pools, mib, nodes, whom), safe=enough)

"""Huge pages: whether there are enough on each NUMA node, now and after a boot."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ovs_hotswap.doctor import boot
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Adopter, Found, Kind, Section, healthy
from ovs_hotswap.host import memory_checks
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.memory import Demand, HugePages, Reservation
from ovs_hotswap.switch.pools import huge_page_pools

_HERE = Section.MEMORY
MOUNT = Kind(_HERE, "mount", Severity.ERROR)
AT_BOOT = Kind(_HERE, "after a boot", Severity.WARNING)
_SPARE = 4  # huge pages are added by doctor only if a quarter of the memory stays available

_SYSCTL = re.compile(r"^\s*-?vm[./]nr_hugepages\s*=", re.MULTILINE)
_TMPFILES = re.compile(r"^w\S*\s+/sys/\S*/nr_hugepages\s", re.MULTILINE)
_PAGESIZE = re.compile(r"\bpagesize=(\d+)([KMG])")
_UNITS = {"K": 0, "M": 10, "G": 20}
_CMDLINE = re.compile(r"\bhugepages=")
_SETTERS = tuple((f"{place}/{kind}", setter) for place in ("etc", "run", "usr/local/lib", "usr/lib")
                 for kind, setter in (("sysctl.d", _SYSCTL), ("tmpfiles.d", _TMPFILES)))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """The huge pages of each node. ``mounted``: the sizes of pages, in KiB, that DPDK can map (hugetlbfs). ``kept``:
    something gives the host its huge pages at boot. ``default_kib``: the size that vm.nr_hugepages is about
    (``default_hugepagesz=``). ``available_mib`` and ``total_mib``: the host's ordinary memory."""

    pools: tuple[HugePages, ...]
    mounted: frozenset[int]
    kept: bool
    default_kib: int
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
    default = int(values.get("Hugepagesize", 0))
    return Memory(
        tuple(huge_page_pools(root.need_directory("sys/kernel/mm").parents[1])),
        frozenset(_size(words[3]) or default for words in mounts if len(words) > 3 and words[2] == "hugetlbfs"),
        _kept(root),
        default,
        int(values.get("MemAvailable", 0)) >> 10,
        int(values.get("MemTotal", 0)) >> 10,
    )


def _size(options: str) -> int:
    """Return the size of the pages of a mount, in KiB; 0 if it is the default."""
    found = _PAGESIZE.search(options)
    return int(found[1]) << _UNITS[found[2]] if found else 0


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
    pages = [pool for pool in facts.pools if pool.total]
    if not facts.mounted:
        yield MOUNT("no huge pages are mounted, so DPDK cannot map any",
                    "mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages")  # fmt: skip
    elif pages and not (sizes := {pool.size_kib for pool in pages}) & facts.mounted:
        place = f"/dev/hugepages-{min(sizes)}K"
        yield MOUNT(f"no huge pages of {min(sizes)} KiB are mounted, so DPDK cannot map those that there are",
                    f"mkdir -p {place} && mount -t hugetlbfs -o pagesize={min(sizes)}K nodev {place}")  # fmt: skip
    if pages and not facts.kept:
        yield AT_BOOT("nothing that doctor knows of gives the host its huge pages at boot: no instance would start",
                      _at_boot(pages, facts.default_kib))  # fmt: skip
    elif {pool.size_kib for pool in pages} & facts.mounted:
        text = ", ".join(f"node {pool.node}: {pool.free} of {pool.total} x {pool.size_kib} KiB free" for pool in pages)
        yield from healthy([], _HERE, MOUNT.check, f"mounted; {text}")


def _at_boot(pages: Collection[HugePages], default_kib: int) -> str:
    size = max(pages, key=lambda pool: pool.total * pool.size_kib).size_kib
    total = sum(pool.total for pool in pages if pool.size_kib == size)
    if size == default_kib:
        return f"echo vm.nr_hugepages={total} > /etc/sysctl.d/80-ovs-hotswap.conf"
    return boot.with_words("huge-pages", f"hugepagesz={size >> 10}M hugepages={total}")


def _pages(facts: Memory, needs: Collection[Need], adopt: Adopter) -> Iterator[Found]:
    """Check the free pages. Two instances that are to be started on one node need the sum there."""
    whom = "the standby needs" if len(needs) == 1 else "the two instances need"
    by_need: dict[int, set[int]] = {}
    for node in sorted({node for need in needs for node in need.nodes}):
        mib = sum(need.wanted.mib for need in needs if node in need.nodes)
        by_need.setdefault(mib, set()).add(node)
    for mib, nodes in by_need.items():
        others = {node for need in needs for node in need.nodes} - nodes
        usable = [pool for pool in facts.pools if pool.size_kib in facts.mounted or not facts.mounted]
        pools = [pool for pool in usable if pool.node not in others]
        enough = facts.available_mib - mib * len(nodes) > facts.total_mib // _SPARE
        yield from adopt(_HERE, memory_checks.huge_pages(pools, mib, nodes, whom), safe=enough)

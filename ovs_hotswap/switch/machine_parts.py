"""The parts of the machine that an instance gets, in the words of ovs-vswitchd.conf.db(5): cores, and memory by NUMA
node."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def cpu_mask(cores: Iterable[int]) -> str:
    """Return cores as a mask: ``[0, 2]`` becomes ``0x5``."""
    return hex(sum(1 << core for core in set(cores)))


def socket_mem(memory_mb: int, nodes: Iterable[int]) -> str:
    """Return the value of ``dpdk-socket-mem``: ``memory_mb`` on each NUMA node of ``nodes``, 0 on the nodes between."""
    chosen = set(nodes) or {0}
    return ",".join(str(memory_mb if node in chosen else 0) for node in range(max(chosen) + 1))


def socket_limit(memory_mb: int, nodes: Iterable[int]) -> str:
    """Return the value of ``dpdk-socket-limit``: ``memory_mb`` on every node up to the last. A VM whose memory is on a
    node without PMD threads gets its packet pool there, and 0 would mean no limit."""
    return ",".join([str(memory_mb)] * (max(nodes, default=0) + 1))


def numa_nodes(cores: Iterable[int] | None = None, sys: Path = Path("/sys")) -> set[int]:
    """Return the NUMA nodes of ``cores``, or all (Documentation/ABI/stable/sysfs-devices-node); without NUMA, 0."""
    places = ["node"] if cores is None else [f"cpu/cpu{core}" for core in cores]
    links = (link for place in places for link in (sys / "devices/system" / place).glob("node[0-9]*"))
    return {int(link.name.removeprefix("node")) for link in links} or {0}

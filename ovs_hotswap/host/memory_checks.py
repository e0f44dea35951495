"""Prechecks of memory: whether an instance gets the packet pool that it needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.switch.memory import Demand, HugePages, PacketPool, Reservation

HUGE_PAGES, POOL = "huge pages", "packet pool"


def huge_pages(
    pools: Iterable[HugePages], needed_mib: int, nodes: Iterable[int], whom: str = "the standby needs"
) -> list[Finding]:
    """Check that ``needed_mib`` MiB fit into the free huge pages of one size on each of the NUMA ``nodes``, and that
    the other nodes have at least one free page. A VM gets its packets from a pool on the node of its memory, and the
    peer link's driver keeps a table on node 0, wherever the PMD threads are (DPDK drivers/net/memif/memif_socket.c).
    ``whom``: the words for who needs the memory.
    """
    pools, nodes = list(pools), set(nodes)
    found = [_on_node([pool for pool in pools if pool.node == node], needed_mib, node, whom) for node in sorted(nodes)]
    for node in sorted({pool.node for pool in pools} - nodes):
        there = [pool for pool in pools if pool.node == node]
        if any(pool.free for pool in there):
            continue
        severity, why = Severity.WARNING, "a VM whose memory is there cannot be connected to the standby"
        if node == 0:
            severity, why = Severity.ERROR, "the peer link needs one there, whichever cores have PMD threads"
        text = f"NUMA node {node} has none free: {why}"
        found.append(Finding(HUGE_PAGES, severity, text, _more(_extended(there, node), needed_mib)))
    return found


def _on_node(pools: Sequence[HugePages], needed_mib: int, node: int, whom: str) -> Finding:
    for pool in pools:
        if pool.free * pool.size_kib >= needed_mib * 1024:
            text = f"NUMA node {node}: {pool.free} of {pool.size_kib} KiB free, {needed_mib} MiB needed"
            return Finding(HUGE_PAGES, Severity.OK, text)
    best = _extended(pools, node)
    free = best.free * best.size_kib // 1024
    text = f"NUMA node {node}: {whom} {needed_mib} MiB, {free} MiB are free"
    return Finding(HUGE_PAGES, Severity.ERROR, text, _more(best, needed_mib))


def _extended(pools: Sequence[HugePages], node: int) -> HugePages:
    """The pages of a node to which more are added: those of which the most are free, or else there. Where there are
    none, the small ones: memory for large ones can hardly be found on a machine that has run for a while."""
    return max(pools, key=lambda pool: (pool.free * pool.size_kib, pool.total * pool.size_kib, -pool.size_kib),
               default=HugePages(2048, 0, 0, node))  # fmt: skip


def _more(pool: HugePages, needed_mib: int) -> str:
    missing = -(-(needed_mib * 1024 - pool.free * pool.size_kib) // pool.size_kib)
    place = f"/sys/devices/system/node/node{pool.node}/hugepages/hugepages-{pool.size_kib}kB/nr_hugepages"
    return f"echo {pool.total + missing} > {place}"


def allowed(side: Side, demand: Demand, wanted: Reservation, limit_mib: int) -> list[Finding]:
    """Check that the configuration lets an instance take the memory that it needs."""
    if wanted.mib <= limit_mib:
        text = (
            f"instance {side}: {wanted.buffers} buffers, of which its ports can fill {demand.buffers}; {wanted.mib} MiB"
        )
        return [Finding(POOL, Severity.OK, text)]
    text = (f"instance {side} needs {wanted.mib} MiB for {wanted.buffers} packet buffers and {len(demand.vms)} VMs, "
            f"and may take {limit_mib} MiB")  # fmt: skip
    return [
        Finding(
            POOL,
            Severity.ERROR,
            text,
            f"set instances.{side}.memory_mb to {wanted.mib} or more, then `ovs-hotswap config check`",
        )
    ]


def in_use(active: Side, pools: Iterable[PacketPool], wanted: Reservation) -> list[Finding]:
    """Check that the standby's pool will have room for as many packets as the active instance holds now. Returns a
    finding only if it has not."""
    used = max((pool.in_use for pool in pools), default=0)
    if used <= wanted.buffers:
        return []
    text = f"instance {active} has {used} packet buffers in use, the standby would have {wanted.buffers}"
    return [Finding(POOL, Severity.ERROR, text, "find out who holds them: `ovs-appctl netdev-dpdk/get-mempool-info`")]


def too_small(pools: Iterable[PacketPool], needed: int) -> str | None:
    """What is wrong with the pools of an instance that serves its ports; ``None`` if they are large enough."""
    for pool in pools:
        if pool.buffers < needed:
            return (f"its packet pool on NUMA node {pool.node} has {pool.buffers} buffers, "
                    f"and its ports can fill {needed}")  # fmt: skip
    return None

"""The kernel's huge pages, and the packet pools that a running instance has made of them."""

from __future__ import annotations

import re
from pathlib import Path

from ovs_hotswap.switch.memory import HugePages, PacketPool
from ovs_hotswap.switch.unixctl import appctl

_POOL = re.compile(r"^mempool <ovs[0-9a-f]{8}", re.MULTILINE)
_FIELD = re.compile(r"^\s*(?P<name>socket_id|populated_size|total_obj_size|total_cache_count|common_pool_count)"
                    r"=(?P<value>\d+)$", re.MULTILINE)  # fmt: skip


def huge_page_pools(system: Path = Path("/sys")) -> list[HugePages]:
    """Return the huge pages of every node and size.

    On a machine with one node, pages that are promised to a mapping do not count as free. With several nodes they do,
    because the kernel does not say on which node they are.
    """
    nodes = sorted(system.glob("devices/system/node/node[0-9]*"))
    places = {int(node.name.removeprefix("node")): node / "hugepages" for node in nodes}
    found = []
    for node, place in (places or {0: system / "kernel/mm/hugepages"}).items():
        for pool in sorted(place.glob("hugepages-*kB")):
            free, total = _number(pool / "free_hugepages"), _number(pool / "nr_hugepages")
            promised = _number(system / "kernel/mm/hugepages" / pool.name / "resv_hugepages") if len(places) < 2 else 0
            size = int(pool.name.removeprefix("hugepages-").removesuffix("kB"))
            found.append(HugePages(size, max(0, free - promised), total, node))
    return found


def _number(file: Path) -> int:
    return int(file.read_text())


def page_mib(system: Path = Path("/sys")) -> int:
    """Return the size, in MiB, of the smallest huge pages that this machine has; 2 if it has none yet."""
    return min((pool.size_kib >> 10 for pool in huge_page_pools(system) if pool.total), default=2)


def parse_pools(text: str) -> list[PacketPool]:
    """Return Open vSwitch's own pools, from the output of ``netdev-dpdk/get-mempool-info`` (rte_mempool_dump).

    The pools of DPDK's drivers are left out.
    """
    found = []
    for block in re.split(r"^(?=mempool <)", text, flags=re.MULTILINE):
        if not _POOL.match(block):
            continue
        values = {field["name"]: int(field["value"]) for field in _FIELD.finditer(block)}
        size = values["populated_size"]
        free = values["common_pool_count"] + values.get("total_cache_count", 0)
        found.append(PacketPool(values["socket_id"], size, max(0, size - free), values["total_obj_size"]))
    return found


def packet_pools(ctl: Path, *, timeout: float = 5.0) -> list[PacketPool]:
    """Return the packet pools of the instance with this control socket. It has none before its first port.

    Raises SwitchError.
    """
    return parse_pools(appctl(ctl, "netdev-dpdk/get-mempool-info", timeout=timeout))

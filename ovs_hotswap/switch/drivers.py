"""Which drivers of DPDK a running switch has."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.process_exit import PROC


def lacks_driver(pid: int, name: str, proc: Path = PROC) -> bool:
    """Whether a process has DPDK as shared libraries and has not loaded its driver ``name`` for networks.

    DPDK loads its drivers when it starts, and never later (eal_common_options.c, eal_plugins_init). A program that DPDK
    is a part of has no such libraries, and is taken to have the driver, as is one that cannot be looked at.
    """
    try:
        maps = (proc / str(pid) / "maps").read_text(errors="replace")
    except OSError:
        return False
    return "/librte_eal.so" in maps and f"/librte_net_{name}.so" not in maps

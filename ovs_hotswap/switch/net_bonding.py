"""The arguments of a bond of DPDK (``net_bonding``, drivers/net/bonding). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ovs_hotswap.config_rules import pci_address

DEVICE = "net_bonding0"
_ACTIVE_BACKUP = 1  # BONDING_MODE_ACTIVE_BACKUP (rte_eth_bond.h): the modes with LACP are not for virtual functions
_RENAMED = (23, 11)  # DPDK's release notes 23.11: "bonding: replaced master/slave to main/member"


def bonded(devargs: Sequence[str], dpdk_version: str) -> str:
    """Return the arguments of the bond of the devices ``devargs``, of which the first is used while it has a link.

    ``dpdk_version``: that of the instance's release, such as ``22.11.11``; a version that cannot be read counts as a
    new one. The argument ``mac`` cannot be given: Open vSwitch looks the port up by the same text, and DPDK then takes
    ``mac`` for a condition, which the bond does not meet yet (lib/ethdev, rte_eth_iterator_init and eth_mac_cmp).
    """
    found = re.match(r"(\d+)\.(\d+)", dpdk_version)
    key = "slave" if found is not None and (int(found[1]), int(found[2])) < _RENAMED else "member"
    members = [name(each) for each in devargs]
    listed = ",".join(f"{key}={each}" for each in members)
    return f"{DEVICE},mode={_ACTIVE_BACKUP},{listed},primary={members[0]}"


def name(devargs: str) -> str:
    """Return the name by which the bond finds a device: its PCI address, or the name of a virtual device."""
    return pci_address(devargs) or devargs.partition(",")[0]


def at_start(devargs: Sequence[str]) -> list[str]:
    """Return the arguments of EAL that make the virtual devices among ``devargs``: a bond takes only devices that are
    there. EAL finds the PCI devices by itself."""
    return [f"--vdev={each}" for each in devargs if pci_address(each) is None]

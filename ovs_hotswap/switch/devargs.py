"""The arguments of DPDK that give an instance the PCI devices of its uplink, and no other.

Without ``-a``, EAL probes every device that is bound to vfio-pci when Open vSwitch starts (before OVS 4.0), the other
instance's VF too, and the first process has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ovs_hotswap.config_rules import ALLOW, pci_address

_NO_DEVICE = "0000:00:00.0"  # the address of the host bridge: no driver of DPDK takes it
_ALLOW_SINCE = (20, 11)  # the option was -w before
# drivers/net/intel/iavf/base/iavf_devids.h; those in pci_id_iavf_map of iavf_ethdev.c.
_INTEL, _IAVF = 0x8086, frozenset({0x154C, 0x1571, 0x1889, 0x37CD, 0x374D})
# With them, iavf sets a VF up again that the PF has reset, and does not poll it until then. They exist since 23.11 (an
# older driver refuses a device with arguments that it does not know) and are on by default since 26.07
# (doc/guides/nics/intel_vf.rst, "IAVF PMD parameters"; commits 3e6a5d2d31, 5b3124a0a6, e9eb479305).
_RECOVERY, _RECOVERY_SINCE, _RECOVERY_UNTIL = ("auto_reset=1", "no-poll-on-link-down=1"), (23, 11), (26, 7)


def arguments(extra: str, devices: Sequence[str], dpdk: str, is_iavf: Callable[[str], bool]) -> str:
    """Return ``extra``, the configured arguments, with ``-a`` for each PCI device of ``devices`` instead of
    ``--no-pci``. Without a PCI device they stay as they are.

    ``devices``: DPDK devices with their arguments. ``dpdk``: the release's version of DPDK. ``is_iavf``: whether the
    device at a PCI address is a VF for DPDK's iavf driver. An argument of the device that is configured, here or there,
    takes precedence.
    """
    own = {address: _after_comma(devargs) for devargs in devices if (address := pci_address(devargs)) is not None}
    if not own:
        return extra
    option = "-a" if (_version(dpdk) or _ALLOW_SINCE) >= _ALLOW_SINCE else "-w"
    kept: list[str] = []
    words = iter(extra.split())
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--no-pci":
            continue
        if name in ALLOW:
            allowed = value if equals else next(words, "")
            address = pci_address(allowed)
            if address in own:
                own[address] = [*_after_comma(allowed), *own[address]]
                continue
            kept += [option, allowed]
        else:
            kept.append(word)
    for address, given in own.items():
        given += _recovery(dpdk) if is_iavf(address) else ()
        kept += [option, ",".join([address, *_first_of_each_name(given)])]
    return " ".join(kept)


def instead_of(devices: Sequence[str]) -> tuple[str, ...]:
    """Return what an instance may have from its start if it gets ``devices`` later: a device that does not exist.

    With it, DPDK takes nothing at its start, and Open vSwitch can attach the devices later, and give them back
    (lib/netdev-dpdk.c, netdev_dpdk_process_devargs and netdev_dpdk_destruct).
    """
    return (_NO_DEVICE,) if any(map(pci_address, devices)) else ()


def _recovery(dpdk: str) -> tuple[str, ...]:
    version = _version(dpdk)
    return _RECOVERY if version is not None and _RECOVERY_SINCE <= version < _RECOVERY_UNTIL else ()


def _version(dpdk: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", dpdk)
    return (int(found[1]), int(found[2])) if found else None


def _after_comma(devargs: str) -> list[str]:
    """Split the arguments of a device; a comma in brackets does not end one (lib/kvargs)."""
    return re.findall(r"(?:\[[^\]]*\]|[^,\[])+", devargs.strip().partition(",")[2])


def _first_of_each_name(arguments: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for each in arguments:
        found.setdefault(each.partition("=")[0], each)
    return list(found.values())


def is_iavf(address: str, sys: Path = Path("/sys")) -> bool:
    """Whether DPDK's iavf driver takes the device at a PCI address; false if there is none."""
    place = sys / "bus/pci/devices" / address
    try:
        vendor, device = (int((place / name).read_text(), 16) for name in ("vendor", "device"))
    except (OSError, ValueError):
        return False
    return vendor == _INTEL and device in _IAVF

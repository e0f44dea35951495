"""All findings that doctor can report: its own, and those of checks that other commands make, too."""

from __future__ import annotations

from types import ModuleType

from ovs_hotswap.doctor import (
    access,
    clock,
    cpu,
    devices,
    disk,
    files,
    kernel,
    memory,
    releases,
    runner,
    running,
    units,
    versions,
)
from ovs_hotswap.doctor.report import Adopter, Kind, Section
from ovs_hotswap.model import Severity

_W, _E = Severity.WARNING, Severity.ERROR
_CONFIG, _OVERLAY = "then `ovs-hotswap config check`", "then `ovs-hotswap overlay apply`"
# Of upgrade.checks, upgrade.collect, host.memory_checks, uplink.tc and uplink.vf_checks.
ADOPTED = (
    Kind(Section.CPU, "PMD cores", _E, _CONFIG),
    Kind(Section.CPU, "PMD cores", _W, _CONFIG),
    Kind(Section.MEMORY, "huge pages", _E, safe=True),
    Kind(Section.MEMORY, "huge pages", _W, safe=True),
    Kind(Section.MEMORY, "packet pool", _E),
    Kind(Section.DEVICES, "VF link", _E),
    Kind(Section.DEVICES, "spoof checking", _W),
    Kind(Section.DEVICES, "trust", _W),
    Kind(Section.DEVICES, "VLAN", _E),
    Kind(Section.DEVICES, "VF holder", _E),
    Kind(Section.DEVICES, "VF number", _E),
    Kind(Section.DEVICES, "VF settings", _W),
    Kind(Section.DEVICES, "VF settings", Severity.UNKNOWN),
    Kind(Section.UNITS, "other switches", _E),
    Kind(Section.UNITS, "other switches", _W, "give it other cores and devices, or end it: `ps -fC ovs-vswitchd`"),
    Kind(Section.UNITS, "descriptor limit", _E, "`ovs-hotswap vm list`"),
    Kind(Section.OVERLAY, "mtu", _E, _OVERLAY),
    Kind(Section.OVERLAY, "mtu", _W, _OVERLAY),
    Kind(Section.BROKER, "broker", _E),
    Kind(Section.BROKER, "broker", _W),
    Kind(Section.INSTANCES, "active", _E),
    Kind(Section.INSTANCES, "database", _E, "the watchdog does both: `ovs-hotswap watch run`"),
    Kind(Section.INSTANCES, "priority", _W),
    Kind(Section.INSTANCES, "datapath", _E),
    Kind(Section.INSTANCES, "datapath", _W),
    Kind(Section.INSTANCES, "flows", _E),
    Kind(Section.INSTANCES, "flow tables", _E),
    Kind(Section.UPLINK, "uplink", _E),
    Kind(Section.UPLINK, "uplink", _W),
    Kind(Section.UPLINK, "uplink programs", _W),
    Kind(Section.UPLINK, "uplink peers", _W),
    Kind(Section.UPLINK, "mtu", _E),
    Kind(Section.UPLINK, "next hops", _E, _OVERLAY),
    Kind(Section.UPLINK, "next hops", _W, _OVERLAY),
    Kind(Section.VMS, "VMs", _E),
    Kind(Section.VMS, "QEMU", _W, "`ovs-hotswap vm list`"),
    Kind(Section.VMS, "memory regions", _E),
    Kind(Section.VMS, "queue pairs", _W, _OVERLAY),
    Kind(Section.VMS, "capture rings", _W, _OVERLAY),
    Kind(Section.VMS, "quarantine", _E),
    Kind(Section.VMS, "quarantine", _W),
    Kind(Section.VMS, "owner", _E),
    Kind(Section.VMS, "features", _E),
    Kind(Section.VMS, "rings", _W),
)
adopt = Adopter(ADOPTED)
_MODULES = (access, clock, cpu, devices, disk, files, kernel, memory, releases, running, units, versions)


def own() -> dict[str, Kind]:
    """Return the kinds that doctor's own modules make, by the names that they have in the code."""
    found = {f"{module.__name__}.{name}": kind for module in _MODULES for name, kind in _kinds(module).items()}
    return found | {f"{runner.__name__}.NOT_SEEN[{section}]": kind for section, kind in runner.NOT_SEEN.items()}


def _kinds(module: ModuleType) -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for name, value in vars(module).items():
        if isinstance(value, Kind):
            found[name] = value
        elif isinstance(value, dict) and name.isupper():
            found |= {f"{name}[{key}]": kind for key, kind in value.items() if isinstance(kind, Kind)}
    return found

"""Checks of the uplink's PCI devices: the VFs, and the rights of the units whose processes open them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import pci_address
from ovs_hotswap.host.flow_tables import mac
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.service import device_rights
from ovs_hotswap.service.device_rights import Lack
from ovs_hotswap.service.sd_notify import BOOTED
from ovs_hotswap.service.systemctl import Unit
from ovs_hotswap.system import System
from ovs_hotswap.uplink import vf_checks
from ovs_hotswap.uplink.pci import BIFURCATED, USER_SPACE, VFIO, PciBus
from ovs_hotswap.uplink.vf import RtnlVfs
from ovs_hotswap.uplink.vf_care import VfCare, VfChange

RIGHTS = "device rights"


def precheck(
    host: Host, new: Side, bus: PciBus | None = None, read: vf_checks.Read | None = None, booted: Path = BOOTED
) -> Iterator[Finding]:
    """Check the devices of the instance to which an upgrade goes. Settings that cannot be seen are only a warning: the
    upgrade proves the uplink before it moves a VM. Raises UplinkError, CommandError."""
    config, bus = host.config, bus or PciBus()
    pids = {side: host.instances[side].pid() for side in Side}
    facts = vf_checks.look(config, bus, read or RtnlVfs(config.uplink.namespace).read, pids, left(config, host.system))
    for each in vf_checks.judge(facts, {new: mac(config, host.intent, new)}, (new,)):
        yield replace(each, severity=Severity.WARNING) if each.severity is Severity.UNKNOWN else each
    units = [Unit(name, host.system, booted=booted) for name in device_rights.INSTANCES if f"@{new}." in name]
    for lack in rights(config, bus, units):
        yield Finding(RIGHTS, Severity.ERROR, lack.text, lack.hint, lack.unit)


def left(config: Config, system: System) -> Callable[[Side], tuple[VfChange, ...]]:
    """Return what says which settings an instance's start has changed and nothing has put back."""

    def of_side(side: Side) -> tuple[VfChange, ...]:
        record = VfCare(config, side, system).record()
        return () if record is None else record.changes

    return of_side


def rights(config: Config, bus: PciBus, units: Iterable[Unit]) -> Iterator[Lack]:
    """Yield the rights that units lack for the devices of the configuration. Raises CommandError."""
    bind = config.uplink.vfs.bind
    for unit in units:
        devices = [each for side in Side if f"@{side}." in unit.name for each in config.instance(side).devices]
        drivers = {bus.driver(address) for each in devices if (address := pci_address(each)) is not None}
        through_vfio = VFIO in drivers or (bind and bool(drivers - BIFURCATED))
        raw = bool(drivers & (USER_SPACE - {VFIO})) or (through_vfio and not bus.has_iommu())
        if raw or bind:
            yield from device_rights.lacking(config, unit, raw=raw, bind=bind)

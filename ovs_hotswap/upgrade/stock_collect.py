"""Gathers the facts about a host that others program, for ``stock_checks``. Nothing is changed or disturbed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ovs_hotswap.adopt import log_files
from ovs_hotswap.adopt.snapshot import LogMark
from ovs_hotswap.config import Config, read_active
from ovs_hotswap.controllers import host_network, ovn
from ovs_hotswap.controllers.taps import Taps
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Finding, Side
from ovs_hotswap.stock.facts import Facts, PortKind, StockVm, VmLog
from ovs_hotswap.stock.survey import running_paths, survey
from ovs_hotswap.switch.paths import read_stock
from ovs_hotswap.system import System, files
from ovs_hotswap.upgrade.stock_checks import Terms, judge

_SMALL_PAGE = 4096  # bytes


def examine(
    config: Config, system: System, left_out: Collection[str] = (), offer: int | None = None
) -> tuple[Facts, list[Finding]]:
    """Return the facts about the switch that serves the VMs, and the findings about all that an upgrade would meet.

    ``left_out``: VMs that are not taken over. ``offer``: the features that the new release offers, if they are known.
    Raises HostError, StateUnknown.
    """
    facts = collect(config, system)
    findings = judge(facts, replace(terms(config, left_out), offer=offer))
    pid = None if facts.pipeline.ovn is None else facts.pipeline.ovn.pid
    controllers = [each for each in ovn.find(system) if each.pid == pid]
    taps = Taps(config.state_dir / "taps", system)
    bound = {port.name: taps.obstacles(port.name) for port in facts.pipeline.kernel_ports if port.kind == "internal"}
    more = ovn.findings(controllers, config.stock.run_dir, dict(facts.switch.external_ids))
    return facts, [*findings, *host_network.findings(bound), *more]


def collect(config: Config, system: System) -> Facts:
    """Return the facts about the switch that serves the VMs, with what its log tells of each connection. Raises
    HostError, StateUnknown."""
    paths = running_paths(config, system)
    facts = survey(paths, system, system.read_pid(config.run_dir / "broker.pid"))
    return replace(facts, vms=with_logs(facts.vms, paths.log))


def terms(config: Config, left_out: Collection[str] = ()) -> Terms:
    """Return what the configuration plans. Once the distribution's switch is retired, the files of the switch that
    serves the VMs are where ovs-hotswap has put them. Raises HostError, StateUnknown."""
    devices = [set(config.instance(side).port_devices) for side in Side]
    with files(config.active_file):
        ours = read_active(config) is not None and read_stock(config) is None
    database, log = (None, None) if ours else (str(config.stock.database), str(config.stock.log))
    return Terms(devices=devices[0] & devices[1], left_out=left_out, database=database, log=log)


def with_logs(vms: Collection[StockVm], log: Path) -> tuple[StockVm, ...]:
    """Return the VMs with what the log tells of them; only of connections that are to be entered."""
    taken = [vm for vm in vms if vm.kind is PortKind.CLIENT and vm.connected and not vm.adopted]
    if not taken:
        return tuple(vms)
    try:
        end = log_files.mark(log)
    except StateUnknown as error:
        return tuple(replace(vm, log=VmLog(fault=error.message, hint=error.hint)) if vm in taken else vm for vm in vms)
    return tuple(replace(vm, log=_told(vm, end)) if vm in taken else vm for vm in vms)


def _told(vm: StockVm, end: LogMark) -> VmLog:
    try:
        memory = log_files.connection(end, Path(vm.socket)).memory
        small = sum(region.size for region in memory if region.page <= _SMALL_PAGE)
        return VmLog(regions=len(memory), small_pages=small)
    except StateUnknown as error:
        return VmLog(fault=error.message, hint=error.hint)

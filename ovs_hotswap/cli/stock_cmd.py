"""``check`` and ``config init`` on a host whose switch others installed and programmed."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import asdict

import click
from pydantic import ValidationError

from ovs_hotswap.cli.app import App
from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import faults
from ovs_hotswap.errors import ConfigError, PrecheckFailed
from ovs_hotswap.stock.facts import Facts, StockVm
from ovs_hotswap.stock.new_config import Choices, configuration
from ovs_hotswap.stock.survey import running_paths, survey
from ovs_hotswap.upgrade.checks import verdict
from ovs_hotswap.upgrade.stock_checks import StockReport
from ovs_hotswap.upgrade.stock_collect import examine
from ovs_hotswap.wording import ranges


def check_stock(app: App, left_out: Collection[str] = ()) -> None:
    """Print the facts and the findings. Raises PrecheckFailed if a finding is an error."""
    facts, findings = examine(app.config, app.system, left_out)
    report = StockReport.of(facts, findings)
    _show(app, facts)
    app.output.findings(findings)
    app.output.document(asdict(report))
    if app.output.json and not report.ready:
        click.get_current_context().exit(PrecheckFailed.exit_code)
    verdict(findings)


def _show(app: App, facts: Facts) -> None:
    switch = facts.switch
    app.output.table(("fact", "value"), [
        ("switch", f"OVS {switch.ovs_version}, DPDK {switch.dpdk_version}, process {switch.vswitchd_pid}"),
        ("unit", switch.unit), ("database", switch.database), ("log", switch.log.file),
        ("PMD cores", ranges(switch.pmd_cores) or None),
        *((f"bridge {bridge.name}", f"{bridge.flows} flows") for bridge in facts.pipeline.bridges),
        *((f"uplink {port.name}", f"{port.kind}: {port.devargs}") for port in facts.pipeline.uplinks),
        *((f"port {port.name}", f"{port.kind} of bridge {port.bridge}, {' '.join(port.addresses) or 'no address'}")
          for port in facts.pipeline.kernel_ports),
        *((f"controller of {bridge.name}", target)
          for bridge in facts.pipeline.bridges for target in bridge.controllers),
    ])  # fmt: skip
    app.output.line()
    columns = ("VM", "bridge", "port", "queues", "QEMU", "version", "QMP", "memory regions")
    app.output.table(columns, [_row(vm) for vm in facts.vms])
    app.output.line()


def _row(vm: StockVm) -> tuple[object, ...]:
    qemu = vm.qemu
    kind = vm.kind if vm.connected else f"{vm.kind}, not connected"
    if qemu is None:
        return vm.name, vm.bridge, kind, vm.vrings // 2 or None, None, None, None, vm.log.regions
    monitor = "through libvirt" if qemu.libvirt else next((each.path for each in qemu.monitors), None)
    return vm.name, vm.bridge, kind, vm.vrings // 2 or None, qemu.pid, qemu.version, monitor, vm.log.regions


def new_configuration(app: App, cores: Collection[int], choices: Choices) -> str:
    """Return a configuration for this host, which is valid. Raises ConfigError, HostError."""
    bare = Config.model_validate({
        "program": "clone", "stock": {"run_dir": choices.run_dir},
        "instances": {side: {"pmd_cores": [0]} for side in "ab"},
    })  # fmt: skip
    text = configuration(survey(running_paths(bare, app.system), app.system), cores, choices)
    try:
        found = Config.model_validate(tomllib.loads(text))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"no valid configuration follows from this host: {error}") from error
    if wrong := faults(found):
        raise ConfigError("; ".join(f"{key}: {fault}" for key, fault in wrong),
                          hint="`ovs-hotswap config init --help` has the options that decide it")  # fmt: skip
    return text

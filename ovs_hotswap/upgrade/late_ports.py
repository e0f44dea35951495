"""Ports that are plugged or unplugged after the cut, when programs still write to the old instance's database."""

from __future__ import annotations

from ovs_hotswap.backends import refuse_kept
from ovs_hotswap.broker.adopting import reconnect
from ovs_hotswap.clone.changes import Changes
from ovs_hotswap.clone.database import bring_ports
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.standby import await_vm_ports
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.stock.survey import survey
from ovs_hotswap.stock.vms import vm_ports
from ovs_hotswap.upgrade.adopt_vms import adopt_vms, unadopted
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.vm_ports import read_ports, write_ports


def bring_late_ports(context: Upgrade, run: StepContext, changes: Changes) -> None:
    """Have the new instance get the ports that have come since the cut, with their VMs, and lose those that have left.
    What cannot be done is a warning, because the upgrade is committed."""
    host, paths = context.host, context.host.cloning.paths
    try:
        ports = {port.name: port for port in vm_ports(survey(paths[context.old], host.system).vms)}
        known = {port.name: port for port in read_ports(host.config)}
        if ports.keys() != known.keys():
            # Before the new switch has the ports: it would connect to a VM's QEMU itself.
            write_ports(host.config, host.system, tuple(known.get(name, port) for name, port in ports.items()))
            refuse_kept(host.backends.reload())
        bridges = bring_ports(paths[context.old], paths[context.new], changes)
        if not bridges:
            return
        run.progress(f"ports were plugged or unplugged since the cut on bridge {', '.join(bridges)}")
        await_vm_ports(host, context.new)
        adopt_vms(context, run)
    except HotswapError as error:
        run.warn(f"ports that were plugged since the cut: {error.message}")
    _reconnect_others(context, run)


def _reconnect_others(context: Upgrade, run: StepContext) -> None:
    """Give a VM that could not be taken over a new connection: the old instance, which serves it, is about to end."""
    host = context.host
    for vm in unadopted(host):
        try:
            reconnect(host.broker, vm.name, host.instances[context.old].paths, context.new, host.system)
        except HotswapError as error:
            run.warn(f"VM {vm.name} is connected to the new instance when the old one ends: {error.message}")

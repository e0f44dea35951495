"""Puts VMs under the broker on a host that others program, and gives them back, while the switch stays."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ovs_hotswap.backends import VmStatus, refuse_kept
from ovs_hotswap.broker.adopting import reconnect
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import HotswapError, PrecheckFailed
from ovs_hotswap.host.host import Host
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import clone_checks
from ovs_hotswap.upgrade.recognise import recognised
from ovs_hotswap.vm_ports import read_ports, write_ports


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one VM. ``error``: why it was not changed; ``None`` if it was."""

    vm: str
    error: HotswapError | None = None


def to_adopt(config: Config, system: System, names: Collection[str]) -> list[Changed]:
    """The VMs that ``adopt_here`` would take over. Nothing is changed. Raises BrokerError, HostError."""
    host = _host(config, system)
    under = {vm.name for vm in host.backends.vms(read=False) if vm.has_guest}
    return [
        Changed(port.name)
        for port in clone_checks.vm_ports(host)
        if port.name not in under and _named(port.name, names)
    ]


def adopt_here(config: Config, system: System, names: Collection[str]) -> list[Changed]:
    """Take the named VMs over, or all, each by a new connection of its QEMU; the active switch serves them on. Raises
    BrokerError, HostError, SwitchError, BusyError."""
    host = _host(config, system)
    with host.lock():
        host = recognised(host)
        active = host.active()
        write_ports(config, system, clone_checks.vm_ports(host))
        refuse_kept(host.backends.reload())
        paths = host.instances[active].paths
        return _each([vm for vm in host.backends.vms(read=False) if vm.without_broker and _named(vm.name, names)],
                     lambda vm: reconnect(host.broker, vm.name, paths, active, system))  # fmt: skip


def given_back(config: Config, system: System, names: Collection[str]) -> list[Changed]:
    """The VMs that ``give_back`` would give back. Nothing is changed. Raises BrokerError."""
    host = _host(config, system)
    return [Changed(vm.name) for vm in host.backends.vms(read=False) if _named(vm.name, names)]


def give_back(config: Config, system: System, names: Collection[str]) -> list[Changed]:
    """Give the named VMs, or all, to the active switch without the broker. Raises BrokerError, BusyError, HostError."""
    host = _host(config, system)
    with host.lock():
        vms = [vm for vm in host.backends.vms(read=False) if _named(vm.name, names)]
        if not vms:
            return []  # on a host of which nothing was ever taken over, no instance is active
        active = host.active()
        if host.instances[active.other].pid() is not None:
            raise PrecheckFailed(
                f"instance {active.other} runs beside the active one, and either could get the VMs",
                hint=f"`ovs-hotswap instance stop {active.other}`",
            )
        changed = _each(vms, lambda vm: host.broker.give_back(vm.name))
        gone = {each.vm for each in changed if each.error is None}
        write_ports(config, system, tuple(port for port in read_ports(config) if port.name not in gone))
        host.backends.reload()
        return changed


def _host(config: Config, system: System) -> Host:
    if config.program is not Program.CLONE:
        raise PrecheckFailed(
            'the VMs of this host are ovs-hotswap\'s own (program = "overlay")',
            hint="`ovs-hotswap vm list` shows who serves them",
        )
    return Host(config, system)


def _named(name: str, names: Collection[str]) -> bool:
    return not names or name in names


def _each(vms: list[VmStatus], act: Callable[[VmStatus], object]) -> list[Changed]:
    """Do it for each VM. One that fails does not keep the others from it."""
    found = []
    for vm in vms:
        try:
            act(vm)
        except HotswapError as error:
            found.append(Changed(vm.name, error))
        else:
            found.append(Changed(vm.name))
    return found

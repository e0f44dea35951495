"""Puts VMs under the broker on a host that others program, and gives them back, while the switch stays."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ovs_hotswap.adopt.log_settings import log_as_before, log_everything
from ovs_hotswap.backends import VmStatus, refuse_kept
from ovs_hotswap.broker.adopting import adopt, prepare, reconnect
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import HotswapError, NotServed, PrecheckFailed, StateUnknown, TryAgain
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import clone_checks
from ovs_hotswap.upgrade.recognise import recognised
from ovs_hotswap.vm_ports import read_ports, write_ports
from ovs_hotswap.waiting import wait_until

_SERVED_S = 10.0


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one VM. ``error``: why it was not changed; ``None`` if it was. ``reconnected``: why its QEMU got a
    new connection; ``None`` if it kept the one that it had."""

    vm: str
    error: HotswapError | None = None
    reconnected: str | None = None


def to_adopt(config: Config, system: System, names: Collection[str]) -> list[Changed]:
    """The VMs that ``adopt_here`` would take over. Nothing is changed. Raises BrokerError, HostError."""
    host = _host(config, system)
    under = {vm.name for vm in host.backends.vms(read=False) if vm.has_guest}
    return [
        Changed(port.name)
        for port in clone_checks.vm_ports(host)
        if port.name not in under and _named(port.name, names)
    ]


def adopt_here(config: Config, system: System, names: Collection[str], *, new: bool = False) -> list[Changed]:
    """Take the named VMs over, or all; the active switch serves them on. A VM whose connection cannot be entered gets a
    new one; all get one if that is asked for (``new``). Raises BrokerError, HostError, SwitchError, BusyError."""
    host = _host(config, system)
    with host.lock():
        host = recognised(host)
        active = host.active()
        write_ports(config, system, clone_checks.vm_ports(host))
        refuse_kept(host.backends.reload())
        paths = host.instances[active].paths
        vms = [vm for vm in host.backends.vms(read=False) if vm.without_broker and _named(vm.name, names)]
        if not vms:
            return []
        if new:
            return _each(vms, lambda vm: _reconnect(host, vm.name, paths, active, "it was asked for"))
        try:
            before = log_everything(paths, [vm.name for vm in vms], system)
        except StateUnknown as error:  # the log has none of the connections
            why = error.message
            return _each(vms, lambda vm: _reconnect(host, vm.name, paths, active, why))
        try:
            return _each(vms, lambda vm: _adopt(host, vm.name, paths, active))
        finally:
            log_as_before(paths, before)


def _adopt(host: Host, name: str, paths: InstancePaths, side: Side) -> str | None:
    """Take a VM over that stays with its switch. Returns why its QEMU got a new connection, or nothing if it did not.
    Raises StateUnknown, BrokerError."""
    try:
        prepared = prepare(host.broker, name, paths, side, host.system)
    except NotServed:
        raise
    except TryAgain:
        prepared = None
    except HotswapError as error:
        return _reconnect(host, name, paths, side, error.message)
    adopt(host.broker, name, paths, side, host.system, prepared=prepared)
    if not wait_until(lambda: host.backends.vm(name).confirmed_on(side), _SERVED_S, host.system):
        raise StateUnknown(f"vm {name}: its switch does not serve it yet", hint=f"`ovs-hotswap vm show {name}`")
    return None


def _reconnect(host: Host, name: str, paths: InstancePaths, side: Side, why: str) -> str:
    reconnect(host.broker, name, paths, side, host.system)
    return why


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


def _each(vms: list[VmStatus], act: Callable[[VmStatus], str | None]) -> list[Changed]:
    """Do it for each VM. One that fails does not keep the others from it. ``act`` returns ``Changed.reconnected``."""
    found = []
    for vm in vms:
        try:
            found.append(Changed(vm.name, reconnected=act(vm)))
        except HotswapError as error:
            found.append(Changed(vm.name, error))
    return found

"""Finds the VM that is to be traced, and the switch that serves it."""

from __future__ import annotations

from dataclasses import dataclass

from ovs_hotswap.config import Program
from ovs_hotswap.diagnose.facts import Wanted
from ovs_hotswap.diagnose.looking import wanted_of
from ovs_hotswap.errors import ConfigError, PrecheckFailed
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.stock.survey import running_paths
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.trace_mirror import TraceMirror
from ovs_hotswap.tracing.wish import Wish, address, checked


@dataclass(frozen=True, slots=True)
class Target:
    """A VM's port on the active switch. ``side`` is ``None`` if that is the distribution's own switch, which
    ovs-hotswap has not taken over. ``wanted``: what the host is to do. ``vms``: all VMs of the host, with the MACs that
    are known."""

    vm: str
    bridge: str
    ofport: int
    side: Side | None
    paths: InstancePaths
    wanted: Wanted
    vms: dict[str, str | None]

    @property
    def namespace(self) -> str | None:
        """The network namespace of the switch; ``None`` is the host's own."""
        return self.paths.netns or None


def find(host: Host, vm: str) -> Target:
    """Raises ConfigError if there is no such VM, PrecheckFailed if no instance is active, and SwitchError, StateUnknown
    or HostError if that cannot be read."""
    active, wanted = host.recorded_active(), wanted_of(host)
    if host.config.program is Program.CLONE:
        paths = running_paths(host.config, host.system)
        rows = TraceMirror(paths, host.system).rows()
        ports = rows.vm_ports()
        if vm not in ports:
            raise _unknown(vm)
        return Target(vm, *ports[vm], active, paths, wanted, {name: rows.mac(name) for name in ports})
    if vm not in wanted.vms:
        raise _unknown(vm)
    if active is None:
        raise PrecheckFailed("no instance is active, so there are no packets", hint="`ovs-hotswap status`")
    port, macs = wanted.vms[vm], {name: each.mac for name, each in wanted.vms.items()}
    return Target(vm, port.bridge, port.ofport, active, host.instances[active].paths, wanted, macs)


def _unknown(vm: str) -> ConfigError:
    return ConfigError(f"there is no VM {vm} on this host", hint="`ovs-hotswap vm list` lists them")


def wish_of(
    target: Target, source: str | None, to: str | None, proto: str | None, port: int | None, *, answers: bool
) -> Wish:  # fmt: skip
    """Return the wish of a user, who may name a VM of this host in place of its MAC. Raises ConfigError."""
    ends = [None if each is None else _address(target, each) for each in (source, to)]
    return checked(Wish(ends[0], ends[1], proto, port, answers))


def _address(target: Target, text: str) -> str:
    if (found := address(text)) is not None:
        return found
    if text not in target.vms:
        raise ConfigError(f"{text!r} is neither a MAC, nor an IP address, nor a VM of this host",
                          hint="`ovs-hotswap vm list` lists the VMs")  # fmt: skip
    if (mac := target.vms[text]) is None:
        raise ConfigError(f"the MAC of {text} is not known here", hint="name its MAC or its IP address")
    return mac

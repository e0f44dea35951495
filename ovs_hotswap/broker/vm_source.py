"""Which VMs the broker serves, and where their switches and QEMUs are found.

With ``program = "overlay"`` the overlay intent says that, and each side's port has a socket of its own. With
``program = "clone"`` the file of ports does (``vm_ports``), and both sides' ports have one socket (``shared_socket``).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.shared_socket import SharedSocket
from ovs_hotswap.config import Config, Program
from ovs_hotswap.errors import ConfigError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import load_intent
from ovs_hotswap.peer import credentials
from ovs_hotswap.process_exit import Process, start_time
from ovs_hotswap.switch.paths import InstancePaths, read_stock
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import Stamp, stamp_of
from ovs_hotswap.vm_ports import VmPort, read_ports

log = logging.getLogger(__name__)

ETHERNET_MTU = 1500  # of a port whose MTU is left to the switch (lib/netdev-dpdk.c, ``ETHER_MTU``)
_UNLIMITED = None, None

Limits = tuple[int | None, int | None]  # queue pairs and MTU in bytes; ``None``: not limited


class VmSource(Protocol):
    """``WHERE`` is what an operator changes to add or remove a VM."""

    WHERE: str

    def read(self) -> frozenset[str]:
        """Return the names of the VMs. Raises ConfigError. It may run in another thread than the other methods."""

    def limits(self, name: str) -> Limits:
        """Return what the source says of a VM that was read; nothing is limited for another."""

    def all_limits(self) -> list[Limits]: ...

    def sockets(self, name: str) -> Mapping[Side, Path]:
        """Return where the VM's switches connect. If both connect to one socket, it stands for side a."""

    def shared(self, name: str) -> SharedSocket | None:
        """Return the socket of both sides, or ``None`` if each side has its own."""

    def may_hold(self, name: str, side: Side) -> bool:
        """Whether an earlier broker's, or no broker's, work with this side's switch may have left it the rings."""


class IntentSource:
    """The VMs of the overlay intent."""

    WHERE = "the overlay intent"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read: tuple[Stamp | None, frozenset[str]] = None, frozenset()
        self._limits: Mapping[str, Limits] = {}

    def read(self) -> frozenset[str]:
        """An intent with 100 000 remote MACs takes seconds to read, so it is only read if the file has changed."""
        config = self._settings.config
        stamp = stamp_of(config.overlay)
        if stamp is not None and stamp == self._read[0]:
            return self._read[1]
        vms = load_intent(config.overlay, config).vms
        names = frozenset(vm.name for vm in vms)
        self._read, self._limits = (stamp, names), {vm.name: (vm.queues, vm.effective_mtu) for vm in vms}
        return names

    def limits(self, name: str) -> Limits:
        return self._limits.get(name, _UNLIMITED)

    def all_limits(self) -> list[Limits]:
        return list(self._limits.values())

    def sockets(self, name: str) -> Mapping[Side, Path]:
        return {side: self._settings.config.vhost_socket(side, name) for side in Side}

    def shared(self, name: str) -> SharedSocket | None:
        return None

    def may_hold(self, name: str, side: Side) -> bool:
        return self._settings.config.vhost_socket(side, name).exists()


class PortsSource:
    """The VMs of the file of ports."""

    WHERE = "the file of ports"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ports: Mapping[str, VmPort] = {}
        self._shared: dict[str, SharedSocket] = {}
        try:
            self.read()  # a successor has the VMs before it reads anything
        except ConfigError as error:
            log.error("the VMs' ports are not known yet: %s", error.message)

    def read(self) -> frozenset[str]:
        self._ports = {port.name: port for port in read_ports(self._settings.config)}
        return frozenset(self._ports)

    def limits(self, name: str) -> Limits:
        return _limits(self._ports[name]) if name in self._ports else _UNLIMITED

    def all_limits(self) -> list[Limits]:
        return list(map(_limits, self._ports.values()))

    def sockets(self, name: str) -> Mapping[Side, Path]:
        found = self.shared(name)
        return {} if found is None else {Side.A: found.path}

    def shared(self, name: str) -> SharedSocket | None:
        """The path of a VM that has left the file is the one that it had there."""
        port, known = self._ports.get(name), self._shared.get(name)
        if port is not None and (known is None or known.path != port.socket):
            known = self._shared[name] = SharedSocket(port.socket, port.qemu_socket)
        return known

    def may_hold(self, name: str, side: Side) -> bool:
        found = self.shared(name)
        return found is None or found.in_use() is not False


def _limits(port: VmPort) -> Limits:
    return port.queues, port.mtu or ETHERNET_MTU


def vm_source(settings: Settings) -> VmSource:
    """Return the source for the configured program."""
    return PortsSource(settings) if settings.config.program is Program.CLONE else IntentSource(settings)


class SwitchProcesses:
    """Finds the ovs-vswitchd of each side.

    That of the distribution is known by its record: its pid file may lead to the other instance, because the active one
    has the well-known paths.
    """

    def __init__(self, config: Config, system: System) -> None:
        self._config, self._system = config, system

    @property
    def pid_files(self) -> list[Path]:
        """The pid files on which a switch may hold a lock."""
        own = [self._config.side_dir(side) for side in Side]
        stock = [self._config.stock.run_dir] if self._config.program is Program.CLONE else []
        return [directory / "ovs-vswitchd.pid" for directory in own + stock]

    def found(self) -> dict[Side, Process]:
        """Return the processes that live. Raises StateUnknown if the record of the distribution's switch is damaged."""
        stock, found = read_stock(self._config), {}
        for side in Side:
            if stock is not None and stock.side is side:
                process = self._living(stock.pid, stock.born)
            else:
                process = self._written(InstancePaths.of(self._config, side).vswitchd_pid)
            if process is not None:
                found[side] = process
        return found

    def _living(self, pid: int, born: int | None) -> Process | None:
        return Process(pid, born) if self._system.alive(pid) and born in (None, start_time(pid)) else None

    def _written(self, pid_file: Path) -> Process | None:
        pid = self._system.read_pid(pid_file)
        born = 0 if pid is None else start_time(pid)  # read first, so that a reused pid has another start time
        if pid is None or f"--pidfile={pid_file}" not in self._system.cmdline(pid):
            return None
        return Process(pid, born)

    def side_of(self, connection: socket.socket) -> Side | None:
        """Return the side whose switch is at the other end of a connection, or ``None`` if that is not known."""
        pid = credentials(connection).pid
        try:
            found = self.found()
        except StateUnknown as error:
            log.error("it is not known whose switch process %d is: %s", pid, error.message)
            return None
        return next((side for side, process in found.items() if process.pid == pid), None)

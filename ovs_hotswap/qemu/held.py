"""VMs in quarantine in the back-end mode ``qemu-dual``: their names and why, in a directory that ends with the boot.

Nothing stands between a QEMU and the switches there, so the VM is kept from them by their having no port for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.instance import Instance
from ovs_hotswap.switch.ovsdb import PortSpec
from ovs_hotswap.system import System, files

_TAKEN_UP_S = 2.0


class Held:
    """One file a VM, with the reason in it: who puts one in quarantine and who releases another need no lock."""

    def __init__(self, directory: Path, system: System) -> None:
        self._directory, self._system = directory, system

    def reasons(self) -> dict[str, str]:
        """By VM. Raises HostError."""
        with files(self._directory):
            paths = sorted(self._directory.glob("[!.]*")) if self._directory.is_dir() else []
            return {path.name: path.read_text() for path in paths}

    def put(self, name: str, reason: str) -> None:
        """Raises HostError."""
        with files(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._system.write_atomic(self._directory / name, reason)

    def take(self, name: str) -> bool:
        """Whether it was there. Raises HostError."""
        path = self._directory / name
        with files(path):
            there = path.exists()
            path.unlink(missing_ok=True)
        return there


class VmPorts:
    """The ports of single VMs on the instances that run. ``specs`` tells those that an instance is to have now."""

    def __init__(
        self, config: Config, instances: Mapping[Side, Instance], specs: Callable[[Side], tuple[PortSpec, ...]],
        active: Callable[[], Side | None],
    ) -> None:  # fmt: skip
        self._config, self._instances, self._specs, self._active = config, instances, specs, active

    def remove(self, name: str) -> None:
        """The active instance comes last, or QEMU would give the rings to the other first. Raises SwitchError."""
        for side in sorted(self._running(), key=lambda side: side is self._active()):
            with self._instances[side].database() as database:
                database.remove_port(self._config.bridge, name)
                with contextlib.suppress(SwitchError):  # a switch that hangs holds up nobody
                    database.wait_ports([], _TAKEN_UP_S)

    def add(self, name: str) -> None:
        """The active instance comes first: the first that QEMU meets is given the rings. Raises SwitchError."""
        for side in sorted(self._running(), key=lambda side: side is not self._active()):
            spec = next((port for port in self._specs(side) if port.name == name), None)
            if spec is None:
                raise SwitchError(f"instance {side} is to have no port for VM {name}", hint="`ovs-hotswap vm list`")
            with self._instances[side].database() as database:
                database.add_port(self._config.bridge, spec)
                database.wait_ports([name], self._config.upgrade.ready_s)

    def _running(self) -> list[Side]:
        return [side for side, instance in self._instances.items() if instance.pid() is not None]

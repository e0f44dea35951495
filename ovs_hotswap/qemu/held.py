"""The VMs in quarantine in the back-end mode ``qemu-dual``, with reasons, in a directory that a reboot empties.

In this mode nothing stands between a QEMU and the switches, so the switches get no port for a VM in quarantine.
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
    """Keeps a file for each VM in quarantine, with the reason in it, so that changes to different VMs need no lock."""

    def __init__(self, directory: Path, system: System) -> None:
        self._directory, self._system = directory, system

    def reasons(self) -> dict[str, str]:
        """Return the reasons by VM. Raises HostError."""
        with files(self._directory):
            paths = sorted(self._directory.glob("[!.]*")) if self._directory.is_dir() else []
            return {path.name: path.read_text() for path in paths}

    def put(self, name: str, reason: str) -> None:
        """Record that VM ``name`` is in quarantine for ``reason``. Raises HostError."""
        with files(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._system.write_atomic(self._directory / name, reason)

    def take(self, name: str) -> bool:
        """Take VM ``name`` out of quarantine; return whether it was in it. Raises HostError."""
        path = self._directory / name
        with files(path):
            there = path.exists()
            path.unlink(missing_ok=True)
        return there


class VmPorts:
    """Adds and removes single VMs' ports on running instances. ``specs`` returns the ports that a side is to have."""

    def __init__(
        self, config: Config, instances: Mapping[Side, Instance], specs: Callable[[Side], tuple[PortSpec, ...]],
        active: Callable[[], Side | None],
    ) -> None:  # fmt: skip
        self._config, self._instances, self._specs, self._active = config, instances, specs, active

    def remove(self, name: str) -> None:
        """Remove a VM's port from each running instance. Raises SwitchError.

        The active instance comes last: otherwise QEMU would give the rings to the other instance in between.
        """
        for side in sorted(self._running(), key=lambda side: side is self._active()):
            with self._instances[side].database() as database:
                database.remove_port(self._config.bridge, name)
                with contextlib.suppress(SwitchError):  # a switch that hangs delays nothing else
                    database.wait_ports([], _TAKEN_UP_S)

    def add(self, name: str) -> None:
        """Add a VM's port to each running instance. Raises SwitchError.

        The active instance comes first, because QEMU gives the rings to the first back end that connects.
        """
        for side in sorted(self._running(), key=lambda side: side is not self._active()):
            spec = next((port for port in self._specs(side) if port.name == name), None)
            if spec is None:
                raise SwitchError(f"instance {side} is to have no port for VM {name}", hint="`ovs-hotswap vm list`")
            with self._instances[side].database() as database:
                database.add_port(self._config.bridge, spec)
                database.wait_ports([name], self._config.upgrade.ready_s)

    def _running(self) -> list[Side]:
        return [side for side, instance in self._instances.items() if instance.pid() is not None]

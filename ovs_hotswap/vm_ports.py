"""The VMs' ports of a host that others program: which VM has which port, and on which socket its QEMU listens.

With ``program = "overlay"`` the intent says that. With ``program = "clone"`` the active instance's database does, and
this file is what the broker and the plans read of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ovs_hotswap.config import AbsolutePath, Config
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict


class VmPort(Strict):
    """One ``dpdkvhostuserclient`` port. ``name``: of the interface. ``socket``: its ``vhost-server-path``, where QEMU
    listened before the broker took this path over; then QEMU's own socket is ``qemu_socket``. ``queues``: queue pairs.
    ``mtu``: the longest IP packet, in bytes; ``None`` leaves it to the switch (1500)."""

    name: Annotated[str, Field(min_length=1)]
    bridge: str
    ofport: Annotated[int, Field(ge=1, le=65279)]
    socket: AbsolutePath
    queues: Annotated[int, Field(ge=1, le=128)] = 1
    mtu: Annotated[int, Field(ge=68, le=65535)] | None = None

    @property
    def qemu_socket(self) -> Path:
        """The name that QEMU's socket has while the broker listens at ``socket``."""
        return self.socket.with_name(f"{self.socket.name}.qemu")


class VmPorts(Strict):
    """The contents of the file."""

    ports: tuple[VmPort, ...] = ()


def read_ports(config: Config) -> tuple[VmPort, ...]:
    """Return the ports; none if nothing was taken over yet. Raises ConfigError if the file cannot be read."""
    try:
        return VmPorts.model_validate_json(config.ports_file.read_text()).ports
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{config.ports_file}: {error}", hint="`ovs-hotswap check` reads the ports of the active instance again"
        ) from error


def write_ports(config: Config, system: System, ports: tuple[VmPort, ...]) -> None:
    """Record the ports; the first record of a host makes its directory. Raises HostError."""
    with files(config.ports_file):
        config.ports_file.parent.mkdir(parents=True, exist_ok=True)
    system.write_atomic(config.ports_file, VmPorts(ports=ports).model_dump_json(indent=1))

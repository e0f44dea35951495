"""Paths of the configuration that the installed units do not see."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.config import Config
from ovs_hotswap.service.systemctl import Unit

BROKER = "ovs-hotswap-broker.service"


def hidden_paths(config: Config, units: Collection[Unit]) -> Iterator[tuple[str, str]]:
    """Each key whose path one of the units does not see, with the reason. Raises CommandError."""
    for unit in units:
        if not unit.serves(config):
            continue
        hidden = unit.hidden_directories()
        for key, value in _used_by(config, unit.name).items():
            fixed = value.partition("{")[0]  # the part that is the same for every VM
            place = os.path.realpath(fixed if fixed.endswith("/") else os.path.dirname(fixed))
            for directory, setting in hidden.items():
                if _below(value, directory) or _below(place, directory):
                    yield key, f"{unit.name} does not see {directory} of the host ({setting}); take another directory"
                    break


def out_of_reach(unit: Unit, directory: str) -> str | None:
    """Why a unit's processes cannot make a socket in a directory of the host, in words. Raises CommandError."""
    place = os.path.realpath(directory)
    for hidden, setting in unit.hidden_directories().items():
        if _below(place, hidden):
            return f"{unit.name} does not see {hidden} of the host ({setting})"
    places = unit.writes_below()
    if places is not None and not any(_below(place, os.path.realpath(each)) for each in places):
        return f"{unit.name} cannot write to {directory} (ProtectSystem=)"
    return None


def _used_by(config: Config, unit: str) -> dict[str, str]:
    used = {"overlay": str(config.overlay)}
    if config.backend is BackendMode.QEMU_DUAL:
        used |= {"qemu.monitor": config.qemu.monitor}
    elif unit == BROKER:
        used |= {"broker.qemu_socket": config.broker.qemu_socket}
    return used


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")

"""The operator's settings on the active instance, kept for the next boot.

An instance's database is in the run directory and is created again whenever the instance is started. The settings that
are kept here belong to the host and not to a side. They are written whenever the active instance's settings are read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ovs_hotswap.config import Config
from ovs_hotswap.model import Side
from ovs_hotswap.switch.settings import INTERFACE, Settings, as_json, from_json
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 24


class Kept(Strict, extra="ignore"):
    """The content of the file. ``side``: the side that had the settings; affinities name its cores. ``settings``: as
    ``as_json`` gives them. ``pmd_sleep_us``: the PMD sleep that the operator set, in microseconds. Fields that a newer
    version writes in addition are ignored."""

    side: Side
    settings: list[list[Any]]
    pmd_sleep_us: int | None = None

    @property
    def found(self) -> Settings:
        return from_json(self.settings)


def path_of(config: Config) -> Path:
    return config.state_dir / "settings.json"


def read(config: Config) -> Kept | None:
    """The settings that were kept; ``None`` if there are none, or the file cannot be read, which is logged."""
    path = path_of(config)
    try:
        with path.open() as file:
            return Kept.model_validate_json(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        log.warning("%s: cannot be read, so no settings are given to the instance: %s", path, error)
        return None


def write(config: Config, system: System, side: Side, found: Settings, pmd_sleep_us: int | None) -> bool:
    """Keep the settings, and return whether the file has changed. Raises HostError."""
    kept = Kept(side=side, settings=as_json(found), pmd_sleep_us=pmd_sleep_us)
    before = read(config)
    if before == kept or (before is None and not found and pmd_sleep_us is None):
        return False
    with files(path_of(config)):
        config.state_dir.mkdir(parents=True, exist_ok=True)
    system.write_atomic(path_of(config), kept.model_dump_json() + "\n")
    return True


def set_aside(config: Config) -> Path | None:
    """Rename the file, so that settings that could not be given to an instance are not overwritten. Returns its new
    path; ``None`` if it cannot be renamed, which is logged."""
    path = path_of(config)
    aside = path.with_suffix(".not-given.json")
    try:
        path.replace(aside)
    except OSError as error:
        log.warning("%s: cannot be renamed: %s", path, error)
        return None
    return aside


def port_options(config: Config, name: str) -> dict[str, str]:
    """The options that an interface of the uplink will be given. An instance needs memory for the rings that they ask
    for."""
    kept = read(config)
    found = {} if kept is None else kept.found
    return {key.key: str(value) for key, value in found.items() if key[:3] == (INTERFACE, name, "options")}

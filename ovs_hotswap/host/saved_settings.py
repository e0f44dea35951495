"""The operator's settings on the active instance, as they are given to it after the next boot.

An instance's database is in the run directory, and made anew whenever the instance is started. What is kept here is of
the host and not of a side, and written by whoever reads the active instance's settings anyway.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ovs_hotswap.config import Config
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.ports import UPLINK
from ovs_hotswap.switch.settings import INTERFACE, Settings, as_json, from_json
from ovs_hotswap.system import System, files
from ovs_hotswap.toml_file import Strict

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 24


class Kept(Strict, extra="ignore"):
    """``side``: whose they were, by whose cores affinities are. ``settings``: as ``as_json`` gives them.
    ``pmd_sleep_us``: the one that the operator set. What a newer version writes in addition is passed over."""

    side: Side
    settings: list[list[Any]]
    pmd_sleep_us: int | None = None

    @property
    def found(self) -> Settings:
        return from_json(self.settings)


def path_of(config: Config) -> Path:
    return config.state_dir / "settings.json"


def read(config: Config) -> Kept | None:
    """``None`` if none were kept, or what is there cannot be read."""
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
    """Keep them; return whether they were others before. Raises HostError."""
    kept = Kept(side=side, settings=as_json(found), pmd_sleep_us=pmd_sleep_us)
    before = read(config)
    if before == kept or (before is None and not found and pmd_sleep_us is None):
        return False
    with files(path_of(config)):
        config.state_dir.mkdir(parents=True, exist_ok=True)
    system.write_atomic(path_of(config), kept.model_dump_json() + "\n")
    return True


def set_aside(config: Config) -> Path | None:
    """Keep what could not be given to an instance from being written over; where it is now."""
    path = path_of(config)
    aside = path.with_suffix(".not-given.json")
    try:
        path.replace(aside)
    except OSError as error:
        log.warning("%s: cannot be renamed: %s", path, error)
        return None
    return aside


def uplink_options(config: Config) -> dict[str, str]:
    """Those that the uplink's interface will be given: the instance needs memory for its rings."""
    kept = read(config)
    found = {} if kept is None else kept.found
    return {key.key: str(value) for key, value in found.items() if key[:3] == (INTERFACE, UPLINK, "options")}

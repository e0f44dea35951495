"""The broker's configuration: which values a reload applies, and which wait for another broker."""

from __future__ import annotations

from collections.abc import Callable

from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import Change, changes, values
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side

_BROKER = {"fence_ms", "withhold_features", "capture_mb", "qemu_socket"}
_PLACES = {"run_dir", "state_dir", "backend"}  # what a broker depends on, besides [broker]


class Settings:
    """The configuration that is in use. ``load`` reads the file again; without it no change is applied.

    ``differing``: the changes in the file that wait for another broker. ``fault``: why the file could not be read;
    until it can be, the configuration read before is in force.
    """

    def __init__(self, config: Config, load: Callable[[], Config] | None = None) -> None:
        self.config, self._load = config, load
        self.differing: list[Change] = []
        self.fault: str | None = None

    def read(self) -> None:
        """Read the file again, and apply what a running broker can apply of it."""
        if self._load is None:
            return
        try:
            found = self._load()
        except ConfigError as error:
            self.fault = error.message
            return
        self.fault = None
        self.config = followed(self.config, found)
        self.differing = [each for each in changes(values(self.config), values(found))
                          if each.key in _PLACES or each.key.startswith("broker.")]  # fmt: skip

    @property
    def fence_s(self) -> float:
        return self.config.broker.fence_ms / 1e3

    @property
    def pmd_cores(self) -> list[int]:
        """Return the cores of the PMD threads of both instances."""
        return [core for side in Side for core in self.config.instance(side).pmd_cores]


def followed(config: Config, found: Config) -> Config:
    """Return ``config`` with those values of ``found`` that a running broker can apply."""
    broker = config.broker.model_copy(update={name: getattr(found.broker, name) for name in _BROKER})
    sides = {side.value: config.instance(side).model_copy(update={"pmd_cores": found.instance(side).pmd_cores})
             for side in Side}  # fmt: skip
    instances = config.instances.model_copy(update=sides)
    return config.model_copy(update={"overlay": found.overlay, "broker": broker, "instances": instances})

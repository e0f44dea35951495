"""The broker's configuration: what a reload follows, and what only another broker does."""

from __future__ import annotations

from collections.abc import Callable

from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import Change, changes, values
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.model import Side

_BROKER = {"fence_ms", "withhold_features", "capture_mb", "qemu_socket"}
_PLACES = {"run_dir", "state_dir", "backend"}  # besides those of [broker], what a broker goes by


class Settings:
    """``load`` reads the file again; without it nothing is followed. ``differing``: what of the file waits for another
    broker; ``fault``: why it could not be read, while the one before is in force."""

    def __init__(self, config: Config, load: Callable[[], Config] | None = None) -> None:
        self.config, self._load = config, load
        self.differing: list[Change] = []
        self.fault: str | None = None

    def read(self) -> None:
        """Follow the file."""
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
        """Of both instances."""
        return [core for side in Side for core in self.config.instance(side).pmd_cores]


def followed(config: Config, found: Config) -> Config:
    """``config`` with what a running broker can take of ``found``."""
    broker = config.broker.model_copy(update={name: getattr(found.broker, name) for name in _BROKER})
    sides = {side.value: config.instance(side).model_copy(update={"pmd_cores": found.instance(side).pmd_cores})
             for side in Side}  # fmt: skip
    instances = config.instances.model_copy(update=sides)
    return config.model_copy(update={"overlay": found.overlay, "broker": broker, "instances": instances})

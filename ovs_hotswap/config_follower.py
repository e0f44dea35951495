"""Follows the part of the configuration file that takes effect while daemons run: the table [flowlog]."""

from __future__ import annotations

import logging
from pathlib import Path

from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.toml_file import Stamp, stamp_of

log = logging.getLogger(__name__)


class ConfigFollower:
    """``config`` is the configuration with which this was made, with the flow log that the file has now. While the file
    is faulty or missing, the flow log stays as it was; this is logged once for each change of the file."""

    def __init__(self, config: Config, path: Path | None) -> None:
        """``path``: the configuration file; ``None`` follows nothing."""
        self._config, self._path = config, path
        self._stamp: Stamp | None = None  # the file may have changed since it was read

    @property
    def config(self) -> Config:
        if self._path is None or (stamp := stamp_of(self._path)) == self._stamp:
            return self._config
        self._stamp = stamp
        try:
            found = load_config(self._path)
        except ConfigError as error:
            log.warning("the flow log stays as it was: %s", error.message)
        else:
            self._config = self._config.model_copy(update={"flowlog": found.flowlog})
        return self._config

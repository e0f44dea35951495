"""Reads the configuration: one TOML file, validated as a whole."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap import config_rules
from ovs_hotswap.config import RENAMED, Config
from ovs_hotswap.toml_file import Warn, load_toml, refuse, warn_in_log

_EXAMPLE = "ovs-hotswap config example"
_OTHERWISE = "; `ovs-hotswap config init` writes one for a host whose bridges others program"


def load_config(path: Path, warn: Warn = warn_in_log) -> Config:
    """Read the configuration. ``warn`` is called with a text for each key that is written with its earlier name.

    Raises ConfigError, which lists every fault: those of single values, or if there are none, those of values that
    contradict each other.
    """
    config = load_toml(path, Config, _EXAMPLE, RENAMED, warn, otherwise=_OTHERWISE)
    refuse(path, config_rules.faults(config), _EXAMPLE)
    return config

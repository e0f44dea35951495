"""Finds what differs between a configuration that is in use and the configuration in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ovs_hotswap.config import Config

Values = Mapping[str, Any]
FOLLOWED = ("flowlog.",)
"""The beginnings of keys that what runs follows by itself (``config_follower``), so that they never differ for long."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key that has different values. ``key`` has the names of its tables before it, such as ``broker.fence_ms``."""

    key: str
    in_use: Any
    configured: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.configured!r} is configured, {self.in_use!r} in use"


def values(config: Config) -> dict[str, Any]:
    """Return every value by its key, as plain JSON."""
    return dict(_values(config.model_dump(mode="json"), ""))


def _values(table: Values, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and name != "other_config":
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changes(in_use: Values, configured: Values) -> list[Change]:
    """Compare the ``values`` of two configurations. Keys that only one version of this program knows are ignored."""
    both = sorted(key for key in in_use.keys() & configured.keys() if not key.startswith(FOLLOWED))
    return [Change(key, in_use[key], configured[key]) for key in both if in_use[key] != configured[key]]

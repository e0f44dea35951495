"""What differs between a configuration that is in use and the one in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ovs_hotswap.config import Config

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """``key``: as in the file, such as ``broker.fence_ms``."""

    key: str
    in_use: Any
    configured: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.configured!r} is configured, {self.in_use!r} in use"


def values(config: Config) -> dict[str, Any]:
    """Every value by its key, as plain JSON."""
    return dict(_values(config.model_dump(mode="json"), ""))


def _values(table: Values, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and name != "other_config":
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changes(in_use: Values, configured: Values) -> list[Change]:
    """By ``values`` of both; of keys that only one version of this program knows nothing is said."""
    both = sorted(in_use.keys() & configured.keys())
    return [Change(key, in_use[key], configured[key]) for key in both if in_use[key] != configured[key]]

"""Values of columns as OVSDB's protocol writes them (RFC 7047, 5.1), read and made. This module is pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def members(value: Any) -> list[Any]:
    """Return the members of a set; one with a single member is written as that member."""
    return list(value[1]) if isinstance(value, list) and value and value[0] == "set" else [value]


def uuids(value: Any) -> list[str]:
    """Return the UUIDs in a set of references."""
    return [each[1] for each in members(value)]


def pairs(value: Any) -> dict[str, str]:
    """Return a map from strings to strings."""
    return {key: held for key, held in value[1]}


def map_of(values: Mapping[str, str]) -> list[Any]:
    """Return the column's value for a map from strings to strings."""
    return ["map", [[key, value] for key, value in sorted(values.items())]]

"""Reads the events that the watchdog has written (docs/json.md), of which each is a JSON object with a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ovs_hotswap.config import Config

_TAIL = 1 << 16  # bytes of the events that are read for the newest ones


def events_path(config: Config) -> Path:
    return config.state_dir / "events.jsonl"


def older_events_path(config: Config) -> Path:
    return config.state_dir / "events.1.jsonl"


def last_events(config: Config, count: int) -> list[dict[str, Any]]:
    """The newest ``count`` events, oldest first. A line that a crash left half written is skipped."""
    lines = [line for path in (older_events_path(config), events_path(config)) for line in _tail(path)]
    return parsed(lines)[-count:]


def parsed(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The events in lines of the file, without lines that are none."""
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def _tail(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().splitlines()
    except OSError:
        return []

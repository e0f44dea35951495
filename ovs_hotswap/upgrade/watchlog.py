"""What the watchdog leaves for others to read: its state (``watch.json`` in run_dir) and its events, one JSON object a
line (``events.jsonl`` in state_dir). Times are seconds since the epoch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovs_hotswap import sd
from ovs_hotswap.config import Config
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.failover import Backoff

_TAIL = 1 << 16  # bytes of the events that are read for the newest ones


def state_path(config: Config) -> Path:
    return config.run_dir / "watch.json"


def events_path(config: Config) -> Path:
    return config.state_dir / "events.jsonl"


def lock_path(config: Config) -> Path:
    return config.run_dir / "watch.lock"


class Board:
    """State and events of the one watchdog that runs; its threads share it."""

    def __init__(self, config: Config, system: System) -> None:
        self._config, self._system = config, system
        self._lock = threading.RLock()
        self._state: dict[str, Any] = {}
        self._backoff = Backoff(config.watch.crash_limit, config.watch.crash_window_s)

    def update(self, **fields: object) -> None:
        """Change the state; it is written when that makes a difference."""
        with self._lock:
            after = {**self._state, **fields}
            if after == self._state:
                return
            self._state = after
            text = json.dumps({**after, "written": self._system.wall()}, default=str)
            self._system.write_atomic(state_path(self._config), text + "\n")
            sd.notify(f"STATUS={status_line(after)}")

    def event(self, kind: str, **fields: object) -> None:
        """Add an event and have it on the disk."""
        line = json.dumps({"time": round(self._system.wall(), 6), "event": kind, **fields}, default=str)
        with self._lock:
            path = events_path(self._config)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as out:
                out.write(line + "\n")
                out.flush()
                os.fsync(out.fileno())

    def failure(self) -> None:
        """Count a failure of an instance."""
        with self._lock:
            before = self._backoff.given_up
            self._backoff = self._backoff.failed(self._system.monotonic())
            if self._backoff.given_up and not before:
                self.event("gave-up", failures=len(self._backoff.failures))
            self.update(failures=len(self._backoff.failures), gave_up=self._backoff.given_up)

    def may_start(self) -> bool:
        with self._lock:
            return self._backoff.may_start(self._system.monotonic())


def status_line(state: Mapping[str, Any]) -> str:
    """The state in one line, as `systemctl status` shows it."""
    parts = [
        f"active {state.get('active') or 'none'}",
        f"{state.get('health') or 'not looked at yet'}",
        f"standby {state.get('standby') or 'none'}: {state.get('keeping') or 'not looked at yet'}",
    ]
    parts += ["gave up"] if state.get("gave_up") else []
    parts += [str(state[key]) for key in ("failover_problem", "problem") if state.get(key)]
    return "; ".join(parts).replace("\n", " ")


def read_state(config: Config) -> dict[str, Any] | None:
    """The state that the last watchdog wrote, running or not; ``None`` if there was none since the last boot."""
    try:
        found = json.loads(state_path(config).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def last_events(config: Config, count: int) -> list[dict[str, Any]]:
    """The newest events, oldest first. A line that a crash left half written is skipped."""
    try:
        with events_path(config).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found[-count:]

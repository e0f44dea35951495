"""What the watchdog writes for others to read: its state (``watch.json`` in run_dir) and its events, one JSON object in
each line (``events.jsonl`` in state_dir). Times are seconds since the epoch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.event_log import events_path as events_path
from ovs_hotswap.host.event_log import last_events as last_events
from ovs_hotswap.host.event_log import older_events_path as older_events_path
from ovs_hotswap.service import sd_notify
from ovs_hotswap.system import System
from ovs_hotswap.watchdog.backoff import Backoff

log = logging.getLogger(__name__)

MOST_EVENTS = 1 << 20  # bytes of one file of events; the file before it is kept
_RESTART_MOST_S = 60.0
_PAUSE_MOST_S, _PAUSE_WINDOW_S = 300.0, 3600.0


def state_path(config: Config) -> Path:
    return config.run_dir / "watch.json"


def lock_path(config: Config) -> Path:
    return config.run_dir / "watch.lock"


_KINDS: Mapping[str, type] = {
    "pid": int, "born": int, "failures": int, "gave_up": bool, "unprotected": list, "not_parked": dict,
    "quarantined": dict, "uplinks": dict, "written": float, "config": dict,
}  # fmt: skip
PROBLEMS = ("failover_problem", "problem", "events_problem")  # fields of the state that are texts for people


class StatusFile:
    """The state and the events of the one watchdog that runs. Its threads share this object.

    State and events are for people, so nothing that is done for the VMs waits for them: a fault of writing is logged
    and not raised. There are three kinds of failures. Instances that die or do not start are counted; after too many of
    them no standby is started. Starting the active instance again when no other one can take the VMs is never given up,
    only tried less often. The same is true of a standby that could not be prepared for another reason.
    """

    def __init__(self, config: Config, system: System) -> None:
        self._config, self._system = config, system
        self._lock = threading.RLock()
        self._state: dict[str, Any] = {}
        window_s = config.watch.crash_window_s
        self._standbys = Backoff(config.watch.crash_limit, window_s)
        self._restarts = Backoff(None, window_s, most_s=_RESTART_MOST_S)
        self._pauses = Backoff(None, _PAUSE_WINDOW_S, most_s=_PAUSE_MOST_S)
        self._unwritten = self._torn = False

    def update(self, **fields: object) -> None:
        """Change fields of the state, and write the state if it has changed."""
        with self._lock:
            after = {**self._state, **fields}
            if after == self._state and not self._unwritten:
                return
            self._state = after
            sd_notify.tell(f"STATUS={status_line(after)}")
            text = json.dumps({**after, "written": self._system.wall()}, default=str)
            try:
                self._system.write_atomic(state_path(self._config), text + "\n")
            except (OSError, HotswapError) as error:
                if not self._unwritten:
                    log.error("%s cannot be written: %s", state_path(self._config), error)
                self._unwritten = True
            else:
                self._unwritten = False

    def event(self, kind: str, **fields: object) -> None:
        """Write an event to the disk, or to the log if it cannot be written."""
        line = json.dumps({"time": round(self._system.wall(), 6), "event": kind, **fields}, default=str)
        with self._lock:
            path = events_path(self._config)
            with contextlib.suppress(OSError):  # there is no file yet; or it stays and grows
                if path.stat().st_size > MOST_EVENTS:
                    path.replace(older_events_path(self._config))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as out:
                    out.write(("\n" if self._torn else "") + line + "\n")
                    out.flush()
                    os.fsync(out.fileno())
            except OSError as error:
                self._torn = True
                log.error("%s cannot be written: %s; the event is %s", path, error.strerror, line)
                self.update(events_problem=f"{path}: {error.strerror}")
            else:
                self._torn = False
                self.update(events_problem=None)

    def failure(self) -> None:
        """Count an instance that died, or did not start."""
        with self._lock:
            before = self._standbys.given_up
            self._standbys = self._standbys.failed(self._system.monotonic())
            if self._standbys.given_up and not before:
                self.event("gave-up", failures=len(self._standbys.failures))
            self.update(failures=len(self._standbys.failures), gave_up=self._standbys.given_up)

    def explained(self) -> None:
        """Forget the failures, as their cause has been found and removed."""
        with self._lock:
            self._standbys = replace(self._standbys, failures=(), given_up=False)
            self._restarts = replace(self._restarts, failures=())
            self.update(failures=0, gave_up=False)

    def restarted(self) -> None:
        """Note that the active instance is about to be started again, which delays the next restart."""
        with self._lock:
            self._restarts = self._restarts.failed(self._system.monotonic())

    def pause(self) -> None:
        """Note that a standby could not be prepared for a reason other than a fault of an instance, which delays the
        next attempt."""
        with self._lock:
            self._pauses = self._pauses.failed(self._system.monotonic())

    def prepared(self) -> None:
        with self._lock:
            self._pauses = replace(self._pauses, failures=())

    def may_start(self, within_s: float = 0.0) -> bool:
        with self._lock:
            then = self._system.monotonic() + within_s
            return self._standbys.may_start(then) and self._pauses.may_start(then)

    def may_restart(self, within_s: float = 0.0) -> bool:
        with self._lock:
            return self._restarts.may_start(self._system.monotonic() + within_s)


def status_line(state: Mapping[str, Any]) -> str:
    """The state in one line, as `systemctl status` shows it."""
    parts = [
        f"active {state.get('active') or 'none'}",
        f"{state.get('health') or 'not looked at yet'}",
        f"standby {state.get('standby') or 'none'}: {state.get('keeping') or 'not looked at yet'}",
    ]
    parts += ["gave up"] if state.get("gave_up") else []
    parts += [str(state[key]) for key in PROBLEMS if state.get(key)]
    return "; ".join(parts).replace("\n", " ")


def read_state(config: Config) -> dict[str, Any] | None:
    """The state that the last watchdog wrote, whether it runs or not; ``None`` if none has run since the last boot.
    Values of an unexpected type, for example from another version, are left out."""
    try:
        found = json.loads(state_path(config).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    state: dict[str, Any] = {
        key: value for key, value in found.items() if isinstance(value, _KINDS.get(key, str) | None)
    }
    uplinks = state.get("uplinks") or {}
    return state | {"uplinks": {side: seen for side, seen in uplinks.items()
                                if isinstance(seen, dict) and {"severity", "text"} <= seen.keys()}}  # fmt: skip

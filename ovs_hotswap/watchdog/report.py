"""The document of `watch status`: what a running watchdog has last written about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.config_changes import changes, values
from ovs_hotswap.model import Severity
from ovs_hotswap.system import System
from ovs_hotswap.watchdog import status_file

_KEYS = ("active", "standby", "health", "reason", "keeping", "unprotected", "not_parked", "quarantined",
         *status_file.PROBLEMS, "failures", "gave_up", "uplinks")  # fmt: skip


def read(config: Config, system: System) -> dict[str, Any]:
    """The fields of `watch status` in docs/json.md, without the events."""
    found = status_file.read_state(config) or {}
    pid = found.get("pid")
    running = pid is not None and "watch" in system.cmdline(pid) and system.is_still(pid, found.get("born"))
    passes = _severity(found, found.get("standby")) != Severity.ERROR
    ready = running and found.get("standby") is not None and not found.get("unprotected") and passes
    differing = changes(found.get("config") or {}, values(config)) if running else []
    return {"mode": config.watch.mode, "running": running, "ready": ready, "differing": differing,
            **{key: found.get(key) if running else None for key in _KEYS}}  # fmt: skip


def _severity(state: Mapping[str, Any], side: str | None) -> str | None:
    """The severity of the last finding about a side's uplink; ``None`` if there is none."""
    found = (state.get("uplinks") or {}).get(side) or {}
    severity = found.get("severity")
    return None if severity is None else str(severity)

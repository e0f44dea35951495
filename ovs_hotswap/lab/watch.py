"""Runs a watchdog with its standby in a lab."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.host import standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.watchdog import status_file

_READY_S = 90.0


@contextlib.contextmanager
def watchdog(host: Host, config_file: Path, log: Path) -> Iterator[int]:
    """Run a watchdog, with a ready standby, as long as the block lasts; the value is its pid. Raises SwitchError."""
    argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(config_file), "watch", "run"]
    pid = host.system.spawn(argv, log=log)
    try:
        wait_protected(host)
        yield pid
    finally:
        host.system.kill(pid)


def wait_protected(host: Host, active: Side | None = None) -> None:
    """Wait until there is a standby with every VM parked on it, beside ``active`` if given. Raises SwitchError."""

    def protected() -> bool:
        now = host.recorded_active()
        if now is None or (active is not None and now is not active) or standby.warm(host, now.other) is None:
            return False
        return not any(vm.unprotected(now.other) for vm in host.backends.vms())

    host.wait(protected, _READY_S, lambda: f"no standby: {status_file.read_state(host.config)}")

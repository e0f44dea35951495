"""Rotates Open vSwitch's logs: they are in ``run_dir``, which is in memory, and must not fill it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ovs_hotswap.errors import BusyError, HotswapError, StateUnknown
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.switch.paths import older
from ovs_hotswap.switch.unixctl import appctl

log = logging.getLogger(__name__)

LIMIT = 16 << 20  # bytes, after which a log is renamed; so the two files take about twice as much
MOST = 4 * LIMIT  # bytes, after which it is renamed also while an upgrade waits to be resumed
_EVERY_S = 60.0
_ANSWER_S = 1.0


def _reopen(control: Path) -> None:
    appctl(control, "vlog/reopen", timeout=_ANSWER_S)


class LogWatch:
    """Rotates the logs. The keeper calls ``look`` in every turn. ``reopen`` makes the daemon of a control socket open a
    new log; ``journals`` finds the journal of an upgrade."""

    def __init__(self, reopen: Callable[[Path], None] = _reopen, journals: type[Journals] = Journals) -> None:
        self._reopen = reopen
        self._journals = journals
        self._at = float("-inf")
        self._told: set[Path] = set()

    def look(self, host: Host) -> None:
        """Rotate the logs if it is time. Never raises for a fault of the host."""
        now = host.system.monotonic()
        if now - self._at < _EVERY_S:
            return
        self._at = now
        self.rotate(host)

    def rotate(self, host: Host) -> list[Path]:
        """Rename the logs that are too long, and return which. While an upgrade is under way, no log is renamed; while
        one waits to be resumed, only a log of ``MOST``: at its end the upgrade looks for what was logged since it
        began. Never raises for a fault of the host."""
        renamed = []
        for side in Side:
            instance = host.instances[side]
            paths = instance.paths
            for pid, path, control in (
                (instance.pid, paths.log, paths.vswitchd_ctl),
                (instance.database_pid, paths.ovsdb_log, paths.ovsdb_ctl),
            ):
                if self._look(host, pid, path, control):
                    renamed.append(path)
        return renamed

    def _look(self, host: Host, pid: Callable[[], int | None], path: Path, control: Path) -> bool:
        renamed = False
        try:
            if _due(path) and pid() is not None:
                with host.lock():
                    # Another process may have renamed the log since: the watchdog and a command both look at it.
                    if _due(path, LIMIT if self._finished(host) else MOST):
                        self._rotate(path, control)
                        renamed = True
            self._told.discard(path)
        except BusyError:
            pass  # the next look tries it again
        except (OSError, HotswapError) as error:
            if path not in self._told:
                log.warning("%s is not rotated: %s", path, error)
            self._told.add(path)
        return renamed

    def _finished(self, host: Host) -> bool:
        """Whether no upgrade waits to be resumed. One whose journal cannot be read may do so."""
        try:
            return self._journals(host.config.state_dir, host.system).read() is None
        except (OSError, StateUnknown):
            return False

    def _rotate(self, path: Path, control: Path) -> None:
        if path.exists():
            path.rename(older(path))
        self._reopen(control)  # until then, the daemon writes to the file that was renamed


def _due(path: Path, limit: int = LIMIT) -> bool:
    """Whether the log is too long, or its daemon was asked to open a new one and has not done so."""
    try:
        return path.stat().st_size > limit
    except FileNotFoundError:
        return older(path).exists()

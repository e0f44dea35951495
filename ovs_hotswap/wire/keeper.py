"""Brings wire mode's flows back at once when another program removes them, as a controller does that clears a table.

``ovs-ofctl monitor`` reports each flow of ours that is removed (the Nicira extension for flow monitors, ovs-ofctl(8));
without a flow of ours a VM on the new switch has no way out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import HotswapError, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.switch.openflow import WITH_BUNDLES
from ovs_hotswap.system import System, files
from ovs_hotswap.wire.mirror_flows import COOKIES
from ovs_hotswap.wire.mirrors import MirrorWire

_LOOK_S = 0.02
_REMOVED = tuple(f"cookie={cookie:#x}".encode() for cookie in COOKIES)


@dataclass(slots=True)
class _Monitor:
    """An ``ovs-ofctl monitor`` of one bridge, with the file of its reports and how much of it was read."""

    side: Side
    bridge: str
    pid: int
    path: Path
    read: int = 0

    def reports_a_removal(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(self.read)
            lines = file.read().rpartition(b"\n")[0]
        self.read += len(lines)
        return any(cookie in lines for cookie in _REMOVED)


class Keeper:
    """Watches the bridges of both switches, from ``start`` to ``stop``, or in a block of ``watching``. Ports must not
    be removed in that time, nor wire mode be closed; modes may change. ``repaired`` counts the repairs. ``failed`` is
    called with what could not be watched or repaired; it is not tried again."""

    def __init__(
        self, wire: MirrorWire, system: System, directory: Path, failed: Callable[[HotswapError], None]
    ) -> None:
        self._wire, self._system, self._directory, self._failed = wire, system, directory, failed
        self._end = threading.Event()
        self._stack = contextlib.ExitStack()
        self.repaired = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the block takes. Raises what ``start`` raises."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Raises SwitchError if the bridges are not known, and HostError or CommandError if they cannot be watched."""
        self._end.clear()
        with contextlib.ExitStack() as stack:
            monitors = [
                stack.enter_context(self._monitor(side, bridge)) for side in Side for bridge in self._wire.bridges(side)
            ]
            watch = threading.Thread(target=self._watch, args=(monitors,), name="wire-keeper", daemon=True)
            watch.start()
            stack.callback(watch.join)
            stack.callback(self._end.set)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """Return when nothing is repaired any longer. It may be repeated, and is no error before ``start``."""
        self._stack.close()

    @contextlib.contextmanager
    def _monitor(self, side: Side, bridge: str) -> Iterator[_Monitor]:
        path = self._directory / f"wire-{side}-{bridge}.monitor"
        with files(path):
            path.unlink(missing_ok=True)
        what = "watch:!initial,!add,!modify,table=0"
        # Without --unixctl its control socket would be among those of the distribution's switch.
        control = f"--unixctl={path.with_suffix('.ctl')}"
        argv = ["ovs-ofctl", "-O", WITH_BUNDLES, control, "monitor", self._wire.target(side, bridge), what]
        pid = self._system.spawn(argv, log=path)
        try:
            yield _Monitor(side, bridge, pid, path)
        finally:
            self._system.kill(pid)
            with files(path):
                path.unlink(missing_ok=True)

    def _watch(self, monitors: list[_Monitor]) -> None:
        while monitors and not self._end.wait(_LOOK_S):
            for monitor in list(monitors):
                try:
                    if monitor.reports_a_removal():
                        self._repair(monitor.side)
                    if not self._system.alive(monitor.pid):
                        raise SwitchError(
                            f"bridge {monitor.bridge} of instance {monitor.side} can no longer be watched"
                        )
                except HotswapError as error:
                    monitors.remove(monitor)
                    self._failed(error)

    def _repair(self, side: Side) -> None:
        if not self._wire.state(side).complete:
            self._wire.repair(side)
            self.repaired += 1

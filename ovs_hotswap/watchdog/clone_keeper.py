"""Starts the active instance of a host that others program again when it has ended, with what was programmed on it.

No standby is kept there: only an upgrade makes a copy of such a switch. While an upgrade is unfinished, nothing is done
here, because only the upgrade knows which instance has what. The distribution's switch is left to its own units.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import kept_flows
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_with_flows
from ovs_hotswap.model import Release, Side
from ovs_hotswap.watchdog.culprit_search import Poison
from ovs_hotswap.watchdog.restarting import mend, restart
from ovs_hotswap.watchdog.standby_plan import Task, next_restart_task
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)

_EVERY_S = 10.0
_SHARE = 50  # reading takes at most this part of the time, so that the switch's main thread answers others


class CloneKeeper:
    """What the keeper does on a host that others program."""

    def __init__(self, board: StatusFile, poison: Poison) -> None:
        self._board, self._poison = board, poison
        self._next = float("-inf")
        self._forwards: int | None = None  # the process that is known not to wait for its flows
        self._told = ""

    def turn(self, host: Host, active: Side, unfinished: Callable[[], bool]) -> Task:
        """Do what the active instance needs next, and return it. ``unfinished``: whether an upgrade is. Raises
        BusyError while a command works with the instances, and any fault of the task."""
        if (upgrading := unfinished()) or not host.instances[active].ours:
            keeping = "an upgrade is not finished" if upgrading else "the distribution's switch is active"
            self._board.update(active=active, standby=None, keeping=keeping)
            return Task.NOTHING
        if host.instances[active].pid() is not None:
            self._poison.step(host, alive=True)
        if self._next_task(host, active) is Task.NOTHING:
            self._keep_flows(host, active)
            return Task.NOTHING
        with host.lock():
            if host.recorded_active() is not active or unfinished():
                return Task.NOTHING
            task = self._next_task(host, active)
            self._board.update(keeping=str(task))
            match task:
                case Task.MEND:
                    mend(host, active, self._board)
                case Task.RESTORE:
                    self._report(kept_flows.go_on(host, active))
                case Task.RESTART:
                    restart(host, active, self._board, self._poison, partial(self._start, host, active))
        return task

    def _start(self, host: Host, side: Side, release: Release) -> None:
        self._report(start_with_flows(host, side, release))

    def _keep_flows(self, host: Host, active: Side) -> None:
        """Keep the flows of the active instance, if it is time and it runs. A switch that does not answer is asked
        again later, and nothing is raised."""
        begun = host.system.monotonic()
        if begun < self._next or host.instances[active].pid() is None:
            return
        try:
            kept_flows.keep(host, active)
            self._told = ""
        except HotswapError as error:
            self._tell(f"the flows of instance {active} are not kept: {error.message}")
        now = host.system.monotonic()
        self._next = now + max(_EVERY_S, (now - begun) * _SHARE)

    def _next_task(self, host: Host, active: Side) -> Task:
        instance = host.instances[active]
        runs = instance.pid() is not None
        self._board.update(active=active, standby=None, keeping="no standby is kept")
        return next_restart_task(
            runs=runs,
            broken=runs and instance.lacks_database(),
            waits=runs and self._waits(host, active),
            may_restart=self._poison.under_way or self._board.may_restart(),
        )

    def _waits(self, host: Host, active: Side) -> bool:
        """Whether the active instance waits for its flows. Each process is asked until it does not."""
        pid = host.instances[active].pid()
        if pid == self._forwards:
            return False
        try:
            found = kept_flows.waits(host, active)
        except HotswapError as error:
            self._tell(f"whether instance {active} waits for its flows is not known: {error.message}")
            return False
        if not found:
            self._forwards, self._next = pid, float("-inf")
        return found

    def _report(self, lacking: Sequence[str]) -> None:
        for text in lacking:
            log.warning("%s", text)
        if lacking:
            self._board.event("flows-lost", cause="; ".join(lacking))

    def _tell(self, text: str) -> None:
        if text != self._told:
            log.warning("%s", text)
        self._told = text

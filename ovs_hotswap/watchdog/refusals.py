"""The VMs that the standby cannot take, the reasons, and when each is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.watchdog.backoff import Backoff
from ovs_hotswap.watchdog.status_file import StatusFile

_RETRY_S, _RETRY_MOST_S, _WINDOW_S = 10.0, 300.0, 3600.0


class Refusals:
    """The VMs that the standby cannot take, each with the reason. Each is tried again, less and less often: an attempt
    holds up the others, and perhaps only the guest can repair the cause."""

    def __init__(self, board: StatusFile, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock
        self._why: dict[str, str] = {}
        self._tries: dict[str, Backoff] = {}

    def take(self, vms: Iterable[VmStatus], refused: Mapping[str, str]) -> None:
        """Take the result of an attempt to park ``vms``. ``refused``: the VMs that were not parked, and why."""
        for name in (vm.name for vm in vms):
            before = self._tries.pop(name, Backoff(None, _WINDOW_S, _RETRY_S, most_s=_RETRY_MOST_S))
            if name not in refused:
                self._why.pop(name, None)
                continue
            self._tries[name] = before.failed(self._clock())
            if self._why.get(name) != refused[name]:
                self._board.event("not-parked", vm=name, cause=refused[name])
            self._why[name] = refused[name]
        self._board.update(not_parked=dict(self._why) or None)

    def of(self, vms: Iterable[VmStatus]) -> list[str]:
        """Select the VMs of ``vms`` that were refused."""
        return [vm.name for vm in vms if vm.has_guest and vm.name in self._why]

    def due(self, names: Iterable[str]) -> list[str]:
        """Select the VMs of ``names`` that may be tried now, each once."""
        now = self._clock()
        return [name for name in dict.fromkeys(names) if name not in self._tries or self._tries[name].may_start(now)]

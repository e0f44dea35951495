"""Finds the VM that ends every instance that serves it (``host.culprit``), and keeps it from both switches."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import culprit
from ovs_hotswap.host.culprit import ON_TRIAL, Inquest
from ovs_hotswap.host.host import Host
from ovs_hotswap.watchdog.status_file import StatusFile

log = logging.getLogger(__name__)


class Poison:
    """The search for the VM that ends the instances. Any thread may call ``died`` and ``serves``; only the keeper calls
    the rest. ``step`` never raises, because instances are started again without the search. A broker of an earlier
    version has no quarantine, so with such a broker there is no search."""

    def __init__(self, board: StatusFile, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock
        self._told: deque[tuple[str, float]] = deque()
        self._serves_since: float | None = None
        self._lives: list[float] = []  # how long the last instances lived that ended too soon in a row
        self._lived_s: float | None = None  # the longest of enough such lives: a search is to begin
        self._inquest: Inquest | None = None
        self._held: dict[str, str] = {}  # the VMs that we have put in quarantine, and why
        self._first = True
        self._fault: str | None = None

    def died(self, at: float) -> None:
        """Note that the active instance ended ``at`` a time, in monotonic seconds."""
        self._told.append(("died", at))

    def serves(self, since: float) -> None:
        """Note that an active instance, which is a new one, has the VMs ``since`` a time, in monotonic seconds."""
        self._told.append(("serves", since))

    @property
    def under_way(self) -> bool:
        """Whether a search is under way or about to begin. Instances are then expected to end, and no standby is
        started that would end with them."""
        return self._inquest is not None or self._lived_s is not None

    def step(self, host: Host, *, alive: bool) -> None:
        """Take the next step of the search. ``alive``: the active instance serves the VMs that may be served."""
        try:
            self._step(host, alive)
            self._fault = None
        except HotswapError as error:
            if error.message != self._fault:  # the step is tried again each second
                log.warning("which VM ends the instances: %s", error.message)
            self._fault = error.message
        except Exception as error:  # an unforeseen fault must not end the watchdog
            if str(error) != self._fault:
                log.exception("which VM ends the instances")
            self._fault = str(error)

    def _step(self, host: Host, alive: bool) -> None:
        self._hear(min(culprit.SUSPICIOUS_S, host.config.watch.crash_window_s))
        if self._first:
            self._let_go(host)
        if self._lived_s is not None:
            names = [vm.name for vm in host.backends.vms(read=False) if vm.has_guest and vm.can_be_quarantined]
            if names:
                self._inquest = culprit.begin(names, self._lived_s, self._clock())
                self._tell("trial")
            self._lived_s = None
        if self._inquest is None:
            return
        if alive and self._clock() - self._inquest.since >= self._inquest.window_s:
            self._inquest = culprit.survived(self._inquest, self._clock())
            self._tell("trial")
        self._apply(host, self._inquest)
        if self._inquest.closed:
            self._close(self._inquest)

    def _hear(self, suspicious_s: float) -> None:
        while self._told:
            what, at = self._told.popleft()
            if what == "serves":
                self._serves_since = at
                if self._inquest is not None:
                    self._inquest = culprit.resumed(self._inquest, at)
                continue
            if self._inquest is not None:
                self._inquest = culprit.died(self._inquest, at)
                self._tell("trial")
            elif self._serves_since is not None and at - self._serves_since < suspicious_s:
                self._lives.append(at - self._serves_since)
                if len(self._lives) >= culprit.SHORT_LIVES:
                    self._lived_s, self._lives = max(self._lives), []
            else:
                self._lives = []
            self._serves_since = None

    def _tell(self, kind: str) -> None:
        found = self._inquest
        if found is not None and not found.closed:
            self._board.event(kind, vms=list(found.trial), held=len(found.held), deaths=found.deaths)

    def _apply(self, host: Host, found: Inquest) -> None:
        reasons = dict.fromkeys(found.held, ON_TRIAL)
        for name in found.guilty:
            reasons[name] = f"instances ended {found.deaths} times while they served it"
        if reasons == self._held:
            return
        now = {vm.name: vm.quarantine for vm in host.backends.vms(read=False)}
        for name, reason in reasons.items():
            if name in now and now[name] != reason:
                host.backends.quarantine(name, reason)
            self._held[name] = reason
        released = [name for name in self._held if name not in reasons]
        for name in released:
            if now.get(name) == self._held[name]:  # otherwise an operator has decided about the VM
                host.backends.release(name)
            del self._held[name]
        if released and self._inquest is not None:
            self._inquest = culprit.resumed(found, self._clock())

    def _close(self, found: Inquest) -> None:
        for name in found.guilty:
            log.error("VM %s ends every instance that serves it: it is in quarantine", name)
            self._board.event("quarantine", vm=name, deaths=found.deaths, end=f"`ovs-hotswap vm release {name}`")
        if found.guilty:
            self._board.explained()
        else:
            self._board.event("trial-ended", cause="no VM was found to end the instances")
        self._inquest, self._held = None, {}

    def _let_go(self, host: Host) -> None:
        """Release the VMs that an earlier watchdog held back and left behind when it ended."""
        for vm in host.backends.vms(read=False):
            if vm.quarantine == ON_TRIAL:
                host.backends.release(vm.name)
        self._first = False


def quarantined(vms: list[VmStatus]) -> Mapping[str, str] | None:
    """The VMs in quarantine, each with the reason; ``None`` if there are none."""
    return {vm.name: vm.quarantine for vm in vms if vm.quarantine} or None

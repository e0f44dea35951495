"""Find the VM that ends every instance that serves it. Pure.

All VMs move together, so a VM whose guest can end a switch ends one instance after the other. During the search, the
VMs are served group by group and the others are held back. If an instance ends while it serves a group, and lives
without that group, a VM of the group ended it. The group is halved until one VM is left. A VM is found guilty only if
an instance has lived with other VMs, or with no VM at all; otherwise the cause is not a VM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

SUSPICIOUS_S = 60.0  # if an active instance ends within this time, the cause may be a VM that it serves
SHORT_LIVES = 2  # this many in a row, after a first death: VMs are not held back because of a coincidence
_MOST_S = 30.0

ON_TRIAL = "the watchdog looks for the VM that ends the instances"
"""The reason that a VM in quarantine has while the search lasts. A later watchdog, or an upgrade, may release it."""


@dataclass(frozen=True, slots=True)
class Inquest:
    """The state of the search. ``trial``: the group that is served now, together with the ``cleared`` VMs; it is empty
    while ``accused`` is being confirmed. ``suspects``: a group that an instance ended with. ``waiting``: VMs set aside,
    about which nothing is known. ``window_s``: how long a group must be served to be cleared. ``since``: the start of
    the present trial, in monotonic seconds. ``deaths``: instances that have ended so far."""

    window_s: float
    since: float
    suspects: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()
    trial: tuple[str, ...] = ()
    accused: str | None = None
    deaths: int = 0
    closed: bool = False
    explained: bool = True
    """Once the search is ``closed``: whether a VM was the cause of the deaths."""

    @property
    def held(self) -> frozenset[str]:
        """The VMs that no instance is to serve."""
        if self.closed:
            return frozenset(self.guilty)
        accused = () if self.accused is None else (self.accused,)
        return frozenset((*self.suspects, *self.waiting, *self.guilty, *accused)) - set(self.trial)


def begin(vms: Iterable[str], lived_s: float, now: float) -> Inquest:
    """Start a search among ``vms``. The instances that served them ended, ``SHORT_LIVES`` of these within ``lived_s``
    seconds after they were given the VMs."""
    return _next(Inquest(_window(lived_s), now, suspects=tuple(vms), deaths=1 + SHORT_LIVES), now)


def _window(lived_s: float) -> float:
    return min(2 * lived_s + 0.5, _MOST_S)


def died(inquest: Inquest, now: float) -> Inquest:
    """The instance has ended during the trial. The time that this took limits the length of the next trials."""
    window = min(inquest.window_s, _window(now - inquest.since))
    found = replace(inquest, deaths=inquest.deaths + 1, window_s=window)
    if found.accused is not None:  # no VM was on trial
        return replace(found, closed=True, explained=False, guilty=(), accused=None, trial=())
    if not found.suspects:
        return _next(replace(found, suspects=found.waiting, waiting=()), now)
    others = tuple(vm for vm in found.suspects if vm not in found.trial)
    found = replace(found, suspects=found.trial, waiting=found.waiting + others)
    if len(found.trial) > 1:
        return _next(found, now)
    if found.cleared:
        return _next(replace(found, suspects=(), guilty=found.guilty + found.trial), now)
    return replace(found, suspects=(), accused=found.trial[0], trial=(), since=now)


def survived(inquest: Inquest, now: float) -> Inquest:
    """The instance lives, and has served the group for ``window_s``."""
    if inquest.accused is not None:
        return _next(replace(inquest, guilty=(*inquest.guilty, inquest.accused), accused=None), now)
    return _next(
        replace(
            inquest,
            cleared=inquest.cleared + inquest.trial,
            suspects=tuple(vm for vm in inquest.suspects if vm not in inquest.trial),
            waiting=inquest.waiting if inquest.suspects else (),
        ),
        now,
    )


def resumed(inquest: Inquest, now: float) -> Inquest:
    """The trial starts again at ``now``, when the group begins to be served."""
    return replace(inquest, since=now)


def _next(inquest: Inquest, now: float) -> Inquest:
    half = inquest.suspects[: (len(inquest.suspects) + 1) // 2]
    trial = half or inquest.waiting
    return replace(inquest, trial=trial, since=now, closed=not trial, explained=bool(inquest.guilty))

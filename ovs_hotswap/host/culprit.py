"""Which VM ends whatever serves it. Pure.

All VMs move together, so one whose guest can end a switch takes every instance with it, one after the other. They are
served group by group, and the others are held back: an instance that ends while it serves a group, and lives without
it, was ended by a VM of it. The group is halved until one VM is left. A VM is found guilty only if an instance has been
seen to live with others, or with nobody: else it is not the VMs that end the instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

SUSPICIOUS_S = 60.0  # an active instance that lives no longer has ended of what it serves, perhaps
SHORT_LIVES = 2  # so many in a row, after a first death: to hold VMs back needs more than a coincidence
_MOST_S = 30.0

ON_TRIAL = "the watchdog looks for the VM that ends the instances"
"""Why a VM is in quarantine that is held back for the moment: whoever comes next may release it."""


@dataclass(frozen=True, slots=True)
class Inquest:
    """``trial``: the group that is served now, beside the VMs that are ``cleared``; nobody, where ``accused`` is to be
    confirmed. ``suspects``: a group that an instance ended with. ``waiting``: VMs set aside, of which nothing is known.
    ``window_s``: for how long a group must be served to be cleared. ``since``: seconds, monotonic."""

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
    """Whether the VMs are what the instances ended of, once it is ``closed``."""

    @property
    def held(self) -> frozenset[str]:
        """VMs that are to be served by nobody."""
        if self.closed:
            return frozenset(self.guilty)
        accused = () if self.accused is None else (self.accused,)
        return frozenset((*self.suspects, *self.waiting, *self.guilty, *accused)) - set(self.trial)


def begin(vms: Iterable[str], lived_s: float, now: float) -> Inquest:
    """``vms`` were served by instances that ended, ``SHORT_LIVES`` of them within ``lived_s`` after they were given
    them."""
    return _next(Inquest(_window(lived_s), now, suspects=tuple(vms), deaths=1 + SHORT_LIVES), now)


def _window(lived_s: float) -> float:
    return min(2 * lived_s + 0.5, _MOST_S)


def died(inquest: Inquest, now: float) -> Inquest:
    """The instance has ended during the trial; so the next ones need not be longer than for that."""
    window = min(inquest.window_s, _window(now - inquest.since))
    found = replace(inquest, deaths=inquest.deaths + 1, window_s=window)
    if found.accused is not None:  # with nobody on trial
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
    """The group is served from ``now`` on."""
    return replace(inquest, since=now)


def _next(inquest: Inquest, now: float) -> Inquest:
    half = inquest.suspects[: (len(inquest.suspects) + 1) // 2]
    trial = half or inquest.waiting
    return replace(inquest, trial=trial, since=now, closed=not trial, explained=bool(inquest.guilty))

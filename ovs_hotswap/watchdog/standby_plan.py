"""What the warm standby needs next. Pure: the watchdog's keeper looks, and does what is decided here."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Task(enum.StrEnum):
    """What the standby needs next. MEND: the active has lost its database server. SETTLE: the active was a standby,
    give it the operator's values. RESTART: start the active again, as there is nowhere to go. RETURN: VMs that the
    standby took while the active was away."""

    NOTHING = "nothing"
    MEND = "mend"
    SETTLE = "settle"
    RESTART = "restart"
    CLEAN = "clean"
    REPLACE = "replace"
    START = "start"
    PREPARE = "prepare"
    PROGRAM = "program"
    RETURN = "return"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class StandbyState:
    """``dead``: it was started and is gone. ``prepared``: programmed and, once, parked on. ``broken``: the active lacks
    its database server. ``outdated``: the overlay intent is not the one that was programmed. ``may_start``: the
    back-off of starting and preparing a standby allows it; ``may_restart``: that of starting the active again."""

    active_runs: bool
    standby_runs: bool
    broken: bool = False
    standby_dead: bool = False
    settle: bool = False
    right_release: bool = True
    prepared: bool = False
    outdated: bool = False
    strays: tuple[str, ...] = ()
    unparked: tuple[str, ...] = ()
    may_start: bool = True
    may_restart: bool = True


def next_task(state: StandbyState) -> Task:
    """One task at a time: the watchdog looks at the host again after each."""
    if not state.active_runs:
        if state.standby_runs and state.prepared:
            return Task.NOTHING  # which the failover sees to
        return Task.RESTART if state.may_restart else Task.NOTHING
    if state.broken:
        return Task.MEND
    if state.settle:
        return Task.SETTLE
    if state.standby_dead:
        return Task.CLEAN
    if not state.standby_runs:
        return Task.START if state.may_start else Task.NOTHING
    if not state.right_release:
        return Task.REPLACE
    if not state.prepared:
        if state.may_start:
            return Task.PREPARE
        return Task.RETURN if state.strays else Task.NOTHING  # it may stay unprepared for long
    if state.outdated:
        return Task.PROGRAM
    if state.strays:
        return Task.RETURN
    return Task.PARK if state.unparked else Task.NOTHING

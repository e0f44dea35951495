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


def next_task(house: StandbyState) -> Task:
    """One task at a time: the watchdog looks at the host again after each."""
    if not house.active_runs:
        if house.standby_runs and house.prepared:
            return Task.NOTHING  # which the failover sees to
        return Task.RESTART if house.may_restart else Task.NOTHING
    if house.broken:
        return Task.MEND
    if house.settle:
        return Task.SETTLE
    if house.standby_dead:
        return Task.CLEAN
    if not house.standby_runs:
        return Task.START if house.may_start else Task.NOTHING
    if not house.right_release:
        return Task.REPLACE
    if not house.prepared:
        if house.may_start:
            return Task.PREPARE
        return Task.RETURN if house.strays else Task.NOTHING  # which may be its state for long
    if house.outdated:
        return Task.PROGRAM
    if house.strays:
        return Task.RETURN
    return Task.PARK if house.unparked else Task.NOTHING

"""What the warm standby, or the active instance, needs next. Pure: the watchdog's keeper looks, and carries out the
decisions."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Task(enum.StrEnum):
    """What the standby, or the active instance, needs next."""

    NOTHING = "nothing"
    MEND = "mend"  # start the active instance's database server again
    SETTLE = "settle"  # give the active instance, a former standby, the operator's values
    RESTART = "restart"  # start the active instance again, as no other one can take the VMs
    RESTORE = "restore"  # finish such a start: the instance waits for its flows
    CLEAN = "clean"  # remove the remains of a standby that died
    REPLACE = "replace"  # end a standby of the wrong release
    START = "start"
    PREPARE = "prepare"
    PROGRAM = "program"  # bring both instances to the present intent
    RETURN = "return"  # give VMs back that the standby took alone
    PARK = "park"


@dataclass(frozen=True, slots=True)
class StandbyState:
    """What the keeper has seen. ``broken``: the active instance lacks its database server. ``standby_dead``: the
    standby was started and has ended. ``settle``: the active instance is a former standby and still has a standby's
    values. ``prepared``: the standby was programmed and the VMs were parked on it once. ``outdated``: the present
    overlay intent has not been programmed. ``strays``: VMs to be given back to the active instance. ``unparked``: VMs
    to be parked. ``may_start``: the back-off allows to start and prepare a standby. ``may_restart``: the back-off
    allows to start the active instance again. ``keeps``: a standby is to be kept."""

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
    keeps: bool = True


def next_task(state: StandbyState) -> Task:
    """Choose one task. The watchdog looks at the host again after each."""
    if not state.active_runs:
        if state.standby_runs and state.prepared:
            return Task.NOTHING  # the failover will act
        return Task.RESTART if state.may_restart else Task.NOTHING
    if state.broken:
        return Task.MEND
    if state.settle:
        return Task.SETTLE
    return _standby_task(state) if state.keeps else Task.NOTHING


def next_restart_task(*, runs: bool, broken: bool, waits: bool, may_restart: bool) -> Task:
    """Choose one task for an active instance whose host others program, where no standby is kept. ``waits``: it waits
    for its flows; the others are as in ``StandbyState``."""
    if not runs:
        return Task.RESTART if may_restart else Task.NOTHING
    if broken:
        return Task.MEND
    return Task.RESTORE if waits else Task.NOTHING


def _standby_task(state: StandbyState) -> Task:
    if state.standby_dead:
        return Task.CLEAN
    if not state.standby_runs:
        return Task.START if state.may_start else Task.NOTHING
    if not state.right_release:
        return Task.REPLACE
    if not state.prepared:
        if state.may_start:
            return Task.PREPARE
        return Task.RETURN if state.strays else Task.NOTHING  # the standby may stay unprepared for long
    if state.outdated:
        return Task.PROGRAM
    if state.strays:
        return Task.RETURN
    return Task.PARK if state.unparked else Task.NOTHING

"""What to do about an active instance that has failed. Pure: the watchdog does what is decided here."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Act(enum.StrEnum):
    """The next act of a failover. NO_TARGET: there is nowhere to go, so nothing is taken from an active instance that
    may still forward something."""

    NO_TARGET = "no-target"
    FENCE = "fence"
    STEER = "steer"
    AWAIT = "await"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class FailoverState:
    """``alive``: whether the active instance, which has failed, still has its process. ``useless``: that process is
    stopped, so it forwards nothing, and would be started again if it ended. ``target_ready``: the other instance lives
    and has VMs parked on it, or owns them. ``steered``: the uplink points there. ``stranded``: how many VMs it could
    own and does not own yet; a VM counts if the broker does not tell. ``patience``: whether they may still be waited
    for."""

    alive: bool
    target_ready: bool
    useless: bool = False
    steered: bool = False
    stranded: int = 0
    patience: bool = True


def next_act(state: FailoverState) -> Act:
    """The acts come in this order, so that no other instance is given rings, traffic or the record while the active
    instance may still use the rings."""
    if state.alive and (state.target_ready or state.useless):
        return Act.FENCE
    if not state.target_ready:
        return Act.NO_TARGET  # a dead active instance is started again
    if not state.steered:
        return Act.STEER
    if state.stranded and state.patience:
        return Act.AWAIT
    return Act.RECORD

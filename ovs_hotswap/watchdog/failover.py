"""What to do about an active instance that has failed. Pure: the watchdog carries out the decisions."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Act(enum.StrEnum):
    """The next act of a failover. NO_TARGET: no instance can take the VMs, so the active one, which may still forward
    packets, keeps them. FENCE: end the active instance. STEER: steer the uplink. AWAIT: wait until the VMs have
    moved. RECORD: record the new active side."""

    NO_TARGET = "no-target"
    FENCE = "fence"
    STEER = "steer"
    AWAIT = "await"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class FailoverState:
    """The state of a failover. ``alive``: the failed active instance still has its process. ``useless``: this process
    is stopped, so it forwards nothing, and the instance would be started again if it ended. ``target_ready``: the other
    instance lives and has VMs parked on it, or owns them. ``steered``: the uplink is steered to it. ``stranded``: the
    number of VMs that it could own and does not own yet; 1 if the back ends do not answer. ``patience``: there is
    still time to wait for these VMs."""

    alive: bool
    target_ready: bool
    useless: bool = False
    steered: bool = False
    stranded: int = 0
    patience: bool = True


def next_act(state: FailoverState) -> Act:
    """Choose the next act. Fencing comes first, so that the other instance is given neither rings nor traffic nor the
    record while the active one may still use the rings."""
    if state.alive and (state.target_ready or state.useless):
        return Act.FENCE
    if not state.target_ready:
        return Act.NO_TARGET  # a dead active instance is started again
    if not state.steered:
        return Act.STEER
    if state.stranded and state.patience:
        return Act.AWAIT
    return Act.RECORD

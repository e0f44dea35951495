"""The window of an upgrade without the upgrade: two instances, every VM parked on the standby, to move VMs at will."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import ReversibleStep, Step, StepContext
from ovs_hotswap.plan.records import Facts
from ovs_hotswap.upgrade.move_vms import move_all
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import MoveVms, upgrade_plan

_PAUSE_S = 0.05


class Notes(StepContext):
    """Facts of steps that are run without a journal."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        super().__init__(lambda: self._kept, self.keep, lambda _event: None)

    def keep(self, facts: Facts) -> None:
        self._kept.update(facts)


@contextlib.contextmanager
def done(context: Upgrade, steps: Iterable[Step[Upgrade]]) -> Iterator[Notes]:
    """Do the steps, and undo them at the end, also if one of them fails."""
    run = Notes()
    begun: list[Step[Upgrade]] = []
    try:
        for step in steps:
            run.keep(step.facts(context, run))
            begun.append(step)
            step.do(context, run)
        yield run
    finally:
        for step in reversed(begun):
            if isinstance(step, ReversibleStep):
                step.undo(context, run)


@contextlib.contextmanager
def window(host: Host, release: str) -> Iterator[Notes]:
    """With instance a active, and VMs on it again at the end. Raises HotswapError."""
    before = upgrade_plan().before
    steps = before[: next(number for number, step in enumerate(before) if isinstance(step, MoveVms))]
    with done(Upgrade(host, Side.A, Side.B, release), steps) as run:
        yield run


def back_and_forth(host: Host, run: Notes, moves: int) -> list[float]:
    """Move all VMs there and back until that many moves were made, and leave them on side a. Their microseconds."""
    times: list[float] = []
    to = Side.B
    while len(times) < moves:
        times.extend(move_all(host, to, run).values())
        to = to.other
        host.system.sleep(_PAUSE_S)
    move_all(host, Side.A, run)
    return times[:moves]

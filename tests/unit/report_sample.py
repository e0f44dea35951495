"""Reports for tests: a journal with the steps of an upgrade, and the VMs that were moved in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.model import Side
from ovs_hotswap.plan.records import Facts, Kind, Record, StepNames
from ovs_hotswap.reports.compose import Run, Seen, of_plan
from ovs_hotswap.reports.document import RunReport
from tests.support.fake_backends import vm_status

SHAPE = StepNames(("precheck", "park", "move", "soak"), ("retire",))
BEGUN = 1_796_000_000.0  # 2026-11-30 00:53:20 UTC
PARAMETERS = {"old": "a", "new": "b", "release": "trixie", "previous": "host"}


@dataclass
class Book:
    """A journal that is written by hand: each record comes a second after the one before, unless ``after`` says
    otherwise."""

    records: list[Record] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    now: float = BEGUN

    def add(
        self, kind: Kind, step: str = "", *, after: float = 1.0, text: str = "", facts: Facts | None = None
    ) -> Book:
        self.now += after
        self.records.append(Record(kind, step, facts or {}, text))
        self.times.append(self.now)
        return self

    def step(self, name: str, *, took: float = 1.0, facts: Facts | None = None) -> Book:
        return self.add(Kind.START, name, after=0.0).add(Kind.DONE, name, after=took, facts=facts)

    def undone(self, name: str, *, took: float = 1.0) -> Book:
        return self.add(Kind.UNDO, name, after=0.0).add(Kind.UNDONE, name, after=took)

    def run(self, **parameters: Any) -> Run:
        return Run({**PARAMETERS, **parameters}, SHAPE, BEGUN, self.records, self.times)


def seen(vms: Sequence[VmStatus] = (), **more: Any) -> Seen:
    return Seen(host="hv1", program="1.0", vms=vms, **more)


def moved(name: str, since: float, us: float, owner: Side = Side.B) -> VmStatus:
    """A VM that was last handed over at ``since``, in ``us`` microseconds."""
    return vm_status(name, owner=owner, owner_since=since, last_move_us=us, moves=1)


def upgrade_book(moves: Mapping[str, float], **facts: Any) -> Book:
    """An upgrade that was committed: `move` runs from 2 to 3 seconds after the beginning."""
    book = Book().step("precheck").step("park").step("move", facts={"moves": dict(moves), **facts})
    return book.step("soak", took=10.0).add(Kind.COMMIT, after=0.0).step("retire").add(Kind.END, after=0.0)


def upgrade(count: int = 2, **more: Any) -> RunReport:
    """The report of a committed upgrade of ``count`` VMs, which were moved one after the other."""
    us = {f"vm{number}": 100.0 + number for number in range(1, count + 1)}
    vms = [moved(name, BEGUN + 2.5 + 0.001 * number, each) for number, (name, each) in enumerate(us.items())]
    return of_plan(upgrade_book(us).run(), seen(vms, **more))

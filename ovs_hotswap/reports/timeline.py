"""When each step of a plan ran, and in which step a gap was. This module is pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.plan.records import Kind, Record
from ovs_hotswap.reports.document import Stage, StageResult

_ENDS = {
    Kind.DONE: StageResult.DONE, Kind.UNDONE: StageResult.DONE, Kind.FAILED: StageResult.FAILED,
    Kind.UNDO_FAILED: StageResult.FAILED, Kind.FORWARD_ANYWAY: StageResult.FAILED,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Begun:
    name: str
    time: float
    undo: bool

    def ended(self, time: float, result: StageResult, text: str = "") -> Stage:
        return Stage(self.name, self.time, time, self.undo, result, text)


def stages(records: Sequence[Record], times: Sequence[float]) -> list[Stage]:
    """When each step was done or undone, in this order, from a journal's records and their times.

    A step that was repeated is there several times. One that a kill interrupted ends at the last record before the next
    begins, because nothing later is known of it.
    """
    found: list[Stage] = []
    begun: _Begun | None = None
    last = 0.0
    for record, time in zip(records, times, strict=True):
        if record.kind in {Kind.START, Kind.UNDO, Kind.RESUME} and begun is not None:
            found.append(begun.ended(last, StageResult.INTERRUPTED))
            begun = None
        if record.kind in {Kind.START, Kind.UNDO}:
            begun = _Begun(record.step, time, record.kind is Kind.UNDO)
        elif begun is not None and record.step == begun.name and record.kind in _ENDS:
            found.append(begun.ended(time, _ENDS[record.kind], record.text))
            begun = None
        last = time
    if begun is not None:
        found.append(begun.ended(last, StageResult.INTERRUPTED))
    return found


def running(found: Iterable[Stage], begin: float, end: float) -> str | None:
    """The step that ran for most of the time from ``begin`` to ``end``; ``None`` if none did. Of a time without a
    duration it is the step that ran then."""
    shared: Mapping[str, float] = {}
    for stage in found:
        common = min(stage.end, end) - max(stage.begin, begin)
        if common > 0 or (begin == end and common == 0):
            shared = {**shared, stage.name: shared.get(stage.name, 0.0) + common}
    return max(shared, key=lambda name: shared[name], default=None)

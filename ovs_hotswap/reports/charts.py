"""Where the marks of the page's charts are. This module is pure.

Horizontal places are in percent of a chart's width and vertical ones in CSS pixels, so a chart fits every window while
its texts keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ovs_hotswap.reports.comparison import Comparison
from ovs_hotswap.reports.document import GapSource, RunReport, Stage, VmPart
from ovs_hotswap.reports.words import gap_text, milliseconds, seconds, stage_name, stage_note

NAMED = 48
"""Up to so many VMs have a row with a name. More stand side by side as marks, and the table has their names."""
_LARGE, _ROW_LARGE, _ROW = 16, 26, 17  # up to so many rows are high; the heights of high ones and others, in pixels
_PLOT = 230.0  # the height of a chart without rows, in pixels
_ROOM = 3.0  # percent at both ends of an axis, so that no mark is cut off
_Place = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the timeline. ``left`` and ``width`` are in percent. ``look``: the name of a style. ``usual``: the
    usual time of the step, in words. ``does``: what the step does."""

    name: str
    left: float
    width: float
    look: str
    took: str
    usual: str
    slow: bool
    note: str
    does: str


@dataclass(frozen=True, slots=True)
class Tick:
    """``at``: percent of the width, or pixels from the top on an axis that goes up."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """``shape``: the name of a symbol and of a style. ``width`` is in percent, of a bar."""

    x: float
    y: float
    shape: str
    text: str
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A VM's row: its name, the middle of the row, and what is written at its end."""

    name: str
    y: float
    value: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with a row for each VM, in which a value goes to the right; or, with many VMs, one without ``rows``, in
    which it goes up. ``across`` has the ticks of the axis that goes to the right, ``up`` those of the other one.
    ``limits``: values that are marked by a line, with a text. ``size``: the radius of a mark in pixels."""

    height: float
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    across: tuple[Tick, ...] = ()
    up: tuple[Tick, ...] = ()
    limits: tuple[Tick, ...] = ()
    size: float = 5.0


# --------------------------------------------------------------------------------------------------------- the timeline


def lanes(report: RunReport, compared: Comparison) -> list[Lane]:
    """The stages in order of time."""
    whole = max(report.seconds, 1e-9)
    found = []
    for stage in report.stages:
        left = 100 * (stage.begin - report.started) / whole
        usual = None if stage.undo else compared.usual.get(stage.name)
        found.append(Lane(
            stage_name(stage), _within(left), _within(100 * stage.seconds / whole), _look(stage),
            seconds(stage.seconds), "" if usual is None else seconds(usual),
            not stage.undo and compared.slow(stage.name, stage.seconds),
            stage_note(stage), report.descriptions.get(stage.name, ""),
        ))  # fmt: skip
    return found


def _look(stage: Stage) -> str:
    return f"{stage.result}{' undo' if stage.undo else ''}"


def commit_at(report: RunReport) -> float | None:
    """The place of the commit in the timeline, in percent."""
    if report.committed is None or not report.seconds:
        return None
    return _within(100 * (report.committed - report.started) / report.seconds)


# ----------------------------------------------------------------------------------------------- the gaps of each VM


def gaps(report: RunReport) -> Chart | None:
    """The handover and the longest gap of each VM on an axis of powers of ten, the worst VM first; ``None`` if no VM
    has a gap."""
    vms = sorted((vm for vm in report.vms if vm.gaps), key=lambda vm: (-vm.gaps[0].ms, vm.name))
    if not vms:
        return None
    limits = [] if report.restart_ms is None else [report.restart_ms]
    share, ticks = _powers([ms for vm in vms for ms, _, _ in _values(vm) if ms > 0] + limits)
    texts = [f"a plain restart: {milliseconds(ms)}" for ms in limits]
    lines = [(share(ms), text) for ms, text in zip(limits, texts, strict=True)]
    if len(vms) > NAMED:
        marks = [Mark(_across(number / (len(vms) - 1)), _up(share(ms)), shape, text)
                 for number, vm in enumerate(vms) for ms, shape, text in _values(vm)]  # fmt: skip
        up, limit = (tuple(Tick(_up(at), text) for at, text in each) for each in (ticks, lines))
        return Chart(_PLOT, (), tuple(marks), up=up, limits=limit, size=_size(len(vms)))
    height = _row_height(len(vms))
    middle = [height * (number + 0.5) for number in range(len(vms))]
    marks = [Mark(_across(share(ms)), y, shape, text)
             for y, vm in zip(middle, vms, strict=True) for ms, shape, text in _values(vm)]  # fmt: skip
    rows = tuple(Row(vm.name, y, _short(vm)) for y, vm in zip(middle, vms, strict=True))
    across, limit = (tuple(Tick(_across(at), text) for at, text in each) for each in (ticks, lines))
    return Chart(height * len(vms), rows, tuple(marks), across, limits=limit)


def _values(vm: VmPart) -> list[tuple[float, str, str]]:
    """The milliseconds, the shape and the text of each mark of a VM; the longest gap, which is drawn last, is last."""
    quiet = max((each.quiet_ms for each in vm.pings if each.quiet_ms), default=None)
    found = [] if quiet is None else [(quiet, "quiet", f"{vm.name}: {milliseconds(quiet)} while nothing was done")]
    for gap in reversed(vm.gaps):
        shape = str(gap.source) if gap.source in (GapSource.HANDOVER, GapSource.GUEST) else "other"
        found.append((gap.ms, shape, f"{vm.name}: {gap_text(gap)}"))
    return found


def _short(vm: VmPart) -> str:
    worst = vm.gaps[0]
    return f"{milliseconds(worst.ms)}{f' in {worst.step}' if worst.step else ''}"


def order(report: RunReport) -> Chart | None:
    """When each VM was handed over, on an axis of milliseconds since the first handover began; ``None`` if fewer than
    two handovers have a known time. With many VMs the other axis shows how long each handover took."""
    timed = [(vm.since - vm.handover_us / 1e6, vm.since, vm) for vm in report.vms
             if vm.since is not None and vm.handover_us is not None]  # fmt: skip
    timed.sort(key=lambda each: each[:2])
    if len(timed) < 2:
        return None
    first, last = timed[0][0], max(end for _, end, _ in timed)
    share, ticks = _linear((last - first) * 1e3)
    across = tuple(Tick(_across(at), text) for at, text in ticks)
    spans = [((begin - first) * 1e3, (end - first) * 1e3, vm.name) for begin, end, vm in timed]
    texts = [f"{name}: {milliseconds(end - begin)}, {milliseconds(begin)} after the first began"
             for begin, end, name in spans]  # fmt: skip
    if len(timed) > NAMED:
        height, up = _linear(max(end - begin for begin, end, _ in spans))
        marks = [Mark(_across(share(begin)), _up(height(end - begin)), "handover", text)
                 for (begin, end, _), text in zip(spans, texts, strict=True)]  # fmt: skip
        return Chart(
            _PLOT, (), tuple(marks), across, tuple(Tick(_up(at), text) for at, text in up), size=_size(len(timed))
        )
    row = _row_height(len(timed))
    rows, bars = [], []
    for number, ((begin, end, name), text) in enumerate(zip(spans, texts, strict=True)):
        y, left = row * (number + 0.5), _across(share(begin))
        rows.append(Row(name, y, milliseconds(end - begin)))
        bars.append(Mark(left, y, "bar", text, round(_across(share(end)) - left, 3)))
    return Chart(row * len(timed), tuple(rows), tuple(bars), across)


# ---------------------------------------------------------------------------------------------------------------- axes


def _row_height(count: int) -> float:
    return _ROW_LARGE if count <= _LARGE else _ROW


def _size(count: int) -> float:
    """The radius of the marks of so many VMs side by side, in pixels."""
    return round(min(4.0, max(2.5, 400 / count)), 1)


def _within(percent: float) -> float:
    return round(min(100.0, max(0.0, percent)), 3)


def _across(share: float) -> float:
    """The place of a share of an axis that goes to the right, in percent."""
    return round(_ROOM + (100 - 2 * _ROOM) * min(1.0, max(0.0, share)), 3)


def _up(share: float) -> float:
    """The place of a share of an axis that goes up, in pixels from the top."""
    return round(_PLOT * (1 - min(1.0, max(0.0, share))), 2)


def _powers(values: Sequence[float]) -> tuple[_Place, list[tuple[float, str]]]:
    """An axis of powers of ten that has room for all values, which are positive milliseconds: a function that gives
    each value its share of the axis, and the share and the text of each tick."""
    low = math.floor(math.log10(min(values, default=1.0)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=1.0))))

    def share(ms: float) -> float:
        return (math.log10(ms) - low) / (high - low) if ms > 0 else 0.0

    steps = (1, 2, 5) if high - low == 1 else (1,)
    marked = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return share, [(share(ms), _round(ms)) for ms in marked if ms <= 1.001 * 10.0**high]


def _round(ms: float) -> str:
    """A round number of milliseconds in words."""
    if ms >= 1000:
        return f"{ms / 1e3:g} s"
    return f"{ms:g} ms" if ms >= 0.01 else f"{ms * 1e3:g} µs"


def _linear(longest_ms: float) -> tuple[_Place, list[tuple[float, str]]]:
    """An axis from 0 to ``longest_ms`` milliseconds, as ``_powers``, with up to seven ticks at round numbers."""
    whole = max(longest_ms, 1e-6)
    step = 10.0 ** math.floor(math.log10(whole))
    step = next(each for each in (step / 5, step / 2, step, 2 * step) if whole / each <= 6)

    def share(ms: float) -> float:
        return ms / whole

    return share, [(share(step * n), f"{step * n:g} ms") for n in range(int(whole / step + 1e-9) + 1)]

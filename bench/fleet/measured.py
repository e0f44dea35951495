"""The durations of an upgrade, read from the page of the benchmark that measured them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAGE = "docs/performance.md"
TITLE = "A whole upgrade"
_COLUMN = re.compile(r"(\d+) x 1, (\d+) flows")
_MOVES, _SOAK = "move", "soak"


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of an upgrade of a host with ``vms`` VMs of one queue pair: until the precheck, the moves and the soak
    are over, and until all of it is."""

    vms: int
    precheck: float
    moved: float
    soaked: float
    whole: float


def cells(page: str) -> list[list[str]]:
    """The rows of the table in the section, the heading first. Raises ValueError if there is none."""
    section = page.partition(f"\n## {TITLE}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    if not lines:
        raise ValueError(f"{PAGE} has no table in its section {TITLE!r}")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if set(row[0]) != {"-"}]


def durations(page: str) -> list[Durations]:
    """One for each number of VMs, ascending; of columns with the same number, the one with the fewest flows."""
    head, *rows = cells(page)
    seconds: dict[int, tuple[int, Durations]] = {}
    for place, title in enumerate(head):
        if found := _COLUMN.fullmatch(title):
            vms, flows = int(found[1]), int(found[2])
            steps = {row[0]: float(row[place]) for row in rows}
            if vms not in seconds or flows < seconds[vms][0]:
                seconds[vms] = flows, _of_steps(vms, steps)
    return [each for _vms, (_flows, each) in sorted(seconds.items())]


def _of_steps(vms: int, steps: Mapping[str, float]) -> Durations:
    names = list(steps)
    moved = sum(steps[name] for name in names[: names.index(_MOVES) + 1])
    return Durations(vms, steps["precheck"], moved, moved + steps[_SOAK], steps["whole"])


def at(points: Sequence[Durations], vms: float) -> Durations:
    """Between two measured numbers of VMs on the line between them, beyond them as at the nearest."""
    above = next((place for place, point in enumerate(points) if point.vms >= vms), len(points))
    if above in (0, len(points)):
        return points[min(above, len(points) - 1)]
    low, high = points[above - 1], points[above]
    part = (vms - low.vms) / (high.vms - low.vms)

    def between(a: float, b: float) -> float:
        return a + part * (b - a)

    return Durations(
        round(vms),
        between(low.precheck, high.precheck),
        between(low.moved, high.moved),
        between(low.soaked, high.soaked),
        between(low.whole, high.whole),
    )

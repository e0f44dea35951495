"""What the sections of docs/performance.md are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ovs_hotswap.lab.pings import quantile

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """``text``: Markdown, without the heading. ``plots``: what draws each figure, by the name of its file."""

    text: str
    plots: dict[str, Callable[[Any], None]]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def spread(values: Sequence[float], shown: Callable[[float | None], str]) -> list[str]:
    """p50, p99 and the largest."""
    ordered = sorted(values)
    return [shown(quantile(ordered, 0.5)), shown(quantile(ordered, 0.99)), shown(ordered[-1] if ordered else None)]


def ecdf(axes: Any, values: Sequence[float], label: str) -> None:
    ordered = sorted(values)
    axes.step(ordered, [(number + 1) / len(ordered) for number in range(len(ordered))], where="post", label=label)


def named(case: Json) -> str:
    return f"{case['vms']} x {case['queues']}"

"""The parts of docs/fleet.md that come from simulated runs: tables between marks, and the plots beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.fleet import plots, studies
from bench.fleet.measured import PAGE, Durations
from bench.fleet.model import Outcome, Policy
from bench.fleet.policies import FAULTS, LARGE, RANGES, RARE
from bench.fleet.studies import Judged, Laboratory, Many, Spread, Varied
from bench.sections import table

_BEGIN, _END = "<!-- make bench-fleet: {} -->", "<!-- end -->"
_PART = re.compile(r"(<!-- make bench-fleet: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LATE = 0.1  # the share of hosts in the plot of faults that show late


@dataclass(frozen=True, slots=True)
class Made:
    """``parts``: Markdown by the name of its mark. ``plots``: what draws each figure, by the name of its file."""

    parts: dict[str, str]
    plots: dict[str, Callable[[Any], None]]


def names(page: str) -> list[str]:
    """The marks of a page, in order."""
    return [found[2] for found in _PART.finditer(page)]


def replaced(page: str, parts: dict[str, str]) -> str:
    """The page with new parts. Raises ValueError for a mark without a part, and for a part without a mark."""
    marks = names(page)
    if sorted(marks) != sorted(parts):
        raise ValueError(f"the page has the marks {sorted(marks)}, and the parts are {sorted(parts)}")
    return _PART.sub(lambda found: f"{found[1]}\n{parts[found[2]].strip()}\n\n{found[3]}", page)


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def hours(value: float) -> str:
    if value < 1:
        return f"{value * 60:.0f} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def spread(found: Spread) -> str:
    return number(found.p50) if found.p50 == found.p95 else f"{number(found.p50)} / {number(found.p95)}"


def _sizes(policy: Policy) -> str:
    return "[" + ", ".join(f'"{size}"' if isinstance(size, str) else str(size) for size in policy.serial) + "]"


def both(many: Many, figure: Callable[[Outcome], float]) -> str:
    return spread(many.spread(figure))


def _time(value: float) -> str:
    if not value:
        return "none"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:g} h"


def _settings(policy: Policy) -> tuple[str, ...]:
    return (
        f"{policy.canaries}, {_time(policy.soak_h)}" if policy.canaries else "none", f"`{_sizes(policy)}`",
        str(policy.forks), _time(policy.pause_h), str(policy.max_failed),
        f"{policy.percent:g} %" if policy.percent < 100 else "-",
    )  # fmt: skip


SETTINGS = ("canaries, soak", "waves", "at a time", "pause", "failures", "in percent")


def policy_table(judged: Sequence[Judged], title: str) -> str:
    return table(
        (title, *SETTINGS, "takes", "stopped in vain"),
        [(each.policy.name, *_settings(each.policy), hours(each.hours), percent(each.false_stop)) for each in judged],
    )


def faults_table(judged: Sequence[Judged], figure: Callable[[Outcome], float]) -> str:
    rows = [
        (name, *(both(each.faults[place], figure) for each in judged)) for place, (name, _fault) in enumerate(FAULTS)
    ]
    return table(("the bad release", *(each.policy.name for each in judged)), rows)


def stops_table(judged: Sequence[Judged]) -> str:
    """How often a bad release is stopped before every host was touched, and after how long."""

    def cell(each: Judged, place: int) -> str:
        many = each.faults[place]
        caught = [one for one in many.outcomes if one.stopped and one.touched < each.hosts]
        if not caught:
            return "never"
        share = len(caught) / len(many.outcomes)
        when = sorted(one.hours for one in caught)[len(caught) // 2]
        return hours(when) if share == 1 else f"{percent(share)} of runs, {hours(when)}"

    rows = [(name, *(cell(each, place) for each in judged)) for place, (name, _fault) in enumerate(FAULTS)]
    return table(("the bad release", *(each.policy.name for each in judged)), rows)


def measured_table(points: Sequence[Durations]) -> str:
    return table(
        ("VMs of the host", "precheck", "until the moves are over", "until the soak is over", "whole upgrade"),
        [(each.vms, *(f"{value:.1f} s" for value in (each.precheck, each.moved, each.soaked, each.whole)))
         for each in points],
    )  # fmt: skip


def assumptions_table(found: Sequence[Varied]) -> str:
    standard = {name: value for name, value, _ends in RANGES}
    rows = [
        (each.assumption, standard.get(each.assumption, ""), each.value, hours(each.hours), percent(each.false_stop),
         spread(each.left))
        for each in found
    ]  # fmt: skip
    return table(("assumption", "assumed", "if it were", "takes", "stopped in vain", "left on the bad release"), rows)


def make(lab: Laboratory) -> Made:
    best, policies = studies.recommended(lab), studies.compared(lab)
    touched, late = studies.touched(lab), studies.late(lab, LATE)
    parallel, stops = studies.parallel(lab), studies.false_stops(lab)
    fault = next(place for place, (_name, each) in enumerate(FAULTS) if each.hours and each.share == LATE)
    parts = {
        "recommended": policy_table(best, "hosts"),
        "recommended-left": faults_table(best, lambda outcome: outcome.running),
        "recommended-stops": stops_table(best),
        "compared": policy_table(policies, "policy"),
        "compared-touched": faults_table(policies, lambda outcome: outcome.touched),
        "compared-left": faults_table(policies, lambda outcome: outcome.running),
        "compared-vms": faults_table(policies, lambda outcome: outcome.vms),
        "measured": measured_table(lab.points),
        "assumed": assumptions_table(studies.varied(lab, RARE)),
        "runs": f"Each figure is made of {lab.runs} simulated runs, and of {lab.thorough().runs} for the recommended "
        f"policies. The durations are read from `{PAGE}`.",
    }
    title = f"{number(LARGE)} hosts; {FAULTS[fault][0]}"
    return Made(
        parts,
        {
            "price": lambda axes: plots.price(axes, policies, fault, title),
            "touched": lambda axes: plots.touched(axes, touched),
            "late": lambda axes: plots.late(axes, late, LATE),
            "canaries": plots.canaries,
            "false-stops": lambda axes: plots.false_stops(axes, stops),
            "parallel": lambda axes: plots.parallel(axes, parallel),
        },
    )

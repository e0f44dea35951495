"""The plots of docs/fleet.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.fleet import closed
from bench.fleet.policies import CANARIES, FORKS, HOURS, LARGE, RATES, SHARES
from bench.fleet.studies import Judged, Spread

# Colours that people who do not see all of them can tell apart (Okabe and Ito); each line has its own style as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"


def look(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % 7], "linestyle": _STYLES[number % 7], "linewidth": 1.8}


def _percent(value: float, _place: object = None) -> str:
    return f"{value * 100:g} %"


def _plain(value: float, _place: object = None) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 1 else f"{value:g}"


def _log(axis: Any, shown: Any, ticks: Sequence[float] | None = None) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(shown))


def _legend(axes: Any, title: str | None = None) -> None:
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def price(axes: Any, judged: Sequence[Judged], fault: int, title: str) -> None:
    """What a policy costs in time, and what it saves: the median, and a line to what 19 of 20 runs do not
    exceed. Points of different size stay visible on one another."""
    for number, each in enumerate(judged):
        left = each.faults[fault].spread(lambda outcome: outcome.running)
        colour, low, high = _COLOURS[number % 7], max(1, left.p50), max(1, left.p95)
        axes.plot([each.hours] * 2, [low, high], color=colour, linewidth=2)
        axes.plot(
            [each.hours], [low], _MARKERS[number % 7], color=colour, markerfacecolor="none", markeredgewidth=2,
            markersize=16 - 1.5 * number, label=each.policy.name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="hours of an undisturbed run",
             ylabel="hosts left on the bad release", title=title)  # fmt: skip
    _log(axes.xaxis, _plain, (2, 5, 10, 24, 48, 96, 168, 336))
    _log(axes.yaxis, _plain, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, LARGE))
    _legend(axes)


def touched(axes: Any, found: dict[str, list[Spread]]) -> None:
    for number, (name, spreads) in enumerate(found.items()):
        axes.plot(SHARES, [each.p50 for each in spreads], label=name, **look(number))
    axes.set(xscale="log", yscale="log", xlabel="share of the hosts on which the release breaks the moves",
             ylabel="hosts touched before the stop (median)")  # fmt: skip
    _log(axes.xaxis, _percent, SHARES)
    _log(axes.yaxis, _plain, (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, LARGE))
    _legend(axes)


def late(axes: Any, found: dict[str, list[Spread]], share: float) -> None:
    for number, (name, spreads) in enumerate(found.items()):
        axes.plot(HOURS, [max(1, each.p50) for each in spreads], label=name, **look(number))
    axes.set(xscale="log", yscale="log", xlabel="hours from a host's upgrade to the fault",
             ylabel="hosts left on the bad release (median)",
             title=f"The fault shows on {_percent(share)} of the hosts")  # fmt: skip
    _log(axes.xaxis, _plain, HOURS)
    _log(axes.yaxis, _plain, (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, LARGE))
    _legend(axes)


def parallel(axes: Any, found: dict[str, list[float]]) -> None:
    for number, (name, hours) in enumerate(found.items()):
        axes.plot(FORKS, hours, label=name, **look(number))
    axes.set(xscale="log", yscale="log", xlabel="hosts worked on at a time (forks)",
             ylabel="hours for 10 000 hosts, without soaks and pauses")  # fmt: skip
    _log(axes.xaxis, _plain, FORKS)
    _log(axes.yaxis, _plain, (0.5, 1, 2, 5, 10, 24, 48, 96, 168))
    _legend(axes)


def false_stops(axes: Any, found: dict[int, list[float]]) -> None:
    """Lines: the formula. Points: simulated runs."""
    fine = [RATES[0] * (RATES[-1] / RATES[0]) ** (step / 24) for step in range(25)]
    for number, (allowed, simulated) in enumerate(found.items()):
        formula = [closed.stops(LARGE, rate, allowed) for rate in fine]
        axes.plot(fine, formula, label=f"{allowed} ({allowed / LARGE:.2%})", **look(number))
        axes.plot(RATES, simulated, _MARKERS[number % 7], color=_COLOURS[number % 7], markersize=5)
    axes.set(xscale="log", xlabel="share of hosts that fail with any release",
             ylabel="probability that a good release is stopped", ylim=(-0.02, 1.02))  # fmt: skip
    _log(axes.xaxis, _percent, RATES)
    _legend(axes, "failures allowed\nover 10 000 hosts")


def canaries(axes: Any) -> None:
    shares = [0.001 * 1000 ** (step / 24) for step in range(25)]
    for number, count in enumerate(CANARIES):
        axes.plot(shares, [closed.seen(count, share) for share in shares], label=str(count), **look(number))
    axes.set(xscale="log", xlabel="share of the hosts that show the fault",
             ylabel="probability that a canary shows it", ylim=(-0.02, 1.02))  # fmt: skip
    _log(axes.xaxis, _percent, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
    _legend(axes, "canaries")

"""The page of `bursts` for people. This module is pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ovs_hotswap.bursts.found import Finding, Made, Report
from ovs_hotswap.diagnose.finding_lines import Line, findings, heading, headline, wrapped


def lines(report: Report, width: int = 100) -> Iterator[Line]:
    """The page. ``width``: in characters; text that is longer is wrapped."""
    active = f"instance {report.active} is active" if report.active is not None else "the distribution's switch"
    yield None, (f"{report.vm or 'this host'}: {active}, counters watched for {report.seconds:g} s in "
                 f"{report.intervals} intervals")  # fmt: skip
    yield None, ""
    yield from findings(report.findings, width, "`ovs-hotswap --json bursts`")
    yield from _effects(report.findings, width)
    yield from _threads(report)
    yield from _ports(report)
    cost = report.cost
    yield None, ""
    yield None, (f"{cost.looks} looks, each of {cost.look_ms:g} ms; this program used {cost.cpu:.1%} of a core in "
                 "that time")  # fmt: skip
    if report.limits:
        yield from heading("Not judged")
        for text in report.limits:
            yield from wrapped("  - ", text, width)


def _effects(found: Iterable[Finding], width: int) -> Iterator[Line]:
    """What each change does to packets when it is made, once for each."""
    effects = {each.advice: each.effect for each in found if each.advice is not None and each.effect is not None}
    if not effects:
        return
    yield from heading("What a change does to packets when it is made")
    for name, effect in effects.items():
        yield from wrapped(f"  {name}: ", f"{effect}.", width)


def _share(value: float | None) -> str:
    return "?" if value is None else f"{value:.0%}"


def _threads(report: Report) -> Iterator[Line]:
    if not report.threads:
        return
    yield from heading("PMD threads")
    yield None, f"  {'core':>4} {'NUMA':>4} {'busy':>6} {'peak':>6} {'waits':>6} {'queues':>6}"
    for each in report.threads:
        numa = "-" if each.numa is None else each.numa
        yield None, (f"  {each.core:>4} {numa:>4} {_share(each.busy):>6} {_share(each.peak):>6} {each.waits:>6.0%} "
                     f"{each.queues:>6}")  # fmt: skip


def _ports(report: Report) -> Iterator[Line]:
    if not report.ports:
        return
    yield from heading("Packets a second, and those lost")
    wide = max(len(each.port) for each in report.ports)
    yield None, (f"  {'port':<{wide}} {'received':>9} {'peak':>9} {'sent':>9} {'peak':>9} {'lost':>9} "
                 f"{'in intervals':>12}")  # fmt: skip
    for each in report.ports:
        yield None, (f"  {each.port:<{wide}} {each.rx:>9} {each.rx_peak:>9} {each.tx:>9} {each.tx_peak:>9} "
                     f"{each.lost:>9} {each.lossy:>12}")  # fmt: skip


def headlines(report: Report) -> list[str]:
    """A line for each finding, for a report that is followed."""
    return [headline(each) for each in report.findings]


def change(made: Made) -> str:
    """Return a change as a line."""
    place = f"{made.table} {made.row}".strip()
    text = f"{place}: {made.column}:{made.key}: {made.before or 'not set'} -> {made.after or 'not set'}"
    return text if made.seconds is None else f"{text}, in {made.seconds:.2f} s"

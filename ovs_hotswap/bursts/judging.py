"""Makes the report of everything that was seen. This module is pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ovs_hotswap.bursts import losses, spread
from ovs_hotswap.bursts.found import Advice, Cause, Finding, Found, PortLoad, Report, ThreadLoad, ordered
from ovs_hotswap.bursts.values import Unseen, Window
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.wording import some

_PORTS = 12
UPGRADE = (
    "an upgrade runs, or was interrupted: two instances share the packets, and their PMD threads sleep, so what is "
    "seen now is not how the host is otherwise"
)
NO_CYCLES = "this switch does not say how busy its PMD threads are, so why a queue is full is not known"
NO_METRICS = (
    "bursts that guests send: the switch records these only with other_config:pmd-perf-metrics=true, which costs about "
    "1 % (ovs-vswitchd.conf.db(5))"
)


def report(window: Window, active: Side | None = None, vm: str | None = None) -> tuple[Report, tuple[Advice, ...]]:
    """Return the report, with the findings worst first, and the changes that it advises."""
    lost = tuple(losses.losses(window))
    found = [*losses.judge(window), *spread.judge(window, lost), *map(_not_seen, window.unseen)]
    kept = [each for each in ordered(found) if vm is None or each.finding.vm in (None, vm)]
    return Report(
        vm, active, round(window.seconds, 2), len(window.intervals), tuple(each.finding for each in kept),
        tuple(_threads(window)), tuple(_ports(window, lost)), window.cost, tuple(_limits(window)),
    ), advised(kept)  # fmt: skip


def advised(found: Collection[Found]) -> tuple[Advice, ...]:
    """Return each change that is advised once, in the order of the findings."""
    return tuple({each.advice.name: each.advice for each in found if each.advice is not None}.values())


def _not_seen(each: Unseen) -> Found:
    return Found(Finding(
        Cause.NOT_SEEN, Severity.UNKNOWN, None, None, 0, f"{each.part} could not be read, so nothing is said about it.",
        (each.why,), each.command or "`ovs-hotswap status`",
    ))  # fmt: skip


def _threads(window: Window) -> Iterator[ThreadLoad]:
    intervals = window.intervals
    for core, load in sorted(window.whole.cores.items()):
        shares = [each.cores[core].busy for each in intervals if core in each.cores]
        known = [share for share in shares if share is not None]
        polled = sum(queue.core == core and queue.enabled for port in window.ports.values() for queue in port.queues)
        yield ThreadLoad(
            core, load.numa, _rounded(load.busy), _rounded(max(known, default=None)), round(load.waits, 3), polled
        )  # fmt: skip


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)


def _ports(window: Window, lost: Collection[losses.Loss]) -> Iterator[PortLoad]:
    """Yield the ports that lost packets first, then those with the most packets."""
    seconds, intervals, whole = window.seconds, window.intervals, window.whole
    by_port = {name: [loss for loss in lost if loss.port.name == name] for name in window.ports}

    def rate(name: str, counter: str) -> tuple[int, int]:
        rates = [each.grown(name, counter) / each.seconds for each in intervals if each.seconds]
        return round(whole.grown(name, counter) / seconds) if seconds else 0, round(max(rates, default=0))

    found = [
        PortLoad(name, *rate(name, "rx_packets"), *rate(name, "tx_packets"), sum(loss.lost for loss in by_port[name]),
                 max((len(loss.lossy) for loss in by_port[name]), default=0))
        for name in window.ports
    ]  # fmt: skip
    busy = [each for each in found if each.rx_peak or each.tx_peak or each.lost]
    yield from sorted(busy, key=lambda each: (-each.lost, -each.rx - each.tx, each.port))[:_PORTS]


def _limits(window: Window) -> Iterator[str]:
    if window.upgrade:
        yield UPGRADE
    loads = window.whole.cores.values()
    if loads and all(load.busy is None for load in loads):
        yield NO_CYCLES
    if window.other_config.get("pmd-perf-metrics") != "true":
        yield NO_METRICS
    elsewhere = sorted(port.name for port in window.ports.values() if port.elsewhere)
    if elsewhere:
        yield f"this switch does not serve {some(elsewhere)}: what it drops of theirs are copies"

"""Taking over a running switch that others program, with many VMs, beside its alternatives in the same run.

The distribution's Open vSwitch with DPDK serves the VMs directly, on bridges with the action NORMAL; each has a real
QEMU, whose guest's driver is simulated (``bench.guests.qemus``). Nothing is done (*floor*); then a whole `ovs-hotswap
upgrade` to another instance of the same release takes all VMs over without a new connection (*takeover*). On another
host like it the switch is ended and started again (*restart*), the broker takes the VMs over, which stay with their
switch (`ovs-hotswap adopt`, *adopt*), and then, after `release-vms`, each VM gets a new connection by way of the broker
(`ovs-hotswap adopt --reconnect`, *reconnect*).

Some VMs receive a frame each millisecond. A gap is the longest time between two frames of such a VM in the 0.3 seconds
around its own change, or, at the restart, from the order to end the switch on. The driver of a simulated guest is not
stopped with its QEMU, as that of a real one would be: such a guest stands still besides for as long as its QEMU does.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import cases
from bench.guests import Events, Stats
from bench.guests.plan import NOBODY
from bench.stock_bed import StockBed
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.cli.output import Output
from ovs_hotswap.config_file import load_config
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.system import System
from tests.support.stock_drive import Operator

RATE = 1000  # frames a second to each VM that has traffic
TALKING_PAIRS = 4
PAUSE_US = 200
FLOOR, RESTART, ADOPT, RECONNECT, TAKEOVER = "floor", "restart", "adopt", "reconnect", "takeover"
_SERVED_S = 60.0
_COMMAND_S = 400.0
_FLOORS = 20
_BEFORE_NS, _AFTER_NS = 200_000_000, 100_000_000  # around the change of one VM, in which no other is changed
_STILL = re.compile(r"stood still for (?P<ms>[0-9.]+) ms")


@dataclass(frozen=True, slots=True)
class Case:
    vms: int
    queues: int

    def __str__(self) -> str:
        return f"{self.vms}x{self.queues}"


CASES = tuple(Case(vms, queues) for vms in (30, 64) for queues in (1, 4))


@dataclass(frozen=True, slots=True)
class Frames:
    """What became of the frames of one way."""

    sent: int
    lost: int
    doubled: int
    reordered: int

    @classmethod
    def between(cls, before: Stats, after: Stats) -> Frames:
        return cls(*(after.total(name) - before.total(name) for name in ("sent", "lost", "doubled", "reordered")))


@dataclass(frozen=True, slots=True)
class Way:
    """``gaps_ms``: of the VMs with traffic. ``whole_ms``: the longest gap of each of them from the begin to the end.
    ``seconds``: for all VMs."""

    gaps_ms: Sequence[float]
    whole_ms: Sequence[float]
    seconds: float
    frames: Frames


@dataclass(slots=True)
class Result:
    """``stopped_ms``: how long each VM's QEMU stood still. ``steps``: the seconds of each step of the upgrade.
    ``unreported``: of how many VMs the database said after the restart that they were not connected, although they were
    served."""

    case: Case
    bridges: int
    ways: dict[str, Way] = field(default_factory=dict)
    stopped_ms: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    unreported: int = 0


def longest(events: Events, vms: Mapping[int, tuple[int, int]]) -> list[float]:
    """The longest gap of each VM between its two instants, in milliseconds."""
    found = [events.received(vm).largest(begin, end) for vm, (begin, end) in vms.items()]
    return [gap.ms for gap in found if gap is not None]


def still(items: Mapping[str, str]) -> dict[str, float]:
    """How long each QEMU stood still, from the texts of the step ``adopt``."""
    return {vm: float(found["ms"]) for vm, text in items.items() if (found := _STILL.search(text))}


class Hosts:
    """A host with the VMs of a case."""

    def __init__(self, bed: StockBed, result: Result, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._say, self.result = bed, bed.fleet, say, result
        self._operator = Operator(bed)
        self._config = load_config(self._operator.config)
        targets = self._fleet.spec.targets
        self._talking = [vm for vm, target in enumerate(targets) if target != NOBODY]

    def take_over(self) -> None:
        """Raises HotswapError; a command that fails raises AssertionError."""
        self._operator.start_broker()
        self._way(FLOOR, self._floor)
        self._way(TAKEOVER, self._upgrade)

    def alternatives(self) -> None:
        """Raises what ``take_over`` raises."""
        self._way(RESTART, self._restart)
        self.result.unreported = self._bed.report_all()
        self._operator.start_broker()
        self._way(ADOPT, lambda: self._adopted(self._operator.ask("adopt", timeout=_COMMAND_S)))
        self._operator.ask("release-vms", timeout=_COMMAND_S)
        self._fleet.wait_served(_SERVED_S)
        self._bed.report_all()
        self._way(RECONNECT, lambda: self._adopted(self._operator.ask("adopt", "--reconnect", timeout=_COMMAND_S)))

    def _way(self, name: str, act: Callable[[], list[dict[int, tuple[int, int]]]]) -> None:
        """``act`` returns the instants between which each VM's gap is looked for; several times, for the floor."""
        self._say(f"{self.result.case}: {name}")
        fleet = self._fleet
        before = fleet.stop()
        fleet.start(RATE)
        fleet.wait_flowing(_SERVED_S)
        time.sleep(1.0)
        fleet.forget()
        time.sleep(1.0)
        begin = time.monotonic_ns()
        times = act()
        end = time.monotonic_ns()
        time.sleep(1.0)
        events = fleet.events()
        after = fleet.stop()
        gaps = [gap for each in times for gap in longest(events, each)]
        whole = longest(events, dict.fromkeys(self._talking, (begin, end)))
        self.result.ways[name] = Way(gaps, whole, (end - begin) / 1e9, Frames.between(before, after))

    def _floor(self) -> list[dict[int, tuple[int, int]]]:
        found = []
        for _ in range(_FLOORS):
            begin = time.monotonic_ns()
            time.sleep((_BEFORE_NS + _AFTER_NS) / 1e9)
            found.append(dict.fromkeys(self._talking, (begin, time.monotonic_ns())))
        return found

    def _restart(self) -> list[dict[int, tuple[int, int]]]:
        begin = time.monotonic_ns()
        self._bed.end_switch()
        self._bed.start_switch()
        self._fleet.wait_served(_SERVED_S)
        self._fleet.wait_flowing(_SERVED_S)
        return [dict.fromkeys(self._talking, (begin, time.monotonic_ns()))]

    def _upgrade(self) -> list[dict[int, tuple[int, int]]]:
        document = self._operator.ask("upgrade", "--release", "host", "--force", timeout=_COMMAND_S)
        self.result.steps = {step["name"]: step["seconds"] or 0.0 for step in document["steps"]}
        self.result.stopped_ms = still(next(step["items"] for step in document["steps"] if step["name"] == "adopt"))
        return self._adopted(document)

    def _adopted(self, _document: Any) -> list[dict[int, tuple[int, int]]]:
        """The time around the instant from which the broker has had each VM."""
        offset = time.monotonic_ns() - time.time_ns()
        with BrokerClient(self._config.broker_socket) as client:
            since = {vm.name: vm.owner_since for vm in client.vms()}
        found = {}
        for vm in self._talking:
            owned = since[self._fleet.names[vm]]
            assert owned is not None, f"VM {self._fleet.names[vm]} has no owner"
            instant = int(owned * 1e9) + offset
            found[vm] = (instant - _BEFORE_NS, instant + _AFTER_NS)
        return [found]


# ------------------------------------------------------------------------------------------------------------- output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "hosts")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a VM was not taken over, or a frame was lost in the takeover. Raises HotswapError."""
    results = cases.each_case(CASES, arguments, output, lambda case: run_case(case, output.line, system), asdict)
    show(output, results)
    taken = [len(result.stopped_ms) == result.case.vms for result in results]
    lost = [result.ways[TAKEOVER].frames.lost for result in results]
    return 0 if all(taken) and not any(lost) else 1


def run_case(case: Case, say: Callable[[str], None], system: System) -> Result:
    """One host after the other, because a VM can be taken over once."""
    result = Result(case, bridges=0)
    for act in (Hosts.take_over, Hosts.alternatives):
        with StockBed(system, case.vms, case.queues, talking_pairs=TALKING_PAIRS, pause_us=PAUSE_US) as bed:
            result.bridges = len(bed.bridges)
            act(Hosts(bed, result, say))
    return result


def show(output: Output, results: Collection[Result]) -> None:
    rows = [(str(result.case), name, str(len(way.gaps_ms)), *figures(way.gaps_ms), *figures(way.whole_ms)[::2],
             f"{way.seconds:.1f}", f"{way.frames.sent}",
             f"{way.frames.lost} / {way.frames.doubled} / {way.frames.reordered}")
            for result in results for name, way in result.ways.items()]  # fmt: skip
    columns = ("VMs x queues", "way", "gaps", "p50 ms", "p99 ms", "max ms", "in all, p50 ms", "max ms", "all, s",
               "sent", "lost / doubled / reordered")  # fmt: skip
    output.table(columns, rows, title="longest gap of a VM around its change, and in all")
    output.line()
    stopped = [
        (str(result.case), str(len(result.stopped_ms)), *figures(list(result.stopped_ms.values())),
         f"{result.steps['adopt']:.1f}", f"{sum(result.steps.values()):.1f}", str(result.unreported))
        for result in results
    ]  # fmt: skip
    output.table(("VMs x queues", "taken over", "p50 ms", "p99 ms", "max ms", "step adopt, s", "upgrade, s",
                  "unreported"), stopped, title="how long QEMU stood still")  # fmt: skip


def figures(values: Sequence[float]) -> tuple[str, str, str]:
    """p50, p99 and the largest."""
    ordered = sorted(values)
    found = (quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1] if ordered else None)
    p50, p99, most = ("-" if value is None else f"{value:.1f}" for value in found)
    return p50, p99, most

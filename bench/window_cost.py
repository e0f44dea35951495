"""What a frame costs inside a window against outside: the overlay's window, and wire mode by mirrors.

Two simulated guests send each other a fixed number of frames a second. The cost of a frame is the processor cycles in
which the PMD threads of both switches were not idle, for each frame that arrived: on a core of its own, a switch
forwards so many times fewer frames. Its latency is from sent to received. In wire mode a frame of a VM on the new
switch passes new, old and new switch; one of a VM on the old switch passes that one alone, and its copy is dropped at
the new one.

All ways have the same switches, flows and guests, in one run, and each is compared with the same guests without a
window just before and just after it: the overlay's window with the active switch alone (*outside*), wire mode with the
new switch after the cut (*direct*), which takes its turn with wire mode several times in each round. A ratio is the
geometric mean, with its 95 % confidence interval (bootstrap).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.forwarding import ratio, up
from bench.guests import Fleet
from bench.machine import machine
from bench.window import Notes, window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.move_vms import move_all
from tests.support.wire_bed import WireBed

OUTSIDE, BESIDE, DIRECT = "outside", "beside a standby", "direct, on the new side"
OVERLAY = (
    "overlay window, guests on the old side",
    "overlay window, on the new side",
    "overlay window, on either side",
)
WIRED = ("wire mode, guests on the old side", "wire mode, on the new side", "wire mode, on either side")
# What each way is compared with.
BASES = {OUTSIDE: OUTSIDE, **dict.fromkeys((*OVERLAY, BESIDE), OUTSIDE), DIRECT: DIRECT, **dict.fromkeys(WIRED, DIRECT)}

_SETTLES_S = 0.5
_TURNS = 3
_BUSY = re.compile(r"^\s+processing cycles:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cost:
    """``cycles``: for each frame that arrived. Latencies in microseconds. ``lost`` and ``doubled``: frames."""

    cycles: float
    p50_us: float
    p99_us: float
    lost: int
    doubled: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One measurement."""

    way: str
    cost: Cost


class WindowCost:
    """``slots``: all measurements in their order, at ``rate`` frames a second from each guest."""

    def __init__(self, bed: WireBed, fleet: Fleet, rate: int, seconds: float, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._rate, self._seconds, self._say = bed, fleet, rate, seconds, say
        self.slots: list[Slot] = []

    def round(self) -> None:
        """Every way at least once. Raises HotswapError."""
        bed, host = self._bed, self._bed.host
        self._measure(OUTSIDE)
        with window(host, "host") as run:
            self._measure(OVERLAY[0])
            move_all(host, Side.B, run)
            self._measure(OVERLAY[1])
            self._apart()
            self._measure(OVERLAY[2])
            move_all(host, Side.A, run)
        self._measure(OUTSIDE)
        with bed.opened() as run:
            host.program_flows(Side.B, Form.FINAL)
            self._measure(BESIDE)
            bed.wire.open(Side.A, bed.vm_ports)
            bed.wire.wire(Side.B)
            self._wired(run)
            move_all(host, Side.A, run)
            for side in Side:
                bed.wire.close(side)
        self._measure(OUTSIDE)

    def _wired(self, run: Notes) -> None:
        """Wire mode and the cut, in turn. The guests are on the new side for all but the last two measurements."""
        bed = self._bed
        move_all(bed.host, Side.B, run)
        for _ in range(_TURNS):
            self._cut()
            self._measure(WIRED[1])
        self._cut()
        self._apart()
        self._measure(WIRED[2])
        move_all(bed.host, Side.A, run)
        self._measure(WIRED[0])

    def _cut(self) -> None:
        """Measure without wire mode, and wire the new side again."""
        wire = self._bed.wire
        wire.cut(Side.B)
        self._measure(DIRECT)
        wire.wire(Side.B)

    def _apart(self) -> None:
        self._bed.host.backends.move(self._bed.layout.guests[0].name, Side.A)

    def _measure(self, way: str) -> None:
        self._say(way)
        host, fleet = self._bed.host, self._fleet
        fleet.start(self._rate)
        time.sleep(_SETTLES_S)
        before = fleet.stop()
        fleet.forget()
        running = [side for side in Side if host.running(side)]
        for side in running:
            appctl(host.control(side), "dpif-netdev/pmd-stats-clear")
        fleet.start(self._rate)
        time.sleep(self._seconds)
        cycles = sum(busy_cycles(appctl(host.control(side), "dpif-netdev/pmd-stats-show")) for side in running)
        after, events = fleet.stop(), fleet.events()
        arrived = after.total("received") - before.total("received")
        if not arrived:
            raise LabError(f"{way}: no frames arrive")
        times = np.concatenate([events.received(vm).latencies() for vm in range(len(fleet.names))]) / 1e3
        lost, doubled = (after.total(each) - before.total(each) for each in ("lost", "doubled"))
        p50, p99 = (float(np.quantile(times, each)) for each in (0.5, 0.99))
        self.slots.append(Slot(way, Cost(cycles / arrived, p50, p99, lost, doubled)))


def busy_cycles(text: str) -> int:
    """From ``dpif-netdev/pmd-stats-show`` (lib/dpif-netdev.c, pmd_info_show_stats)."""
    return sum(int(found) for found in _BUSY.findall(text))


def bases(slots: Sequence[Slot], way: str) -> list[tuple[float, float]]:
    """The cycles of each measurement of ``way``, with those of its base: the mean of the one before it and the one
    after it."""
    base, found = BASES[way], []
    for number, slot in enumerate(slots):
        if slot.way == way:
            before = [each.cost.cycles for each in slots[:number] if each.way == base][-1:]
            after = [each.cost.cycles for each in slots[number + 1 :] if each.way == base][:1]
            near = before + after if way != base else [slot.cost.cycles]
            found.append((slot.cost.cycles, statistics.fmean(near)))
    return found


COLUMNS = ("way", "times", "cycles for a frame", "compared with", "ratio (95 %)", "p50 us", "p99 us", "lost / doubled")


def rows(slots: Sequence[Slot]) -> list[Sequence[str]]:
    """A line for each way."""
    lines: list[Sequence[str]] = []
    for way, base in BASES.items():
        costs = [slot.cost for slot in slots if slot.way == way]
        paired = bases(slots, way)
        mean, low, high = ratio([cycles for cycles, _ in paired], [other for _, other in paired])
        p50, p99 = (statistics.median(getattr(each, name) for each in costs) for name in ("p50_us", "p99_us"))
        cycles = statistics.fmean(each.cycles for each in costs)
        lost, doubled = (sum(getattr(each, name) for each in costs) for name in ("lost", "doubled"))
        compared = (base, f"{mean:.2f} ({low:.2f} to {high:.2f})") if way != base else ("-", "-")
        lines.append((way, str(len(costs)), f"{cycles:.0f}", *compared, f"{p50:.0f}", f"{p99:.0f}",
                      f"{lost} / {doubled}"))  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("window-report.json"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rate", type=int, default=5000, help="frames a second of each guest")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    with up(WireBed, 2, system) as bed:
        bed.start()
        with Fleet(bed.fleet_spec()) as fleet:
            fleet.wait_served(30)
            cost = WindowCost(bed, fleet, arguments.rate, arguments.seconds, output.line)
            for _ in range(arguments.rounds):
                cost.round()
                slots = [asdict(slot) for slot in cost.slots]
                document = {"machine": machine(), "rate": arguments.rate, "seconds": arguments.seconds, "slots": slots}
                arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    output.line()
    output.table(COLUMNS, rows(cost.slots), title="two guests, both switches' PMD threads")
    return 0

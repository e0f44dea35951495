"""What a frame costs inside a window against outside: the overlay's window, and wire mode by mirrors.

Two simulated guests send each other a fixed number of frames a second. The cost of a frame is the processor cycles in
which the PMD threads of both switches were not idle, for each frame that arrived: on a core of its own, a switch
forwards so many times fewer frames. Its latency is from sent to received. In wire mode a frame of a VM on the new
switch passes new, old and new switch; one of a VM on the old switch passes that one alone, and its copy is dropped at
the new one. Both windows have the same pair of switches, flows and guests, in one run; a ratio is to *outside*, where
the active switch runs alone, of the same round.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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

OUTSIDE, AFTER = "outside", "outside, afterwards"
OVERLAY = (
    "overlay window, guests on the old side",
    "overlay window, on the new side",
    "overlay window, on either side",
)
BESIDE, CUT = "beside a standby", "wire mode, after the cut"
WIRED = ("wire mode, guests on the old side", "wire mode, on the new side", "wire mode, on either side")
WAYS = (OUTSIDE, *OVERLAY, BESIDE, *WIRED, CUT, AFTER)

_SETTLES_S = 1.0
_BUSY = re.compile(r"^\s+processing cycles:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cost:
    """``cycles``: for each frame that arrived. Latencies in microseconds. ``lost`` and ``doubled``: frames."""

    cycles: float
    p50_us: float
    p99_us: float
    lost: int
    doubled: int


class WindowCost:
    """``costs``: of each way, in each round, at ``rate`` frames a second from each guest."""

    def __init__(self, bed: WireBed, fleet: Fleet, rate: int, seconds: float, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._rate, self._seconds, self._say = bed, fleet, rate, seconds, say
        self.costs: dict[str, list[Cost]] = {way: [] for way in WAYS}

    def round(self) -> None:
        """Every way once. Raises HotswapError."""
        bed, host = self._bed, self._bed.host
        self._measure(OUTSIDE)
        with window(host, "host") as run:
            self._on_all_sides(OVERLAY, run)
            move_all(host, Side.A, run)
        with bed.opened() as run:
            host.program_flows(Side.B, Form.FINAL)
            self._measure(BESIDE)
            bed.wire.open(Side.A, bed.vm_ports)
            bed.wire.wire(Side.B)
            self._on_all_sides(WIRED, run)
            move_all(host, Side.B, run)
            bed.wire.cut(Side.B)
            self._measure(CUT)
            bed.wire.wire(Side.B)
            move_all(host, Side.A, run)
            for side in Side:
                bed.wire.close(side)
        self._measure(AFTER)

    def _on_all_sides(self, ways: Sequence[str], run: Notes) -> None:
        self._measure(ways[0])
        move_all(self._bed.host, Side.B, run)
        self._measure(ways[1])
        self._bed.host.backends.move(self._bed.layout.guests[0].name, Side.A)
        self._measure(ways[2])

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
        self.costs[way].append(Cost(cycles / arrived, p50, p99, lost, doubled))


def busy_cycles(text: str) -> int:
    """From ``dpif-netdev/pmd-stats-show`` (lib/dpif-netdev.c, pmd_info_show_stats)."""
    return sum(int(found) for found in _BUSY.findall(text))


def rows(costs: Mapping[str, Sequence[Cost]]) -> list[Sequence[str]]:
    """A line for each way, with the ratio of its cycles to those of ``OUTSIDE``."""
    lines: list[Sequence[str]] = []
    base = [each.cycles for each in costs[OUTSIDE]]
    for way, values in costs.items():
        mean, low, high = ratio([each.cycles for each in values], base)
        p50, p99 = (statistics.median(getattr(each, name) for each in values) for name in ("p50_us", "p99_us"))
        cycles = statistics.fmean(each.cycles for each in values)
        lost, doubled = (sum(getattr(each, name) for each in values) for name in ("lost", "doubled"))
        lines.append((way, f"{cycles:.0f}", f"{mean:.2f} ({low:.2f} to {high:.2f})", f"{p50:.0f}", f"{p99:.0f}",
                      f"{lost} / {doubled}"))  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("window-report.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
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
    costs = {way: [asdict(each) for each in values] for way, values in cost.costs.items()}
    document = {"machine": machine(), "rate": arguments.rate, "seconds": arguments.seconds, "costs": costs}
    arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    output.line()
    columns = ("way", "cycles for a frame", "ratio (95 %)", "p50 us", "p99 us", "lost / doubled")
    output.table(columns, rows(cost.costs), title="two guests, both switches' PMD threads")
    return 0

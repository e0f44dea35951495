"""Frames a second between two guests inside a window against outside: the overlay's window, and wire mode by mirrors.

The guests are those of ``forwarding``: frames circulate between them without end. With many frames the rate shows how
much the switches can forward; with two, one in each direction, it shows how long one frame takes. In wire mode a frame
of a VM on the new switch passes new, old and new switch; one of a VM on the old switch passes that one alone, and its
copy is dropped at the new one. Both windows have the same pair of switches, flows and guests, in one run; a ratio is to
*outside*, where the active switch runs alone, of the same round and with the same guests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.forwarding import rate, ratio, up
from bench.machine import machine
from bench.testpmd import BURST, Guests, needed
from bench.window import Notes, window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
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

Rates = dict[str, list[float]]  # by way


class WindowCost:
    """``rates``: of each way in each round, with so many frames in flight."""

    def __init__(self, bed: WireBed, burst: int, seconds: int, say: Callable[[str], None]) -> None:
        self._bed, self._burst, self._seconds, self._say = bed, burst, seconds, say
        self.rates: Rates = {way: [] for way in WAYS}

    def round(self) -> None:
        """Every way once. Raises HotswapError."""
        bed, host = self._bed, self._bed.host
        first = bed.layout.guests[0].name
        with contextlib.closing(Guests(bed, burst=self._burst)) as guests:

            def on_all_sides(ways: Sequence[str], run: Notes) -> None:
                self._measure(ways[0], guests)
                move_all(host, Side.B, run)
                self._measure(ways[1], guests)
                host.backends.move(first, Side.A)
                self._measure(ways[2], guests)

            self._measure(OUTSIDE, guests)
            with window(host, "host") as run:
                on_all_sides(OVERLAY, run)
                move_all(host, Side.A, run)
            with bed.opened() as run:
                host.program_flows(Side.B, Form.FINAL)
                self._measure(BESIDE, guests)
                bed.wire.open(Side.A, bed.vm_ports)
                bed.wire.wire(Side.B)
                on_all_sides(WIRED, run)
                move_all(host, Side.B, run)
                bed.wire.cut(Side.B)
                self._measure(CUT, guests)
                bed.wire.wire(Side.B)
                move_all(host, Side.A, run)
                for side in Side:
                    bed.wire.close(side)
            self._measure(AFTER, guests)

    def _measure(self, way: str, guests: Guests) -> None:
        self._say(f"{2 * self._burst} frames: {way}")
        self.rates[way].append(rate(self._bed, guests, self._seconds))


def rows(rates: Mapping[str, Sequence[float]], burst: int) -> list[Sequence[str]]:
    """A line for each way, with its ratio to ``OUTSIDE``."""
    lines: list[Sequence[str]] = []
    for way, values in rates.items():
        mean, low, high = ratio(values, rates[OUTSIDE])
        frames = statistics.fmean(values)
        lines.append((way, f"{frames:.0f}", f"{2 * burst / frames * 1e6:.1f}", f"{mean:.3f} ({low:.3f} to {high:.3f})"))
    return lines


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("window-report.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--bursts", type=int, nargs="+", default=[BURST, 1], help="half of the frames in flight")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    needed()
    found: dict[int, Rates] = {}
    for burst in arguments.bursts:
        with up(WireBed, 2, system) as bed:
            bed.start()
            cost = WindowCost(bed, burst, arguments.seconds, output.line)
            for _ in range(arguments.rounds):
                cost.round()
        found[burst] = cost.rates
        document = {
            "machine": machine(),
            "seconds": arguments.seconds,
            "frames": {2 * key: each for key, each in found.items()},
        }
        arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    columns = ("way", "frames a second", "us from guest to guest", "ratio (95 %)")
    for burst, rates in found.items():
        output.line()
        output.table(columns, rows(rates, burst), title=f"{2 * burst} frames in flight")
    return 0

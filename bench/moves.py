"""``make bench``: handover times on the broker's clock, and what guests notice, beside a plain restart.

One lab, one run: the noise floor (same traffic, nothing done), the moves, the restart. Writes a JSON report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.window import back_and_forth, window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.lab import RELEASE_CACHE, Lab
from ovs_hotswap.lab.demo import SUITE, Demo
from ovs_hotswap.lab.phases import Phase
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.system import System

DIRECTORY = Path("/run/ovs-hotswap-bench")
P50_MS, P99_MS = 0.4, 3.0  # the bars for a 2-core machine


class Bench:
    def __init__(self, lab: Lab, system: System, output: Output, moves: int) -> None:
        self._lab, self._system, self._output, self._moves = lab, system, output, moves
        self._demo = Demo(lab, system, output.line, lambda: nullcontext(lambda _event: None))

    def run(self) -> dict[str, Any]:
        """Raises HotswapError if the lab or an instance fails."""
        host = self._demo.start()
        self._output.line("noise floor")
        quiet = self._demo.quiet()
        self._output.line("opening the window: two instances, every VM parked on the standby")
        with window(host, SUITE) as run:
            self._output.line(f"{self._moves} moves")
            times: list[float] = []

            def move() -> dict[str, float]:
                times.extend(back_and_forth(host, run, self._moves))
                return {}

            moving = self._demo.phase("moves", move)
        self._output.line("plain restart, without a broker")
        restart = self._demo.plain_restart()
        return self._document(times, quiet, moving, restart)

    def _document(self, times: Sequence[float], quiet: Phase, moving: Phase, restart: Phase) -> dict[str, Any]:
        ordered = sorted(times)
        figures = {
            "moves": len(ordered),
            "p50_us": quantile(ordered, 0.50),
            "p90_us": quantile(ordered, 0.90),
            "p99_us": quantile(ordered, 0.99),
            "max_us": ordered[-1],
        }
        return {
            "machine": machine(),
            "hand_over": figures,
            "times_us": list(times),
            "phases": {phase.name: phase.document() for phase in (quiet, moving, restart)},
            "restart_over_hand_over": restart.longest_gap_ms * 1000 / (figures["p50_us"] or 1.0),
        }


def show(output: Output, document: dict[str, Any]) -> None:
    figures = document["hand_over"]
    rows = [(key, f"{figures[key]:.0f}") for key in ("moves", "p50_us", "p90_us", "p99_us", "max_us")]
    output.line()
    output.table(("handover, broker's clock", "value"), rows)
    output.line()
    seen = [
        (name, str(phase["sent"]), str(phase["lost"]), str(phase["duplicated"]), f"{phase['longest_gap_ms']:.1f}")
        for name, phase in document["phases"].items()
    ]
    output.table(("what the guests saw (ping every 10 ms)", "sent", "lost", "doubled", "longest gap ms"), seen)
    output.line()
    output.line(f"a plain restart cut the guests off {document['restart_over_hand_over']:.0f} times as long "
                "as the median handover")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("bench-report.json"))
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--vms", type=int, default=4)


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a bar was missed. Raises HotswapError."""
    Lab.existing(DIRECTORY, system).down()
    lab = Lab(DIRECTORY, arguments.vms, system)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up(RELEASE_CACHE)
        document = Bench(lab, system, output, arguments.moves).run()
    arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    show(output, document)
    figures = document["hand_over"]
    if figures["p50_us"] > P50_MS * 1000 or figures["p99_us"] > P99_MS * 1000:
        output.line(f"over the bar: p50 {P50_MS} ms, p99 {P99_MS} ms")
        return 1
    return 0

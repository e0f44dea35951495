"""The back-end modes side by side: moves and crashes of QEMU guests in ``qemu-dual``, then moves in ``broker``.

The same QEMU program serves both. Times of a move are from the first message to the old switch until the new one's
answer, on the clock of QEMU and of the broker; what guests notice is in their pings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from bench.bed import WATCH
from bench.machine import machine
from bench.window import back_and_forth, window
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli.output import Output
from ovs_hotswap.lab import RELEASE_CACHE, GuestOptions, Lab
from ovs_hotswap.lab.demo import SUITE, Demo
from ovs_hotswap.lab.guest import dual_qemu
from ovs_hotswap.lab.phases import Phase
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.switch.release import HOST
from ovs_hotswap.system import System

DIRECTORY = Path("/run/ovs-hotswap-bench")
P99_US = 2000.0  # the bar for the mode without a broker


class ModeBench:
    """One back-end mode in a lab of its own. ``suite``: of the other switch, ``None`` for two of the host's.

    ``times_us``: of each move; ``failover_us``: without an owner after each SIGKILL, on QEMU's clock, which begins when
    it sees that the switch is gone.
    """

    def __init__(self, lab: Lab, system: System, output: Output, suite: str | None = SUITE) -> None:
        self._lab, self._system, self._output, self._suite = lab, system, output, suite
        self._demo = Demo(lab, system, output.line, lambda: nullcontext(lambda _event: None))
        self._host = self._demo.start(suite)
        self.phases: list[Phase] = []
        self.times_us: list[float] = []
        self.failover_us: list[float] = []

    def run(self, moves: int, kills: int) -> None:
        """Raises HotswapError."""
        self._output.line("noise floor")
        self.phases.append(self._demo.quiet())
        self._output.line(f"{moves} moves")
        with window(self._host, self._suite or HOST) as run:

            def move() -> dict[str, float]:
                self.times_us = back_and_forth(self._host, run, moves)
                return {}

            self.phases.append(self._demo.phase("moves", move))
        if kills:
            with watchdog(self._host, self._lab.config_path, self._lab.layout.directory / "watch.log"):
                for number in range(kills):
                    self._output.line(f"SIGKILL of the active instance, {number + 1} of {kills}")
                    self.phases.append(self._demo.phase("crash", self._kill))

    def _kill(self) -> dict[str, float]:
        active = self._host.active()
        self._demo.kill_active()
        wait_protected(self._host, active.other)
        self.failover_us += [vm.last_move_us for vm in self._host.backends.vms() if vm.last_move_us is not None]
        return {}

    def document(self) -> dict[str, Any]:
        return {"times_us": self.times_us, "failover_us": self.failover_us,
                "phases": [phase.document() for phase in self.phases]}  # fmt: skip


def show(output: Output, modes: dict[str, dict[str, Any]]) -> None:
    rows = [
        (mode, what, str(len(found[key])), *_figures(found[key]))
        for mode, found in modes.items()
        for what, key in (("moves", "times_us"), ("failover", "failover_us"))
        if found[key]
    ]
    output.line()
    output.table(("back end", "rings without an owner", "times", "p50 us", "p99 us", "max us"), rows)
    output.line()
    seen = [
        (mode, phase["name"], str(phase["sent"]), str(phase["lost"]), str(phase["duplicated"]),
         f"{phase['longest_gap_ms']:.1f}")
        for mode, found in modes.items()
        for phase in found["phases"]
    ]  # fmt: skip
    output.table(("back end", "what the guests saw", "sent", "lost", "doubled", "longest gap ms"), seen)


def _figures(values: Sequence[float]) -> tuple[str, ...]:
    ordered = sorted(values)
    return (*(f"{quantile(ordered, part) or 0:.0f}" for part in (0.5, 0.99)), f"{ordered[-1]:.0f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("modes-report.json"))
    parser.add_argument("--moves", type=int, default=100, help="in each back-end mode")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--vms", type=int, default=4)
    parser.add_argument("--qemu", help="the QEMU with two back ends; the installed one")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if the bar was missed. Raises HotswapError."""
    found: dict[str, dict[str, Any]] = {}
    qemu = arguments.qemu or dual_qemu()
    for mode, kills in ((BackendMode.QEMU_DUAL, arguments.kills), (BackendMode.BROKER, 0)):
        output.line(f"back-end mode {mode}")
        Lab.existing(DIRECTORY, system).down()
        lab = Lab(DIRECTORY, arguments.vms, system, GuestOptions(backend=mode, qemu=qemu))
        with ExitStack() as stack:
            stack.callback(lab.down)
            lab.up(RELEASE_CACHE)
            lab.config_path.write_text(lab.config_path.read_text() + WATCH)
            bench = ModeBench(lab, system, output)
            bench.run(arguments.moves, kills)
        found[str(mode)] = bench.document()
        arguments.report.write_text(json.dumps({"machine": machine(), "modes": found}, indent=2) + "\n")
    show(output, found)
    p99 = quantile(sorted(found[str(BackendMode.QEMU_DUAL)]["times_us"]), 0.99)
    return int(p99 is None or p99 > P99_US)

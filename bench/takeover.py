"""Brokers of two versions take over from each other, by real processes: Open vSwitch with DPDK and QEMU guests under
traffic. Guests ping one another and a remote host all the time.

``OTHER`` is the Python of a virtual environment with the other version of this program. Its broker begins. Then this
version takes over from it, this version from itself, the other version from this one, and so on for ``--rounds``; at
last this version's broker takes part in two whole upgrades. In each round the guests are also watched while nothing is
done (``quiet``), which shows what the machine itself costs them. Requests that are lost and answers that come twice are
told exactly by their numbers. The exit status is 1 if there is one, if a connection to a QEMU had to be made again, or
if this version cannot take over. A takeover by the other version may be refused; the refusal is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import machine
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import CommandError, LabError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab.demo import Demo
from ovs_hotswap.lab.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.phases import Phase
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.switch.release import HOST
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

OTHER, THIS = "other", "this"
_ROUND = ((OTHER, THIS), (THIS, THIS), (THIS, OTHER))
_COMMAND_S = 60.0
_CONNECTED = "QEMU connected"  # a line of the broker's log


class PlainLab(Lab):
    """A lab whose configuration every version reads."""

    def _config_text(self) -> str:
        lines = super()._config_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("backend = "))


@dataclass(frozen=True, slots=True)
class Takeover:
    """``phase`` is what the guests noticed, and ``refusal`` why the broker stayed, if it did."""

    old: str
    new: str
    phase: Phase
    refusal: str | None

    def row(self) -> tuple[str, ...]:
        found = self.phase
        return (self.phase.name, f"{found.seconds:.2f}", str(found.sent), str(found.lost), str(found.duplicated),
                f"{found.longest_gap_ms:.1f}", self.refusal or "")  # fmt: skip


class Takeovers:
    def __init__(self, lab: Lab, pythons: dict[str, str], output: Output, system: System) -> None:
        self._lab, self._pythons, self._output, self._system = lab, pythons, output, system
        self._host = Host(lab.config, system)
        self._demo = Demo(lab, system, output.line, _unseen)
        self.found: list[Takeover] = []
        self.others: list[Phase] = []
        self.versions: dict[str, str] = {}

    def run(self, rounds: int) -> None:
        """Raises HotswapError if this version cannot take over, or the guests' pings do not flow."""
        for which in (OTHER, THIS):
            self.versions[which] = f"{self._ask(which, '--version').strip()} ({self._pythons[which]})"
        self._ask(OTHER, "broker", "start")
        self._see(OTHER)
        self._demo.start(None)
        runs = OTHER
        for _ in range(rounds):
            self.others.append(self._demo.quiet())
            for old, new in _ROUND:
                if old == runs:
                    runs = self._take_over(old, new)
        if runs != THIS:
            self._take_over(runs, THIS)
        self.others += [self._demo.phase("upgrade", self._upgrade) for _ in range(2)]

    @property
    def reconnected(self) -> int:
        """How often a guest's QEMU was connected to again."""
        log = (self._lab.config.run_dir / "broker.log").read_text(errors="replace")
        return log.count(_CONNECTED) - len(self._lab.guests)

    @property
    def well(self) -> bool:
        phases = [*(each.phase for each in self.found), *self.others]
        return not self.reconnected and not any(phase.lost or phase.duplicated for phase in phases)

    def _take_over(self, old: str, new: str) -> str:
        """Return whose broker runs after it."""
        refusals: list[str] = []

        def act() -> dict[str, float]:
            try:
                self._ask(new, "broker", "take-over")
            except CommandError as error:
                if new == THIS:
                    raise
                refusals.append(error.message)
            return {}

        phase = self._demo.phase(f"{old} to {new}", act)
        taken = Takeover(old, new, phase, refusals[0] if refusals else None)
        self.found.append(taken)
        self._output.line(f"{phase.name}: {phase.lost} of {phase.sent} lost, longest gap {phase.longest_gap_ms:.1f} ms")
        runs = old if refusals else new
        self._see(runs)
        return runs

    def _upgrade(self) -> dict[str, float]:
        return Upgrader(self._host).upgrade(HOST, lambda _event: None, force=True).moves

    def _ask(self, which: str, *words: str) -> str:
        """Run a command of a version, in a directory from which no version is imported by chance."""
        python, config = self._pythons[which], str(self._lab.config_path)
        argv = ["env", "-C", "/", python, "-m", "ovs_hotswap", "--config", config, *words]
        return self._system.run(argv, timeout=_COMMAND_S).stdout

    def _see(self, which: str) -> None:
        """Raises LabError if the broker that runs is not of this version, or a VM is not served."""
        pid = self._host.broker.status().pid
        program = self._system.cmdline(pid)[0]
        if program != self._pythons[which]:
            raise LabError(f"the broker, process {pid}, is {program}, not {self._pythons[which]}")
        if cut := [vm.name for vm in self._host.backends.vms(read=False) if vm.to_serve and vm.owner is None]:
            raise LabError(f"no switch serves VM {', '.join(cut)}")


@contextlib.contextmanager
def _unseen() -> Iterator[Callable[[Event], None]]:
    yield lambda _event: None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("other", metavar="OTHER", help="Python of a virtual environment with another version")
    parser.add_argument("--vms", type=int, default=4, help="how many guests (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go there and back (%(default)s)")
    parser.add_argument("--interval", type=float, default=10.0, help="milliseconds between two pings (%(default)s)")
    parser.add_argument("--report", type=Path, help="file for the figures as JSON")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    directory = Path(tempfile.mkdtemp(prefix="ovsh-to-"))
    options = GuestOptions(ping_interval_ms=arguments.interval)
    with ExitStack() as stack:
        lab = PlainLab(directory, arguments.vms, system, options)
        stack.callback(lab.down)
        lab.up()
        pythons = {OTHER: arguments.other, THIS: sys.executable}
        takeovers = Takeovers(lab, pythons, output, system)
        takeovers.run(arguments.rounds)
        _show(output, takeovers)
        if arguments.report is not None:
            arguments.report.write_text(json.dumps(_document(takeovers, arguments), indent=2) + "\n")
        return 0 if takeovers.well else 1


def _show(output: Output, takeovers: Takeovers) -> None:
    output.line()
    for which, version in takeovers.versions.items():
        output.line(f"{which}: {version}")
    rows = [each.row() for each in takeovers.found]
    rows += [Takeover("", "", phase, None).row() for phase in takeovers.others]
    output.table(("what", "seconds", "sent", "lost", "doubled", "longest gap, ms", "refusal"), rows)
    output.line(f"connections to a QEMU that were made again: {takeovers.reconnected}")


def _document(takeovers: Takeovers, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": machine(), "versions": takeovers.versions, "vms": arguments.vms, "interval_ms": arguments.interval,
        "takeovers": [{"old": each.old, "new": each.new, "refusal": each.refusal, **each.phase.document()}
                      for each in takeovers.found],
        "others": [phase.document() for phase in takeovers.others], "reconnected": takeovers.reconnected,
    }  # fmt: skip

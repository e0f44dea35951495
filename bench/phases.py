"""How long each step of a whole upgrade takes, by number of VMs and of flows.

Guests are simulated and idle. Flows beyond those of the VMs are of remote MACs behind one VTEP.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import cases
from bench.bed import Bed
from bench.guests import Fleet
from ovs_hotswap.cli.output import Output
from ovs_hotswap.host.flow_tables import tables
from ovs_hotswap.lab.layout import REMOTE_VTEP, VNI, GuestOptions
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form, lines
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

_TOTAL = "whole"


@dataclass(frozen=True, slots=True)
class Case:
    """``remotes``: MACs on other hosts, besides the lab's."""

    vms: int
    queues: int
    remotes: int

    def __str__(self) -> str:
        return f"{self.vms}x{self.queues}+{self.remotes}"


CASES = (
    Case(1, 1, 0), Case(16, 1, 0), Case(64, 1, 0), Case(255, 1, 0), Case(255, 4, 0),
    Case(16, 1, 10_000), Case(16, 1, 100_000),
)  # fmt: skip


@dataclass(slots=True)
class Result:
    """``seconds``: by step, in their order, and of the whole."""

    case: Case
    flows: int
    seconds: dict[str, float] = field(default_factory=dict)


def remotes_text(count: int) -> str:
    """That many remote MACs for an intent file."""
    macs = (":".join(f"{byte:02x}" for byte in (0x02, 0, *number.to_bytes(4, "big"))) for number in range(1, count + 1))
    return "".join(f'\n[[remote]]\nvni = {VNI}\nmac = "{mac}"\nvtep = "{REMOTE_VTEP}"\n' for mac in macs)


def run_case(case: Case, system: System) -> Result:
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-ph-")), case.vms, system, GuestOptions(queues=case.queues))
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        with bed.layout.overlay_file.open("a") as overlay:
            overlay.write(remotes_text(case.remotes))
        fleet = stack.enter_context(Fleet(bed.fleet_spec()))
        bed.start()
        fleet.wait_served(60)
        result = Result(case, len(lines(tables(bed.host, Side.A, Form.FINAL))))

        def observe(event: Event) -> None:
            if event.kind is EventKind.DONE and event.seconds is not None:
                result.seconds[event.step] = event.seconds

        begin = time.monotonic()
        Upgrader(bed.host).upgrade("host", observe, force=True)
        result.seconds[_TOTAL] = time.monotonic() - begin
        assert bed.host.active() is Side.B
        return result


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "phases")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    show(output, cases.each_case(CASES, arguments, output, lambda case: run_case(case, system), asdict))
    return 0


def show(output: Output, results: Sequence[Result]) -> None:
    """A row for each step, a column for each case."""
    steps = list(dict.fromkeys(step for result in results for step in result.seconds))
    rows = [(step, *(f"{result.seconds.get(step, 0.0):.2f}" for result in results)) for step in steps]
    flows = ("flows", *(str(result.flows) for result in results))
    output.table(("seconds", *(str(result.case) for result in results)), [flows, *rows],
                 title="a whole upgrade by step: VMs x queues + remote MACs")  # fmt: skip

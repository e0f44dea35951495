"""How long `diagnose` takes on a healthy host with many VMs, and that it finds nothing there.

Guests are simulated, and each has some traffic. A watchdog keeps a standby on which all of them are parked. The process
is that of the command, from its start to its end, with its own processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import cases
from bench.bed import Bed
from bench.guests import Fleet
from bench.phases import remotes_text
from ovs_hotswap.cli.output import Output
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.system import System

_RATE = 10.0  # frames a second of each VM
_PAUSE_US = 2000  # guests that look for frames all the time would take the cores from what is measured
_TRAFFIC_S = 3.0  # until the datapath has its flows
_MOST_S = 5.0
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """``remotes``: MACs on other hosts, besides the lab's."""

    vms: int
    remotes: int

    def __str__(self) -> str:
        return f"{self.vms}+{self.remotes}"


CASES = (Case(16, 0), Case(255, 0), Case(255, 2000))


@dataclass(frozen=True, slots=True)
class Look:
    """One call: how long it took, the processor time of its own process and of those that it started, in seconds, its
    exit code and what it found."""

    seconds: float
    processor: float
    code: int
    findings: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.code == 0 and not self.findings and self.seconds < _MOST_S


@dataclass(slots=True)
class Result:
    """``host``: calls without a VM. ``vm``: with one."""

    case: Case
    host: list[Look] = field(default_factory=list)
    vm: list[Look] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return all(look.good for look in (*self.host, *self.vm))


def look(config: Path, *words: str) -> Look:
    argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(config), "--json", "diagnose", *words]
    begin, before = time.monotonic(), os.times()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    took, after = time.monotonic() - begin, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Look(took, used, done.returncode, tuple(_texts(done)))


def _texts(done: subprocess.CompletedProcess[str]) -> list[str]:
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return [done.stderr.strip() or "no document"]
    return [f"[{each['cause']}] {each['text']} {'; '.join(each['evidence'])}" for each in found["findings"]]


def run_case(case: Case, system: System) -> Result:
    bed, result = Bed(Path(tempfile.mkdtemp(prefix="ovsh-dg-")), case.vms, system), Result(case)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        with bed.layout.overlay_file.open("a") as overlay:
            overlay.write(remotes_text(case.remotes))
        spec = bed.fleet_spec(remote_vms=max(1, case.vms // 8), pause_us=_PAUSE_US, nice=0)
        fleet = stack.enter_context(Fleet(spec))
        bed.start()
        fleet.wait_served(60)
        stack.enter_context(bed.watchdog())
        fleet.start(_RATE)
        fleet.wait_flowing(60)
        time.sleep(_TRAFFIC_S)
        for _ in range(_ROUNDS):
            result.host.append(look(bed.config_path))
            result.vm.append(look(bed.config_path, bed.layout.guests[0].name))
    return result


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "diagnose")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Returns 1 if something was found, or a call took five seconds or more. Raises HotswapError."""
    results = cases.each_case(CASES, arguments, output, lambda case: run_case(case, system), asdict)
    show(output, results)
    return 0 if all(result.good for result in results) else 1


def show(output: Output, results: Sequence[Result]) -> None:
    rows = [
        (str(result.case), what, *(f"{quantile(sorted(each), share) or 0.0:.2f}" for each, share in (
            ([look.seconds for look in looks], 0.5), ([look.seconds for look in looks], 1.0),
            ([look.processor for look in looks], 0.5))), str(sum(len(look.findings) for look in looks)))
        for result in results
        for what, looks in (("host", result.host), ("one VM", result.vm))
    ]  # fmt: skip
    output.table(("VMs + remote MACs", "of", "p50 s", "max s", "processor s", "findings"), rows,
                 title="diagnose on a healthy host")  # fmt: skip
    for text in dict.fromkeys(
        text for result in results for look in (*result.host, *result.vm) for text in look.findings
    ):
        output.line(text)

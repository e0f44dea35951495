"""What a scrape of the metrics costs, by number of VMs: processor time of the exporter and of what it asks.

The exporter runs as a process of its own, beside a watchdog with a ready standby and under traffic, and is scraped over
HTTP. Each process's time of a while without scrapes is taken off its time of a while with them. PMD threads and guests
sleep between two looks at their rings: on a host they have cores of their own, and here they would take the caches from
what is measured.
"""

from __future__ import annotations

import argparse
import gzip
import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import cases
from bench.bed import Bed
from bench.guests import Fleet
from bench.machine import cpu_seconds
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

INTERVAL_S = 15.0  # of Prometheus, to which the share of a core refers
BAR_PERCENT = 1.0
_FRAMES = 3000.0  # a second, of all VMs together
_SLEEP_US = 1000
_READY_S = 30.0
_EACH_S = 1.8  # two scrapes within a second of each other are given one look
_ASKED = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.2",
    "Accept-Encoding": "gzip",
}  # fmt: skip
"""What Prometheus sends with its requests (scrape/scrape.go)."""


@dataclass(frozen=True, slots=True)
class Case:
    """``scrapes``: how many are measured."""

    vms: int
    scrapes: int = 12

    def __str__(self) -> str:
        return f"{self.vms} VMs"


CASES = (Case(4), Case(64), Case(255))


@dataclass(slots=True)
class Result:
    """``cpu_ms``: processor time of a scrape by process, milliseconds. ``seconds``: of each scrape, as its client sees
    it. ``samples`` and ``bytes``: of the last one. ``rss_kb``: memory of the exporter."""

    case: Case
    cpu_ms: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0
    rss_kb: int = 0

    @property
    def percent(self) -> float:
        """The share of a core that a scrape each ``INTERVAL_S`` takes, of all processes together."""
        return sum(self.cpu_ms.values()) / 1e3 / INTERVAL_S * 100


def _with_children(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for (proc_pid_stat(5): cutime, cstime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def but_pmds(pid: int) -> float:
    """Processor time of the threads of a switch that are no PMD threads, as those poll all the time; in nanoseconds it
    is in the first field of schedstat (Documentation/scheduler/sched-stats.rst)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in threads
               if not (thread / "comm").read_text().startswith("pmd"))  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Scrapes:
    """One case in its bed."""

    def __init__(self, bed: Bed, case: Case, system: System) -> None:
        self._bed, self._case, self._system = bed, case, system
        self._url = ""

    def run(self, stack: ExitStack, result: Result) -> None:
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}/metrics"
        argv = [sys.executable, "-m", "ovs_hotswap", "--config", str(self._bed.config_path), "metrics", "serve",
                "--listen", f"127.0.0.1:{port}"]  # fmt: skip
        exporter = self._system.spawn(argv, log=self._bed.layout.directory / "metrics.log")
        stack.callback(self._system.kill, exporter)
        if not wait_until(self._answers, _READY_S, self._system, poll_s=0.2):
            raise LabError("the exporter does not answer", hint="its log is metrics.log in the lab's directory")
        for _ in range(3):
            self._scrape()
            time.sleep(_EACH_S)
        idle, busy = self._watched(exporter, scrape=False), self._watched(exporter, scrape=True, result=result)
        result.cpu_ms = {name: (busy[name] - idle[name]) / self._case.scrapes * 1e3 for name in busy}
        status = Path(f"/proc/{exporter}/status").read_text()
        result.rss_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def _answers(self) -> bool:
        try:
            self._scrape()
        except OSError:
            return False
        return True

    def _scrape(self) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=_ASKED), timeout=30) as answer:
            return gzip.decompress(answer.read())

    def _used(self, exporter: int) -> dict[str, float]:
        host = self._bed.host
        used = {"exporter": _with_children(exporter), "broker": cpu_seconds(host.broker.status().pid)}
        for name in ("ovs-vswitchd", "ovsdb-server"):
            used[name] = 0.0
        for side in Side:
            instance = host.instances[side]
            if (switch := instance.pid()) is not None:
                used["ovs-vswitchd"] += but_pmds(switch)
            if (database := instance.database_pid()) is not None:
                used["ovsdb-server"] += cpu_seconds(database)
        return used

    def _watched(self, exporter: int, *, scrape: bool, result: Result | None = None) -> dict[str, float]:
        """What each process uses in the time of all scrapes, whether they are made or not."""
        before, found = self._used(exporter), b""
        for _ in range(self._case.scrapes):
            begun = time.monotonic()
            if scrape and result is not None:
                last, found = found, self._scrape()
                result.seconds.append(time.monotonic() - begun)
                if found == last:
                    raise LabError("two scrapes had one look", hint="the machine is too busy to measure")
                result.bytes, result.samples = len(found), sum(not line.startswith(b"#") for line in found.splitlines())
            time.sleep(max(0.0, _EACH_S - (time.monotonic() - begun)))
        after = self._used(exporter)
        return {name: after[name] - before[name] for name in after}


def run_case(case: Case, system: System) -> Result:
    result = Result(case)
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-sr-")), case.vms, system)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        bed.start()
        fleet = stack.enter_context(Fleet(bed.fleet_spec(remote_vms=max(1, case.vms // 8), pause_us=_SLEEP_US)))
        fleet.wait_served(60)
        fleet.start(_FRAMES / case.vms)
        fleet.wait_flowing(60)
        stack.enter_context(bed.watchdog())
        bed.wait_protected()
        for side in Side:
            bed.host.set_pmd_sleep(side, _SLEEP_US)
        Scrapes(bed, case, system).run(stack, result)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "scrape")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a scrape each 15 s takes more than 1 % of a core. Raises HotswapError."""
    results = cases.each_case(CASES, arguments, output, lambda case: run_case(case, system), asdict)
    show(output, results)
    return 1 if any(result.percent > BAR_PERCENT for result in results) else 0


def show(output: Output, results: Sequence[Result]) -> None:
    names = ("exporter", "broker", "ovs-vswitchd", "ovsdb-server")
    rows = [
        (
            str(result.case),
            str(result.samples),
            f"{result.bytes >> 10}",
            *(f"{result.cpu_ms[name]:.0f}" for name in names),
            f"{result.percent:.2f}",
            f"{(quantile(sorted(result.seconds), 0.5) or 0) * 1e3:.0f}",
            f"{max(result.seconds) * 1e3:.0f}",
            f"{result.rss_kb >> 10}",
        )
        for result in results
    ]
    columns = ("", "samples", "KiB", *(f"{name}, ms" for name in names), "% of a core", "p50 ms", "max ms", "MiB")
    output.table(columns, rows, title="processor time of a scrape, and its duration")

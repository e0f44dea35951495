"""Crash failover: from SIGKILL of the active instance to each guest's next packet, beside a plain restart.

There is one bed for each number of VMs. It measures the noise floor, failovers by the watchdog from a death and from a
hang (SIGSTOP), and the loss of a broker whose descriptors no supervisor kept. Then the same guests run without a broker
on a switch that is killed and started again, as systemd does with Restart=always.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from bench import cases, deaths
from bench.bed import Bed
from bench.deaths import Death, Outage
from bench.guests import Fleet, Stats
from bench.machine import cpu_seconds
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.system import System
from ovs_hotswap.watchdog import status_file

DIRECTIONS = ("sending", "receiving")
# Milliseconds: what is to hold on a machine of 2 cores. For 1 VM of the 99th percentile, for 64 of every VM.
BARS = {1: ("p99", 20.0), 64: ("max", 50.0)}
# Longer than usual: the guests' drivers share a core with what is measured, of which looks 50 us apart take 40 %.
PAUSE_US = 200
RESTART_SEC_S = 0.1  # systemd.service(5): RestartSec= defaults to 100ms
_BACK_S = 10.0
_RESTART_S = 60.0
_IDLE_S = 10.0
_AFTER_S = 0.5  # for gaps that are not over to show


@dataclass(frozen=True, slots=True)
class Case:
    """``rate``: frames a second from each VM. ``remote``: so many VMs exchange them with the other host over VXLAN."""

    vms: int
    rate: float
    remote: int
    kills: int
    hangs: int
    losses: int
    restarts: int

    def __str__(self) -> str:
        return f"{self.vms} VMs"


CASES = (
    Case(1, 1000, 1, 20, 5, 3, 3), Case(16, 500, 4, 8, 2, 2, 2), Case(64, 200, 8, 5, 3, 2, 2),
    Case(255, 40, 16, 3, 2, 1, 1),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Crash:
    """One death and its end. ``stages``: milliseconds since the SIGKILL, in their order."""

    outage: Outage
    stages: dict[str, float]


@dataclass(slots=True)
class Result:
    case: Case
    floor: list[Outage] = field(default_factory=list)
    failovers: list[Crash] = field(default_factory=list)
    hangs: list[Crash] = field(default_factory=list)
    losses: list[Outage] = field(default_factory=list)
    restarts: list[Crash] = field(default_factory=list)
    stats: Stats | None = None
    standby_percent: float | None = None  # of a core, by the idle standby's two processes

    def phases(self) -> dict[str, list[Outage]]:
        return {
            "floor": self.floor,
            "fail-over": [crash.outage for crash in self.failovers],
            "hang": [crash.outage for crash in self.hangs],
            "broker lost": self.losses,
            "restart": [crash.outage for crash in self.restarts],
        }

    def figures(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """p50, p99 and max in milliseconds by phase and direction."""
        return {
            phase: {direction: _figures(deaths.pooled(outages, direction)) for direction in DIRECTIONS}
            for phase, outages in self.phases().items()
        }

    def document(self) -> dict[str, Any]:
        """For the report; what did not come to an end is null."""
        stats = {} if self.stats is None else asdict(self.stats)
        found = {"case": asdict(self.case), "ms": self.figures(), "guests": stats,
                 "standby_percent": self.standby_percent,
                 "failovers": [asdict(crash) for crash in self.failovers],
                 "hangs": [asdict(crash) for crash in self.hangs],
                 "losses": [asdict(outage) for outage in self.losses],
                 "restarts": [asdict(crash) for crash in self.restarts]}  # fmt: skip
        return cast(dict[str, Any], _finite(found))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _figures(ordered: Sequence[float]) -> dict[str, float | None]:
    last = ordered[-1] if ordered else None
    return {"p50": quantile(ordered, 0.50), "p99": quantile(ordered, 0.99), "max": last}


class Bench:
    """One case in its bed."""

    def __init__(self, bed: Bed, fleet: Fleet, case: Case, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._case, self._say = bed, fleet, case, say
        self._random = random.Random(case.vms)
        self.result = Result(case)

    def run(self) -> Result:
        case = self._case
        self._bed.start()
        self._flow()
        with self._bed.watchdog():
            self._say(f"{case.vms} VMs: noise floor")
            self.result.floor = deaths.floor(self._fleet, 20, 0.1)
            self.result.standby_percent = self._standby_percent()
            for number in range(case.kills):
                self._say(f"{case.vms} VMs: failover {number + 1} of {case.kills}")
                self.result.failovers.append(self._fail_over(signal.SIGKILL))
            for number in range(case.hangs):
                self._say(f"{case.vms} VMs: hang {number + 1} of {case.hangs}")
                self.result.hangs.append(self._fail_over(signal.SIGSTOP))
            # Before what makes guests lose their connection.
            self.result.stats = self._fleet.stop()
            self._flow()
            for number in range(case.losses):
                self._say(f"{case.vms} VMs: loss of the broker {number + 1} of {case.losses}")
                self.result.losses.append(self._lose_broker())
        self._say(f"{case.vms} VMs: plain restarts")
        self._bed.go_direct()
        self._flow()
        for _ in range(case.restarts):
            self.result.restarts.append(self._restart())
        return self.result

    def _standby_percent(self) -> float:
        instance = self._bed.host.instances[self._bed.host.active().other]
        pids = [pid for pid in (instance.pid(), instance.database_pid()) if pid is not None]
        longest = self._bed.host.pmd_sleep(instance.side)
        time.sleep(longest**2 / 2e6)  # it sleeps 1 us more each time that it has found nothing (PMD_SLEEP_INC_US)
        before = sum(map(cpu_seconds, pids))
        time.sleep(_IDLE_S)
        return 100.0 * (sum(map(cpu_seconds, pids)) - before) / _IDLE_S

    def _flow(self) -> None:
        self._fleet.wait_served(30)
        self._fleet.start(self._case.rate)
        self._fleet.wait_flowing(30)

    def _pid(self, side: Side) -> int:
        pid = self._bed.host.instances[side].pid()
        if pid is None:
            raise LabError(f"instance {side} is dead already", hint=f"its log: {self._bed.layout.state_dir}")
        return pid

    def _kill(self, side: Side) -> Death:
        """At a moment that nothing else decides."""
        time.sleep(0.3 + self._random.random() * 0.5)
        self._fleet.forget()
        time.sleep(0.05)
        return deaths.kill(self._pid(side), self._bed.host.control(side))

    def _stop(self, side: Side) -> Death:
        """A hang: it is the watchdog that ends it."""
        self._fleet.forget()
        time.sleep(0.3 + self._random.random() * 0.5)
        return deaths.stop(self._pid(side))

    def _lose_broker(self) -> Outage:
        self._fleet.forget()
        time.sleep(0.3 + self._random.random() * 0.5)
        instant = deaths.Instant.now()
        os.kill(self._bed.host.broker.status().pid, signal.SIGKILL)
        time.sleep(RESTART_SEC_S)
        self._bed.start_broker()
        self._bed.wait_protected()
        self._fleet.wait_flowing(_RESTART_S)
        time.sleep(_AFTER_S)
        return deaths.longest(self._fleet.spec, self._fleet.events(), instant)

    def _fail_over(self, number: signal.Signals) -> Crash:
        host = self._bed.host
        side = host.active()
        known = len(self._failovers())
        death = self._kill(side) if number == signal.SIGKILL else self._stop(side)
        outage = deaths.wait_back(self._fleet, death.instant, _BACK_S)
        self._bed.host.wait(lambda: len(self._failovers()) > known, _BACK_S, lambda: "no failover is recorded")
        event = self._failovers()[-1]
        self._bed.wait_protected(side.other)
        begun = death.instant.since_wall(event["detected"])
        watchdog = {"detected": begun, **{stage: begun + ms for stage, ms in event["ms"].items()}}
        return Crash(outage, stages_of(death, watchdog, outage))

    def _failovers(self) -> list[dict[str, Any]]:
        return [event for event in status_file.last_events(self._bed.config, 100) if event["event"] == "failover"]

    def _restart(self) -> Crash:
        host, side = self._bed.host, Side.A
        death = self._kill(side)
        time.sleep(RESTART_SEC_S)
        at = {"waited": death.instant.since(time.monotonic_ns())}
        host.instances[side].restart()
        at["started"] = death.instant.since(time.monotonic_ns())
        host.program_tunnels(side)
        host.program_flows(side, Form.FINAL)
        at["programmed"] = death.instant.since(time.monotonic_ns())
        outage = deaths.wait_back(self._fleet, death.instant, _RESTART_S)
        return Crash(outage, stages_of(death, at, outage))


def stages_of(death: Death, more: dict[str, float], outage: Outage) -> dict[str, float]:
    """Milliseconds since the SIGKILL, in their order; ``more`` are those that only this kind of crash has."""
    ends = {
        f"{which} VM {direction}": choose(outage.values(direction))
        for direction in DIRECTIONS
        for which, choose in (("first", min), ("last", max))
    }
    ended = {"sockets closed": death.hung_up_ms, "process dead": death.dead_ms}
    stages = {**{stage: ms for stage, ms in ended.items() if ms is not None}, **more, **ends}
    return dict(sorted(stages.items(), key=lambda stage: stage[1]))


# ------------------------------------------------------------------------------------------------------------- output


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return "not back" if math.isinf(value) else f"{value:.1f}"


def show(output: Output, results: Sequence[Result]) -> None:
    rows = [
        (
            str(result.case.vms),
            phase.replace("fail-over", "failover"),
            direction,
            str(len(result.phases()[phase])),
            *map(_cell, figures.values()),
        )
        for result in results
        for phase, directions in result.figures().items()
        for direction, figures in directions.items()
    ]
    columns = ("VMs", "what", "guests", "times", "p50 ms", "p99 ms", "max ms")
    output.table(
        columns,
        rows,
        title="from the signal (floor: from any instant; broker lost: longest gap) to each guest's next packet",
    )
    for result in results:
        for name, crashes in (("failover", result.failovers), ("hang", result.hangs), ("restart", result.restarts)):
            if not crashes:
                continue
            output.line()
            output.table(("stage", "p50", "max"), _stage_rows(crashes), title=_title(result.case, name))
        if result.standby_percent is not None:
            output.line(f"the idle standby of {result.case.vms} VMs used {result.standby_percent:.1f} % of a core")
        stats = result.stats
        if stats is not None:
            output.line(
                f"looks of the guests: every {stats.tick_us['p50']:.0f} us (p99 {stats.tick_us['p99']:.0f}, "
                f"max {stats.tick_us['max']:.0f}); over all failovers and hangs {stats.total('sent')} frames sent, "
                f"{stats.total('lost')} lost, {stats.total('doubled')} doubled, {stats.broken} broken"
            )


def _title(case: Case, name: str) -> str:
    return f"{case.vms} VMs, {name}: ms since the signal (each VM sends every {1e3 / case.rate:g} ms)"


def _stage_rows(crashes: Sequence[Crash]) -> list[tuple[str, str, str]]:
    """In the order of the medians."""
    by_stage: dict[str, list[float]] = {}
    for crash in crashes:
        for stage, value in crash.stages.items():
            by_stage.setdefault(stage, []).append(value)
    rows = [(stage, quantile(sorted(values), 0.5), max(values)) for stage, values in by_stage.items()]
    return [(stage, _cell(p50), _cell(most)) for stage, p50, most in sorted(rows, key=lambda row: row[1] or 0.0)]


def missed(results: Sequence[Result]) -> list[str]:
    """Which bars were missed."""
    found = []
    for result in results:
        if result.case.vms not in BARS:
            continue
        figure, bar = BARS[result.case.vms]
        for direction, figures in result.figures()["fail-over"].items():
            value = figures[figure]
            if value is None or value > bar:
                found.append(f"{result.case.vms} VMs {direction}: {figure} {_cell(value)} ms is over {bar:g} ms")
        if result.stats is not None and result.stats.total("doubled"):
            found.append(f"{result.case.vms} VMs: {result.stats.total('doubled')} frames were doubled")
    return found


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "failover")
    parser.add_argument("--kills", type=int, help="failovers in each case")
    parser.add_argument("--hugepages", action="store_true", help="guest memory in huge pages")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a bar was missed. Raises HotswapError."""

    def measure(case: Case) -> Result:
        case = case if arguments.kills is None else replace(case, kills=arguments.kills)
        return run_case(case, arguments.hugepages, output.line, system)

    results = cases.each_case(CASES, arguments, output, measure, Result.document)
    show(output, results)
    for text in (failures := missed(results)):
        output.line(f"over the bar: {text}")
    return 1 if failures else 0


def run_case(case: Case, hugepages: bool, say: Callable[[str], None], system: System) -> Result:
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-fo-")), case.vms, system)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        spec = bed.fleet_spec(remote_vms=case.remote, hugepages=hugepages, pause_us=PAUSE_US)
        fleet = stack.enter_context(Fleet(spec))
        return Bench(bed, fleet, case, say).run()

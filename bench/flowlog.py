"""What the flow log costs: processor cycles for each frame and latency, without it, with 1 of 100 frames and with each.

Two simulated guests send each other a fixed number of frames a second, and each frame is looked at twice: where it
enters, and where it is delivered. The cost of a frame is the processor cycles in which the PMD threads were not idle,
for each frame that arrived. All ways have the same switch and guests, in one run and in turn, and each is compared with
the ways without a log just before and just after it. A ratio is the geometric mean, with its 95 % confidence interval
(bootstrap). Then an instance that holds many flows' counts is made to export all of them at once, and the longest time
is measured in which a guest had no frame: looking at a packet and exporting take turns (ofproto-dpif-ipfix.c, mutex).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.bed import Bed
from bench.forwarding import ratio, up
from bench.guests import Fleet
from bench.machine import machine
from bench.window_cost import Cost, busy_cycles
from ovs_hotswap.cli.output import Output
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.errors import LabError
from ovs_hotswap.flowlog.relay import Relay
from ovs_hotswap.host import flow_log
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System

OFF = "no flow log"
WAYS = {OFF: None, "1 of 1000 frames": 1000, "1 of 100 frames": 100, "each frame": 1}
COLLECTOR = "127.0.0.1:9"  # where nothing listens: what a collector costs is not asked
HELD = (0, 512, 1024, 4096)
_SETTLES_S = 0.5
_SLICE = 256  # packets of one bundle


@dataclass(frozen=True, slots=True)
class Slot:
    """One measurement."""

    way: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class Flush:
    """``held``: the flows of which counts were held. ``gap_ms``: the longest time without a frame at a guest in the
    second in which they were exported."""

    held: int
    gap_ms: float


class FlowLogCost:
    def __init__(self, bed: Bed, fleet: Fleet, rate: int, seconds: float, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._rate, self._seconds, self._say = bed, fleet, rate, seconds, say
        self.slots: list[Slot] = []
        self.flushes: list[Flush] = []

    def host(self, sampling: int | None, cache_flows: int = 1024) -> Host:
        """A host with this flow log, which its active instance has been given."""
        log = FlowLogConfig() if sampling is None else FlowLogConfig(
            collectors=[COLLECTOR], sampling=sampling, cache_flows=cache_flows, export_s=10)  # fmt: skip
        host = Host(self._bed.config.model_copy(update={"flowlog": log}), System())
        host.program_database(Side.A)
        host.program_flows(Side.A, Form.FINAL)
        return host

    def round(self) -> None:
        """Every way once, between two measurements without a log. Raises HotswapError."""
        for way, sampling in WAYS.items():
            self.host(sampling)
            self._measure(way)
            if sampling is not None:
                self.host(None)
                self._measure(OFF)

    def _measure(self, way: str) -> None:
        self._say(way)
        control, fleet = self._bed.host.control(Side.A), self._fleet
        fleet.start(self._rate)
        time.sleep(_SETTLES_S)
        before = fleet.stop()
        fleet.forget()
        appctl(control, "dpif-netdev/pmd-stats-clear")
        fleet.start(self._rate)
        time.sleep(self._seconds)
        cycles = busy_cycles(appctl(control, "dpif-netdev/pmd-stats-show"))
        after, events = fleet.stop(), fleet.events()
        arrived = after.total("received") - before.total("received")
        if not arrived:
            raise LabError(f"{way}: no frames arrive")
        times = np.concatenate([events.received(vm).latencies() for vm in range(len(fleet.names))]) / 1e3
        lost, doubled = (after.total(each) - before.total(each) for each in ("lost", "doubled"))
        p50, p99 = (float(np.quantile(times, each)) for each in (0.5, 0.99))
        self.slots.append(Slot(way, Cost(cycles / arrived, p50, p99, lost, doubled)))

    def flush(self, held: int) -> None:
        """Have the instance hold ``held`` flows' counts and export them at once, while the guests talk."""
        self._say(f"{held} flows are exported at once")
        host = self.host(1, max(held + 64, 64))
        action = f"sample(probability=65535,collector_set_id={COLLECTOR_SET},obs_domain_id=1,obs_point_id=1)"
        frames = list(strangers(held))
        for place in range(0, held, _SLICE):
            host.openflow(Side.A).packet_outs([(frame, action) for frame in frames[place : place + _SLICE]])
        self._fleet.forget()
        self._fleet.start(self._rate)
        time.sleep(_SETTLES_S)
        begin = time.monotonic_ns()
        if fault := flow_log.flush(host, Side.A):
            raise LabError(fault)
        time.sleep(_SETTLES_S)
        end = time.monotonic_ns()
        self._fleet.stop()
        events = self._fleet.events()
        gaps = [events.received(vm).largest(begin, end) for vm in range(len(self._fleet.names))]
        self.flushes.append(Flush(held, max(gap.ms for gap in gaps if gap is not None)))


def strangers(count: int) -> Iterator[bytes]:
    """UDP packets of as many flows."""
    for number in range(count):
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes([198, 18, 255, 1]), bytes([198, 18, 0, 1])
        )
        udp = struct.pack(">HHHH", 1024 + number % 60_000, 7 + number // 60_000, 8, 0)
        yield bytes.fromhex("525400000001525400000002") + b"\x08\x00" + ip + udp


def bases(slots: Sequence[Slot], way: str) -> list[tuple[float, float]]:
    """The cycles of each measurement of ``way``, with the mean of those without a log just before and after it."""
    found = []
    for number, slot in enumerate(slots):
        if slot.way == way:
            near = [each.cost.cycles for each in (*slots[:number][-1:], *slots[number + 1 :][:1]) if each.way == OFF]
            found.append((slot.cost.cycles, statistics.fmean(near or [slot.cost.cycles])))
    return found


COLUMNS = ("way", "times", "cycles for a frame", "ratio (95 %)", "p50 us", "p99 us", "lost / doubled")


def rows(slots: Sequence[Slot]) -> list[Sequence[str]]:
    """A line for each way."""
    lines: list[Sequence[str]] = []
    for way in WAYS:
        costs = [slot.cost for slot in slots if slot.way == way]
        paired = bases(slots, way)
        mean, low, high = ratio([cycles for cycles, _ in paired], [other for _, other in paired])
        p50, p99 = (statistics.median(getattr(each, name) for each in costs) for name in ("p50_us", "p99_us"))
        lost, doubled = (sum(getattr(each, name) for each in costs) for name in ("lost", "doubled"))
        cycles = statistics.fmean(each.cycles for each in costs)
        compared = "-" if way == OFF else f"{mean:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            (way, str(len(costs)), f"{cycles:.0f}", compared, f"{p50:.0f}", f"{p99:.0f}", f"{lost} / {doubled}")
        )
    return lines


def flush_rows(flushes: Sequence[Flush]) -> list[Sequence[str]]:
    """A line for each number of flows."""
    found: dict[int, list[float]] = {}
    for each in flushes:
        found.setdefault(each.held, []).append(each.gap_ms)
    return [
        (str(held), str(len(gaps)), f"{statistics.median(gaps):.1f}", f"{max(gaps):.1f}")
        for held, gaps in found.items()
    ]


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("flowlog-report.json"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rate", type=int, default=5000, help="frames a second of each guest")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    with up(Bed, 2, system) as bed:
        bed.start()
        with Fleet(bed.fleet_spec()) as fleet, relayed(bed):
            fleet.wait_served(30)
            cost = FlowLogCost(bed, fleet, arguments.rate, arguments.seconds, output.line)
            for _ in range(arguments.rounds):
                cost.round()
                for held in HELD:
                    cost.flush(held)
                document = {"machine": machine(), "rate": arguments.rate, "seconds": arguments.seconds,
                            "slots": [asdict(slot) for slot in cost.slots],
                            "flushes": [asdict(each) for each in cost.flushes]}  # fmt: skip
                arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    output.line()
    output.table(COLUMNS, rows(cost.slots), title="two guests, the active instance's PMD threads")
    output.table(("flows held", "times", "longest gap, median ms", "most"), flush_rows(cost.flushes),
                 title="exported at once, with each frame logged")  # fmt: skip
    return 0


@contextlib.contextmanager
def relayed(bed: Bed) -> Iterator[None]:
    """A relay in a thread, as the instance's records need one that takes them."""
    log = FlowLogConfig(collectors=[COLLECTOR])
    relay = Relay(bed.config.model_copy(update={"flowlog": log}), System())
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield
    finally:
        relay.stop()
        thread.join()

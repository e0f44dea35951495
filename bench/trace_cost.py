"""What a trace costs the traced VM and the others: ways of copying a VM's packets, beside no trace in the same run.

Six simulated guests on one switch: two exchange a fixed number of frames a second with the remote host, through the
tunnel, and two pairs do so with each other. One VM of the first pair is traced. The cost of a frame is the processor
cycles in which the PMD threads were not idle, for each frame that arrived: on a core of its own, the switch forwards so
many times fewer frames. Latencies are from sent to received, of the pair with the traced VM (*traced*) and of all
others (*others*).

Ways: a mirror to a device of the kernel, of which the first 256 bytes or whole packets are read (the first is what
`trace` does); the same with the device down; sFlow of the bridge with every packet or one of 64 sampled. *none* takes
its turn before each of them. Besides, the longest time without a frame, and the frames that are lost, are taken while a
trace is made and removed, and in a time of the same length in which nothing is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.bed import Bed
from bench.forwarding import ratio, up
from bench.guests import Events, Fleet
from bench.machine import machine
from bench.window_cost import busy_cycles
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.datapath import USERSPACE
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.trace_mirror import TraceMirror
from ovs_hotswap.switch.trace_rows import Owner
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.tracing.capture import Capture
from ovs_hotswap.tracing.wish import Wish, kernel_filter
from ovs_hotswap.uplink.frames import in_namespace

NONE, DEVICE, WHOLE, DOWN, SFLOW, SFLOW_64 = (
    "none", "mirror to a device, 256 bytes", "mirror to a device, whole packets", "mirror to a device that is down",
    "sFlow, every packet", "sFlow, one of 64",
)  # fmt: skip
WAYS = (DEVICE, WHOLE, DOWN, SFLOW, SFLOW_64)
TRACED, OTHERS = (2, 4), (0, 1, 3, 5)
_VMS, _REMOTE = 6, 2
_SETTLES_S = 0.3
_CHANGES = 2  # in each round
_WINDOW_S = 0.6  # in which the longest gap is looked for
_PORT = 6343


@dataclass(frozen=True, slots=True)
class Slot:
    """One measurement. ``cycles``: for each frame that arrived. Latencies in microseconds."""

    way: str
    cycles: float
    traced_p50_us: float
    traced_p99_us: float
    others_p50_us: float
    others_p99_us: float


@dataclass(frozen=True, slots=True)
class Change:
    """Making or removing a trace, or nothing. ``ms``: how long that took. Gaps: the longest time, in milliseconds, in
    which a VM received nothing. ``lost``: frames of all VMs. ``first_ms``: until the first copy came, if a trace was
    made."""

    what: str
    ms: float
    traced_gap_ms: float
    others_gap_ms: float
    lost: int
    first_ms: float | None = None


class TraceCost:
    def __init__(self, bed: Bed, fleet: Fleet, rate: int, seconds: float, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._rate, self._seconds, self._say = bed, fleet, rate, seconds, say
        self._paths = bed.host.instances[Side.A].paths
        self._mirror = TraceMirror(self._paths, System())
        self._vms = [vm.name for vm in bed.host.intent.vms]
        self._owner = Owner(self._vms[TRACED[0]], os.getpid(), start_time(os.getpid()))
        self.slots: list[Slot] = []
        self.changes: list[Change] = []

    def round(self) -> None:
        """Every way once, each behind a measurement without any. Raises HotswapError."""
        for way in WAYS:
            self._measure(NONE)
            with self._copies(way):
                self._measure(way)
        for _ in range(_CHANGES):
            self._change()

    @contextlib.contextmanager
    def _copies(self, way: str) -> Iterator[None]:
        bridge = self._bed.config.bridge
        with contextlib.ExitStack() as stack:
            if way in (DEVICE, WHOLE, DOWN):
                snaplen = 65535 if way == WHOLE else 256
                self._mirror.make(bridge, self._vms[TRACED[0]], self._owner, snaplen, [None])
                stack.callback(self._mirror.remove, self._owner)
                if way != DOWN:
                    stack.enter_context(self._reading())
            else:
                stack.enter_context(self._sampled(bridge, 1 if way == SFLOW else 64))
            self._mirror.wake()
            yield

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Read the copies of one flow of the VM, as `trace` does; the kernel keeps the others away."""
        wish = Wish(target=self._fleet.spec.vms[TRACED[0]].mac, proto="udp")
        stop = threading.Event()
        with Capture(self._paths.netns or None, kernel_filter(wish)) as capture:

            def read() -> None:
                while not stop.is_set():
                    capture.read(256, 0.05)

            reader = threading.Thread(target=read)
            reader.start()
            try:
                yield
            finally:
                stop.set()
                reader.join()

    @contextlib.contextmanager
    def _sampled(self, bridge: str, sampling: int) -> Iterator[None]:
        rows = self._rows("Bridge")
        (where,) = [uuid for uuid, row in rows["Bridge"].items() if row["name"] == bridge]
        made = {"targets": f"127.0.0.1:{_PORT}", "agent": "lo", "sampling": sampling, "header": 128, "polling": 0}
        with in_namespace(self._paths.netns or None, _collector):
            yield from self._row("sFlow", made, where, "sflow")

    def _rows(self, *tables: str) -> dict[str, dict[str, dict[str, str]]]:
        selects = [{"op": "select", "table": table, "where": [], "columns": ["_uuid", "name"]} for table in tables]
        answers = transact(self._paths.db_socket, selects, timeout=2)
        return {table: {row["_uuid"][1]: row for row in answer["rows"]}
                for table, answer in zip(tables, answers, strict=True)}  # fmt: skip

    def _row(self, table: str, row: dict[str, object], bridge: str, column: str) -> Iterator[None]:
        """Have the bridge refer to a new row of a table, for the time of the block."""
        where = [["_uuid", "==", ["uuid", bridge]]]
        transact(self._paths.db_socket, [
            {"op": "insert", "table": table, "row": row, "uuid-name": "made"},
            {"op": "update", "table": "Bridge", "where": where, "row": {column: ["named-uuid", "made"]}},
        ], timeout=2)  # fmt: skip
        try:
            yield
        finally:
            empty = {"op": "update", "table": "Bridge", "where": where, "row": {column: ["set", []]}}
            transact(self._paths.db_socket, [empty], timeout=2)
            self._mirror.wake()

    def _measure(self, way: str) -> None:
        self._say(way)
        fleet, control = self._fleet, self._paths.vswitchd_ctl
        fleet.start(self._rate)
        time.sleep(_SETTLES_S)
        before = fleet.stats()
        fleet.forget()
        appctl(control, "dpif-netdev/pmd-stats-clear")
        time.sleep(self._seconds)
        cycles = busy_cycles(appctl(control, "dpif-netdev/pmd-stats-show"))
        taken = fleet.stats()
        self._see_copies(way)
        fleet.stop()
        events = fleet.events()
        arrived = taken.total("received") - before.total("received")
        if not arrived:
            raise LabError(f"{way}: no frames arrive")
        self.slots.append(Slot(way, cycles / arrived, *_latencies(events, TRACED), *_latencies(events, OTHERS)))

    def _see_copies(self, way: str) -> None:
        """Raises LabError if the flows of the datapath do not copy packets in this way."""
        flows = appctl(self._paths.vswitchd_ctl, "dpctl/dump-flows", USERSPACE)
        if (way in (DEVICE, DOWN) and "trunc(" not in flows) or (way == NONE and "trunc(" in flows):
            raise LabError(f"{way}: the datapath does something else")

    # -- making and removing

    def _change(self) -> None:
        """What all VMs notice of a trace that is made and removed, and of nothing."""
        bridge, first = self._bed.config.bridge, list[float]()
        self._watched("nothing", lambda: time.sleep(0.05), first)
        with contextlib.ExitStack() as stack:

            def make() -> None:
                begun = time.monotonic()
                self._mirror.make(bridge, self._vms[TRACED[0]], self._owner, 256, [None])
                capture = stack.enter_context(Capture(self._paths.netns or None, kernel_filter(Wish())))
                self._mirror.wake()
                if capture.read(1, 6.0):
                    first.append((time.monotonic() - begun) * 1e3)

            self._watched("made", make, first)
        self._watched("removed", lambda: self._mirror.remove(self._owner), [])
        self._watched("nothing", lambda: time.sleep(0.05), [])

    def _watched(self, what: str, act: Callable[[], object], first: list[float]) -> None:
        before = self._fleet.stats()
        self._fleet.start(self._rate)
        time.sleep(_SETTLES_S)
        self._fleet.forget()
        begun = time.monotonic_ns()
        act()
        ms = (time.monotonic_ns() - begun) / 1e6
        time.sleep(max(0.1, _WINDOW_S - ms / 1e3))
        end, events = time.monotonic_ns(), self._fleet.events()
        lost = self._fleet.stop().total("lost") - before.total("lost")
        traced, others = (
            max(found.ms for vm in vms if (found := events.received(vm).largest(begun, end)) is not None)
            for vms in (TRACED, OTHERS)
        )
        first_ms = first[0] if what == "made" and first else None
        self.changes.append(Change(what, ms, traced, others, lost, first_ms))


def _collector() -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind(("127.0.0.1", _PORT))
    return found


def _latencies(events: Events, vms: Sequence[int]) -> tuple[float, float]:
    times = np.concatenate([events.received(vm).latencies() for vm in vms]) / 1e3
    return float(np.quantile(times, 0.5)), float(np.quantile(times, 0.99))


COLUMNS = ("way", "times", "cycles for a frame", "ratio to none (95 %)", "traced p50 / p99 us", "others p50 / p99 us")


def rows(slots: Sequence[Slot]) -> list[Sequence[str]]:
    """A line for each way. Each measurement is compared with the one without a trace just before it."""
    lines: list[Sequence[str]] = []
    for way in (NONE, *WAYS):
        found = [slot for slot in slots if slot.way == way]
        if not found:
            continue
        before = [slots[number - 1].cycles for number, slot in enumerate(slots) if slot.way == way and number]
        mean, low, high = ratio([slot.cycles for slot in found], before) if way != NONE else (1.0, 1.0, 1.0)
        traced, others = (
            " / ".join(f"{statistics.median(getattr(slot, f'{pair}_{part}_us') for slot in found):.0f}"
                       for part in ("p50", "p99"))
            for pair in ("traced", "others")
        )  # fmt: skip
        lines.append((way, str(len(found)), f"{statistics.fmean(slot.cycles for slot in found):.0f}",
                      "-" if way == NONE else f"{mean:.2f} ({low:.2f} to {high:.2f})", traced, others))  # fmt: skip
    return lines


CHANGES = ("what", "times", "took ms", "first copy ms", "longest gap, traced ms", "longest gap, others ms", "lost")


def change_rows(changes: Sequence[Change]) -> list[Sequence[str]]:
    """A line for each kind of change, with medians and the largest value."""
    lines: list[Sequence[str]] = []
    for what in ("nothing", "made", "removed"):
        found = [each for each in changes if each.what == what]
        if not found:
            continue
        firsts = [each.first_ms for each in found if each.first_ms is not None]
        lines.append((what, str(len(found)), _spread([each.ms for each in found]), _spread(firsts),
                      _spread([each.traced_gap_ms for each in found]),
                      _spread([each.others_gap_ms for each in found]),
                      str(sum(each.lost for each in found))))  # fmt: skip
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}, at most {max(values):.1f}" if values else "-"


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("trace-report.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="of each measurement")
    parser.add_argument("--rate", type=int, default=2000, help="frames a second of each guest")
    parser.add_argument("--release", type=Path, help="a directory with the release to measure; the host's package else")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""

    class Chosen(Bed):
        software = arguments.release

    with up(Chosen, _VMS, system) as bed:
        bed.start()
        with Fleet(bed.fleet_spec(remote_vms=_REMOTE)) as fleet:
            fleet.wait_served(30)
            cost = TraceCost(bed, fleet, arguments.rate, arguments.seconds, output.line)
            for _ in range(arguments.rounds):
                cost.round()
                document = {"machine": machine(), "release": bed.release.ovs_version, "rate": arguments.rate,
                            "seconds": arguments.seconds, "slots": [asdict(each) for each in cost.slots],
                            "changes": [asdict(each) for each in cost.changes]}  # fmt: skip
                arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    output.line()
    output.table(COLUMNS, rows(cost.slots), title=f"Open vSwitch {bed.release.ovs_version}, two pairs of guests")
    output.table(CHANGES, change_rows(cost.changes), title="a trace that is made and removed")
    return 0

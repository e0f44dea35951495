"""Soak: upgrades back and forth under traffic with the watchdog at work; what was lost or doubled, and what grows.

The direction of a fault shows in the streams: a frame to the remote host leaves a VM's transmit ring only, one from it
enters a receive ring only, one between two VMs does both.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.bed import Bed
from bench.guests import Fleet, Stats
from bench.machine import machine
from ovs_hotswap.cli.output import Output
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.watchdog import status_file

KINDS = ("from VMs", "to VMs", "between VMs")
_SOAK = "\n[upgrade]\nsoak_s = 0.2\n"
_EVERY = 10  # upgrades between two looks at what grows
_STEADY = 0.2  # what may be compared with the end: after this part of the run


class SoakBed(Bed):
    def _config_text(self) -> str:
        return super()._config_text() + _SOAK


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a process after so many upgrades. ``memory_kb``: its own memory (``RssAnon`` of
    proc_pid_status(5))."""

    upgrades: int
    memory_kb: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Frames of one kind of stream."""

    sent: int
    lost: int
    doubled: int
    reordered: int


def kind_of(source: int, vms: int, remote_vms: int) -> str:
    """The kind of a stream from VM ``source``; ``vms`` stands for the remote host."""
    if source == vms:
        return "to VMs"
    return "from VMs" if source < remote_vms else "between VMs"


def tallies(stats: Stats, vms: int, remote_vms: int) -> dict[str, Tally]:
    found = {}
    for kind in KINDS:
        streams = [each for each in stats.streams if kind_of(each.source, vms, remote_vms) == kind]
        sums = (sum(getattr(each, figure) for each in streams) for figure in Tally.__slots__)
        found[kind] = Tally(*sums)
    return found


def size(pid: int, upgrades: int) -> Size:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return Size(upgrades, int(status["RssAnon"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")))


class Soak:
    def __init__(self, bed: SoakBed, fleet: Fleet, output: Output, upgrades: int) -> None:
        self._bed, self._fleet, self._output, self._upgrades = bed, fleet, output, upgrades
        self.seconds: list[float] = []
        self.moves: list[float] = []
        self.sizes: dict[str, list[Size]] = {"broker": [], "watchdog": []}

    def run(self, rate: float) -> Stats:
        """Raises HotswapError if an upgrade fails: the VMs' state is then worth a look."""
        self._bed.start()
        self._fleet.wait_served(30)
        self._fleet.start(rate)
        self._fleet.wait_flowing(30)
        with self._bed.watchdog() as watchdog:
            for number in range(self._upgrades):
                if number % _EVERY == 0:
                    self._look(number, watchdog)
                self._upgrade(number)
            self._bed.wait_protected()
            self._look(self._upgrades, watchdog)
            return self._fleet.stop()

    def _upgrade(self, number: int) -> None:
        begun = time.monotonic()
        report = Upgrader(self._bed.host).upgrade("host", lambda _event: None, force=True)
        self.seconds.append(time.monotonic() - begun)
        self.moves += report.moves.values()
        if (number + 1) % _EVERY == 0:
            stats = self._fleet.stats()
            self._output.line(f"{number + 1} upgrades, the last in {self.seconds[-1]:.1f} s; "
                              f"{stats.total('sent')} frames, {stats.total('lost')} lost, "
                              f"{stats.total('doubled')} doubled")  # fmt: skip

    def _look(self, upgrades: int, watchdog: int) -> None:
        broker = self._bed.host.broker.status().pid
        for name, pid in (("broker", broker), ("watchdog", watchdog)):
            self.sizes[name].append(size(pid, upgrades))

    def events(self) -> dict[str, int]:
        """How often each event of the watchdog occurred; there must be no failover in a soak."""
        kinds = [event["event"] for event in status_file.last_events(self._bed.config, 10_000)]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def growth(sizes: Sequence[Size]) -> tuple[int, int]:
    """Kilobytes and descriptors between an early look, when everything has been used once, and the last one."""
    early = next(each for each in sizes if each.upgrades >= _STEADY * sizes[-1].upgrades)
    return sizes[-1].memory_kb - early.memory_kb, sizes[-1].descriptors - early.descriptors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("soak-report.json"))
    parser.add_argument("--upgrades", type=int, default=300)
    parser.add_argument("--vms", type=int, default=8)
    parser.add_argument("--rate", type=float, default=100.0, help="frames a second from each VM")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a frame from a VM was lost or doubled. Raises HotswapError."""
    vms, remote_vms = arguments.vms, arguments.vms // 2
    bed = SoakBed(Path(tempfile.mkdtemp(prefix="ovsh-soak-")), vms, system)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        fleet = stack.enter_context(Fleet(bed.fleet_spec(remote_vms=remote_vms, pause_us=500)))
        soak = Soak(bed, fleet, output, arguments.upgrades)
        stats = soak.run(arguments.rate)
        events = soak.events()
    found = tallies(stats, vms, remote_vms)
    document = {
        "machine": machine(), "vms": vms, "upgrades": len(soak.seconds), "seconds": soak.seconds,
        "moves_us": soak.moves,
        "frames": {kind: asdict(tally) for kind, tally in found.items()}, "broken": stats.broken, "events": events,
        "sizes": {name: [asdict(each) for each in sizes] for name, sizes in soak.sizes.items()},
    }  # fmt: skip
    arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    show(output, soak, found, document)
    sent = found["from VMs"]
    return 1 if sent.lost or sent.doubled or sent.reordered or stats.broken else 0


def show(output: Output, soak: Soak, found: dict[str, Tally], document: dict[str, Any]) -> None:
    ordered, moves = sorted(soak.seconds), sorted(soak.moves)
    output.line()
    output.line(f"{len(ordered)} upgrades, 0 failed: p50 {quantile(ordered, 0.5):.1f} s, longest {ordered[-1]:.1f} s; "
                f"{len(moves)} handovers: p50 {quantile(moves, 0.5):.0f} us, p99 {quantile(moves, 0.99):.0f} us, "
                f"longest {moves[-1]:.0f} us")  # fmt: skip
    rows = [(kind, str(t.sent), str(t.lost), str(t.doubled), str(t.reordered)) for kind, t in found.items()]
    output.table(("frames", "sent", "lost", "doubled", "reordered"), rows)
    output.line()
    columns = ("process", "memory kB, first", "last", "grown", "descriptors, first", "last", "grown")
    grown = []
    for name, sizes in soak.sizes.items():
        memory, descriptors = growth(sizes)
        first, last = sizes[0], sizes[-1]
        grown.append((name, str(first.memory_kb), str(last.memory_kb), str(memory),
                      str(first.descriptors), str(last.descriptors), str(descriptors)))  # fmt: skip
    output.table(columns, grown)
    output.line(f"grown: since {_STEADY:.0%} of the upgrades; events of the watchdog: {document['events']}")

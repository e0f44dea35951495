"""Handover times and what guests notice, by number of VMs and queues: all VMs are moved there and back repeatedly.

The noise floor is the same traffic in the same window while no VM is moved. A rehearsal is everything that surrounds
the moves, without the moves: capture rings are armed, every PMD thread is seen to progress, capture rings are given up.
What guests notice of it is what the work of upgrade, broker and switches takes from guests on the same cores. A guest's
gap is the longest time between two of its frames in the second around its move; the part of the gap that is the
traffic's own spacing is in the floor, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import cases
from bench.bed import Bed
from bench.guests import Events, Fleet, Stats
from bench.guests.plan import NOBODY
from bench.machine import cpu_seconds
from bench.soak import Tally, size, tallies
from bench.window import Notes, window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.pmd_progress import drain_pmd_queues
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.move_vms import arm, move_all

_FRAMES = 6000.0  # a second, of all VMs together
_FASTEST = 1000.0  # of one VM
_PAUSE_S = 0.5
DIRECTIONS = ("sending", "receiving")


@dataclass(frozen=True, slots=True)
class Case:
    """``rounds``: how often all VMs are moved, half of them back."""

    vms: int
    queues: int
    rounds: int

    @property
    def rate(self) -> float:
        return min(_FASTEST, _FRAMES / self.vms)

    @property
    def remote(self) -> int:
        return max(1, self.vms // 8)

    def __str__(self) -> str:
        return f"{self.vms}x{self.queues}"


CASES = tuple(Case(vms, queues, rounds) for vms, rounds in ((1, 40), (16, 12), (64, 8), (255, 4)) for queues in (1, 4))


@dataclass(slots=True)
class Result:
    """The figures of a case. ``moves_us``: the time of each handover, on the broker's clock. ``all_ms``: the time from
    the first VM's new owner to the last VM's. ``gaps_ms``, ``rehearsed_ms``, ``floor_ms``: gaps by direction.
    ``frames``: by kind of stream. ``broker_percent``: the share of a core that an idle broker takes. ``broker_ms``:
    the broker's processor time for each round of moves."""

    case: Case
    moves_us: list[float] = field(default_factory=list)
    all_ms: list[float] = field(default_factory=list)
    gaps_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in DIRECTIONS})
    rehearsed_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in DIRECTIONS})
    floor_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in DIRECTIONS})
    frames: dict[str, Tally] = field(default_factory=dict)
    broker_kb: int = 0
    broker_descriptors: int = 0
    broker_percent: float = 0.0
    broker_ms: list[float] = field(default_factory=list)


class Scale:
    """One case in its bed."""

    def __init__(self, bed: Bed, fleet: Fleet, case: Case, say: Callable[[str], None]) -> None:
        self._bed, self._fleet, self._case, self._say = bed, fleet, case, say
        self.result = Result(case)

    def run(self) -> Result:
        case, result = self._case, self.result
        self._bed.start()
        self._fleet.wait_served(60)
        with window(self._bed.host, self._bed.release.name) as run:
            self._fleet.start(case.rate)
            self._fleet.wait_flowing(60)
            self._say(f"{case}: noise floor")
            self._floor()
            self._say(f"{case}: rehearsals")
            for _ in range((case.rounds + 1) // 2):
                self._watched(self.result.rehearsed_ms, self._rehearse)
            for number in range(case.rounds):
                self._say(f"{case}: round {number + 1} of {case.rounds}")
                self._round(run, Side.B if number % 2 == 0 else Side.A)
            if case.rounds % 2:
                move_all(self._bed.host, Side.A, run)
            broker = size(self._broker, 0)
            result.broker_kb, result.broker_descriptors = broker.memory_kb, broker.descriptors
            result.frames = tallies(self._stats(), case.vms, case.remote)
        return result

    @cached_property
    def _broker(self) -> int:
        pid: int = self._bed.host.broker.status().pid
        return pid

    def _floor(self) -> None:
        used, begin = cpu_seconds(self._broker), time.monotonic()
        for _ in range(self._case.rounds):
            self._watched(self.result.floor_ms, lambda: None)
        self.result.broker_percent = 100.0 * (cpu_seconds(self._broker) - used) / (time.monotonic() - begin)

    def _rehearse(self) -> None:
        """Do what ``move_all`` does, except the moves."""
        host = self._bed.host
        names = [vm.name for vm in host.backends.vms(read=False)]
        for row in host.backends.rows(names):
            arm(host, row, Side.B, Side.B)
            drain_pmd_queues(host)
            host.backends.disarm(row)

    def _stats(self) -> Stats:
        return self._fleet.stop()

    def _round(self, run: Notes, to: Side) -> None:
        host, used = self._bed.host, cpu_seconds(self._broker)
        self._watched(self.result.gaps_ms, lambda: self.result.moves_us.extend(move_all(host, to, run).values()))
        self.result.broker_ms.append((cpu_seconds(self._broker) - used) * 1e3)
        self.result.all_ms.append(spread_ms(host))

    def _watched(self, into: dict[str, list[float]], act: Callable[[], object]) -> None:
        self._fleet.forget()
        time.sleep(_PAUSE_S)
        begin = time.monotonic_ns()
        act()
        end = time.monotonic_ns()
        time.sleep(_PAUSE_S)
        events = self._fleet.events()
        for name, values in gaps(events, self._fleet.spec.targets, begin, end).items():
            into[name] += values


def spread_ms(host: Host) -> float:
    """From the first VM's new owner to the last's."""
    since = [vm.owner_since for vm in host.backends.vms(read=False) if vm.owner_since is not None]
    return (max(since) - min(since)) * 1e3


def gaps(events: Events, targets: Sequence[int], begin: int, end: int) -> dict[str, list[float]]:
    """Milliseconds of the longest gap of each VM that is at least partly between two instants, by direction."""
    vms = [vm for vm, target in enumerate(targets) if target != NOBODY]
    lines = {"sending": [events.taken(vm) for vm in vms], "receiving": [events.received(vm) for vm in vms]}
    return {
        name: [gap.ms for line in each if (gap := line.largest(begin, end)) is not None] for name, each in lines.items()
    }


# ------------------------------------------------------------------------------------------------------------- output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "scale")
    parser.add_argument("--rounds", type=int, help="how often all VMs are moved in each case")
    parser.add_argument("--from-directory", type=Path, help="switches of this release in place of the host's package")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a frame from a VM was lost, doubled or reordered. Raises HotswapError."""

    def measure(case: Case) -> Result:
        chosen = replace(case, rounds=arguments.rounds or case.rounds)
        return run_case(chosen, output.line, system, arguments.from_directory)

    results = cases.each_case(CASES, arguments, output, measure, asdict)
    show(output, results)
    sent = [result.frames["from VMs"] for result in results]
    return 1 if any(each.lost or each.doubled or each.reordered for each in sent) else 0


def run_case(case: Case, say: Callable[[str], None], system: System, software: Path | None = None) -> Result:
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-sc-")), case.vms, system, GuestOptions(queues=case.queues))
    bed.software = software
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        fleet = stack.enter_context(Fleet(bed.fleet_spec(remote_vms=case.remote)))
        return Scale(bed, fleet, case, say).run()


def show(output: Output, results: Sequence[Result]) -> None:
    columns = ("VMs x queues", "moves", "p50 us", "p90 us", "p99 us", "max us", "all VMs, ms", "broker kB")
    output.table(columns, [_hand_over(result) for result in results], title="handover, broker's clock")
    for result in results:
        output.line(f"{result.case}: the broker uses {result.broker_percent:.2f} % of a core with nothing to do, and "
                    f"{quantile(sorted(result.broker_ms), 0.5) or 0:.0f} ms to move all")  # fmt: skip
    output.line()
    rows = [
        (str(result.case), what, direction, *map(_ms, _figures(values[direction])))
        for result in results
        for what, values in (("floor", result.floor_ms), ("rehearsed", result.rehearsed_ms), ("moved", result.gaps_ms))
        for direction in DIRECTIONS
    ]
    output.table(("VMs x queues", "", "guests", "p50 ms", "p99 ms", "max ms"), rows, title="longest gap of each guest")
    output.line()
    frames = [
        (str(result.case), kind, *(str(each) for each in asdict(tally).values()))
        for result in results
        for kind, tally in result.frames.items()
    ]
    output.table(("VMs x queues", "frames", "sent", "lost", "doubled", "reordered"), frames)


def _hand_over(result: Result) -> tuple[str, ...]:
    ordered, spread = sorted(result.moves_us), sorted(result.all_ms)
    parts = [f"{quantile(ordered, part) or 0:.0f}" for part in (0.5, 0.9, 0.99)]
    return (str(result.case), str(len(ordered)), *parts, f"{ordered[-1]:.0f}", f"{quantile(spread, 0.5) or 0:.0f}",
            str(result.broker_kb))  # fmt: skip


def _figures(values: Sequence[float]) -> tuple[float | None, ...]:
    ordered = sorted(values)
    return (quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1] if ordered else None)


def _ms(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"

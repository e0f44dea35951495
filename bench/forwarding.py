"""Frames a second between two guests, with and without the broker between, beside a standby and in the window.

Both guests are one DPDK (``dpdk-testpmd`` on two ``virtio_user`` ports, a front end that is not QEMU's) that sends back
what it receives: 64 frames circulate without end, so their rate shows the latency, too.

*Paired*: one switch serves two such pairs of guests, one through the broker and one with ports that connect straight
to it. They run in turn, one at a time, so that both have the same switch at the same time. Two pairs differ without
any broker too, as each process has its memory at a random place: *direct* is therefore also compared to *direct*, the
guests are started again in each round, in alternating order, and for the second half the pairs change places. The other
ways are only compared to the broker. A ratio is the geometric mean over rounds, and is given with its 95 % confidence
interval (bootstrap).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bench.bed import Bed
from bench.machine import machine
from bench.testpmd import IN_FLIGHT, Guests, needed
from bench.window import window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.move_vms import move_all

DIRECT, BROKER, OTHER = ("direct", "broker", "direct, other guests")
STANDBY, TOGETHER, APART = ("broker, standby", "window, guests on one side", "window, guests on either side")
WAYS = (BROKER, STANDBY, TOGETHER, APART)
_WARM_S = 2.0
_SLOT_S = 1.0
_TELLS_S = 20.0
_RESAMPLES = 2000
_PORT = re.compile(r"port \d+: (?P<name>\S+).*\n\s+RX packets:(?P<frames>\d+)")


class StraightHost(Host):
    """Ports of the VMs ``straight`` connect to their guests, and not to the broker."""

    straight: frozenset[str] = frozenset()

    def switch_socket(self, side: Side, vm: str) -> Path:
        return self.guest_socket(vm) if vm in self.straight else super().switch_socket(side, vm)

    def guest_socket(self, vm: str) -> Path:
        """The socket on which the VM's guest listens. The broker finds no socket of the VMs in ``straight``."""
        socket = self.config.qemu_socket(vm)
        return socket.with_suffix(".straight") if vm in self.straight else socket


class PairedBed(Bed):
    @cached_property
    def host(self) -> StraightHost:
        return StraightHost(self.config, self._system)


Rates = dict[str, list[float]]  # by way
AnyBed = TypeVar("AnyBed", bound=Bed)


@contextlib.contextmanager
def up(kind: type[AnyBed], vms: int, system: System) -> Iterator[AnyBed]:
    bed = kind(Path(tempfile.mkdtemp(prefix="ovsh-fw-")), vms, system)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        yield bed


def paired(bed: PairedBed, straight: Collection[str], pairs: Mapping[str, Sequence[str]], rounds: int) -> Rates:
    """Frames a second of each of two ``pairs`` of guests, by its name, in each round. ``straight``: VMs that do without
    the broker. Raises HotswapError."""
    bed.host.straight = frozenset(straight)
    bed.start()
    rates: Rates = {name: [] for name in pairs}
    for number in range(rounds):
        order = list(pairs)[:: 1 if number % 2 else -1]
        with ExitStack() as stack:
            guests = {}
            for name in order:
                sockets = {vm: bed.host.guest_socket(vm) for vm in pairs[name]}
                guests[name] = stack.enter_context(contextlib.closing(Guests(bed, sockets=sockets)))
                guests[name].wait_flowing(bed)
                guests[name].stop()
            slots: Rates = {name: [] for name in pairs}
            for name in (*order, *reversed(order)):
                before = received(bed, pairs[name])
                seconds = guests[name].run_for(_SLOT_S)
                slots[name].append((received(bed, pairs[name]) - before) / seconds)
        for name, values in slots.items():
            rates[name].append(statistics.fmean(values))
    return rates


def received(bed: Bed, vms: Sequence[str]) -> int:
    """Frames that the switch has taken from these VMs. Raises SwitchError."""
    text = appctl(bed.host.control(Side.A), "dpctl/show", "-s", "netdev@ovs-netdev")
    return sum(int(found["frames"]) for found in _PORT.finditer(text) if found["name"] in vms)


class Forwarding:
    """The ways that are measured in rounds."""

    def __init__(self, bed: Bed, seconds: int, say: Callable[[str], None]) -> None:
        self._bed, self._seconds, self._say = bed, seconds, say
        self.rates: dict[str, list[float]] = {way: [] for way in WAYS}

    def round(self, number: int) -> None:
        """Every way once. The guests come when the switch has its flows, which their first frames need. Raises
        HotswapError."""
        bed = self._bed
        with contextlib.closing(Guests(bed)) as guests:
            self._measure(BROKER, guests, number)
            with bed.watchdog():
                self._measure(STANDBY, guests, number)
            with window(bed.host, "host") as run:
                self._measure(TOGETHER, guests, number)
                bed.host.backends.move(bed.layout.guests[0].name, Side.B)
                self._measure(APART, guests, number)
                move_all(bed.host, Side.A, run)

    def _measure(self, way: str, guests: Guests, number: int) -> None:
        self._say(f"round {number + 1}: {way}")
        self.rates[way].append(rate(self._bed, guests, self._seconds))


def rate(bed: Bed, guests: Guests, seconds: int) -> float:
    """The frames a second that both guests receive now, over so many seconds. Raises LabError, SwitchError."""
    guests.wait_flowing(bed)
    time.sleep(_WARM_S)
    before = len(guests.rates())
    bed.host.wait(lambda: len(guests.rates()) >= before + seconds, 2.0 * seconds + _TELLS_S,
                  lambda: "testpmd tells no figures")  # fmt: skip
    return statistics.fmean(guests.rates()[before : before + seconds])


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 1) -> tuple[float, float, float]:
    """Geometric mean of the ratios of each round, and its 95 % confidence interval."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    source = random.Random(seed)
    means = sorted(statistics.geometric_mean(source.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return statistics.geometric_mean(ratios), means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES)]


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("forwarding-report.json"))
    parser.add_argument("--pairs", type=int, default=20, help="of guests of each kind that are compared")
    parser.add_argument("--rounds", type=int, default=5, help="of the other ways")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement in a round")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    needed()
    pairs = compared(arguments.pairs, output.line, system)
    with up(Bed, 2, system) as bed:
        bed.start()
        forwarding = Forwarding(bed, arguments.seconds, output.line)
        for number in range(arguments.rounds):
            forwarding.round(number)
    document = {"machine": machine(), "seconds": arguments.seconds, "paired": pairs, "rates": forwarding.rates}
    arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    output.line()
    for each in pairs:
        output.table(COLUMNS, rows(each, DIRECT), title="two pairs of guests, in turn")
    output.table(COLUMNS, rows(forwarding.rates, BROKER), title="beside a standby, and in the window")
    return 0


def compared(number: int, say: Callable[[str], None], system: System) -> list[Rates]:
    """Pairs with the broker beside pairs without, and pairs without beside others without."""
    found: list[Rates] = [{DIRECT: [], BROKER: []}, {DIRECT: [], OTHER: []}]
    for kind, rates in enumerate(found):
        for half in (slice(2), slice(2, None)):
            say(f"pairs: {' and '.join(rates)}, VMs {half.start or 0} and {(half.start or 0) + 1} {DIRECT}")
            with up(PairedBed, 4, system) as bed:
                names = [guest.name for guest in bed.layout.guests]
                straight, others = names[half], [name for name in names if name not in names[half]]
                pairs = dict(zip(rates, (straight, others), strict=True))
                measured = paired(bed, names if kind else straight, pairs, number // 2)
            for way, values in measured.items():
                rates[way] += values
    return found


COLUMNS = ("way", "times", "frames a second", "us from guest to guest", "ratio (95 %)")


def rows(rates: Mapping[str, Sequence[float]], base: str) -> list[Sequence[str]]:
    """A line for each way, with its ratio to ``base``."""
    lines: list[Sequence[str]] = []
    for way, values in rates.items():
        mean, low, high = ratio(values, rates[base])
        frames = statistics.fmean(values)
        latency = f"{IN_FLIGHT / frames * 1e6:.1f}"
        lines.append((way, str(len(values)), f"{frames:.0f}", latency, f"{mean:.3f} ({low:.3f} to {high:.3f})"))
    return lines

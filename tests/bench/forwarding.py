"""Frames a second between two guests, with and without the broker between, beside a standby and in the window.

Both guests are one DPDK (``dpdk-testpmd`` on two ``virtio_user`` ports, a front end that is not QEMU's) that sends back
what it receives: 64 frames go round for ever, so their rate tells the latency too. Each way is measured in turn,
several times, so that what the machine does to one it does to all; a ratio stands with its 95 % confidence interval
(bootstrap over the rounds).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.layout import GuestLayout
from ovs_hotswap.model import Side
from ovs_hotswap.priority import control_core
from ovs_hotswap.system import System
from tests.bench.bed import Bed
from tests.bench.machine import machine
from tests.bench.window import window

TESTPMD = "dpdk-testpmd"
IN_FLIGHT = 64  # testpmd's first burst on each port
DIRECT, BROKER, STANDBY, WINDOW = WAYS = ("direct", "broker", "broker, standby", "broker, window")
_WARM_S = 2.0
_LINK_S = 20.0
_RESAMPLES = 2000
_RATE = re.compile(r"Rx-pps:\s+(\d+)")


class Guests:
    """A testpmd with a port for each guest, on core ``core``."""

    def __init__(self, guests: Sequence[GuestLayout], sockets: Sequence[Path], core: int, log: Path) -> None:
        self._log = log
        ports = [
            f"--vdev=net_virtio_user{number},mac={guest.mac},path={socket},server=1,queues=1"
            for number, (guest, socket) in enumerate(zip(guests, sockets, strict=True))
        ]
        peers = [f"--eth-peer={number},{guest.mac}" for number, guest in enumerate(reversed(guests))]
        argv = [
            TESTPMD, f"--lcores=0@{core},1@{core}", "--main-lcore=0", "--in-memory", "--single-file-segments",
            "-m", "64", "--no-pci", *ports, "--",
            "--forward-mode=io", "--auto-start", "--tx-first", "--stats-period=1", "--total-num-mbufs=4096", *peers,
        ]  # fmt: skip
        for socket in sockets:
            socket.unlink(missing_ok=True)
        with self._log.open("w") as out:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/")

    def rates(self) -> list[int]:
        """Frames received by both guests in each second so far. Raises LabError if testpmd ended."""
        text = self._log.read_text()
        if self._process.poll() is not None:
            raise LabError(f"{TESTPMD} ended: {text[-400:]}")
        each = [int(rate) for rate in _RATE.findall(text)]
        return [one + other for one, other in zip(each[::2], each[1::2], strict=False)]

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Forwarding:
    def __init__(self, bed: Bed, seconds: int, say: Callable[[str], None]) -> None:
        self._bed, self._seconds, self._say = bed, seconds, say
        self.rates: dict[str, list[float]] = {way: [] for way in WAYS}

    def round(self, number: int) -> None:
        """Every way once. The guests come when the switch has its flows, which their first frames need. Raises
        HotswapError."""
        bed = self._bed
        bed.go_direct()
        with self._guests() as guests:
            self._measure(DIRECT, guests, number)
            bed.host.instances[Side.A].stop()
        bed.start()
        with self._guests() as guests:
            self._measure(BROKER, guests, number)
            with bed.watchdog():
                self._measure(STANDBY, guests, number)
            with window(bed.host, "host"):
                self._measure(WINDOW, guests, number)

    def _guests(self) -> contextlib.closing[Guests]:
        config, layout = self._bed.config, self._bed.layout
        pmd_cores = [core for side in Side for core in config.instance(side).pmd_cores]
        sockets = [config.qemu_socket(guest.name) for guest in layout.guests]
        core = min(control_core(pmd_cores), default=0)
        return contextlib.closing(Guests(layout.guests, sockets, core, layout.directory / "testpmd.log"))

    def _measure(self, way: str, guests: Guests, number: int) -> None:
        self._say(f"round {number + 1}: {way}")
        self._bed.wait(lambda: bool(guests.rates()) and guests.rates()[-1] > 0, _LINK_S, lambda: "no frames come")
        time.sleep(_WARM_S)
        before = len(guests.rates())
        self._bed.wait(lambda: len(guests.rates()) >= before + self._seconds, 2.0 * self._seconds + _LINK_S,
                       lambda: "testpmd tells no figures")  # fmt: skip
        self.rates[way].append(statistics.fmean(guests.rates()[before : before + self._seconds]))


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 1) -> tuple[float, float, float]:
    """Mean of the ratios of each round, and its 95 % confidence interval."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    source = random.Random(seed)
    means = sorted(statistics.fmean(source.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return statistics.fmean(ratios), means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES)]


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("forwarding-report.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    if shutil.which(TESTPMD) is None:
        raise LabError(f"{TESTPMD} is not installed", hint="`apt-get install dpdk-dev`")
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-fw-")), 2, system)
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        forwarding = Forwarding(bed, arguments.seconds, output.line)
        for number in range(arguments.rounds):
            forwarding.round(number)
    document = {"machine": machine(), "seconds": arguments.seconds, "rates": forwarding.rates}
    arguments.report.write_text(json.dumps(document, indent=2) + "\n")
    rows = []
    for way, rates in forwarding.rates.items():
        mean, low, high = ratio(rates, forwarding.rates[DIRECT])
        rate = statistics.fmean(rates)
        latency = f"{IN_FLIGHT / rate * 1e6:.1f}"
        rows.append((way, f"{rate:.0f}", latency, f"{mean:.3f} ({low:.3f} to {high:.3f})"))
    output.line()
    output.table(("way", "frames a second", "us from guest to guest", "of direct (95 %)"), rows)
    return 0

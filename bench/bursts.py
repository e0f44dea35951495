"""What `bursts` finds and what its advice is worth: packets lost before and after, in one run, on the real switch.

Three beds. *Short ring*: two guests send each other bursts that are longer than a receive ring of 256 entries; then the
guests start again with rings of 1024. *Unused queues*: guests with four queue pairs, of which one PMD thread fills one;
then `tx-steering` spreads the packets, and the undo takes that back. *Idle thread*: bursts into a DPDK device while its
PMD thread sleeps when idle; then it does not; then another process is on its core. That device is libpcap's, which
counts what it misses as a NIC does (``rx_missed_errors``), and is also what a change of ``n_rxq_desc`` is tried on: for
how long its packets stop, and what guests on the same switch notice.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.bed import Bed
from bench.guests import Fleet, FleetSpec
from bench.machine import machine
from ovs_hotswap.bursts.advice import named
from ovs_hotswap.bursts.applying import Changer, Undone
from ovs_hotswap.bursts.found import Advice, Made, Report, Setting
from ovs_hotswap.bursts.judging import report
from ovs_hotswap.bursts.looking import Looking
from ovs_hotswap.bursts.values import Window
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import GuestOptions
from ovs_hotswap.model import Side
from ovs_hotswap.switch.port_stats import PortStatistics
from ovs_hotswap.system import System

RING, LONG_RING = 256, 1024
BURST, PAIRS, FLOWS = 800, 4, 500
NIC, NIC_MTU, NIC_FRAME = "nic0", 9000, 8000  # so long that a burst fills the kernel's buffer
NIC_BURST, NIC_PERIOD_MS, NIC_S = 2000, 2000, 4.5  # the thread's sleep becomes longer by 1 us each time
_SERVED_S, _SETTLE_S, _INTERVAL_S = 20.0, 0.3, 0.1
_NIC_NUMBER = 4000
_STEP_S = 0.002  # between two looks at how long a port's packets stop


@dataclass(frozen=True, slots=True)
class Measured:
    """Frames in one way of running. ``sent`` and ``lost``: by the guests, or the sender. ``counted``: what the switch
    counted as lost. ``cause``: of the first finding about a port, if there is one. ``busy`` and ``peak``: of the PMD
    thread. ``look_ms`` and ``cpu``: what looking cost."""

    way: str
    sent: int
    lost: int
    counted: int
    cause: str | None
    advice: str | None
    busy: float | None
    peak: float | None
    look_ms: float
    cpu: float


class BurstsBed(Bed):
    """A bed with two VMs, and with a device of libpcap as one more port of the bridge."""

    def looking(self, seconds: float) -> Looking:
        return Looking(self.config, self._system, seconds, _INTERVAL_S)

    @property
    def pmd_core(self) -> int:
        return self.config.instance(Side.A).pmd_cores[0]

    @property
    def other_core(self) -> int:
        """A core without the PMD thread, if there is one."""
        return next((core for core in range(os.cpu_count() or 1) if core != self.pmd_core), self.pmd_core)

    @property
    def changer(self) -> Changer:
        return Changer(Host(self.config, self._system))

    def apply(self, name: str) -> list[Made]:
        """Make the change of this name, as `bursts --apply NAME` does."""
        advised = named(name, self.looking(0.5).window())
        if advised is None:
            raise LabError(f"{name} is no change on this switch")
        return [self.changer.make(each) for each in self.changer.plan([advised])]

    def undo(self) -> list[Undone]:
        """Undo all changes, as `bursts --undo` does."""
        return [self.changer.undo(change) for change in reversed(self.changer.changes())]

    def counters(self) -> Mapping[int, Mapping[str, int]]:
        with PortStatistics(self.host.instances[Side.A].paths.mgmt(self.config.bridge)) as statistics:
            return statistics.read()

    def vsctl(self, *words: str) -> None:
        socket = self.host.instances[Side.A].paths.db_socket
        self._system.run(["ovs-vsctl", f"--db=unix:{socket}", "--timeout=10", *words])

    def add_nic(self) -> None:
        """Make a pair of veths, one end of which libpcap's driver has as a port of the bridge."""
        here, there = self.layout.host_namespace, self.config.namespace(Side.A)
        run = self._system.run
        run(["ip", "-n", here, "link", "add", f"{NIC}h", "type", "veth", "peer", "name", NIC, "netns", there])
        for namespace, name in ((here, f"{NIC}h"), (there, NIC)):
            run(["ip", "-n", namespace, "link", "set", name, "mtu", str(NIC_MTU), "addrgenmode", "none", "up"])
        self.vsctl("add-port", self.config.bridge, NIC, "--", "set", "Interface", NIC, "type=dpdk",
                   f"ofport_request={_NIC_NUMBER}", f"options:dpdk-devargs=net_pcap7,iface={NIC}")  # fmt: skip

    def nic_counters(self) -> Mapping[str, int]:
        return self.counters()[_NIC_NUMBER]


@contextlib.contextmanager
def bed_up(system: System, queues: int = PAIRS) -> Iterator[BurstsBed]:
    """A bed whose instance a is active. The VMs' ports may have ``queues`` pairs."""
    bed = BurstsBed(Path(tempfile.mkdtemp(prefix="ovsh-bu-")), 2, system, GuestOptions(queues=queues))
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        bed.start()
        yield bed


@contextlib.contextmanager
def guests(bed: BurstsBed, **changes: object) -> Iterator[Fleet]:
    """The two guests, served, with rings that send of ``LONG_RING`` entries."""
    spec: FleetSpec = bed.fleet_spec(ring_size=LONG_RING, **changes)
    with Fleet(spec) as fleet:
        fleet.wait_served(_SERVED_S)
        fleet.start(200)
        fleet.wait_flowing(_SERVED_S)
        fleet.stop()
        yield fleet


def exchange(bed: BurstsBed, fleet: Fleet, way: str, seconds: float, burst: int, rate: int = 8000) -> Measured:
    """Have both guests send bursts to each other, from one queue after the other, while it is looked at."""
    before, counted = fleet.stats(), _not_taken(bed)
    fleet.start(rate, burst)
    time.sleep(_SETTLE_S)
    found = look(bed, seconds)
    after = fleet.stop()
    sent, lost = (after.total(each) - before.total(each) for each in ("sent", "lost"))
    return _measured(way, sent, lost, _not_taken(bed) - counted, found, "vm")


def _not_taken(bed: BurstsBed) -> int:
    numbers = {vm.ofport for vm in bed.host.intent.vms}
    return sum(
        counted.get("ovs_tx_failure_drops", 0) for number, counted in bed.counters().items() if number in numbers
    )


def look(bed: BurstsBed, seconds: float) -> Report:
    looking = bed.looking(seconds)
    window: Window = looking.window()
    return report(window, looking.target.side)[0]


def _measured(way: str, sent: int, lost: int, counted: int, found: Report, port: str) -> Measured:
    first = next((each for each in found.findings if (each.port or "").startswith(port)), None)
    thread = found.threads[0] if found.threads else None
    return Measured(
        way, sent, lost, counted, None if first is None else first.cause.value, None if first is None else first.advice,
        None if thread is None else thread.busy, None if thread is None else thread.peak, found.cost.look_ms,
        found.cost.cpu,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the beds


def short_ring(bed: BurstsBed, seconds: float) -> list[Measured]:
    """A ring of 256 entries, the switch trying longer (`tx-retries`), and a ring of 1024."""
    with guests(bed, receive_size=RING, pairs=1) as fleet:
        found = [exchange(bed, fleet, f"ring of {RING}", seconds, BURST)]
        bed.apply("tx-retries:vm1")
        bed.apply("tx-retries:vm2")
        found.append(exchange(bed, fleet, f"ring of {RING}, tx-retries-max=32", seconds, BURST))
        bed.undo()
    with guests(bed, receive_size=LONG_RING, pairs=1) as fleet:
        found.append(exchange(bed, fleet, f"ring of {LONG_RING}", seconds, BURST))
    return found


def unused_queues(bed: BurstsBed, seconds: float) -> list[Measured]:
    """Four queues of which one is filled, spread over all, and back."""
    with guests(bed, receive_size=RING, pairs=PAIRS, flows=FLOWS) as fleet:
        found = [exchange(bed, fleet, "one of four queues", seconds, BURST)]
        for vm in ("vm1", "vm2"):
            bed.apply(f"tx-steering:{vm}")
        found.append(exchange(bed, fleet, "tx-steering=hash", seconds, BURST))
        bed.undo()
        found.append(exchange(bed, fleet, "undone", seconds, BURST))
    return found


class Sender:
    """The process that sends bursts into the device, on another core than the PMD thread's."""

    def __init__(self, bed: BurstsBed) -> None:
        words = [
            "taskset",
            "-c",
            str(bed.other_core),
            sys.executable,
            "-m",
            "bench.burst_sender",
            bed.layout.host_namespace,
            f"{NIC}h",
            str(NIC_FRAME),
        ]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       cwd=Path(__file__).parents[1])  # fmt: skip

    def __enter__(self) -> Sender:
        self.order(0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)

    def order(self, frames: int, period_ms: float) -> int:
        """Send so many frames in each period; how many were sent before."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(frames, period_ms, file=self._child.stdin, flush=True)
        return int(self._child.stdout.readline())


def into_nic(bed: BurstsBed, sender: Sender, way: str, seconds: float) -> Measured:
    before, was = bed.nic_counters(), sender.order(NIC_BURST, NIC_PERIOD_MS)
    time.sleep(_SETTLE_S)
    found = look(bed, max(seconds, NIC_S))
    sent = sender.order(0, 0) - was
    time.sleep(_SETTLE_S)
    after = bed.nic_counters()
    got, missed = (after[each] - before[each] for each in ("rx_packets", "rx_missed_errors"))
    return _measured(way, sent, sent - got, missed, found, NIC)


def idle_thread(bed: BurstsBed, seconds: float) -> list[Measured]:
    """Bursts into libpcap's device, with the PMD thread idle nearly all the time: it sleeps, then it does not, then
    another process is on its core."""
    bed.add_nic()
    with Sender(bed) as sender:
        bed.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-maxsleep=10000", "other_config:pmd-sleep-max=10000")
        found = [into_nic(bed, sender, "the thread sleeps up to 10 ms", seconds)]
        bed.apply("pmd-sleep")
        found.append(into_nic(bed, sender, "it does not sleep", seconds))
        with hog(bed.pmd_core):
            found.append(into_nic(bed, sender, "and shares its core", seconds))
        bed.undo()
        found.append(into_nic(bed, sender, "undone: it sleeps", seconds))
    return found


@contextlib.contextmanager
def hog(core: int) -> Iterator[None]:
    """A process that never waits, on a core."""
    words = ["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Stopped:
    """A change of a ring's length. ``command_s``: how long it took until the switch had it. ``port_ms``: for how long
    no packet of the port arrived; ``others_ms``: of a guest on the same switch. Each with the longest of the same time
    without a change."""

    command_s: float
    port_ms: float
    port_usual_ms: float
    others_ms: float
    others_usual_ms: float


def changed_ring(bed: BurstsBed, change: str = f"rx-ring:{NIC}") -> Stopped:
    """Change the length of the receive queue of libpcap's device under a steady stream, with guests beside it. Its
    driver takes no notice of the length, but the switch stops and starts the port as it does with every device."""
    advised = Advice(change, (Setting("Interface", NIC, "options", "n_rxq_desc", "4096"),), "", stops=True)
    bed.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-maxsleep=0", "other_config:pmd-sleep-max=0")
    with guests(bed, pairs=1) as fleet, Sender(bed) as sender:
        fleet.start(2000)
        sender.order(2, 1)
        usual = _watched(bed, fleet, _nothing)
        (planned,) = bed.changer.plan([advised])
        changed = _watched(bed, fleet, lambda: float(bed.changer.make(planned).seconds or 0))
        bed.undo()
    return Stopped(changed[2], changed[0], usual[0], changed[1], usual[1])


def _nothing() -> float:
    time.sleep(1.0)
    return 0.0


def _watched(bed: BurstsBed, fleet: Fleet, act: Callable[[], float]) -> tuple[float, float, float]:
    """The longest time, in milliseconds, in which the device's port received nothing, and a guest, around an act."""
    fleet.forget()
    ended = threading.Event()
    arrivals: list[tuple[float, int]] = []

    def watch() -> None:
        with PortStatistics(bed.host.instances[Side.A].paths.mgmt(bed.config.bridge), timeout=10.0) as statistics:
            while not ended.is_set():
                counted = statistics.read(_NIC_NUMBER).get(_NIC_NUMBER, {}).get("rx_packets", 0)
                arrivals.append((time.monotonic(), counted))
                time.sleep(_STEP_S)

    thread = threading.Thread(target=watch)
    begun = time.monotonic_ns()
    thread.start()
    time.sleep(0.5)
    took = act()
    time.sleep(1.0)
    ended.set()
    thread.join()
    moments = [arrivals[0][0], *(at for (_, was), (at, now) in itertools.pairwise(arrivals) if now != was)]
    longest = max(after - before for before, after in itertools.pairwise(moments))
    gap = fleet.events().received(1).largest(begun, time.monotonic_ns())
    return longest * 1e3, 0.0 if gap is None else gap.ms, took


# ------------------------------------------------------------------------------------------------------------- command

COLUMNS = ("way", "sent", "lost", "counted by the switch", "first finding", "thread busy", "peak", "a look", "cpu")


def rows(found: list[Measured]) -> list[tuple[str, ...]]:
    return [
        (each.way, str(each.sent), str(each.lost), str(each.counted), each.cause or "-",
         *("?" if share is None else f"{share:.0%}" for share in (each.busy, each.peak)), f"{each.look_ms:g} ms",
         f"{each.cpu:.1%}")
        for each in found
    ]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("bursts-report.json"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    with bed_up(system) as bed:
        ring = short_ring(bed, arguments.seconds)
        output.table(COLUMNS, rows(ring), title="Bursts of 800 frames between two guests")
        queues = unused_queues(bed, arguments.seconds)
        output.table(COLUMNS, rows(queues), title="The same to guests with four queues")
        nic = idle_thread(bed, arguments.seconds)
        output.table(COLUMNS, rows(nic), title=f"Bursts of {NIC_BURST} frames into a device of libpcap")
        stopped = changed_ring(bed)
    output.line(f"a change of n_rxq_desc took {stopped.command_s:.2f} s; the port received nothing for "
                f"{stopped.port_ms:.0f} ms ({stopped.port_usual_ms:.0f} without it), a guest beside it for "
                f"{stopped.others_ms:.1f} ms ({stopped.others_usual_ms:.1f})")  # fmt: skip
    found = {"machine": machine(), "ring": [asdict(each) for each in ring],
             "queues": [asdict(each) for each in queues], "nic": [asdict(each) for each in nic],
             "changed": asdict(stopped)}  # fmt: skip
    arguments.report.write_text(json.dumps(found, indent=2) + "\n")
    output.document(found)
    return 0

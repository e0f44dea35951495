"""How long others wait for the broker while QEMUs do not stop talking: a request about another VM, and that VM's QEMU.

Quiet and flooded times alternate in one run; the broker's processor time shows that it is flooded. Each flooding QEMU
is a process of its own that gets what time the other processes leave, because on a host it has cores of its own. The
exit status is 1 if with four of them the median is more than twice the quiet one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.machine import cpu_seconds, machine
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.broker_bed import Bed
from tests.support.vhost_qemu import FakeQemu

FLOODS = (0, 1, 4)
BAR = 2.0  # times the quiet median
OTHER = "vm0"
ASKED = {"a request about another VM": "request_ms", "a question of another VM's QEMU": "qemu_ms"}
_BUSY = "broker_percent"
_PAIRS = 8  # of a flooding QEMU: each message may change any of sixteen rings
_EACH_S = 0.005
_SETTLES_S = 0.5  # for a flood to use its budget up
_DRAINS_S = 120.0  # for what is left in the sockets to be heard
_LOOK_S = 0.5
_IDLE_S = 0.02  # processor time of a broker that hears nothing, in that time: two ticks of its clock

Samples = dict[str, list[float]]


class Flood:
    """A process that sends on ``vm``'s connection whatever it can, while it is not stopped."""

    def __init__(self, vm: FakeQemu, request: Request) -> None:
        data = b"".join(messages.build_ring_value(request, 0, number & 1) for number in range(256))
        self._pid = os.fork()
        if self._pid == 0:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.kill(os.getpid(), signal.SIGSTOP)
            while True:
                with contextlib.suppress(TimeoutError):
                    vm.say(data)

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)


def _timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def measure(bed: Bed, other: FakeQemu, floods: Sequence[Flood], count: int) -> Samples:
    """``count`` samples of each kind, in milliseconds, during ``floods``, and the broker's processor time then, in
    percent of one processor."""
    for flood in floods:
        flood.resume()
    time.sleep(_SETTLES_S)
    found: Samples = {key: [] for key in (*ASKED.values(), _BUSY)}
    begun, used = time.monotonic(), cpu_seconds(bed.broker.pid)
    for _ in range(count):
        found["request_ms"].append(_timed(lambda: bed.client.vm(OTHER)))
        found["qemu_ms"].append(_timed(lambda: other.number(Request.GET_FEATURES)))
        time.sleep(_EACH_S)
    used = cpu_seconds(bed.broker.pid) - used
    found[_BUSY].append(100 * used / (time.monotonic() - begun))
    for flood in floods:
        flood.stop()
    _drain(bed.broker.pid)
    return found


def _drain(broker: int) -> None:
    """Wait until the broker has heard what the floods left in its sockets. Raises LabError."""
    end = time.monotonic() + _DRAINS_S
    while time.monotonic() < end:
        before = cpu_seconds(broker)
        time.sleep(_LOOK_S)
        if cpu_seconds(broker) - before <= _IDLE_S:
            return
    raise LabError(f"the broker was still busy {_DRAINS_S:g} s after the floods")


@contextlib.contextmanager
def running(request: Request) -> Iterator[tuple[Bed, FakeQemu, list[Flood]]]:
    """A broker, two switches, another VM, and as many flooding ones as are wanted at most."""
    with contextlib.ExitStack() as stack:
        bed = Bed(stack, 1 + max(FLOODS), Side.A, 300)
        for side in Side:
            bed.switch(side)
        other = bed.qemu(OTHER)
        bed.wait_owner(Side.A, OTHER)
        flooding = [bed.qemu(f"vm{number}", pairs=_PAIRS, ring_size=8) for number in range(1, 1 + max(FLOODS))]
        yield bed, other, [stack.enter_context(Flood(vm, request)) for vm in flooding]


def _figures(samples: Sequence[float]) -> dict[str, float]:
    ordered = sorted(samples)
    p50, p99 = quantile(ordered, 0.5) or 0.0, quantile(ordered, 0.99) or 0.0
    return {"samples": len(ordered), "p50": p50, "p99": p99, "max": ordered[-1]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("floods-report.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=100, help="of each kind in a round")


def run(arguments: argparse.Namespace, output: Output, _system: System) -> int:
    """Exit status. Raises LabError if too little is asked for, or the broker does not come to rest."""
    if arguments.rounds < 1 or arguments.samples < 1:
        raise LabError("--rounds and --samples must be at least 1")
    all_samples: dict[int, Samples] = {count: {key: [] for key in (*ASKED.values(), _BUSY)} for count in FLOODS}
    with running(Request.SET_VRING_ENABLE) as (bed, other, floods):
        for number in range(1, arguments.rounds + 1):
            output.line(f"round {number} of {arguments.rounds}")
            for count in FLOODS:
                for key, values in measure(bed, other, floods[:count], arguments.samples).items():
                    all_samples[count][key] += values
    found = {count: {key: _figures(values) for key, values in each.items()} for count, each in all_samples.items()}
    arguments.report.write_text(json.dumps({"machine": machine(), "floods": found}, indent=2) + "\n")
    rows = [
        (what, str(count), *(f"{found[count][key][name]:.2f}" for name in ("p50", "p99", "max")),
         f"{found[count][_BUSY]['p50']:.0f}")
        for what, key in ASKED.items()
        for count in FLOODS
    ]  # fmt: skip
    output.table(("who waits", "floods", "median ms", "p99 ms", "max ms", "broker's processor %"), rows)
    ratios = [found[max(FLOODS)][key]["p50"] / found[0][key]["p50"] for key in ASKED.values()]
    times = " and ".join(f"{each:.2f}" for each in ratios)
    output.line(f"with {max(FLOODS)} floods the medians are {times} times as long")
    return 1 if max(ratios) > BAR else 0

"""The ways to hand a VM's rings from one switch to another, on the clock of the front end that does it.

Each VM is a front end with a connection to either switch, as a QEMU with two back ends would be; no broker, no traffic.
*Reconnect*: the connection is closed and the other switch, which waits for that, makes its own. *Stop and start*: the
rings are stopped (GET_VRING_BASE) and started at the other switch, which knows the device already. *Enable toggle*: the
other switch has the rings, disabled and parked; they are disabled and enabled, with the addresses that go with it.
*Address swap*: only the addresses change, one message for each ring. *Memory swap*: the addresses stay, and the memory
behind them changes, one message for all rings. A handover ends when the new switch has answered its last message.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import cases
from bench.bed import Bed
from ovs_hotswap.cli.output import Output
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import activate_first
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch.pmd import set_vhost_log_level
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.support.vhost_qemu import FrontEnd
from tests.support.vhost_rings import GuestRing, Layout, Shared, page_up

_RING = 256
_CONNECT_S = 30.0
_ELSEWHERE = 1 << 40  # guest address: DPDK looks at a table's addresses and sizes to see whether it is another one


class TwinHost(Host):
    """Ports of either side connect to a socket of their own of each VM."""

    def switch_socket(self, side: Side, vm: str) -> Path:
        return self.config.run_dir / "twin" / f"{vm}-{side}.sock"


class Guest:
    """A VM with a front end to each side on the same rings. ``parked``: empty rings of the same sizes. It is idle: its
    driver has offered nothing."""

    def __init__(self, host: TwinHost, name: str, pairs: int) -> None:
        layouts: list[Layout] = []
        for _ in range(4 * pairs):
            layouts.append(Layout.at(layouts[-1].end if layouts else 0, _RING))
        size = page_up(layouts[-1].end)
        self.memory = Shared(name, size)
        self.nowhere = Shared(f"{name} parked", size)  # its rings are empty
        for number, layout in enumerate(layouts):
            GuestRing(self.memory.view, layout, 0, writable=number % 2 == 0).close()
        live, self._parked = layouts[: 2 * pairs], layouts[2 * pairs :]
        self.ends = {side: FrontEnd(host.switch_socket(side, name), self.memory, live, size) for side in Side}
        self._live = live
        for end in self.ends.values():
            end.listen()

    def close(self) -> None:
        for end in self.ends.values():
            end.close()
        self.nowhere.close()
        self.memory.close()

    def start(self, side: Side) -> None:
        end = self.ends[side]
        end.layouts = self._live
        end.start_rings(end.used_indices())

    def start_parked(self, side: Side) -> None:
        end = self.ends[side]
        end.layouts = self._parked
        end.start_rings([0] * len(self._parked))

    def place(self, side: Side, *, parked: bool, last: int = messages.VERSION) -> bytes:
        """SET_VRING_ADDR for each ring, and where the front end has them from then on. ``last``: flags of the last."""
        end = self.ends[side]
        end.layouts = self._parked if parked else self._live
        flags = [messages.VERSION] * (len(end.layouts) - 1) + [last]
        return b"".join(messages.build_ring_address(ring, end.address(ring), flag) for ring, flag in enumerate(flags))

    def back(self, side: Side, *, parked: bool) -> None:
        """Which memory is behind the addresses that the front end tells."""
        end = self.ends[side]
        end.memory, end.guest_base = (self.nowhere, _ELSEWHERE) if parked else (self.memory, 0)

    def enable(self, value: int) -> bytes:
        return b"".join(
            messages.build_ring_value(Request.SET_VRING_ENABLE, ring, value) for ring in range(len(self._live))
        )


class Way(ABC):
    """``wait`` brings a side that has nothing into the state in which it waits for the rings; ``move`` is what is
    measured; ``leave`` brings the side that had them to where it can wait again."""

    name: str

    @abstractmethod
    def wait(self, guest: Guest, side: Side) -> None: ...

    @abstractmethod
    def move(self, guest: Guest, old: Side, new: Side) -> None: ...

    def leave(self, guest: Guest, old: Side) -> None:  # noqa: B027 - most ways need nothing
        pass


def fence(end: FrontEnd) -> None:
    end.number(Request.GET_FEATURES)


class Reconnect(Way):
    name = "reconnect"

    def wait(self, guest: Guest, side: Side) -> None:
        guest.ends[side].drop()

    def move(self, guest: Guest, old: Side, new: Side) -> None:
        guest.ends[old].drop()
        end = guest.ends[new]
        end.accept(_CONNECT_S)
        end.initialise()
        guest.start(new)
        fence(end)


class StopStart(Way):
    name = "stop and start"

    def wait(self, guest: Guest, side: Side) -> None:
        connect(guest.ends[side])

    def move(self, guest: Guest, old: Side, new: Side) -> None:
        guest.ends[old].stop_driver()
        guest.start(new)
        fence(guest.ends[new])


class Toggle(Way):
    name = "enable toggle"

    def wait(self, guest: Guest, side: Side) -> None:
        end = guest.ends[side]
        connect(end)
        guest.start_parked(side)
        end.say(guest.enable(0))
        fence(end)

    def move(self, guest: Guest, old: Side, new: Side) -> None:
        guest.ends[old].say(guest.enable(0))
        fence(guest.ends[old])
        guest.ends[new].say(guest.place(new, parked=False) + guest.enable(1))
        fence(guest.ends[new])

    def leave(self, guest: Guest, old: Side) -> None:
        guest.ends[old].say(guest.place(old, parked=True))
        fence(guest.ends[old])


class AddressSwap(Way):
    name = "address swap"

    def wait(self, guest: Guest, side: Side) -> None:
        connect(guest.ends[side])
        guest.start_parked(side)
        fence(guest.ends[side])

    def move(self, guest: Guest, old: Side, new: Side) -> None:
        for side, parked in ((old, True), (new, False)):
            places = guest.place(side, parked=parked, last=messages.VERSION | messages.NEED_REPLY)
            guest.ends[side].ask(Request.SET_VRING_ADDR, places)


class MemorySwap(Way):
    name = "memory swap"

    def wait(self, guest: Guest, side: Side) -> None:
        connect(guest.ends[side])
        guest.back(side, parked=True)
        guest.start(side)
        fence(guest.ends[side])

    def move(self, guest: Guest, old: Side, new: Side) -> None:
        for side, parked in ((old, True), (new, False)):
            guest.back(side, parked=parked)
            guest.ends[side].share_memory()


WAYS: tuple[Way, ...] = (Reconnect(), StopStart(), Toggle(), AddressSwap(), MemorySwap())


def connect(end: FrontEnd) -> None:
    """A connection that knows the device and has no rings."""
    end.drop()
    end.accept(_CONNECT_S)
    end.initialise()


@dataclass(frozen=True, slots=True)
class Case:
    vms: int
    queues: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.vms}x{self.queues}"


CASES = tuple(Case(vms, queues, rounds) for vms, rounds in ((1, 20), (16, 4), (64, 2)) for queues in (1, 4))


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    way: str
    times_us: list[float]


def run_case(case: Case, say: Callable[[str], None], system: System) -> list[Result]:
    bed = Bed(Path(tempfile.mkdtemp(prefix="ovsh-al-")), case.vms, system, GuestOptions(queues=case.queues))
    with ExitStack() as stack:
        stack.callback(bed.down)
        bed.up()
        host = TwinHost(bed.config, system)
        for side in Side:
            host.instances[side].start(bed.release)
            host.program(side)
            set_vhost_log_level(host.control(side), "error")  # this and the next as in an upgrade
            host.prefer_threads(side, Rank.GIVES)
        activate_first(host, Side.A)
        # Last, and closed first: they have more descriptors than the OVSDB library can deal with (it uses select(2)).
        guests = [
            stack.enter_context(contextlib.closing(Guest(host, each.name, case.queues))) for each in bed.layout.guests
        ]
        results = []
        for way in WAYS:
            say(f"{case}: {way.name}")
            results.append(Result(case, way.name, measure(way, guests, case.rounds)))
        return results


def measure(way: Way, guests: Sequence[Guest], rounds: int) -> list[float]:
    """The microseconds of each handover; all VMs are moved there and back ``rounds`` times."""
    times: list[float] = []
    for guest in guests:
        connect(guest.ends[Side.A])
        guest.start(Side.A)
        way.wait(guest, Side.B)
    time.sleep(2.0)  # a switch that was dropped connects again after a second
    for old in (Side.A, Side.B) * rounds:
        for guest in guests:
            begin = time.perf_counter()
            way.move(guest, old, old.other)
            times.append((time.perf_counter() - begin) * 1e6)
        for guest in guests:
            way.leave(guest, old)
        time.sleep(1.5 if isinstance(way, Reconnect) else 0.1)
    return times


# ------------------------------------------------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "alternatives")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Raises HotswapError."""
    found = cases.each_case(
        CASES, arguments, output, lambda case: run_case(case, output.line, system),
        lambda results: [asdict(result) for result in results],
    )  # fmt: skip
    show(output, [result for results in found for result in results])
    return 0


def show(output: Output, results: Sequence[Result]) -> None:
    swaps = {
        result.case: quantile(sorted(result.times_us), 0.5) for result in results if result.way == AddressSwap.name
    }
    rows = []
    for result in results:
        ordered = sorted(result.times_us)
        p50, p99 = quantile(ordered, 0.5) or 0.0, quantile(ordered, 0.99) or 0.0
        ratio = p50 / (swaps[result.case] or p50)
        rows.append((str(result.case), result.way, str(len(ordered)), f"{p50:.0f}", f"{p99:.0f}", f"{ordered[-1]:.0f}",
                     f"{ratio:.1f}"))  # fmt: skip
    columns = ("VMs x queues", "way", "times", "p50 us", "p99 us", "max us", "x address swap")
    output.table(columns, rows, title="handover of one VM's rings, front end's clock")

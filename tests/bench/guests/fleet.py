"""A fleet of simulated VMs, as benchmarks and tests use it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyroute2 import netns

from ovs_hotswap.errors import LabError
from ovs_hotswap.vhost.wire import Feature
from tests.bench.guests.front import Doorman
from tests.bench.guests.plan import NOBODY, REMOTE, Plan
from tests.bench.guests.record import Events
from tests.bench.guests.rings import HUGE_PAGE, PAGE, Shape
from tests.vhost_qemu import GUEST_FEATURES, FrontEnd
from tests.vhost_rings import Shared

_ANSWER_S = 20.0
_POLL_S = 0.01
_MFD_HUGE_2MB = 21 << 26  # memfd_create(2), linux/memfd.h


class FleetError(LabError):
    """The fleet cannot be made, or one of its guests is not served."""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """``socket``: where the VM's QEMU listens for its switch."""

    name: str
    mac: str
    socket: Path


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """A device of a network namespace that leads into the VMs' network, as another host's VM would be connected."""

    namespace: str
    device: str
    mac: str


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """``remote_vms``: so many VMs, the first ones, exchange frames with the remote host; the others do in pairs, each
    with the one half of them away, and a last one without a partner with nobody. ``pairs``: queue pairs of each VM.
    ``frame``: bytes of a frame without its checksum. ``pause_us``: how long the drivers sleep between two looks, 0:
    not at all. ``nice``: their nice value.
    """

    vms: tuple[VmSpec, ...]
    pairs: int = 1
    ring_size: int = 256
    features: int = GUEST_FEATURES
    frame: int = 128
    buffer: int = 2048
    hugepages: bool = False
    remote: RemoteHost | None = None
    remote_vms: int = 0
    pause_us: int = 50
    nice: int = -10

    @property
    def targets(self) -> tuple[int, ...]:
        """Whom each VM sends to; see ``Plan``."""
        remote = self.remote_vms if self.remote is not None else 0
        half = (len(self.vms) - remote) // 2
        first = list(range(remote + half, remote + 2 * half))
        second = list(range(remote, remote + half))
        return tuple([REMOTE] * remote + first + second + [NOBODY] * (len(self.vms) - remote - 2 * half))

    @property
    def header(self) -> int:
        """Bytes of ``struct virtio_net_hdr``: with ``num_buffers`` or without (virtio 1.2, 5.1.6)."""
        return 12 if self.features & (1 << Feature.VERSION_1 | 1 << Feature.NET_MRG_RXBUF) else 10

    @property
    def shape(self) -> Shape:
        page = HUGE_PAGE if self.hugepages else PAGE
        return Shape(len(self.vms), self.pairs, self.ring_size, self.buffer, page)


@dataclass(frozen=True, slots=True)
class StreamStats:
    """Frames from one port's queue to its one destination. ``source``: number of the VM; one more than the last VM's is
    the remote host, and ``queue`` then the VM that it sends to. ``refused``: not sent because the ring was full.
    ``waiting``: sent, but not yet taken by the switch. ``lost`` counts what is under way too: stop and drain first."""

    source: int
    queue: int
    sent: int
    refused: int
    waiting: int
    received: int
    lost: int
    doubled: int
    reordered: int


@dataclass(frozen=True, slots=True)
class Stats:
    """``broken``: frames with a wrong checksum. ``stray``: come to a wrong VM. ``foreign``: somebody else's frames.
    ``faults``: rings on which the switch gave back what it had not. ``tick_us``: times between two looks of the
    drivers, ``blind`` those above 1 ms (CLOCK_MONOTONIC, ns). ``cpu_s``: processor time of the drivers so far."""

    streams: tuple[StreamStats, ...]
    broken: int
    stray: int
    foreign: int
    faults: tuple[str, ...]
    blind: tuple[tuple[int, int], ...]
    cpu_s: float
    tick_us: dict[str, float]

    @classmethod
    def of(cls, found: dict[str, Any]) -> Stats:
        tuples: dict[str, Any] = {key: tuple(found[key]) for key in ("faults", "blind")}
        return cls(**{**found, **tuples, "streams": tuple(StreamStats(**stream) for stream in found["streams"])})

    def total(self, figure: str) -> int:
        """A sum over all streams, such as of ``lost``."""
        return sum(getattr(stream, figure) for stream in self.streams)


class Fleet:
    """The VMs of ``spec``. Context manager: inside it, they listen, and are served as soon as a switch or broker
    connects. Methods raise FleetError."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self._stack = ExitStack()
        self.fronts: list[FrontEnd] = []
        self._child: subprocess.Popen[bytes]
        self._control: Connection
        self._doorman: Doorman

    def __enter__(self) -> Fleet:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        spec, shape = self.spec, self.spec.shape
        for vm in spec.vms:
            memory = _memory(vm.name, shape)
            self._stack.callback(memory.close)
            self.fronts.append(FrontEnd(vm.socket, memory, shape.layouts, shape.memory, features=spec.features))
        self._start_drivers()
        self._doorman = Doorman(self.fronts)
        self._stack.callback(self._doorman.close)
        self._doorman.start()

    def _start_drivers(self) -> None:
        spec = self.spec
        remote = _remote_socket(spec.remote) if spec.remote is not None and spec.remote_vms else None
        here, there = socket.socketpair()
        plan = Plan(
            shape=spec.shape, memory=tuple(front.memory.fd for front in self.fronts),
            macs=tuple(vm.mac for vm in spec.vms), targets=spec.targets,
            remote=None if remote is None else remote.fileno(), remote_mac=spec.remote.mac if spec.remote else "",
            frame=spec.frame, header=spec.header, pause_us=spec.pause_us, nice=spec.nice,
        )  # fmt: skip
        passed = [*plan.memory, there.fileno(), *([] if plan.remote is None else [plan.remote])]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.guests.driver", plan.text(), str(there.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=passed, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        there.close()
        if remote is not None:
            remote.close()
        self._control = Connection(here.detach())
        self._stack.callback(self._end_drivers)
        self._answer()  # the receive rings are filled

    def _end_drivers(self) -> None:
        self._control.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ask(self, *order: object) -> Any:
        try:
            self._control.send(order)
        except OSError as error:
            raise FleetError(f"the drivers ended: status {self._child.poll()}") from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            if self._control.poll(_ANSWER_S):
                return self._control.recv()
        except (EOFError, OSError) as error:
            raise FleetError(f"the drivers ended: status {self._child.wait()}") from error
        raise FleetError(f"the drivers do not answer within {_ANSWER_S:g} s")

    @property
    def pid(self) -> int:
        """The drivers' process."""
        return self._child.pid

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(vm.name for vm in self.spec.vms)

    def wait_served(self, timeout: float) -> None:
        """Return when each VM's rings have been given to a switch or broker."""
        missing = self._doorman.wait_up(timeout)
        if missing or self._doorman.faults:
            names = ", ".join(self.names[number] for number in missing)
            raise FleetError(f"not served within {timeout:g} s: {names or 'none'}; {'; '.join(self._doorman.faults)}")

    def boots(self) -> tuple[int, ...]:
        """How often each VM's rings have been given to somebody."""
        return tuple(self._doorman.boots)

    def set_active_pairs(self, vm: int, pairs: int) -> None:
        """Have a guest use ``pairs`` of its queue pairs, as ``ethtool -L`` does; the drivers go on sending on all."""
        self.fronts[vm].set_active_pairs(pairs)

    def start(self, rate: float) -> None:
        """Have each VM, and the remote host to each of its VMs, send ``rate`` frames a second."""
        self._ask("start", rate)

    def stop(self, patience_s: float = 2.0) -> Stats:
        """Stop sending, wait until everything has been taken and no more comes (for so long at most), and tell."""
        self._ask("stop")
        end, before = time.monotonic() + patience_s, None
        while True:
            stats = self.stats()
            figures = stats.total("received"), stats.total("waiting")
            if time.monotonic() >= end or (figures[1] == 0 and figures == before):
                return stats
            before = figures
            time.sleep(10 * _POLL_S)

    def stats(self) -> Stats:
        return Stats.of(self._ask("stats"))

    def events(self) -> Events:
        """What has been logged since this was asked last."""
        return Events.of(self._ask("events"), self.spec.shape.rings)

    def forget(self) -> None:
        """Forget what is logged, and the drivers' ticks, up to now."""
        self._ask("events")
        self._ask("ticks")

    def wait_flowing(self, timeout: float) -> None:
        """Return when something of each stream has been received since the call."""
        before = {(s.source, s.queue): s.received for s in self.stats().streams}
        end = time.monotonic() + timeout
        while True:
            stats = self.stats()
            still = [s for s in stats.streams if s.received <= before[s.source, s.queue]]
            if not still:
                return
            if time.monotonic() >= end:
                which = ", ".join(f"{s.source}.{s.queue}" for s in still)
                raise FleetError(f"nothing received within {timeout:g} s of {which}; {'; '.join(stats.faults)}")
            time.sleep(_POLL_S)


def _memory(name: str, shape: Shape) -> Shared:
    huge = shape.page == HUGE_PAGE
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | _MFD_HUGE_2MB if huge else 0)
    descriptor = os.memfd_create(f"guest-{name}", flags)
    os.ftruncate(descriptor, shape.memory)
    return Shared(name, shape.memory, descriptor)


def _remote_socket(remote: RemoteHost) -> socket.socket:
    """A packet socket on the device. A thread of its own enters the namespace; the socket stays in it."""
    made: list[socket.socket] = []
    faults: list[OSError] = []

    def make() -> None:
        try:
            netns.setns(remote.namespace, flags=0)
            protocol = 0x0800
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(protocol))
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            one.bind((remote.device, protocol))
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if faults:
        for one in made:
            one.close()
        raise FleetError(f"{remote.device} in network namespace {remote.namespace}: {faults[0]}") from faults[0]
    return made[0]

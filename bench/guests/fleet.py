"""A fleet of simulated VMs, as benchmarks and tests use it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.guests.record import Events
from bench.guests.spec import FleetSpec
from ovs_hotswap.errors import LabError

_ANSWER_S = 20.0
_END_S = 10.0
_POLL_S = 0.01


class FleetError(LabError):
    """The fleet cannot be made, or one of its guests is not served."""


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
    """The drivers' figures. ``broken``: frames with a wrong checksum. ``stray``: frames that came to a wrong VM.
    ``foreign``: frames of other senders. ``faults``: rings on which the switch returned a buffer that it did not have.
    ``tick_us``: times between two looks of the drivers; ``blind``: those above 1 ms (CLOCK_MONOTONIC, ns). ``cpu_s``:
    the drivers' processor time so far."""

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


class GuestTraffic(ABC):
    """The traffic between the VMs of ``spec``, and what their drivers recorded. Methods raise FleetError."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self._control: Connection

    @abstractmethod
    def _status(self) -> int | None:
        """The exit status of the process that answers; ``None`` while it runs."""

    @abstractmethod
    def wait_served(self, timeout: float) -> None:
        """Return when each VM's rings have been given to a switch or broker."""

    def _ask(self, *order: object, patience_s: float = 0.0) -> Any:
        try:
            self._control.send(order)
        except OSError as error:
            raise FleetError(f"the guests ended: status {self._status()}") from error
        return self._answer(_ANSWER_S + patience_s)

    def _answer(self, timeout: float) -> Any:
        try:
            if self._control.poll(timeout):
                return self._control.recv()
        except (EOFError, OSError) as error:
            raise FleetError(f"the guests ended: status {self._status()}") from error
        raise FleetError(f"the guests do not answer within {timeout:g} s")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(vm.name for vm in self.spec.vms)

    def start(self, rate: float, burst: int = 1) -> None:
        """Make each VM, and the remote host to each of its VMs, send ``rate`` frames a second, each queue ``burst`` of
        them at once."""
        self._ask("start", rate, burst)

    def stop(self, patience_s: float = 2.0) -> Stats:
        """Stop sending, wait at most ``patience_s`` until all frames have been taken and none arrives, and return the
        figures."""
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


class Fleet(GuestTraffic):
    """The VMs of ``spec``. Context manager: inside it, they listen, and are served as soon as a switch or broker
    connects."""

    def __init__(self, spec: FleetSpec) -> None:
        super().__init__(spec)
        self.drivers_pid = 0
        self._child: subprocess.Popen[bytes]

    def __enter__(self) -> Fleet:
        here, there = socket.socketpair()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.guests.house", str(there.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], cwd=Path(__file__).parents[2],
            start_new_session=True,  # an interrupt at the terminal is for the benchmark, which ends this one
        )  # fmt: skip
        there.close()
        self._control = Connection(here.detach())
        try:
            self._control.send(self.spec)
            self.drivers_pid = self._answer(_ANSWER_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _status(self) -> int | None:
        return self._child.poll()

    def wait_served(self, timeout: float) -> None:
        missing, faults = self._ask("served", float(timeout), patience_s=timeout)
        if missing or faults:
            names = ", ".join(self.names[number] for number in missing)
            raise FleetError(f"not served within {timeout:g} s: {names or 'none'}; {'; '.join(faults)}")

    def boots(self) -> tuple[int, ...]:
        """How often each VM's rings have been given to a back end."""
        return tuple(self._ask("boots"))

    def set_active_pairs(self, vm: int, pairs: int) -> None:
        """Make a guest use ``pairs`` of its queue pairs, as ``ethtool -L`` does; the drivers still send on all."""
        self._ask("pairs", vm, pairs)

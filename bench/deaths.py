"""What a death of the active instance costs simulated guests, measured from just before the SIGKILL.

A guest is back in one direction when a frame that was sent (to it), or offered (by it), at that instant or later has
arrived, or been taken: the dead switch cannot have moved it. So half of the time between two frames is in each figure.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.guests import Events, Fleet, FleetSpec
from bench.guests.plan import NOBODY
from bench.guests.record import Timeline
from ovs_hotswap.errors import LabError

_LOOK_S = 0.1
_DEATH_S = 10.0


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks: CLOCK_MONOTONIC in nanoseconds, and seconds since the epoch."""

    monotonic: int
    wall: float

    @classmethod
    def now(cls) -> Instant:
        return cls(time.monotonic_ns(), time.time())

    def since_wall(self, wall: float) -> float:
        """Milliseconds from here to a time since the epoch."""
        return (wall - self.wall) * 1e3

    def since(self, monotonic: int) -> float:
        return (monotonic - self.monotonic) / 1e6


@dataclass(frozen=True, slots=True)
class Death:
    """A process that was killed, or stopped, at ``instant``. Milliseconds after it: ``hung_up``, its sockets were
    closed; ``dead``, its pidfd told. ``None``: this was not watched."""

    instant: Instant
    hung_up_ms: float | None = None
    dead_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """Milliseconds from an instant until each VM sent and received again, by its number; ``None``: not at all."""

    sending: dict[int, float | None]
    receiving: dict[int, float | None]

    @property
    def over(self) -> bool:
        return None not in self.sending.values() and None not in self.receiving.values()

    def values(self, direction: str) -> list[float]:
        """The figures of all VMs; a VM that did not come back counts as infinite."""
        found = self.sending if direction == "sending" else self.receiving
        return [float("inf") if value is None else value for value in found.values()]


def kill(pid: int, ctl: Path) -> Death:
    """SIGKILL ovs-vswitchd ``pid`` with control socket ``ctl``; return when it is dead. Raises LabError."""
    pidfd = os.pidfd_open(pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(ctl))
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.register(connection, select.POLLRDHUP)
            instant = Instant.now()
            os.kill(pid, signal.SIGKILL)
            seen: dict[int, float] = {}
            while len(seen) < 2:
                events = poller.poll(_DEATH_S * 1e3)
                if not events:
                    raise LabError(f"process {pid} does not die")
                now = time.monotonic_ns()
                for descriptor, _ in events:
                    seen[descriptor] = instant.since(now)
                    poller.unregister(descriptor)
            return Death(instant, seen[connection.fileno()], seen[pidfd])
        finally:
            os.close(pidfd)


def stop(pid: int) -> Death:
    """SIGSTOP a process: it lives and does nothing."""
    instant = Instant.now()
    os.kill(pid, signal.SIGSTOP)
    return Death(instant)


def outage(spec: FleetSpec, events: Events, instant: Instant) -> Outage:
    """What ``events`` say about the VMs that have a target to send to."""

    def after(found: int | None) -> float | None:
        return None if found is None else instant.since(found)

    vms = [vm for vm, target in enumerate(spec.targets) if target != NOBODY]
    start = instant.monotonic
    return Outage(
        sending={vm: after(events.taken(vm).first_from(start)) for vm in vms},
        receiving={vm: after(events.received(vm).first_from(start)) for vm in vms},
    )


def longest(spec: FleetSpec, events: Events, instant: Instant) -> Outage:
    """Each VM's longest gap since ``instant``: for what ends the traffic some time after it."""
    last = int(events.time.max()) if len(events) else instant.monotonic

    def longest_of(timeline: Timeline) -> float | None:
        gap = timeline.largest(instant.monotonic, last)
        return None if gap is None else gap.ms

    vms = [vm for vm, target in enumerate(spec.targets) if target != NOBODY]
    return Outage(
        sending={vm: longest_of(events.taken(vm)) for vm in vms},
        receiving={vm: longest_of(events.received(vm)) for vm in vms},
    )


def wait_back(fleet: Fleet, instant: Instant, patience_s: float) -> Outage:
    """Watch until every VM sends and receives again, or for so long."""
    events = fleet.events()
    end = instant.monotonic + int(patience_s * 1e9)
    while True:
        found = outage(fleet.spec, events, instant)
        if found.over or time.monotonic_ns() >= end:
            return found
        time.sleep(_LOOK_S)
        events = join(events, fleet.events())


def join(one: Events, other: Events) -> Events:
    return Events(
        np.concatenate([one.ring, other.ring]),
        np.concatenate([one.time, other.time]),
        np.concatenate([one.origin, other.origin]),
        one.rings,
    )


def floor(fleet: Fleet, instants: int, pause_s: float) -> list[Outage]:
    """The figures for instants at which nothing is done: the part of them that a failover does not cause."""
    fleet.forget()
    taken = []
    for _ in range(instants):
        time.sleep(pause_s)
        taken.append(Instant.now())
    time.sleep(max(pause_s, 1.0))
    events = fleet.events()
    return [outage(fleet.spec, events, instant) for instant in taken]


def pooled(outages: Sequence[Outage], direction: str) -> list[float]:
    """All VMs' figures of all outages, in order."""
    return sorted(value for each in outages for value in each.values(direction))

"""The process that is the drivers of all simulated guests: sends, receives, records.

It looks at all rings' used indices in one go, sleeps for ``pause_us`` and looks again. ``house`` starts and asks it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.guests import frames
from bench.guests.plan import NOBODY, REMOTE, Plan
from bench.guests.record import Log, Received, Ticks
from bench.guests.rings import Bank, DriverRing, RingFault

_PR_SET_TIMERSLACK = 29
_ORDERS_EVERY = 16  # looks between two looks at the control connection
_REMOTE_BURST = 64


class Stream:
    """Frames from one port and queue to one other port, numbered from 0. ``way``: the transmit ring, or the remote
    host's socket."""

    def __init__(self, writer: frames.Writer, way: DriverRing | socket.socket) -> None:
        self._writer, self._way = writer, way
        self.sent = 0
        self.refused = 0  # for want of room
        self.offered: dict[int, int] = {}  # head: when

    def send(self, now: int) -> None:
        frame = self._writer.make(self.sent, now)
        if isinstance(self._way, DriverRing):
            if not self._way.free:
                self.refused += 1
                return
            head = self._way.free.popleft()
            self._way.write(head, frame)
            self.offered[head] = now
            self._way.offer(head)
        else:
            try:
                self._way.send(frame)
            except OSError:  # its queue is full, or a link of the lab is down
                self.refused += 1
                return
        self.sent += 1


class Drivers:
    """All guests. ``turn`` is one look."""

    def __init__(self, plan: Plan, bank: Bank, remote: socket.socket | None) -> None:
        self._plan, self._remote = plan, remote
        shape = plan.shape
        self._bank = bank  # its mapping is what all others look into
        self._used = bank.used
        self._seen = bank.used.copy()
        self._now = np.empty_like(self._seen)
        self.rings = [
            DriverRing(bank.memory(vm), layout, shape.buffer, writable=index % 2 == 0)
            for vm in range(shape.vms)
            for index, layout in enumerate(shape.layouts)
        ]
        for ring in self.rings[::2]:
            while ring.free:
                ring.offer(ring.free.popleft())
        self.streams = self._make_streams()
        self._due = np.zeros(len(self.streams), np.int64)
        self._period = 0
        self._burst = 1
        self._next = 0  # the soonest that is due; 0: nothing is sent
        self.received: dict[tuple[int, int], Received] = {}
        self.log = Log()
        self.ticks = Ticks()
        self.broken = self.stray = self.foreign = 0
        self.faults: list[str] = []
        self._dead: set[int] = set()  # rings with a fault

    def _make_streams(self) -> dict[tuple[int, int], Stream]:
        plan, shape, made = self._plan, self._plan.shape, {}
        for vm, target in enumerate(plan.targets):
            if target == NOBODY:
                continue
            macs = plan.macs[vm], plan.remote_mac if target == REMOTE else plan.macs[target]
            for queue in range(shape.pairs):
                writer = frames.Writer(vm, queue, macs, plan.frame, plan.header, plan.flows)
                made[vm, queue] = Stream(writer, self.rings[vm * shape.rings + 2 * queue + 1])
            if target == REMOTE:
                assert self._remote is not None
                writer = frames.Writer(shape.vms, vm, (plan.remote_mac, plan.macs[vm]), plan.frame, 0)
                made[shape.vms, vm] = Stream(writer, self._remote)
        return made

    # -- sending

    def start(self, rate: float, burst: int = 1) -> None:
        """Have each VM, and the remote host to each of its VMs, send ``rate`` frames a second: from each queue
        ``burst`` at once. While a burst is sent, nothing is received, as in a guest whose processor is busy."""
        now, pairs = time.monotonic_ns(), self._plan.shape.pairs
        self._period, self._burst = int(1e9 * pairs * burst / rate), burst
        # Spread over the period, so that they do not all come at once.
        self._due = now + np.arange(len(self.streams), dtype=np.int64) * self._period // max(len(self.streams), 1)
        self._next = int(self._due.min())

    def stop(self) -> None:
        self._next = 0

    def _send(self, now: int) -> None:
        streams = list(self.streams.values())
        for number in np.flatnonzero(self._due <= now).tolist():
            for _ in range(self._burst):
                streams[number].send(now)
            due = int(self._due[number]) + self._period
            self._due[number] = due if due > now else now + self._period  # what was missed is not made up for
        self._next = int(self._due.min())

    # -- receiving

    def turn(self) -> int:
        """One look at everything; the time of it."""
        np.copyto(self._now, self._used)
        now = time.monotonic_ns()
        self.ticks.note(now)
        if not np.array_equal(self._now, self._seen):
            for number in np.flatnonzero(self._now != self._seen).tolist():
                if number not in self._dead:
                    self._reap(number, int(self._now.flat[number]), now)
            self._now, self._seen = self._seen, self._now
        if self._remote is not None:
            self._receive_remote(self._remote, now)
        if self._next and now >= self._next:
            self._send(now)
        return now

    def _reap(self, number: int, used: int, now: int) -> None:
        ring = self.rings[number]
        try:
            taken = ring.collect(used)
        except RingFault as fault:
            self._dead.add(number)
            vm, index = divmod(number, self._plan.shape.rings)
            self.faults.append(f"VM {vm} ring {index}: {fault}")
            return
        vm, index = divmod(number, self._plan.shape.rings)
        if index % 2:
            offered = self.streams[vm, index // 2].offered
            for head, _ in taken:
                ring.free.append(head)
                self.log.add(number, now, offered.pop(head))
            return
        for head, length in taken:
            self._receive(number, vm, ring.buffer(head)[self._plan.header : length], now)
            ring.offer(head)

    def _receive(self, number: int, vm: int, frame: memoryview, now: int) -> None:
        """``vm``: where the frame has come to; the remote host counts as one more."""
        try:
            stamp = frames.read(frame)
        except frames.Broken:
            self.broken += 1
            return
        if stamp is None:
            self.foreign += 1
            return
        if self._destination(stamp) != vm:
            self.stray += 1
            return
        self.received.setdefault((stamp.source, stamp.queue), Received()).saw(stamp.sequence)
        self.log.add(number, now, stamp.sent)

    def _destination(self, stamp: frames.Stamp) -> int | None:
        vms = self._plan.shape.vms
        if (stamp.source, stamp.queue) not in self.streams:
            return None
        if stamp.source == vms:
            return stamp.queue
        target = self._plan.targets[stamp.source]
        return vms if target == REMOTE else target

    def _receive_remote(self, remote: socket.socket, now: int) -> None:
        vms = self._plan.shape.vms
        for _ in range(_REMOTE_BURST):
            try:
                frame = remote.recv(self._plan.frame + 1)
            except OSError:  # nothing more there, or a link of the lab is down
                return
            self._receive(vms * self._plan.shape.rings, vms, memoryview(frame), now)

    # -- what there is

    def stats(self) -> dict[str, Any]:
        """See ``fleet.Stats``."""
        streams = []
        for (source, queue), stream in self.streams.items():
            got = self.received.get((source, queue), Received())
            streams.append({
                "source": source, "queue": queue, "sent": stream.sent, "refused": stream.refused,
                "waiting": len(stream.offered), "received": got.count, "lost": got.lost(stream.sent),
                "doubled": got.doubled, "reordered": got.reordered,
            })  # fmt: skip
        return {
            "streams": streams, "broken": self.broken, "stray": self.stray, "foreign": self.foreign,
            "faults": list(self.faults), "blind": list(self.ticks.blind), "cpu_s": time.process_time(),
            "tick_us": {name: self.ticks.quantile_us(part) for name, part in _QUANTILES.items()},
        }  # fmt: skip


_QUANTILES = {"p50": 0.50, "p99": 0.99, "p999": 0.999, "max": 1.0}


def serve(drivers: Drivers, control: Connection, pause_us: int) -> None:
    """Look, and obey orders, until told to end or the other end is gone."""
    poller = select.poll()
    poller.register(control.fileno(), select.POLLIN)
    pause = pause_us / 1e6
    looks = 0
    while True:
        drivers.turn()
        looks += 1
        if looks % _ORDERS_EVERY == 0 and poller.poll(0):
            try:
                order, *arguments = control.recv()
            except EOFError:
                return
            if order == "end":
                return
            control.send(_obey(drivers, order, arguments))
        if pause:
            time.sleep(pause)


def _obey(drivers: Drivers, order: str, arguments: list[Any]) -> object:
    if order == "start":
        drivers.start(*arguments)
    elif order == "stop":
        drivers.stop()
    elif order == "events":
        return drivers.log.take()
    elif order == "stats":
        return drivers.stats()
    elif order == "ticks":
        drivers.ticks = Ticks()
    return None


def main() -> None:
    """Arguments: the plan, and the control connection's descriptor."""
    plan = Plan.parse(sys.argv[1])
    os.setpriority(os.PRIO_PROCESS, 0, plan.nice)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # nanoseconds; the usual 50 us would double the pause
    bank = Bank(plan.shape, plan.memory)
    remote = None if plan.remote is None else socket.socket(fileno=plan.remote)
    drivers = Drivers(plan, bank, remote)
    control = Connection(int(sys.argv[2]))
    control.send("ready")
    gc.collect()
    gc.freeze()
    gc.disable()
    serve(drivers, control, plan.pause_us)


if __name__ == "__main__":
    main()

"""A front end that uses the freedom of the vhost-user specification, and a model of what its back ends must have heard.

``Bench`` puts a ``Vm`` of the broker between it and two back ends (``vhost_device``), in one thread: what is said is
handled to its end by ``settle``, unless a back end was made ``silent``. The front end's messages wait in a queue while
it waits for an answer, as QEMU does. ``check`` compares both back ends, the rings in guest memory and what was taken
from them with the model, which knows only what the front end said.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.time_budget import Budget, Turns
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_memory import make_scratch
from ovs_hotswap.vhostuser.messages import Feature, ProtocolFeature, Request, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty
from ovs_hotswap.vhostuser.reconcile import Role
from tests.support.vhost_device import FEATURES, Port, SwitchSpec
from tests.support.vhost_rings import GuestRing, Layout, Ledger, Shared, Touches, overlaps

RINGS = 4
PACKETS = 1 << 14
_USER = 0x7F00_0000_0000
_SMALL = 1 << 16
_DRIVER_OK = 15
_ROUNDS = 400  # of the event loop: more than anything takes that ends
PF = 1 << Feature.PROTOCOL_FEATURES
BITS = FEATURES & messages.CARRIED_FEATURES & ~PF


@dataclass
class Ring:
    """What the front end knows of a ring. ``index``: where a back end continues, if the front end has described the
    ring to it (``known``)."""

    number: int
    layouts: tuple[Layout, ...]
    driver: GuestRing
    place: int = 0
    started: bool = False
    enabled: bool = False
    called: bool = False
    known: bool = False
    index: int = 0
    call: int = -1
    kick: int = -1


@dataclass
class Step:
    """A message; ``answer`` is what is owed for it, known only when it comes."""

    data: bytes
    fds: tuple[int, ...] = ()
    answer: Callable[[], bytes] | None = None
    request: Request = Request.GET_FEATURES


@dataclass
class Front:
    """The front end's connection and choices."""

    socket: socket.socket | None = None
    speaks_pf: bool = True
    protocol: int = 0
    features: int = 0
    status: int | None = None
    regions: int = 1
    queue: deque[Step | Callable[[], None]] = field(default_factory=deque)
    waits: Step | None = None
    received: bytes = b""


class Bench:
    """See the module. ``close`` afterwards."""

    def __init__(self, withheld: int = 0) -> None:
        self._stack = contextlib.ExitStack()
        self.loop = asyncio.new_event_loop()
        self._stack.callback(self.loop.close)
        self.ledger = Ledger(1, PACKETS)
        self._stack.callback(self.ledger.close)
        self._processes = Processes(self.loop, lambda pid: self.vm.process_ended(pid))
        self._stack.callback(self._processes.close)
        turns, unlimited = Turns(self.loop, _no_time), Budget(_no_time, _no_time)  # whatever the machine does beside
        self.vm = Vm("vm0", self.loop, Delays(self.loop), turns, self._processes, make_scratch(), Side.A, withheld,
                     budget=unlimited)  # fmt: skip
        self._stack.callback(self.vm.close)
        self.touches = {side: Touches(1 << 12) for side in Side}
        spec = SwitchSpec([""])
        self.ports = {side: Port(0, spec, self.ledger, self.touches[side]) for side in Side}
        self.silent: set[Side] = set()
        self.front = Front()
        self.sent = 0
        self._memory()

    def _memory(self) -> None:
        layouts: list[list[Layout]] = []
        end = 0
        for _ in range(RINGS):
            both = []
            for size in (64, 32):
                both.append(Layout.at(end, size))
                end = both[-1].end
            layouts.append(both)
        self.main = end
        self.memory = Shared("guest", end + 8 * _SMALL)
        self._stack.callback(self.memory.close)
        self.rings = [Ring(number, tuple(both), self._driver(number, both[0])) for number, both in enumerate(layouts)]
        self._stack.callback(self._close_drivers)

    def close(self) -> None:
        if self.front.socket is not None:
            self.front.socket.close()
        self.front = Front()
        for fd in {fd for ring in self.rings for fd in (ring.kick, ring.call)} - {-1}:
            os.close(fd)
        for port in self.ports.values():
            port.hang_up()
        self._turn()
        self._stack.close()
        for touches in self.touches.values():
            touches.close()

    def _close_drivers(self) -> None:
        for ring in self.rings:
            ring.driver.close()

    def _driver(self, number: int, layout: Layout) -> GuestRing:
        return GuestRing(self.memory.view, layout, 0, writable=number % 2 == 0)

    def _renew(self, ring: Ring, *, kick: bool, call: bool) -> None:
        for name, new in (("kick", kick), ("call", call)):
            old = getattr(ring, name)
            if new or old < 0:
                setattr(ring, name, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            if new and old >= 0:
                os.close(old)

    # -- switches

    def connect(self, side: Side) -> None:
        here, there = socket.socketpair()
        here.setblocking(False)
        self.ports[side].socket = here
        self.vm.accept(side, there)
        self.settle()

    def cut(self, side: Side) -> None:
        self.ports[side].hang_up()
        self.settle()

    def move(self) -> None:
        """Give the rings to the other side, because an owner that can no longer serve the guest has to release them."""
        owner = self.vm.owner()
        if owner is None or self.vm.ownership.certainty is not Certainty.OWNS:
            return
        parked = self.vm.park_wanted | {owner.side}
        self.vm.commit(self.vm.record._replace(home=owner.side.other, park_wanted=parked))
        self.vm.take_back(owner)
        self.settle()

    # -- the front end

    def plug(self, *, speaks_pf: bool, protocol: int, bits: int, owner_first: bool) -> None:
        """A QEMU comes, and gets as far as it does before its guest's driver."""
        if not self.vm.wants_qemu:
            return
        here, there = socket.socketpair()
        here.setblocking(False)
        self.front = Front(here, speaks_pf, protocol if speaks_pf else 0, bits | (PF if speaks_pf else 0))
        self.vm.connected(there)
        owner, rest = [Step(messages.build(Request.SET_OWNER))], []
        if speaks_pf:
            rest = [Step(messages.build_number(Request.SET_PROTOCOL_FEATURES, self.front.protocol))]
        self.say(*(owner + rest if owner_first else rest + owner))

    def hang_up(self) -> None:
        """The QEMU ends."""
        if self.front.socket is not None:
            self.front.socket.close()
        self.front = Front()
        for ring in self.rings:
            ring.started = ring.enabled = ring.called = ring.known = False
            ring.index = ring.driver.view.used16[1]
        self.settle()

    def speaks(self, bit: ProtocolFeature) -> bool:
        return bool(self.front.protocol >> bit & 1)

    def say(self, *steps: Step | Callable[[], None]) -> None:
        self.front.queue.extend(steps)
        self.settle()

    def message(self, request: Request, data: bytes, fds: tuple[int, ...] = (), *, ack: bool = False) -> Step:
        """With an acknowledgement asked for, if that can be."""
        if not ack or not self.speaks(ProtocolFeature.REPLY_ACK):
            return Step(data, fds)
        number, flags, size = messages.HEADER.unpack_from(data)
        asked = messages.HEADER.pack(number, flags | messages.NEED_REPLY, size) + data[messages.HEADER.size :]
        return Step(asked, fds, lambda: messages.U64.pack(0), request)

    def ring_value(self, request: Request, ring: Ring, value: int, *, ack: bool = False) -> Step:
        return self.message(request, messages.build_ring_value(request, ring.number, value), ack=ack)

    def set_features(self, bits: int) -> Step:
        self.front.features = bits | (PF if self.front.speaks_pf else 0)
        return self.message(Request.SET_FEATURES, messages.build_number(Request.SET_FEATURES, self.front.features))

    def share_memory(self, regions: int, *, ack: bool = False) -> Step:
        self.front.regions = regions
        table = struct.pack("<QQQQ", 0, self.main, _USER, 0)
        for number in range(1, regions):
            table += struct.pack("<QQQQ", number << 32, _SMALL, _USER + (number << 32), self.main + number * _SMALL)
        data = messages.build(Request.SET_MEM_TABLE, struct.pack("<II", regions, 0) + table)
        return self.message(Request.SET_MEM_TABLE, data, (self.memory.fd,) * regions, ack=ack)

    def address(self, ring: Ring) -> Step:
        at = ring.layouts[ring.place]
        place = RingAddress(0, _USER + at.descriptors, _USER + at.used, _USER + at.available, 0)
        return Step(messages.build_ring_address(ring.number, place))

    def line(self, request: Request, ring: Ring) -> Step:
        fd = ring.kick if request is Request.SET_VRING_KICK else ring.call
        return Step(messages.build_ring_descriptor(request, ring.number, present=True), (fd,))

    def zero(self, ring: Ring, place: int) -> Callable[[], None]:
        """The guest's driver sets the ring up again at that place. No back end may work on it at that moment."""

        def act() -> None:
            ring.driver.close()
            ring.place, ring.index = place, 0
            ring.driver = self._driver(ring.number, ring.layouts[place])

        return act

    def describe(self, ring: Ring, order: Iterable[Request], *, kick: bool, call: bool) -> Iterator[Step]:
        """The parts of a ring's description that are named, in this order; ``kick`` and ``call``: new ones."""
        order = list(order)
        self._renew(ring, kick=kick and Request.SET_VRING_KICK in order, call=call and Request.SET_VRING_CALL in order)
        ring.known = True
        for request in order:
            if request is Request.SET_VRING_NUM:
                yield self.ring_value(request, ring, ring.layouts[ring.place].size)
            elif request is Request.SET_VRING_BASE:
                yield self.ring_value(request, ring, ring.index)
            elif request is Request.SET_VRING_ADDR:
                yield self.address(ring)
            else:
                yield self.line(request, ring)
                ring.called |= request is Request.SET_VRING_CALL
                if request is Request.SET_VRING_KICK:
                    ring.started, ring.enabled = True, ring.enabled or not self.front.speaks_pf

    def stop(self, ring: Ring) -> Step:
        data = messages.build_ring_value(Request.GET_VRING_BASE, ring.number, 0)
        ring.started = ring.called = False
        known = ring.known
        answer = lambda: messages.VRING_STATE.pack(ring.number, ring.index if known else 0)  # noqa: E731
        return Step(data, (), answer, Request.GET_VRING_BASE)

    def enable(self, ring: Ring, *, on: bool) -> Step:
        ring.enabled = on
        return self.ring_value(Request.SET_VRING_ENABLE, ring, int(on))

    def set_status(self, value: int) -> Step:
        self.front.status = value
        return Step(messages.build_number(Request.SET_STATUS, value))

    # -- turns

    @property
    def waits(self) -> bool:
        return self.front.waits is not None or bool(self.front.queue)

    def settle(self) -> None:
        """Until nothing is under way, but for what waits for a silent back end."""
        quiet = 0
        for _ in range(_ROUNDS):
            quiet = 0 if self._turn() else quiet + 1
            if quiet == 3:
                break
        else:
            raise AssertionError("messages are exchanged without an end")
        if not self.silent:
            assert not self.waits, "the front end never stops waiting"
            assert self.vm.settled, "something never ends"

    def _turn(self) -> bool:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        busy = self._read() | self._write()
        for side, port in self.ports.items():
            if port.socket is not None and side not in self.silent and _readable(port.socket):
                port.readable()
                busy = True
        return busy

    def _write(self) -> bool:
        front = self.front
        if front.socket is None or front.waits is not None or not front.queue:
            return False
        step = front.queue.popleft()
        if not isinstance(step, Step):
            step()
            return True
        front.waits = step if step.answer is not None else None
        if step.fds:
            socket.send_fds(front.socket, [step.data], list(step.fds))
        else:
            front.socket.sendall(step.data)
        return True

    def _read(self) -> bool:
        front = self.front
        if front.socket is None or not _readable(front.socket):
            return False
        data = front.socket.recv(4096)
        assert data, f"the broker hung up: {self.vm.last_error}"
        front.received += data
        step = front.waits
        assert step is not None, "an answer to nothing"
        assert step.answer is not None
        wanted = messages.reply(step.request, step.answer())
        if len(front.received) >= len(wanted):
            assert front.received == wanted, (step.request.name, front.received, wanted)
            front.waits, front.received = None, b""
        return True

    # -- what must be true

    def check(self) -> None:
        """When nothing is under way."""
        for side, port in self.ports.items():
            assert port.refused is None, f"switch {side}: {port.refused}"
            if port.socket is not None and side in self.vm.links:
                self._check_view(side, port)
        assert overlaps(self.touches[Side.A], self.touches[Side.B]) == []
        self._check_traffic()

    def _check_view(self, side: Side, port: Port) -> None:
        role = self.vm.role(side)
        for ring in self.rings:
            seen = port.rings[ring.number] if ring.number < len(port.rings) else None
            kicked = seen is not None and seen.kicked
            assert kicked == (ring.started and role is not Role.IDLE), (side, role, ring.number)
            if seen is None or not kicked:
                continue
            at = ring.layouts[ring.place]
            assert seen.place is not None
            there = seen.place.descriptors == _USER + at.descriptors
            assert there if role is Role.OWNER else seen.place.descriptors >> 63, (side, role, ring.number)
            assert seen.view is not None, f"switch {side}: ring {ring.number} is not translated"
            assert (seen.size, seen.enabled) == (at.size, ring.enabled), (side, ring.number)
            assert role is not Role.OWNER or seen.next == ring.index, (side, ring.number, seen.next, ring.index)

    def _served(self, ring: Ring) -> bool:
        """Whether a back end must take what the guest sends there: DPDK needs the first two rings for that."""
        ready = all(each.started and each.enabled and each.called for each in (*self.rings[:2], ring))
        status = self.front.status == _DRIVER_OK or not self.speaks(ProtocolFeature.STATUS)
        return ready and status and self.vm.owner() is not None

    def _check_traffic(self) -> None:
        for ring in self.rings:
            if ring.number % 2 == 0:
                while ring.started and ring.driver.room:
                    ring.driver.post(0)
        expected = {}
        for ring in self.rings[1::2]:
            if self._served(ring):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(ring.call)
                for _ in range(3):
                    ring.driver.post(self.sent)
                    self.sent += 1
                expected[ring.number] = 3
        for _ in range(2):
            for port in self.ports.values():
                port.serve()
        for ring in self.rings:
            got = len(ring.driver.collect())
            ring.index = (ring.index + got) & 0xFFFF
            assert ring.index == ring.driver.view.used16[1], f"ring {ring.number} was used from another index on"
            if ring.number % 2:
                assert got == expected.get(ring.number, 0), f"ring {ring.number}: {got} packets taken"
            if got and ring.number % 2:
                assert os.eventfd_read(ring.call), f"ring {ring.number}: the guest was not called"
        assert self.ledger.lost_and_doubled(0, self.sent) == (0, 0)


def _no_time() -> float:
    return 0.0


def _readable(connection: socket.socket) -> bool:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(0))

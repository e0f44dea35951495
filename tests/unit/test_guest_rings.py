"""Rings and drivers of simulated guests, against a switch that is a few lines on the same memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from bench.guests import frames
from bench.guests.driver import Drivers, Stream
from bench.guests.plan import NOBODY, REMOTE, Plan
from bench.guests.rings import HUGE_PAGE, Bank, DriverRing, RingFault, Shape
from tests.support.vhost_rings import Layout, RingView, Shared

HEADER = 12
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03")
REMOTE_MAC = "52:54:00:00:00:ff"


class BackEnd:
    """The switch's end of one ring, in the order it chooses."""

    def __init__(self, memory: memoryview, layout: Layout) -> None:
        self._memory = memory
        self.view = RingView(
            memory[layout.descriptors :], memory[layout.available :], memory[layout.used :], layout.size
        )
        self.next = 0

    def heads(self) -> list[int]:
        """Buffers on offer that were not taken yet."""
        size = self.view.size
        count = (self.view.available[1] - self.next) & 0xFFFF
        return [self.view.available[2 + (self.next + k) % size] for k in range(count)]

    def frame(self, head: int) -> bytes:
        at, length = self.view.descriptors[2 * head], self.view.descriptors[2 * head + 1] & 0xFFFFFFFF
        return bytes(self._memory[at : at + length])

    def use(self, head: int, data: bytes = b"") -> None:
        if data:
            at = self.view.descriptors[2 * head]
            self._memory[at : at + len(data)] = data
        self.view.give_back(self.next, head, len(data))
        self.next = (self.next + 1) & 0xFFFF
        self.view.used16[1] = self.next

    def close(self) -> None:
        self.view.close()


class Machine:
    """Drivers of some VMs, and the switch's ends of their rings: ``ends[vm][ring]``."""

    def __init__(self, shape: Shape, targets: tuple[int, ...]) -> None:
        self.shape = shape
        self.fds = [os.memfd_create("guest") for _ in range(shape.vms)]
        for fd in self.fds:
            os.ftruncate(fd, shape.memory)
        self.bank = Bank(shape, self.fds)
        self.here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there.setblocking(False)
        self.there = there
        plan = Plan(shape, tuple(self.fds), MACS[: shape.vms], targets, there.fileno(), REMOTE_MAC, 100, HEADER, 0, 0)
        self.drivers = Drivers(plan, self.bank, there)
        self.ends = [
            [BackEnd(self.bank.memory(vm), layout) for layout in shape.layouts] for vm in range(shape.vms)
        ]  # fmt: skip

    def stream(self, source: int, queue: int) -> Stream:
        return self.drivers.streams[source, queue]

    def switch(self, source: int, target: int, ring: int = 1) -> int:
        """Move what ``source`` sends on ``ring`` to ``target``; how many frames."""
        heads = self.ends[source][ring].heads()
        for head in heads:
            data = self.ends[source][ring].frame(head)
            self.ends[source][ring].use(head)
            self.ends[target][ring - 1].use(self.ends[target][ring - 1].heads()[0], data)
        return len(heads)

    def close(self) -> None:
        for ring in self.drivers.rings:
            ring.close()
        for end in (end for ends in self.ends for end in ends):
            end.close()
        for one in (self.here, self.there):
            one.close()
        for fd in self.fds:
            os.close(fd)


Make = Callable[..., Machine]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Machine] = []

    def one(
        vms: int = 2, pairs: int = 1, ring_size: int = 8, targets: tuple[int, ...] = (1, 0), begin: int = 0,
        receive_size: int | None = None,
    ) -> Machine:  # fmt: skip
        made.append(Machine(Shape(vms, pairs, ring_size, 256, begin=begin, receive_size=receive_size), targets))
        return made[-1]

    yield one
    for machine in made:
        machine.close()


@pytest.fixture
def memory() -> Iterator[memoryview]:
    shared = Shared("ring", Layout.at(0, 4, 256).end)
    yield shared.view
    shared.close()


@pytest.mark.parametrize("begin", [0, 1 << 20])
def test_the_used_indices_of_all_rings_are_seen_at_once(make: Make, begin: int) -> None:
    machine = make(vms=3, pairs=2, targets=(NOBODY,) * 3, begin=begin)
    assert machine.shape.layouts[0].descriptors == begin
    for vm, ends in enumerate(machine.ends):
        for ring, end in enumerate(ends):
            end.view.used16[1] = 100 * vm + ring
    assert machine.bank.used.tolist() == [[0, 1, 2, 3], [100, 101, 102, 103], [200, 201, 202, 203]]


def test_memory_in_huge_pages_is_whole_pages() -> None:
    assert Shape(1, page=HUGE_PAGE).memory == HUGE_PAGE
    assert Shape(1, pairs=4, page=HUGE_PAGE).memory % HUGE_PAGE == 0
    assert Shape(1, pairs=4, page=HUGE_PAGE).memory >= 8 * Shape(1).stride


def test_buffers_may_come_back_in_any_order(memory: memoryview) -> None:
    layout = Layout.at(0, 4, 256)
    ring, end = DriverRing(memory, layout, 256, writable=False), BackEnd(memory, layout)
    for head in (0, 1, 2):
        ring.write(head, bytes([head]) * (10 + head))
        ring.offer(head)
    assert [end.frame(head) for head in end.heads()] == [b"\0" * 10, b"\1" * 11, b"\2" * 12]
    end.use(2)
    end.use(0)
    assert ring.collect(end.next) == [(2, 0), (0, 0)]
    assert ring.outstanding == 1
    ring.close()
    end.close()


def test_a_ring_goes_round_many_times(memory: memoryview) -> None:
    """Past the wrap of the 16-bit indices."""
    layout = Layout.at(0, 4, 256)
    ring, end = DriverRing(memory, layout, 256, writable=False), BackEnd(memory, layout)
    for _ in range((1 << 16) + 10):
        ring.offer(ring.free.popleft())
        (head,) = end.heads()
        end.use(head)
        ring.free += [taken for taken, _ in ring.collect(end.next)]
    assert ring.offered == ring.taken_back == (1 << 16) + 10
    ring.close()
    end.close()


def test_no_interrupts_are_asked_for(memory: memoryview) -> None:
    """By the flag, and with the event index by one that the next 2**15 buffers do not reach (virtio 1.2, 2.7.10)."""
    layout = Layout.at(0, 4, 256)
    ring, end = DriverRing(memory, layout, 256, writable=False), BackEnd(memory, layout)
    assert end.view.available[0] & 1
    event = memory[layout.available + 4 + 8 :][:2].cast("H")
    assert event[0] == 0x8000
    ring.offer(0)
    end.use(0)
    ring.collect(1)
    assert event[0] == 0x8001
    event.release()
    ring.close()
    end.close()


@pytest.mark.parametrize(
    ("used", "what"),
    [
        ([0, 0], "descriptor 0 was not"),
        ([3], "descriptor 3 was not"),
        ([77], "descriptor 77"),
        ([0, 1, 2], "3 buffers"),
    ],
)
def test_a_switch_that_is_out_of_step_is_found(memory: memoryview, used: list[int], what: str) -> None:
    layout = Layout.at(0, 4, 256)
    ring, end = DriverRing(memory, layout, 256, writable=True), BackEnd(memory, layout)
    ring.offer(0)
    ring.offer(1)
    for head in used:
        end.use(head)
    with pytest.raises(RingFault, match=what):
        ring.collect(end.next)
    ring.close()
    end.close()


def test_frames_between_two_guests_are_recorded(make: Make) -> None:
    machine = make()
    for now in (1000, 2000, 3000):
        machine.stream(0, 0).send(now)
    assert machine.switch(0, 1) == 3
    seen = machine.drivers.turn()
    stats = machine.drivers.stats()
    (stream,) = [one for one in stats["streams"] if one["source"] == 0]
    assert (stream["sent"], stream["received"], stream["lost"], stream["waiting"]) == (3, 3, 0, 0)
    log = machine.drivers.log
    # Ring 1 of VM 0 sent, ring 0 of VM 1, which is number 2, received; each with the time of sending.
    entries = sorted(zip(log.ring, log.origin, strict=True))
    assert entries == [(ring, sent) for ring in (1, 2) for sent in (1000, 2000, 3000)]
    assert set(log.time) == {seen}
    assert (stats["broken"], stats["stray"], stats["foreign"], stats["faults"]) == (0, 0, 0, [])


def test_received_buffers_are_offered_again(make: Make) -> None:
    machine = make(ring_size=4)
    for _ in range(10):
        machine.stream(1, 0).send(1)
        machine.switch(1, 0)
        machine.drivers.turn()
    assert len(machine.ends[0][0].heads()) == 4


def test_a_full_ring_refuses(make: Make) -> None:
    machine = make(ring_size=4)
    for _ in range(6):
        machine.stream(0, 0).send(1)
    stream = machine.stream(0, 0)
    assert (stream.sent, stream.refused, len(stream.offered)) == (4, 2, 4)
    machine.switch(0, 1)
    machine.drivers.turn()
    stream.send(2)
    assert (stream.sent, len(stream.offered)) == (5, 1)


def test_receive_rings_may_be_shorter_than_those_that_send(make: Make) -> None:
    machine = make(pairs=2, receive_size=4)
    assert [layout.size for layout in machine.shape.layouts] == [4, 8, 4, 8]
    assert len(machine.ends[1][0].heads()) == 4
    for _ in range(10):
        machine.stream(0, 0).send(1)
    assert machine.stream(0, 0).sent == 8
    machine.ends[1][2].view.used16[1] = 3
    assert machine.bank.used.tolist() == [[0, 0, 0, 0], [0, 0, 3, 0]], "each one's used index is still seen"


def test_a_burst_is_sent_at_once(make: Make) -> None:
    machine = make(ring_size=64)
    machine.drivers.start(1.0, 20)  # one burst in twenty seconds
    machine.drivers.turn()
    assert [stream.sent for stream in machine.drivers.streams.values()] == [20, 0]


def test_frames_of_several_flows_differ_in_their_port_alone() -> None:
    one, several = (frames.Writer(0, 2, (MACS[0], MACS[1]), 100, HEADER, flows) for flows in (1, 3))
    port = slice(HEADER + frames.ETHERNET + frames.IPV4, HEADER + frames.ETHERNET + frames.IPV4 + 2)
    assert len({bytes(one.make(number, 5)[port]) for number in range(7)}) == 1
    assert len({bytes(several.make(number, 5)[port]) for number in range(7)}) == 3
    assert several.make(3, 5) == one.make(3, 5)
    stamp = frames.read(memoryview(several.make(4, 5))[HEADER:])
    assert stamp is not None
    assert stamp.sequence == 4


def deliver(machine: Machine, vm: int, frame: bytes) -> None:
    end = machine.ends[vm][0]
    end.use(end.heads()[0], bytes(HEADER) + frame)
    machine.drivers.turn()


def made(source: int, queue: int, sequence: int, size: int = 100) -> bytes:
    return bytes(frames.Writer(source, queue, (MACS[0], MACS[1]), size, 0).make(sequence, 5))


def test_what_should_not_have_come_is_counted(make: Make) -> None:
    machine = make(vms=3, targets=(1, 0, NOBODY))
    whole = made(0, 0, 0)
    deliver(machine, 1, whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])  # a flipped bit
    assert machine.drivers.broken == 1
    deliver(machine, 2, whole)  # the wrong VM
    deliver(machine, 1, made(2, 0, 0))  # of a VM that sends nothing
    assert machine.drivers.stray == 2
    deliver(machine, 1, bytes(60))
    assert machine.drivers.foreign == 1
    assert machine.drivers.stats()["streams"][0]["received"] == 0


def test_a_ring_that_is_out_of_step_is_reported_once(make: Make) -> None:
    machine = make()
    machine.ends[0][1].view.used16[1] = 7
    machine.drivers.turn()
    machine.drivers.turn()
    assert machine.drivers.faults == ["VM 0 ring 1: used index 7: 7 buffers given back, 0 were there"]


def test_the_remote_host_sends_and_receives(make: Make) -> None:
    machine = make(vms=1, targets=(REMOTE,))
    machine.stream(1, 0).send(10)
    deliver(machine, 0, machine.here.recv(2000))
    machine.stream(0, 0).send(20)
    (head,) = machine.ends[0][1].heads()
    machine.here.send(machine.ends[0][1].frame(head)[HEADER:])
    machine.drivers.turn()
    streams = machine.drivers.stats()["streams"]
    assert [(one["source"], one["received"], one["lost"]) for one in streams] == [(0, 1, 0), (1, 1, 0)]


def test_each_queue_sends_in_its_turn(make: Make) -> None:
    """At a rate so high that at every look something is due; none waits for another's."""
    machine = make(pairs=2, ring_size=64)
    machine.drivers.start(1e7)
    while min(stream.sent for stream in machine.drivers.streams.values()) < 5:
        machine.drivers.turn()
    machine.drivers.stop()
    sent = [stream.sent for stream in machine.drivers.streams.values()]
    machine.drivers.turn()
    assert [stream.sent for stream in machine.drivers.streams.values()] == sent


def test_a_plan_is_the_same_behind_the_process_boundary() -> None:
    plan = Plan(Shape(2, 4), (5, 6), MACS, (1, 0), None, REMOTE_MAC, 128, HEADER, 50, -10)
    assert Plan.parse(plan.text()) == plan

"""Moves: what was prepared for one is used only for that, and the state slot is written before the broker acts."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from ovs_hotswap.broker.mover import Mover, Ready
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import capture, messages, reconcile
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.guest_state import GuestState
from ovs_hotswap.vhostuser.handover import prepare
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.unit.broker_bed import Bed, Listening, run, turns

ROOM = Room(64 << 20)


class Sides:
    def __init__(self) -> None:
        self._ends = [socket.socketpair() for _ in range(3)]
        self.old, self.new, self.other = (SwitchConnection(Side.A, Channel(end)) for end, _ in self._ends)

    def close(self) -> None:
        for link in (self.old, self.new, self.other):
            link.close()
        for _, end in self._ends:
            end.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    made = Sides()
    yield made
    made.close()


def test_it_fits_as_long_as_nothing_has_changed(sides: Sides) -> None:
    old, new, other, state = sides.old, sides.new, sides.other, GuestState(features=1)
    heard = old.told, new.told
    ready = Ready(state, None, prepare(old, new, {}, {}, []), heard, heard)
    assert ready.fits(state, old, new)
    assert not ready.fits(replace(state), old, new)
    assert not ready.fits(state, other, new)
    assert not ready.fits(state, None, new)
    assert not ready.fits(state, old, other)
    for link in (old, new):
        before = link.told
        link.told = replace(before, features=1)
        assert not ready.fits(state, old, new)
        link.told = before
    assert ready.fits(state, old, new)


def test_a_broker_that_ends_tells_a_switch_that_was_armed_nothing_more() -> None:
    """The next broker, or what is kept for it, would know nothing of that."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 0.05, ROOM)
        vm.resume_reading()
        assert mover.arm(Side.B)
        bed.switches[Side.B].answer(bed.switches[Side.B].heard())
        await turns()
        assert mover.is_armed(Side.B)
        mover.close()
        assert not mover.busy
        assert bed.heard() == {Side.A: [], Side.B: []}

    run(test)


def test_a_broker_that_is_succeeded_asks_no_silent_owner_for_its_rings_back() -> None:
    """Nor does it say anything else, whatever falls due in it still: to the next broker that side is the owner, and
    parked rings would stay so. What QEMU says is not for it either."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.TAKING))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 0.05, ROOM)
        vm.pause_reading()
        vm.commit(vm.record._replace(withdrawn=True))
        vm.shared = True
        bed.qemu.end.send(messages.build(Request.GET_FEATURES))
        mover._retreat(vm.links[Side.A])
        vm.take_back(vm.links[Side.B])
        vm.hear_qemu()
        vm.unpark(Side.B)
        vm.reply(Request.GET_FEATURES, bytes(8))
        await turns()
        assert bed.heard() == {Side.A: [], Side.B: []}
        assert bed.qemu.heard() == []
        assert vm.qemu is not None
        assert vm.qemu.receive() is not None  # it is still there

    run(test)


def test_a_move_without_arming_is_told_of_before_a_switch_is() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        heard: list[list[str]] = []
        vm.journal = Listening(lambda: heard.append(bed.switches[Side.B].heard()))
        with pytest.raises(BrokerError, match="did not answer"):
            Mover(vm, bed.loop, Delays(bed.loop), 0.01, ROOM).swap_to(Side.B, {})
        assert heard[0] == []
        assert heard[1] != []

    run(test)


class Two:
    """Two VMs, each with peers of its own, and room for the capture rings of one."""

    def __init__(self) -> None:
        self.beds = [Bed(), Bed()]
        self.vms = [bed.served(Ownership(Side.A, Certainty.OWNS)) for bed in self.beds]
        self.room = Room(capture.needed([256], None) * 3 // 2)
        self.movers = [
            Mover(vm, bed.loop, Delays(bed.loop), 0.05, self.room) for vm, bed in zip(self.vms, self.beds, strict=True)
        ]
        for vm in self.vms:
            vm.resume_reading()

    async def answer(self) -> None:
        for bed in self.beds:
            for peer in bed.switches.values():
                peer.answer(peer.heard())
        await turns()

    def close(self) -> None:
        for bed in self.beds:
            bed.close()


def two(test: Callable[[Two], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Two()
        try:
            await test(made)
        finally:
            made.close()

    asyncio.run(main())


def test_a_vm_that_finds_no_room_for_frames_is_not_moved_until_there_is_some() -> None:
    async def test(made: Two) -> None:
        first, second = made.movers
        assert first.arm(Side.B)
        for act in (second.arm, lambda side: second.swap_to(side, {})):
            with pytest.raises(BrokerError, match="in use for other VMs"):
                act(Side.B)
        assert second.under_way(Side.B)
        assert made.vms[1].ownership == Ownership(Side.A, Certainty.OWNS)
        assert made.beds[1].heard() == {Side.A: [], Side.B: []}  # its frames still reach its guest
        assert made.room.taken <= made.room.limit
        await made.answer()
        first.disarm()
        assert second.under_way(Side.B)  # the switch may still be on the first one's rings
        await made.answer()
        assert made.room.taken == 0
        assert second.arm(Side.B)

    two(test)


def test_the_room_of_a_vm_whose_switch_hung_up_is_free_when_that_has_ended() -> None:
    async def test(made: Two) -> None:
        first, second = made.movers
        vm, bed = made.vms[0], made.beds[0]
        assert first.arm(Side.B)
        await made.answer()
        os.pwrite(vm.scratch.fileno(), b"frame", reconcile.CAPTURE_OFFSET + 0x20000)
        vm.commit(vm.record._replace(met={**vm.met, Side.B: vm.links[Side.B].pid}))
        vm.drop_link(Side.B, "it hung up")
        first.disarm()
        assert second.under_way(Side.B)
        assert capture.written(vm.scratch) > 0
        bed.processes.close()  # no process is watched any longer: all have ended
        assert not second.under_way(Side.B)
        assert capture.written(vm.scratch) == 0
        assert second.arm(Side.B)

    two(test)


def test_what_an_earlier_broker_left_in_capture_rings_takes_room() -> None:
    async def test(made: Two) -> None:
        vm, bed = made.vms[0], made.beds[0]
        os.pwrite(vm.scratch.fileno(), b"frame", reconcile.CAPTURE_OFFSET + 0x20000)
        room = Room(1 << 30)
        mover = Mover(vm, bed.loop, Delays(bed.loop), 0.05, room)
        assert room.taken > 0
        mover.tidy()
        assert room.taken == capture.written(vm.scratch) == 0

    two(test)


async def moved(bed: Bed, vm: Vm, mover: Mover) -> None:
    """Move it from side a to side b, with both switches answering."""
    assert mover.arm(Side.B)
    bed.switches[Side.B].answer(bed.switches[Side.B].heard())
    await turns()
    ends = [threading.Thread(target=peer.serve) for peer in bed.switches.values()]
    for each in ends:
        each.start()
    mover.swap_to(Side.B, {})
    for peer in bed.switches.values():
        peer.stop()
    for each in ends:
        each.join()
    assert vm.ownership == Ownership(Side.B, Certainty.OWNS)


def test_the_states_of_a_move() -> None:
    """Armed, draining and idle come one after the other, and none of them with another."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 5.0, ROOM)
        vm.resume_reading()
        assert not mover.busy
        await moved(bed, vm, mover)
        assert mover.busy
        for act in (mover.arm, lambda side: mover.swap_to(side, {})):  # late copies may still come
            with pytest.raises(BrokerError, match="messages are under way"):
                act(Side.A)
        mover.disarm()
        assert mover.under_way(Side.A)
        fetched = asyncio.ensure_future(mover.undelivered())
        for _ in range(3):
            await turns()
            for peer in bed.switches.values():
                peer.answer(peer.heard())
        assert await asyncio.wait_for(fetched, 20) == []
        assert not mover.busy
        assert mover.arm(Side.A)
        assert mover.busy

    run(test)


def test_a_move_that_is_drained_twice_is_drained_once() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 5.0, ROOM)
        vm.resume_reading()
        await moved(bed, vm, mover)
        mover.drain()
        heard = bed.heard()
        assert heard[Side.A].count("GET_FEATURES") == 1
        mover.drain()
        assert bed.heard() == {Side.A: [], Side.B: []}

    run(test)


def test_after_a_move_whose_switch_hangs_up_the_frames_are_not_waited_for() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 60.0, ROOM)
        vm.resume_reading()
        await moved(bed, vm, mover)
        vm.drop_link(Side.A, "it hung up")
        assert await asyncio.wait_for(mover.undelivered(), 20) == []
        assert not mover.busy

    run(test)

"""Waiting for a state of a VM ends with the change that brings it, and not with the next look."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import pytest

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.mover import Draining, Mover
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import capture, messages
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.unit.broker_bed import Bed, run, turns
from tests.unit.test_move import moved

NEVER = math.inf  # no look but after a change
OWNED = Ownership(Side.A, Certainty.OWNS)


def waits(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


def test_what_holds_already_is_not_waited_for() -> None:
    waits(lambda: Changes(NEVER).until(lambda: True, 0.0, "never"))


def test_each_waiter_looks_after_a_change_and_only_then() -> None:
    async def test() -> None:
        changes, looks, there = Changes(NEVER), [0, 0], [False, False]

        def look(number: int) -> bool:
            looks[number] += 1
            return there[number]

        tasks = [asyncio.ensure_future(changes.until(lambda each=each: look(each))) for each in range(2)]  # type: ignore[misc]
        await turns()
        assert looks == [1, 1]
        changes.notify()
        changes.notify()  # before either has looked: once is enough
        await turns()
        assert looks == [2, 2]
        there[0] = True
        changes.notify()
        await turns()
        assert [task.done() for task in tasks] == [True, False]
        there[1] = True
        changes.notify()
        await asyncio.gather(*tasks)
        assert looks == [3, 4]

    waits(test)


def test_a_wait_has_a_deadline_and_tells_what_it_waited_for() -> None:
    async def test() -> None:
        found = ["not yet"]

        def hangs() -> bool:
            found[0] = "it hangs"
            return False

        with pytest.raises(BrokerError, match=r"^it hangs after 0\.01 s$"):
            await Changes(NEVER).until(hangs, 0.01, lambda: found[0])
        with pytest.raises(BrokerError, match=r"^too late after 0 s$"):
            await Changes(NEVER).until(lambda: False, 0.0, "too late")

    waits(test)


def test_what_changes_without_an_event_is_seen_all_the_same() -> None:
    async def test() -> None:
        looks: list[int] = []
        await Changes(0.001).until(lambda: looks.append(0) or len(looks) > 3)  # type: ignore[func-returns-value]

    waits(test)


def test_a_waiter_that_is_cancelled_leaves_nothing_behind() -> None:
    async def test() -> None:
        changes = Changes(NEVER)
        task = asyncio.ensure_future(changes.until(lambda: False))
        await turns()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert not changes._waiters
        changes.notify()

    waits(test)


class Waiter:
    """Waits for a state of a VM, without a look in between."""

    def __init__(self, vm: Vm, true: Callable[[], bool]) -> None:
        vm.changes._look_s = NEVER
        self._task = asyncio.ensure_future(vm.changes.until(true, 20.0, "not noticed"))

    async def waits(self) -> bool:
        await turns()
        return not self._task.done()

    async def ends(self) -> None:
        await turns()
        assert self._task.done(), "the change was not noticed"
        await self._task


async def answered(bed: Bed, rounds: int = 3) -> None:
    for _ in range(rounds):
        for peer in bed.switches.values():
            peer.answer(peer.heard())
        await turns()


def test_rings_that_are_taken_back() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        vm.commit(vm.record._replace(withdrawn=True))
        vm.take_back(vm.links[Side.A])
        waiter = Waiter(vm, lambda: vm.ownership.holder is None)
        assert await waiter.waits()
        await answered(bed)
        await waiter.ends()

    run(test)


def test_a_side_that_is_parked() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED, parked=[])
        vm.resume_reading()
        vm.park(Side.B)
        vm.links[Side.B].fence(lambda: None)
        waiter = Waiter(vm, lambda: vm.is_parked(Side.B))
        assert await waiter.waits()
        await answered(bed)
        await waiter.ends()

    run(test)


def test_a_side_that_is_armed_and_one_that_is_not_to_be_moved() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        mover = Mover(vm, bed.loop, Delays(bed.loop), 5.0, Room(64 << 20))
        vm.resume_reading()
        assert mover.arm(Side.B)
        waiter = Waiter(vm, lambda: mover.is_armed(Side.B))
        assert await waiter.waits()
        await answered(bed)
        await waiter.ends()
        waiter = Waiter(vm, lambda: not mover.busy)
        assert await waiter.waits()
        mover.disarm()
        await waiter.ends()

    run(test)


def test_room_that_another_vm_gives_back() -> None:
    async def test(bed: Bed) -> None:
        vm, other = bed.served(OWNED), Bed()
        try:
            waiting = other.served(OWNED)
            waiting.changes = vm.changes  # of one broker
            room = Room(capture.needed([256], None) * 3 // 2)
            first, second = (Mover(each, bed.loop, Delays(bed.loop), 5.0, room) for each in (vm, waiting))
            vm.resume_reading()
            assert first.arm(Side.B)
            await answered(bed)
            waiter = Waiter(waiting, lambda: not second.under_way(Side.B))
            first.disarm()
            assert await waiter.waits()
            await answered(bed)
            await waiter.ends()
        finally:
            other.close()

    run(test)


def test_an_answer_that_qemu_waits_for() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        bed.qemu.end.send(messages.build(Request.GET_VRING_BASE, messages.VRING_STATE.pack(0, 0)))
        waiter = Waiter(vm, lambda: vm.settled and vm.state.started == ())
        assert await waiter.waits()
        assert vm.waiting
        heard = bed.heard()
        assert "GET_VRING_BASE" in heard[Side.A]
        bed.switches[Side.A].end.close()  # then guest memory tells
        await turns()
        await waiter.ends()
        assert not vm.waiting

    run(test)


def test_a_process_that_ends() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        pid = vm.links[Side.A].pid
        waiter = Waiter(vm, lambda: not vm.links)
        assert await waiter.waits()
        vm.process_ended(pid)
        await waiter.ends()

    run(test)


def test_a_move_whose_frames_are_fetched() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        mover = Mover(vm, bed.loop, Delays(bed.loop), 5.0, Room(64 << 20))
        vm.resume_reading()
        await moved(bed, vm, mover)
        mover.drain()
        waiter = Waiter(vm, lambda: not mover.under_way(Side.A))
        assert await waiter.waits()
        await answered(bed)
        await waiter.ends()
        waiter = Waiter(vm, lambda: not mover.busy)
        assert await waiter.waits()
        assert await mover.undelivered() == []
        await waiter.ends()

    run(test)


def test_a_move_whose_frames_no_switch_and_no_caller_asks_for() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        mover = Mover(vm, bed.loop, Delays(bed.loop), 0.01, Room(64 << 20))
        vm.resume_reading()
        vm.changes._look_s = NEVER
        mover.fence_s = 5.0
        await moved(bed, vm, mover)
        mover.fence_s = 0.01
        mover.drain()  # the switches stay silent
        async with asyncio.timeout(20):
            await vm.changes.until(lambda: not isinstance(mover._state, Draining))
            assert mover.busy  # the frames may still be fetched
            await vm.changes.until(lambda: not mover.busy)

    run(test)


def test_an_acknowledgement_that_no_switch_holds_up() -> None:
    async def test(bed: Bed) -> None:
        vm, begun = bed.served(Ownership()), [False]
        waiter = Waiter(vm, lambda: begun[0] and not vm.waiting)
        assert await waiter.waits()
        begun[0] = True
        vm.answers.settled(messages.Message(Request.SET_VRING_ENABLE, need_reply=True, body=messages.Empty()))
        assert vm.waiting
        await waiter.ends()

    run(test)


def test_what_a_switch_had_no_room_for() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        link = vm.links[Side.B]
        while not link.channel.backlog:
            vm.guarded(link, lambda: link.fence(lambda: None))
        waiter = Waiter(vm, lambda: not link.channel.backlog)
        assert await waiter.waits()
        bed.switches[Side.B].heard()
        await waiter.ends()

    run(test)

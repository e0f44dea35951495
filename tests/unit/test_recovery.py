"""One broker continues with a VM where another left off."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest

from ovs_hotswap.broker.persist import recovery
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.snapshot import VmParts, Work
from ovs_hotswap.broker.persist.state_slot import LoadedState, StateSlot
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from tests.support.shortage import few_descriptors
from tests.unit.broker_bed import PARKED, Bed, Peer, kept, run, turns


def test_where_a_connection_stands_is_found_out_before_another_broker_goes_on() -> None:
    """It would take the answers to this broker's questions for answers to its own, and the rings for released."""

    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        first.commit(first.record._replace(home=Side.B))
        first.links[Side.A].fence(lambda: None)  # not answered yet
        assert first.settled
        second = bed.next(first)
        assert second.settled
        recovery.take_up(second)
        assert not second.settled
        second.take_back(second.links[Side.A])
        assert not second.settled
        asked = bed.switches[Side.A].heard()
        before = asked.index(PARKED)
        bed.switches[Side.A].answer(asked[:before])
        await turns()
        assert second.ownership == Ownership(Side.A, Certainty.LETTING_GO)
        assert second.settled
        bed.switches[Side.A].answer(asked[before:])
        await turns()
        assert second.ownership == Ownership(Side.B, Certainty.TAKING)

    run(test)


def test_a_third_broker_believes_only_answers_to_its_own_question() -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        first.links[Side.A].fence(lambda: None)
        second = bed.next(first)
        recovery.take_up(second)
        asked = bed.switches[Side.A].heard()
        bed.switches[Side.A].answer(asked[: asked.index("GET_PROTOCOL_FEATURES") + 1])
        await turns()
        second.take_back(second.links[Side.A])
        assert second.settled
        third = bed.next(second)
        recovery.take_up(third)
        asked = asked[asked.index("GET_PROTOCOL_FEATURES") + 1 :]
        bed.heard()
        bed.switches[Side.A].answer(asked)  # of before it was told to park
        await turns()
        assert third.ownership == Ownership(Side.A, Certainty.LETTING_GO)
        assert "SET_VRING_ADDR" not in bed.switches[Side.B].heard()

    run(test)


def test_an_owner_whose_connection_is_not_known_may_connect_again() -> None:
    """A note of an earlier version described such work as if a broker could continue from there."""

    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS), parked=[])
        pid = first.links[Side.B].pid
        second = bed.next(first, Work(Side.B, Side.B, frozenset(Side), frozenset({Side.B})))
        recovery.take_up(second)
        assert (second.ownership, second.cut_pid) == (Ownership(Side.B, Certainty.CUT), pid)
        again = Peer()
        second.accept(Side.B, again.broker)
        assert Side.B in second.links
        assert again.heard() == ["GET_FEATURES"]
        again.close()

    run(test)


def test_the_death_of_an_owner_whose_connection_is_not_known_frees_the_rings() -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS), parked=[])
        second = bed.next(first, Work(None, Side.B, frozenset(), frozenset({Side.B})))
        assert second.ownership.holder is Side.B
        second.process_ended(second.cut_pid)
        assert second.ownership.holder is not Side.B

    run(test)


def test_a_broker_that_fails_before_it_goes_on_keeps_what_is_due() -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        second = bed.next(first, Work(Side.A, None, frozenset(Side), frozenset()))
        assert all(link.due for link in kept(second).links.values())
        third = bed.next(second)  # the second one acted on nothing
        recovery.take_up(third)
        heard = bed.heard()
        assert all(names[-1] == "GET_FEATURES" and PARKED in names for names in heard.values())
        assert third.ownership == Ownership(suspects=frozenset(Side))
        for side, names in heard.items():
            bed.switches[side].answer(names)
        await turns()
        assert third.ownership == Ownership(Side.A, Certainty.TAKING)
        assert not third.deaf

    run(test)


Ends = tuple[socket.socket, socket.socket]


class Breaks(StateSlot):
    """A state slot that takes nothing for ``left`` times, for an unforeseen reason."""

    left = 1

    def store(self, vm: VmParts) -> None:
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError("it breaks")
        super().store(vm)


class Full(StateSlot):
    """One that is full, or for which descriptors are short, at first."""

    left = 1

    def store(self, vm: VmParts) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.ENOSPC, "full")
        super().store(vm)


@pytest.fixture
def ends() -> Iterator[Ends]:
    inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inlet, outlet:
        yield inlet, outlet


@contextlib.contextmanager
def keeping(bed: Bed, vm: Vm, ends: Ends, made: type[StateSlot] = StateSlot) -> Iterator[StateSaver]:
    keeping = StateSaver(bed.loop, {vm.name: made(ends[0].dup(), ends[1].dup())}, keeps=True)
    keeping.add(vm)
    try:
        yield keeping
    finally:
        keeping.remove(vm.name, forget=False)


def taken(ends: Ends) -> LoadedState:
    slot = StateSlot(ends[0].dup(), ends[1].dup())
    try:
        return slot.load()
    finally:
        slot.close()


def starts_over(ends: Ends, sides: set[Side]) -> None:
    """A next broker would find no state, but QEMU's connection and the switches of ``sides``."""
    found = taken(ends)
    assert (found.state, set(found.processes)) == (None, sides)
    assert found.qemu is not None
    found.qemu.close()


def test_while_it_is_found_out_where_a_connection_stands_no_state_is_kept(ends: Ends) -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        first.links[Side.A].fence(lambda: None)
        second = bed.next(first)
        with keeping(bed, second, ends) as keeps:
            recovery.take_up(second)
            assert not keeps.save()
            starts_over(ends, set(Side))

    run(test)


def test_a_state_serves_a_second_broker_and_no_third(ends: Ends) -> None:
    """Each of them ends as soon as it has asked the switches where they are. The third starts over."""

    async def test(bed: Bed) -> None:
        vm, found = bed.served(Ownership(Side.A, Certainty.OWNS)), []
        with keeping(bed, vm, ends) as keeps:
            assert keeps.save()
        for _ in range(3):
            slot = StateSlot(ends[0].dup(), ends[1].dup())
            keeps = StateSaver(bed.loop, {"vm0": slot}, keeps=True)
            loaded = keeps.take("vm0")
            found.append((loaded.state is not None, loaded.first))
            if loaded.state is None:
                assert loaded.qemu is not None
                loaded.qemu.close()
                assert loaded.processes.keys() == set(Side)
            else:
                vm = bed.next(vm, loaded.work, loaded.state)
                keeps.add(vm)
                recovery.take_up(vm)
            keeps.remove("vm0", forget=False)
            slot.close()
        assert found == [(True, True), (True, False), (False, False)]

    run(test)


def test_a_broker_that_continues_from_the_same_state_does_not_take_the_answers_of_the_one_before(ends: Ends) -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        first.links[Side.A].fence(lambda: None)
        again = kept(first)
        second = bed.next(first, resync_with=Request.GET_QUEUE_NUM)
        recovery.take_up(second)
        asked = bed.switches[Side.A].heard()
        assert "GET_QUEUE_NUM" in asked
        third = bed.next(second, given=again)
        recovery.take_up(third)
        third.take_back(third.links[Side.A])
        bed.switches[Side.A].answer(asked)
        await turns()
        assert third.ownership == Ownership(Side.A, Certainty.LETTING_GO)
        bed.switches[Side.A].answer(bed.switches[Side.A].heard())
        await turns()
        assert third.ownership.holder is not Side.A or third.ownership.certainty is Certainty.TAKING

    run(test)


def test_a_standby_that_hangs_does_not_keep_a_state_from_being_stored(ends: Ends) -> None:
    """A broker that ends again would otherwise leave nothing to continue from for as long as the standby hangs. The
    state lacks the standby's connection, so no broker may continue from it when the rings change hands."""

    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        for link in first.links.values():
            link.fence(lambda: None)
        second = bed.next(first)
        recovery.take_up(second)
        bed.switches[Side.A].answer(bed.switches[Side.A].heard())
        await turns()
        assert second.settled
        with keeping(bed, second, ends) as keeps:
            assert keeps.save()
            found = taken(ends)
            assert found.state is not None
            assert found.state.links.keys() == {Side.A}
            second.talks(moving=True)
            starts_over(ends, set(Side))

    run(test)


def test_a_standby_comes_and_goes_without_the_state(ends: Ends) -> None:
    """The guest does not notice it. But rings that go to a new connection are not what a next broker finds."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        again = Peer()
        with keeping(bed, vm, ends) as keeps:
            assert keeps.save()
            vm.drop_link(Side.B, "it hung up")
            assert taken(ends).state is not None
            vm.accept(Side.B, again.broker)
            assert taken(ends).state is not None
            vm.talks(moving=True)
            found = taken(ends)
            assert found.state is None
            assert found.qemu is not None
            found.qemu.close()
        again.close()

    run(test)


def test_while_no_state_is_stored_a_switch_that_connects_is_noted(ends: Ends) -> None:
    """It can be given the rings before a state is stored, and would otherwise be no suspect of a next broker's."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        again = Peer()
        vm.drop_link(Side.B, "it hung up")
        with keeping(bed, vm, ends):
            found = [taken(ends)]
            vm.accept(Side.B, again.broker)
            found.append(taken(ends))
            assert [(each.state, set(each.processes)) for each in found] == [(None, {Side.A}), (None, set(Side))]
            for each in found:
                assert each.qemu is not None
                each.qemu.close()
        again.close()

    run(test)


def test_an_owner_that_hangs_up_is_noted_at_once(ends: Ends) -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        with keeping(bed, vm, ends) as keeps:
            assert keeps.save()
            vm.drop_link(Side.A, "it hung up")
            found = taken(ends)
            assert (found.state, Side.A in found.processes) == (None, True)
            assert found.qemu is not None
            found.qemu.close()

    run(test)


def test_a_vm_in_quarantine_is_told_to_nobody_by_the_next_broker_either(ends: Ends) -> None:
    """Though something was done with its switches since its state was kept."""

    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(), parked=[])
        first.commit(first.record._replace(quarantine="ends its switches"))
        with keeping(bed, first, ends) as keeps:
            assert keeps.save()
            first.unpark(Side.B)
            found = taken(ends)
        assert found.state is not None
        assert found.work is not None
        second = bed.next(first, found.work, found.state)
        assert second.ownership == Ownership()
        recovery.take_up(second)
        assert all(not {"SET_VRING_KICK", PARKED} & set(names) for names in bed.heard().values())

    run(test)


def test_rings_that_nobody_had_and_that_change_hands_may_be_in_anybodys(ends: Ends) -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership())
        with keeping(bed, first, ends) as keeps:
            assert keeps.save()
            first.talks(moving=True)
            found = taken(ends)
        assert found.state is not None
        second = bed.next(first, found.work, found.state)
        assert second.ownership == Ownership(suspects=frozenset(Side))

    run(test)


def test_what_could_not_be_kept_once_is_kept_after_the_next_change(ends: Ends) -> None:
    async def test(bed: Bed) -> None:
        raised = asyncio.Event()
        bed.loop.set_exception_handler(lambda loop, context: raised.set())
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        with keeping(bed, vm, ends, Breaks) as keeps:
            await asyncio.wait_for(raised.wait(), 20)
            vm.starts_over()
            async with asyncio.timeout(20):
                while keeps.unsaved:
                    await asyncio.sleep(0.001)

    run(test)


def test_what_could_not_be_kept_for_want_of_something_is_kept_later(ends: Ends) -> None:
    """Nothing changes during this."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        with keeping(bed, vm, ends, Full) as keeps:
            keeps.save()
            assert keeps.unsaved == 1
            async with asyncio.timeout(20):
                while keeps.unsaved:
                    await asyncio.sleep(0.01)
            assert taken(ends).state is not None

    run(test)


def test_a_state_for_which_descriptors_are_short_leaves_nothing_open() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        before = os.listdir("/proc/self/fd")
        for left in range(3):
            with pytest.raises(OSError, match="Too many open files"), few_descriptors(left), recovery.parts(vm):
                pass
        assert os.listdir("/proc/self/fd") == before

    run(test)

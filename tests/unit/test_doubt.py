"""A proof that contradicts a broker's record of a VM: the rings go to no side until each switch is proven off them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from ovs_hotswap.backends import LastProof, OwnerCertainty
from ovs_hotswap.broker.control.documents import vm_status
from ovs_hotswap.broker.mover import Mover
from ovs_hotswap.broker.persist.snapshot import VmParts
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership, Proof
from tests.unit.broker_bed import Bed, Peer, kept, run, turns

BOTH = frozenset(Side)
PROBED = ("GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM")


def in_doubt(bed: Bed, vm: Vm) -> bool:
    """Whether no side has the rings, no switch is connected, QEMU is not read, and that is what is reported."""
    found = vm_status(vm, read=False)
    assert (found.owner, found.certainty) == (None, OwnerCertainty.UNKNOWN)
    assert all(peer.hung_up() for peer in bed.switches.values())
    bed.qemu.end.send(messages.build(Request.GET_FEATURES))
    return vm.ownership == Ownership(None, Certainty.UNKNOWN, BOTH) and not vm.links and vm.deaf


def connect(vm: Vm, side: Side) -> Peer:
    peer = Peer()
    vm.accept(side, peer.broker)
    return peer


WRONG: list[tuple[Certainty, Callable[[Vm], object]]] = [
    (Certainty.OWNS, lambda vm: vm.released(Side.A, Proof.FENCE)),
    (Certainty.TAKING, lambda vm: vm.released(Side.A, Proof.DEAD)),
    (Certainty.LETTING_GO, lambda vm: vm.proven(Side.A, Proof.RECONNECTED)),
]


@pytest.mark.parametrize(("certainty", "act"), WRONG)
def test_no_side_is_given_rings_about_which_the_record_is_wrong(
    certainty: Certainty, act: Callable[[Vm], object]
) -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, certainty))
        vm.resume_reading()
        act(vm)
        assert in_doubt(bed, vm)
        vm.assign()
        await turns()
        assert vm.ownership == Ownership(None, Certainty.UNKNOWN, BOTH)
        assert bed.qemu.heard() == []  # QEMU would take it that no switch is on the rings

    run(test)


def test_it_is_served_again_when_every_switch_has_connected_again() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        vm.resume_reading()
        vm.released(Side.A, Proof.FENCE)
        assert in_doubt(bed, vm)
        first = connect(vm, Side.A)
        assert vm_status(vm, read=False).certainty is OwnerCertainty.UNKNOWN
        first.answer(PROBED)
        await turns()
        assert vm.ownership == Ownership(None, Certainty.UNKNOWN, frozenset({Side.B}))
        assert "SET_VRING_ADDR" not in first.heard()  # it is parked
        second = connect(vm, Side.B)
        second.answer(PROBED)
        await turns()
        found = vm_status(vm, read=False)
        assert (found.owner, found.certainty) == (Side.A, OwnerCertainty.TAKING)
        assert found.last_proof == LastProof(Side.B, "reconnected")
        assert "SET_VRING_ADDR" in first.heard()
        for peer in (first, second):
            peer.close()

    run(test)


def test_the_ends_of_the_switches_processes_end_the_doubt_too() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        vm.resume_reading()
        vm.released(Side.A, Proof.FENCE)
        vm.process_ended(vm.suspects[Side.A])  # both are this process
        assert vm.ownership == Ownership()
        assert vm_status(vm, read=False).certainty is OwnerCertainty.NOBODY

    run(test)


def test_a_process_that_had_ended_by_then_is_not_waited_for() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        bed.processes.close()  # no process is watched: all have ended
        vm.released(Side.A, Proof.FENCE)
        assert vm.ownership == Ownership()

    run(test)


def test_a_second_connection_that_contradicts_the_record_is_refused() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        vm.resume_reading()
        vm.drop_link(Side.A, "it hung up")
        vm.commit(vm.record._replace(ownership=Ownership(Side.A, Certainty.OWNS)))  # as if it had not been noticed
        peer = connect(vm, Side.A)
        assert in_doubt(bed, vm) if peer.hung_up() else pytest.fail("it was taken in")
        peer.close()

    run(test)


def test_the_next_broker_gives_the_rings_to_no_side_either() -> None:
    async def test(bed: Bed) -> None:
        first = bed.served(Ownership(Side.A, Certainty.OWNS))
        first.released(Side.A, Proof.FENCE)
        given: VmParts = kept(first)
        second = bed.next(first, given=given)
        assert second.ownership == Ownership(None, Certainty.UNKNOWN, BOTH)
        assert second.suspects == first.suspects
        second.resume_reading()
        second.assign()
        assert second.deaf
        assert second.ownership.holder is None

    run(test)


class Meddling(Mapping[Side, MessageThread]):
    """No threads are known, and a look for one during a swap changes the record, as a fault would."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def __getitem__(self, side: Side) -> MessageThread:
        if self._vm.ownership.certainty is Certainty.LETTING_GO:
            self._vm.commit(self._vm.record._replace(ownership=Ownership(Side.A, Certainty.OWNS)))
        raise KeyError(side)

    def __iter__(self) -> Iterator[Side]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_a_move_whose_proof_contradicts_the_record_ends_with_no_owner() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        vm.resume_reading()
        mover = Mover(vm, bed.loop, Delays(bed.loop), 2.0, Room(64 << 20))
        ends = [threading.Thread(target=peer.serve) for peer in bed.switches.values()]
        for each in ends:
            each.start()
        with pytest.raises(StateUnknown, match="it is not known which switch has its rings"):
            mover.swap_to(Side.B, Meddling(vm))
        for each in ends:
            each.join()  # they were hung up on
        assert vm.ownership == Ownership(None, Certainty.UNKNOWN, BOTH)
        assert vm.moves == 0

    run(test)

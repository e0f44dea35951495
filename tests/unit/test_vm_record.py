"""A VM's record has one writer, which notes each change before a peer can see it."""

from __future__ import annotations

import ast
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.state_slot import LoadedState, StateSlot
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import Note, Recorded, VmRecord
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser.capture import reach
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import SCRATCH_SIZE, SentState, scratch_size
from tests.unit.broker_bed import Bed, Listening, run, turns

PACKAGE = Path(__file__).parents[2] / "ovs_hotswap"
OWNED = Ownership(Side.A, Certainty.OWNS)


def functions_with(wanted: Callable[[ast.AST], bool]) -> set[str]:
    """The functions of the product in which there is such a node, as module.function."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(map(wanted, ast.walk(function))):
                found.add(f"{path.stem}.{function.name}")
    return found


def names(attribute: str, context: type[ast.expr_context] = ast.Load) -> Callable[[ast.AST], bool]:
    return lambda node: isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, context)


def test_one_method_replaces_a_record() -> None:
    assert functions_with(names("_record", ast.Store)) == {"vm_record.__init__", "vm_record.commit"}
    assert functions_with(lambda node: isinstance(node, ast.Constant) and node.value == "_record") == set()


@pytest.mark.parametrize("name", VmRecord._fields)
def test_no_field_of_a_record_can_be_written_beside_it(name: str) -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        assert getattr(vm, name) is getattr(vm.record, name)
        with pytest.raises(AttributeError):
            setattr(vm, name, getattr(vm, name))
        with pytest.raises(AttributeError):
            setattr(vm.record, name, getattr(vm, name))

    run(test)


def test_a_note_is_left_out_only_where_an_earlier_one_covers_the_change() -> None:
    assert functions_with(names("COVERED")) == {
        "vm_record.commit", "mover.swap_to", "mover._after", "predecessor._hand_over",
    } - {"vm_record.commit"}  # fmt: skip


def test_notes_without_a_change_are_made_only_before_reading_and_by_what_stores_them() -> None:
    """A change of the record has its note from ``commit``."""
    assert functions_with(names("starts_over")) == {"vm.__init__", "autosave.add", "autosave.defers_qemu_close",
                                                    "autosave.continues"}  # fmt: skip


class Seen(Listening):
    """The notes of one VM: the record as it is when the note is made, and what the note says."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(lambda: None)
        self.vm = vm
        self.notes: list[tuple[VmRecord, set[Side] | None, Channel | None]] = []

    def start_over(self, processes: Mapping[Side, Process], qemu: Channel | None) -> None:
        self.notes.append((self.vm.record, set(processes), qemu))

    def continues(self, told: Side | None, moving: bool) -> None:
        self.notes.append((self.vm.record, None, None))


def test_what_a_note_says_and_when_it_is_made() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        seen = vm.journal = Seen(vm)
        before, qemu, links = vm.record, vm.qemu, vm.links
        alone = before._replace(qemu=None, links={Side.A: links[Side.A]})
        vm.commit(alone)
        assert seen.notes == [(before, set(Side), None)]  # before the change, with all processes
        assert vm.record is alone
        vm.commit(before)
        assert seen.notes[1:] == [(alone, set(Side), qemu)]
        vm.commit(alone, Note.CONTINUE)
        assert seen.notes[2:] == [(alone, None, None)]  # it tells of the new home and owner
        vm.commit(before, Note.COVERED)
        assert len(seen.notes) == 3

    run(test)


ACTS: dict[str, Callable[[Bed, Vm], object]] = {
    "the owner is dropped": lambda bed, vm: vm.drop_link(Side.A, "test"),
    "QEMU is dropped": lambda bed, vm: vm.drop_qemu("test"),
    "the rings are taken back": lambda bed, vm: vm.take_back(vm.links[Side.A]),
    "a process ends": lambda bed, vm: vm.process_ended(vm.links[Side.A].pid),
    "the record is in doubt": lambda bed, vm: vm.doubt("test"),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_no_peer_sees_anything_before_the_note(act: Callable[[Bed, Vm], object]) -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        peers = [bed.qemu, *bed.switches.values()]
        noticed: list[bool] = []
        vm.journal = Listening(lambda: noticed.append(any(peer.heard() or peer.hung_up() for peer in peers)))
        act(bed, vm)
        assert noticed[0] is False
        assert any(peer.heard() or peer.hung_up() for peer in peers), "it was an act that is seen"

    run(test)


Ends = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def saved(bed: Bed, vm: Vm) -> Iterator[Callable[[], LoadedState]]:
    """What a next broker would find of ``vm``, whose state has just been stored."""
    inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inlet, outlet:
        keeping = StateSaver(bed.loop, {vm.name: StateSlot(inlet.dup(), outlet.dup())}, keeps=True)
        keeping.add(vm)
        assert keeping.save()

        def found() -> LoadedState:
            slot = StateSlot(inlet.dup(), outlet.dup())
            try:
                return slot.load()
            finally:
                slot.close()

        try:
            yield found
        finally:
            keeping.remove(vm.name, forget=False)


def test_after_a_standby_is_dropped_a_next_broker_continues() -> None:
    """No ring is that side's, and a next broker finds that the stored connection has ended."""

    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        with saved(bed, vm) as found:
            vm.drop_link(Side.B, "test")
            kept = found()
            assert kept.state is not None
            assert kept.state.ownership == OWNED
            links = (link.connection for link in kept.state.links.values())
            for each in (kept.state.scratch, kept.state.qemu, *kept.state.state.descriptors(), *links):
                if each is not None:
                    each.close()

    run(test)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_after_such_an_act_a_next_broker_starts_over(act: Callable[[Bed, Vm], object]) -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.resume_reading()
        with saved(bed, vm) as found:
            act(bed, vm)
            kept = found()
            assert kept.state is None
            if kept.qemu is not None:
                kept.qemu.close()

    run(test)


def test_a_next_broker_continues_after_a_change_that_concerns_the_switches_alone() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        with saved(bed, vm) as found:
            vm.unpark(Side.B)
            kept = found()
            assert kept.state is not None
            assert kept.work is not None
            assert (kept.work.owner, kept.work.parked) == (Side.A, frozenset({Side.A}))
            bed.next(vm, kept.work, kept.state)
        await turns()

    run(test)


def test_the_fields_of_a_vm_are_read_from_its_record() -> None:
    properties = {name for name, value in vars(Recorded).items() if isinstance(value, property)}
    assert set(VmRecord._fields) <= properties


@pytest.mark.parametrize("locks", [True, False])
def test_a_switch_that_locks_its_memory_maps_little_of_the_scratch_memory(
    monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """It would allocate all of it, for each VM. One that has been sent a size keeps it, whatever is found out later."""

    async def test(bed: Bed) -> None:
        vm = bed.served(OWNED)
        vm.queues, vm.mtu = 1, 1500
        link = vm.links[Side.B]
        assert scratch_size(link.told) == SCRATCH_SIZE
        link.told = SentState()
        monkeypatch.setattr("ovs_hotswap.vhostuser.backend.locks_memory", lambda pid: locks and pid == link.pid)
        vm.sync(Side.B)
        small = reach(1, 1500)
        assert small < 3 << 20
        assert scratch_size(link.told) == (small if locks else SCRATCH_SIZE)
        vm.queues = 8
        told = link.told
        vm.sync(Side.B)
        assert link.told is told

    run(test)

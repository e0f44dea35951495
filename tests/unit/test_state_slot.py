"""What outlives a broker, on real socket pairs."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ovs_hotswap.broker.persist.snapshot import LinkParts, VmParts, Work
from ovs_hotswap.broker.persist.state_slot import LoadedState, StateSlot
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import SentState

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inlet, outlet:
        yield inlet, outlet


@pytest.fixture
def slot(pair: Pair) -> Iterator[StateSlot]:
    made = next_broker(pair)
    yield made
    made.close()


def next_broker(pair: Pair) -> StateSlot:
    """A slot as another process would have it."""
    return StateSlot(pair[0].dup(), pair[1].dup())


@pytest.fixture
def descriptor() -> Iterator[Callable[[], OwnedFd]]:
    made: list[OwnedFd] = []

    def make() -> OwnedFd:
        made.append(OwnedFd(os.memfd_create("test")))
        return made[-1]

    yield make
    for each in made:
        each.close()


def state(make: Callable[[], OwnedFd], rings: int = 2) -> VmParts:
    lines = [VringFd(True, make()) for _ in range(rings)]
    link = LinkParts(make(), 17, 5, Offer(1, 2, 3), SentState())
    return VmParts(
        name="vm0", home=Side.A, state=GuestState(rings=tuple(Ring(kick=line) for line in lines)),
        ownership=Ownership(Side.A, Certainty.OWNS), scratch=make(), qemu=None, offered=None, links={Side.A: link},
        park_wanted=frozenset(), suspects={}, cut_pid=0, moves=3,
    )  # fmt: skip


def taken(pair: Pair) -> LoadedState:
    slot = next_broker(pair)
    try:
        return slot.load()
    finally:
        slot.close()


def inode(descriptor: OwnedFd) -> int:
    return os.fstat(descriptor.fileno()).st_ino


def close(found: VmParts) -> None:
    for each in [found.scratch, *found.state.descriptors(), *(link.connection for link in found.links.values())]:
        each.close()


def references(of: OwnedFd) -> int:
    """Descriptors of this process for the same file."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.stat(f"/proc/self/fd/{number}").st_ino == inode(of)
        except FileNotFoundError:  # the directory's own
            continue
    return count


@pytest.mark.parametrize("rings", [2, 256])
def test_a_state_comes_back_with_its_descriptors(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd], rings: int
) -> None:
    before = state(descriptor, rings)
    slot.mark_dirty({Side.A: Process(17, 5)}, None)
    slot.store(before)
    assert not slot.busy
    after = taken(pair).state
    assert after is not None
    assert (after.name, after.ownership, after.moves) == ("vm0", before.ownership, 3)
    assert inode(after.scratch) == inode(before.scratch)  # type: ignore[arg-type]
    lines = [(old.kick.descriptor, new.kick.descriptor) for old, new in zip(before.state.rings, after.state.rings, strict=True)]  # fmt: skip  # noqa: E501
    assert all(inode(old) == inode(new) for old, new in lines)  # type: ignore[arg-type]
    close(after)


def test_work_under_way_is_told_with_the_processes(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    slot.store(state(descriptor))
    slot.mark_dirty({Side.A: Process(17, 5)}, None)
    slot.mark_dirty({Side.A: Process(17, 5), Side.B: Process(18)}, None)
    assert slot.busy
    assert taken(pair) == LoadedState(None, {Side.A: Process(17, 5), Side.B: Process(18)})


def test_nothing_was_kept(pair: Pair) -> None:
    assert taken(pair) == LoadedState(None, {})


def test_an_outdated_state_holds_nothing_open(slot: StateSlot, descriptor: Callable[[], OwnedFd]) -> None:
    inlet, outlet = socket.socketpair()
    with outlet:
        scratch = OwnedFd(os.dup(inlet.fileno()))
        parts = state(descriptor)
        slot.store(VmParts(**{**{name: getattr(parts, name) for name in VmParts.__slots__}, "scratch": scratch}))
        inlet.close()
        scratch.close()
        outlet.setblocking(False)
        with pytest.raises(BlockingIOError):
            outlet.recv(1)  # the slot keeps the other end
        slot.mark_dirty({}, None)
        outlet.settimeout(20)  # a socket is closed by a thread
        assert outlet.recv(1) == b""


def test_many_states_leave_one(slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]) -> None:
    parts = state(descriptor)
    for number in range(200):
        slot.mark_dirty({Side.A: Process(number + 1, 5)}, None)
        slot.store(parts)
    found = taken(pair).state
    assert found is not None
    close(found)
    slot.mark_dirty({}, None)
    assert taken(pair) == LoadedState(None, {})
    assert references(parts.scratch) == 1  # type: ignore[arg-type]


def test_what_is_read_stays_and_says_that_it_was_read(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    slot.store(state(descriptor, 256))
    work = Work(Side.A, Side.A, frozenset(Side), frozenset({Side.B}))
    assert slot.add(work)
    for expected in (True, True, False):
        later = next_broker(pair)
        found = later.load()
        assert found.state is not None
        close(found.state)
        assert (found.work, found.first, later.busy) == (work, expected, False)
        if not expected:
            later.mark_dirty({}, None)
        elif later.mark_read():  # read twice before anything is noted
            break
        later.close()
    slot.store(state(descriptor))
    newest = taken(pair)
    assert newest.state is not None
    assert newest.first
    close(newest.state)


def test_a_version_that_does_not_know_the_mark_of_a_state_that_was_read_finds_the_state(pair: Pair) -> None:
    """To it the mark is a part of the state that has no descriptors: only the first byte decides."""
    inlet, outlet = pair
    slot = StateSlot(inlet.dup(), outlet.dup())
    assert slot.mark_read()
    slot.close()
    assert outlet.recv(1) == b"M"


def test_a_state_that_is_cut_short_is_none(slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]) -> None:
    """Killed between the messages of one state: what was before it is what counts."""
    slot.mark_dirty({Side.B: Process(18)}, None)
    given = [descriptor().fileno() for _ in range(3)]
    socket.send_fds(pair[0], [b"S" + (300).to_bytes(4, "big")], given)
    assert taken(pair) == LoadedState(None, {Side.B: Process(18)})


@pytest.mark.parametrize("head", [b"S", b"B123", b"S" + (1).to_bytes(4, "big")])
def test_what_cannot_be_read_is_refused(pair: Pair, descriptor: Callable[[], OwnedFd], head: bytes) -> None:
    given = descriptor()
    socket.send_fds(pair[0], [head], [given.fileno()])
    with pytest.raises(StateUnknown, match="cannot be read"):
        taken(pair)
    assert references(given) == 1


def another_version(text: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Make the document in the file ``text`` one that this version does not read."""
    document = json.loads(os.pread(text, 1 << 20, 0))
    change(document)
    os.ftruncate(text, 0)
    os.pwrite(text, json.dumps(document).encode(), 0)


def newer(document: dict[str, Any]) -> None:
    document["format"] = 999


def broken(document: dict[str, Any]) -> None:
    document["vm"]["moves"] = -1


@pytest.mark.parametrize("change", [newer, broken])
def test_of_a_state_that_cannot_be_read_only_qemus_connection_stays_open(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd], change: Callable[[dict[str, Any]], None]
) -> None:
    """Else no switch would ever see the earlier broker's connection end, and QEMU would take its rings too early."""
    parts = replace(state(descriptor), qemu=descriptor())
    slot.store(parts)
    head, given, _, _ = socket.recv_fds(pair[1], 64, 253)
    another_version(given[0], change)
    socket.send_fds(pair[0], [head], given)
    for each in given:
        os.close(each)
    found = taken(pair)
    assert found.state is None
    assert references(parts.scratch) == 1  # type: ignore[arg-type]
    assert found.qemu is not None
    assert inode(found.qemu) == inode(parts.qemu)  # type: ignore[arg-type]
    found.qemu.close()


def test_qemus_connection_outlives_work_that_was_under_way(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    parts, qemu = state(descriptor), descriptor()
    slot.store(replace(parts, qemu=qemu))
    slot.mark_dirty({Side.A: Process(17, 5)}, qemu)
    assert references(parts.scratch) == 1  # type: ignore[arg-type]
    found = taken(pair)
    assert found.qemu is not None
    assert (found.state, inode(found.qemu)) == (None, inode(qemu))
    found.qemu.close()


def test_a_connection_that_was_closed_meanwhile_is_let_go(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    first, second = descriptor(), descriptor()
    slot.mark_dirty({Side.A: Process(17, 5)}, first)
    slot.mark_dirty({Side.A: Process(17, 5)}, None)
    assert references(first) == 1
    slot.mark_dirty({Side.A: Process(17, 5)}, second)
    found = taken(pair)
    assert found.qemu is not None
    assert inode(found.qemu) == inode(second)
    found.qemu.close()


WORK = Work(Side.B, None, frozenset(Side), frozenset({Side.B}))


def test_work_with_the_switches_is_told_beside_the_state(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    slot.store(state(descriptor))
    assert slot.add(replace(WORK, owner=Side.A))
    assert slot.add(replace(WORK, told=frozenset()))  # what was told before stays told
    assert not slot.busy
    found = taken(pair)
    assert found.work == WORK
    assert found.state is not None
    close(found.state)


def test_work_with_an_owner_that_was_told_more_than_places_is_refused(
    slot: StateSlot, descriptor: Callable[[], OwnedFd]
) -> None:
    """Whether it became the owner before that or after."""
    slot.store(state(descriptor))
    assert not slot.add(replace(WORK, owner=Side.B))
    assert slot.add(WORK)
    assert not slot.add(replace(WORK, owner=Side.B, told=frozenset()))


def test_that_nobody_has_the_rings_is_told_apart_from_that_they_change_hands(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    free = replace(WORK, nobody=True)
    slot.store(state(descriptor))
    assert slot.add(WORK)
    assert slot.add(free)
    found = taken(pair)
    assert found.work == free
    assert found.state is not None
    close(found.state)


def test_a_full_slot_tells_all_the_same_that_work_is_under_way(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    slot.store(state(descriptor))
    owners = [Side.A, None]
    while slot.add(replace(WORK, owner=owners[0], told=frozenset())):
        owners.reverse()
    qemu = descriptor()
    slot.mark_dirty({Side.A: Process(17, 5)}, qemu)
    found = taken(pair)
    assert (found.state, found.processes) == (None, {Side.A: Process(17, 5)})
    assert found.qemu is not None
    assert inode(found.qemu) == inode(qemu)
    found.qemu.close()


def test_a_new_state_makes_work_forgotten(slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]) -> None:
    parts = state(descriptor)
    slot.store(parts)
    slot.add(WORK)
    slot.store(parts)
    found = taken(pair)
    assert found.work is None
    assert found.state is not None
    close(found.state)


def test_what_the_guest_says_then_makes_it_start_over(
    slot: StateSlot, pair: Pair, descriptor: Callable[[], OwnedFd]
) -> None:
    slot.store(state(descriptor))
    slot.add(WORK)
    slot.mark_dirty({Side.A: Process(17, 5)}, None)
    assert slot.add(WORK)  # says nothing new
    assert taken(pair) == LoadedState(None, {Side.A: Process(17, 5)})


def test_more_work_than_a_socket_holds_is_refused(slot: StateSlot, descriptor: Callable[[], OwnedFd]) -> None:
    slot.store(state(descriptor))
    sides = [Side.A, Side.B]
    assert not all(slot.add(replace(WORK, owner=sides[number % 2])) for number in range(10_000))


def test_a_note_of_an_earlier_version_tells_no_start(pair: Pair) -> None:
    pair[0].send(struct.pack("!cii", b"B", 17, 0))
    assert taken(pair) == LoadedState(None, {Side.A: Process(17)})

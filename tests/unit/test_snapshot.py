"""A VM's state as a document: what comes back is what went in, and nothing else is believed."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.broker.persist.formats import needed_format
from ovs_hotswap.broker.persist.snapshot import LinkParts, Table, VmParts, encode
from ovs_hotswap.broker.persist.snapshot_reader import Received, decode
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import DirtyLog, Region, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import Role, SentState, reconcile, scratch_region
from tests.unit.snapshot_sample import Handle

OFFER = Offer(0xFFFF, 0x1F, 4)
OWNERSHIPS = [
    Ownership(),
    Ownership(Side.A, Certainty.OWNS),
    Ownership(Side.B, Certainty.CUT),
    Ownership(suspects=frozenset({Side.B})),
]


_serials = itertools.count(100)
handles = st.builds(lambda: Handle(next(_serials)))
numbers = st.integers(0, (1 << 64) - 1)
pids, ticks = st.integers(1, 1 << 22), st.integers(0, 1 << 40)
lines = st.builds(VringFd, st.booleans(), st.none() | handles)
addresses = st.builds(RingAddress, st.integers(0, 1), numbers, numbers, numbers, numbers)
rings = st.builds(
    Ring, st.none() | st.sampled_from([256, 1024]), st.none() | addresses, st.integers(0, 65535), lines, lines,
    st.none() | st.booleans(),
)  # fmt: skip
regions = st.builds(
    Region, st.integers(0, 1 << 40), st.integers(1, 1 << 30), st.integers(0, 1 << 46), st.integers(0, 1 << 46), handles
)
states = st.builds(
    GuestState, features=st.none() | numbers, protocol_features=st.none() | numbers, owned=st.booleans(),
    memory=st.lists(regions, max_size=3).map(tuple), rings=st.lists(rings, max_size=4).map(tuple),
    status=st.none() | st.integers(0, 255), mtu=st.none() | st.integers(68, 65535),
    log=st.none() | st.builds(DirtyLog, numbers, numbers, handles),
)  # fmt: skip


def told_of(state: GuestState, role: Role) -> SentState:
    return reconcile(SentState(), state, role, scratch_region(Handle(99)), OFFER, lambda _: 0)[1]


@st.composite
def vms(draw: st.DrawFn) -> VmParts:
    state = draw(states)
    told = {side: told_of(state, draw(st.sampled_from(Role))) for side in Side}
    links = {
        side: LinkParts(Handle(50 + number), draw(pids), draw(ticks), OFFER, told[side])
        for number, side in enumerate(draw(st.sets(st.sampled_from(Side))))
    }  # fmt: skip
    return VmParts(
        name="vm1",
        home=draw(st.none() | st.sampled_from(Side)),
        state=state,
        ownership=draw(st.sampled_from(OWNERSHIPS)),
        scratch=Handle(99),
        qemu=draw(st.none() | st.just(Handle(98))),
        offered=draw(st.none() | st.just(OFFER)),
        links=links,
        park_wanted=frozenset(draw(st.sets(st.sampled_from(Side)))),
        suspects={Side.B: 77} if draw(st.booleans()) else {},
        cut_pid=draw(st.integers(0, 1 << 22)),
        moves=draw(st.integers(0, 1000)),
        half=draw(st.sampled_from([(b"", ()), (b"\x01\x00", (Handle(97),))])),
    )  # fmt: skip


def travelled(vm: VmParts) -> tuple[VmParts, dict[int, Handle]]:
    """``vm`` after a journey to a process where every descriptor has another serial; and the way back."""
    table = Table()
    document = json.loads(json.dumps(encode(vm, table)))
    arrived = [Handle(1000 + number) for number in range(len(table.descriptors))]
    return decode(document, Received(arrived)), {
        new.serial: old for new, old in zip(arrived, table.descriptors, strict=True) if isinstance(old, Handle)
    }


@given(vms())
def test_what_comes_back_is_what_went_in(vm: VmParts) -> None:
    back, origin = travelled(vm)
    assert (back.name, back.home, back.ownership, back.offered) == (vm.name, vm.home, vm.ownership, vm.offered)
    assert (back.park_wanted, dict(back.suspects)) == (vm.park_wanted, dict(vm.suspects))
    assert (back.cut_pid, back.moves) == (vm.cut_pid, vm.moves)
    before = [descriptor.serial for descriptor in vm.state.descriptors()]
    assert [origin[descriptor.serial].serial for descriptor in back.state.descriptors()] == before
    assert back.state.started == vm.state.started
    assert [ring.address for ring in back.state.rings] == [ring.address for ring in vm.state.rings]
    assert set(back.links) == set(vm.links)
    assert back.half[0] == vm.half[0]
    assert [origin[descriptor.serial].serial for descriptor in back.half[1]] == [each.serial for each in vm.half[1]]


@given(vms(), st.sampled_from(Role))
def test_a_switch_is_not_told_again_what_it_has_heard(vm: VmParts, role: Role) -> None:
    """The successor's comparison yields the same messages as the old broker's would have."""
    back, _ = travelled(vm)
    for side, link in vm.links.items():
        there = back.links[side]
        old = reconcile(link.told, vm.state, role, scratch_region(vm.scratch), OFFER, lambda _: 7)[0]
        new = reconcile(there.told, back.state, role, scratch_region(back.scratch), OFFER, lambda _: 7)[0]
        assert [message.data for message in new] == [message.data for message in old]


@given(vms(), st.data())
def test_a_broken_document_is_refused(vm: VmParts, data: st.DataObject) -> None:
    table = Table()
    document: dict[str, Any] = json.loads(json.dumps(encode(vm, table)))
    key = data.draw(st.sampled_from(sorted(document.keys() - {"half"})))  # that is there only if there is one
    del document[key]
    with pytest.raises(StateUnknown):
        decode(document, Received(table.descriptors))


def test_an_index_beyond_the_descriptors_is_refused() -> None:
    vm = VmParts("vm1", None, GuestState(), Ownership(), Handle(1), None, None, {}, frozenset(), {}, 0, 0)
    with pytest.raises(StateUnknown, match="no descriptor 0"):
        decode(encode(vm, Table()), Received([]))


def test_a_ring_that_begins_where_its_guest_left_it_needs_the_newer_format() -> None:
    """A broker that knows only the older format takes the base for a number."""
    vm = VmParts("vm1", None, GuestState(), Ownership(), Handle(1), None, None, {}, frozenset(), {}, 0, 0)
    for base, needed in ((0, 3), (None, 4)):
        given = replace(vm, state=GuestState(rings=(Ring(base=base),)))
        assert needed_format(encode(given, Table())) == needed

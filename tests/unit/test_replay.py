"""Making a back end agree with the record: checked by a back end's model that takes the messages as DPDK does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, apply_message, ring_parts
from ovs_hotswap.vhostuser.messages import Message, ProtocolFeature, Request, RingAddress
from ovs_hotswap.vhostuser.reconcile import (
    CAPTURE_OFFSET,
    PARKING,
    PARKING_SIZE,
    SCRATCH_GUEST_ADDRESS,
    SCRATCH_SIZE,
    SCRATCH_USER_ADDRESS,
    OutgoingMessage,
    Role,
    SentState,
    is_parking_address,
    only_places,
    place,
    places,
    reconcile,
    scratch_region,
    scratch_size,
    table,
    unplaced,
    why_not_parked,
    with_ring_addresses,
    without_capture_rings,
)
from tests.unit.vhost_frames import OFFER, FakeDescriptor, address, booted, fakes, guest_messages, told

SCRATCH = scratch_region(FakeDescriptor())
BASE = 4321  # where a new owner is to begin, as read from guest memory


@dataclass
class ModelRing:
    size: int | None = None
    base: int | None = None
    address: RingAddress | None = None
    kick: tuple[bool, int | None] = (False, None)
    call: tuple[bool, int | None] = (False, None)
    enabled: bool | None = None


@dataclass
class Model:
    """A back end: takes messages one by one and refuses what DPDK 22.11 would refuse or what is unsafe there."""

    rings: dict[int, ModelRing] = field(default_factory=dict)
    memory: tuple[int, ...] = ()
    tables: list[tuple[int, int]] = field(default_factory=list)
    features: int | None = None
    protocol_features: int | None = None
    owned: bool = False
    status: int | None = None
    mtu: int | None = None
    log: int | None = None
    guest_addresses: int = 0

    def take(self, out: Sequence[OutgoingMessage]) -> None:
        for one in out:
            request, flags, size = messages.HEADER.unpack_from(one.data)
            assert len(one.data) == messages.HEADER.size + size
            assert not flags & messages.NEED_REPLY
            message = messages.parse(messages.Frame(request, flags, one.data[messages.HEADER.size :], one.descriptors))
            expects = message.request in (Request.GET_VRING_BASE, Request.SET_LOG_BASE)
            assert one.expects == (message.request if expects else None)
            self._take(message)

    def _take(self, message: Message) -> None:
        body = message.body
        if isinstance(body, messages.RingValue | messages.RingPlace | messages.RingDescriptor):
            self._take_ring(message.request, body, self.rings.setdefault(body.index, ModelRing()))
        elif isinstance(body, messages.MemoryTable):
            self.memory = tuple(region.descriptor.serial for region in body.regions)
            self.tables = [(region.user_address, region.size) for region in body.regions]
        elif isinstance(body, messages.DirtyLog):
            self.log = body.descriptor.serial
        elif message.request is Request.SET_OWNER:
            self.owned = True
        else:
            assert isinstance(body, messages.Number)
            setattr(self, message.request.name.removeprefix("SET_").removeprefix("NET_SET_").lower(), body.value)

    def _take_ring(
        self, request: Request, body: messages.RingValue | messages.RingPlace | messages.RingDescriptor, ring: ModelRing
    ) -> None:
        running = ring.kick[0] and ring.address is not None
        if isinstance(body, messages.RingPlace):
            assert self.memory, "DPDK ends the session at SET_VRING_ADDR before SET_MEM_TABLE"
            ring.address = body.address
            self.guest_addresses += not body.address.descriptors >= SCRATCH_USER_ADDRESS
        elif isinstance(body, messages.RingDescriptor):
            line = (True, None if body.descriptor is None else body.descriptor.serial)
            if request is Request.SET_VRING_KICK:
                assert ring.size is not None
                assert ring.base is not None
                assert ring.address is not None
                ring.kick = line
            else:
                ring.call = line
        elif request is Request.GET_VRING_BASE:
            assert isinstance(body, messages.RingValue)
            assert body.value == 0, "the index is what the back end says"
            self.rings[body.index] = ModelRing(enabled=ring.enabled)
        elif request is Request.SET_VRING_ENABLE:
            ring.enabled = bool(body.value)
        else:
            assert not running, f"{request.name} on a running ring"
            if request is Request.SET_VRING_NUM:
                ring.size = body.value
            else:
                ring.base = body.value

    def ring(self, index: int) -> ModelRing:
        return self.rings.get(index, ModelRing())


def line_key(line: tuple[bool, int]) -> tuple[bool, int | None]:
    return line[0], None if line[1] == -1 else line[1]


def check_view(model: Model, state: GuestState, role: Role, offer: Offer = OFFER) -> None:
    """The model sees exactly what a back end of this role is entitled to."""
    started = [index for index in range(8) if model.ring(index).kick[0]]
    if role is Role.IDLE:
        assert started == []
        return
    assert tuple(started) == state.started
    for index, ring in enumerate(state.rings):
        seen = model.ring(index)
        if ring.started:
            assert ring.address is not None
            assert seen.size == ring.size
            assert seen.address == (ring.address if role is Role.OWNER else PARKING)
            assert seen.kick == line_key(ring.kick.key)
        if ring.call.said:
            assert seen.call == line_key(ring.call.key)
        if ring.enabled is not None:
            assert seen.enabled == ring.enabled
    assert model.features == state.features
    assert model.owned or not state.owned  # RESET_OWNER is carried out as stopped rings
    if state.memory:
        assert model.memory == tuple(region.descriptor.serial for region in table(state, SCRATCH))
    assert model.log == (None if state.log is None else state.log.descriptor.serial)


def test_no_ring_is_kicked_before_all_are_complete() -> None:
    """DPDK 17.11 counts the rings that it has heard of when each of those has all it needs."""
    out, _ = reconcile(SentState(), booted(4, 1, 256), Role.PARKED, SCRATCH, OFFER, lambda index: BASE)
    requests = [Request(messages.HEADER.unpack_from(one.data)[0]) for one in out]
    first = requests.index(Request.SET_VRING_KICK)
    assert requests[first:].count(Request.SET_VRING_KICK) == 4
    parts = {Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR, Request.SET_VRING_CALL}
    assert not parts & set(requests[first:])


def test_only_the_ring_that_may_differ_is_looked_at() -> None:
    before = booted(4)
    _, heard = reconcile(SentState(), before, Role.OWNER, SCRATCH, OFFER, lambda index: BASE)
    state = before
    for index in (1, 2):
        state = state.with_ring(index, replace(state.ring(index), enabled=False))
    out, heard = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: BASE, 2)
    assert [one.data for one in out] == [messages.build_ring_value(Request.SET_VRING_ENABLE, 2, 0)]
    out, _ = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: BASE)
    assert [one.data for one in out] == [messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 0)]


def about(out: Sequence[OutgoingMessage]) -> set[int]:
    """The rings that these messages, of which each is about one, are about."""
    return {int.from_bytes(one.data[12:16], "little") & 0xFF for one in out}


@pytest.mark.parametrize("only", range(4))
def test_only_the_ring_that_may_differ_is_stopped_and_begun_again(only: int) -> None:
    """Though all others have been described again as well."""
    state = booted(4)
    _, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: BASE)
    for index in range(4):
        state = state.with_ring(index, state.ring(index).again)
    out, after = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: BASE, only)
    assert requests(out) == [
        Request.GET_VRING_BASE, Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR,
        Request.SET_VRING_CALL, Request.SET_VRING_KICK,
    ]  # fmt: skip
    assert about(out) == {only}
    out, _ = reconcile(after, state, Role.IDLE, SCRATCH, OFFER, lambda index: BASE, only)
    assert requests(out) == [Request.GET_VRING_BASE]
    assert about(out) == {only}


@given(st.permutations(range(5)), st.sampled_from([Role.PARKED, Role.OWNER]))
def test_what_a_back_end_has_heard_does_not_depend_on_the_order(order: list[int], role: Role) -> None:
    state = booted(5)
    _, at_once = reconcile(SentState(), state, role, SCRATCH, OFFER, lambda index: BASE)
    heard = SentState()
    for index in order:
        _, heard = reconcile(heard, state, role, SCRATCH, OFFER, lambda index: BASE, index)
    assert heard == at_once


class BackEnd(RuleBasedStateMachine):
    """Guest messages, role changes, handovers and reconnects in any order, with the comparison after each."""

    def __init__(self) -> None:
        super().__init__()
        self.state = GuestState()
        self.role = Role.IDLE
        self.model = Model()
        self.told = SentState()

    def settle(self, only: int | None = None) -> None:
        before = self.model.guest_addresses
        out, self.told = reconcile(self.told, self.state, self.role, SCRATCH, OFFER, lambda index: BASE, only)
        self.model.take(out)
        if self.role is not Role.OWNER:
            assert self.model.guest_addresses == before, "a side that is not the owner heard a guest address"
        again, same = reconcile(self.told, self.state, self.role, SCRATCH, OFFER, lambda index: BASE)
        assert again == []
        assert same == self.told

    @rule(got=guest_messages())
    def guest(self, got: Message) -> None:
        try:
            received = apply_message(self.state, got, OFFER)
        except ProtocolError:
            return
        self.state = received.state
        self.settle(got.ring)  # the rest agrees

    @rule(got=st.lists(guest_messages(), max_size=12))
    def guest_unheard(self, got: list[Message]) -> None:
        """Several messages before this back end hears of any."""
        for one in got:
            try:
                self.state = apply_message(self.state, one, OFFER).state
            except ProtocolError:
                continue
        self.settle()

    @rule(rings=st.integers(1, 8), regions=st.integers(1, 8), size=st.sampled_from([64, 256]))
    def reboot(self, rings: int, regions: int, size: int) -> None:
        self.state = replace(booted(rings, regions, size), log=self.state.log)
        self.settle()

    @rule(role=st.sampled_from(Role))
    def change_role(self, role: Role) -> None:
        self.role = role
        self.settle()

    @rule(role=st.sampled_from([Role.PARKED, Role.OWNER]))
    def swap(self, role: Role) -> None:
        """Do what the handover does besides ``reconcile``."""
        if self.role is Role.IDLE:
            return
        before = self.model.guest_addresses
        for index in self.state.started:
            data = messages.build_ring_address(index, place(self.state.rings[index], role))
            self.model.take([OutgoingMessage(data)])
        assert role is Role.OWNER or self.model.guest_addresses == before
        self.told = with_ring_addresses(self.told, places(self.state, role))
        self.role = role
        self.settle()

    @rule()
    def reconnect(self) -> None:
        self.model, self.told = Model(), SentState()
        self.settle()

    @invariant()
    def view_is_that_of_the_role(self) -> None:
        check_view(self.model, self.state, self.role)

    @invariant()
    def parked_addresses_can_be_translated(self) -> None:
        """Unless there is no room for the scratch region, where no back end is parked."""
        if self.role is not Role.PARKED or why_not_parked(self.state) is not None:
            return
        for index in self.state.started:
            ring = self.model.ring(index)
            assert ring.address is not None
            assert ring.size is not None
            parts = (ring.address.descriptors, ring.address.available, ring.address.used)
            for start, length in zip(parts, ring_parts(ring.size), strict=True):
                assert any(low <= start and start + length <= low + size for low, size in self.model.tables)


BackEnd.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestBackEnd = BackEnd.TestCase


# -- order -------------------------------------------------------------------------------------------------------------


def requests(out: Sequence[OutgoingMessage]) -> list[Request]:
    return [Request(messages.HEADER.unpack_from(one.data)[0]) for one in out]


_BEFORE_ENABLE = {
    Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR, Request.SET_VRING_CALL,
    Request.SET_VRING_KICK,
}  # fmt: skip


@given(st.sampled_from([Role.PARKED, Role.OWNER]), st.integers(1, 8), st.integers(1, 8))
def test_all_parameters_of_all_rings_come_before_any_enable(role: Role, rings: int, regions: int) -> None:
    """OVS counts the rings when DPDK calls ``new_device``, at the first enabled pair (``virtio_is_ready``)."""
    out, _ = reconcile(SentState(), booted(rings, regions), role, SCRATCH, OFFER, lambda index: 0)
    order = requests(out)
    first = order.index(Request.SET_VRING_ENABLE)
    assert not _BEFORE_ENABLE & set(order[first:])
    assert order.index(Request.SET_FEATURES) < order.index(Request.SET_MEM_TABLE) < order.index(Request.SET_VRING_NUM)
    for index in range(rings):
        mine = [Request(messages.HEADER.unpack_from(one.data)[0]) for one in out if ring_of(one) == index]
        assert mine == [
            Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR, Request.SET_VRING_CALL,
            Request.SET_VRING_KICK, Request.SET_VRING_ENABLE,
        ]  # fmt: skip


def ring_of(one: OutgoingMessage) -> int | None:
    request = Request(messages.HEADER.unpack_from(one.data)[0])
    if request in _BEFORE_ENABLE or request is Request.SET_VRING_ENABLE:
        return int.from_bytes(one.data[12:16], "little") & 0xFF
    return None


def test_status_comes_last() -> None:
    state = told(booted(2), messages.build_number(Request.SET_STATUS, 15)).state
    out, _ = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out)[-1] is Request.SET_STATUS


# -- bases -------------------------------------------------------------------------------------------------------------


def test_owner_begins_where_it_is_told_to_and_a_parked_side_at_0() -> None:
    for role, places_ in ((Role.OWNER, (17, 18)), (Role.PARKED, (0, 0))):
        out, _ = reconcile(SentState(), booted(2), role, SCRATCH, OFFER, lambda index: 17 + index)
        bases = [one.data for one in out if requests([one]) == [Request.SET_VRING_BASE]]
        assert bases == [
            messages.build_ring_value(Request.SET_VRING_BASE, index, base) for index, base in enumerate(places_)
        ]


def test_everything_of_a_ring_is_sent_again_after_it_was_stopped() -> None:
    state = booted(2)
    _, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    stopped = told(state, messages.build_ring_value(Request.GET_VRING_BASE, 0, 0)).state
    out, heard = reconcile(heard, stopped, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out) == [Request.GET_VRING_BASE]
    assert out[0].stops == 0
    again = stopped.with_ring(0, state.rings[0])
    out, _ = reconcile(heard, again, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out) == [
        Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR, Request.SET_VRING_CALL,
        Request.SET_VRING_KICK,
    ]  # fmt: skip


def test_address_swap_of_a_parked_side_is_one_message_a_ring() -> None:
    state = booted(4)
    _, heard = reconcile(SentState(), state, Role.PARKED, SCRATCH, OFFER, lambda index: 0)
    out, _ = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out) == [Request.SET_VRING_ADDR] * 4


def test_other_size_restarts_the_ring() -> None:
    state = booted(1)
    _, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    smaller = told(state, messages.build_ring_value(Request.SET_VRING_NUM, 0, 64)).state
    out, _ = reconcile(heard, smaller, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out)[:3] == [Request.GET_VRING_BASE, Request.SET_VRING_NUM, Request.SET_VRING_BASE]


def described_again(state: GuestState, request: Request) -> GuestState:
    data = {
        Request.SET_VRING_NUM: messages.build_ring_value(request, 1, 256),
        Request.SET_VRING_BASE: messages.build_ring_value(request, 1, 0),
        Request.SET_VRING_ADDR: messages.build_ring_address(1, address(1)),
        Request.SET_VRING_KICK: messages.build_ring_descriptor(request, 1, present=True),
    }[request]
    return told(state, data, fakes(request is Request.SET_VRING_KICK)).state


@pytest.mark.parametrize("role", [Role.PARKED, Role.OWNER])
@pytest.mark.parametrize("request_", [Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR,
                                      Request.SET_VRING_KICK])  # fmt: skip
def test_a_started_ring_that_is_described_again_is_stopped_first(role: Role, request_: Request) -> None:
    """Here a disabled one, with what was said before, as a front end does that never sends GET_VRING_BASE."""
    state = told(booted(2), messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 0)).state
    _, heard = reconcile(SentState(), state, role, SCRATCH, OFFER, lambda index: 9)
    again = described_again(state, request_)
    out, heard = reconcile(heard, again, role, SCRATCH, OFFER, lambda index: 9)
    assert [ring_of(one) for one in out[1:]] == [1] * (len(out) - 1)
    assert requests(out) == [
        Request.GET_VRING_BASE, Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR,
        Request.SET_VRING_CALL, Request.SET_VRING_KICK,
    ]  # fmt: skip
    assert again.rings[1].base == (0 if request_ is Request.SET_VRING_BASE else None)
    assert reconcile(heard, again, role, SCRATCH, OFFER, lambda index: 9)[0] == []


def test_a_base_that_was_said_holds_for_the_rest_of_the_description() -> None:
    state = booted(2)
    bases = []
    for request in (Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR, Request.SET_VRING_KICK):
        state = described_again(state, request)
        bases.append(state.rings[1].base)
    assert bases == [None, 0, 0, 0]
    assert described_again(state, Request.SET_VRING_ADDR).rings[1].base is None


def test_a_log_for_a_running_ring_does_not_stop_it() -> None:
    """QEMU says the addresses again with the log flag when a migration starts."""
    state = booted(2)
    _, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    for data in (
        messages.build_number(Request.SET_FEATURES, OFFER.features ^ 1 << messages.Feature.LOG_ALL),
        messages.build_ring_address(0, replace(address(0), flags=1, log=64)),
    ):
        state = told(state, data).state
    out, _ = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out) == [Request.SET_FEATURES, Request.SET_VRING_ADDR]


def test_other_features_stop_a_running_device_first() -> None:
    """DPDK refuses them otherwise, and hangs up (``vhost_user_set_features``)."""
    state = booted(2)
    _, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    state = told(state, messages.build_number(Request.SET_FEATURES, OFFER.features & ~1)).state
    out, _ = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out)[:3] == [Request.GET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_FEATURES]


# -- what a back end does not offer it is not told ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bit", "request_", "data"),
    [
        (ProtocolFeature.STATUS, Request.SET_STATUS, messages.build_number(Request.SET_STATUS, 15)),
        (ProtocolFeature.NET_MTU, Request.NET_SET_MTU, messages.build_number(Request.NET_SET_MTU, 1500)),
    ],
)
def test_back_end_without_a_protocol_feature(bit: ProtocolFeature, request_: Request, data: bytes) -> None:
    state = told(booted(2), data).state
    less = Offer(OFFER.features, OFFER.protocol_features & ~(1 << bit), OFFER.queue_pairs)
    with_it, _ = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    without, _ = reconcile(SentState(), state, Role.OWNER, SCRATCH, less, lambda index: 0)
    assert request_ in requests(with_it)
    assert request_ not in requests(without)
    acknowledged = [one.data for one in without if requests([one]) == [Request.SET_PROTOCOL_FEATURES]]
    assert acknowledged == [messages.build_number(Request.SET_PROTOCOL_FEATURES, less.protocol_features)]


def test_protocol_features_that_qemu_did_not_acknowledge_are_not_told() -> None:
    state = told(GuestState(), messages.build_number(Request.SET_FEATURES, OFFER.features)).state
    out, heard = reconcile(SentState(), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert requests(out) == [Request.SET_FEATURES]
    assert heard.protocol_features is None


def test_protocol_features_of_an_earlier_driver_are_taken_back() -> None:
    """The firmware's driver acknowledged some, the guest's on the same connection none."""
    _, heard = reconcile(SentState(), booted(1), Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert heard.protocol_features
    nothing = GuestState()
    assert reconcile(heard, nothing, Role.PARKED, SCRATCH, OFFER, lambda index: 0, only=3)[0] == []
    state = told(nothing, messages.build_number(Request.SET_FEATURES, OFFER.features)).state
    out, heard = reconcile(heard, state, Role.OWNER, SCRATCH, OFFER, lambda index: 0, only=3)
    assert [one.data for one in out] == [messages.build_number(Request.SET_PROTOCOL_FEATURES, 0)]
    assert heard.protocol_features == 0


# -- parking place -----------------------------------------------------------------------------------------------------


def test_parking_place_holds_the_largest_ring_without_overlap() -> None:
    parts = list(
        zip((PARKING.descriptors, PARKING.available, PARKING.used), ring_parts(messages.MAX_RING_SIZE), strict=True)
    )
    for start, length in parts:
        assert SCRATCH.holds(start, length)
        assert start % 16 == 0
    for (start, length), (following, _) in itertools.pairwise(parts):
        assert start + length <= following
    assert start + length <= SCRATCH_USER_ADDRESS + PARKING_SIZE  # the capture rings lie behind it
    assert SCRATCH.size == SCRATCH_SIZE


def test_what_a_broker_of_another_release_reads_is_as_it_was() -> None:
    """A broker that takes over finds back ends parked by its predecessor, and status documents name the roles."""
    at = 1 << 63
    assert RingAddress(flags=0, descriptors=at, used=at + 0xB0000, available=at + 0x90000, log=0) == PARKING
    assert (PARKING_SIZE, CAPTURE_OFFSET, SCRATCH_SIZE) == (1 << 20, 1 << 20, 65 << 20)
    assert [role.value for role in Role] == ["idle", "parked", "owner"]


@pytest.mark.parametrize(("regions", "parkable"), [(1, True), (7, True), (8, False)])
def test_scratch_region_needs_one_of_eight(regions: int, parkable: bool) -> None:
    state = booted(1, regions)
    assert (why_not_parked(state) is None) == parkable
    assert len(table(state, SCRATCH)) == min(regions + 1, 8)


@pytest.mark.parametrize(
    ("guest", "user"), [(0, SCRATCH_USER_ADDRESS), (0, SCRATCH_USER_ADDRESS + SCRATCH_SIZE - 1), (1 << 62, 0)]
)
def test_guest_that_claims_the_scratch_addresses_is_not_parked(guest: int, user: int) -> None:
    state = GuestState(memory=(messages.Region(guest, 4096, user, 0, FakeDescriptor()),))
    assert why_not_parked(state) == "its memory table uses addresses that no machine has"


def test_a_guest_whose_memory_ends_where_the_scratch_addresses_begin_is_parked() -> None:
    size = 4096
    below = messages.Region(SCRATCH_GUEST_ADDRESS - size, size, SCRATCH_USER_ADDRESS - size, 0, FakeDescriptor())
    assert why_not_parked(GuestState(memory=(below,))) is None


def test_too_many_regions_are_counted_for_the_operator() -> None:
    why = why_not_parked(booted(1, 8))
    assert why == "its memory has 8 regions; vhost-user allows 8 and parking needs one of them"


def test_empty_record_yields_nothing() -> None:
    for role in Role:
        assert reconcile(SentState(), GuestState(), role, SCRATCH, OFFER, lambda index: 0)[0] == []


def test_a_back_end_is_at_its_places_only_if_every_ring_is() -> None:
    state = booted(2)
    _, heard = reconcile(SentState(), state, Role.PARKED, SCRATCH, OFFER, lambda index: 0)
    assert heard.at({0: PARKING, 1: PARKING})
    assert not heard.at({0: PARKING, 1: address(1)})
    assert not heard.at({0: PARKING, 7: PARKING})


def test_the_scratch_region_lies_where_the_parking_place_is_looked_for() -> None:
    descriptor = FakeDescriptor()
    assert scratch_region(descriptor) == messages.Region(
        SCRATCH_GUEST_ADDRESS, SCRATCH_SIZE, SCRATCH_USER_ADDRESS, 0, descriptor
    )


def test_a_back_end_keeps_the_scratch_region_that_it_was_sent() -> None:
    """Whatever would be sent to another: a new memory table costs a back end that serves a guest its time."""
    state = booted(2)
    small = scratch_region(SCRATCH.descriptor, 3 << 20)
    _, told = reconcile(SentState(), state, Role.OWNER, small, OFFER, lambda index: 0)
    assert (scratch_size(told), scratch_size(SentState())) == (3 << 20, None)
    kept = scratch_region(SCRATCH.descriptor, scratch_size(told) or 0)
    assert reconcile(told, state, Role.OWNER, kept, OFFER, lambda index: 0) == ([], told)


# -- capture rings -----------------------------------------------------------------------------------------------------

_FIRST = SCRATCH_USER_ADDRESS + CAPTURE_OFFSET
CAPTURE = RingAddress(flags=0, descriptors=_FIRST, used=_FIRST + 0x14000, available=_FIRST + 0x10000, log=0)


def parked_on(*at: RingAddress) -> tuple[GuestState, SentState]:
    """A guest with a ring for each place, and a parked back end that was told these places."""
    state = booted(len(at))
    state = replace(state, rings=tuple(ring.again for ring in state.rings))
    _, heard = reconcile(SentState(), state, Role.PARKED, SCRATCH, OFFER, lambda index: 0)
    return state, with_ring_addresses(heard, dict(enumerate(at)))


def test_which_places_are_parking_places() -> None:
    assert is_parking_address(PARKING)
    assert is_parking_address(CAPTURE)
    assert not is_parking_address(address(0))
    assert not is_parking_address(replace(PARKING, descriptors=SCRATCH_USER_ADDRESS - 1))
    assert not is_parking_address(None)


def test_a_parked_back_end_stays_on_its_capture_rings_until_they_are_taken_from_it() -> None:
    state, heard = parked_on(CAPTURE, PARKING, CAPTURE)
    assert heard.at({0: CAPTURE, 1: PARKING, 2: CAPTURE})
    assert reconcile(heard, state, Role.PARKED, SCRATCH, OFFER, lambda index: 0) == ([], heard)
    without = without_capture_rings(heard)
    out, after = reconcile(without, state, Role.PARKED, SCRATCH, OFFER, lambda index: 0)
    assert [one.data for one in out] == [messages.build_ring_address(index, PARKING) for index in (0, 2)]
    assert after == with_ring_addresses(heard, {0: PARKING, 2: PARKING})


def test_a_back_end_without_capture_rings_keeps_its_places() -> None:
    for role in (Role.PARKED, Role.OWNER):
        _, heard = reconcile(SentState(), booted(2), role, SCRATCH, OFFER, lambda index: 0)
        assert without_capture_rings(heard) is heard


def test_where_no_place_is_known_all_are_told() -> None:
    state, heard = parked_on(PARKING, CAPTURE)
    out, after = reconcile(unplaced(heard), state, Role.OWNER, SCRATCH, OFFER, lambda index: 0)
    assert [one.data for one in out] == [messages.build_ring_address(index, address(index)) for index in range(2)]
    assert after == with_ring_addresses(heard, places(state, Role.OWNER))


def test_places_of_some_rings_leave_all_else_as_it_was_heard() -> None:
    _, heard = parked_on(PARKING, PARKING)
    moved = with_ring_addresses(heard, {1: CAPTURE})
    assert moved.rings == (heard.rings[0], replace(heard.rings[1], address=CAPTURE))
    assert replace(moved, rings=heard.rings) == heard


def test_a_move_is_nothing_but_places_and_everything_else_is_more() -> None:
    state, heard = parked_on(PARKING, CAPTURE)
    assert only_places(heard, with_ring_addresses(heard, places(state, Role.OWNER)))
    assert only_places(heard, heard)
    disabled = replace(heard, rings=(heard.rings[0], replace(heard.rings[1], enabled=False)))
    for other in (disabled, replace(heard, features=1), replace(heard, rings=heard.rings[:1])):
        assert not only_places(heard, other)
        assert not only_places(other, heard)

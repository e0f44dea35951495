"""The record of a VM: what each message does to it, and that every descriptor has exactly one owner at any time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, ReplyDue, Ring, VringFd, apply_message, ring_parts
from ovs_hotswap.vhostuser.messages import Feature, Message, Request, RingAddress
from tests.unit.vhost_frames import OFFER, USER, FakeDescriptor, address, booted, fakes, guest_messages, message, told


def carried(got: Message) -> list[FakeDescriptor]:
    """The descriptors a message brings."""
    body = got.body
    if isinstance(body, messages.MemoryTable):
        found = [region.descriptor for region in body.regions]
    elif isinstance(body, messages.RingDescriptor | messages.DirtyLog | messages.OneDescriptor):
        found = [body.descriptor] if body.descriptor is not None else []
    else:
        found = []
    return [descriptor for descriptor in found if isinstance(descriptor, FakeDescriptor)]


class Descriptors(RuleBasedStateMachine):
    """Any valid messages in any order: each descriptor is in the record once, or has been handed out as surplus once,
    or is still the caller's because its message was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.state = GuestState()
        self.all: list[FakeDescriptor] = []
        self.surplus: list[int] = []
        self.refused: list[int] = []

    @rule(got=guest_messages())
    def say(self, got: Message) -> None:
        brought = carried(got)
        self.all += brought
        before = self.state
        try:
            received = apply_message(self.state, got, OFFER)
        except ProtocolError:
            self.refused += [descriptor.serial for descriptor in brought]
            assert self.state is before
            return
        self.state = received.state
        self.surplus += [descriptor.serial for descriptor in received.surplus]

    @invariant()
    def each_is_owned_once(self) -> None:
        kept = [descriptor.serial for descriptor in self.state.descriptors()]
        places = Counter(kept + self.surplus + self.refused)
        assert places == Counter(descriptor.serial for descriptor in self.all)
        assert not any(descriptor.closed for descriptor in self.all), "receive itself closes nothing"

    @invariant()
    def started_rings_have_all_they_need(self) -> None:
        for index in self.state.started:
            ring = self.state.rings[index]
            assert ring.size is not None
            assert ring.address is not None
            assert ring.kick.said


Descriptors.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestDescriptors = Descriptors.TestCase


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_that_were_not_offered_are_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match="bit 34"):
        told(GuestState(), messages.build_number(Request.SET_FEATURES, 1 << 34))
    narrow = Offer(1 << Feature.VERSION_1, 0, 1)
    with pytest.raises(ProtocolError, match="NET_MQ"):
        apply_message(GuestState(), message(messages.build_number(Request.SET_FEATURES, 1 << Feature.NET_MQ)), narrow)


def test_protocol_features_of_an_earlier_back_end_are_ignored_and_named() -> None:
    """As a front end says them that was restored, without asking first."""
    got = told(GuestState(), messages.build_number(Request.SET_PROTOCOL_FEATURES, 0x100F | 1 << 40))
    assert got.state.protocol_features == 0xF
    assert "INFLIGHT_SHMFD, bit 40 (0x10000001000)" in (got.remark or "")
    assert told(GuestState(), messages.build_number(Request.SET_PROTOCOL_FEATURES, 0xF)).remark is None
    for request in (Request.SET_INFLIGHT_FD, Request.SET_BACKEND_REQ_FD):
        descriptors = fakes(1)
        used = told(got.state, messages.build(request, bytes(20)), descriptors)
        assert (used.state, used.surplus) == (got.state, descriptors)


def test_protocol_features_that_cannot_be_ignored_are_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match="XEN_MMAP"):
        told(GuestState(), messages.build_number(Request.SET_PROTOCOL_FEATURES, 1 << 17))
    narrow = Offer(OFFER.features, 0, 1)
    log = message(messages.build_log(messages.DirtyLog(4096, 0, FakeDescriptor())), fakes(1))
    with pytest.raises(ProtocolError, match="LOG_SHMFD is not offered"):
        apply_message(GuestState(), log, narrow)


def test_dirty_logging_may_be_acknowledged_without_being_offered() -> None:
    narrow = Offer(0, 0, 1)
    got = apply_message(
        GuestState(), message(messages.build_number(Request.SET_FEATURES, 1 << Feature.LOG_ALL)), narrow
    )
    assert got.state.features == 1 << Feature.LOG_ALL


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.GET_FEATURES, OFFER.features),
        (Request.GET_PROTOCOL_FEATURES, OFFER.protocol_features),
        (Request.GET_QUEUE_NUM, OFFER.queue_pairs),
        (Request.GET_STATUS, 0),
    ],
)
def test_questions_are_answered_at_once(request_: Request, value: int) -> None:
    got = told(GuestState(), messages.build(request_))
    assert (got.answer, got.value, got.state) == (ReplyDue.NOW, value, GuestState())


def test_offers() -> None:
    wide = Offer(1 << 34 | 1 << 15, 1 << 5 | 1 << 3, 1000)
    assert wide.masked() == Offer(1 << 15, 1 << 3, 128)
    assert wide.common(Offer(1 << 15 | 1, 1 << 3, 2)) == Offer(1 << 15, 1 << 3, 2)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        messages.build_number(Request.SET_FEATURES, 0, messages.VERSION | messages.NEED_REPLY),
        messages.build_ring_value(Request.SET_VRING_ENABLE, 0, 1, messages.VERSION | messages.NEED_REPLY),
    ],
)
def test_acknowledgement_asked_for_is_owed(data: bytes) -> None:
    assert told(GuestState(), data).answer is ReplyDue.SETTLED


def test_question_that_also_asks_for_an_acknowledgement_has_one_answer() -> None:
    got = told(GuestState(), messages.build(Request.GET_FEATURES, flags=messages.VERSION | messages.NEED_REPLY))
    assert got.answer is ReplyDue.NOW


def test_log_base_is_always_acknowledged() -> None:
    got = told(GuestState(), messages.build_log(messages.DirtyLog(1, 0, FakeDescriptor())), fakes(1))
    assert got.answer is ReplyDue.SETTLED


def test_rarp_is_passed_on() -> None:
    got = told(GuestState(), messages.build_number(Request.SEND_RARP, 7))
    assert (got.answer, got.value) == (ReplyDue.RARP, 7)


# -- rings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [Request.SET_VRING_NUM, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE])
def test_ring_beyond_the_queue_pairs_offered_is_refused(request_: Request) -> None:
    last = 2 * OFFER.queue_pairs
    told(GuestState(), messages.build_ring_value(request_, last - 1, 1))
    with pytest.raises(ProtocolError, match=f"ring {last} of 4 queue pairs"):
        told(GuestState(), messages.build_ring_value(request_, last, 1))


def test_call_for_a_ring_beyond_the_queue_pairs_offered_is_refused() -> None:
    (held,) = fakes(1)
    with pytest.raises(ProtocolError, match="ring 8 of 4"):
        told(GuestState(), messages.build_ring_descriptor(Request.SET_VRING_CALL, 8, present=True), (held,))
    assert not held.closed


def test_ring_starts_with_its_kick_and_ends_with_get_base() -> None:
    state = booted(2)
    assert state.started == (0, 1)
    got = told(state, messages.build_ring_value(Request.GET_VRING_BASE, 1, 0))
    assert got.state.started == (0,)
    assert (got.answer, got.index, got.value) == (ReplyDue.BASE, 1, 7)
    assert len(got.surplus) == 2
    assert got.state.rings[1] == Ring(base=None, enabled=True, life=1)


def test_stopping_a_ring_that_never_was_answers_its_base() -> None:
    got = told(GuestState(), messages.build_ring_value(Request.GET_VRING_BASE, 3, 0))
    assert (got.answer, got.index, got.value, got.surplus) == (ReplyDue.BASE, 3, 0, ())


def test_kick_without_a_descriptor_starts_the_ring_too() -> None:
    got = told(booted(1), messages.build_ring_descriptor(Request.SET_VRING_KICK, 0, present=False))
    assert got.state.rings[0].kick == VringFd(True, None)
    assert got.state.started == (0,)
    assert len(got.surplus) == 1


def test_kick_before_size_and_address_is_refused() -> None:
    with pytest.raises(ProtocolError, match="ring 0 has no size or address"):
        told(GuestState(), messages.build_ring_descriptor(Request.SET_VRING_KICK, 0, present=False))


@pytest.mark.parametrize(
    ("at", "part"),
    [
        (RingAddress(0, USER - 1, USER, USER, 0), "descriptor table"),
        (RingAddress(0, USER, USER, 0, 0), "available ring"),
        (RingAddress(0, USER, USER + (1 << 20) - 2053, USER, 0), "used ring"),
        (RingAddress(0, 1 << 63, USER, USER, 0), "descriptor table"),
    ],
)
def test_ring_address_outside_shared_memory_is_refused(at: RingAddress, part: str) -> None:
    with pytest.raises(ProtocolError, match=part):
        told(booted(1), messages.build_ring_address(0, at))


def test_ring_may_end_with_its_region() -> None:
    used = USER + (1 << 20) - ring_parts(256)[2]
    told(booted(1), messages.build_ring_address(0, RingAddress(0, USER, used, USER, 0)))


@pytest.mark.parametrize("size", [1, 256, 32768])
def test_parts_of_a_ring_have_the_sizes_of_the_specification(size: int) -> None:
    assert ring_parts(size) == (16 * size, 2 + 2 + 2 * size + 2, 2 + 2 + 8 * size + 2)


def test_reset_owner_stops_every_ring() -> None:
    got = told(booted(4), messages.build(Request.RESET_OWNER))
    assert got.state.started == ()
    assert len(got.surplus) == 8
    assert not got.state.owned


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_new_memory_table_replaces_the_old_one() -> None:
    state = booted(1, regions=3)
    old = list(state.memory)
    new = message(messages.build_memory_table([old[0]]), (FakeDescriptor(),))
    got = apply_message(state, new, OFFER)
    assert [descriptor.serial for descriptor in got.surplus] == [region.descriptor.serial for region in old]
    assert len(got.state.memory) == 1


def test_overlapping_regions_are_refused() -> None:
    held = fakes(2)
    regions = [messages.Region(0, 8192, USER, 0, held[0]), messages.Region(1 << 32, 8192, USER + 4096, 0, held[1])]
    with pytest.raises(ProtocolError, match="region 1 overlaps"):
        told(GuestState(), messages.build_memory_table(regions), held)


@pytest.mark.parametrize(
    ("request_", "value"), [(Request.SET_STATUS, 256), (Request.NET_SET_MTU, 67), (Request.NET_SET_MTU, 65536)]
)
def test_values_out_of_range_are_refused(request_: Request, value: int) -> None:
    with pytest.raises(ProtocolError):
        told(GuestState(), messages.build_number(request_, value))


def test_status_is_remembered() -> None:
    state = told(GuestState(), messages.build_number(Request.SET_STATUS, 15)).state
    assert told(state, messages.build(Request.GET_STATUS)).value == 15


@pytest.mark.parametrize("request_", [Request.SET_VRING_ERR, Request.SET_LOG_FD])
def test_descriptors_that_nobody_needs_are_surplus(request_: Request) -> None:
    (held,) = fakes(1)
    data = (
        messages.build(request_)
        if request_ is Request.SET_LOG_FD
        else messages.build_ring_descriptor(request_, 0, present=True)
    )
    assert told(GuestState(), data, (held,)).surplus == (held,)


def test_addresses_of_the_helper_lie_in_its_region() -> None:
    """The strategies are of no use if every ring address they make is refused."""
    for ring in range(8):
        for shift in range(3):
            assert told(booted(8), messages.build_ring_address(ring, address(ring, shift))).state.rings[ring].address


def test_strategy_reaches_every_request() -> None:
    seen: set[Request] = set()

    @settings(max_examples=600, phases=[Phase.generate], database=None, derandomize=True)
    @given(guest_messages(), st.none())
    def collect(got: Message, _: None) -> None:
        seen.add(got.request)

    collect()
    assert set(Request) - seen <= {Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM}

"""The record of a VM: what each message does to it, and that every descriptor has exactly one owner at any time."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import (
    GuestState,
    Offer,
    ReplyDue,
    Ring,
    VringFd,
    apply_message,
    offer_to_guest,
    ring_parts,
)
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


@dataclass
class Heard:
    """What was said last of each thing, without any rule of the record's own."""

    said: dict[str, object] = field(default_factory=dict)
    rings: dict[int, dict[str, object]] = field(default_factory=lambda: {index: {} for index in range(8)})

    def take(self, got: Message) -> None:
        body, name = got.body, got.request.name
        if isinstance(body, messages.Number | messages.MemoryTable | messages.DirtyLog):
            self.said[name] = body
        elif got.request in (Request.SET_OWNER, Request.RESET_OWNER):
            self.said["owned"] = got.request is Request.SET_OWNER
        if isinstance(body, messages.RingValue | messages.RingPlace | messages.RingDescriptor):
            self.rings[body.index][name] = body
        for ring in self.rings.values() if got.request is Request.RESET_OWNER else [self.rings[got.ring or 0]]:
            if got.request in (Request.GET_VRING_BASE, Request.RESET_OWNER):
                kept = {"SET_VRING_ENABLE": ring["SET_VRING_ENABLE"]} if "SET_VRING_ENABLE" in ring else {}
                ring.clear()
                ring.update(kept)
            if got.request is Request.RESET_OWNER and "SET_VRING_ENABLE" in ring:
                ring["SET_VRING_ENABLE"] = messages.RingValue(0, 0)

    def number(self, name: str) -> int | None:
        body = self.said.get(name)
        assert body is None or isinstance(body, messages.Number)
        return None if body is None else body.value

    def value(self, index: int, name: str) -> int | None:
        body = self.rings[index].get(name)
        assert body is None or isinstance(body, messages.RingValue)
        return None if body is None else body.value


def check_record(state: GuestState, heard: Heard) -> None:
    assert state.features == heard.number("SET_FEATURES")
    assert state.protocol_features == heard.number("SET_PROTOCOL_FEATURES")
    assert (state.status, state.mtu) == (heard.number("SET_STATUS"), heard.number("NET_SET_MTU"))
    assert state.owned is heard.said.get("owned", False)
    assert messages.MemoryTable(state.memory) == heard.said.get("SET_MEM_TABLE", messages.MemoryTable(()))
    assert state.log == heard.said.get("SET_LOG_BASE")
    for index in range(8):
        ring, said = state.ring(index), heard.rings[index]
        assert ring.size == heard.value(index, "SET_VRING_NUM")
        enabled = heard.value(index, "SET_VRING_ENABLE")
        assert ring.enabled is (None if enabled is None else bool(enabled))
        at = said.get("SET_VRING_ADDR")
        assert ring.address == (at and getattr(at, "address", None))
        for line, name in ((ring.kick, "SET_VRING_KICK"), (ring.call, "SET_VRING_CALL")):
            assert line.said is (name in said)
            assert line.descriptor is getattr(said.get(name), "descriptor", None)


@given(st.lists(guest_messages(), max_size=30))
@example([message(messages.build(Request.SET_OWNER))])
@example([message(messages.build_ring_value(Request.SET_VRING_ENABLE, 1, 1)),
          message(messages.build(Request.RESET_OWNER))])  # fmt: skip
def test_the_record_is_what_was_said_last(said: list[Message]) -> None:
    state, heard = GuestState(), Heard()
    for got in said:
        try:
            state = apply_message(state, got, OFFER).state
        except ProtocolError:
            continue
        heard.take(got)
        check_record(state, heard)


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_that_were_not_offered_are_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match="bit 34"):
        told(GuestState(), messages.build_number(Request.SET_FEATURES, 1 << 34))
    narrow = Offer(1 << Feature.VERSION_1, 0, 1)
    with pytest.raises(ProtocolError, match="NET_MQ"):
        apply_message(GuestState(), message(messages.build_number(Request.SET_FEATURES, 1 << Feature.NET_MQ)), narrow)


def test_protocol_features_of_an_earlier_back_end_are_ignored_and_named() -> None:
    """A front end that was restored sends them without asking first."""
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
    ("before", "after", "again"),
    [
        (None, 0, 0), (None, 1, 1), (1, 1, 0), (1, 3, 1), (3, 1, 1),
        (1, 1 | 1 << Feature.LOG_ALL, 0), (1 | 1 << Feature.LOG_ALL, 1, 0), (1, 2 | 1 << Feature.LOG_ALL, 1),
    ],
)  # fmt: skip
def test_other_features_begin_the_rings_that_run_again(before: int | None, after: int, again: int) -> None:
    """A migration, which only has the pages marked that are written, begins none."""
    described = told(booted(2), messages.build_ring_value(Request.GET_VRING_BASE, 1, 0)).state
    state = told(replace(described, features=before), messages.build_number(Request.SET_FEATURES, after)).state
    assert state.features == after
    assert [ring.life for ring in state.rings] == [again, 1]


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
    assert isinstance(wide.masked().queue_pairs, int), "it is packed into a reply"
    assert wide.common(Offer(1 << 15 | 1, 1 << 3, 2)) == Offer(1 << 15, 1 << 3, 2)


offers = st.builds(Offer, st.integers(0, 255), st.integers(0, 255), st.integers(1, 128))


@given(st.lists(offers, min_size=1, max_size=3), st.integers(0, 255), st.none() | st.integers(1, 256))
@example([Offer(1, 1, 4), Offer(3, 3, 8)], 2, 2)
@example([Offer(1, 1, 4), Offer(3, 3, 8)], 2, 6)
@example([Offer(1, 1, 4), Offer(3, 3, 8)], 2, None)
def test_a_guest_is_offered_what_every_back_end_can_do_and_nothing_else(
    of: list[Offer], withheld: int, queues: int | None
) -> None:
    made = offer_to_guest(of, withheld, queues)
    for bit in range(9):
        assert made.features >> bit & 1 == (all(o.features >> bit & 1 for o in of) and not withheld >> bit & 1)
        assert made.protocol_features >> bit & 1 == all(o.protocol_features >> bit & 1 for o in of)
    least = min(o.queue_pairs for o in of)
    assert made.queue_pairs == (least if queues is None else min(least, queues))


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


@pytest.mark.parametrize(
    ("features", "enabled"),
    [
        (None, True),
        (0, True),
        (1 << 29 | 1 << 31, True),
        (1 << Feature.PROTOCOL_FEATURES, False),
        (OFFER.features, False),
    ],
)
def test_a_ring_of_which_nothing_is_said_is_enabled_without_protocol_features_only(
    features: int | None, *, enabled: bool
) -> None:
    state = GuestState(features=features, rings=(Ring(), Ring(enabled=False), Ring(enabled=True)))
    assert [state.enabled(index) for index in (0, 1, 2, 7)] == [enabled, False, True, enabled]


KICK = messages.build_ring_descriptor(Request.SET_VRING_KICK, 0, present=False)
DISABLE = messages.build_ring_value(Request.SET_VRING_ENABLE, 0, 0)
SIZE = messages.build_ring_value(Request.SET_VRING_NUM, 0, 256)
PLACE = messages.build_ring_value(Request.SET_VRING_BASE, 0, 9)
STOP = messages.build_ring_value(Request.GET_VRING_BASE, 0, 0)
RESET = messages.build_number(Request.SET_STATUS, 0)


@pytest.mark.parametrize(
    ("said", "life", "base"),
    [
        ([KICK], 0, 7),  # another kick for a ring that runs
        ([DISABLE, KICK], 1, None),  # it does not run, so it begins where the guest stands
        ([RESET, KICK], 1, None),
        ([SIZE, KICK], 1, None),  # described again
        ([SIZE, DISABLE, KICK], 2, None),
        ([DISABLE, PLACE, KICK], 1, 9),  # where its front end has said
        ([PLACE, SIZE, KICK], 2, 9),
        ([PLACE, KICK, SIZE, KICK], 2, None),  # which holds for one life
        ([PLACE, DISABLE, SIZE, KICK], 2, None),  # and for no description that is over
        ([STOP], 1, None),
        ([STOP, SIZE], 1, None),
    ],
)
def test_a_ring_that_begins_again_has_another_life(said: list[bytes], life: int, base: int | None) -> None:
    state = booted(1)
    for data in said:
        state = told(state, data).state
    assert (state.rings[0].life, state.rings[0].base) == (life, base)


@given(st.lists(st.sampled_from([KICK, DISABLE, SIZE, PLACE, STOP, RESET]), max_size=12))
def test_lives_are_counted_and_none_comes_back(said: list[bytes]) -> None:
    """A back end that serves a life that is over differs by this number alone from one that serves the present life."""
    state = booted(1)
    for data in said:
        before = state
        with contextlib.suppress(ProtocolError):  # a kick for a ring that was stopped
            state = told(state, data).state
        assert state.rings[0].life - before.rings[0].life in {0, 1}


def test_a_kick_or_an_enable_ends_the_description_of_a_ring() -> None:
    described = told(booted(1), SIZE).state
    assert described.rings[0].anew
    assert told(described, DISABLE).state.rings[0] == replace(described.rings[0], enabled=False, anew=False)
    kicked = told(booted(1), KICK).state
    again = told(told(kicked, SIZE).state, KICK).state.rings[0]
    assert again.anew is False
    assert again == replace(kicked.rings[0], life=1, base=None)


def test_stopping_a_ring_that_never_was_answers_its_base() -> None:
    got = told(GuestState(), messages.build_ring_value(Request.GET_VRING_BASE, 3, 0))
    assert (got.answer, got.index, got.value, got.surplus) == (ReplyDue.BASE, 3, 0, ())


def test_kick_without_a_descriptor_starts_the_ring_too() -> None:
    got = told(booted(1), messages.build_ring_descriptor(Request.SET_VRING_KICK, 0, present=False))
    assert got.state.rings[0].kick == VringFd(True, None)
    assert got.state.started == (0,)
    assert len(got.surplus) == 1


def test_kick_before_size_and_address_is_refused() -> None:
    ring = booted(1).rings[0]
    for known in (Ring(), Ring(size=ring.size), Ring(address=ring.address)):
        with pytest.raises(ProtocolError, match="ring 0 has no size or address"):
            told(GuestState(rings=(known,)), KICK)
    assert told(GuestState(rings=(Ring(size=ring.size, address=ring.address),)), KICK).state.started == (0,)


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
    with pytest.raises(ProtocolError, match=f"SET_VRING_ADDR: {part} of ring 0 at 0x"):
        told(booted(1), messages.build_ring_address(0, at))


def test_ring_may_end_with_its_region() -> None:
    used = USER + (1 << 20) - ring_parts(256)[2]
    told(booted(1), messages.build_ring_address(0, RingAddress(0, USER, used, USER, 0)))


@pytest.mark.parametrize(("bytes_left", "held"), [(14, True), (13, False)])
def test_a_ring_whose_size_is_not_said_yet_has_to_hold_one_entry(bytes_left: int, *, held: bool) -> None:
    stopped = told(booted(1), STOP).state
    data = messages.build_ring_address(0, RingAddress(0, USER, USER + (1 << 20) - bytes_left, USER, 0))
    with contextlib.nullcontext() if held else pytest.raises(ProtocolError, match="used ring"):
        told(stopped, data)


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


@pytest.mark.parametrize(
    ("request_", "value"),
    [(Request.SET_STATUS, 0), (Request.SET_STATUS, 255), (Request.NET_SET_MTU, 68), (Request.NET_SET_MTU, 65535)],
)
def test_values_at_the_ends_of_a_range_are_taken(request_: Request, value: int) -> None:
    state = told(GuestState(), messages.build_number(request_, value)).state
    assert (state.status if request_ is Request.SET_STATUS else state.mtu) == value


def test_a_log_is_taken_if_its_protocol_feature_is_offered_and_no_other_makes_up_for_it() -> None:
    bit = 1 << messages.ProtocolFeature.LOG_SHMFD
    data = messages.build_log(messages.DirtyLog(4096, 0, FakeDescriptor()))
    log = message(data, fakes(1))
    assert apply_message(GuestState(), log, Offer(0, bit, 1)).state.log is log.body
    with pytest.raises(ProtocolError, match="LOG_SHMFD is not offered"):
        apply_message(GuestState(), log, Offer(0, OFFER.protocol_features & ~bit, 1))


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

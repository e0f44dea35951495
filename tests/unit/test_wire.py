"""The codec: round trips, every class of malformed message, and that nothing but ProtocolError ever comes of one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import (
    DirtyLog,
    Empty,
    Feature,
    FrameReader,
    MemoryTable,
    Number,
    Region,
    Request,
    RingAddress,
    RingDescriptor,
    RingPlace,
    RingValue,
)
from tests.unit.vhost_frames import FakeDescriptor, fakes, frame, message

u64 = st.integers(0, (1 << 64) - 1)
ring_index = st.integers(0, messages.MAX_RINGS - 1)


# -- round trips -------------------------------------------------------------------------------------------------------


@given(u64)
def test_number_round_trip(value: int) -> None:
    got = message(messages.build_number(Request.SET_FEATURES, value))
    assert (got.request, got.need_reply, got.body) == (Request.SET_FEATURES, False, Number(value))


@given(ring_index, st.integers(0, 15))
@example(255, 15)
def test_ring_value_round_trip(index: int, power: int) -> None:
    got = message(
        messages.build_ring_value(Request.SET_VRING_NUM, index, 1 << power, messages.VERSION | messages.NEED_REPLY)
    )
    assert (got.need_reply, got.body) == (True, RingValue(index, 1 << power))


@given(ring_index, st.integers(0, 1), u64, u64, u64, u64)
def test_ring_address_round_trip(index: int, flags: int, a: int, b: int, c: int, d: int) -> None:
    at = RingAddress(flags, a, b, c, d)
    assert message(messages.build_ring_address(index, at)).body == RingPlace(index, at)


@given(st.sampled_from([Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]), ring_index)
def test_ring_descriptor_round_trip(request: Request, index: int) -> None:
    (descriptor,) = fakes(1)
    got = message(messages.build_ring_descriptor(request, index, present=True), (descriptor,))
    assert got.body == RingDescriptor(index, descriptor)
    assert message(messages.build_ring_descriptor(request, index, present=False)).body == RingDescriptor(index, None)


@given(st.lists(st.tuples(*[st.integers(1, 1 << 60)] * 4), min_size=1, max_size=messages.MAX_REGIONS))
def test_memory_table_round_trip(fields: list[tuple[int, int, int, int]]) -> None:
    held = fakes(len(fields))
    regions = tuple(Region(*numbers, each) for numbers, each in zip(fields, held, strict=True))
    got = message(messages.build_memory_table(regions), held)
    assert got.body == MemoryTable(regions)


@given(u64, u64)
def test_log_round_trip(size: int, offset: int) -> None:
    (descriptor,) = fakes(1)
    log = DirtyLog(size, offset, descriptor)
    assert message(messages.build_log(log), (descriptor,)).body == log


@pytest.mark.parametrize(
    "request_",
    [Request.GET_FEATURES, Request.SET_OWNER, Request.RESET_OWNER, Request.GET_QUEUE_NUM, Request.GET_STATUS],
)
def test_empty_round_trip(request_: Request) -> None:
    assert message(messages.build(request_)).body == Empty()


@given(u64)
def test_reply_round_trip(value: int) -> None:
    data = messages.reply(Request.GET_FEATURES, messages.U64.pack(value))
    assert messages.parse_reply(frame(data), Request.GET_FEATURES) == value


def test_replies_with_other_payloads() -> None:
    assert messages.parse_reply(frame(messages.reply(Request.SET_LOG_BASE)), Request.SET_LOG_BASE) is None
    base = messages.reply(Request.GET_VRING_BASE, messages.VRING_STATE.pack(3, 0xFFFF))
    assert messages.parse_reply(frame(base), Request.GET_VRING_BASE) == 0xFFFF


def test_layout_of_a_message_is_that_of_the_specification() -> None:
    """Bytes written out by hand: header of request, flags and size, then QEMU's ``vhost_vring_addr``."""
    data = messages.build_ring_address(5, RingAddress(1, 0x1000, 0x2000, 0x3000, 0x4000))
    words = "09000000 01000000 28000000 05000000 01000000"
    quads = "0010000000000000 0020000000000000 0030000000000000 0040000000000000"
    assert data == bytes.fromhex(words + quads)


def test_a_message_without_a_payload_is_its_header() -> None:
    assert messages.build(Request.GET_FEATURES) == bytes.fromhex("01000000 01000000 00000000")
    assert messages.reply(Request.SET_LOG_BASE) == bytes.fromhex("06000000 05000000 00000000")


def test_each_message_can_ask_for_an_acknowledgement() -> None:
    flags = messages.VERSION | messages.NEED_REPLY
    for data in (
        messages.build(Request.SET_OWNER, flags=flags),
        messages.build_number(Request.SET_FEATURES, 0, flags),
        messages.build_ring_value(Request.SET_VRING_ENABLE, 0, 1, flags),
        messages.build_ring_address(0, RingAddress(0, 0, 0, 0, 0), flags),
    ):
        assert message(data).need_reply


def test_layout_of_a_memory_table_is_that_of_the_specification() -> None:
    """Number of regions and padding, then of each region its guest address, size, user address and offset."""
    data = messages.build_memory_table([Region(0x1000, 0x2000, 0x3000, 0x4000, FakeDescriptor())])
    words = "05000000 01000000 28000000 01000000 00000000"
    quads = "0010000000000000 0020000000000000 0030000000000000 0040000000000000"
    assert data == bytes.fromhex(words + quads)


def test_requests_have_the_numbers_of_the_specification() -> None:
    assert [int(request) for request in Request] == [*range(1, 22), 32, 39, 40]
    named = {7: "SET_LOG_FD", 14: "SET_VRING_ERR", 21: "SET_BACKEND_REQ_FD", 32: "SET_INFLIGHT_FD", 39: "SET_STATUS"}
    assert {number: Request(number).name for number in named} == named


def test_feature_bits_are_those_of_the_specification() -> None:
    """Virtio 1.2, 5.1.3 and 6; the protocol features are those of vhost-user. Both travel to back ends as numbers."""
    assert messages.CARRIED_FEATURES == 0x9_7DFF_FFEF
    assert messages.CARRIED_PROTOCOL_FEATURES == 0x1_001F


def test_feature_names() -> None:
    assert messages.feature_names(1 << 15 | 1 << 34 | 1 << 32) == ["NET_MRG_RXBUF", "VERSION_1", "bit 34"]
    assert messages.feature_names(0) == []


@pytest.mark.parametrize("bit", [33, 34, 38, 40])
def test_features_that_cannot_be_carried_are_masked(bit: int) -> None:
    assert not messages.CARRIED_FEATURES >> bit & 1


@pytest.mark.parametrize("bit", [5, 8, 9, 10, 11, 12])
def test_protocol_features_that_cannot_be_carried_are_masked(bit: int) -> None:
    assert not messages.CARRIED_PROTOCOL_FEATURES >> bit & 1
    assert messages.CARRIED_FEATURES >> Feature.PROTOCOL_FEATURES & 1


# -- malformed messages ------------------------------------------------------------------------------------------------


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    head = struct.pack("<II", len(regions) if count is None else count, 0)
    return messages.build(Request.SET_MEM_TABLE, head + b"".join(struct.pack("<QQQQ", *fields) for fields in regions))


TOP = (1 << 64) - 1
GOOD = (0, 4096, 0, 0)


@pytest.mark.parametrize(
    ("data", "descriptors", "text"),
    [
        (messages.HEADER.pack(0, 1, 0), 0, "request 0 is not carried"),
        (
            messages.HEADER.pack(31, 1, 0),
            0,
            r"GET_INFLIGHT_FD \(request 31\) is not carried: .* INFLIGHT_SHMFD is not offered",
        ),
        (messages.HEADER.pack(44, 1, 0), 0, "request 44 is not carried"),
        (messages.HEADER.pack(TOP & 0xFFFFFFFF, 1, 0), 0, "not carried"),
        (messages.HEADER.pack(1, 5, 0), 0, "a reply"),
        (messages.build(Request.GET_FEATURES, bytes(8)), 0, "expected 0"),
        (messages.build(Request.SET_FEATURES, bytes(4)), 0, "expected 8"),
        (messages.build(Request.SET_FEATURES, bytes(16)), 0, "expected 8"),
        (messages.build(Request.SET_VRING_NUM, bytes(4)), 0, "expected 8"),
        (messages.build(Request.SET_VRING_ADDR, bytes(39)), 0, "expected 40"),
        (messages.build(Request.SET_VRING_KICK, b""), 1, "expected 8"),
        (messages.build(Request.SET_LOG_BASE, bytes(8)), 1, "expected 16"),
        (messages.build(Request.GET_FEATURES), 1, "expected none"),
        (messages.build_number(Request.SET_FEATURES, 0), 8, "expected none"),
        (messages.build_ring_value(Request.GET_VRING_BASE, 0, 0), 1, "expected none"),
        (messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True), 0, "0 descriptors"),
        (messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True), 2, "2 descriptors"),
        (messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=False), 1, "1 descriptors"),
        (messages.build(Request.SET_LOG_BASE, bytes(16)), 0, "expected 1"),
        (messages.build(Request.SET_LOG_FD), 0, "expected 1"),
        (messages.build(Request.SET_LOG_FD), 2, "expected 1"),
        (messages.build_ring_value(Request.SET_VRING_NUM, 256, 64), 0, "ring 256"),
        (messages.build_ring_value(Request.SET_VRING_ENABLE, 0xFFFFFFFF, 1), 0, "ring 4294967295"),
        (messages.build_ring_value(Request.SET_VRING_NUM, 0, 0), 0, "power of 2"),
        (messages.build_ring_value(Request.SET_VRING_NUM, 0, 3), 0, "power of 2"),
        (messages.build_ring_value(Request.SET_VRING_NUM, 0, 65536), 0, "power of 2"),
        (messages.build_ring_value(Request.SET_VRING_BASE, 0, 0x10000), 0, "16 bits"),
        (messages.build_ring_address(256, RingAddress(0, 0, 0, 0, 0)), 0, "ring 256"),
        (messages.build(Request.SET_MEM_TABLE, bytes(7)), 0, "too short"),
        (table(), 0, "0 regions"),
        (table(GOOD), 0, "1 regions with 0 descriptors"),
        (table(GOOD), 2, "1 regions with 2 descriptors"),
        (table(GOOD, count=2), 2, "40 bytes for 2 regions"),
        (table(*[GOOD] * 9), 9, "9 regions"),
        (table((0, 0, 0, 0)), 1, "region 0 is empty"),
        (table(GOOD, (TOP, 4096, 4096, 0)), 2, "region 1 is empty or wraps"),
        (table((0, 4096, TOP - 4095, 0)), 1, "wraps"),
        (table((0, 4096, 0, TOP - 1)), 1, "wraps"),
        (table((1 << 63, 1 << 63, 0, 0)), 1, "wraps"),
    ],
)
def test_malformed_message_is_refused_and_its_descriptors_stay_the_callers(
    data: bytes, descriptors: int, text: str
) -> None:
    held = fakes(descriptors)
    with pytest.raises(ProtocolError, match=text):
        message(data, held)
    assert not any(descriptor.closed for descriptor in held)


@given(
    st.sampled_from([*map(int, Request), 0, 31, 255, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=messages.MAX_PAYLOAD) | st.binary(min_size=8, max_size=8) | st.binary(min_size=40, max_size=40),
    st.integers(0, messages.MAX_REGIONS),
)
def test_parse_raises_nothing_but_protocol_error(request: int, flags: int, payload: bytes, count: int) -> None:
    descriptors = fakes(count)
    try:
        got = messages.parse(messages.Frame(request, flags, payload, descriptors))
    except ProtocolError:
        got = None
    assert not any(descriptor.closed for descriptor in descriptors)
    if got is not None and isinstance(got.body, RingValue | RingPlace | RingDescriptor):
        assert got.body.index < messages.MAX_RINGS


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (messages.build_number(Request.GET_FEATURES, 0), 0),
        (messages.reply(Request.GET_PROTOCOL_FEATURES, bytes(8)), 0),
        (messages.reply(Request.GET_FEATURES, bytes(4)), 0),
        (messages.reply(Request.GET_FEATURES, bytes(8)), 1),
    ],
)
def test_malformed_reply_is_refused(data: bytes, descriptors: int) -> None:
    with pytest.raises(ProtocolError):
        messages.parse_reply(frame(data, fakes(descriptors)), Request.GET_FEATURES)


@pytest.mark.parametrize("payload", [messages.VRING_STATE.pack(256, 0), messages.VRING_STATE.pack(0, 1 << 16)])
def test_base_out_of_range_in_a_reply_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.parse_reply(frame(messages.reply(Request.GET_VRING_BASE, payload)), Request.GET_VRING_BASE)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=64), st.sampled_from(Request))
def test_parse_reply_raises_nothing_but_protocol_error(
    request: int, flags: int, payload: bytes, expected: Request
) -> None:
    try:
        messages.parse_reply(messages.Frame(request, flags, payload, ()), expected)
    except ProtocolError:
        return
    assert request == expected
    assert flags & messages.REPLY


# -- frame reader ------------------------------------------------------------------------------------------------------


def cut(reader: FrameReader, stream: bytes, steps: list[int]) -> list[messages.Frame]:
    """Feed ``stream`` in pieces of ``steps`` bytes, never more than wanted."""
    frames, at, turn = [], 0, 0
    while at < len(stream):
        count = min(reader.wanted, steps[turn % len(steps)])
        got = reader.feed(stream[at : at + count], ())
        at += count
        turn += 1
        if got is not None:
            frames.append(got)
    return frames


@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFFFFFF), st.integers(0, 63).map(lambda bits: bits << 2 | 1), st.binary(max_size=300)
        ),
        max_size=6,
    ),
    st.lists(st.integers(1, 400), min_size=1),
)
@example([(1, 1, bytes(messages.MAX_PAYLOAD)), (2, 9, b"")], [messages.MAX_PAYLOAD])
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[int, int, bytes]], steps: list[int]
) -> None:
    stream = b"".join(messages.HEADER.pack(request, flags, len(payload)) + payload for request, flags, payload in sent)
    for pieces in (steps, [1]):
        reader = FrameReader()
        got = cut(reader, stream, pieces)
        assert [(f.request, f.flags, f.payload) for f in got] == sent
        assert not reader.half[0]
        assert reader.wanted == messages.HEADER.size


def test_idle_only_between_messages() -> None:
    reader = FrameReader()
    states = []
    for byte in messages.build_number(Request.SET_FEATURES, 1):
        reader.feed(bytes([byte]), ())
        states.append(not reader.half[0])
    assert states == [False] * 19 + [True]


def test_descriptors_belong_to_the_frame_they_came_with() -> None:
    reader = FrameReader()
    first, second = fakes(2)
    one = messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True)
    assert reader.feed(one[:12], (first,)) is None
    got = reader.feed(one[12:], ())
    assert got is not None
    assert got.descriptors == (first,)
    assert reader.feed(one[:12], ()) is None
    late = reader.feed(one[12:], (second,))
    assert late is not None
    assert late.descriptors == (second,)


@pytest.mark.parametrize(
    "header", [messages.HEADER.pack(1, 0, 0), messages.HEADER.pack(1, 2, 0), messages.HEADER.pack(1, 3, 0)]
)
def test_reader_refuses_other_versions(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="version"):
        FrameReader().feed(header, ())


def test_reader_refuses_oversized_payloads_before_reading_them() -> None:
    reader = FrameReader()
    (held,) = fakes(1)
    with pytest.raises(ProtocolError, match="at most 4096"):
        reader.feed(messages.HEADER.pack(5, 1, messages.MAX_PAYLOAD + 1), (held,))
    assert not held.closed
    reader.close()
    assert held.closed


def test_reader_refuses_too_many_descriptors_and_closes_each_once() -> None:
    reader = FrameReader()
    held = fakes(9)
    for k in range(8):
        reader.feed(b"\0", (held[k],))
    with pytest.raises(ProtocolError, match="9 descriptors"):
        reader.feed(b"\0", (held[8],))
    reader.close()
    reader.close()
    assert all(descriptor.closed for descriptor in held)


@given(st.binary(min_size=1, max_size=200))
def test_reader_raises_nothing_but_protocol_error(noise: bytes) -> None:
    reader = FrameReader()
    at = 0
    try:
        while at < len(noise):
            wanted = reader.wanted
            assert wanted >= 1
            reader.feed(noise[at : at + wanted], ())
            at += wanted
    except ProtocolError:
        pass


def test_region_arithmetic() -> None:
    area = Region(0, 100, 1000, 0, FakeDescriptor())
    assert area.holds(1000, 100)
    assert not area.holds(999, 2)
    assert not area.holds(1000, 101)
    assert area.overlaps(1099, 1)
    assert not area.overlaps(1100, 1)
    assert not area.overlaps(900, 100)

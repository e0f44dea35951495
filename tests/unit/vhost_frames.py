"""Shared by the tests of the vhost package: descriptors that know who closed them, and strategies for messages."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, MessageEffect, Offer, apply_message
from ovs_hotswap.vhostuser.messages import Message, Region, Request, RingAddress

_serials = itertools.count(1)
MEMORY = 1 << 20  # bytes of the region that all valid ring addresses lie in
USER = 0x7F00_0000_0000
OFFER = Offer(messages.CARRIED_FEATURES, messages.CARRIED_PROTOCOL_FEATURES, 4)


class FakeDescriptor:
    """Stands for a received descriptor. ``close`` twice is a fault."""

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.closed = False

    def fileno(self) -> int:
        return 1_000_000 + self.serial

    def detach(self) -> int:
        self.close()
        return self.fileno()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True

    def __repr__(self) -> str:
        return f"<descriptor {self.serial}>"


def fakes(count: int) -> tuple[FakeDescriptor, ...]:
    return tuple(FakeDescriptor() for _ in range(count))


def frame(data: bytes, descriptors: tuple[FakeDescriptor, ...] = ()) -> messages.Frame:
    """The frame that ``data`` is, without the reader."""
    request, flags, size = messages.HEADER.unpack_from(data)
    assert len(data) == messages.HEADER.size + size
    return messages.Frame(request, flags, data[messages.HEADER.size :], descriptors)


def message(data: bytes, descriptors: tuple[FakeDescriptor, ...] = ()) -> Message:
    return messages.parse(frame(data, descriptors))


def region(number: int = 0, size: int = MEMORY) -> Region:
    return Region(number << 32, size, USER + (number << 32), 0, FakeDescriptor())


def address(ring: int, shift: int = 0) -> RingAddress:
    """Ring ``ring`` of up to 256 entries in the first region; ``shift`` 0..7 moves it within its place."""
    start = USER + (ring * 8 + shift) * 0x3000
    return RingAddress(0, start, start + 0x2000, start + 0x1000, 0)


rings = st.integers(0, 7)
sizes = st.sampled_from([1, 2, 64, 256])


def _numbers(request: Request, values: st.SearchStrategy[int]) -> st.SearchStrategy[Message]:
    return values.map(lambda value: message(messages.build_number(request, value)))


def _ring_values(request: Request, values: st.SearchStrategy[int]) -> st.SearchStrategy[Message]:
    return st.builds(lambda index, value: message(messages.build_ring_value(request, index, value)), rings, values)


def _lines(request: Request) -> st.SearchStrategy[Message]:
    return st.builds(
        lambda index, present: message(messages.build_ring_descriptor(request, index, present=present), fakes(present)),
        rings,
        st.booleans(),
    )


def _tables(count: int) -> Message:
    regions = [region(number) for number in range(count)]
    return message(messages.build_memory_table(regions), fakes(count))


_addresses = st.builds(
    lambda index, shift: message(messages.build_ring_address(index, address(index, shift))), rings, st.integers(0, 2)
)
_plain = st.sampled_from(
    [Request.SET_OWNER, Request.RESET_OWNER, Request.GET_FEATURES, Request.GET_STATUS, Request.GET_QUEUE_NUM]
).map(lambda request: message(messages.build(request)))
_log = st.builds(lambda: message(messages.build_log(messages.DirtyLog(4096, 0, FakeDescriptor())), fakes(1)))
_unused = st.sampled_from([Request.SET_LOG_FD, Request.SET_BACKEND_REQ_FD, Request.SET_INFLIGHT_FD]).map(
    lambda request: message(messages.build(request), fakes(1))
)


def guest_messages() -> st.SearchStrategy[Message]:
    """A valid message as any QEMU may send it; what starts a ring comes oftener than the rest."""
    number, address_, kick = _ring_values(Request.SET_VRING_NUM, sizes), _addresses, _lines(Request.SET_VRING_KICK)
    return st.one_of(
        number, number, address_, address_, kick, kick, kick,
        _lines(Request.SET_VRING_CALL),
        _lines(Request.SET_VRING_ERR),
        _ring_values(Request.SET_VRING_BASE, st.integers(0, 0xFFFF)),
        _ring_values(Request.SET_VRING_ENABLE, st.integers(0, 1)),
        _ring_values(Request.GET_VRING_BASE, st.just(0)),
        st.integers(1, messages.MAX_REGIONS).map(_tables),
        _numbers(Request.SET_FEATURES, st.integers(0, (1 << 64) - 1).map(lambda bits: bits & OFFER.features)),
        _numbers(Request.SET_PROTOCOL_FEATURES, st.integers(0, 31)),
        _numbers(Request.SET_STATUS, st.integers(0, 255)),
        _numbers(Request.NET_SET_MTU, st.integers(68, 65535)),
        _numbers(Request.SEND_RARP, st.just(0x525400000001)),
        _plain,
        _log,
        _unused,
    )  # fmt: skip


def told(state: GuestState, data: bytes, descriptors: tuple[FakeDescriptor, ...] = ()) -> MessageEffect:
    return apply_message(state, message(data, descriptors), OFFER)


def booted(ring_count: int = 4, regions: int = 1, size: int = 256) -> GuestState:
    """A guest whose driver runs, with all its rings enabled."""
    state = GuestState()
    held = fakes(regions)
    table = [region(number) for number in range(regions)]
    steps: list[tuple[bytes, tuple[FakeDescriptor, ...]]] = [
        (messages.build_number(Request.SET_PROTOCOL_FEATURES, OFFER.protocol_features), ()),
        (messages.build(Request.SET_OWNER), ()),
        (messages.build_number(Request.SET_FEATURES, OFFER.features), ()),
        (messages.build_memory_table(table), held),
    ]
    for index in range(ring_count):
        steps += [
            (messages.build_ring_value(Request.SET_VRING_NUM, index, size), ()),
            (messages.build_ring_value(Request.SET_VRING_BASE, index, 7), ()),
            (messages.build_ring_address(index, address(index)), ()),
            (messages.build_ring_descriptor(Request.SET_VRING_KICK, index, present=True), fakes(1)),
            (messages.build_ring_descriptor(Request.SET_VRING_CALL, index, present=True), fakes(1)),
            (messages.build_ring_value(Request.SET_VRING_ENABLE, index, 1), ()),
        ]
    for data, descriptors in steps:
        state = told(state, data, descriptors).state
    return state

"""Frames that arrive while a VM's rings change hands: which of them neither side has delivered, and what they hold."""

from __future__ import annotations

import itertools
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import capture
from ovs_hotswap.vhostuser.capture import CapturedFrame, CaptureRings, parse_frames, undelivered
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.guest_memory import make_scratch
from ovs_hotswap.vhostuser.guest_state import GuestState, Ring, VringFd, ring_parts
from ovs_hotswap.vhostuser.messages import Feature, RingAddress
from ovs_hotswap.vhostuser.reconcile import PARKING, SCRATCH_GUEST_ADDRESS, SCRATCH_SIZE, SCRATCH_USER_ADDRESS

MODERN = 1 << Feature.VERSION_1
MERGEABLE = 1 << Feature.NET_MRG_RXBUF
frames = st.lists(st.binary(min_size=14, max_size=40), max_size=8)


@pytest.fixture
def scratch() -> Iterator[OwnedFd]:
    fd = make_scratch()
    yield fd
    fd.close()


def guest(*sizes: int) -> GuestState:
    ring = RingAddress(0, 1, 2, 3, 0)
    return GuestState(features=MODERN, rings=tuple(Ring(size, ring, kick=VringFd(said=True)) for size in sizes))


LONGEST = capture.buffer_size(None)


def deliver(scratch: OwnedFd, side: Side, index: int, size: int, payloads: list[bytes], buffer: int = LONGEST) -> None:
    """What a back end does: take the next available buffer, write a frame, return it."""
    at = capture.address(side, index, buffer)
    base = {name: getattr(at, name) - SCRATCH_USER_ADDRESS for name in ("descriptors", "available", "used")}
    fd = scratch.fileno()
    flags, available = struct.unpack("<HH", os.pread(fd, 4, base["available"]))
    assert flags == 1, "the guest's interrupts are not asked for"
    assert int.from_bytes(os.pread(fd, 2, base["available"] + 4 + 2 * size), "little") == 0x8000
    for payload in payloads:
        used = int.from_bytes(os.pread(fd, 2, base["used"] + 2), "little")
        assert (available - used) % 65536 <= size
        if used == available:
            return
        number = int.from_bytes(os.pread(fd, 2, base["available"] + 4 + 2 * (used % size)), "little")
        start, length, flags, _ = struct.unpack("<QIHH", os.pread(fd, 16, base["descriptors"] + 16 * number))
        assert flags == 2
        assert len(payload) <= length
        os.pwrite(fd, payload, start - SCRATCH_GUEST_ADDRESS)
        os.pwrite(fd, struct.pack("<II", number, len(payload)), base["used"] + 4 + 8 * (used % size))
        os.pwrite(fd, ((used + 1) % 65536).to_bytes(2, "little"), base["used"] + 2)


@given(frames, frames)
@example([b"twice" * 3, b"once" * 4, b"twice" * 3], [b"once" * 4] * 2 + [b"twice" * 3] * 3)
def test_undelivered_are_the_frames_that_both_caught(old: list[bytes], new: list[bytes]) -> None:
    found = Counter(
        each.frame for each in undelivered([CapturedFrame(f) for f in old], [CapturedFrame(f) for f in new])
    )
    assert found == Counter(old) & Counter(new)


def test_undelivered_keeps_the_new_sides_order() -> None:
    one, two, three = (CapturedFrame(bytes([n]) * 14) for n in range(3))
    assert undelivered([three, two, one], [one, three]) == [one, three]


def test_frames_travel_through_both_sides_rings(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(256, 256), Side.A)
    catch.arm()
    header = bytes(12)
    deliver(scratch, Side.A, 0, 256, [header + b"both" * 4, header + b"only old" * 2])
    deliver(scratch, Side.B, 0, 256, [header + b"only new" * 2, header + b"both" * 4])
    assert [each.frame for each in catch.undelivered()] == [b"both" * 4]


def test_each_frame_counts_whichever_rings_the_sides_chose_for_it(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(*[256] * 4), Side.A)
    catch.arm()
    one, two = (bytes(12) + bytes([n]) * 20 for n in (1, 2))
    deliver(scratch, Side.A, 0, 256, [one])
    deliver(scratch, Side.A, 2, 256, [two])
    deliver(scratch, Side.B, 0, 256, [two])
    deliver(scratch, Side.B, 2, 256, [one])
    assert [each.frame for each in catch.undelivered()] == [two[12:], one[12:]]


def test_rings_that_were_never_armed_have_caught_nothing(scratch: OwnedFd) -> None:
    """What an earlier move has left in their memory does not count."""
    earlier = CaptureRings(scratch, guest(256, 256), Side.A)
    earlier.arm()
    for side in Side:
        deliver(scratch, side, 0, 256, [bytes(12) + bytes(20)] * 256)
    earlier.arm()
    assert CaptureRings(scratch, guest(256, 256), Side.A).undelivered() == []


def test_rings_that_rested_are_rolled_again(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(256, 256), Side.A)
    catch.arm()
    frames = [bytes(12) + n.to_bytes(2, "big") * 10 for n in range(2 * capture.BUFFERS)]
    deliver(scratch, Side.B, 0, 256, frames)
    catch.unmap()
    catch.recycle()
    deliver(scratch, Side.B, 0, 256, frames[capture.BUFFERS :])
    deliver(scratch, Side.A, 0, 256, frames[capture.BUFFERS :])
    assert [each.frame for each in catch.undelivered()] == [each[12:] for each in frames[capture.BUFFERS :]]


def test_rings_are_those_of_a_guest_and_a_move_only_if_all_of_both_is_the_same() -> None:
    def catch(
        features: int | None = MODERN, sizes: tuple[int, ...] = (256, 256), old: Side = Side.A, mtu: int = 1500
    ) -> CaptureRings:
        return CaptureRings(OwnedFd(-1), replace(guest(*sizes), features=features), old, mtu)

    assert catch().same(catch())
    others = [catch(MERGEABLE), catch(None), catch(1), catch(sizes=(512, 256)), catch(old=Side.B), catch(mtu=9000)]
    assert not any(one.same(other) for one, other in itertools.combinations([catch(), *others], 2))


def test_only_the_parts_of_a_capture_ring_are_written(scratch: OwnedFd) -> None:
    """What lies between them, and the rings of other queues, stay as they are."""
    other = b"\xee" * capture.stride(2048)
    for at in (capture.address(side, index, 2048) for side in Side for index in (0, 2, 4)):
        os.pwrite(scratch.fileno(), other, at.descriptors - SCRATCH_USER_ADDRESS)
    capture.arm(scratch, Side.A, 2, 256, 2048)
    for side, index in itertools.product(Side, (0, 2, 4)):
        at = capture.address(side, index, 2048)
        now = bytearray(os.pread(scratch.fileno(), capture.stride(2048), at.descriptors - SCRATCH_USER_ADDRESS))
        if (side, index) == (Side.A, 2):
            for start, length in zip((at.descriptors, at.available, at.used), ring_parts(256), strict=True):
                first = start - at.descriptors
                now[first : first + length] = other[:length]
        assert now == other


def test_where_a_back_end_is_on_a_capture_ring_is_the_same_in_each_release() -> None:
    """A broker that takes over finds by it whether a back end waits on a capture ring of its predecessor's."""
    first, size = SCRATCH_USER_ADDRESS + (1 << 20), 64 << 20
    places = [RingAddress(0, at, at, at, 0) for at in (first - 1, first, first + size - 1, first + size)]
    assert [capture.is_place(at) for at in places] == [False, True, True, False]


@given(st.integers(1, 16), st.one_of(st.none(), st.integers(68, 9000)))
def test_the_capture_rings_of_a_vm_lie_where_they_reach(pairs: int, mtu: int | None) -> None:
    """So a back end that maps only this part of the scratch memory can be on each of them."""
    buffer, rings = capture.buffer_size(mtu), range(0, 2 * min(pairs, capture.PAIRS), 2)
    places = sorted(capture.address(side, index, buffer).descriptors for side in Side for index in rings)
    assert places[0] == SCRATCH_USER_ADDRESS + (1 << 20)
    assert all(later - earlier == capture.stride(buffer) for earlier, later in itertools.pairwise(places))
    assert places[-1] + capture.stride(buffer) == SCRATCH_USER_ADDRESS + capture.reach(pairs, mtu)
    assert capture.reach(pairs, mtu) <= capture.reach(None, None) <= SCRATCH_SIZE


def test_a_capture_ring_is_told_from_every_other_place() -> None:
    for side, index in itertools.product(Side, range(0, 16, 2)):
        assert capture.is_place(capture.address(side, index, LONGEST))
    end = SCRATCH_USER_ADDRESS + SCRATCH_SIZE
    for at in (PARKING, RingAddress(0, 1, 2, 3, 0), RingAddress(0, end, end, end, 0), None):
        assert not capture.is_place(at)


def test_only_the_memory_of_the_capture_rings_is_given_back(scratch: OwnedFd) -> None:
    os.pwrite(scratch.fileno(), b"hint", 0)
    capture.arm(scratch, Side.A, 0, 256, 2048)
    capture.free(scratch)
    assert os.pread(scratch.fileno(), 4, 0) == b"hint"
    assert capture.written(scratch) == 0


def test_arming_again_forgets_what_was_caught(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(256, 256), Side.A)
    catch.arm()
    for side in Side:
        deliver(scratch, side, 0, 256, [bytes(12) + b"x" * 20])
    catch.arm()
    assert catch.undelivered() == []


def test_a_full_ring_takes_no_more(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(256, 256), Side.A)
    catch.arm()
    many = [bytes(12) + n.to_bytes(2, "big") * 10 for n in range(capture.BUFFERS + 5)]
    for side in Side:
        deliver(scratch, side, 0, 256, many)
    assert len(catch.undelivered()) == capture.BUFFERS


@pytest.mark.parametrize("turns", [3, 400])
def test_the_new_sides_rings_hold_the_latest_frames(scratch: OwnedFd, turns: int) -> None:
    """However many went before: 400 turns are more than an index of 16 bits counts."""
    catch = CaptureRings(scratch, guest(512, 512), Side.A)
    catch.arm()
    numbers = iter(range(10**6))
    latest: list[bytes] = []
    for _ in range(turns):
        latest = [bytes(12) + next(numbers).to_bytes(4, "big") * 5 for _ in range(200)]
        deliver(scratch, Side.B, 0, 512, latest)
        catch.recycle()
    deliver(scratch, Side.A, 0, 512, [bytes(12) + bytes(20), *latest])
    assert [each.frame for each in catch.undelivered()] == [each[12:] for each in latest]


def test_memory_of_buffers_is_given_back(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(256, 256), Side.A)
    catch.arm()
    deliver(scratch, Side.B, 0, 256, [bytes(200)] * 256)
    assert os.fstat(scratch.fileno()).st_blocks > 256 * 8
    catch.undelivered()
    assert os.fstat(scratch.fileno()).st_blocks == 0


@pytest.mark.parametrize("mtu", [68, 1500, 2014, 2015, None])
@pytest.mark.parametrize("sizes", [(256, 256), (1, 1), (16, 16), (4096, 4096)])
def test_rings_take_no_more_memory_than_is_needed_for_an_mtu(
    scratch: OwnedFd, mtu: int | None, sizes: tuple[int, ...]
) -> None:
    """Whatever arrives: each buffer is filled to its end, again and again."""
    catch = CaptureRings(scratch, guest(*sizes), Side.A, mtu)
    catch.arm()
    longest = capture.buffer_size(mtu)
    assert longest >= 34 + (capture.LONGEST_MTU if mtu is None else mtu)
    for _ in range(2):
        for side in Side:
            for index in catch.places(side):
                deliver(scratch, side, index, sizes[index], [bytes([1]) * longest] * 256, longest)
        catch.recycle()
    needed = capture.needed_by(guest(*sizes), mtu)
    assert 0 < capture.written(scratch) <= needed
    if sizes[0] <= capture.BUFFERS:  # nearly all of it: no VM waits for room that none takes
        assert capture.written(scratch) >= needed - 2 * 4096
    catch.undelivered()
    assert capture.written(scratch) == 0


@pytest.mark.parametrize(("mtu", "pages"), [(68, 0.5), (1500, 0.5), (2014, 0.5), (2015, 1), (9000, 2.5), (None, 2.5)])
def test_a_buffer_is_as_many_half_pages_as_a_frame_of_the_mtu_needs(mtu: int | None, pages: float) -> None:
    assert capture.buffer_size(mtu) == pages * 4096


def test_a_ring_smaller_than_the_buffers(scratch: OwnedFd) -> None:
    catch = CaptureRings(scratch, guest(16, 16), Side.B)
    catch.arm()
    for side in Side:
        deliver(scratch, side, 0, 16, [bytes(12) + bytes([n]) * 20 for n in range(20)])
    assert len(catch.undelivered()) == 16


def test_places_are_receive_rings_that_overlap_nothing() -> None:
    state = guest(*[4096] * 16)
    places = [CaptureRings(OwnedFd(-1), state, Side.A).places(side) for side in Side]
    assert [sorted(each) for each in places] == [list(range(0, 16, 2))] * 2
    starts = sorted(at.descriptors for each in places for at in each.values())
    assert starts[0] >= PARKING.used + 6 + 8 * 32768
    assert all(later - earlier == capture.stride(LONGEST) for earlier, later in itertools.pairwise(starts))


def test_a_ring_too_large_or_beyond_the_pairs_is_left_out() -> None:
    assert CaptureRings(OwnedFd(-1), guest(8192, 256), Side.A).places(Side.A) == {}
    assert 16 not in CaptureRings(OwnedFd(-1), guest(*[256] * 18), Side.A).places(Side.A)


def test_parts_of_a_capture_ring_do_not_overlap() -> None:
    at = capture.address(Side.B, 14, LONGEST)
    size = capture.MAX_RING
    assert at.descriptors + 16 * size <= at.available
    assert at.available + 6 + 2 * size <= at.used
    assert at.used + 6 + 8 * size <= at.descriptors + 0x20000
    assert capture.stride(LONGEST) == 0x20000 + capture.BUFFERS * LONGEST


PACKET = struct.Struct("<BBHHHH")


@st.composite
def caught_frames(draw: st.DrawFn, features: int) -> tuple[list[bytes], list[CapturedFrame]]:
    """What a back end puts into the buffers of a guest with these features, and the frames that it stands for."""
    filled: list[bytes] = []
    found: list[CapturedFrame] = []
    for parts in draw(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=5)):
        parts = parts if features & MERGEABLE else parts[:1]
        gso = draw(st.integers(0, 4))
        # Without mergeable buffers, the driver does not look at the number; with them, 0 counts as 1.
        span = (len(parts) if len(parts) > 1 else draw(st.integers(0, 1))) if features & MERGEABLE else draw(
            st.integers(0, 3))  # fmt: skip
        header = PACKET.pack(0, gso, 0, 0, 0, 0) + (span.to_bytes(2, "little") if features else b"")
        filled += [header + parts[0], *parts[1:]]
        found.append(CapturedFrame(b"".join(parts), segments=gso != 0))
        filled += draw(st.lists(st.binary(max_size=len(header) - 1), max_size=2))  # no frame: no room for a header
    return filled, found


@given(st.data(), st.sampled_from([0, MODERN, MERGEABLE, MODERN | MERGEABLE]))
def test_frames_come_out_of_the_buffers_as_they_were_put_there(data: st.DataObject, features: int) -> None:
    filled, found = data.draw(caught_frames(features))
    assert parse_frames(filled, features) == found


def test_a_header_that_claims_more_buffers_than_a_frame_can_have_takes_no_other_frames() -> None:
    """65535 bytes at most, in buffers of 2048 bytes at least."""
    buffers = [PACKET.pack(0, 0, 0, 0, 0, 0) + b"\xff\xff", *[b"x"] * 32]
    following = PACKET.pack(0, 0, 0, 0, 0, 0) + b"\1\0next"
    assert [each.frame for each in parse_frames([*buffers, following], MERGEABLE)] == [b"x" * 32, b"next"]


def ones_sum(data: bytes) -> int:
    """The sum of RFC 1071 as a remainder, in which 0 and 0xffff are the same."""
    return sum(byte << (0 if at % 2 else 8) for at, byte in enumerate(data)) % 0xFFFF


@given(st.binary(max_size=40), st.integers(0, 45), st.integers(0, 22).map(lambda half: 2 * half))
@example(b"\xff\xff", 0, 0)  # the sum is 0xffff: its complement, 0, would say that there is no checksum
@example(bytes(10), 4, 4)  # the field ends with the frame
@example(bytes(10), 4, 6)  # and lies behind it
def test_a_checksum_is_finished_where_the_frame_has_it(frame: bytes, start: int, offset: int) -> None:
    """The field holds the sum of the pseudo header; with it, all that is summed up comes to nothing."""
    (found,) = parse_frames([PACKET.pack(1, 0, 0, 0, start, offset) + b"\0\0" + frame], MODERN)
    at = start + offset
    if at + 2 > len(frame):
        assert found.frame == frame
        return
    assert (found.frame[:at], found.frame[at + 2 :]) == (frame[:at], frame[at + 2 :])
    assert found.frame[at : at + 2] != b"\0\0"
    assert (ones_sum(frame[at : at + 2]) + ones_sum(found.frame[start:])) % 0xFFFF == 0
    untouched = PACKET.pack(0, 0, 0, 0, start, offset) + b"\0\0" + frame
    assert parse_frames([untouched], MODERN)[0].frame == frame


def test_a_merged_frame_spans_buffers() -> None:
    header = struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 2)
    found = parse_frames([header + b"first", b"second", struct.pack("<BBHHHHH", *[0] * 6, 1) + b"next"], MERGEABLE)
    assert [each.frame for each in found] == [b"firstsecond", b"next"]


def test_a_legacy_header_has_ten_bytes() -> None:
    assert parse_frames([bytes(10) + b"frame"], 0) == [CapturedFrame(b"frame")]


def test_a_gso_frame_is_marked() -> None:
    assert parse_frames([struct.pack("<BBHHHHH", 0, 1, 0, 0, 0, 0, 0) + b"large"], MODERN)[0].segments


def test_a_checksum_left_to_the_device_is_finished() -> None:
    """An UDP datagram whose checksum field holds the sum of the pseudo header (virtio 1.2, 5.1.6.2)."""
    source, target, payload = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), b"hello"
    length = 8 + len(payload)
    pseudo = source + target + struct.pack(">BBH", 0, 17, length)
    partial = sum(struct.unpack(">6H", pseudo))
    partial = (partial & 0xFFFF) + (partial >> 16)
    udp = struct.pack(">HHHH", 1000, 2000, length, partial) + payload
    frame = bytes(34) + udp
    header = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0)
    (found,) = parse_frames([header + frame], MODERN)
    whole = pseudo + found.frame[34:] + b"\0"
    total = sum(struct.unpack(f">{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


@given(st.lists(st.binary(max_size=64), max_size=8), st.sampled_from([0, MODERN, MERGEABLE]))
def test_whatever_lies_in_the_buffers_is_parsed(filled: list[bytes], features: int) -> None:
    parse_frames(filled, features)

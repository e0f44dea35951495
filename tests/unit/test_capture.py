"""Frames that arrive while a VM's rings change hands: which were delivered by nobody, and what they hold."""

from __future__ import annotations

import itertools
import os
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import capture
from ovs_hotswap.vhostuser.capture import CapturedFrame, CaptureRings, parse_frames, undelivered
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.guest_memory import make_scratch
from ovs_hotswap.vhostuser.guest_state import GuestState, Ring, VringFd
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


def deliver(scratch: OwnedFd, side: Side, index: int, size: int, payloads: list[bytes]) -> None:
    """What a back end does: take the next available buffer, write a frame, return it."""
    at = capture.address(side, index)
    base = {name: getattr(at, name) - SCRATCH_USER_ADDRESS for name in ("descriptors", "available", "used")}
    fd = scratch.fileno()
    available = int.from_bytes(os.pread(fd, 2, base["available"] + 2), "little")
    for payload in payloads:
        used = int.from_bytes(os.pread(fd, 2, base["used"] + 2), "little")
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
        catch.roll()
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
@pytest.mark.parametrize("sizes", [(256, 256), (16, 16), (4096, 4096)])
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
                deliver(scratch, side, index, sizes[index], [bytes([1]) * longest] * 256)
        catch.roll()
    assert 0 < capture.written(scratch) <= capture.needed_by(guest(*sizes), mtu)
    catch.undelivered()
    assert capture.written(scratch) == 0


def test_a_buffer_for_the_usual_mtu_is_half_a_page() -> None:
    assert capture.buffer_size(1500) == 2048


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
    assert starts[-1] + capture.STRIDE <= SCRATCH_USER_ADDRESS + SCRATCH_SIZE
    assert all(later - earlier == capture.STRIDE for earlier, later in itertools.pairwise(starts))


def test_a_ring_too_large_or_beyond_the_pairs_is_left_out() -> None:
    assert CaptureRings(OwnedFd(-1), guest(8192, 256), Side.A).places(Side.A) == {}
    assert 16 not in CaptureRings(OwnedFd(-1), guest(*[256] * 18), Side.A).places(Side.A)


def test_parts_of_a_capture_ring_do_not_overlap() -> None:
    at = capture.address(Side.B, 14)
    size = capture.MAX_RING
    assert at.descriptors + 16 * size <= at.available
    assert at.available + 6 + 2 * size <= at.used
    assert at.used + 6 + 8 * size <= at.descriptors + 0x20000
    assert 0x20000 + capture.BUFFERS * capture.buffer_size(None) <= capture.STRIDE


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

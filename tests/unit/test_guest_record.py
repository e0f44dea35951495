"""What simulated guests record: frames, losses, gaps."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.guests import FleetSpec, RemoteHost, VmSpec, frames
from bench.guests.plan import NOBODY, REMOTE
from bench.guests.record import Events, Gap, Log, Received, Ticks, Timeline

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")


@given(st.lists(st.integers(0, 30), max_size=60))
def test_lost_and_doubled_are_exact(arrived: list[int]) -> None:
    """Whatever comes in whatever order."""
    got = Received()
    for sequence in arrived:
        got.saw(sequence)
    assert got.count == len(arrived)
    assert got.doubled == len(arrived) - len(set(arrived))
    assert got.lost(31) == 31 - len(set(arrived))


def test_reordered_frames_are_not_lost() -> None:
    got = Received()
    for sequence in (0, 2, 1, 3):
        got.saw(sequence)
    assert (got.reordered, got.doubled, got.lost(4)) == (1, 0, 0)


@pytest.mark.parametrize("header", [0, 10, 12])
@pytest.mark.parametrize("size", [frames.SHORTEST, 128, 1514])
def test_a_frame_says_what_was_written(header: int, size: int) -> None:
    writer = frames.Writer(300, 3, MACS, size, header)
    for sequence, now in ((0, 5), (1 << 40, 1 << 62)):
        frame = memoryview(bytes(writer.make(sequence, now)))
        assert len(frame) == header + size
        assert frames.read(frame[header:]) == (sequence, now, 300, 3)


def test_streams_differ_in_their_filler() -> None:
    """So that a buffer of another stream behind the right fields would be noticed."""
    fillers = {bytes(frames.Writer(vm, queue, MACS, 200, 0).make(0, 0)[70:190]) for vm in (0, 1) for queue in (0, 1)}
    assert len(fillers) == 4


def test_each_flipped_bit_of_a_payload_is_noticed() -> None:
    frame = frames.Writer(1, 0, MACS, 80, 0).make(7, 7)
    for at, bit in itertools.product(range(frames.HEADERS, 80), range(8)):
        changed = bytearray(frame)
        changed[at] ^= 1 << bit
        with pytest.raises(frames.Broken):
            frames.read(memoryview(changed))


def test_the_headers_are_right() -> None:
    """The checksum over a right IPv4 header, its own field included, is 0 (RFC 1071)."""
    frame = bytes(frames.Writer(1, 2, MACS, 128, 0).make(0, 0))
    assert frame[:14].hex() == "525400000002" + "525400000001" + "0800"
    words = [int.from_bytes(frame[at : at + 2], "big") for at in range(14, 34, 2)]
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert int.from_bytes(frame[16:18], "big") == 128 - 14
    assert int.from_bytes(frame[38:40], "big") == 128 - 34


@pytest.mark.parametrize("frame", [b"", bytes(60), bytes(12) + b"\x86\xdd" + bytes(100)])
def test_frames_of_others_are_told(frame: bytes) -> None:
    assert frames.read(memoryview(frame)) is None


def timeline(*times: int, origins: tuple[int, ...] | None = None) -> Timeline:
    return Timeline(np.array(times, np.int64), np.array(origins or times, np.int64))


def test_gaps() -> None:
    line = timeline(10, 20, 50, 60)
    assert line.gaps().tolist() == [10, 30, 10]
    assert line.largest(0, 100) == Gap(20, 50)
    assert line.largest(0, 20) == Gap(10, 20)
    assert line.largest(30, 40) == Gap(20, 50)
    assert line.largest(50, 55) == Gap(50, 60)
    assert timeline(10).largest(0, 100) is None


@pytest.mark.parametrize(
    ("instant", "gap"), [(9, None), (10, Gap(10, 20)), (15, Gap(10, 20)), (20, Gap(20, 50)), (60, None)]
)
def test_the_gap_that_an_instant_lies_in(instant: int, gap: Gap | None) -> None:
    assert timeline(10, 20, 50, 60).spanning(instant) == gap


def test_the_first_frame_from_an_instant_on_is_one_sent_after_it() -> None:
    """One that was on its way before does not count, though it comes after."""
    line = timeline(10, 20, 50, 60, origins=(9, 14, 15, 55))
    assert line.first_from(15) == 50
    assert line.first_from(56) is None
    assert line.latencies().tolist() == [1, 6, 35, 5]


def test_events_are_told_apart_by_ring() -> None:
    log = Log()
    for number, ring in enumerate((0, 1, 2, 3, 4, 7)):
        log.add(ring, 100 + number, number)
    events = Events.of(log.take(), rings=4)
    assert events.received(0).times.tolist() == [100, 102]
    assert events.taken(0).times.tolist() == [101, 103]
    assert events.received(1).times.tolist() == [104]
    assert events.taken(1).origins.tolist() == [5]
    assert len(Events.of(log.take(), 4)) == 0


def test_ticks() -> None:
    ticks = Ticks(blind_ns=1_000_000)
    for now in (1_000_000, 1_020_000, 1_040_000, 1_060_000, 4_000_000):
        ticks.note(now)
    assert ticks.blind == [(1_060_000, 4_000_000)]
    assert ticks.quantile_us(0.5) == 30.0
    assert ticks.quantile_us(1.0) == 2950.0


@pytest.mark.parametrize(
    ("vms", "remote", "targets"),
    [
        (1, 1, (REMOTE,)),
        (2, 0, (1, 0)),
        (4, 0, (2, 3, 0, 1)),
        (3, 0, (1, 0, NOBODY)),
        (5, 1, (REMOTE, 3, 4, 1, 2)),
    ],
)
def test_whom_the_vms_send_to(vms: int, remote: int, targets: tuple[int, ...]) -> None:
    named = tuple(VmSpec(f"vm{k}", MACS[0], Path("/nowhere")) for k in range(vms))
    host = RemoteHost("namespace", "vxlan100", MACS[1])
    assert FleetSpec(named, remote=host, remote_vms=remote).targets == targets
    assert FleetSpec(named, remote=host, remote_vms=remote, features=0).header == 10

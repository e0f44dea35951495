"""What the pings' figures are made of: whatever was sent, answered late, lost or doubled, the sums are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import (
    SEQUENCES,
    Cursor,
    Pings,
    PingStats,
    Reply,
    Span,
    Stream,
    missing,
    parse,
    quantile,
    spans,
    statistics,
    unwrap,
)
from ovs_hotswap.system import System

STREAM = Stream("vm1", "remote", Path("unused"))
INTERVAL = 10.0


def line(sequence: int, rtt: float = 1.0, *, doubled: bool = False) -> bytes:
    text = f"64 bytes from 10.100.0.2: seq={sequence % SEQUENCES} ttl=64 time={rtt:.3f} ms"
    return (text + (" (DUP!)" if doubled else "") + "\n").encode()


def text(*sequences: int) -> bytes:
    return b"".join(line(sequence) for sequence in sequences)


def test_parse_of_what_busybox_prints() -> None:
    printed = (
        b"run\n"
        b"PING 10.100.0.2 (10.100.0.2): 56 data bytes\n"
        b"64 bytes from 10.100.0.2: seq=0 ttl=64 time=3.214 ms\n"
        b"64 bytes from 10.100.0.2: seq=1 ttl=64 time=0.700 ms\n"
        b"64 bytes from 10.100.0.2: seq=1 ttl=64 time=1.100 ms (DUP!)\n"
        b"run\n"
        b"64 bytes from 10.100.0.2: seq=4 ttl=64 time=12.345 ms\n"
    )
    assert parse(printed, Cursor()) == (
        [Reply(1, 0, 3.214), Reply(1, 1, 0.7), Reply(1, 1, 1.1), Reply(2, 4, 12.345)],
        Cursor(2, 4),
    )


@given(st.binary())
def test_parse_takes_any_bytes(noise: bytes) -> None:
    found, cursor = parse(noise, Cursor())
    assert cursor.run >= 0
    assert len(found) <= noise.count(b"seq=")


@given(st.integers(0, 10**7), st.integers(-30_000, 30_000))
def test_unwrap_finds_the_nearest(near: int, step: int) -> None:
    assert unwrap((near + step) % SEQUENCES, near) == near + step


@given(st.integers(0, 3 * SEQUENCES), st.lists(st.integers(1, 1000), max_size=200))
def test_parse_does_not_wrap(start: int, steps: list[int]) -> None:
    sequences = [start]
    for step in steps:
        sequences.append(sequences[-1] + step)
    found, cursor = parse(text(*sequences), Cursor(0, start - 1))
    assert [reply.sequence for reply in found] == sequences
    assert cursor == Cursor(0, sequences[-1])


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of one request: its answers' delays in intervals; none is a loss."""

    answers: tuple[int, ...]


FATES = st.lists(st.builds(Fate, st.lists(st.integers(0, 5), max_size=3).map(tuple)), min_size=1, max_size=120)


@given(FATES, st.data())
def test_every_request_between_the_marks_is_counted_once(fates: list[Fate], data: st.DataObject) -> None:
    """The requests are sent and answered in time; two marks cut the log anywhere."""
    events = sorted((n + delay, n) for n, fate in enumerate(fates) for delay in fate.answers)
    log = [line(n) for _, n in events]
    first = data.draw(st.integers(0, len(log)))
    second = data.draw(st.integers(first, len(log)))

    before, start = parse(b"".join(log[:first]), Cursor())
    during, stop = parse(b"".join(log[first:second]), start)
    wanted = spans(start, during, stop, (0, 0))
    found, _ = parse(b"".join(log[first:]), start)
    stats = statistics(STREAM, wanted, before, found, INTERVAL)

    low = max((n for _, n in events[:first]), default=-1) + 1
    high = max((n for _, n in events[:second]), default=-1)
    answered_later = [n for _, n in events[first:] if low <= n <= high]
    assert stats.sent == max(0, high - low + 1)
    assert stats.received == len(set(answered_later))
    assert stats.lost == stats.sent - stats.received == missing(wanted, found)
    assert stats.duplicated == len(answered_later) - stats.received


@given(FATES, st.data())
def test_adjoining_intervals_add_up(fates: list[Fate], data: st.DataObject) -> None:
    events = sorted((n + delay, n) for n, fate in enumerate(fates) for delay in fate.answers)
    log = [line(n) for _, n in events]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), min_size=3, max_size=3)))

    def sent(first: int, second: int) -> int:
        _, start = parse(b"".join(log[:first]), Cursor())
        during, stop = parse(b"".join(log[first:second]), start)
        return sum(span.last - span.first + 1 for span in spans(start, during, stop, (0, 0)))

    assert sent(cuts[0], cuts[1]) + sent(cuts[1], cuts[2]) == sent(cuts[0], cuts[2])


def figures(before: list[Reply], found: list[Reply], *wanted: Span) -> PingStats:
    return statistics(STREAM, list(wanted), before, found, INTERVAL)


def test_gap_of_an_undisturbed_stream_is_the_interval() -> None:
    found = [Reply(1, n, 1.0) for n in range(5, 50)]
    assert figures([Reply(1, 4, 1.0)], found, Span(1, 5, 49)).longest_gap_ms == pytest.approx(INTERVAL)


def test_lost_requests_make_a_gap() -> None:
    found = [Reply(1, n, 1.0) for n in range(10) if n not in (4, 5, 6)]
    stats = figures([], found, Span(1, 0, 9))
    assert (stats.sent, stats.received, stats.lost) == (10, 7, 3)
    assert stats.longest_gap_ms == pytest.approx(4 * INTERVAL)


def test_late_answers_make_a_gap_without_loss() -> None:
    """Three requests wait for 25, 15 and 5 ms and are answered together."""
    found = [Reply(1, n, {3: 25.0, 4: 15.0, 5: 5.0}.get(n, 1.0)) for n in range(10)]
    stats = figures([], found, Span(1, 0, 9))
    assert stats.lost == 0
    assert stats.longest_gap_ms == pytest.approx(34.0)  # from 2 x 10 + 1 to 3 x 10 + 25
    assert (stats.rtt_p50_ms, stats.rtt_p99_ms, stats.rtt_max_ms) == (1.0, 25.0, 25.0)


def test_gap_may_begin_before_the_first_mark_and_end_after_the_last_answer() -> None:
    assert figures([Reply(1, 2, 1.0)], [Reply(1, 9, 1.0)], Span(1, 3, 9)).longest_gap_ms == pytest.approx(70.0)
    assert figures([], [Reply(1, 0, 0.0)], Span(1, 0, 50)).longest_gap_ms == pytest.approx(500.0)
    assert figures([], [], Span(1, 0, 5)).longest_gap_ms is None


def test_a_new_run_is_counted_from_its_beginning() -> None:
    before, start = parse(b"run\n" + text(0, 1, 2), Cursor())
    during, stop = parse(text(3, 4) + b"run\n" + text(0, 2), start)
    wanted = spans(start, during, stop, (0, 0))
    assert wanted == [Span(1, 3, 4), Span(2, 0, 2)]
    assert statistics(STREAM, wanted, before, during, INTERVAL).lost == 1


def test_a_run_without_any_answer_is_silent() -> None:
    _, start = parse(b"run\n" + text(0, 1), Cursor())
    during, stop = parse(b"run\n", start)
    assert spans(start, during, stop, (0, 25)) == [Span(1, 2, 1), Span(2, 0, 24)]


def test_silence_before_the_first_mark_is_not_of_the_interval() -> None:
    _, start = parse(text(0, 1, 2), Cursor())
    during, stop = parse(text(60, 61), start)
    assert spans(start, during, stop, (40, 0)) == [Span(0, 43, 61)]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_quantile_is_the_nearest_rank(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) * (1 - 1e-9)


def test_quantile_of_nothing() -> None:
    assert quantile([], 0.5) is None


class Clock(System):
    """A clock that only ``sleep`` moves; ``at`` acts on files when a time has come."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm1-remote.pings"


def collector(path: Path, clock: Clock) -> Pings:
    return Pings([Stream("vm1", "remote", path)], INTERVAL, clock)


def append(path: Path, more: bytes) -> None:
    with path.open("ab") as file:
        file.write(more)


def test_between_marks_of_a_file(path: Path) -> None:
    clock = Clock()
    pings = collector(path, clock)
    append(path, b"run\n" + text(*range(200)) + line(200)[:20])
    clock.wall_now = path.stat().st_mtime
    first = pings.mark()
    append(path, line(200)[20:] + text(201, 203))
    second = pings.mark()
    append(path, text(202, 204, 205))
    (stats,) = pings.between(first, second)
    assert (stats.guest, stats.target) == ("vm1", "remote")
    assert (stats.sent, stats.received, stats.lost, stats.duplicated) == (4, 4, 0, 0)
    assert clock.now == 1000.0  # nothing missing: no wait


def test_stragglers_are_waited_for_until_patience_ends(path: Path) -> None:
    clock = Clock()
    pings = collector(path, clock)
    append(path, b"run\n")
    clock.wall_now = path.stat().st_mtime
    first = pings.mark()
    append(path, text(0, 2))
    (stats,) = pings.between(first, pings.mark(), patience_s=1.5)
    assert (stats.sent, stats.lost) == (3, 1)
    assert clock.now >= 1001.5


def test_a_dead_network_counts_as_lost(path: Path) -> None:
    clock = Clock()
    pings = collector(path, clock)
    append(path, b"run\n" + text(*range(100)))
    clock.wall_now = path.stat().st_mtime
    first = pings.mark()
    clock.wall_now += 3.0
    (stats,) = pings.between(first, pings.mark())
    assert stats.received == 0
    assert stats.lost == pytest.approx(300, abs=1)


def test_a_file_that_does_not_exist_yet_is_empty(path: Path) -> None:
    pings = collector(path, Clock())
    first = pings.mark()
    (stats,) = pings.between(first, pings.mark())
    assert (stats.sent, stats.longest_gap_ms, stats.rtt_p50_ms) == (0, None, None)


def test_a_file_that_was_begun_anew_is_an_error(path: Path) -> None:
    pings = collector(path, Clock())
    append(path, text(0, 1, 2))
    first = pings.mark()
    path.write_bytes(text(0))
    with pytest.raises(LabError, match="brought up anew"):
        pings.between(first, first)


def test_wait_flowing_names_the_silent(path: Path) -> None:
    pings = collector(path, Clock())
    with pytest.raises(LabError, match="vm1 -> remote within 2 s"):
        pings.wait_flowing(2.0)

"""What the pings' figures are made of: whatever was sent, answered late, lost or doubled, the sums are right."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import (
    Pings,
    PingStats,
    Progress,
    Reply,
    Span,
    Stream,
    mean_interval,
    missing,
    parse,
    quantile,
    spans,
    statistics,
)
from ovs_hotswap.system import System

STREAM = Stream("vm1", "remote", Path("unused"))
INTERVAL = 10.0


def report(answers: list[int], sent: int, rtt_us: int = 1000) -> bytes:
    """What guest-ping.pl writes at once."""
    return ("".join(f"{sequence} {rtt_us}\n" for sequence in answers) + f"sent {sent} {sent * 10_000}\n").encode()


def test_parse_of_reports() -> None:
    printed = b"run\n1 3214\n2 700\n2 1100\nsent 3 30000\nrun\n4 12345\nsent 5 50000\n"
    assert parse(printed, Progress()) == (
        [Reply(1, 1, 3.214), Reply(1, 2, 0.7), Reply(1, 2, 1.1), Reply(2, 4, 12.345)],
        [Progress(), Progress(1, 3, 30.0), Progress(2, 5, 50.0)],
    )


@given(st.lists(st.binary() | st.sampled_from([b"run", b"sent 7 9", b"7 9", b"sent -1 2", b"7 9 9", b"sent 7"])))
def test_parse_passes_over_what_is_no_report(lines: list[bytes]) -> None:
    text = b"\n".join(lines)
    found, progress = parse(text, Progress())
    split = text.splitlines()
    assert len(progress) == 1 + split.count(b"run")
    assert len(found) <= len(split)


# What becomes of each request: after how many reports each of its answers comes; none is a loss.
FATES = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=80)


def reports(fates: list[list[int]], batch: int) -> list[bytes]:
    """The reports of a run whose requests meet ``fates``; ``batch`` requests are made between two reports."""
    total = -(-len(fates) // batch)
    answers: dict[int, list[int]] = {}
    for sequence, delays in enumerate(fates, 1):
        for delay in delays:
            answers.setdefault((sequence - 1) // batch + delay, []).append(sequence)
    count = max([total, *(at + 1 for at in answers)])
    return [report(answers.get(at, []), min(len(fates), (at + 1) * batch)) for at in range(count)]


@given(FATES, st.integers(1, 12), st.data())
def test_every_request_between_the_marks_is_counted_once(
    fates: list[list[int]], batch: int, data: st.DataObject
) -> None:
    log = reports(fates, batch)
    first = data.draw(st.integers(0, len(log)))
    second = data.draw(st.integers(first, len(log)))

    before, earlier = parse(b"run\n" + b"".join(log[:first]), Progress())
    start = earlier[-1]
    _, progress = parse(b"".join(log[first:second]), start)
    found, _ = parse(b"".join(log[first:]), start)
    wanted = spans(start, progress)
    stats = statistics(STREAM, wanted, before, found, INTERVAL)

    low, high = min(len(fates), first * batch), min(len(fates), second * batch)
    assert stats.sent == high - low
    assert stats.received == sum(bool(fate) for fate in fates[low:high])
    assert stats.lost == stats.sent - stats.received == missing(wanted, found)
    assert stats.duplicated == sum(max(0, len(fate) - 1) for fate in fates[low:high])


@given(FATES, st.integers(1, 12), st.data())
def test_adjoining_intervals_add_up(fates: list[list[int]], batch: int, data: st.DataObject) -> None:
    log = reports(fates, batch)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), min_size=3, max_size=3)))

    def sent(first: int, second: int) -> int:
        _, earlier = parse(b"".join(log[:first]), Progress())
        _, progress = parse(b"".join(log[first:second]), earlier[-1])
        return sum(len(span) for span in spans(earlier[-1], progress))

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
    before, earlier = parse(b"run\n" + report([1, 2], 2), Progress())
    during, progress = parse(report([3, 4], 4) + b"run\n" + report([1, 3], 3), earlier[-1])
    wanted = spans(earlier[-1], progress)
    assert wanted == [Span(1, 3, 4), Span(2, 1, 3)]
    assert statistics(STREAM, wanted, before, during, INTERVAL).lost == 1


def test_mean_interval_is_the_guest_s_own() -> None:
    assert mean_interval(Progress(1, 100, 1000.0), Progress(1, 200, 2200.0)) == pytest.approx(12.0)
    assert mean_interval(Progress(1, 100, 1000.0), Progress(1, 105, 1060.0)) is None
    assert mean_interval(Progress(1, 100, 1000.0), Progress(2, 200, 2200.0)) is None
    assert mean_interval(Progress(1), Progress(1, 200, 2200.0)) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_quantile_is_the_nearest_rank(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) * (1 - 1e-9)


def test_quantile_of_nothing() -> None:
    assert quantile([], 0.5) is None


class Clock(System):
    """A clock that only ``sleep`` moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

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
    append(path, b"run\n" + b"".join(report([n], n) for n in range(1, 10_000)) + b"100")
    first = pings.mark()
    append(path, b"00 1000\nsent 10000 100000000\n" + report([10_001, 10_003], 10_003) + b"10002 70")
    second = pings.mark()
    append(path, b"00\n" + report([10_004], 10_004))
    (stats,) = pings.between(first, second)
    assert (stats.guest, stats.target) == ("vm1", "remote")
    assert (stats.sent, stats.received, stats.lost, stats.duplicated) == (4, 4, 0, 0)
    assert stats.rtt_max_ms == 7.0
    assert clock.now == 1000.0  # nothing missing: no wait


def test_stragglers_are_waited_for_until_patience_ends(path: Path) -> None:
    clock = Clock()
    pings = collector(path, clock)
    append(path, b"run\n")
    first = pings.mark()
    append(path, report([1, 3], 3))
    (stats,) = pings.between(first, pings.mark(), patience_s=1.5)
    assert (stats.sent, stats.lost) == (3, 1)
    assert clock.now >= 1001.5


def test_a_dead_network_counts_as_lost(path: Path) -> None:
    pings = collector(path, Clock())
    append(path, b"run\n" + report(list(range(1, 101)), 100))
    first = pings.mark()
    append(path, b"".join(report([], sent) for sent in range(110, 401, 10)))
    (stats,) = pings.between(first, pings.mark())
    assert (stats.received, stats.lost, stats.longest_gap_ms) == (0, 300, None)


def test_a_file_that_does_not_exist_yet_is_empty(path: Path) -> None:
    pings = collector(path, Clock())
    first = pings.mark()
    (stats,) = pings.between(first, pings.mark())
    assert (stats.sent, stats.longest_gap_ms, stats.rtt_p50_ms) == (0, None, None)


def test_a_file_that_was_begun_anew_is_an_error(path: Path) -> None:
    pings = collector(path, Clock())
    append(path, report([1, 2], 2))
    first = pings.mark()
    path.write_bytes(report([], 1))
    with pytest.raises(LabError, match="brought up again"):
        pings.between(first, first)


def test_wait_flowing_names_the_silent(path: Path) -> None:
    pings = collector(path, Clock())
    append(path, report([], 100))
    with pytest.raises(LabError, match="vm1 -> remote within 2 s"):
        pings.wait_flowing(2.0)

"""When a guest's gap was, and which step ran then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.lab.pings import Pings, Stream
from ovs_hotswap.lab.timeline import Gap, around, gaps, guest_time, longest, sent_times
from ovs_hotswap.system import System

REPORTS = [(10, 1.0), (20, 1.1), (30, 1.4)]


@pytest.mark.parametrize(
    ("sequence", "time"), [(10, 1.0), (15, 1.05), (20, 1.1), (25, 1.25), (30, 1.4), (9, None), (31, None)]
)
def test_a_request_was_made_between_two_reports(sequence: int, time: float | None) -> None:
    assert guest_time(REPORTS, sequence) == (None if time is None else pytest.approx(time))


def test_reports_of_the_last_run_count() -> None:
    assert sent_times(b"run\nsent 5 70\nrun\n1 300\nsent 1 10000\nsent 3 2") == [(1, 0.01), (3, 2e-06)]


def test_a_late_answer_is_a_gap_where_it_was() -> None:
    answers = [(sequence, 55.0 if sequence == 20 else 1.0) for sequence in range(11, 31)]
    found = gaps(answers, [(10, 1.0), (30, 1.2)], 10.0, offset_s=100.0)
    worst = longest(found)
    assert worst is not None
    assert worst.ms == pytest.approx(20.0)  # from 19 to 21: those behind it fill the rest of the time
    lost = gaps([each for each in answers if each[0] not in range(15, 20)], [(10, 1.0), (30, 1.2)], 10.0, 100.0)
    worst = longest(lost)
    assert worst is not None
    assert worst.ms == pytest.approx(70.0)  # from 14 to 21
    assert worst.begin == pytest.approx(101.041)
    assert worst.end == pytest.approx(101.111)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 500)), max_size=30))
def test_gaps_never_end_before_they_begin(answers: list[tuple[int, float]]) -> None:
    assert all(gap.begin <= gap.end and gap.ms >= 0 for gap in gaps(answers, REPORTS, 10.0, 0.0))


def test_around_a_handover() -> None:
    found = [Gap(1.0, 1.01, 10), Gap(2.0, 2.03, 30), Gap(2.03, 2.04, 10)]
    assert around(found, 2.06) == found[1]
    assert around(found, 3.0) is None


def test_gaps_between_two_marks_are_placed_on_the_hosts_clock(tmp_path: Path) -> None:
    path = tmp_path / "report"
    pings = Pings([Stream("vm1", "remote", path)], 10.0, System())

    def write(first: int, last: int, host: float, *, but: int | None = None) -> None:
        with path.open("a") as file:
            for sequence in range(first, last + 1):
                if sequence != but:
                    file.write(f"{sequence} 1000\n")
            file.write(f"sent {last} {last * 10_000}\n")
        os.utime(path, (host, host))

    path.write_text("run\n")
    write(1, 10, 1000.1)
    begin = pings.mark()
    write(11, 20, 1000.2)
    write(21, 30, 1000.35, but=25)  # this report was late by 50 ms
    ((_, found),) = pings.gaps(begin, pings.mark()).items()
    worst = longest(found)
    assert worst is not None
    assert worst.ms == pytest.approx(20.0)
    assert worst.begin == pytest.approx(1000.241)
    assert min(gap.end for gap in found) >= 1000.1

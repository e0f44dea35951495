"""How long to wait after a failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.watchdog.backoff import Backoff


def waits_of_four(backoff: Backoff) -> tuple[Backoff, list[float]]:
    """The seconds to wait after each of four failures, and what they leave."""
    waits = []
    for _ in range(4):
        backoff = backoff.failed(10.0)
        earliest = backoff.not_before()
        assert earliest is not None
        waits.append(earliest - 10.0)
    return backoff, waits


def test_each_failure_doubles_the_wait() -> None:
    backoff = Backoff(limit=10, window_s=100.0)
    assert backoff.may_start(0.0)
    backoff, waits = waits_of_four(backoff)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_old_failures_are_forgotten() -> None:
    backoff = Backoff(limit=2, window_s=100.0).failed(0.0).failed(100.0)
    assert not backoff.given_up
    assert backoff.failures == (100.0,)


@given(st.lists(st.floats(0, 50), min_size=3, max_size=10))
def test_giving_up_is_final(gaps: list[float]) -> None:
    backoff, now = Backoff(limit=3, window_s=1e9), 0.0
    for gap in gaps:
        now += gap
        backoff = backoff.failed(now)
    assert backoff.given_up
    assert not backoff.may_start(now + 1e12)


def test_the_next_start_is_allowed_at_the_very_moment_that_the_wait_is_over() -> None:
    backoff = Backoff(limit=None, window_s=100.0).failed(1000.0)
    assert not backoff.may_start(1000.9)
    assert backoff.may_start(1001.0)


def test_failures_within_the_window_count_whatever_the_clock_shows() -> None:
    backoff = Backoff(limit=2, window_s=100.0).failed(1000.0).failed(1099.0)
    assert backoff.failures == (1000.0, 1099.0)
    assert backoff.given_up


def test_a_wait_is_never_longer_than_the_most() -> None:
    backoff = Backoff(limit=None, window_s=1e9, first_s=2.0, most_s=5.0)
    backoff, waits = waits_of_four(backoff)
    assert waits == [2.0, 4.0, 5.0, 5.0]
    assert not backoff.given_up


def test_thousands_of_failures_make_a_wait_that_is_still_a_number() -> None:
    backoff = Backoff(limit=None, window_s=1.0, failures=(0.0,) * 5000)
    assert backoff.not_before() == 2.0**60

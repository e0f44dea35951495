"""Waiting, on a clock that does not wait."""

from __future__ import annotations

import operator

import pytest

from ovs_hotswap.waiting import Deadline, wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_deadline_passes() -> None:
    clock = Clock()
    deadline = Deadline.after(2.0, clock)
    assert (deadline.passed, deadline.left_s) == (False, 2.0)
    clock.sleep(1.5)
    assert (deadline.passed, deadline.left_s) == (False, 0.5)
    clock.sleep(1.0)
    assert (deadline.passed, deadline.left_s) == (True, 0.0)


def test_what_is_so_already_costs_no_time() -> None:
    clock = Clock()
    assert wait_until(lambda: "yes", 5.0, clock) == "yes"
    assert clock.now == 10.0


def test_it_looks_again_until_it_is_so() -> None:
    clock = Clock()
    assert wait_until(lambda: clock.now >= 11.0, 5.0, clock, poll_s=0.25)
    assert clock.now == 11.0


def test_after_the_time_it_answers_what_was_seen_last() -> None:
    clock = Clock()
    seen = wait_until(lambda: [clock.now], 1.0, clock, done=operator.not_, poll_s=0.5)
    assert seen == [11.0]
    assert wait_until(lambda: False, 0.0, clock) is False, "it looks at least once"


def test_what_is_raised_ends_the_waiting() -> None:
    clock = Clock()

    def look() -> bool:
        raise ValueError("it has ended")

    with pytest.raises(ValueError, match="it has ended"):
        wait_until(look, 5.0, clock)
    assert clock.now == 10.0


def test_without_a_clock_it_is_the_real_one() -> None:
    assert not wait_until(lambda: False, 0.02, poll_s=0.01)

"""How the event loop's time is shared, on a clock that stands still but for what the test spends."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest

from ovs_hotswap.broker.time_budget import BUDGET_S, PAUSE, REFILL, TURN_S, Budget, Hearing, Turns

COST = 0.00004  # seconds that a message takes


class Loop:
    """An event loop of what is used here: descriptors that can be read at any time, and timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._number), act))

    def add_reader(self, fd: int, act: Callable[[], None]) -> None:
        assert fd not in self.readers
        self.readers[fd] = act

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def turn(self) -> float:
        """One turn; how long it took. If there is nothing to do, time passes until a timer is due."""
        if not self.readers and self._timers:
            self.now = max(self.now, self._timers[0][0])
        start = self.now
        for act in list(self.readers.values()):
            act()
        while self._timers and self._timers[0][0] <= start:
            heapq.heappop(self._timers)[2]()
        return self.now - start


class Talker:
    """A QEMU that never stops, or says ``left`` messages."""

    def __init__(self, loop: Loop, turns: Turns, fd: int, left: float = float("inf")) -> None:
        self.loop, self.left, self.heard = loop, left, 0
        self.breaks = False
        budget = Budget(loop.time, loop.time)
        any_loop = cast(Any, loop)
        self.hearing = Hearing(any_loop, turns, lambda: None, self._take, budget)
        self.hearing.open(fd)

    def _take(self) -> bool:
        if self.breaks:
            raise RuntimeError("it breaks")
        if self.left == 0:
            return False
        self.loop.now += COST
        self.left -= 1
        self.heard += 1
        return True


def bed(floods: int) -> tuple[Loop, Turns, list[Talker]]:
    loop = Loop()
    turns = Turns(cast(Any, loop), loop.time)
    return loop, turns, [Talker(loop, turns, fd) for fd in range(floods)]


def run(loop: Loop, seconds: float) -> float:
    """The time that was spent on messages of these seconds."""
    end, spent = loop.now + seconds, 0.0
    while loop.now < end:
        took = loop.turn()
        spent += took
        loop.now += 1e-6  # to look whether there is something to do
    return spent


def test_a_guest_that_starts_is_heard_at_once() -> None:
    loop, turns, _ = bed(0)
    guest = Talker(loop, turns, 9, left=BUDGET_S / COST / 2)
    assert run(loop, 0.06) > 0.049
    assert guest.left == 0
    assert not guest.hearing.in_turns


def test_in_one_turn_each_is_heard_for_a_moment_only() -> None:
    loop, _, floods = bed(4)
    assert loop.turn() <= 4 * (TURN_S + COST)
    assert all(each.heard for each in floods)


def test_all_who_flood_get_a_fifth_of_the_time_and_equal_parts_of_it() -> None:
    for count in (1, 4, 20):
        loop, _, floods = bed(count)
        run(loop, (count + 1) * BUDGET_S)
        before = [each.heard for each in floods]
        assert run(loop, 1.0) <= 1.1 / (PAUSE + 1) + count * REFILL
        heard = [each.heard - earlier for each, earlier in zip(floods, before, strict=True)]
        assert 0 < max(heard) <= 1.5 * min(heard)


def test_whoever_says_less_again_is_heard_at_once_again() -> None:
    loop, _, (talker,) = bed(1)
    run(loop, 2 * BUDGET_S)
    talker.left = 0
    run(loop, 1.0)
    loop.now += 2 * BUDGET_S / REFILL  # nothing is said for so long
    talker.left, before = 10, talker.heard
    for _ in range(8):
        loop.turn()
        loop.now += 0.001
    assert talker.heard == before + 10
    assert not talker.hearing.in_turns


def test_nothing_is_heard_while_it_is_held_or_closed() -> None:
    for flooding in (False, True):
        loop, _, (talker,) = bed(1)
        if flooding:
            run(loop, 2 * BUDGET_S)
        talker.hearing.hold()
        before = talker.heard
        run(loop, 0.1)
        assert talker.heard == before
        talker.hearing.open(0)
        run(loop, 0.1)
        assert talker.heard > before
        talker.hearing.close()
        before = talker.heard
        run(loop, 0.1)
        assert talker.heard == before
        assert loop.readers == {}


def test_a_new_connection_does_not_renew_the_budget() -> None:
    loop, _, (talker,) = bed(1)
    run(loop, 2 * BUDGET_S)
    talker.hearing.close()
    talker.hearing.open(7)
    before = talker.heard
    assert run(loop, 1.0) <= 1.1 / (PAUSE + 1) + REFILL
    assert talker.heard > before


def test_whoever_cannot_be_heard_in_its_turn_is_heard_in_the_next() -> None:
    loop, _, (talker,) = bed(1)
    run(loop, 2 * BUDGET_S)
    talker.breaks = True
    with pytest.raises(RuntimeError):
        run(loop, 0.1)
    talker.breaks, before = False, talker.heard
    run(loop, 0.1)
    assert talker.heard > before

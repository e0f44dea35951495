"""Calls after a delay that share one timer of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from ovs_hotswap.broker.timers import Delays


class Loop:
    """What ``Delays`` needs of an event loop, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., object], *arguments: object) -> None:
        self.timers.append((when, lambda: call(*arguments)))

    def call_soon(self, call: Callable[[], object]) -> None:
        self.timers.append((self.now, call))

    def run_until(self, end: float) -> None:
        while self.timers and (first := min(self.timers, key=lambda timer: timer[0]))[0] <= end:
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def delays(loop: Loop) -> Delays:
    return Delays(cast(asyncio.AbstractEventLoop, loop))


def test_each_call_comes_when_it_is_due(loop: Loop, delays: Delays) -> None:
    got: list[tuple[str, float]] = []

    def note(what: str) -> None:
        got.append((what, loop.now))

    for number in range(3):
        loop.run_until(number * 0.01)
        delays.call_later(0.1, partial(note, f"slow {number}"))
        delays.call_later(0.05, partial(note, f"fast {number}"))
    loop.run_until(1.0)
    assert got == [
        ("fast 0", 0.05), ("fast 1", pytest.approx(0.06)), ("fast 2", pytest.approx(0.07)),
        ("slow 0", 0.1), ("slow 1", pytest.approx(0.11)), ("slow 2", pytest.approx(0.12)),
    ]  # fmt: skip


def test_the_loop_has_one_timer_for_each_delay(loop: Loop, delays: Delays) -> None:
    for _ in range(10):
        delays.call_later(0.1, int)
        delays.call_later(0.2, int)
    assert len(loop.timers) == 2
    loop.run_until(1.0)
    assert loop.timers == []
    delays.call_later(0.1, int)
    assert len(loop.timers) == 1


def test_a_call_may_ask_for_the_next_one(loop: Loop, delays: Delays) -> None:
    times: list[float] = []

    def again() -> None:
        times.append(loop.now)
        delays.call_later(0.1, again)

    delays.call_later(0.1, again)
    loop.run_until(0.35)
    assert times == [pytest.approx(each) for each in (0.1, 0.2, 0.3)]


def test_what_one_raises_keeps_no_other_from_being_made() -> None:
    async def scenario() -> list[object]:
        loop, raised = asyncio.get_running_loop(), list[object]()
        loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
        delays, done = Delays(loop), asyncio.Event()
        fault = ValueError()

        def fails() -> Any:
            raise fault

        delays.call_later(0.001, fails)
        delays.call_later(0.001, done.set)
        await done.wait()
        return [each is fault for each in raised]

    assert asyncio.run(scenario()) == [True]

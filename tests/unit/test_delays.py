"""Calls after a delay that share one timer of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from ovs_hotswap.vhost.delays import Delays


def test_calls_come_in_the_order_in_which_they_fall_due() -> None:
    async def scenario() -> list[str]:
        delays, got, done = Delays(asyncio.get_running_loop()), list[str](), asyncio.Event()
        delays.call_later(0.02, lambda: got.append("late"))
        delays.call_later(0.001, lambda: got.append("soon"))
        delays.call_later(0.02, lambda: got.append("later"))
        delays.call_later(0.02, done.set)
        await done.wait()
        return got

    assert asyncio.run(scenario()) == ["soon", "late", "later"]


def test_a_call_may_ask_for_the_next_one() -> None:
    async def scenario() -> int:
        delays, done, count = Delays(asyncio.get_running_loop()), asyncio.Event(), 0

        def again() -> None:
            nonlocal count
            count += 1
            if count == 3:
                done.set()
            else:
                delays.call_later(0.001, again)

        delays.call_later(0.001, again)
        await done.wait()
        return count

    assert asyncio.run(scenario()) == 3


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

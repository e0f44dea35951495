"""Calls after a delay, for hundreds of VMs: one timer of the event loop for each length of delay.

What is asked for with the same delay falls due in the order in which it was asked for. So a queue does the work of the
loop's heap of timers, which compares its entries in Python and was a tenth of what a row of moves took of the broker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Call = Callable[[], object]


class Delays:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queues: dict[float, deque[tuple[float, Call]]] = {}

    def call_later(self, delay: float, call: Call) -> None:
        """As the loop's own, without a way to cancel it. There are to be few different delays (seconds)."""
        queue = self._queues.setdefault(delay, deque())
        queue.append((self._loop.time() + delay, call))
        if len(queue) == 1:
            self._wait(queue)

    def _wait(self, queue: deque[tuple[float, Call]]) -> None:
        self._loop.call_at(queue[0][0], self._fall_due, queue)

    def _fall_due(self, queue: deque[tuple[float, Call]]) -> None:
        now = self._loop.time()
        while queue and queue[0][0] <= now:
            self._loop.call_soon(queue.popleft()[1])  # each on its own: what one raises keeps no other from being made
        if queue:
            self._wait(queue)

"""Calls after a delay, for hundreds of VMs, with one timer of the event loop for each length of delay.

Calls with the same delay fall due in the order in which they were requested. So a queue can replace the loop's heap of
timers, which compares its entries in Python and took a tenth of the broker's time in a row of moves.
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
        """Call ``call`` after ``delay`` seconds, as the loop's ``call_later`` does; the call cannot be cancelled.

        There are to be few different delays.
        """
        queue = self._queues.setdefault(delay, deque())
        queue.append((self._loop.time() + delay, call))
        if len(queue) == 1:
            self._wait(queue)

    def _wait(self, queue: deque[tuple[float, Call]]) -> None:
        self._loop.call_at(queue[0][0], self._fall_due, queue)

    def _fall_due(self, queue: deque[tuple[float, Call]]) -> None:
        now = self._loop.time()
        while queue and queue[0][0] <= now:
            self._loop.call_soon(queue.popleft()[1])  # each by itself, so that an error of one does not affect others
        if queue:
            self._wait(queue)

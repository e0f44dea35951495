"""Waiting in the event loop for a state of the VMs: a waiter looks again whenever something has changed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from ovs_hotswap.errors import BrokerError

_LOOK_S = 0.1  # for what changes without an event of a VM


class Changes:
    """Wakes the waiters after each change.

    ``notify`` is to be called after each change for which a waiter may wait; it costs nothing while there is no waiter.
    A waiter also looks every ``look_s`` seconds.
    """

    def __init__(self, look_s: float = _LOOK_S) -> None:
        self._look_s = look_s
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for waiter in self._waiters:
            _wake(waiter)

    async def until(
        self, true: Callable[[], bool], timeout: float = math.inf, otherwise: str | Callable[[], str] = ""
    ) -> None:  # fmt: skip
        """Wait until ``true`` returns true.

        Raises BrokerError after ``timeout`` seconds, with the text ``otherwise``, which is evaluated then.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while not true():
            left = end - loop.time()
            if left <= 0:
                text = otherwise if isinstance(otherwise, str) else otherwise()
                raise BrokerError(f"{text} after {timeout:g} s")
            await self._next(loop, min(left, self._look_s))

    async def _next(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(timeout, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

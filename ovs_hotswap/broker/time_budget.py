"""Shares the event loop's time among the QEMUs that send messages.

One thread serves all VMs, and each message of a QEMU takes some of its time. So each VM has a *budget*: what a guest
with many queues needs to start, and a little more with every second. In one turn of the loop a QEMU is read for a
moment only. QEMUs that have used up their budgets are read one after the other, and all of these together get a tenth
of the time until they send less. So the other QEMUs hardly notice, and every QEMU is read in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

BUDGET_S = 0.1  # a guest with 32 queue pairs needs about half of it to start
REFILL = 0.002  # seconds per second
TURN_S = 0.0001  # in one turn of the loop: a message or two
# After a turn without budget, the next such turn waits this many times as long as the turn took. With 4, a question of
# another VM's QEMU took 2.6 times as long under four floods as without (`bench floods`); with 9 it took 1.6 times.
PAUSE = 9

Clock = Callable[[], float]


class Turns:
    """The turns of the connections without budget, in the order in which they ask for one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock = time.thread_time) -> None:
        self._loop, self._clock = loop, clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._after = 0.0  # no turn comes before this time of the loop
        self._planned = False

    def wait(self, act: Callable[[], None]) -> None:
        """Have ``act`` called when its turn comes."""
        self._waiting.append(act)
        self._plan()

    def _plan(self) -> None:
        if self._waiting and not self._planned:
            self._planned = True
            self._loop.call_at(self._after, self._next)

    def _next(self) -> None:
        self._planned = False
        start = self._clock()
        try:
            self._waiting.popleft()()
        finally:
            self._after = self._loop.time() + PAUSE * (self._clock() - start)
            self._plan()


class Budget:
    """The budget of one connection. ``clock`` returns this thread's processor time, ``now`` the time, in seconds."""

    def __init__(self, clock: Clock = time.thread_time, now: Clock = time.monotonic) -> None:
        self._clock, self._now = clock, now
        self._left, self._at = BUDGET_S, now()

    @contextlib.contextmanager
    def spent(self) -> Iterator[Callable[[], bool]]:
        """Charge the budget with the time that the block takes.

        Yields a function that says whether the block has taken enough time for one turn.
        """
        start = self._clock()
        try:
            yield lambda: self._clock() - start >= TURN_S
        finally:
            now = self._now()
            left = min(BUDGET_S, self._left + REFILL * (now - self._at)) - (self._clock() - start)
            self._left, self._at = max(0.0, left), now

    @property
    def exhausted(self) -> bool:
        """Whether nothing was left of the budget at the end of the last turn."""
        return self._left == 0.0


class Hearing:
    """Decides when a connection is read: if something has come, within the budget, and not while it is held.

    ``take`` takes one message and returns whether there may be more; ``begin`` is called before the messages of a turn.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, turns: Turns, begin: Callable[[], None], take: Callable[[], bool],
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self._loop, self._turns, self._begin, self._take = loop, turns, begin, take
        self._budget = budget or Budget()
        self._fd: int | None = None
        self._held = self._waits = self._reads = False

    @property
    def in_turns(self) -> bool:
        """Whether the budget is used up."""
        return self._budget.exhausted

    def open(self, fd: int) -> None:
        """Read descriptor ``fd`` (again)."""
        self._fd, self._held = fd, False
        self._settle()

    def close(self) -> None:
        """Stop reading for good. This is to be called before the descriptor is closed."""
        self._held = True
        self._settle()
        self._fd = None

    def hold(self) -> None:
        """Read nothing until ``open`` is called again."""
        self._held = True
        self._settle()

    def _settle(self) -> None:
        if self._fd is None:
            return
        reads = not self._held and not self._waits
        if reads and not self._reads:
            self._loop.add_reader(self._fd, self._ready)
        elif self._reads and not reads:
            self._loop.remove_reader(self._fd)
        self._reads = reads

    def _ready(self) -> None:
        if not self._budget.exhausted:
            self._hear()
            return
        self._waits = True
        self._settle()
        self._turns.wait(self._turn)

    def _turn(self) -> None:
        self._waits = False
        try:
            self._hear()
        finally:
            self._settle()

    def _hear(self) -> None:
        if self._fd is None or self._held:
            return
        with self._budget.spent() as enough:
            self._begin()
            while self._take() and not self._held and not enough():
                pass

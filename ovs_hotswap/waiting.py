"""Waiting for another process: until a condition holds, or until a time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

POLL_S = 0.02

Seen = TypeVar("Seen")


class Clock(Protocol):
    """A clock. ``system.System`` is one, and the tests have one that does not wait."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on ``clock``, in seconds."""

    clock: Clock
    end: float

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> Deadline:
        return cls(clock, clock.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        return self.clock.monotonic() >= self.end

    @property
    def left_s(self) -> float:
        """The seconds until the deadline; 0 if it has passed."""
        return max(0.0, self.end - self.clock.monotonic())


def wait_until(
    look: Callable[[], Seen],
    seconds: float,
    clock: Clock | None = None,
    *,
    done: Callable[[Seen], object] = bool,
    poll_s: float = POLL_S,
) -> Seen:
    """Call ``look`` until its result is ``done`` or ``seconds`` are over, at least once; return the last result.

    An error of ``look`` ends the waiting. Without ``clock`` the real clock is used.
    """
    clock = clock or RealClock()
    deadline = Deadline.after(seconds, clock)
    while True:
        seen = look()
        if done(seen) or deadline.passed:
            return seen
        clock.sleep(poll_s)

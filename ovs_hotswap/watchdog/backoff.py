"""How long to wait after a failure before the next attempt. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delay before the next start. ``failures``: the times of past failures, oldest first, in seconds on one clock.

    The delay is ``first_s`` after one failure and doubles with each further one, up to ``most_s``. After ``limit``
    failures within ``window_s``, nothing is started until the watchdog itself is started again. Without a limit there
    is always a next start.
    """

    limit: int | None
    window_s: float
    first_s: float = 1.0
    most_s: float = float("inf")
    failures: tuple[float, ...] = ()
    given_up: bool = False

    def failed(self, now: float) -> Backoff:
        recent = (*(time for time in self.failures if now - time < self.window_s), now)
        given_up = self.given_up or (self.limit is not None and len(recent) >= self.limit)
        return replace(self, failures=recent, given_up=given_up)

    def not_before(self) -> float | None:
        """The earliest time of the next start: minus infinity if it may be now, ``None`` if there is none."""
        if self.given_up:
            return None
        if not self.failures:
            return float("-inf")
        return self.failures[-1] + min(self.first_s * 2.0 ** min(len(self.failures) - 1, 60), self.most_s)

    def may_start(self, now: float) -> bool:
        earliest = self.not_before()
        return earliest is not None and now >= earliest

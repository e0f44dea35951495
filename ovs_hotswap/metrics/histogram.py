"""A histogram that is kept over scrapes and restarts. This module is pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Histogram:
    """``bounds``: the upper bounds of the buckets, ascending. ``counts``: the values in each bucket alone, and at last
    those above every bound. ``total``: the sum of all values."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Histogram:
        return cls(bounds, (0,) * (len(bounds) + 1))

    def plus(self, values: Iterable[float]) -> Histogram:
        """Return the histogram with more values. A value that equals a bound is in its bucket."""
        counts, total = list(self.counts), self.total
        for value in values:
            counts[bisect_left(self.bounds, value)] += 1
            total += value
        return Histogram(self.bounds, tuple(counts), total)

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Yield each bound with the number of values up to it, as Prometheus writes them."""
        yield from zip((*map(str, self.bounds), "+Inf"), accumulate(self.counts), strict=True)

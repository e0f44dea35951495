"""What simulated guests record, and what can be asked of it. Pure. All times are CLOCK_MONOTONIC, nanoseconds."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]


@dataclass(slots=True)
class Received:
    """What came of one stream, whose frames are numbered from 0: lost, doubled and reordered are exact."""

    next: int = 0
    count: int = 0
    doubled: int = 0
    reordered: int = 0
    missing: set[int] = field(default_factory=set)

    def saw(self, sequence: int) -> None:
        self.count += 1
        if sequence == self.next:
            self.next += 1
        elif sequence > self.next:
            self.missing.update(range(self.next, sequence))
            self.next = sequence + 1
        elif sequence in self.missing:
            self.missing.remove(sequence)
            self.reordered += 1
        else:
            self.doubled += 1

    def lost(self, sent: int) -> int:
        """How many of ``sent`` frames are lost; frames that are still under way count."""
        return len(self.missing) + max(0, sent - self.next)


class Log:
    """One entry for each frame received and each transmit descriptor taken by the switch.

    ``ring``: on which ring. ``time``: when the driver saw it. ``origin``: when the frame was sent, or offered.
    """

    def __init__(self) -> None:
        self.ring, self.time, self.origin = array("q"), array("q"), array("q")

    def add(self, ring: int, time: int, origin: int) -> None:
        self.ring.append(ring)
        self.time.append(time)
        self.origin.append(origin)

    def take(self) -> tuple[bytes, bytes, bytes]:
        """The entries so far, which are then forgotten."""
        taken = self.ring.tobytes(), self.time.tobytes(), self.origin.tobytes()
        self.__init__()  # type: ignore[misc]
        return taken


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two entries of one ring."""

    begin: int
    end: int

    @property
    def ms(self) -> float:
        return (self.end - self.begin) / 1e6


class Timeline:
    """The entries of one ring, in the order of their times."""

    def __init__(self, times: Times, origins: Times) -> None:
        self.times, self.origins = times, origins

    def gaps(self) -> Times:
        """The length of each."""
        return np.diff(self.times)

    def largest(self, begin: int, end: int) -> Gap | None:
        """The largest gap that is not wholly outside ``begin`` to ``end``; ``None`` if there is none."""
        first = max(int(np.searchsorted(self.times, begin, "right")) - 1, 0)
        last = int(np.searchsorted(self.times, end, "left")) + 1
        times = self.times[first:last]
        if len(times) < 2:
            return None
        at = int(np.argmax(np.diff(times)))
        return Gap(int(times[at]), int(times[at + 1]))

    def spanning(self, instant: int) -> Gap | None:
        """The gap that ``instant`` lies in; ``None`` before the first and after the last entry."""
        after = int(np.searchsorted(self.times, instant, "right"))
        if not 0 < after < len(self.times):
            return None
        return Gap(int(self.times[after - 1]), int(self.times[after]))

    def first_from(self, instant: int) -> int | None:
        """When the first frame came that was sent (offered) at ``instant`` or later: what a switch that died then
        cannot have moved any more. ``None`` if none came."""
        later = self.times[self.origins >= instant]
        return int(later.min()) if len(later) else None

    def latencies(self) -> Times:
        """From sent to received, or from offered to taken."""
        return self.times - self.origins


@dataclass(frozen=True, slots=True)
class Events:
    """Log entries of all rings, which are numbered through: ring ``r`` of VM ``k`` is ``k * rings + r``."""

    ring: Times
    time: Times
    origin: Times
    rings: int

    @classmethod
    def of(cls, taken: tuple[bytes, bytes, bytes], rings: int) -> Events:
        ring, time, origin = (np.frombuffer(part, np.int64) for part in taken)
        return cls(ring, time, origin, rings)

    def __len__(self) -> int:
        return len(self.ring)

    def received(self, vm: int) -> Timeline:
        """Frames that a VM received, on all its queues."""
        return self._of((self.ring // self.rings == vm) & (self.ring % self.rings % 2 == 0))

    def taken(self, vm: int) -> Timeline:
        """A VM's transmit descriptors that the switch took, on all its queues."""
        return self._of((self.ring // self.rings == vm) & (self.ring % self.rings % 2 == 1))

    def _of(self, chosen: npt.NDArray[np.bool_]) -> Timeline:
        return Timeline(self.time[chosen], self.origin[chosen])


_TICK_NS, _TICKS = 10_000, 2000


class Ticks:
    """How often the driver looks, which is what it can resolve. ``blind``: begin and end of the times for which it did
    not look for more than ``blind_ns``."""

    def __init__(self, blind_ns: int = 1_000_000) -> None:
        self.blind: list[tuple[int, int]] = []
        self._buckets = [0] * (_TICKS + 1)
        self._blind_ns = blind_ns
        self._last = 0

    def note(self, now: int) -> None:
        length = now - self._last
        if self._last:
            self._buckets[min(length // _TICK_NS, _TICKS)] += 1
            if length > self._blind_ns:
                self.blind.append((self._last, now))
        self._last = now

    def quantile_us(self, part: float) -> float:
        """The time, rounded up to 10 us, within which this part of all looks followed the one before."""
        wanted, seen = part * sum(self._buckets), 0
        for number, count in enumerate(self._buckets):
            seen += count
            if count and seen >= wanted:
                return (number + 1) * _TICK_NS / 1e3
        return 0.0

"""When the guests' gaps were, on the host's clock: in which step of an upgrade, and around which handover.

A guest stamps its reports with its own clock, and the file to which they are appended has the host's time of the last
report. The difference is always the same plus the time that a report takes, so the smallest difference seen is the
best. The error that remains, a few milliseconds, is the precision with which a gap is placed.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_SENT = re.compile(rb"^sent (?P<sequence>\d+) (?P<time>\d+)$|^(?P<run>run)$", re.MULTILINE)
AROUND_S = 0.05  # a gap that ends this soon after a handover, or begins this shortly before it, is around it


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two consecutive answers, which are ``ms`` milliseconds apart. ``begin`` and ``end`` are in
    seconds since the epoch."""

    begin: float
    end: float
    ms: float


def sent_times(text: bytes) -> list[tuple[int, float]]:
    """The sequence number and the guest's time, in seconds, of each report of the last run in ``text``."""
    found: list[tuple[int, float]] = []
    for match in _SENT.finditer(text):
        if match["run"]:
            found = []
        else:
            found.append((int(match["sequence"]), int(match["time"]) / 1e6))
    return found


def guest_time(reports: Sequence[tuple[int, float]], sequence: int) -> float | None:
    """The guest's time of a request, in seconds, interpolated between two reports; ``None`` outside the reports."""
    place = bisect.bisect_left(reports, (sequence, float("-inf")))
    if place == len(reports) or (place == 0 and reports[0][0] != sequence):
        return None
    last, until = reports[place]
    if last == sequence:
        return until
    first, since = reports[place - 1]
    return since + (until - since) * (sequence - first) / (last - first)


def gaps(
    answers: Iterable[tuple[int, float]], reports: Sequence[tuple[int, float]], interval_ms: float, offset_s: float
) -> list[Gap]:
    """The gaps between the answers, as ``PingStats`` counts them. Each answer is a request's sequence number and its
    round-trip time in ms. ``offset_s``: the host's clock less the guest's, in seconds."""
    arrivals = []
    for sequence, rtt_ms in answers:
        sent = guest_time(reports, sequence)
        if sent is not None:
            arrivals.append((sequence * interval_ms + rtt_ms, sent + rtt_ms / 1e3 + offset_s))
    arrivals.sort()
    return [Gap(min(begin, end), end, ms - earlier) for (earlier, begin), (ms, end) in pairwise(arrivals)]


def longest(found: Iterable[Gap]) -> Gap | None:
    return max(found, key=lambda gap: gap.ms, default=None)


def around(found: Iterable[Gap], moment: float) -> Gap | None:
    """The longest gap around a moment, which is in seconds since the epoch; ``None`` if there is none."""
    return longest(gap for gap in found if gap.begin - AROUND_S <= moment <= gap.end + AROUND_S)

"""Loss, duplicates, gaps and round-trip times of the guests' pings, between any two marks.

Every guest pings its targets all the time, and QEMU appends the reports of guest-ping.pl to one file for each guest and
target. No other process is needed on the host, and any process can read the files later: a ``Mark`` has the length of
each file. Sequence numbers show exactly what was sent, lost and duplicated between two marks. A report is written every
0.1 s, so requests made up to 0.1 s before a mark may be counted after it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.timeline import Gap, gaps, sent_times
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

TAIL = 1 << 16  # bytes before a mark in which the last report is looked for
POLL_S = 0.1

_LINE = re.compile(rb"(?P<run>run)|sent (?P<sent>\d+) (?P<time>\d+)|(?P<sequence>\d+) (?P<rtt>\d+)")
_LAST_SENT = re.compile(rb".*^sent \d+ \d+\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to request ``sequence`` of run number ``run``. A run begins each time that the pings begin."""

    run: int
    sequence: int
    rtt_ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run. ``sequence``: the last request that the run had made at ``time_ms``, which is ``None`` if
    it had only begun."""

    run: int = 0
    sequence: int = 0
    time_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PingStats:
    """One guest's pings of one target in an interval.

    ``sent``: the requests made in the interval. ``received``: the requests of these that were answered at any time;
    ``lost`` = sent - received. ``duplicated``: answers after the first one. ``interval_ms``: the mean time between
    requests. ``longest_gap_ms``: the longest time between two consecutive answers, where the answer to request n counts
    at the time n x ``interval_ms`` + its round-trip time. So a lost or late request shows in full, a guest that sends
    slowly does not show, and an undisturbed stream has a gap of a little over the interval. The first gap begins at
    the last answer before the interval; unanswered requests at the end count until the last of them was made.
    ``None`` if nothing was answered.
    """

    guest: str
    target: str
    sent: int
    received: int
    lost: int
    duplicated: int
    interval_ms: float
    longest_gap_ms: float | None
    rtt_p50_ms: float | None
    rtt_p99_ms: float | None
    rtt_max_ms: float | None


@dataclass(frozen=True, slots=True)
class Stream:
    """One guest's pings of one target, with the file of the reports."""

    guest: str
    target: str
    path: Path


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment. ``lengths``: the bytes of whole reports that each stream's file had, in the order of the streams.
    ``offsets``: an upper bound of the host's clock less each guest's, in seconds; ``None`` before the first report."""

    lengths: tuple[int, ...]
    offsets: tuple[float | None, ...] = ()


def parse(text: bytes, start: Progress) -> tuple[list[Reply], list[Progress]]:
    """The answers in ``text``, which continues at ``start``, and the progress of each run in it, the latest run last.

    Lines that are not reports are ignored.
    """
    found: list[Reply] = []
    progress = [start]
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        if match["run"]:
            progress.append(Progress(progress[-1].run + 1))
        elif match["sent"]:
            progress[-1] = Progress(progress[-1].run, int(match["sent"]), int(match["time"]) / 1000)
        else:
            found.append(Reply(progress[-1].run, int(match["sequence"]), int(match["rtt"]) / 1000))
    return found, progress


@dataclass(frozen=True, slots=True)
class Span:
    """The requests ``first`` to ``last`` of a run; there are none if ``first`` is the greater number."""

    run: int
    first: int
    last: int

    def __contains__(self, reply: Reply) -> bool:
        return reply.run == self.run and self.first <= reply.sequence <= self.last

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)


def spans(start: Progress, progress: Iterable[Progress]) -> list[Span]:
    """The requests made from ``start`` on. Requests after the last report of a run are not known and not counted."""
    return [Span(each.run, start.sequence + 1 if each.run == start.run else 1, each.sequence) for each in progress]


def missing(wanted: Sequence[Span], found: Iterable[Reply]) -> int:
    """The number of requests in the spans that have no answer."""
    seen = {(reply.run, reply.sequence) for reply in found if any(reply in span for span in wanted)}
    return sum(len(span) for span in wanted) - len(seen)


def mean_interval(start: Progress, stop: Progress) -> float | None:
    """The mean time between two requests, in ms; ``None`` if a new run began or fewer than ten requests were made."""
    requests = stop.sequence - start.sequence
    if start.run != stop.run or start.time_ms is None or stop.time_ms is None or requests < 10:
        return None
    return (stop.time_ms - start.time_ms) / requests


def statistics(
    stream: Stream, wanted: Sequence[Span], before: Sequence[Reply], found: Sequence[Reply], interval_ms: float
) -> PingStats:
    """The figures of the requests in ``wanted``. ``found``: all answers that came after the first mark. ``before``: the
    last answers that came before it, because a gap may begin there."""
    inside = [reply for reply in found if any(reply in span for span in wanted)]
    firsts: dict[tuple[int, int], Reply] = {}
    for reply in inside:
        firsts.setdefault((reply.run, reply.sequence), reply)
    sent = sum(len(span) for span in wanted)
    times = sorted(reply.rtt_ms for reply in firsts.values())
    gaps = [_longest_gap(span, [*before, *firsts.values()], interval_ms) for span in wanted]
    return PingStats(
        guest=stream.guest,
        target=stream.target,
        sent=sent,
        received=len(firsts),
        lost=sent - len(firsts),
        duplicated=len(inside) - len(firsts),
        interval_ms=interval_ms,
        longest_gap_ms=max((gap for gap in gaps if gap is not None), default=None) if firsts else None,
        rtt_p50_ms=quantile(times, 0.50),
        rtt_p99_ms=quantile(times, 0.99),
        rtt_max_ms=quantile(times, 1.0),
    )


def _longest_gap(span: Span, found: Iterable[Reply], interval_ms: float) -> float | None:
    """The longest gap that ends within the span, in ms; ``None`` if no request of its run was answered."""
    arrivals = sorted(
        (reply.sequence * interval_ms + reply.rtt_ms, reply in span) for reply in found if reply.run == span.run
    )
    if not arrivals or not span:
        return None
    steps = [later - earlier for (earlier, _), (later, inside) in pairwise(arrivals) if inside]
    return max([0.0, *steps, span.last * interval_ms - arrivals[-1][0]])


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` of the values do not exceed (nearest rank)."""
    if not ordered:
        return None
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[max(rank, 1) - 1]


class Pings:
    """Reads the files of a lab that this or another process has brought up. ``interval_ms``: the intended time between
    two requests.

    All methods raise LabError if a file is shorter than at a mark.
    """

    def __init__(self, streams: Sequence[Stream], interval_ms: float, system: System) -> None:
        self._streams = tuple(streams)
        self._interval_ms = interval_ms
        self._system = system

    def mark(self) -> Mark:
        """Mark this moment, for ``between``. This takes little time."""
        paths = [stream.path for stream in self._streams]
        return Mark(tuple(map(_reported, paths)), tuple(map(_offset, paths)))

    def between(self, first: Mark, second: Mark, patience_s: float = 2.0) -> list[PingStats]:
        """The figures of every guest and target, for the requests made between the marks.

        Waits for late answers, up to ``patience_s`` seconds from now; returns at once if no answer is missing.
        """
        end = self._system.monotonic() + patience_s
        each = zip(self._streams, first.lengths, second.lengths, strict=True)
        return [self._settle(stream, low, high, end) for stream, low, high in each]

    def gaps(self, first: Mark, second: Mark) -> dict[Stream, list[Gap]]:
        """The gaps between the answers that came between the marks, placed on the host's clock."""
        found = {}
        for number, stream in enumerate(self._streams):
            low, high = first.lengths[number], second.lengths[number]
            offsets = [offset for mark in (first, second) if (offset := mark.offsets[number]) is not None]
            tail = max(0, low - TAIL)
            text = _read(stream.path, tail)[: high - tail]
            answers, progress = parse(text, Progress())
            latest = [(each.sequence, each.rtt_ms) for each in answers if each.run == progress[-1].run]
            reports = sent_times(text)
            if offsets and len(reports) > 1:
                (early, since), (late, until) = reports[0], reports[-1]
                interval = (until - since) * 1e3 / max(1, late - early)
                begun = sent_times(text[: low - tail])
                placed = gaps(latest, reports, interval, min(offsets))
                start = begun[-1][1] + min(offsets) if begun else float("-inf")
                found[stream] = [gap for gap in placed if gap.end >= start]
        return found

    def wait_flowing(self, timeout_s: float, replies_each: int = 10) -> None:
        """Wait until every stream has had ``replies_each`` more answers. Raises LabError with the streams that have
        not."""
        begun = self.mark()

        def silent() -> list[str]:
            return [
                f"{stream.guest} -> {stream.target}"
                for stream, length in zip(self._streams, begun.lengths, strict=True)
                if len(parse(_read(stream.path, length), Progress())[0]) < replies_each
            ]

        if quiet := wait_until(silent, timeout_s, self._system, done=operator.not_, poll_s=POLL_S):
            raise LabError(f"no answers to the pings of {', '.join(quiet)} within {timeout_s:g} s")

    def _settle(self, stream: Stream, low: int, high: int, end: float) -> PingStats:
        tail = max(0, low - TAIL)
        before, earlier = parse(_read(stream.path, tail)[: low - tail], Progress())
        start = earlier[-1]
        _, progress = parse(_read(stream.path, low)[: high - low], start)
        wanted = spans(start, progress)
        interval = mean_interval(start, progress[-1]) or self._interval_ms
        while True:
            found, _ = parse(_read(stream.path, low), start)
            if not missing(wanted, found) or self._system.monotonic() >= end:
                return statistics(stream, wanted, before, found, interval)
            self._system.sleep(POLL_S)


def _reported(path: Path) -> int:
    """The length of the file up to the end of its last report, in bytes."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            start = file.seek(max(0, length - TAIL))
            match = _LAST_SENT.match(file.read(length))
    except FileNotFoundError:
        return 0
    return start + match.end() if match else 0


def _offset(path: Path) -> float | None:
    """The host's time of the last report less the guest's time in it, in seconds; ``None`` if there is no report."""
    length = _reported(path)
    if not length:
        return None
    with path.open("rb") as file:
        file.seek(max(0, length - TAIL))
        reports = sent_times(file.read(min(length, TAIL)))
        return path.stat().st_mtime - reports[-1][1] if reports else None


def _read(path: Path, offset: int) -> bytes:
    """The whole lines of the file from ``offset`` on. Raises LabError if the file is shorter."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                raise LabError(f"{path} is shorter than at the mark: the lab was brought up again in between")
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return b""
    return text[: text.rfind(b"\n") + 1]

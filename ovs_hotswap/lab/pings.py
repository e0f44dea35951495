"""Loss, duplicates, gaps and round-trip times of the guests' pings, between any two marks.

Every guest pings its targets all the time and QEMU appends what the pings print to one file per guest and target.
Nothing runs on the host meanwhile, and any process can ask later. A ``Mark`` remembers how long each file was; sequence
numbers then tell exactly what was sent, lost and doubled between two of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System

SEQUENCES = 1 << 16  # ICMP's sequence number has 16 bits (RFC 792)
TAIL = 4096  # bytes before a mark in which the last sequence number is looked for
SILENT = 10  # so many intervals without a reply, and the requests of that time count as sent
POLL_S = 0.02

_REPLY = re.compile(rb"\d+ bytes from [\d.]+: seq=(\d+) ttl=\d+ time=([\d.]+) ms")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to request ``sequence`` of the ``run``-th ping process; sequence numbers do not wrap here."""

    run: int
    sequence: int
    rtt_ms: float


@dataclass(frozen=True, slots=True)
class PingStats:
    """One guest's pings of one target in an interval.

    ``sent``: requests made in it. ``received``: those of them that were answered, whenever the answer came;
    ``lost`` = sent - received. ``duplicated``: answers beyond the first.
    ``longest_gap_ms``: the longest time between two consecutive answers, where the answer to request n counts as having
    come at n x ``interval_ms`` + its round-trip time. So a request that is lost or late shows whole, a guest that is
    slow to send does not, and an undisturbed stream has a gap of a little over the interval. Unanswered requests at
    the end of the interval count until the last of them was sent. ``None`` if nothing was answered.
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
    """One guest's pings of one target, and the file they are written to."""

    guest: str
    target: str
    path: Path


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file was: its ``length`` up to the last whole line and when it was last written (seconds since the
    epoch; 0 if it was empty)."""

    length: int
    written: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: ``wall`` in seconds since the epoch, and the position of each stream in the collector's order."""

    wall: float
    positions: tuple[Position, ...]


def replies(text: bytes, last: Reply | None = None) -> list[Reply]:
    """The replies in ``text``, continued from ``last``. A line "run" begins a new run at sequence 0."""
    run, sequence = (last.run, last.sequence) if last else (0, -1)
    found = []
    for line in text.splitlines():
        if line == b"run":
            run, sequence = run + 1, -1
        elif match := _REPLY.match(line):
            number = unwrap(int(match[1]), sequence)
            sequence = max(sequence, number)
            found.append(Reply(run, number, float(match[2])))
    return found


def unwrap(number: int, near: int) -> int:
    """The sequence number nearest to ``near`` that is ``number`` modulo 2^16."""
    half = SEQUENCES // 2
    return near + (number - near + half) % SEQUENCES - half


def last_of(found: Sequence[Reply]) -> Reply | None:
    """The reply with the highest sequence number of the latest run."""
    return max(found, key=lambda reply: (reply.run, reply.sequence), default=None)


@dataclass(frozen=True, slots=True)
class Span:
    """Requests ``first`` to ``last`` of a run; none if ``first`` is the greater."""

    run: int
    first: int
    last: int

    def __contains__(self, reply: Reply) -> bool:
        return reply.run == self.run and self.first <= reply.sequence <= self.last


def spans(before: Reply | None, during: Sequence[Reply], silent: tuple[int, int]) -> list[Span]:
    """The requests made between two marks.

    ``before`` is the last reply before the first mark, ``during`` are the replies that came between the marks.
    ``silent``: how many requests had gone unanswered at either mark. Of a run that ended between the marks, requests
    after its last answer are not known and not counted.
    """
    start_run, start = (before.run, before.sequence + silent[0] + 1) if before else (0, 0)
    tops: dict[int, int] = {start_run: before.sequence if before else -1}
    for reply in during:
        tops[reply.run] = max(tops.get(reply.run, -1), reply.sequence)
    last_run = max(tops)
    return [
        Span(run, start if run == start_run else 0, top + (silent[1] if run == last_run else 0))
        for run, top in sorted(tops.items())
    ]


def missing(wanted: Sequence[Span], found: Iterable[Reply]) -> int:
    """How many requests of the spans have no reply."""
    seen = {(reply.run, reply.sequence) for reply in found if any(reply in span for span in wanted)}
    return sum(max(0, span.last - span.first + 1) for span in wanted) - len(seen)


def statistics(
    stream: Stream, wanted: Sequence[Span], found: Sequence[Reply], before: Reply | None, interval_ms: float
) -> PingStats:
    """The figures of the requests in ``wanted``; ``found`` are all replies that came after the first mark."""
    inside = [reply for reply in found if any(reply in span for span in wanted)]
    firsts: dict[tuple[int, int], Reply] = {}
    for reply in inside:
        firsts.setdefault((reply.run, reply.sequence), reply)
    sent = sum(max(0, span.last - span.first + 1) for span in wanted)
    times = sorted(reply.rtt_ms for reply in firsts.values())
    gaps = [_longest_gap(span, firsts.values(), before, interval_ms) for span in wanted]
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


def _longest_gap(span: Span, found: Iterable[Reply], before: Reply | None, interval_ms: float) -> float | None:
    if span.first > span.last:
        return None
    inside = [reply for reply in found if reply in span]
    if before is not None and before.run == span.run:
        inside.append(before)
    arrivals = sorted(reply.sequence * interval_ms + reply.rtt_ms for reply in inside)
    if not arrivals:
        return None
    steps = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    return max([*steps, span.last * interval_ms - arrivals[-1]])


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` of the values do not exceed (nearest rank)."""
    if not ordered:
        return None
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[max(rank, 1) - 1]


class Pings:
    """Reads the files of a lab that this or another process brought up. ``interval_ms`` is what the pings aim at."""

    def __init__(self, streams: Sequence[Stream], interval_ms: float, system: System) -> None:
        self._streams = tuple(streams)
        self._interval_ms = interval_ms
        self._system = system

    def mark(self) -> Mark:
        """This moment, for ``between``. Cheap."""
        return Mark(self._system.wall(), tuple(_position(stream.path) for stream in self._streams))

    def between(self, first: Mark, second: Mark, patience_s: float = 2.0) -> list[PingStats]:
        """The figures of every guest and target, for the requests made between the marks.

        Answers that are late are waited for, up to ``patience_s`` seconds from now; with none missing it returns at
        once. Raises LabError if a file is shorter than at a mark.
        """
        end = self._system.monotonic() + patience_s
        return [
            self._settle(stream, first.positions[i], second.positions[i], (first.wall, second.wall), end)
            for i, stream in enumerate(self._streams)
        ]

    def wait_flowing(self, timeout_s: float, replies_each: int = 10) -> None:
        """Return when every stream had ``replies_each`` answers from now on. Raises LabError naming those without."""
        begun = self.mark()
        end = self._system.monotonic() + timeout_s
        while True:
            quiet = [
                f"{stream.guest} -> {stream.target}"
                for stream, position in zip(self._streams, begun.positions, strict=True)
                if len(replies(_read(stream.path, position.length)[0])) < replies_each
            ]
            if not quiet:
                return
            if self._system.monotonic() >= end:
                raise LabError(f"no answers to the pings of {', '.join(quiet)} within {timeout_s:g} s")
            self._system.sleep(0.1)

    def _settle(
        self, stream: Stream, first: Position, second: Position, walls: tuple[float, float], end: float
    ) -> PingStats:
        start = max(0, first.length - TAIL)
        head = _read(stream.path, start)[0][: first.length - start]
        before = last_of(replies(head))
        during = replies(_read(stream.path, first.length)[0][: second.length - first.length], before)
        interval = self._measured(before, during, second, first)
        silent = (_silent(first, walls[0], interval), _silent(second, walls[1], interval))
        wanted = spans(before, during, silent)
        while True:
            found = replies(_read(stream.path, first.length)[0], before)
            if not missing(wanted, found) or self._system.monotonic() >= end:
                return statistics(stream, wanted, found, before, interval)
            self._system.sleep(POLL_S)

    def _measured(
        self, before: Reply | None, during: Sequence[Reply], second: Position, first: Position
    ) -> float:
        """Mean time between two requests: the guest's timer adds its own delay to what was asked for."""
        last = last_of(during)
        if before is None or last is None or last.run != before.run or last.sequence - before.sequence < SILENT:
            return self._interval_ms
        return max(self._interval_ms, 1000 * (second.written - first.written) / (last.sequence - before.sequence))


def _silent(position: Position, wall: float, interval_ms: float) -> int:
    """How many requests had gone unanswered at a mark, if the stream was silent; 0 if it flowed."""
    requests = int(1000 * (wall - position.written) / interval_ms) if position.written else 0
    return requests if requests > SILENT else 0


def _position(path: Path) -> Position:
    text, length, written = _tail(path)
    partial = len(text) - (text.rfind(b"\n") + 1)
    return Position(length - partial, written if length else 0.0)


def _tail(path: Path) -> tuple[bytes, int, float]:
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - TAIL))
            return file.read(length), length, path.stat().st_mtime
    except FileNotFoundError:
        return b"", 0, 0.0


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """The whole lines of the file from ``offset`` on, and where they end."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            if length < offset:
                raise LabError(f"{path} is shorter than at the mark: the lab was brought up anew in between")
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return b"", offset
    whole = text.rfind(b"\n") + 1
    return text[:whole], offset + whole

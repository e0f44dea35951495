"""Loss, duplicates, gaps and round-trip times of the guests' pings, between any two marks.

Every guest pings its targets all the time and QEMU appends what the pings print to one file per guest and target.
Nothing runs on the host meanwhile, and any process can ask later. A ``Mark`` remembers how long each file was; sequence
numbers then tell exactly what was sent, lost and doubled between two of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System

SEQUENCES = 1 << 16  # ICMP's sequence number has 16 bits (RFC 792)
TAIL = 4096  # bytes before a mark in which the last sequence number is looked for
SILENT = 10  # so many intervals without a reply, and the requests of that time count as sent
POLL_S = 0.1

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


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a stream: the run, and the highest sequence number answered in it (-1: none)."""

    run: int = 0
    sequence: int = -1


def parse(text: bytes, cursor: Cursor) -> tuple[list[Reply], Cursor]:
    """The replies in ``text``, which continues at ``cursor``, and the place after it. A line "run" begins a new run.

    Sequence numbers continue without a wrap unless half of them (five minutes at 10 ms) pass without a reply.
    """
    run, sequence = cursor.run, cursor.sequence
    found = []
    for line in text.splitlines():
        if line == b"run":
            run, sequence = run + 1, -1
        elif match := _REPLY.match(line):
            number = unwrap(int(match[1]), sequence)
            sequence = max(sequence, number)
            found.append(Reply(run, number, float(match[2])))
    return found, Cursor(run, sequence)


def unwrap(number: int, near: int) -> int:
    """The sequence number nearest to ``near`` that is ``number`` modulo 2^16."""
    half = SEQUENCES // 2
    return near + (number - near + half) % SEQUENCES - half


@dataclass(frozen=True, slots=True)
class Span:
    """Requests ``first`` to ``last`` of a run; none if ``first`` is the greater."""

    run: int
    first: int
    last: int

    def __contains__(self, reply: Reply) -> bool:
        return reply.run == self.run and self.first <= reply.sequence <= self.last


def spans(start: Cursor, during: Iterable[Reply], end: Cursor, silent: tuple[int, int]) -> list[Span]:
    """The requests made between two marks at the places ``start`` and ``end``; ``during`` are the replies between.

    ``silent``: how many requests had gone unanswered at either mark. Of a run that ended between the marks, requests
    after its last answer are not known and not counted.
    """
    tops = {start.run: start.sequence, end.run: end.sequence}
    for reply in during:
        tops[reply.run] = max(tops.get(reply.run, -1), reply.sequence)
    return [
        Span(
            run=run,
            first=start.sequence + silent[0] + 1 if run == start.run else 0,
            last=top + (silent[1] if run == end.run else 0),
        )
        for run, top in sorted(tops.items())
    ]


def missing(wanted: Sequence[Span], found: Iterable[Reply]) -> int:
    """How many requests of the spans have no reply."""
    seen = {(reply.run, reply.sequence) for reply in found if any(reply in span for span in wanted)}
    return sum(max(0, span.last - span.first + 1) for span in wanted) - len(seen)


def statistics(
    stream: Stream, wanted: Sequence[Span], before: Sequence[Reply], found: Sequence[Reply], interval_ms: float
) -> PingStats:
    """The figures of the requests in ``wanted``. ``found`` are all replies that came after the first mark, ``before``
    the last ones that came before it: a gap may begin there."""
    inside = [reply for reply in found if any(reply in span for span in wanted)]
    firsts: dict[tuple[int, int], Reply] = {}
    for reply in inside:
        firsts.setdefault((reply.run, reply.sequence), reply)
    sent = sum(max(0, span.last - span.first + 1) for span in wanted)
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
    """The longest gap that ends within the span; ``None`` if nothing of its run was answered."""
    arrivals = sorted(
        (reply.sequence * interval_ms + reply.rtt_ms, reply in span) for reply in found if reply.run == span.run
    )
    if not arrivals or span.first > span.last:
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
                if len(parse(_read(stream.path, position.length), Cursor())[0]) < replies_each
            ]
            if not quiet:
                return
            if self._system.monotonic() >= end:
                raise LabError(f"no answers to the pings of {', '.join(quiet)} within {timeout_s:g} s")
            self._system.sleep(0.1)

    def _settle(
        self, stream: Stream, first: Position, second: Position, walls: tuple[float, float], end: float
    ) -> PingStats:
        tail = max(0, first.length - TAIL)
        before, start = parse(_read(stream.path, tail)[: first.length - tail], Cursor())
        during, stop = parse(_read(stream.path, first.length)[: second.length - first.length], start)
        interval = self._measured(start, stop, second.written - first.written)
        silent = (_silent(first, walls[0], interval), _silent(second, walls[1], interval))
        wanted = spans(start, during, stop, silent)
        while True:
            found, _ = parse(_read(stream.path, first.length), start)
            if not missing(wanted, found) or self._system.monotonic() >= end:
                return statistics(stream, wanted, before, found, interval)
            self._system.sleep(POLL_S)

    def _measured(self, start: Cursor, stop: Cursor, seconds: float) -> float:
        """Mean time between two requests: the guest's timer adds its own delay to what was asked for."""
        requests = stop.sequence - start.sequence
        if start.run != stop.run or start.sequence < 0 or requests < SILENT:
            return self._interval_ms
        return max(self._interval_ms, 1000 * seconds / requests)


def _silent(position: Position, wall: float, interval_ms: float) -> int:
    """How many requests had gone unanswered at a mark, if the stream was silent; 0 if it flowed."""
    requests = int(1000 * (wall - position.written) / interval_ms) if position.written else 0
    return requests if requests > SILENT else 0


def _position(path: Path) -> Position:
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            written = os.fstat(file.fileno()).st_mtime
            file.seek(max(0, length - TAIL))
            text = file.read(length)
    except FileNotFoundError:
        return Position(0, 0.0)
    return Position(length - len(text) + text.rfind(b"\n") + 1, written if length else 0.0)


def _read(path: Path, offset: int) -> bytes:
    """The whole lines of the file from ``offset`` on."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                raise LabError(f"{path} is shorter than at the mark: the lab was brought up anew in between")
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return b""
    return text[: text.rfind(b"\n") + 1]

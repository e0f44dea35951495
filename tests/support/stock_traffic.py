"""The traffic on a stock host, and what became of it: the guests' pings, a flood and a TCP connection from outside."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.pings import Mark, Pings, Progress, Reply, Stream, parse
from tests.support.stock_guest import StockGuest
from tests.support.stock_space import Space

METERS = Path(__file__).with_name("stock_meters.py")
ECHO_PORT = 5000
_END_S = 15.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of one stream of packets. ``longest_gap_ms``: the longest time between two consecutive answers."""

    stream: str
    sent: int
    lost: int
    doubled: int
    reordered: int
    longest_gap_ms: float | None

    @property
    def intact(self) -> bool:
        return self.sent > 0 and not (self.lost or self.doubled or self.reordered)


@dataclass(frozen=True, slots=True)
class Connection:
    """What became of the TCP connection, in bytes. ``ended``: why it ended early, or ``None``."""

    sent: int
    echoed: int
    ended: str | None
    longest_stall_ms: float
    retransmissions: int

    @property
    def intact(self) -> bool:
        return self.sent > 0 and self.echoed == self.sent and self.ended is None


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that was measured between two moments. ``carrier_changes``: how often each guest's link changed."""

    streams: tuple[Counts, ...]
    connection: Connection | None
    carrier_changes: dict[str, int] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """What was not as it has to be, in words; nothing if every packet arrived once and in order."""
        found = [f"{each}" for each in self.streams if not each.intact]
        if self.connection is not None and not self.connection.intact:
            found.append(f"{self.connection}")
        return found + [
            f"{guest}: {count} changes of the link" for guest, count in self.carrier_changes.items() if count
        ]

    def faults_beyond(self, packets: int) -> list[str]:
        """Like ``faults``, but so many packets in all may be lost, doubled or late: a machine that is busy with other
        tests loses some by itself, and a frame whose copy is under way when its VM changes hands is delivered twice
        (docs/limits.md)."""
        amiss = sum(each.lost + each.doubled + each.reordered for each in self.streams)
        return [] if amiss <= packets and self.others_intact else self.faults()

    @property
    def others_intact(self) -> bool:
        """Whether each stream has sent, TCP continued, and no guest's link changed."""
        connected = self.connection is None or self.connection.intact
        return connected and all(each.sent for each in self.streams) and not any(self.carrier_changes.values())

    def text(self) -> str:
        """One line for each stream, for people."""
        lines = [
            f"{each.stream}: {each.sent} sent, {each.lost} lost, {each.doubled} doubled, {each.reordered} reordered, "
            f"longest gap {each.longest_gap_ms or float('nan'):.1f} ms"
            for each in self.streams
        ]
        if (tcp := self.connection) is not None:
            lines.append(
                f"tcp: {tcp.echoed} of {tcp.sent} bytes, {tcp.retransmissions} retransmissions, "
                f"longest stall {tcp.longest_stall_ms:.0f} ms{f', {tcp.ended}' if tcp.ended else ''}"
            )
        return "\n".join([*lines, f"changes of the links: {self.carrier_changes}"])


class Traffic:
    """Traffic that runs from the beginning of a ``with`` block to its end; after it, ``judgement`` has what was found.

    The guests ping all the time, so their pings between two moments are judged. ``flooded`` and ``echoing`` are the
    guests to which the outside host sends the flood and the TCP connection; ``None`` leaves them out.
    """

    def __init__(
        self,
        space: Space,
        netns: str,
        pings: Pings,
        streams: Sequence[Stream],
        guests: Sequence[StockGuest],
        *,
        flooded: StockGuest | None,
        echoing: StockGuest | None,
        rate: float = 1000.0,
    ) -> None:
        self._space, self._netns = space, netns
        self._pings, self._streams, self._guests = pings, streams, guests
        self._flooded, self._echoing, self._rate = flooded, echoing, rate
        self._meters: dict[str, subprocess.Popen[str]] = {}
        self._links: dict[str, int] = {}
        self._begin: Mark | None = None
        self._judgement: Judgement | None = None

    def __enter__(self) -> Traffic:
        self._links = {guest.name: guest.carrier_changes() for guest in self._guests}
        if self._flooded is not None:
            self._start("flood", f"{self._rate:g}", self._flooded.address)
        if self._echoing is not None:
            serve_echo(self._echoing)
            self._start("tcp", self._echoing.address, str(ECHO_PORT))
        self._begin = self._pings.mark()
        return self

    def __exit__(self, *failed: object) -> None:
        try:
            if failed[0] is None:
                if self._judgement is None:
                    self.stop()
                return
            with contextlib.suppress(
                LabError, ValueError, subprocess.TimeoutExpired
            ):  # the failure itself matters more
                print(self.stop().text())
        finally:
            for meter in self._meters.values():
                meter.kill()
                meter.communicate()

    @property
    def judgement(self) -> Judgement:
        assert self._judgement is not None, "the traffic still runs"
        return self._judgement

    def stop(self) -> Judgement:
        """End the flood and the connection, wait for late answers, and return what was found."""
        assert self._begin is not None
        end = self._pings.mark()
        found = {kind: json.loads(meter.communicate("", _END_S)[0]) for kind, meter in self._meters.items()}
        self._meters.clear()
        streams = self._pings_between(self._begin, end)
        if "flood" in found:
            assert self._flooded is not None
            streams.append(Counts(f"outside -> {self._flooded.name} (flood)", **found["flood"]))
        changes = {guest.name: guest.carrier_changes() - self._links[guest.name] for guest in self._guests}
        self._judgement = Judgement(tuple(streams), Connection(**found["tcp"]) if "tcp" in found else None, changes)
        return self._judgement

    def _start(self, kind: str, *arguments: str) -> None:
        self._meters[kind] = self._space.popen(
            [sys.executable, "-P", str(METERS), kind, *arguments], netns=self._netns,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _pings_between(self, begin: Mark, end: Mark) -> list[Counts]:
        counts = self._pings.between(begin, end)
        return [
            Counts(f"{each.guest} -> {each.target}", each.sent, each.lost, each.duplicated,
                   reordered(_replies(stream, low)), each.longest_gap_ms)
            for each, stream, low in zip(counts, self._streams, begin.lengths, strict=True)
        ]  # fmt: skip


def serve_echo(guest: StockGuest) -> None:
    """Have the guest send back what arrives at the port, if it does not do so already. Raises LabError."""
    guest.run(
        f"netstat -ltn | grep -q :{ECHO_PORT} || {{ (nc -ll -p {ECHO_PORT} -e cat >/dev/null 2>&1 &);"
        f" until netstat -ltn | grep -q :{ECHO_PORT}; do usleep 20000; done; }}"
    )


def reordered(replies: Iterable[Reply]) -> int:
    """How many answers came after one to a later request of the same run."""
    return sum(later.run == earlier.run and later.sequence < earlier.sequence for earlier, later in pairwise(replies))


def _replies(stream: Stream, low: int) -> list[Reply]:
    with stream.path.open("rb") as file:
        file.seek(low)
        return parse(file.read(), Progress())[0]

"""What the metrics keep from one scrape to the next, in ``metrics.json`` in run_dir: it does not outlive a boot.

Programs share the file under a lock: `metrics serve`, and `metrics write` beside it, continue from the same sums.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BusyError
from ovs_hotswap.metrics.catalogue import GAP_BUCKETS, HANDOVER_BUCKETS
from ovs_hotswap.metrics.histogram import Histogram
from ovs_hotswap.metrics.history import EventsRead, History
from ovs_hotswap.metrics.tally import Seen, Tally, drop_of
from ovs_hotswap.model import Side
from ovs_hotswap.system import System, files
from ovs_hotswap.waiting import POLL_S, Deadline

FORMAT = 2
PATIENCE_S = 5.0  # for another program: Prometheus waits for ten seconds by default


@dataclass(frozen=True, slots=True)
class Kept:
    """The sums of packets, and what upgrades and watchdog have done."""

    tally: Tally = field(default_factory=Tally)
    history: History = field(default_factory=History)


class KeptFile:
    """The file. ``lock`` is held from the reading to the writing, and waited for ``patience_s`` seconds."""

    def __init__(self, config: Config, system: System, *, patience_s: float = PATIENCE_S) -> None:
        self._path, self._lock = config.run_dir / "metrics.json", config.run_dir / "metrics.lock"
        self._system, self._patience_s = system, patience_s
        self._seen: tuple[int, int] | None = None  # the mark of the file when it was last read or written here

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the file. Another program that reads the host for its metrics at this moment is waited for. Raises
        BusyError after the patience, and HostError."""
        deadline = Deadline.after(self._patience_s, self._system)
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self._system.lock(self._lock, "a scrape of the metrics"))
                    break
                except BusyError:
                    if deadline.passed:
                        raise
                self._system.sleep(POLL_S)
            yield

    def read(self, known: Kept | None = None) -> Kept:
        """Return what is kept. That is what is ``known`` here, unless another program has written the file since: what
        could not be written is not lost. A damaged file, or one of another version, counts as none. If nothing is known
        here either, every counter begins again, as Prometheus expects of counters."""
        mark = self._mark()
        if known is not None and mark == self._seen:
            return known
        try:
            found = of_document(json.loads(self._path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return known or Kept()
        self._seen = mark
        return found

    def write(self, kept: Kept) -> None:
        """Keep it. Raises HostError."""
        with files(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._system.write_short(self._path, json.dumps(document(kept), separators=(",", ":")) + "\n")
        self._seen = self._mark()

    def _mark(self) -> tuple[int, int] | None:
        """Return what differs once another program has written the file; ``None`` if there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    @property
    def path(self) -> Path:
        return self._path


def document(kept: Kept) -> dict[str, Any]:
    """Return the JSON object of the file."""
    tally, history = kept.tally, kept.history
    return {
        "format": FORMAT,
        "vms": tally.vms, "drops": tally.drops, "flows": tally.flows, "moves": tally.moves,
        "moves_seen": tally.moves_seen, "time": tally.time, "serving": tally.serving, "moved": tally.moved,
        "missing": tally.missing,
        "seen": {
            side: {"process": seen.process, "fresh": seen.fresh, "configured": seen.configured, "drops": seen.drops,
                   "flows": seen.flows, "ports": seen.ports}
            for side, seen in tally.seen.items()
        },
        "upgrades": history.upgrades,
        "rollbacks": [[*key, count] for key, count in history.rollbacks.items()],
        "failovers": history.failovers, "events": history.events,
        "begun": history.begun, "journal": history.journal,
        "read": [history.read.inode, history.read.offset],
        "histograms": {name: [list(each.counts), each.total] for name, each in _histograms(history).items()},
    }  # fmt: skip


def of_document(found: dict[str, Any]) -> Kept:
    """Return what a document says. Raises ValueError, KeyError or TypeError if it is of another version."""
    if found["format"] != FORMAT:
        raise ValueError("another format")
    for key in found["drops"]:
        drop_of(key)
    tally = Tally(
        tuple(found["vms"]), found["drops"], found["flows"], found["moves"], found["moves_seen"], found["time"],
        {vm: Side(side) for vm, side in found["serving"].items()}, found["moved"], found["missing"],
        {Side(side): _seen(seen) for side, seen in found["seen"].items()},
    )  # fmt: skip
    histograms = found["histograms"]
    history = History(
        found["upgrades"], {(step, reason): count for step, reason, count in found["rollbacks"]}, found["failovers"],
        found["events"], _histogram(HANDOVER_BUCKETS, histograms["handovers"]),
        _histogram(GAP_BUCKETS, histograms["failover_gaps"]), _histogram(GAP_BUCKETS, histograms["uplink_gaps"]),
        found["begun"], found["journal"], EventsRead(*found["read"]),
    )  # fmt: skip
    return Kept(tally, history)


def _histograms(history: History) -> dict[str, Histogram]:
    return {name: getattr(history, name) for name in ("handovers", "failover_gaps", "uplink_gaps")}


def _histogram(bounds: tuple[float, ...], found: list[Any]) -> Histogram:
    counts, total = found
    if len(counts) != len(bounds) + 1:
        raise ValueError("other buckets")
    return Histogram(bounds, tuple(counts), total)


def _seen(found: dict[str, Any]) -> Seen:
    process = found["process"]
    ports = {name: (packets, dropped) for name, (packets, dropped) in found["ports"].items()}
    return Seen(None if process is None else (process[0], process[1]), found["fresh"], found["configured"],
                found["drops"], found["flows"], ports)  # fmt: skip

"""The figures that the failover benchmark makes from the guests' logs."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench import deaths, failover
from bench.deaths import Instant, Outage
from bench.failover import Case, Crash, Result
from bench.guests import Events, FleetSpec, Stats, VmSpec
from ovs_hotswap.cli.output import Output

KILL = Instant(1_000_000_000, 50.0)
SPEC = FleetSpec(tuple(VmSpec(f"vm{k}", f"52:54:00:00:00:0{k}", Path("/nowhere")) for k in range(3)))


def events(*entries: tuple[int, float, float]) -> Events:
    """Entries of (ring, time, origin), times in ms from the kill."""
    ring, time, origin = (np.array(column) for column in zip(*entries, strict=True))
    return Events(ring, KILL.monotonic + (time * 1e6).astype(int), KILL.monotonic + (origin * 1e6).astype(int), rings=2)


def test_a_guest_is_back_with_a_frame_that_the_dead_switch_cannot_have_moved() -> None:
    """VM 2 has no partner, so nothing can be said of it."""
    seen = events((1, -1, -1.5), (1, 0.1, -0.1), (1, 9, 0.5), (0, 12, 1), (2, 0.2, -0.2), (3, 8, 7))
    found = deaths.outage(SPEC, seen, KILL)
    assert found == Outage(sending={0: 9.0, 1: 8.0}, receiving={0: 12.0, 1: None})
    assert not found.over
    assert found.values("receiving") == [12.0, math.inf]


def test_the_longest_gap_may_begin_after_the_instant() -> None:
    """VM 0's offers are taken until 5 ms after the crash, and again from 1205 ms on; it receives at 3 and 1100 ms."""
    seen = events((1, -1, -1), (1, 5, 5), (1, 1205, 6), (1, 1206, 7), (0, 3, 3), (0, 1100, 1100), (3, 1, 1), (2, 1, 1))
    found = deaths.longest(SPEC, seen, KILL)
    assert found.sending[0] == 1200.0
    assert found.receiving[0] == 1097.0
    assert found.sending[1] is None


def test_events_are_joined() -> None:
    both = deaths.join(events((1, 1, 1)), events((0, 2, 2)))
    assert both.ring.tolist() == [1, 0]
    assert deaths.outage(SPEC, both, KILL).sending[0] == 1.0


def test_times_since_an_instant_on_both_clocks() -> None:
    assert KILL.since(1_002_500_000) == 2.5
    assert KILL.since_wall(50.25) == 250.0


def result(vms: int, *figures: float | None, doubled: int = 0) -> Result:
    made = Result(Case(vms, 1000, 0, len(figures), 0, 0, 0))
    for figure in figures:
        outage = Outage({0: figure}, {0: figure})
        made.failovers.append(Crash(outage, {"process dead": 1.0}))
    stream = {"source": 0, "queue": 0, "sent": 5, "refused": 0, "waiting": 0, "received": 5, "lost": 0,
              "doubled": doubled, "reordered": 0}  # fmt: skip
    made.stats = Stats.of({"streams": [stream], "broken": 0, "stray": 0, "foreign": 0, "faults": [], "blind": [],
                           "cpu_s": 1.0, "tick_us": {"p50": 60.0, "p99": 70.0, "max": 80.0}})  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("of", "bars"),
    [
        (result(1, *[5.0] * 199, 30.0), 0),  # the 99th percentile leaves one of 200 out
        (result(1, 5.0, 30.0), 2),
        (result(64, 5.0, 49.0), 0),
        (result(64, *[5.0] * 199, 51.0), 2),
        (result(64, 5.0, None), 2),
        (result(64, 5.0, doubled=1), 1),
        (result(16, 1000.0), 0),
    ],
)
def test_bars(of: Result, bars: int) -> None:
    assert len(failover.missed([of])) == bars


def test_stages_are_in_the_order_of_their_times() -> None:
    death = deaths.Death(KILL, 4.0, 5.0)
    stages = failover.stages_of(death, {"detected": 4.5}, Outage({0: 9.0, 1: 3.0}, {0: 7.0, 1: 8.0}))
    assert list(stages.items()) == [
        ("first VM sending", 3.0), ("sockets closed", 4.0), ("detected", 4.5), ("process dead", 5.0),
        ("first VM receiving", 7.0), ("last VM receiving", 8.0), ("last VM sending", 9.0),
    ]  # fmt: skip


def test_the_report_and_the_table() -> None:
    made = result(1, 7.0, 12.5, None)
    document = json.loads(json.dumps(made.document(), allow_nan=False))
    assert document["ms"]["fail-over"]["sending"]["p50"] == 12.5
    assert document["ms"]["restart"]["sending"] == {"p50": None, "p99": None, "max": None}
    text = io.StringIO()
    failover.show(Output(out=text), [made])
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert ["1", "failover", "sending", "3", "12.5", "not", "back", "not", "back"] in rows
    assert ["process", "dead", "1.0", "1.0"] in rows

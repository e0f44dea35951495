"""The soak benchmark's arithmetic."""

from __future__ import annotations

import os

from bench.guests import Stats
from bench.guests.fleet import StreamStats
from bench.soak import Size, Tally, growth, size, tallies


def stream(source: int, sent: int, doubled: int = 0) -> StreamStats:
    return StreamStats(source, 0, sent, 0, 0, sent, 0, doubled, 0)


def test_streams_are_told_by_the_rings_they_use() -> None:
    streams = (stream(0, 5, 1), stream(1, 6), stream(2, 7), stream(4, 8, 2))
    stats = Stats(streams, 0, 0, 0, (), (), 0.0, {})
    assert tallies(stats, vms=4, remote_vms=2) == {
        "from VMs": Tally(11, 0, 1, 0),
        "to VMs": Tally(8, 0, 2, 0),
        "between VMs": Tally(7, 0, 0, 0),
    }


def test_growth_is_told_from_where_everything_was_used_once() -> None:
    sizes = [Size(0, 100, 10), Size(10, 150, 12), Size(20, 151, 12), Size(50, 155, 12)]
    assert growth(sizes) == (5, 0)


def test_size_of_this_process() -> None:
    found = size(os.getpid(), 7)
    assert found.upgrades == 7
    assert found.memory_kb > 1000
    assert found.descriptors >= 3

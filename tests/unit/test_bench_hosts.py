"""What the benchmarks of hosts that others program make of what they measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import hosts
from bench.guests import Events, FleetSpec, VmSpec
from bench.guests.plan import NOBODY
from bench.window_cost import DIRECT, OUTSIDE, OVERLAY, WIRED, Cost, Slot, bases

MS = 1_000_000


def test_how_long_a_qemu_stood_still_is_read_from_the_progress() -> None:
    items = {"vm1": "QEMU stood still for 7.5 ms", "vm2": "QEMU stood still for 12.0 ms", "vm3": "has to wait"}
    assert hosts.still(items) == {"vm1": 7.5, "vm2": 12.0}


def test_the_longest_gap_of_a_vm_is_that_between_its_own_two_instants() -> None:
    times = np.array([0, 1, 5, 6, 26, 27], np.int64) * MS
    both = np.concatenate([times, times])
    events = Events(np.repeat(np.array([0, 2], np.int64), len(times)), both, both, rings=2)
    assert hosts.longest(events, {0: (0, 6 * MS), 1: (0, 27 * MS)}) == [4.0, 20.0]
    assert hosts.longest(events, {2: (0, 27 * MS)}) == []  # it received nothing


@pytest.mark.parametrize(
    ("talking", "targets"),
    [(None, (2, 3, 0, 1, NOBODY)), (1, (2, NOBODY, 0, NOBODY, NOBODY)), (9, (2, 3, 0, 1, NOBODY))],
)
def test_some_pairs_of_vms_have_traffic(talking: int | None, targets: tuple[int, ...]) -> None:
    vms = tuple(VmSpec(f"vm{k}", f"52:54:00:00:00:0{k}", Path("/nowhere")) for k in range(5))
    assert FleetSpec(vms, talking_pairs=talking).targets == targets


def test_each_measurement_is_compared_with_those_of_its_base_before_and_after_it() -> None:
    ways = [OUTSIDE, OVERLAY[0], OVERLAY[1], OUTSIDE, DIRECT, WIRED[1], DIRECT, WIRED[1], OUTSIDE]
    slots = [Slot(way, Cost(float(number), 1.0, 2.0, 0, 0)) for number, way in enumerate(ways, 1)]
    assert bases(slots, OVERLAY[0]) == [(2.0, 2.5)]
    assert bases(slots, OVERLAY[1]) == [(3.0, 2.5)]
    assert bases(slots, WIRED[1]) == [(6.0, 6.0), (8.0, 7.0)]  # the last one has none after it
    assert bases(slots, DIRECT) == [(5.0, 5.0), (7.0, 7.0)]

"""What the benchmark of many VMs makes of its figures."""

from __future__ import annotations

from typing import cast

import numpy as np

from bench.guests import Events
from bench.guests.plan import NOBODY, REMOTE
from bench.scale import CASES, Case, gaps, spread_ms
from ovs_hotswap.host.host import Host
from tests.support.fake_backends import GivenVms, vm_status

MS = 1_000_000


def events(*entries: tuple[int, int]) -> Events:
    """``entries``: ring (two of each VM) and milliseconds."""
    rings = np.array([ring for ring, _ in entries], np.int64)
    times = np.array([ms * MS for _, ms in entries], np.int64)
    return Events(rings, times, times, 2)


def test_the_longest_gap_around_the_moves_counts() -> None:
    vm0 = [(1, 0), (1, 50), (1, 51), (1, 54), (1, 100)]  # sending
    vm1 = [(2, 0), (2, 52), (2, 53)]  # receiving
    found = gaps(events(*vm0, *vm1), [REMOTE, REMOTE, NOBODY], 51 * MS, 53 * MS)
    assert found == {"sending": [3.0], "receiving": [52.0]}


def test_vms_move_within_the_time_between_the_first_and_the_last() -> None:
    vms = GivenVms(*(vm_status(f"vm{number}", owner_since=at) for number, at in enumerate((10.25, 10.0, 10.5))))
    host = type("FakeHost", (), {"backends": vms})()
    assert spread_ms(cast(Host, host)) == 500.0


def test_rates_leave_the_machine_to_the_switch() -> None:
    assert max(case.rate * case.vms for case in CASES) <= 6000.0
    assert Case(1, 1, 1).rate == 1000.0
    assert (Case(255, 4, 1).remote, Case(1, 1, 1).remote) == (31, 1)

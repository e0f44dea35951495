"""Waiting until what was installed is on the disk."""

from __future__ import annotations

import threading

import pytest

from ovs_hotswap.lab.writeback import unwritten_kib, wait_written
from ovs_hotswap.system import System
from tests.unit.fake_system import FakeSystem

MEMINFO = "MemFree:  1000 kB\nDirty:             60448 kB\nWriteback:            12 kB\nWritebackTmp:         7 kB\n"


def test_dirty_pages_and_those_on_their_way_count() -> None:
    assert unwritten_kib(MEMINFO) == 60460


@pytest.mark.parametrize(("amount", "lines"), [(500, 0), (90_000, 1)])
def test_it_waits_for_what_was_there_and_says_so_if_that_is_much(amount: int, lines: int) -> None:
    """It does not matter how much others write during this."""
    told: list[str] = []
    synced: list[bool] = []
    assert wait_written(System(), told.append, unwritten=lambda: amount, sync=lambda: synced.append(True))
    assert (len(told), synced) == (lines, [True])


def test_it_does_not_wait_for_ever() -> None:
    told: list[str] = []
    system, never = FakeSystem(), threading.Event()
    before = system.monotonic()
    assert not wait_written(system, told.append, unwritten=lambda: 1 << 20, sync=lambda: (never.wait(), None)[1])
    assert system.monotonic() - before < 120
    assert "still" in told[-1]
    never.set()

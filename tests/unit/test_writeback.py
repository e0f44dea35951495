"""Waiting until what was installed is on the disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ovs_hotswap.lab.writeback import unwritten_kib, wait_written
from tests.unit.fake_system import FakeSystem

MEMINFO = "MemFree:  1000 kB\nDirty:             60448 kB\nWriteback:            12 kB\nWritebackTmp:         7 kB\n"


def test_dirty_pages_and_those_on_their_way_count() -> None:
    assert unwritten_kib(MEMINFO) == 60460


@pytest.mark.parametrize(("amounts", "lines"), [([500], 0), ([90_000, 80_000, 5_000, 300], 1)])
def test_it_returns_when_little_is_left_and_says_that_it_waits(amounts: list[int], lines: int) -> None:
    told: list[str] = []
    left: Iterator[int] = iter([*amounts, *amounts[-1:]])
    assert wait_written(FakeSystem(), told.append, unwritten=lambda: next(left), sync=lambda: None)
    assert len(told) == lines


def test_it_does_not_wait_for_ever() -> None:
    told: list[str] = []
    system = FakeSystem()
    before = system.monotonic()
    assert not wait_written(system, told.append, unwritten=lambda: 1 << 20, sync=lambda: None)
    assert system.monotonic() - before < 120
    assert "still" in told[-1]

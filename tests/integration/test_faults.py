"""A representative part of the fault matrix; `make faults` runs all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ovs_hotswap.system import System
from tests.faults.__main__ import execute
from tests.faults.bed import Bed, running
from tests.faults.matrix import HANDOVER, IDLE, Cell, Fault, Victim, possible

CELLS = [
    Cell(Fault.KILL, Victim.ACTIVE, IDLE),
    Cell(Fault.STOP, Victim.STANDBY, IDLE),
    Cell(Fault.KILL, Victim.BROKER, IDLE),
    Cell(Fault.KILL, Victim.ORCHESTRATOR, "flows-active"),
    Cell(Fault.STOP, Victim.ACTIVE, "park"),
    Cell(Fault.KILL, Victim.ACTIVE, HANDOVER),
    Cell(Fault.STOP, Victim.STANDBY, HANDOVER),
    Cell(Fault.KILL, Victim.STANDBY, "flows-final"),
    Cell(Fault.KILL, Victim.STANDBY_DB, "park"),
    Cell(Fault.KILL, Victim.QEMU, HANDOVER),
]


@pytest.fixture(scope="module")
def bed(system: System) -> Iterator[Bed]:
    with running(system) as made:
        yield made


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(bed: Bed, cell: Cell) -> None:
    assert possible(cell)
    result = execute(bed, cell)
    assert result.faults == [], result

"""``make faults``: runs the fault matrix, or a selection of it, and prints the table. Exits with 1 if a cell failed.

A line is printed for each cell as it ends: the upgrade's end, the longest time that a VM which was not struck was
without an answer, and the seconds that the cell took, with what was started and mended in them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.system import System
from tests.ending import end_on_sigterm
from tests.faults.bed import Bed, Failed, running
from tests.faults.cell import Runner
from tests.faults.matrix import MOMENTS, Cell, Fault, Seen, Victim, cells, expectation, judge
from tests.faults.strike import Missed

_TRIES = 3
_WIDTH = 120  # columns of a table that goes to a file
_MARKS = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[dim]·[/]"}


@dataclass(frozen=True, slots=True)
class Result:
    """``faults``: what was not as expected; empty if all was. ``seconds``: of the whole cell, until all was at rest."""

    cell: Cell
    faults: list[str]
    seen: Seen
    seconds: float

    def line(self) -> str:
        mark = "FAIL" if self.faults else "ok"
        text = "; ".join([*self.faults, *self.seen.mended])
        worst = f"{self.seen.outage():6.0f} ms"
        return f"{mark:4} {self.cell!s:32} {self.seen.end:12} {worst} {self.seconds:5.1f} s  {text}"

    def document(self) -> dict[str, object]:
        return {"cell": str(self.cell), **dataclasses.asdict(self)}


def execute(bed: Bed, cell: Cell) -> Result:
    """Run a cell; again if its moment was over before it could be struck. Raises as ``Runner.run``."""
    begun, why = time.monotonic(), ""
    for _ in range(_TRIES):
        try:
            seen = Runner(bed, cell).run()
        except Missed as error:
            why = str(error)
            bed.recover()
            continue
        return Result(cell, judge(expectation(cell), cell, seen), seen, time.monotonic() - begun)
    return Result(cell, [f"its moment could not be struck: {why}"], Seen(), time.monotonic() - begun)


def run(wanted: Sequence[Cell], results: list[Result], options: argparse.Namespace) -> None:
    """Run cells on one bed; on a new one after a cell that left it in ruins. ``results`` grows as they end."""
    todo, end = deque(wanted), time.monotonic() + options.seconds
    while todo and time.monotonic() < end:
        with running(System(), print, warm=options.warm) as bed:
            while todo and time.monotonic() < end:
                cell, begun, whole = todo.popleft(), time.monotonic(), True
                try:
                    result = execute(bed, cell)
                except (HotswapError, Failed) as error:
                    text = f"the bed did not come to rest: {error}"
                    result, whole = Result(cell, [text], Seen(), time.monotonic() - begun), False
                results.append(result)
                print(result.line(), flush=True)
                document = json.dumps([each.document() for each in results], indent=2, default=str)
                options.report.write_text(f"{document}\n")
                if result.faults and options.logs is not None:
                    bed.save_logs(options.logs / str(cell).replace(" ", "-"))
                if not whole:
                    break


def show(results: Sequence[Result], console: Console) -> None:
    """The table: a row for each moment, in it a mark for each fault of each victim, in the order of ``Fault``."""
    faults = "/".join(Fault)
    table = Table(title=f"{faults} of each process at each moment", caption="· there is no such process, or not run")
    table.add_column("when")
    for victim in Victim:
        table.add_column(victim, justify="center")
    good = {result.cell: not result.faults for result in results}
    for moment in MOMENTS:
        row = ["".join(_MARKS[good.get(Cell(fault, victim, moment))] for fault in Fault) for victim in Victim]
        table.add_row(moment, *row)
    console.print(table)
    failed = [result for result in results if result.faults]
    for result in failed:
        console.print(f"{result.cell}: {'; '.join(result.faults)}", style="red", markup=False, highlight=False)
    console.print(f"{len(results)} cells, {len(failed)} failed, {sum(each.seconds for each in results):.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--fault", action="append", type=str.lower, choices=[*Fault], help="only this (repeatable)")
    parser.add_argument("--victim", action="append", choices=[*Victim], help="only this (repeatable)")
    parser.add_argument("--when", action="append", choices=MOMENTS, help="only this (repeatable)")
    parser.add_argument("--warm", action="store_true", help="upgrade to the release that runs: to the warm standby")
    parser.add_argument("--from", dest="first", type=int, default=0, help="skip that many cells")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after that time")
    parser.add_argument("--report", type=Path, default=Path("faults-report.json"))
    parser.add_argument("--logs", type=Path, help="keep the logs of failed cells in this directory")
    arguments = parser.parse_args()
    wanted = cells(
        [Fault(each) for each in arguments.fault or Fault],
        [Victim(each) for each in arguments.victim or Victim],
        arguments.when or MOMENTS,
    )
    results: list[Result] = []
    end_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt):
        run(wanted[arguments.first :], results, arguments)
    show(results, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return 1 if not results or any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

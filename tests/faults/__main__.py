"""``make faults``: runs the fault matrix, or a selection of it, and prints the table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.system import System
from tests.faults.bed import Bed, Failed, running
from tests.faults.cell import Runner
from tests.faults.matrix import MOMENTS, Cell, Fault, Seen, Victim, cells, expectation, judge
from tests.faults.strike import Missed

_TRIES = 3


def execute(bed: Bed, cell: Cell) -> tuple[Seen, list[str]]:
    """Run a cell; again if its moment could not be struck. Returns what was seen and what of it is wrong."""
    for _ in range(_TRIES):
        try:
            seen = Runner(bed, cell).run()
        except Missed:
            bed.recover()
            continue
        return seen, judge(cell, expectation(cell), seen)
    return Seen(), ["its moment could not be struck"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--fault", action="append", type=str.lower, choices=[*Fault], help="only these")
    parser.add_argument("--victim", action="append", choices=[*Victim], help="only these")
    parser.add_argument("--when", action="append", choices=MOMENTS, help="only these")
    parser.add_argument("--report", type=Path, default=Path("faults-report.json"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after that time")
    parser.add_argument("--logs", type=Path, help="keep the logs of failed cells there")
    arguments = parser.parse_args()
    wanted = cells(
        [Fault(each) for each in arguments.fault or Fault],
        [Victim(each) for each in arguments.victim or Victim],
        arguments.when or MOMENTS,
    )
    results: list[dict[str, Any]] = []
    begun = time.monotonic()
    todo = list(wanted)
    while todo and time.monotonic() - begun < arguments.seconds:
        with running(System(), print) as bed:
            while todo and time.monotonic() - begun < arguments.seconds:
                cell = todo.pop(0)
                start = time.monotonic()
                try:
                    seen, faults = execute(bed, cell)
                    broken = False
                except (HotswapError, Failed) as error:
                    seen, faults, broken = Seen(), [f"the bed did not come to rest: {error}"], True
                worst = max((gap for gap in seen.outage_ms.values() if gap is not None), default=0.0)
                took = time.monotonic() - start
                line = f"{'FAIL' if faults else 'ok':4} {cell!s:32} {seen.end:12} {worst:7.0f} ms {took:5.1f} s"
                print(line, "; ".join([*faults, *seen.mended]), flush=True)
                if faults:
                    print("       ", seen.message, flush=True)
                    if arguments.logs:
                        bed.save_logs(arguments.logs / str(cell).replace(" ", "-"))
                results.append({"cell": str(cell), "faults": faults, **dataclasses.asdict(seen)})
                arguments.report.write_text(json.dumps(results, indent=2, default=str) + "\n")
                if broken:
                    break
    failed = sum(bool(each["faults"]) for each in results)
    print(f"{len(results)} cells, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

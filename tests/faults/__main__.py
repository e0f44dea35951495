"""``make faults``: runs the fault matrix, or a selection of it, and prints the table. Exits with 1 if a cell failed, or
was not run.

A line is printed for each cell as it ends: the upgrade's end, the longest time that a VM which was not struck was
without an answer, and the seconds that the cell took, with what was started and repaired in them.

The matrix can be run in pieces: with ``--resume`` cells that were as expected on exactly these sources are not run
again, and the report and the table have all cells. With ``--jobs`` several beds are up at once, and each takes the next
cell.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from rich.console import Console

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.lab.hugepages import ensure_hugepages, restore_hugepages
from ovs_hotswap.system import System
from tests.faults.bed import Bed, Failed, hugepages_mb, running
from tests.faults.cell import Runner
from tests.faults.matrix import MOMENTS, Cell, Fault, Seen, Victim, cells, expectation, judge
from tests.faults.report import Report, Result, revision, show
from tests.faults.strike import Missed
from tests.support.ending import end_on_sigterm

_TRIES = 3
_WIDTH = 160  # columns of a table that goes to a file
_ROOT = Path(__file__).parents[2]
_START_LOCK = Path("/run/lock/ovs-hotswap-faults")


def execute(bed: Bed, cell: Cell) -> Result:
    """Run a cell, and repeat it if its moment was over before it could be struck. Raises what ``Runner.run`` raises."""
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


class Todo:
    """The cells to run, shared by the processes that run them."""

    def __init__(self, wanted: Sequence[Cell], seconds: float) -> None:
        self._cells, self._end = list(wanted), time.monotonic() + seconds
        self._next = multiprocessing.Value("i", 0)

    def peek(self) -> Cell | None:
        """The next cell; ``None`` if there is none, or time is up."""
        place = self._next.value
        return self._cells[place] if place < len(self._cells) and time.monotonic() < self._end else None

    def take(self, *, clocked: bool) -> Cell | None:
        """Take the next cell; ``None`` if there is none, or it needs another kind of bed."""
        with self._next.get_lock():
            cell = self.peek()
            if cell is None or (cell.victim is Victim.CLOCK) != clocked:
                return None
            self._next.value += 1
            return cell


def run(todo: Todo, done: SimpleQueue[Result | None], options: argparse.Namespace) -> None:
    """Run cells on one bed after the other; after a cell that leaves a bed in ruins, on a new one. Ctrl-C is ignored
    here: the parent process, which waits for this one, ends it."""
    signal.signal(signal.SIGINT, lambda _number, _frame: None)  # not ignored: that would be inherited
    end_on_sigterm()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while (cell := todo.peek()) is not None:
                _on_a_bed(todo, done, options, clocked=cell.victim is Victim.CLOCK)
    finally:
        done.put(None)


def _on_a_bed(todo: Todo, done: SimpleQueue[Result | None], options: argparse.Namespace, *, clocked: bool) -> None:
    with contextlib.ExitStack() as stack:
        with _one_at_a_time():
            bed = stack.enter_context(running(System(), print, warm=options.warm, clocked=clocked))
        whole = True
        while whole and (cell := todo.take(clocked=clocked)) is not None:
            begun = time.monotonic()
            try:
                result = execute(bed, cell)
            except (HotswapError, Failed) as error:
                text = f"the bed did not come to rest: {error}"
                result, whole = Result(cell, [text], Seen(), time.monotonic() - begun), False
            done.put(result)
            if result.faults and options.logs is not None:
                bed.save_logs(options.logs / str(cell).replace(" ", "-"))


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Bring up one lab at a time, because each takes the huge pages that it finds free."""
    with _START_LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _huge_pages(jobs: int) -> Iterator[None]:
    """Make huge pages available for all beds at once, so that no bed changes the pool while another uses it."""
    before = ensure_hugepages(jobs * hugepages_mb(System()), System())
    try:
        yield
    finally:
        if before is not None:
            restore_hugepages(before)


def run_all(wanted: Sequence[Cell], report: Report, options: argparse.Namespace) -> None:
    """Run the wanted cells, and add each to ``report`` as it ends."""
    done: SimpleQueue[Result | None] = multiprocessing.SimpleQueue()
    todo = Todo(wanted, options.seconds)
    with _huge_pages(options.jobs):
        beds = [multiprocessing.Process(target=run, args=(todo, done, options)) for _ in range(options.jobs)]
        for bed in beds:
            bed.start()
        at_work = len(beds)
        while at_work:
            try:
                result = done.get()
            except KeyboardInterrupt:
                for bed in beds:
                    bed.terminate()
                continue
            if result is None:
                at_work -= 1
                continue
            report.add(result)
            print(result.line(), flush=True)
        for bed in beds:
            bed.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--fault", action="append", type=str.lower, choices=[*Fault], help="only this (repeatable)")
    parser.add_argument("--victim", action="append", choices=[*Victim], help="only this (repeatable)")
    parser.add_argument("--when", action="append", choices=MOMENTS, help="only this (repeatable)")
    parser.add_argument("--warm", action="store_true", help="upgrade to the release that runs: to the warm standby")
    parser.add_argument("--from", dest="first", type=int, default=0, help="skip that many cells")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after that time")
    parser.add_argument("--jobs", type=int, default=1, help="beds at once")
    parser.add_argument("--report", type=Path, default=Path("faults-report.json"))
    parser.add_argument("--resume", action="store_true", help="add to the report; skip what is good on these sources")
    parser.add_argument("--logs", type=Path, help="keep the logs of failed cells in this directory")
    arguments = parser.parse_args()
    wanted = cells(
        [Fault(each) for each in arguments.fault or Fault],
        [Victim(each) for each in arguments.victim or Victim],
        arguments.when or MOMENTS,
    )[arguments.first :]
    report = Report(arguments.report, warm=arguments.warm, revision=revision(_ROOT), resume=arguments.resume)
    end_on_sigterm()
    run_all(report.left(wanted), report, arguments)
    results = list(report.results.values())
    missing = sum(cell not in report.results for cell in wanted)
    show(results, missing, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return 1 if missing or any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

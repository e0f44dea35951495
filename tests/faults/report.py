"""The results of cells: as a line, in a report to which several runs can add, and as a table."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ovs_hotswap.system import System
from tests.faults.matrix import MOMENTS, Cell, Fault, Seen, Victim

_SOURCES = ("ovs_hotswap", "tests/faults")
_MARKS = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[dim]·[/]"}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a cell. ``faults``: what was not as expected; empty if all was. ``seconds``: the time of the whole
    cell, until all was at rest. ``seen`` is ``None`` if the result was read from a report."""

    cell: Cell
    faults: list[str]
    seen: Seen | None
    seconds: float

    def line(self) -> str:
        seen, mark = self.seen or Seen(), "FAIL" if self.faults else "ok"
        text = "; ".join([*self.faults, *seen.mended])
        return f"{mark:4} {self.cell!s:32} {seen.end:12} {seen.outage():6.0f} ms {self.seconds:5.1f} s  {text}"


class Report:
    """The file with the newest result of each cell. ``results``: the results that count, by cell."""

    def __init__(self, path: Path, *, warm: bool, revision: str, resume: bool) -> None:
        self._path, self._head = path, {"revision": revision, "warm": warm}
        self._documents: dict[Cell, dict[str, object]] = {}
        self.results: dict[Cell, Result] = {}
        if resume and path.exists():
            self._read()

    def _read(self) -> None:
        found = json.loads(self._path.read_text())
        if {key: found[key] for key in self._head} != self._head:
            return  # the report is about other sources, so nothing of it counts
        for each in found["cells"]:
            cell = Cell(Fault(each["fault"]), Victim(each["victim"]), each["moment"])
            self._documents[cell] = each
            self.results[cell] = Result(cell, each["faults"], None, each["seconds"])

    def left(self, wanted: Iterable[Cell]) -> list[Cell]:
        """The wanted cells that are not known to be as expected."""
        return [cell for cell in wanted if cell not in self.results or self.results[cell].faults]

    def add(self, result: Result) -> None:
        self.results[result.cell] = result
        self._documents[result.cell] = {
            **dataclasses.asdict(result.cell), "faults": result.faults, "seconds": round(result.seconds, 3),
            "seen": None if result.seen is None else dataclasses.asdict(result.seen),
        }  # fmt: skip
        document = {**self._head, "cells": list(self._documents.values())}
        System().write_atomic(self._path, json.dumps(document, indent=2, default=str) + "\n")


def revision(root: Path) -> str:
    """A hash of the code of the program and of the matrix, committed or not, which identifies what was tested. A change
    of a comment, a docstring or the layout of a line does not change it."""
    digest = hashlib.sha256()
    for directory in _SOURCES:
        for path in sorted((root / directory).rglob("*.py")):
            tree = _Undocumented().visit(ast.parse(path.read_bytes()))
            digest.update(f"{path.relative_to(root)}\0{ast.dump(tree)}\0".encode())
    return digest.hexdigest()[:16]


class _Undocumented(ast.NodeTransformer):
    """Removes strings that are statements: docstrings, wherever they stand."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def show(results: Sequence[Result], missing: int, console: Console) -> None:
    """Print a row for each moment, with a mark for each fault of each victim in their order, and the number of cells.
    ``missing``: the number of selected cells that have not been run."""
    table = Table(title="each fault of each victim at each moment", caption="· there is none, or not run")
    table.add_column("when")
    for victim in Victim:
        table.add_column("\n".join((victim, *victim.faults)), justify="center")
    good = {result.cell: not result.faults for result in results}
    for moment in MOMENTS:
        row = ["".join(_MARKS[good.get(Cell(fault, victim, moment))] for fault in victim.faults) for victim in Victim]
        table.add_row(moment, *row)
    console.print(table)
    failed = [result for result in results if result.faults]
    for result in failed:
        console.print(f"{result.cell}: {'; '.join(result.faults)}", style="red", markup=False, highlight=False)
    seconds = sum(each.seconds for each in results)
    left = f", {missing} not run" if missing else ""
    console.print(f"{len(results)} cells, {len(failed)} failed{left}, {seconds:.0f} s of cells")

"""What commands print: text for people, with rich on a terminal and as plain lines elsewhere, or one JSON document.

A command calls ``table``, ``line`` and ``findings`` for people and ``document`` for programs; each does nothing in the
other mode. Errors are printed to standard error as ``error:`` and ``hint:`` lines; in JSON mode they are printed to
standard output as ``{"error": {"class", "message", "hint", "exit_code"}}``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from ovs_hotswap.cli.sink import Sink
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.wording import summary

if TYPE_CHECKING:  # rich takes longer to import than `--help` may take
    from rich.console import Console

    from ovs_hotswap.cli.progress import Progress

MARKS = {Severity.OK: "ok", Severity.WARNING: "WARN", Severity.ERROR: "FAIL", Severity.UNKNOWN: "?"}
STYLES = {"ok": "green", "WARN": "yellow", "FAIL": "bold red", "?": "magenta"}


class Output:
    """The output of one command. ``json``: print one JSON document on ``out``. ``source``: where answers to questions
    are read. ``out``, ``err`` and ``source`` are the process's standard streams unless given."""

    def __init__(
        self,
        *,
        json: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        source: TextIO | None = None,
    ) -> None:
        self.json = json
        self._source = source
        self._given = out, err
        self._sinks: dict[int, tuple[TextIO | None, Sink]] = {}
        self.done = False
        """Whether the command has done what it was asked for. Then it does not fail because the result cannot be
        printed."""
        self._progress: Progress | None = None
        self._held: list[str] = []

    @property
    def out(self) -> Sink:
        return self._sink(0, sys.stdout)

    @property
    def err(self) -> Sink:
        return self._sink(1, sys.stderr)

    @property
    def unprinted(self) -> OSError | None:
        """The error because of which not all of the output could be printed; ``None`` if there is none."""
        return self.out.fault

    def _sink(self, number: int, default: TextIO | None) -> Sink:
        stream = self._given[number] or default
        if number not in self._sinks or self._sinks[number][0] is not stream:
            self._sinks[number] = stream, Sink(stream)
        return self._sinks[number][1]

    @property
    def terminal(self) -> bool:
        """Whether the text is printed on a terminal."""
        return not self.json and self.out.isatty()

    @property
    def asks(self) -> bool:
        """Whether a person can be asked. In a script or a unit, and in JSON mode, there is none."""
        source = self._source or sys.stdin  # None if it was closed
        return not self.json and source is not None and source.isatty() and self.err.isatty()

    def confirm(self, question: str) -> None:
        """Ask a question, if a person can be asked. Raises click.Abort unless the answer is yes."""
        if self.asks and not self.ask(question):
            raise click.Abort

    def ask(self, question: str) -> bool:
        """Ask a person a question, and return whether the answer is yes."""
        print(f"{question} [y/N] ", end="", file=self.err, flush=True)
        return (self._source or sys.stdin).readline().strip().lower() in {"y", "yes"}

    def console(self) -> Console:
        from rich.console import Console

        return Console(file=cast(TextIO, self.out), highlight=False)

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        if not self.json:
            self.catch_up()
            print(text, file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Print a line for people about work that is under way, which must not wait for a reader. A line that cannot be
        written at once is printed with a later one, or at the end."""
        if self.json:
            return
        self._held.append(text)
        while self._held and self.out.takes(self._held[0]):
            print(self._held.pop(0), file=self.out, flush=True)

    def catch_up(self) -> None:
        """Print the lines that ``note`` could not print at once."""
        while self._held:
            print(self._held.pop(0), file=self.out, flush=True)

    def warning(self, text: str) -> None:
        """Print a line on standard error, in both modes."""
        print(f"warning: {text}", file=self.err, flush=True)

    def document(self, value: object, *, indent: int | None = 2) -> None:
        """Print the JSON document for programs. Dataclasses become objects; enumerations and paths become strings. With
        ``indent`` ``None`` it is one line."""
        if self.json:
            print(json.dumps(value, indent=indent, default=plain), file=self.out, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        """Print a table for people. ``None`` is shown as ``-``."""
        if self.json:
            return
        cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
        if self.terminal:
            self._rich_table(columns, cells, title)
            return
        if title:
            self.line(title)
        for text in aligned([[column.upper() for column in columns], *cells]):
            self.line(text)

    def findings(self, findings: Iterable[Finding]) -> None:
        """Print the results of checks for people. A finding about many VMs or flows is one line."""
        rows = [(MARKS[each.severity], each.check, each.text, each.hint or "") for each in summary(list(findings))]
        self.table(("result", "check", "finding", "hint"), rows)

    def error(self, error: HotswapError) -> None:
        """Print an error in this mode's way."""
        self.fault(type(error).__name__, error.message, error.hint, error.exit_code)

    def fault(self, kind: str, message: str, hint: str | None, exit_code: int) -> None:
        if self.json:
            document: dict[str, object] = {
                "error": {"class": kind, "message": message, "hint": hint, "exit_code": exit_code}
            }
            if self._progress is not None:
                document["steps"] = self._progress.report() if self._progress.begun else []
            self.document(document)
            return
        for label, text in (("error", message), ("hint", hint or "")):
            for part in text.splitlines():
                print(f"{label}: {part}", file=self.err, flush=True)

    def progress(self, steps: Sequence[tuple[str, str]]) -> Progress:
        """A context manager that shows a plan's events. ``steps``: the name and the description of each step. In JSON
        mode nothing is shown, and an error document has the steps so far as ``steps``, which are none if the plan was
        refused as a whole."""
        from ovs_hotswap.cli.progress import Progress

        self._progress = Progress(self, steps)
        return self._progress

    def _rich_table(self, columns: Sequence[str], cells: Sequence[Sequence[str]], title: str | None) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        self.console().print(table)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines, in which each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plain(value: object) -> object:
    """What ``json.dumps`` cannot write itself, as something that it can. Raises TypeError."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} has no JSON form")

"""What benchmarks of several cases share: which are chosen, and a report that is written after each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.machine import machine
from ovs_hotswap.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--report", type=Path, default=Path(f"{name}-report.json"))
    parser.add_argument("--cases", nargs="*", metavar="CASE", help="only those whose names contain one of these")


Case = TypeVar("Case")
Result = TypeVar("Result")


def each_case(
    cases: Iterable[Case],
    arguments: argparse.Namespace,
    output: Output,
    measure: Callable[[Case], Result],
    document: Callable[[Result], object],
) -> list[Result]:
    """Run every chosen case by ``measure``; the report holds the ``document`` of each result, below "cases"."""
    results: list[Result] = []
    for case in cases:
        if not chosen(str(case), arguments.cases):
            continue
        output.line(f"case: {case}")
        results.append(measure(case))
        report = {"machine": machine(), "cases": [document(result) for result in results]}
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    output.line()
    return results


def chosen(name: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(text in name for text in wanted)

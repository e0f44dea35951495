"""Runs over ten thousand hosts, simulated: docs/fleet.md and its plots, from measured durations and named assumptions.

Pure but for the pages that are read and written: the same sources make the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.drawing import draw
from bench.fleet import measured, page
from bench.fleet.model import Assumed
from bench.fleet.studies import Laboratory
from ovs_hotswap.cli.output import Output
from ovs_hotswap.system import System


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=60, help="simulated runs for each figure")
    parser.add_argument("--measured", type=Path, default=Path(measured.PAGE), help="the page with the durations")
    parser.add_argument("--target", type=Path, default=Path("docs/fleet.md"))


def run(arguments: argparse.Namespace, output: Output, _system: System) -> int:
    """Exit status: 0. Raises ValueError if a page has not what it should have."""
    lab = Laboratory(measured.durations(arguments.measured.read_text()), Assumed(), arguments.runs)
    made = page.make(lab)
    target: Path = arguments.target
    target.write_text(page.replaced(target.read_text(), made.parts))
    for name, paint in made.plots.items():
        draw(target.with_suffix("") / f"{name}.svg", paint)
    output.line(f"{target}: {', '.join(made.parts)}; {', '.join(made.plots)}")
    return 0

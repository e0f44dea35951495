"""The benchmarks: ``python -m bench [NAME]``; without a name the handover under QEMU guests (``make bench``)."""

from __future__ import annotations

import argparse
import sys

from bench import (
    alternatives,
    bursts,
    diagnose,
    failover,
    fleet,
    floods,
    flowlog,
    forwarding,
    hosts,
    kinds,
    modes,
    moves,
    phases,
    report,
    scale,
    scrape,
    soak,
    takeover,
    trace_cost,
    window_cost,
)
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.system import System
from tests.support.ending import end_on_sigterm

BENCHMARKS = {
    "moves": moves, "failover": failover, "scale": scale, "soak": soak, "alternatives": alternatives, "phases": phases,
    "forwarding": forwarding, "floods": floods, "kinds": kinds, "modes": modes, "takeover": takeover, "fleet": fleet,
    "report": report, "window": window_cost,
    "hosts": hosts, "flowlog": flowlog, "diagnose": diagnose, "scrape": scrape, "trace": trace_cost,
    "bursts": bursts,
}  # fmt: skip


def main(words: list[str]) -> int:
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["moves", *words]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_arguments(names.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args(words)
    output = Output()
    end_on_sigterm()
    try:
        return int(BENCHMARKS[arguments.name].run(arguments, output, System()))
    except HotswapError as error:
        output.error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

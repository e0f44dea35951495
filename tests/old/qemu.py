"""QEMU 2.9.0 with the series for two back ends: guests of the lab between two instances of the host's Open vSwitch,
without a broker.

Moves the guests to and fro by QMP in a row, then kills the active instance again and again beside a watchdog, all the
time under pings. After each kill it waits until every guest is on the other instance and parked on the new one. Prints
a JSON document; the exit status is 1 if a guest booted a second time, or not all are on the same side at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.bed import WATCH
from bench.modes import ModeBench
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.system import System
from tests.support.ending import end_on_sigterm

_DIRECTORY = Path("/run/ovs-hotswap-old-qemu")
_OPTIONS = Path(__file__).with_name("qemu-2.9.sh")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises HotswapError."""
    os.environ["OVS_HOTSWAP_OLD_QEMU"] = str(arguments.qemu.resolve())
    system = System()
    options = GuestOptions(backend=BackendMode.QEMU_DUAL, qemu=str(_OPTIONS), queues=arguments.queues, memory_mb=128)
    lab = Lab(_DIRECTORY, arguments.vms, system, options)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        lab.config_path.write_text(lab.config_path.read_text() + WATCH)
        bench = ModeBench(lab, system, Output(out=sys.stderr), suite=None)
        bench.run(arguments.moves, arguments.kills)
        vms = Host(lab.config, system).backends.vms()
        boots = [guest.boots() for guest in lab.guests]
    return {
        "moves_us": _figures(bench.times_us), "failover_us": _figures(bench.failover_us), "boots": boots,
        "vms": [{key: vm.document()[key] for key in ("name", "owner", "certainty", "moves")} for vm in vms],
        "phases": [
            {"name": phase.name, "sent": phase.sent, "lost": phase.lost, "doubled": phase.duplicated,
             "longest_gap_ms": phase.longest_gap_ms}
            for phase in bench.phases
        ],
    }  # fmt: skip


def _figures(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    parts = {f"p{round(100 * part)}": quantile(ordered, part) for part in (0.5, 0.99)}
    return {"count": len(ordered), **parts, "max": ordered[-1] if ordered else None}


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.old.qemu", description=__doc__)
    parser.add_argument("qemu", type=Path, help="qemu-system-x86_64 of 2.9.0, in the directory that it was built in")
    parser.add_argument("--vms", type=int, default=2)
    parser.add_argument("--queues", type=int, default=1, help="queue pairs")
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--kills", type=int, default=5)
    try:
        found = run(parser.parse_args())
    except HotswapError as error:
        Output().error(error)
        return error.exit_code
    print(json.dumps(found, indent=2))
    sides = {(vm["owner"], vm["certainty"]) for vm in found["vms"]}
    return int(len(sides) != 1 or sides.pop()[1] != "owns" or set(found["boots"]) != {1})


if __name__ == "__main__":
    sys.exit(main())

"""Handovers between two instances of Open vSwitch 2.9.0 with DPDK 17.11, under traffic, through the real broker.

Every VM sends frames to itself: both instances give back what a VM sends, so that each VM can be moved alone. Prints a
JSON document; the exit status is 1 if an instance ended, a ring broke, a frame came twice or a VM is not served at the
end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.guests import Fleet, VmSpec
from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.lab.pings import quantile
from ovs_hotswap.model import Side
from tests.old.echo import EchoSpec
from tests.old.switch import OldSwitch, OldSwitchError
from tests.support.broker_process import BrokerProcess
from tests.support.ending import end_on_sigterm

_READY_S = 30.0
_FENCE_MS = 1000
_POLL_S = 0.05


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [f"vm{number}" for number in range(arguments.vms)]
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(names, fence_ms=_FENCE_MS))
        switches: dict[Side, OldSwitch] = {}

        def add(side: Side, core: int) -> None:
            switches[side] = stack.enter_context(OldSwitch(arguments.tree, side, broker.sockets(side), core))
            switches[side].echo()

        add(Side.A, 0)
        vms = tuple(VmSpec(name, f"52:54:00:00:00:{n:02x}", broker.qemu_path(name)) for n, name in enumerate(names))
        spec = EchoSpec(vms, pairs=arguments.queues, hugepages=arguments.hugepages)
        fleet = stack.enter_context(Fleet(spec))
        client = stack.enter_context(broker.client())
        fleet.wait_served(_READY_S)
        fleet.start(arguments.rate)
        fleet.wait_flowing(_READY_S)
        add(Side.B, 1)  # as an upgrade does: when the guests run
        park_all(client, names, Side.B)
        times: list[float] = []
        to = Side.B
        while len(times) < arguments.moves:
            for name in names:
                times.append(client.move(name, to).total_us)
                time.sleep(arguments.pause)
            for switch in switches.values():
                switch.check()
            to = to.other
        fleet.wait_flowing(_READY_S)
        stats = fleet.stop()
        for side, switch in switches.items():
            switch.check()
            if arguments.logs is not None:
                (arguments.logs / f"{side}.log").write_text(switch.log)
    ordered = sorted(times)
    return {
        "moves": len(times), "p50_us": quantile(ordered, 0.5), "p99_us": quantile(ordered, 0.99), "max_us": ordered[-1],
        **{figure: stats.total(figure) for figure in ("sent", "received", "lost", "doubled", "reordered", "refused")},
        "waiting": stats.total("waiting"), "broken": stats.broken, "stray": stats.stray, "faults": list(stats.faults),
    }  # fmt: skip


def park_all(client: BrokerClient, names: list[str], side: Side) -> None:
    """Raises OldSwitchError if the ports of that side do not connect."""
    end = time.monotonic() + _READY_S
    while not all(vm.switches[side].connected for vm in client.vms()):
        if time.monotonic() > end:
            raise OldSwitchError(f"{side}: not connected after {_READY_S:g} s")
        time.sleep(_POLL_S)
    for name in names:
        client.park(name, side)


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.old", description=__doc__)
    parser.add_argument("tree", type=Path, help="where Open vSwitch 2.9.0 was built")
    parser.add_argument("--vms", type=int, default=2)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5000.0, help="frames a second of each VM")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two moves")
    parser.add_argument("--hugepages", action="store_true", help="guest memory in 2 MiB pages")
    parser.add_argument("--logs", type=Path, help="directory for the instances' logs")
    found = run(parser.parse_args())
    print(json.dumps(found, indent=2))
    bad = found["faults"] or found["doubled"] or found["broken"] or found["stray"] or found["waiting"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

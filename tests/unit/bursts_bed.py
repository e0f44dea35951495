"""A healthy switch as `bursts` sees it: a NIC and two VMs, whose counters grow. Tests plant faults in its looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ovs_hotswap.bursts.values import NIC, VM_PORT, Cost, Look, Port, Window
from ovs_hotswap.counters.values import PmdCounters
from ovs_hotswap.diagnose.core_use import CoreTime
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.switch.rxqs import RxQueue

INTERVALS = 10
STEP_S = 0.1
CYCLES = 1_000_000  # of a thread in an interval
RAN = 0.25  # the share of the time for which each thread runs by the scheduler's account
UPLINK = Port("uplink", NIC, "br0", 1, "net_i40e", {"dpdk-devargs": "0000:03:02.0"}, most_queues=8,
              queues=(RxQueue(0, 2, True, 0),))  # fmt: skip
VM1 = Port("vm1", VM_PORT, "br0", 10, queues=(RxQueue(0, 2, True, 0),), ring=256)
VM2 = Port("vm2", VM_PORT, "br0", 11, queues=(RxQueue(0, 3, True, 0),), ring=256)
PORTS = {port.name: port for port in (UPLINK, VM1, VM2)}
GROWTH = {"rx_packets": 5000, "tx_packets": 5000}


def window(
    losses: Mapping[tuple[str, str], Mapping[int, int]] | None = None,
    busy: Mapping[int, float | Mapping[int, float]] | None = None,
    threads: Mapping[int, Mapping[str, int]] | None = None,
    waits: Mapping[int, float] | None = None,
    ports: Mapping[str, Port] | None = None,
    growth: Mapping[str, Mapping[str, int]] | None = None,
    **changes: Any,
) -> Window:
    """A second in ten intervals. ``losses``: by port and counter, what it grows by in the intervals that are named.
    ``busy``: the share of its cycles in which the thread on a core had packets, in all intervals or by interval, with
    the others at 5 %. ``threads``: what else of a thread grows in each interval. ``waits``: the share of the time for
    which it waits for its core. ``growth``: what counters of a port grow by in each interval. ``changes``: of the
    window."""
    known = {**PORTS, **(ports or {})}
    shares = {2: 0.05, 3: 0.05, **(busy or {})}
    looks = [
        Look(
            100.0 + number * STEP_S,
            tuple(_pmd(core, shares[core], (threads or {}).get(core, {}), number) for core in sorted(shares)),
            {name: _counters(name, number, losses or {}, (growth or {}).get(name, {})) for name in known},
            {core: _account(core, number * STEP_S, (waits or {}).get(core, 0.0)) for core in shares},
        )
        for number in range(INTERVALS + 1)
    ]  # fmt: skip
    found = Window(
        tuple(looks), known, {}, "/run/a/vswitchd.ctl", "/run/a/db.sock", pools=(PacketPool(0, 262144, 20000, 3000),),
        cost=Cost(11, 1.0, 0.01),
    )  # fmt: skip
    return replace(found, **changes)


def _account(core: int, seconds: float, waits: float) -> CoreTime:
    return CoreTime(core, int(seconds * 1e9 * RAN), int(seconds * 1e9 * waits))


def _pmd(core: int, share: float | Mapping[int, float], more: Mapping[str, int], number: int) -> PmdCounters:
    spent = [share.get(each, 0.05) if isinstance(share, Mapping) else share for each in range(number)]
    busy = round(sum(spent) * CYCLES)
    counted = {name: count * number for name, count in more.items()}
    return PmdCounters(core // 4, core, number * CYCLES - busy, busy, **{"received": 9000 * number, **counted})


def _counters(
    name: str, number: int, losses: Mapping[tuple[str, str], Mapping[int, int]], growth: Mapping[str, int]
) -> dict[str, int]:  # fmt: skip
    found = {counter: count * number for counter, count in {**GROWTH, **growth}.items()}
    for (port, counter), by_interval in losses.items():
        if port == name:
            found[counter] = sum(lost for each, lost in by_interval.items() if each < number)
    return found


MISSED = {("uplink", "rx_missed_errors"): {3: 400, 7: 800}}
NOT_TAKEN = {("vm1", "ovs_tx_failure_drops"): {3: 300, 7: 500}}
NOT_SENT = {("uplink", "ovs_tx_failure_drops"): {3: 40}}
STEADY = {each: 100 for each in range(INTERVALS)}


def queues(*cores: int, isolated: bool = False) -> tuple[RxQueue, ...]:
    """Queues of a port, each on the thread of a core."""
    return tuple(RxQueue(number, core, True, 0, isolated) for number, core in enumerate(cores))

"""The bed of the benchmarks of hosts that others program: real QEMUs whose guests are simulated, on a stock switch."""

from __future__ import annotations

from bench.stock_bed import StockBed
from ovs_hotswap.system import System

READY_S = 20.0


def test_simulated_guests_exchange_frames_on_all_queues(system: System) -> None:
    with StockBed(system, 4, 2, talking_pairs=1) as bed:
        fleet = bed.fleet
        fleet.start(200)
        fleet.wait_flowing(READY_S)  # each stream of either queue pair
        stats = fleet.stop()
        assert {(each.source, each.queue) for each in stats.streams} == {(0, 0), (0, 1), (2, 0), (2, 1)}
        assert (stats.total("lost"), stats.broken, stats.stray, stats.faults) == (0, 0, 0, ())
        assert bed.unreported() == set()
        fleet.relink(["vm1"])
        fleet.start(200)
        fleet.wait_flowing(READY_S)
        assert fleet.stop().faults == ()

"""Simulated guests: hundreds of VMs with real vhost-user front ends and rings, served by two processes.

The benchmark's own process plays QEMU (``front``); ``driver``, a process that does nothing else, is every guest's
driver. ``fleet.Fleet`` is what benchmarks use.
"""

from tests.bench.guests.fleet import Fleet, FleetError, FleetSpec, RemoteHost, Stats, StreamStats, VmSpec
from tests.bench.guests.record import Events, Gap, Timeline

__all__ = [
    "Events",
    "Fleet",
    "FleetError",
    "FleetSpec",
    "Gap",
    "RemoteHost",
    "Stats",
    "StreamStats",
    "Timeline",
    "VmSpec",
]

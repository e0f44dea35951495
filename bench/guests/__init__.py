"""Simulated guests: hundreds of VMs with real vhost-user front ends and rings, served by two processes.

One, the ``house``, plays every QEMU. Its child is every guest's ``driver`` and does nothing else, so that no handshake
holds it up. ``fleet.Fleet`` is what benchmarks use. ``qemus.QemuFleet`` has a real QEMU for each VM instead.
"""

from bench.guests.fleet import Fleet, FleetError, Stats, StreamStats
from bench.guests.record import Events, Gap, Timeline
from bench.guests.spec import FleetSpec, RemoteHost, VmSpec

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

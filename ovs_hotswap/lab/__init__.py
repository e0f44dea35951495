"""The lab, a test bed on one machine, which the demo and the integration tests use."""

from ovs_hotswap.lab.guest import Guest
from ovs_hotswap.lab.lab import DEFAULT_DIRECTORY, RELEASE_CACHE, GuestStatus, Lab, LabStatus
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.pings import Mark, Pings, PingStats

__all__ = [
    "DEFAULT_DIRECTORY",
    "RELEASE_CACHE",
    "Guest",
    "GuestOptions",
    "GuestStatus",
    "Lab",
    "LabStatus",
    "Mark",
    "PingStats",
    "Pings",
]

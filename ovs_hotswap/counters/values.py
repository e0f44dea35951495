"""What a switch has counted, as values. This module is pure.

Every number counts from the start of the ovs-vswitchd that reports it, or from the moment at which the switch set it
back. ``None`` in the place of a part means that the part could not be read; ``unknown`` then has the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ovs_hotswap.switch.memory import PacketPool


@dataclass(frozen=True, slots=True)
class PortCounters:
    """One interface of a switch, with everything that it counts.

    ``statistics``: the names of the column ``Interface.statistics`` (vswitchd/bridge.c, iface_refresh_stats), with the
    port's own counters of lib/netdev-dpdk.c (``ovs_tx_failure_drops``). Receiving is seen from the switch: what a VM
    sends counts as ``rx``. ``link_up`` and ``admin_up`` are ``None`` if the switch does not say. ``policing_kbps``: the
    rate to which what comes in is limited, in kbit/s (ovs-vswitchd.conf.db(5)); 0 is no limit. A limit in packets has
    no effect on ports of DPDK (lib/netdev-dpdk.c, netdev_dpdk_set_policing). ``error``: why the port could not be made.
    """

    name: str
    type: str
    ofport: int | None
    link_up: bool | None = None
    admin_up: bool | None = None
    mtu: int | None = None
    error: str | None = None
    policing_kbps: int = 0
    statistics: Mapping[str, int] = field(default_factory=dict)

    @property
    def vhost(self) -> bool:
        """Whether a guest is at its other end: ``dpdkvhostuser`` or ``dpdkvhostuserclient``."""
        return self.type.startswith("dpdkvhostuser")

    def count(self, name: str) -> int:
        """Return a counter; 0 if the port does not have it, as a switch reports it only once it may be other than 0."""
        return self.statistics.get(name, 0)


@dataclass(frozen=True, slots=True)
class PmdCounters:
    """What one PMD thread has done. ``core`` is ``None`` for the main thread, which forwards what is injected.

    ``idle_cycles`` and ``busy_cycles``: cycles of the processor in which it found no packets, and some. ``received``:
    packets. ``missed``: upcalls that found actions; ``lost``: upcalls that failed, whose packets are dropped.
    ``emc_hits``, ``smc_hits``, ``megaflow_hits``: packets whose flow was found in that cache, or in the classifier.
    """

    numa: int | None
    core: int | None
    idle_cycles: int = 0
    busy_cycles: int = 0
    received: int = 0
    recirculated: int = 0
    missed: int = 0
    lost: int = 0
    emc_hits: int = 0
    smc_hits: int = 0
    megaflow_hits: int = 0


@dataclass(frozen=True, slots=True)
class FlowCount:
    """The packets of all flows with one cookie of the overlay. ``kind``: the name of an ``overlay.tables.Kind``, in
    lower case. ``vni`` and ``ofport`` are 0 if the flow belongs to none."""

    kind: str
    vni: int
    ofport: int
    packets: int
    bytes: int

    @property
    def drops(self) -> bool:
        return self.kind.startswith("drop_")


@dataclass(frozen=True, slots=True)
class ZoneLimit:
    """The connections of one conntrack zone, and how many it may have; 0 is no limit."""

    zone: int
    limit: int
    count: int


@dataclass(frozen=True, slots=True)
class ConntrackCounts:
    """Tracked connections, how many there may be, and the zones that have a limit of their own. ``default_limit`` is
    that of every other zone; 0 is no limit."""

    connections: int
    most: int
    default_limit: int = 0
    zones: tuple[ZoneLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class SwitchCounters:
    """Everything that one switch has counted.

    ``process``: the pid of its ovs-vswitchd and the time at which that began, which no other process shares
    (``process_exit.start_time``); ``None`` if it does not run. ``ports``: by name. ``coverage``: by the name of the
    event; an event that never happened is missing. ``unknown``: why a part is ``None``, by the name of the part.
    """

    process: tuple[int, int | None] | None
    ports: Mapping[str, PortCounters] | None = None
    coverage: Mapping[str, int] | None = None
    pmds: tuple[PmdCounters, ...] | None = None
    pools: tuple[PacketPool, ...] | None = None
    conntrack: ConntrackCounts | None = None
    flows: tuple[FlowCount, ...] | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)

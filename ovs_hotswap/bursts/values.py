"""What `bursts` has seen of a switch: many looks at its counters in a few seconds. These values are frozen, and pure.

A look is one reading of all counters. Between two looks lies an *interval*. What a counter grew by in each interval
shows whether packets were lost all the time or in moments; a single difference over the whole time does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ovs_hotswap.counters.values import PmdCounters
from ovs_hotswap.diagnose.core_use import CoreTime, uses
from ovs_hotswap.switch.memory import PacketPool
from ovs_hotswap.switch.rxqs import RxQueue

NIC, VM_PORT = "dpdk", "dpdkvhostuserclient"
"""The two types of ports that are looked at: a device of DPDK, and a VM's (vswitchd/vswitch.xml, Interface.type)."""

Growth = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the switch as it is configured. ``driver``: of DPDK (``Interface.status:driver_name``). ``options`` and
    ``other_config``: those of its interface. ``most_queues``: how many receive queues its device can have. ``queues``:
    those that PMD threads poll. ``ring``: the entries of a receive ring of the VM, which is what the switch fills;
    ``None`` if that is not known. ``elsewhere``: the VM's rings are not with this switch, so what it gets are copies.
    ``numa``: the node of its device, or of the VM's memory. ``full``: the share of looks, from 0 to 1, in which a
    receive ring of the VM had no room; ``None`` if that was not looked at.
    """

    name: str
    type: str
    bridge: str
    ofport: int
    driver: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    other_config: Mapping[str, str] = field(default_factory=dict)
    most_queues: int | None = None
    queues: tuple[RxQueue, ...] = ()
    ring: int | None = None
    elsewhere: bool = False
    numa: int | None = None
    full: float | None = None

    @property
    def vm(self) -> str | None:
        """The VM that the port belongs to, whose name it has."""
        return self.name if self.type == VM_PORT else None

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores of the PMD threads that poll it."""
        return tuple(sorted({queue.core for queue in self.queues if queue.enabled}))

    @property
    def crosses(self) -> bool:
        """Whether a thread of another NUMA node polls it."""
        return self.numa is not None and any(queue.numa not in (None, self.numa) for queue in self.queues)


@dataclass(frozen=True, slots=True)
class Look:
    """``at``: in seconds. ``ports``: the counters of each port, by name. ``threads``: the scheduler's account of each
    PMD thread, by thread. A part is ``None`` if it could not be read."""

    at: float
    pmds: tuple[PmdCounters, ...] | None
    ports: Mapping[str, Mapping[str, int]] | None
    threads: Mapping[int, CoreTime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreLoad:
    """What a PMD thread did in a time. ``busy``: the share of the time in which it had packets, from 0 to 1; ``None``
    if the switch does not say. ``upcalls``: packets for which it had to learn a flow. ``passes``: packets that it
    looked up a flow for, and how many of these were found in each place."""

    core: int
    numa: int | None
    busy: float | None
    received: int = 0
    upcalls: int = 0
    passes: int = 0
    emc_hits: int = 0
    megaflow_hits: int = 0
    waits: float = 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two looks. ``ports``: what each counter grew by, by the name of the port."""

    seconds: float
    ports: Mapping[str, Growth]
    cores: Mapping[int, CoreLoad]

    def grown(self, port: str, counter: str) -> int:
        return self.ports.get(port, {}).get(counter, 0)


@dataclass(frozen=True, slots=True)
class Unseen:
    """A part that could not be read, why, and the command that shows more."""

    part: str
    why: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What looking has cost. ``look_ms``: the mean time of a look, in milliseconds, for most of which the main thread
    of the switch answered. ``cpu``: the share of one core that this program used."""

    looks: int
    look_ms: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Window:
    """Everything that is known when it is judged. ``control`` and ``database``: sockets of the switch, for commands.
    ``sleep_key``: the key of ``other_config`` by which idle PMD threads sleep. ``sleeps``: so many iterations in which
    a PMD thread slept, by core. ``fills``: by a number of packets, how many iterations of all threads saw at least so
    many in a VM's transmit ring, and not as many as the next number, if the switch records that (``pmd-perf-metrics``).
    ``sent_rings``: the entries of the VMs' transmit rings. ``pools``: the shared packet pools. ``upgrade``: one runs,
    or was interrupted."""

    looks: tuple[Look, ...]
    ports: Mapping[str, Port]
    other_config: Mapping[str, str]
    control: str = ""
    database: str = ""
    sleep_key: str = "pmd-sleep-max"
    sleeps: Mapping[int, int] = field(default_factory=dict)
    fills: Mapping[int, int] = field(default_factory=dict)
    sent_rings: tuple[int, ...] = ()
    pools: tuple[PacketPool, ...] = ()
    cost: Cost = Cost(0, 0.0, 0.0)
    unseen: tuple[Unseen, ...] = ()
    upgrade: bool = False

    @property
    def seconds(self) -> float:
        return self.looks[-1].at - self.looks[0].at if self.looks else 0.0

    @property
    def may_sleep(self) -> bool:
        """Whether idle PMD threads sleep: one value for all, or, since OVS 3.3, also ``core:value`` in a list."""
        values = (part.rpartition(":")[2].strip() for part in self.other_config.get(self.sleep_key, "").split(","))
        return any(value.isdecimal() and int(value) > 0 for value in values)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        return tuple(_interval(before, after, self.may_sleep) for before, after in pairwise(self.looks))

    @property
    def whole(self) -> Interval:
        """The whole time as one interval."""
        if len(self.looks) < 2:
            return Interval(0.0, {}, {})
        return _interval(self.looks[0], self.looks[-1], self.may_sleep)

    def vsctl(self, *words: str) -> str:
        """Return a command to the database, as a person types it."""
        return " ".join([f"ovs-vsctl --db=unix:{self.database} --timeout=5", *words])

    def appctl(self, *words: str) -> str:
        """Return a command to ovs-vswitchd, as a person types it."""
        return " ".join([f"ovs-appctl -t {self.control}", *words])


def _interval(before: Look, after: Look, may_sleep: bool) -> Interval:
    """A counter that has fallen began again, as that of a port does that was made again: it then counts as it is.

    The cycles of a thread do not have those in which it slept (lib/dpif-netdev-perf.c, pmd_perf_end_iteration). So a
    thread that sleeps is taken to have had packets in that share of the time for which it ran. The scheduler's account
    of a thread that never sleeps may be up to a second old on a core without a tick, and is not used for that.
    """
    ports = {
        name: {key: value - past if value >= (past := (before.ports or {})[name].get(key, 0)) else value
               for key, value in counters.items()}
        for name, counters in (after.ports or {}).items() if name in (before.ports or {})
    }  # fmt: skip
    seconds = after.at - before.at
    earlier = {pmd.core: pmd for pmd in before.pmds or ()}
    moved = [pmd.core for pmd in after.pmds or ()
             if pmd.core is not None and _cycles(pmd) != _cycles(earlier.get(pmd.core))]  # fmt: skip
    waits = {each.core: each.waits for each in uses(before.threads, after.threads, seconds, moved)}
    ran = {now.core: min(1.0, (now.ran - then.ran) / (seconds * 1e9)) for thread, now in after.threads.items()
           if may_sleep and seconds and (then := before.threads.get(thread)) is not None}  # fmt: skip
    cores = {
        pmd.core: _load(was, pmd, waits.get(pmd.core, 0.0), ran.get(pmd.core, 1.0))
        for pmd in after.pmds or ()
        if pmd.core is not None and (was := earlier.get(pmd.core)) is not None
    }
    return Interval(seconds, ports, cores)


def _cycles(pmd: PmdCounters | None) -> int:
    return 0 if pmd is None else pmd.busy_cycles + pmd.idle_cycles


def _load(was: PmdCounters, now: PmdCounters, waits: float, ran: float) -> CoreLoad:
    busy, idle = now.busy_cycles - was.busy_cycles, now.idle_cycles - was.idle_cycles
    share = ran * busy / (busy + idle) if busy >= 0 and idle >= 0 and busy + idle > 0 else None
    received = max(0, now.received - was.received)
    return CoreLoad(
        int(now.core or 0), now.numa, share, received, max(0, now.missed + now.lost - was.missed - was.lost),
        received + max(0, now.recirculated - was.recirculated), max(0, now.emc_hits - was.emc_hits),
        max(0, now.megaflow_hits - was.megaflow_hits), waits,
    )  # fmt: skip


def busiest(loads: Iterable[CoreLoad]) -> float | None:
    """Return the largest share of time in which one of the threads had packets; ``None`` if it is not known of one."""
    shares = [load.busy for load in loads]
    return max(each or 0.0 for each in shares) if shares and None not in shares else None

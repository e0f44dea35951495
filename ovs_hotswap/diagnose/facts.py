"""What `diagnose` knows of a host when it judges. These values are frozen, and this module does no I/O.

A part is ``None`` if it could not be read; ``Facts.unseen`` then says why. What this host does not have is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.counters.values import SwitchCounters
from ovs_hotswap.diagnose.megaflows import MegaFlow
from ovs_hotswap.host.rings import RingSample
from ovs_hotswap.model import Life, Proof, Side


@dataclass(frozen=True, slots=True)
class Unseen:
    """A part that could not be read, why, and the command that shows more."""

    part: str
    why: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class VmPort:
    """A VM as the overlay intent, or the database of an adopted switch, has it. ``mac`` and ``vni`` are ``None`` where
    others program the bridges."""

    name: str
    ofport: int
    bridge: str
    mac: str | None = None
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class RemoteMac:
    """A MAC of a VNI that is behind another host's VTEP, as the intent has it."""

    vni: int
    mac: str
    vtep: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the host is to do. ``overlay``: the bridges are programmed from an intent; if not, what others program
    cannot be judged. ``vtep``: this host's. ``macs``: of next hops, as far as the intent names them. ``tunnel_mtu``:
    the longest IP packet that a tunnel carries, in bytes; ``None`` where others make the tunnels. ``uplinks``: the
    ports by which packets leave. ``watched``: a watchdog is to keep a standby. ``fixed_ports``: the OpenFlow numbers of
    the ports that every bridge of ours has."""

    vms: Mapping[str, VmPort]
    overlay: bool = True
    bridge: str = ""
    vtep: str = ""
    remotes: tuple[RemoteMac, ...] = ()
    macs: Mapping[str, str] = field(default_factory=dict)
    tunnel_mtu: int | None = None
    uplinks: tuple[str, ...] = ()
    watched: bool = True
    fixed_ports: Mapping[str, int] = field(default_factory=dict)

    def by_ofport(self, bridge: str | None = None) -> dict[int, str]:
        """The names of the VMs by OpenFlow port, of one bridge or of all."""
        return {vm.ofport: vm.name for vm in self.vms.values() if bridge is None or vm.bridge == bridge}


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM as its back ends have it: its status, and its rings when `diagnose` began to look (``before``) and when it
    ended. ``stopped``: no thread of its QEMU runs."""

    status: VmStatus
    before: tuple[RingSample, ...] = ()
    after: tuple[RingSample, ...] = ()
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a ``bridge``, beside its counters. ``present``: the datapath has it, as number ``number``. ``mtu``: in
    force there. ``flags``: the OpenFlow flags that are set for it (``PORT_DOWN``, ``NO_RECV``, ``NO_FWD``). ``queues``:
    how many of its receive queues PMD threads poll; those of rings that the guest has disabled do not count."""

    name: str
    bridge: str
    present: bool
    number: str = ""
    mtu: int | None = None
    flags: frozenset[str] = frozenset()
    queues: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """A route or a neighbour of the switch's own tables: for ``destination`` (a network or an address), the gateway or
    the MAC."""

    destination: str
    via: str | None


@dataclass(frozen=True, slots=True)
class CoreUse:
    """A PMD thread's core in a time. ``waits``: the share of the time in which the thread waited for its core, from 0
    to 1. ``others``: the threads that had the core, those with the most time first, if that was looked for."""

    core: int
    waits: float
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Switch:
    """The active instance. ``directory`` has the sockets of its bridges; ``control`` is that of its ovs-vswitchd, and
    ``log`` its log. ``life``: of its ovs-vswitchd. ``silent``: why its main thread does not answer. ``database``: its
    ovsdb-server runs. ``before`` and ``after``: its counters, with ``watched`` seconds between them. ``differences``:
    how its flows differ from the intent's, as ``ovs-ofctl diff-flows`` prints it. ``routes`` and ``neighbours``: of its
    tunnels. ``megaflows``: of its datapath. ``cores``: of its PMD threads. ``standing``: the cores of PMD threads that
    made no progress. ``omitted``: what was not read because that would disturb, in sentences."""

    side: Side
    directory: str = ""
    control: str = ""
    log: str = ""
    life: Life = Life.RUNS
    silent: str | None = None
    database: bool = True
    before: SwitchCounters | None = None
    after: SwitchCounters | None = None
    watched: float = 0.0
    ports: Mapping[str, Port] | None = None
    differences: tuple[str, ...] | None = ()
    routes: tuple[Hop, ...] | None = None
    neighbours: Mapping[str, str] | None = None
    megaflows: tuple[MegaFlow, ...] | None = None
    cores: tuple[CoreUse, ...] | None = None
    standing: tuple[int, ...] = ()
    omitted: tuple[str, ...] = ()

    def appctl(self, *words: str) -> str:
        """Return a command to its ovs-vswitchd, as a person types it."""
        return " ".join(["ovs-appctl -t", self.control, *words])

    def vsctl(self, *words: str) -> str:
        """Return a command to its database, as a person types it."""
        return " ".join([f"ovs-vsctl --db=unix:{self.directory}/db.sock --timeout=5", *words])

    def ofctl(self, bridge: str, command: str, *words: str) -> str:
        """Return a command to one of its bridges, as a person types it."""
        return " ".join(["ovs-ofctl", command, f"unix:{self.directory}/{bridge}.mgmt", *words])


@dataclass(frozen=True, slots=True)
class Underlay:
    """The uplink and the hosts behind it. ``steers``: ovs-hotswap steers the uplink. ``owner``: the side to which it is
    steered. ``faults``: what is wrong with its devices and rules. ``rules``: those in place, in words. ``proof``: what
    frames have shown of the active instance's uplink. ``asked``: the next hops that were asked, ``answers``: the MACs
    with which they answered. ``apart``: they are asked from a device of the kernel, and not through the instance.
    ``unproven``: why frames could not be sent."""

    steers: bool = True
    owner: Side | None = None
    faults: tuple[tuple[str, str | None], ...] = ()
    rules: tuple[str, ...] = ()
    proof: Proof | None = None
    asked: tuple[str, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    apart: bool = True
    unproven: str = ""


@dataclass(frozen=True, slots=True)
class Standby:
    """What would take over. ``keeping``: what the watchdog does with the standby. ``unprotected``: the VMs that it
    could not take over at this moment."""

    running: bool
    side: Side | None = None
    keeping: str | None = None
    unprotected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything. ``active``: the recorded side. ``broker_fault``: why the broker does not answer. ``guests``: by VM.
    ``mtus``: what is too narrow on the way, and the command that helps. ``unfinished``: the phase of an unfinished
    upgrade; ``journal``: whether it is known if there is one. ``traces``: in words, those that have ended without
    removing their copies. ``seconds``: the time between the two looks."""

    wanted: Wanted
    seconds: float
    active: Side | None = None
    broker_fault: str | None = None
    guests: Mapping[str, Guest] | None = None
    switch: Switch | None = None
    underlay: Underlay | None = None
    standby: Standby | None = None
    mtus: tuple[tuple[str, str | None], ...] = ()
    unfinished: str | None = None
    journal: bool = True
    traces: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether it is known that no upgrade is under way or interrupted. In one, owners, flows and the uplink's rule
        may be those of either side."""
        return self.journal and self.unfinished is None

"""What `trace` reports: the packets that were seen, and the ways that they took. This module is pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ovs_hotswap.model import Side


class Direction(enum.StrEnum):
    """Whether the VM sent a packet or received it."""

    SENT = "sent"
    RECEIVED = "received"
    UNKNOWN = "unknown"


class Basis(enum.StrEnum):
    """How it is known what became of a packet.

    ``AGREES``: the datapath's own flows show it, and the flow tables say the same. ``DIFFERS``: the datapath's flows
    show it, and the flow tables would now do something else. ``DATAPATH``: the datapath's flows show it, and the tables
    were not asked, or did not answer. ``INFERRED``: only the flow tables say it. ``UNKNOWN``: neither does.
    """

    AGREES = "agrees"
    DIFFERS = "differs"
    DATAPATH = "datapath"
    INFERRED = "inferred"
    UNKNOWN = "unknown"

    @property
    def seen(self) -> bool:
        """Whether the datapath's own flows show it."""
        return self in {Basis.AGREES, Basis.DIFFERS, Basis.DATAPATH}


class Ended(enum.StrEnum):
    """Why a trace ended."""

    COUNT = "count"
    SECONDS = "seconds"
    RATE = "rate"
    REMOVED = "removed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class DatapathFlow:
    """A flow of the datapath that the packets passed. ``used_s``: seconds since its last packet when it was read."""

    match: str
    actions: str
    packets: int
    used_s: float | None


@dataclass(frozen=True, slots=True)
class Path:
    """A way that packets took. ``port_in``, ``ports_out``: names of ports, or tunnels; of a packet that was dropped
    there is none. ``steps``: what the flow tables do, a sentence for each table. ``conntrack``: what connection
    tracking said, in the order of the lookups. ``recorded``: the flows of the tables from which the switch says that it
    made the flows of the datapath; ``steps_recorded``: whether ``steps`` are the same flows, ``None`` if the switch
    keeps no such record. ``dropped`` is ``None`` if it is not known."""

    number: int
    port_in: str | None
    ports_out: tuple[str, ...]
    dropped: bool | None
    steps: tuple[str, ...]
    conntrack: tuple[str, ...]
    datapath: tuple[DatapathFlow, ...]
    basis: Basis
    recorded: tuple[str, ...] = ()
    steps_recorded: bool | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that passed the VM's port. ``time``: seconds since the epoch, when its copy came. ``bytes``: its length,
    as its headers say it. ``text``: what it is. ``path``: the number of its way."""

    number: int
    time: float
    direction: Direction
    bytes: int
    text: str
    path: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What `trace --json` prints. ``instance`` is ``None`` if it is the distribution's switch. ``wish``: which packets
    were to be shown. ``began``: seconds since the epoch. ``copied``: packets that the switch copied, whether they were
    to be shown or not. ``missed``: copies that came faster than they were read. ``filtered``: the switch copied only
    packets that were to be shown, or nearly so. ``limits``: what is not known, and why."""

    vm: str
    instance: Side | None
    bridge: str
    wish: str
    began: float
    seconds: float
    ended: Ended
    copied: int
    missed: int
    filtered: bool
    packets: tuple[Packet, ...]
    paths: tuple[Path, ...]
    limits: tuple[str, ...]

"""What the broker knows about one VM, as one value that is replaced only as a whole, and by one method.

A next broker may have to continue from what this one has stored. So a note of each change is stored before a peer can
notice the change (``broker/persist/autosave.py``). ``Recorded.commit`` is the only place that replaces a record and
makes the note, so that the note cannot be forgotten: a caller commits first, and then sends, closes or answers.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership


class Note(enum.Enum):
    """What is stored about a change before its record counts.

    START_OVER: the stored state of the VM is no longer valid; a next broker starts over with its peers. CONTINUE: the
    stored state stays valid, together with the new home, owner and parked sides. COVERED: a note that was made before
    in the same turn, such as that of a move, covers the change.
    """

    START_OVER = enum.auto()
    CONTINUE = enum.auto()
    COVERED = enum.auto()


class VmRecord(NamedTuple):
    """The record of one VM.

    ``home`` is the side that served the VM last. ``offered`` is what QEMU was offered. ``park_wanted`` are the sides
    that are kept parked. ``suspects`` are the processes of switches that may be on the rings from the time of an
    earlier broker, or since a doubt; ``cut_pid`` is the process that held the rings when its connection closed; ``met``
    are the processes that connected last. ``withdrawn``: its rings are given to no side any longer. ``quarantine``: why
    no side is given its rings, though its switches and QEMU are there. ``entering``: the side whose switch and the
    VM's QEMU have a connection without the broker, which the broker is about to take over (``entering``). ``state`` is
    then a copy of what they know. Their ends of the connection may only be closed, and no other broker may get them.
    """

    home: Side | None = None
    state: GuestState = GuestState()
    ownership: Ownership = Ownership()
    qemu: Channel | None = None
    links: Mapping[Side, SwitchConnection] = MappingProxyType({})
    offered: Offer | None = None
    park_wanted: frozenset[Side] = frozenset()
    suspects: Mapping[Side, int] = MappingProxyType({})
    cut_pid: int = 0
    met: Mapping[Side, int] = MappingProxyType({})
    moves: int = 0
    withdrawn: bool = False
    quarantine: str | None = None
    entering: Side | None = None

    @property
    def kept_qemu(self) -> Channel | None:
        """The connection to QEMU that another broker may get."""
        return self.qemu if self.entering is None else None

    @property
    def switch_pids(self) -> dict[Side, int]:
        """The processes that may be on the VM's rings, or be given them, by side."""
        found = {side: pid for side, pid in self.suspects.items() if side in self.ownership.suspects}
        if self.ownership.holder is not None and self.ownership.certainty is Certainty.CUT:
            found[self.ownership.holder] = self.cut_pid
        return {**found, **{side: link.pid for side, link in self.links.items()}}


class Journal(Protocol):
    """Stores notes. A note that cannot be stored is logged, and nothing is raised."""

    def start_over(self, processes: Mapping[Side, Process], qemu: Channel | None) -> None:
        """Note that work is under way with these switches' processes. ``qemu`` is the connection to keep open."""

    def continues(self, told: Side | None, moving: bool) -> None:
        """Note that work is under way with the switches alone. ``told`` is the side that is sent more than ring
        addresses; ``moving``: the rings change hands."""


class NoJournal:
    """The journal of a VM whose state is not stored: it does nothing."""

    def start_over(self, processes: Mapping[Side, Process], qemu: Channel | None) -> None: ...

    def continues(self, told: Side | None, moving: bool) -> None: ...


class Recorded:
    """Holds a VM's record, which any caller may read and only ``commit`` replaces."""

    def __init__(self, record: VmRecord, processes: Processes, changes: Changes) -> None:
        self._record = record
        self._processes = processes
        self.changes = changes
        self.journal: Journal = NoJournal()

    def commit(self, record: VmRecord, note: Note = Note.START_OVER) -> None:
        """Store ``note`` of a change, and then make the change.

        The note names the switches' processes of the old and of the new record, because a connection that is about to
        be closed is still open. It has QEMU's connection of the new record only, because a stored duplicate of a
        connection must be closed before the connection.
        """
        if note is Note.START_OVER:
            both = {**self._record.switch_pids, **record.switch_pids}
            self.journal.start_over(self._known(both), record.kept_qemu)
        self._record = record
        if note is Note.CONTINUE:
            self.journal.continues(None, moving=False)
        self.changes.notify()

    def starts_over(self) -> None:
        """Note that the stored state is no longer valid. This is to be called before something is read from QEMU."""
        self.journal.start_over(self.processes, self._record.kept_qemu)

    def talks(self, told: Side | None = None, *, moving: bool = False) -> None:
        """Note work with the switches alone. This is to be called before switches are sent something that does not come
        from the guest. ``told`` and ``moving`` are explained in ``Journal.continues``."""
        self.journal.continues(told, moving)

    @property
    def record(self) -> VmRecord:
        return self._record

    @property
    def home(self) -> Side | None:
        return self._record.home

    @property
    def state(self) -> GuestState:
        return self._record.state

    @property
    def ownership(self) -> Ownership:
        return self._record.ownership

    @property
    def qemu(self) -> Channel | None:
        return self._record.qemu

    @property
    def links(self) -> Mapping[Side, SwitchConnection]:
        return self._record.links

    @property
    def offered(self) -> Offer | None:
        return self._record.offered

    @property
    def park_wanted(self) -> frozenset[Side]:
        return self._record.park_wanted

    @property
    def suspects(self) -> Mapping[Side, int]:
        return self._record.suspects

    @property
    def cut_pid(self) -> int:
        return self._record.cut_pid

    @property
    def met(self) -> Mapping[Side, int]:
        return self._record.met

    @property
    def moves(self) -> int:
        return self._record.moves

    @property
    def withdrawn(self) -> bool:
        return self._record.withdrawn

    @property
    def quarantine(self) -> str | None:
        return self._record.quarantine

    @property
    def entering(self) -> Side | None:
        return self._record.entering

    @property
    def switch_pids(self) -> dict[Side, int]:
        """The processes that may be on the VM's rings, or be given them."""
        return self._record.switch_pids

    @property
    def processes(self) -> dict[Side, Process]:
        """The processes of ``switch_pids``, in a form in which another broker recognises them."""
        return self._known(self.switch_pids)

    def _known(self, pids: Mapping[Side, int]) -> dict[Side, Process]:
        return {side: self._processes.known(pid) for side, pid in pids.items()}

"""A VM's connections to its QEMU and its switches, and the processes behind them."""

from __future__ import annotations

import abc
import asyncio
import logging
import socket

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.time_budget import Hearing
from ovs_hotswap.broker.vm_log import Notes
from ovs_hotswap.broker.vm_record import Note, Recorded, VmRecord
from ovs_hotswap.errors import ProofRejected
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.message_trace import message_trace
from ovs_hotswap.vhostuser.ownership import Proof

log = logging.getLogger(__name__)


class Peers(Recorded, abc.ABC):
    """The QEMU and the switches of a VM. ``hearing`` reads QEMU's connection."""

    hearing: Hearing

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, processes: Processes, record: VmRecord, changes: Changes
    ) -> None:
        super().__init__(record, processes, changes)
        self.name = name
        self.last_error: str | None = None
        self._notes = Notes(name)
        self._loop = loop
        self.deaf = False  # QEMU is not read from
        self.unassigned = False  # while a connection is entered: no switch is given the rings
        # Another broker has the connections, or will have them: they do not end when they are closed here, and what is
        # still due here, such as an act for the case that a switch does not answer, neither sends nor receives on them.
        self.shared = False

    def __repr__(self) -> str:
        qemu = "no QEMU" if self.qemu is None else f"QEMU {self.qemu.peer_pid}"
        switches = ", ".join(f"{side} {link.pid}" for side, link in sorted(self.links.items()))
        return f"<Vm {self.name}: {self.ownership}, {qemu}, switches: {switches or 'none'}>"

    @property
    @abc.abstractmethod
    def waiting(self) -> bool:
        """Whether QEMU waits for an answer."""

    @abc.abstractmethod
    def drop_link(self, side: Side, reason: str) -> None:
        """Hang up on a switch."""

    @abc.abstractmethod
    def process_ended(self, pid: int) -> None:
        """Act on the death of a switch's process, which proves the switch off every ring."""

    def proven(self, side: Side, proof: Proof, note: Note = Note.START_OVER) -> bool:
        """Record that ``side`` is off the rings, and return whether ``proof`` proves that. If it does not, the broker's
        own record is wrong, and the broker no longer relies on it (``doubt``)."""
        before = self.ownership
        try:
            ownership = before.released(side, proof)
        except ProofRejected as error:
            log.error("vm %s: %s", self.name, error.message, stack_info=True)
            self.doubt(error.message)
            return False
        if ownership is not before:
            self.commit(self.record._replace(ownership=ownership), note)
            log.debug("vm %s: switch %s is off the rings: %s", self.name, side, proof)
        return True

    def doubt(self, reason: str) -> None:
        """Hang up on every switch, and give the rings to no side before each switch has connected again or its process
        has ended: both can be seen without this record. QEMU stays connected, and is not read until then."""
        sides = frozenset(Side) & {*self.links, *self.ownership.suspects, self.ownership.holder}
        known = {**self.met, **self.switch_pids}
        suspects = {side: known.get(side, 0) for side in sides}
        self.commit(self.record._replace(suspects=suspects, ownership=self.ownership.doubted(sides)))
        self.ignore_qemu()
        for side in sorted(sides):
            self.drop_link(side, "it may be on the rings, against what was known")
        for pid in set(self.suspects.values()):
            if pid and self._processes.ended(pid):
                self.process_ended(pid)
            else:
                self._processes.doubt(pid)
        self.note(f"no side is given the rings before every switch has connected again or ended: {reason}")

    def owner(self) -> SwitchConnection | None:
        """Return the connection of the side that holds the rings, or ``None``."""
        return self.links.get(self.ownership.holder) if self.ownership.holder else None

    def channel(self, connection: socket.socket, peer: str) -> Channel:
        """Return the channel of a new connection to ``peer``, with a trace if the log shows one."""
        return Channel(connection, message_trace(self.name, peer))

    def end(self, connection: SwitchConnection | Channel) -> None:
        """Hang up; if another broker or a switch has the connection as well, only close this process's end of it."""
        if self.shared or self.entering is not None:
            connection.close()
        else:
            connection.hang_up()

    @abc.abstractmethod
    def _read_link(self, link: SwitchConnection) -> None:
        """Read from a switch that has sent something or hung up."""

    def watch(self, link: SwitchConnection) -> None:
        """Read from a switch's connection from now on."""
        self._loop.add_reader(link.channel.fileno(), self._read_link, link)

    def unwatch(self, link: SwitchConnection) -> None:
        """Neither read from nor write to a switch's connection any longer."""
        self._loop.remove_reader(link.channel.fileno())
        self._loop.remove_writer(link.channel.fileno())

    @property
    def expected(self) -> list[Side]:
        """The sides whose offer is still to come: their processes have served the VM before, and live."""
        quiet = [side for side, pid in self.met.items() if not self._processes.ended(pid)]
        return [side for side in quiet if side not in self.links or self.links[side].offer is None]

    def ended(self, pid: int) -> bool:
        """Whether a process that may be, or has been, on the rings has ended."""
        return self._processes.ended(pid)

    def gone(self, side: Side) -> bool:
        """Whether the process that connected last for a side has ended, or no process has connected."""
        pid = self.met.get(side)
        return pid is None or self._processes.ended(pid)

    def born(self) -> dict[int, int | None]:
        """Return when the processes of ``suspects`` and ``cut_pid`` were started, by pid."""
        return {pid: self._processes.known(pid).born for pid in {*self.suspects.values(), self.cut_pid} if pid}

    @property
    def transferable(self) -> dict[Side, SwitchConnection]:
        """The connections with which another broker can continue: the switch's offer is known, and no message is half
        written. A half read message is handed on, and so is the fact that answers are due. Only an answer with which
        this broker itself continues must not be due: another broker would take it for the answer to its own request."""
        return {
            side: link
            for side, link in self.links.items()
            if link.offer is not None and not link.channel.backlog and not link.channel.seeking
        }

    @property
    def settled(self) -> bool:
        """Whether another broker can continue from here: QEMU waits for nothing, no connection is being entered, and
        the connection of each switch that may be on the rings can be handed on. Other switches, such as a standby that
        hangs, may have to connect again; they must not keep the VM's state from being stored."""
        if self.waiting or self.entering is not None or (self.qemu is not None and self.qemu.backlog):
            return False
        left_out = self.links.keys() - self.transferable.keys()
        return self.ownership.holder not in left_out and not left_out & self.ownership.suspects

    def note_of_link(self, side: Side) -> Note:
        """Return what is stored when a switch connects or hangs up. A stored state stays valid for a switch that is not
        on the rings: a next broker has no connection to it, or finds that the connection has ended."""
        on_rings = side is self.ownership.holder or side in self.ownership.suspects
        return Note.START_OVER if on_rings else Note.CONTINUE

    def ignore_qemu(self) -> None:
        """Read nothing more from QEMU until ``resume_reading`` is called."""
        self.deaf = self.qemu is not None
        self.hearing.hold()

    def pause_reading(self) -> None:
        """Read nothing more from any peer until ``resume_reading`` is called."""
        self.ignore_qemu()
        for side, link in list(self.links.items()):
            self._loop.remove_reader(link.channel.fileno())
            if link.offer is None:  # it was sent nothing about the guest, and connects again
                self.drop_link(side, "another broker asks it what it can do")

    def resume_reading(self) -> None:
        """Read from all peers (again)."""
        for link in self.links.values():
            self.watch(link)
        self.deaf = True
        self.hear_qemu()

    def hear_qemu(self) -> None:
        """Read from QEMU again, unless a suspect may be on the rings: an answer would tell QEMU that none is. A
        connection that is being entered may still be read by a switch."""
        if not self.deaf or self.ownership.suspects or self.entering is not None:
            return
        self.deaf = False
        self.read_qemu()

    def read_qemu(self) -> None:
        """Read from QEMU (again), unless QEMU waits for an answer or is not to be read."""
        if self.qemu is not None and not self.waiting and not self.deaf and not self.shared:
            self.hearing.open(self.qemu.fileno())

    def note(self, text: str) -> None:
        self.last_error = text
        self._notes.say(text)

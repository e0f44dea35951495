"""One VM in the broker: the connections to its QEMU and to up to two switches, and which switch owns its rings.

Everything here runs in the event loop's thread, to its end, between two events. ``guest_state``, ``reconcile`` and
``ownership`` take the decisions; this module moves frames and descriptors between them and the sockets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping

from ovs_hotswap.backends import Absence
from ovs_hotswap.broker import absence
from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.deferred_reply import DeferredReply
from ovs_hotswap.broker.peers import Peers
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.time_budget import Budget, Hearing, Turns
from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm_record import Note, VmRecord
from ovs_hotswap.errors import BrokerError, ProtocolError
from ovs_hotswap.fd_closing import burdens
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.vhostuser import handover, messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import PeerClosed, close_all
from ovs_hotswap.vhostuser.guest_memory import indices, make_safe
from ovs_hotswap.vhostuser.guest_state import GuestState, MessageEffect, ReplyDue, apply_message, offer_to_guest
from ovs_hotswap.vhostuser.handover import Swap
from ovs_hotswap.vhostuser.messages import Descriptor, Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership, Proof
from ovs_hotswap.vhostuser.reconcile import (
    Role,
    is_parking_address,
    only_places,
    reconcile,
    why_not_parked,
    without_capture_rings,
)  # fmt: skip
from ovs_hotswap.vhostuser.unsupported import turned_away

log = logging.getLogger(__name__)

# A guest that misses an interrupt at the moment of a move is woken by one of these, in seconds after it (see
# ``handover.notify``). The last comes after any time in which the old side's PMD could still delay the new one's.
_REPEATS = (0.001, 0.010, 0.100)
_FRAMES_PER_TURN = 64


class Vm(Peers):
    """A VM with its QEMU and its switches. ``home`` is the side that served it last, or is to serve it first.

    ``scratch`` is the VM's scratch memory (``guest_memory.make_scratch``), which this object closes. ``withheld`` are
    feature bits that QEMU is not offered though the switches have them. ``suspects`` are the processes of switches that
    may be on the rings from an earlier broker's time. QEMU is offered at most ``queues`` queue pairs. ``mtu`` is that
    of the VM's port, in bytes.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        delays: Delays,
        turns: Turns,
        processes: Processes,
        scratch: Descriptor,
        home: Side | None = None,
        withheld: int = 0,
        suspects: Mapping[Side, int] | None = None,
        queues: int | None = None,
        mtu: int | None = None,
        budget: Budget | None = None,
        changes: Changes | None = None,
    ) -> None:
        old = dict(suspects or {})
        record = VmRecord(home, suspects=old, met=old, ownership=Ownership(suspects=frozenset(old)))
        super().__init__(name, loop, processes, record, changes or Changes())
        self.last_swap: Swap | None = None
        self.owner_since: float | None = None  # seconds since the epoch
        self.queues, self.mtu = queues, mtu
        self.withheld = withheld
        # Pid and start time of a QEMU that rejected the offer, and of one whose descriptors cannot be closed yet.
        self._lacking: tuple[int, int | None] = (0, 0)
        self._burden: tuple[int, int | None] = (0, 0)
        self._delays = delays
        self.scratch = scratch
        self.hearing = Hearing(loop, turns, self.starts_over, self._read_qemu, budget)
        self.answers = DeferredReply(self, loop)
        self.absence: Absence | None = None  # why QEMU is not connected, if that is known

    # -- switches ----------------------------------------------------------------------------------------------

    def accept(self, side: Side, connection: socket.socket) -> None:
        """Take a switch's new connection, or refuse it while an older one or its process may still hold the rings."""
        link = SwitchConnection(side, self.channel(connection, f"switch {side}"))
        before = self.links.get(side)
        left = before is not None and self.entering is side and link.pid == before.pid  # the end that it closed is open
        if before is not None and (self.ownership.holder is not side or before.channel.hung_up or left):
            self.drop_link(side, "the switch opened another connection")
        suspect = self.suspects[side] if side in self.ownership.suspects else link.pid
        if link.pid != suspect or (self.ownership.holder is side and (side in self.links or link.pid != self.cut_pid)):
            holder = suspect if link.pid != suspect else before.pid if before is not None else self.cut_pid
            self.note(f"switch {side}: process {link.pid} refused: process {holder} may hold the rings")
            link.close()
            return
        try:
            self._processes.track(link.pid)
        except OSError as error:
            self.note(f"switch {side}: process {link.pid} refused: it cannot be watched: {error.strerror}")
            link.close()
            return
        if not self.proven(side, Proof.RECONNECTED):
            link.close()
            return
        links, met = {**self.links, side: link}, {**self.met, side: link.pid}
        self.commit(self.record._replace(links=links, met=met), self.note_of_link(side))
        self.hear_qemu()
        self.watch(link)
        self.guarded(link, lambda: link.probe(lambda offer: self._probed(link)))

    def _probed(self, link: SwitchConnection) -> None:
        if missing := messages.feature_names(self.missing(link.side)):
            self.note(f"switch {link.side} lacks features the guest uses: {', '.join(missing)}")
        log.info("vm %s: switch %s connected, process %d", self.name, link.side, link.pid)
        self.assign()
        self.sync(link.side)

    def _read_link(self, link: SwitchConnection) -> None:
        self.talks()
        try:
            self._take_answers(link)
        finally:
            self.changes.notify()

    def _take_answers(self, link: SwitchConnection) -> None:
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame = link.channel.receive()
                if frame is None:
                    return
                try:
                    link.answered(frame)
                finally:
                    close_all(frame.descriptors)
            except PeerClosed:
                self.drop_link(link.side, "the switch hung up")
                return
            except (OSError, ProtocolError) as error:
                self.drop_link(link.side, str(error))
                return
            if self.links.get(link.side) is not link:
                return

    def drop_link(self, side: Side, reason: str) -> None:
        link = self.links.get(side)
        if link is None:
            return
        held = self.ownership.holder is side
        links = {at: other for at, other in self.links.items() if at is not side}
        cut_pid = link.pid if held else self.cut_pid
        record = self.record._replace(links=links, ownership=self.ownership.disconnected(side), cut_pid=cut_pid)
        self.commit(record, self.note_of_link(side))
        self.unwatch(link)
        self.end(link)
        self.note(f"switch {side}: {reason}")
        self.answers.dropped(link)
        if held:
            if self._processes.ended(link.pid):
                self.process_ended(link.pid)
            self._processes.doubt(link.pid)

    def process_ended(self, pid: int) -> None:
        """Act on the death of a switch's process, which proves the switch off every ring."""
        for side, link in list(self.links.items()):
            if link.pid == pid:
                self.drop_link(side, f"process {pid} ended")
        for side, suspect in self.suspects.items():
            if suspect == pid and side in self.ownership.suspects:
                self.released(side, Proof.DEAD)
        holder = self.ownership.holder
        if holder is not None and self.ownership.certainty is Certainty.CUT and self.cut_pid == pid:
            self.released(holder, Proof.DEAD)

    def released(self, side: Side, proof: Proof) -> None:
        """Act on a proof that ``side`` is off the rings."""
        if not self.proven(side, proof):
            return
        self.assign()
        self.sync(side)  # it may not have to be parked any longer
        self.hear_qemu()

    def answered(self, side: Side, *, let_go: bool) -> None:
        """Act on a side's answer to a fence: it has handled all that this broker and the earlier one sent before.
        ``let_go``: that included the request to release the rings."""
        self.confirmed(side)
        if side in self.ownership.suspects:
            self.released(side, Proof.FENCE)
        if let_go:
            self._let_go(side)

    def missing(self, side: Side, unless_chosen: int = 0) -> int:
        """Return the feature bits that the guest uses (or else ``unless_chosen``) and this side does not offer."""
        link = self.links.get(side)
        if link is None or link.offer is None:
            return 0
        used = unless_chosen if self.state.features is None else self.state.features
        return used & ~(link.offer.features | 1 << messages.Feature.LOG_ALL)

    def _lacks(self, side: Side) -> int:
        """Return the feature bits that the guest uses, or may choose, and this side's back end does not offer."""
        return self.missing(side, self.offered.features if self.offered else 0)

    def role(self, side: Side) -> Role:
        """Return the role to which ``side`` is entitled."""
        if (self.qemu is None and self.entering is None) or self.missing(side):
            return Role.IDLE
        if self.ownership.holder is side and self.ownership.certainty in (Certainty.OWNS, Certainty.TAKING):
            return Role.OWNER
        wanted = side in self.park_wanted and self.quarantine is None
        parks = self.ownership.holder is side or side in self.ownership.suspects or wanted
        return Role.PARKED if parks and why_not_parked(self.state) is None else Role.IDLE

    def assign(self) -> None:
        """Give rings that no side holds to a back end that can serve them: the home side's, one that is to be kept
        parked, or any if the home side's cannot. This is to be called whenever one of these may have changed."""
        if self.ownership.holder is not None or self.qemu is None or self.withdrawn or self.quarantine is not None:
            return
        if self.unassigned and self.entering is not None:
            return
        home = self.home
        for side in (home, *Side):
            if side is None or side not in self.links or self.links[side].offer is None:
                continue
            if self._lacks(side) or not self.ownership.free_for(side) or side in self.ownership.suspects:
                continue  # a suspect that is connected has been sent a fence, and has to answer first
            if home is None or side is home or side in self.park_wanted or self._lacks(home):
                self._grant(side)
                return

    def _grant(self, side: Side) -> None:
        link = self.links[side]
        self.commit(self.record._replace(ownership=self.ownership.grant(side)))
        self.sync(side)
        self.guarded(link, lambda: link.fence(lambda: self.confirmed(side)))

    def confirmed(self, side: Side) -> None:
        if self.ownership == Ownership(side, Certainty.TAKING):
            self.owner_since = time.time()
            self.commit(self.record._replace(ownership=self.ownership.confirm(), home=side), Note.CONTINUE)
            self._wake_guest()

    def is_parked(self, side: Side) -> bool:
        """Whether the back end is parked, so that one change of addresses makes it the owner."""
        return self.parking_fault(side) is None

    def parking_fault(self, side: Side) -> str | None:
        """Return why the back end is not parked, or ``None`` if it is."""
        link = self.links.get(side)
        if link is None:
            return f"switch {side} is not connected"
        if self.role(side) is Role.PARKED:
            there = link.quiet and all(is_parking_address(link.told.ring(at).address) for at in self.state.started)
            return None if there else f"switch {side} is not parked: it has not answered yet"
        names = ", ".join(messages.feature_names(self.missing(side)))
        why = why_not_parked(self.state) or (f"it does not offer {names}, which the guest uses" if names else None)
        return f"switch {side} is not parked" + (f": {why}" if why else "")

    def sync(self, side: Side, before: GuestState | None = None, ring: int | None = None) -> None:
        """Send a back end what it was not sent yet. ``ring`` is the only ring in which the guest's state differs from
        ``before``; only that ring is looked at for a back end that had been sent everything until then."""
        link, role = self.links.get(side), self.role(side)
        if link is None or link.offer is None:
            return
        ring = ring if before is not None and link.agrees(before, role) else None
        replaying = link.told.features is None and bool(self.state.started)

        def base(index: int) -> int:
            ring = self.state.ring(index)
            used = indices(self.state.memory, ring).used if replaying or ring.base is None else None
            return ring.base or 0 if used is None else used

        scratch = link.scratch_region(self.scratch, self.queues, self.mtu)
        script, told = reconcile(link.told, self.state, role, scratch, link.offer, base, ring)
        owed, earlier = self.answers.owed, link.told

        def stopped(index: int, value: int) -> None:
            if owed is not None and (owed.link, owed.ring) == (link, index):
                self.answers.pay(owed, None if is_parking_address(earlier.ring(index).address) else value)

        if script:
            self.talks(told=None if only_places(earlier, told) else side)
            self.guarded(link, lambda: link.apply(script, told, stopped))
        link.agreed(self.state, role)

    def sync_all(self) -> None:
        for side in Side:
            self.sync(side)

    def repark(self, side: Side) -> None:
        """Move a parked back end from capture rings to the empty ring."""
        if link := self.links.get(side):
            link.told = without_capture_rings(link.told)
            self.sync(side)

    def guarded(self, link: SwitchConnection, act: Callable[[], None]) -> None:
        if self.links.get(link.side) is not link or self.shared:
            return
        try:
            act()
        except (OSError, ProtocolError) as error:
            self.drop_link(link.side, str(error))
            return
        if link.channel.backlog:
            self._loop.add_writer(link.channel.fileno(), self._write_link, link)

    def _write_link(self, link: SwitchConnection) -> None:
        self.talks()
        self._loop.remove_writer(link.channel.fileno())
        self.guarded(link, link.channel.flush)
        self.changes.notify()

    # -- QEMU --------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether QEMU waits for an answer."""
        return self.answers.owed is not None

    @property
    def wants_qemu(self) -> bool:
        """Whether QEMU is to be connected: there is a switch whose offer can be passed on, and no QEMU yet."""
        offered = any(link.offer for link in self.links.values())
        return self.qemu is None and self.entering is None and not self.withdrawn and offered and not self.burdened

    @property
    def burdened(self) -> bool:
        """Whether the QEMU process that sent descriptors which cannot be closed yet still runs."""
        pid, born = self._burden
        return burdens(pid) and start_time(pid) == born

    def connected(self, connection: socket.socket) -> None:
        """Take a new connection to the VM's QEMU."""
        made = self.channel(connection, "QEMU")
        born = start_time(made.peer_pid)
        offers = [link.offer for link in self.links.values() if link.offer is not None]
        runs = self._lacking == (made.peer_pid, born)
        offered = offer_to_guest(offers, 0 if runs else self.withheld, self.queues)
        self.commit(self.record._replace(qemu=made, offered=offered))
        self.deaf = False
        self.read_qemu()
        log.info("vm %s: QEMU connected, process %d", self.name, made.peer_pid)
        self.assign()

    def _read_qemu(self) -> bool:
        """Take one message from QEMU; return whether there may be more."""
        if self.qemu is None:
            return False
        try:
            if burdens(self.qemu.peer_pid):
                self._burden = self.qemu.peer_pid, start_time(self.qemu.peer_pid)
                raise ProtocolError("what it has sent cannot be closed: it is called again when that is done")
            frame = self.qemu.receive()
            if frame is not None:
                self._take(frame)
            return frame is not None
        except PeerClosed:
            why = self._why_hung_up()
            self.drop_qemu(why, absence.hung_up(why))
        except (OSError, ProtocolError) as error:
            self.drop_qemu(f"QEMU: {error}", absence.broke(str(error)))
        return False

    def _why_hung_up(self) -> str:
        assert self.qemu is not None
        if self.offered is None or not self.state.owned or self.state.features is not None:
            return "QEMU hung up"
        self._lacking = (self.qemu.peer_pid, start_time(self.qemu.peer_pid))
        return turned_away(messages.feature_names(self.withheld), self.offered.queue_pairs)

    def _take(self, frame: messages.Frame) -> None:
        assert self.offered is not None
        try:
            message = messages.parse(frame)
            make_safe(message)
            got = apply_message(self.state, message, self.offered)
        except BaseException:
            close_all(frame.descriptors)
            raise
        before = self.state
        self.commit(self.record._replace(state=got.state))
        if got.remark is not None and not (self.last_error or "").endswith(got.remark):
            self.note(f"QEMU: {got.remark}")
        try:
            self._answer(message, got, before)
            for side in Side:
                self.sync(side, before, message.ring)
        finally:
            close_all(got.surplus)
        self._reconsider()

    def _reconsider(self) -> None:
        """Check the owner after a change of what the guest uses: it may be unable to serve the VM now."""
        owner = self.owner()
        if owner is not None and self.ownership.certainty is Certainty.OWNS and self.missing(owner.side):
            self.take_back(owner)
        self.assign()

    def _answer(self, message: messages.Message, got: MessageEffect, before: GuestState) -> None:
        if got.answer is ReplyDue.NOW:
            self.reply(message.request, messages.U64.pack(got.value))
        elif got.answer is ReplyDue.BASE:
            self.answers.base(got, before)
        elif got.answer is ReplyDue.SETTLED:
            self.answers.settled(message)
        elif got.answer is ReplyDue.RARP:
            self._pass_rarp(got.value)
            if message.need_reply:
                self.answers.settled(message)

    def reply(self, request: Request, payload: bytes) -> None:
        if self.qemu is not None and not self.shared:
            self.qemu.send(messages.reply(request, payload))
            if self.qemu.backlog:
                raise ProtocolError("it does not read its answers")

    def _pass_rarp(self, mac: int) -> None:
        owner = self.owner()
        if owner is not None:
            self.guarded(owner, lambda: owner.channel.send(messages.build_number(Request.SEND_RARP, mac)))

    def drop_qemu(self, reason: str, why: Absence | None = None) -> None:
        """Hang up on QEMU, which left or broke the protocol, and release its memory everywhere. Switches that know it
        are hung up on, as QEMU itself would do, and connect again by themselves."""
        if self.qemu is None:
            return
        self.absence = why or absence.broke(reason)
        self.hearing.close()
        qemu, state, self.answers.owed = self.qemu, self.state, None
        # A stored duplicate is closed first: the last one to be closed also closes what was left unread.
        self.commit(self.record._replace(qemu=None, offered=None, state=GuestState()))
        self.end(qemu)
        close_all(state.descriptors())
        self.deaf = False
        for side, link in list(self.links.items()):
            if link.told.features is not None or link.told.memory:
                self.drop_link(side, "its guest is gone")
            else:
                self.proven(side, Proof.NEVER)
        self.note(reason)  # last, so that it is the reason that is shown

    # -- moving ------------------------------------------------------------------------------------------------

    def park(self, side: Side) -> None:
        """Keep ``side`` parked from now on. Raises BrokerError if that is not possible."""
        if self.quarantine is not None:
            hint = f"`ovs-hotswap vm release {self.name}`"
            raise BrokerError(f"vm {self.name} is in quarantine: {self.quarantine}", hint=hint)
        if self.qemu is not None and (reason := why_not_parked(self.state)):
            raise BrokerError(f"vm {self.name} cannot be parked: {reason}")
        if missing := ", ".join(messages.feature_names(self.missing(side))):
            raise BrokerError(f"vm {self.name} uses features that switch {side} does not offer: {missing}")
        self.commit(self.record._replace(park_wanted=self.park_wanted | {side}), Note.CONTINUE)
        self.sync(side)
        self.assign()

    def unpark(self, side: Side) -> None:
        self.commit(self.record._replace(park_wanted=self.park_wanted - {side}), Note.CONTINUE)
        self.sync(side)

    def take_back(self, link: SwitchConnection) -> None:
        self.commit(self.record._replace(ownership=self.ownership.releasing()))
        self.sync(link.side)
        self.guarded(link, lambda: link.fence(lambda: self._let_go(link.side)))

    def _let_go(self, side: Side) -> None:
        if self.ownership == Ownership(side, Certainty.LETTING_GO):
            self.released(side, Proof.FENCE)
            self.answers.let_go(self.links.get(side))

    def calls(self) -> list[int]:
        lines = [self.state.rings[index].call.descriptor for index in self.state.started]
        return [line.fileno() for line in lines if line is not None]

    def _wake_guest(self) -> None:
        for delay in _REPEATS:
            self._delays.call_later(delay, lambda: handover.notify(self.calls()))

    def close(self) -> None:
        """Hang up on all peers, or close this process's ends of connections that another broker has."""
        links = self.links.values()
        self.commit(self.record._replace(links={}))
        for link in links:
            self.unwatch(link)
            self.end(link)
        self.drop_qemu("the broker ends")
        self.scratch.close()

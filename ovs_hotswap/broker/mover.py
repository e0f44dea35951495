"""Moving one VM's rings from one switch to the other: what is done before and after the handover itself.

Before it, the parked side is put on its capture rings (``capture``); after it, the outcome is recorded, and the capture
rings are emptied. The caller arms the capture rings well before the move and has them emptied well after it: how late
copies of frames may be follows from the switches' own progress, and no fixed time is always long enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ovs_hotswap.broker.timers import Delays
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import Note
from ovs_hotswap.errors import BrokerError, ProtocolError, StateUnknown
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank, has_rank, realtime_priority, set_thread_rank
from ovs_hotswap.vhostuser import capture, handover
from ovs_hotswap.vhostuser.backend import FENCE, FENCE_ANSWER_SIZE, FencedMessages, SwitchConnection
from ovs_hotswap.vhostuser.capture import CapturedFrame, CaptureRings
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.channel import PeerClosed
from ovs_hotswap.vhostuser.guest_memory import taken, transmit
from ovs_hotswap.vhostuser.guest_state import GuestState
from ovs_hotswap.vhostuser.handover import Outcome, Prepared, Swap, Threads
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership, Proof
from ovs_hotswap.vhostuser.reconcile import Role, SentState, places, with_ring_addresses

_UNDER_WAY = "messages are under way"
_NO_ROOM = "the memory for frames that arrive during a move is in use for other VMs"
_ARMED_S = 30.0  # capture rings are disarmed if their move does not come in this time
_LATE_S = 10.0  # capture rings are emptied after this time even without a request
_STALE_S = 1.0  # how long the captured frames can be fetched
_ROLL_S = 0.020  # between two looks at capture rings: their buffers hold 12 800 frames a second


@dataclass(frozen=True, slots=True)
class Ready:
    """All that a move needs. It is valid while the guest's state and what both back ends were sent do not change.

    ``heard`` is what the old side (``None`` if there is none) and the new side were sent until the move, ``hears`` what
    they were sent after it. ``catch`` is ``None`` if no side holds the rings.
    """

    state: GuestState
    catch: CaptureRings | None
    swap: Prepared
    heard: tuple[SentState | None, SentState]
    hears: tuple[SentState | None, SentState]

    @classmethod
    def of(cls, vm: Vm, old: SwitchConnection | None, new: SwitchConnection, catch: CaptureRings | None) -> Ready:
        waiting = {} if catch is None else catch.places(new.side.other)
        parking, taking = {**places(vm.state, Role.PARKED), **waiting}, places(vm.state, Role.OWNER)
        swap = handover.prepare(old, new, parking, taking, vm.calls())
        hears = None if old is None else with_ring_addresses(old.told, parking), with_ring_addresses(new.told, taking)
        return cls(vm.state, catch, swap, _heard(old, new), hears)

    def fits(self, state: GuestState, old: SwitchConnection | None, new: SwitchConnection) -> bool:
        same_links = self.swap.old is old and self.swap.new is new
        same_heard = all(one is other for one, other in zip(self.heard, _heard(old, new), strict=True))
        return self.state is state and same_links and same_heard


def _heard(old: SwitchConnection | None, new: SwitchConnection) -> tuple[SentState | None, SentState]:
    return None if old is None else old.told, new.told


@dataclass(frozen=True, slots=True)
class Idle:
    """No move uses capture rings, and none is about to."""


@dataclass(frozen=True, slots=True, eq=False)
class Armed:
    """A move is about to be made: the parked side was put on the rings of ``catch``. ``ready`` is what the move needs,
    once it is prepared."""

    catch: CaptureRings
    ready: Ready | None


@dataclass(slots=True, eq=False)
class Draining:
    """A move was made, and both sides may still be on its capture rings, because late copies may come. ``begun``: they
    were sent other addresses. ``frames`` is done when they have left the rings, or are not awaited any longer; then
    this state ends."""

    catch: CaptureRings
    old: SwitchConnection
    new: SwitchConnection
    frames: asyncio.Future[list[CapturedFrame]]
    begun: bool = False


_IDLE = Idle()


class Mover:
    """Moves ``vm``. Each wait for a switch ends after ``fence_s`` seconds. ``room`` limits the capture rings."""

    def __init__(self, vm: Vm, loop: asyncio.AbstractEventLoop, delays: Delays, fence_s: float, room: Room) -> None:
        self._vm = vm
        self._room = room
        if earlier := capture.written(vm.scratch):  # by another broker, whose capture rings the switches may be on
            room.take(self, earlier)
        self._loop = loop
        self._delays = delays
        self.fence_s = fence_s
        self._state: Idle | Armed | Draining = _IDLE
        self._frames: asyncio.Future[list[CapturedFrame]] | None = None  # of the last move, until they are fetched
        self._before: dict[int, int | None] = {}

    def __repr__(self) -> str:
        return f"<Mover of {self._vm!r}: {type(self._state).__name__.lower()}>"

    @property
    def busy(self) -> bool:
        """Whether a move is about to be made or still draining, or its undelivered frames have not been fetched."""
        return not isinstance(self._state, Idle) or self._frames is not None

    @property
    def served(self) -> bool:
        """Whether each of the guest's transmit rings has advanced since its last move, or has nothing pending."""
        now = transmit(self._vm.state)
        return all(at.available == at.used or at.used != before
                   for index, before in self._before.items() if (at := now.get(index)) is not None)  # fmt: skip

    def why_not(self, to: Side) -> str | None:
        """Return why the VM cannot be moved to side ``to`` at this moment, or ``None`` if it can."""
        vm = self._vm
        link = vm.links.get(to)
        if vm.withdrawn:
            return "its rings are taken back from every switch"
        if vm.quarantine is not None:
            return f"it is in quarantine: {vm.quarantine}"
        if link is None or link.offer is None:
            return f"switch {to} is not connected"
        if not link.quiet or vm.waiting or isinstance(self._state, Draining):
            return _UNDER_WAY
        if vm.qemu is None:
            return None
        if reason := vm.parking_fault(to):
            return reason
        if vm.ownership.holder is None:
            return None if vm.ownership.free_for(to) else f"switch {to.other} may still use the rings"
        owner = vm.owner()
        if vm.ownership.certainty is not Certainty.OWNS or owner is None:
            return f"switch {vm.ownership.holder} is not a confirmed owner ({vm.ownership.certainty})"
        if not owner.quiet:
            return _UNDER_WAY
        return None if self._room.fits(self, self._needs) else _NO_ROOM

    @property
    def _needs(self) -> int:
        """The bytes of memory that the VM's capture rings may take."""
        return capture.needed_by(self._vm.state, self._vm.mtu)

    def under_way(self, to: Side) -> bool:
        """Whether the VM cannot be moved now, but probably can soon, when answers that are due have come."""
        owner, certainty = self._vm.owner(), self._vm.ownership.certainty
        between = certainty in (Certainty.TAKING, Certainty.LETTING_GO) and owner is not None and not owner.quiet
        return between or self.why_not(to) in (_UNDER_WAY, _NO_ROOM)

    def swap_to(self, to: Side, threads: Threads, cores: Collection[int] = ()) -> Swap:
        """Hand the rings to ``to``. ``cores``: the core on which both sides' message threads run, and this thread is to
        run, if there is such a core. Raises BrokerError if a side is not ready or the rings stayed where they were, and
        StateUnknown if the outcome is not known."""
        vm = self._vm
        if vm.ownership == Ownership(to, Certainty.OWNS):
            return Swap(Outcome.MOVED)
        if reason := self.why_not(to):
            raise BrokerError(f"vm {vm.name} cannot move to {to}: {reason}")
        if vm.qemu is None:
            vm.commit(vm.record._replace(home=to), Note.CONTINUE)  # there is no guest to move; the next starts there
            return Swap(Outcome.MOVED)
        old, new = vm.owner(), vm.links[to]
        try:  # all that can fail, before anything changes
            ready = self._ready(old, new)
        except OSError as error:
            raise BrokerError(f"vm {vm.name}: its move cannot be prepared: {error.strerror}") from error
        catch, ownership = ready.catch, vm.ownership.grant(to) if old is None else vm.ownership.releasing()
        changes = vm.record._replace(ownership=ownership)
        waiter = _ranked(threads.get(to), new.pid) if old is not None and cores else None
        vm.talks(moving=True)
        with realtime_priority(cores, Rank.MOVES if cores else Rank.AFTER), _back_in_rank(waiter):
            if catch is not None:
                catch.recycle()
            self._rouse(old, new, catch, waiter)
            self._state = _IDLE
            self._before = taken(vm.state)
            vm.commit(changes, Note.COVERED)
            result = handover.swap(ready.swap, self.fence_s, threads, one_core=bool(cores), waiter=waiter)
        vm.last_swap = result
        if catch is not None:
            catch.unmap()
        try:
            self._after(result, ready)
        finally:
            vm.talks()
            if catch is not None and old is not None:
                self._drain_later(catch, old, new)
        return result

    def _ready(self, old: SwitchConnection | None, new: SwitchConnection) -> Ready:
        """Return what ``arm`` has prepared, if it is still valid, or prepare it now. Raises as ``_arm_now`` does."""
        ready = self._state.ready if isinstance(self._state, Armed) else None
        if ready is not None and ready.fits(self._vm.state, old, new):
            return ready
        return Ready.of(self._vm, old, new, None if old is None else self._arm_now(old, new))

    def arm(self, to: Side) -> bool:
        """Put ``to`` on its capture rings, and return whether there is something to move. ``is_armed`` says when ``to``
        is on them. Raises BrokerError if it is not ready for that."""
        vm = self._vm
        if vm.qemu is None or vm.ownership == Ownership(to, Certainty.OWNS):
            return False
        if reason := self.why_not(to):
            raise BrokerError(f"vm {vm.name} cannot move to {to}: {reason}")
        old, new = vm.owner(), vm.links[to]
        if old is None:
            return False
        catch = self._made(old.side)
        if (there := self._armed_on(new, catch)) is not None:
            catch = there
        else:
            vm.talks()
            messages = self._fill(new, catch)
            self._state = Armed(catch, None)
            self._roll_later(catch, self._loop.time() + _ARMED_S)
            vm.guarded(new, lambda: new.send(messages, lambda: None))
        self._state = Armed(catch, Ready.of(vm, old, new, catch))
        return True

    def _made(self, old: Side) -> CaptureRings:
        """Return capture rings, after reserving the room for them."""
        self._room.take(self, self._needs)
        return CaptureRings(self._vm.scratch, self._vm.state, old, self._vm.mtu)

    def is_armed(self, to: Side) -> bool:
        """Whether ``to`` is on its capture rings, and has confirmed that."""
        link, state = self._vm.links.get(to), self._state
        return link is not None and link.quiet and isinstance(state, Armed) and _waits_on(link, state.catch)

    def _armed_on(self, link: SwitchConnection, catch: CaptureRings) -> CaptureRings | None:
        """Return the armed capture rings if they equal ``catch`` and ``link`` was put on them, else ``None``."""
        state = self._state
        fits = isinstance(state, Armed) and state.catch.same(catch) and _waits_on(link, catch)
        return state.catch if isinstance(state, Armed) and fits else None

    def _fill(self, new: SwitchConnection, catch: CaptureRings) -> FencedMessages:
        """Arm the capture rings for ``new``, and return the messages that put it on them."""
        there = catch.places(new.side)
        catch.arm()
        new.told = with_ring_addresses(new.told, there)
        return new.placed(there)

    def _roll_later(self, catch: CaptureRings, end: float) -> None:
        self._delays.call_later(_ROLL_S, lambda: self._roll(catch, end))

    def _roll(self, catch: CaptureRings, end: float) -> None:
        if not (isinstance(self._state, Armed) and self._state.catch is catch):
            return
        if self._loop.time() >= end:
            self.disarm()
            return
        self._roll_later(catch, end)
        catch.recycle()

    def disarm(self) -> None:
        """Take back what ``arm`` did, because the move is not made."""
        if isinstance(self._state, Armed):
            catch, self._state = self._state.catch, _IDLE
            self._leave(catch)
            self._vm.changes.notify()

    def _leave(self, catch: CaptureRings) -> None:
        """Take the parked side off capture rings."""
        vm = self._vm
        vm.talks()
        catch.unmap()
        vm.repark(catch.old.other)
        if link := vm.links.get(catch.old.other):
            vm.guarded(link, lambda: link.fence(self._freed))

    def _freed(self) -> None:
        """Free the capture rings, which both sides have left."""
        capture.free(self._vm.scratch)
        self._room.give_back(self)

    def tidy(self) -> None:
        """Free capture rings that no side has confirmed to have left, if it is known otherwise that both have."""
        if isinstance(self._state, Idle) and all(map(self._is_off, Side)):
            with contextlib.suppress(OSError):
                self._freed()

    def _is_off(self, side: Side) -> bool:
        """Whether a side cannot be on capture rings: it has confirmed other addresses, or has ended."""
        link = self._vm.links.get(side)
        if link is None:
            return self._vm.gone(side)
        return link.quiet and not any(capture.is_place(ring.address) for ring in link.told.rings)

    def close(self) -> None:
        """Release capture rings that are armed, and send the switches nothing: another broker may continue with the VM
        from what is known of its switches."""
        if isinstance(self._state, Armed):
            self._state.catch.unmap()
            self._state = _IDLE
        self._room.give_back(self)

    def _arm_now(self, old: SwitchConnection, new: SwitchConnection) -> CaptureRings:
        """Put ``new`` on capture rings, wait for it, and return them. Raises BrokerError if it does not answer: nothing
        was begun then, and it is sent back to the empty ring."""
        vm = self._vm
        catch = self._made(old.side)
        if (there := self._armed_on(new, catch)) is not None:
            return there
        vm.talks()
        messages = self._fill(new, catch)
        if not self._answers(new, messages):
            vm.repark(new.side)
            vm.guarded(new, lambda: new.fence(self._freed))  # until then it is not quiet, and so not armed again
            raise self._silent(new)
        return catch

    def _rouse(
        self, old: SwitchConnection | None, new: SwitchConnection, catch: CaptureRings | None, waiter: int | None
    ) -> None:
        """Check that both sides answer before the rings are taken from one. Raises BrokerError; nothing was begun then.

        What the swap needs is in the caches afterwards. Neither side has to be woken for its next message: the old side
        still looks for it, and so does ``waiter``, the new side's thread, which runs after the old side's thread from
        its answer on.
        """
        try:
            for link in (new, old):
                if link is not None and not self._answers(link, FencedMessages(FENCE, Request.GET_FEATURES)):
                    raise self._silent(link)
                if link is new and waiter is not None:
                    set_thread_rank(waiter, Rank.WAITS)
        except BrokerError:
            armed = self._state.catch if isinstance(self._state, Armed) else None
            self._state = _IDLE
            if left := catch or armed:
                self._leave(left)
            raise

    def _answers(self, link: SwitchConnection, messages: FencedMessages) -> bool:
        """Send messages and return whether the side answers them in time; if not, the answer is still due. Raises
        BrokerError if the side hangs up."""
        vm, deadline = self._vm, time.monotonic() + self.fence_s
        try:
            if handover.fenced(link, messages, bytearray(FENCE_ANSWER_SIZE), deadline, asleep=True):
                return True
        except (OSError, PeerClosed, ProtocolError) as error:
            vm.drop_link(link.side, "hung up before a handover")
            raise BrokerError(f"vm {vm.name}: switch {link.side} hung up") from error
        link.expect(messages, lambda: None)
        return False

    def _silent(self, link: SwitchConnection) -> BrokerError:
        within = f"{self.fence_s * 1e3:g} ms"
        return BrokerError(f"vm {self._vm.name}: switch {link.side} did not answer within {within}")

    def _after(self, result: Swap, ready: Ready) -> None:
        """Record the outcome of a swap. Raises BrokerError or StateUnknown if the VM was not moved."""
        vm, old, new = self._vm, ready.swap.old, ready.swap.new
        for link, sent in ((old, ready.swap.park), (new, ready.swap.take)):
            if link is not None and link.channel.trace is not None:
                link.channel.trace.exchanged(sent.data)
            if result.outcome in (Outcome.REFUSED_BY_OLD, Outcome.OLD_GONE):
                break
        if result.outcome is Outcome.REFUSED_BY_OLD and old is not None:
            vm.commit(vm.record._replace(ownership=vm.ownership.grant(old.side)), Note.COVERED)
            old.expect(ready.swap.park, lambda: None)
            old.expect(ready.swap.keep, lambda: vm.confirmed(old.side))
            raise BrokerError(f"vm {vm.name}: switch {old.side} did not release its rings within "
                              f"{self.fence_s * 1e3:g} ms; it was given them back")  # fmt: skip
        if result.outcome is Outcome.OLD_GONE and old is not None:
            vm.drop_link(old.side, "hung up while it was to release the rings")
            raise StateUnknown(f"vm {vm.name}: switch {old.side} hung up during the handover")
        told_old, told_new = ready.hears
        if old is not None and told_old is not None:
            old.told = told_old
            if not vm.proven(old.side, Proof.FENCE, Note.COVERED):
                raise StateUnknown(f"vm {vm.name}: it is not known which switch has its rings")
        parked = vm.park_wanted if old is None else vm.park_wanted | {old.side}
        moves = vm.moves + (result.outcome is Outcome.MOVED)
        there = vm.ownership.grant(new.side)
        vm.commit(vm.record._replace(ownership=there, park_wanted=parked, moves=moves), Note.COVERED)
        new.told = told_new
        if result.outcome is Outcome.NEW_GONE:
            vm.drop_link(new.side, "hung up while it was given the rings")
            raise StateUnknown(f"vm {vm.name}: switch {new.side} hung up during the handover")
        if result.outcome is Outcome.UNPROVEN:
            new.expect(ready.swap.take, lambda: vm.confirmed(new.side))
            self._delays.call_later(self.fence_s, lambda: self._retreat(new))
            raise StateUnknown(f"vm {vm.name}: switch {new.side} did not confirm within {self.fence_s * 1e3:g} ms")
        vm.confirmed(new.side)

    def _drain_later(self, catch: CaptureRings, old: SwitchConnection, new: SwitchConnection) -> None:
        """Leave both sides on their capture rings until ``drain``, or for ``_LATE_S``."""
        self._state = draining = Draining(catch, old, new, self._loop.create_future())
        self._frames = draining.frames
        self._delays.call_later(_LATE_S, lambda: self._drain(draining))

    def drain(self) -> None:
        """Take both sides off the capture rings of the last move, if they are on them. The caller knows that no late
        copies come any longer, or does not wait for them."""
        if isinstance(self._state, Draining):
            self._drain(self._state)

    def _drain(self, draining: Draining) -> None:
        if draining.begun:
            return
        draining.begun = True
        vm, old, new = self._vm, draining.old, draining.new
        vm.talks()
        self._delays.call_later(self.fence_s + _STALE_S, lambda: self._forget(draining.frames))
        for link in (old, new):
            vm.repark(link.side)
        if vm.links.get(old.side) is not old or vm.links.get(new.side) is not new:
            self._drained(draining, [])  # a side hung up, and may still write to its capture rings
            return
        self._delays.call_later(self.fence_s, lambda: self._drained(draining, []))
        vm.guarded(old, lambda: old.fence(lambda: vm.guarded(new, lambda: new.fence(lambda: self._collect(draining)))))

    def _collect(self, draining: Draining) -> None:
        """Collect the frames of a move, whose capture rings both sides have left."""
        if draining.frames.done():
            draining.catch.free()
        else:
            self._drained(draining, draining.catch.undelivered())
        self._room.give_back(self)

    def _drained(self, draining: Draining, frames: list[CapturedFrame]) -> None:
        if not draining.frames.done():
            draining.frames.set_result(frames)
        if self._state is draining:
            self._state = _IDLE
        self._vm.changes.notify()

    def _forget(self, frames: asyncio.Future[list[CapturedFrame]]) -> None:
        if self._frames is frames:
            self._frames = None
            self._vm.changes.notify()

    async def undelivered(self) -> list[CapturedFrame]:
        """Drain, and return the frames for the guest that arrived during the last move and that no side delivered. Only
        one caller gets them."""
        self.drain()
        frames = self._frames
        if frames is None:
            return []
        caught = await frames
        if self._frames is not frames:
            return []  # another caller has waited, and has them
        self._frames = None
        self._vm.changes.notify()
        return caught

    def _retreat(self, link: SwitchConnection) -> None:
        """Ask a side for the rings back that was given them and does not answer. Its death would free them as well."""
        vm = self._vm
        if vm.ownership == Ownership(link.side, Certainty.TAKING) and vm.links.get(link.side) is link:
            vm.take_back(link)


def _waits_on(link: SwitchConnection, catch: CaptureRings) -> bool:
    """Whether the side was put on the rings of ``catch``."""
    return link.told.at(catch.places(link.side))


def _ranked(thread: MessageThread | None, pid: int) -> int | None:
    """Return the id of ``thread`` if it belongs to process ``pid`` and has real-time priority, else ``None``."""
    if thread is None or not os.path.exists(f"/proc/{pid}/task/{thread.tid}") or not has_rank(thread.tid):
        return None
    return thread.tid


@contextlib.contextmanager
def _back_in_rank(waiter: int | None) -> Iterator[None]:
    """Give ``waiter`` the rank TAKES back at the end of the block, in which it may have been given WAITS."""
    try:
        yield
    finally:
        if waiter is not None and has_rank(waiter):
            set_thread_rank(waiter, Rank.TAKES)

"""Moving one VM's rings from one switch to the other: what surrounds the hand-over itself.

Before it, the parked side is put on its capture rings (``capture``); after it, the outcome is written down, and the
capture rings are emptied. Whoever asks for moves arms them well before and has them emptied well after: how late copies
of frames may be is seen in the switches' own progress, and a time that is always long enough does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from ovs_hotswap.errors import BrokerError, ProtocolError, StateUnknown
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank, give_rank, has_rank, preferred
from ovs_hotswap.vhost import handover
from ovs_hotswap.vhost.capture import Catch, Caught
from ovs_hotswap.vhost.channel import PeerClosed
from ovs_hotswap.vhost.handover import Outcome, Prepared, Swap, Threads
from ovs_hotswap.vhost.link import FENCE, FENCE_ANSWER_SIZE, Fenced, Link
from ovs_hotswap.vhost.memory import taken, transmit
from ovs_hotswap.vhost.ownership import Certainty, Ownership, Proof
from ovs_hotswap.vhost.replay import Role, moved, places
from ovs_hotswap.vhost.vm import Vm
from ovs_hotswap.vhost.wire import Request, RingAddress

_ARMED_S = 30.0  # a move for which capture rings were armed is not waited for any longer
_LATE_S = 10.0  # capture rings are emptied by then though nobody has asked
_STALE_S = 1.0  # for what was found in them to be fetched
_ROLL_S = 0.020  # between two looks at capture rings: their buffers hold 12 800 frames a second


class Mover:
    """Moves ``vm``. Each wait for a switch ends after ``fence_s`` seconds."""

    def __init__(self, vm: Vm, loop: asyncio.AbstractEventLoop, fence_s: float) -> None:
        self._vm = vm
        self._loop = loop
        self._fence_s = fence_s
        self._settled: asyncio.Future[list[Caught]] | None = None
        self._catch: Catch | None = None
        self._settle: Callable[[], None] = lambda: None
        self._before: dict[int, int | None] = {}

    @property
    def busy(self) -> bool:
        """Whether a move is about to be made or still settling, or its undelivered frames have not been fetched."""
        return self._catch is not None or self._settled is not None

    @property
    def served(self) -> bool:
        """Whether the guest's transmit rings have advanced since its last move, or have nothing to be taken."""
        now = transmit(self._vm.state)
        return all(at.available == at.used or at.used != before
                   for index, before in self._before.items() if (at := now.get(index)) is not None)  # fmt: skip

    def why_not(self, to: Side) -> str | None:
        """Why the VM cannot be moved at this moment, or ``None``."""
        vm = self._vm
        link = vm.links.get(to)
        if vm.withdrawn:
            return "its rings are taken back from every switch"
        if link is None or link.offer is None:
            return f"switch {to} is not connected"
        if not link.quiet or vm.waiting or not (self._settled is None or self._settled.done()):
            return "messages are under way"
        if vm.qemu is not None and not vm.is_parked(to):
            return f"switch {to} is not parked"
        owner = vm.owner()
        if vm.qemu is not None and vm.ownership.holder is None and not vm.ownership.free_for(to):
            return f"switch {to.other} may still use the rings"
        if vm.qemu is not None and vm.ownership.holder is not None:
            if vm.ownership.certainty is not Certainty.OWNS or owner is None:
                return f"switch {vm.ownership.holder} is not a confirmed owner ({vm.ownership.certainty})"
            if not owner.quiet:
                return "messages are under way"
        return None

    def swap_to(self, to: Side, threads: Threads, cores: Collection[int] = ()) -> Swap:
        """Hand the rings to ``to``. ``cores``: where both sides' message threads run, and this is to run too, if there
        is such a core. Raises BrokerError if a side is not ready for it or the rings stayed where they were,
        StateUnknown if the end is open."""
        vm = self._vm
        if vm.ownership == Ownership(to, Certainty.OWNS):
            return Swap(Outcome.MOVED)
        if reason := self.why_not(to):
            raise BrokerError(f"vm {vm.name} cannot move to {to}: {reason}")
        vm.touched()
        if vm.qemu is None:
            vm.home = to  # no guest: nothing to move, but the next one goes there
            return Swap(Outcome.MOVED)
        old, new = vm.owner(), vm.links[to]
        try:  # all that can fail, before anything changes
            catch = None if old is None else self._armed(old, new)
            waiting = {} if catch is None else catch.places(to.other)
            parking = {**places(vm.state, Role.PARKED), **waiting}
            ready = handover.prepare(old, new, parking, places(vm.state, Role.OWNER), vm.calls())
        except OSError as error:
            raise BrokerError(f"vm {vm.name}: its move cannot be prepared: {error.strerror}") from error
        waiter = _ranked(threads.get(to), new.pid) if old is not None and cores else None
        with preferred(cores, Rank.MOVES if cores else Rank.AFTER), _back_in_rank(waiter):
            if catch is not None:
                catch.roll()
            self._rouse(old, new, catch, waiter)
            self._catch = None
            self._before = taken(vm.state)
            vm.ownership = vm.ownership.grant(to) if old is None else vm.ownership.letting_go()
            result = handover.swap(ready, self._fence_s, threads, one_core=bool(cores), waiter=waiter)
        vm.last_swap = result
        if catch is not None:
            catch.rest()
        try:
            self._after(result, ready, parking)
        finally:
            vm.sync(new.side)
            if catch is not None and old is not None:
                self._settle_later(catch, old, new)
        return result

    def arm(self, to: Side) -> bool:
        """Tell ``to`` to wait on its capture rings, where there is something to move; ``armed`` says when it does.
        Raises BrokerError if it is not ready for it."""
        vm = self._vm
        if vm.qemu is None or vm.ownership == Ownership(to, Certainty.OWNS):
            return False
        if reason := self.why_not(to):
            raise BrokerError(f"vm {vm.name} cannot move to {to}: {reason}")
        old, new = vm.owner(), vm.links[to]
        if old is None:
            return False
        catch = Catch(vm.scratch, vm.state, old.side)
        if not self._on(new, catch):
            vm.touched()
            messages = self._fill(new, catch)
            self._catch = catch
            self._loop.call_later(_ROLL_S, self._roll, catch, self._loop.time() + _ARMED_S)
            vm.guarded(new, lambda: new.send(messages, lambda: None))
        return True

    def armed(self, to: Side) -> bool:
        """Whether ``to`` waits on its capture rings, and has said so."""
        link = self._vm.links.get(to)
        return link is not None and link.quiet and self._catch is not None and self._on(link, self._catch)

    def _on(self, link: Link, catch: Catch) -> bool:
        """Whether the side was told to wait on the rings of ``catch``, and they are minded."""
        minded = self._catch is not None and self._catch.same(catch)
        return minded and link.told.at(catch.places(link.side))

    def _fill(self, new: Link, catch: Catch) -> Fenced:
        """Prepare capture rings for ``new``, and what sends it there."""
        there = catch.places(new.side)
        catch.arm()
        new.told = moved(new.told, there)
        return new.placed(there)

    def _roll(self, catch: Catch, end: float) -> None:
        if self._catch is not catch:
            return
        if self._loop.time() >= end:
            self.disarm()
            return
        self._loop.call_later(_ROLL_S, self._roll, catch, end)
        catch.roll()

    def disarm(self) -> None:
        """The move for which rings were armed is not made."""
        vm, catch, self._catch = self._vm, self._catch, None
        if catch is None:
            return
        vm.touched()
        vm.repark(catch.old.other)
        if link := vm.links.get(catch.old.other):
            vm.guarded(link, lambda: link.fence(catch.free))

    def _armed(self, old: Link, new: Link) -> Catch:
        """Capture rings that ``new`` waits on. Raises BrokerError if it does not answer: then nothing was begun, and it
        is on its way back to the empty ring."""
        vm = self._vm
        catch = Catch(vm.scratch, vm.state, old.side)
        if self._catch is not None and self._on(new, catch):
            return self._catch
        messages = self._fill(new, catch)
        if not self._answers(new, messages):
            vm.repark(new.side)
            vm.guarded(new, lambda: new.fence(lambda: None))  # not quiet, so not armed again, while it may be there
            raise self._silent(new)
        return catch

    def _rouse(self, old: Link | None, new: Link, catch: Catch | None, waiter: int | None) -> None:
        """See that the sides answer before one of them lets go. Raises BrokerError if one does not: nothing was begun.

        What the swap needs is in the caches then. Neither side need be woken for its next message: the old one goes on
        to look for it; so does ``waiter``, the new one's thread, which comes after the old one's from its answer on.
        """
        try:
            for link in (new, old):
                if link is not None and not self._answers(link, Fenced(FENCE, Request.GET_FEATURES)):
                    raise self._silent(link)
                if link is new and waiter is not None:
                    give_rank(waiter, Rank.WAITS)
        except BrokerError:
            self._catch = catch or self._catch
            self.disarm()
            raise

    def _answers(self, link: Link, messages: Fenced) -> bool:
        """Send messages and tell whether the side answers them in time; if not, that is still due. Raises BrokerError
        if it hangs up."""
        vm, deadline = self._vm, time.monotonic() + self._fence_s
        try:
            if handover.fenced(link, messages, bytearray(FENCE_ANSWER_SIZE), deadline, asleep=True):
                return True
        except (OSError, PeerClosed, ProtocolError) as error:
            vm.drop_link(link.side, "hung up before a hand-over")
            raise BrokerError(f"vm {vm.name}: switch {link.side} hung up") from error
        link.expect(messages, lambda: None)
        return False

    def _silent(self, link: Link) -> BrokerError:
        within = f"{self._fence_s * 1e3:g} ms"
        return BrokerError(f"vm {self._vm.name}: switch {link.side} did not answer within {within}")

    def _after(self, result: Swap, ready: Prepared, parking: Mapping[int, RingAddress]) -> None:
        """Write down what a swap left behind."""
        vm, old, new = self._vm, ready.old, ready.new
        if result.outcome is Outcome.KEPT and old is not None:
            vm.ownership = vm.ownership.grant(old.side)
            old.expect(ready.park, lambda: None)
            old.expect(ready.keep, lambda: vm.confirmed(old.side))
            raise BrokerError(f"vm {vm.name}: switch {old.side} did not let go within {self._fence_s * 1e3:g} ms; "
                              "it was given its rings back")  # fmt: skip
        if result.outcome is Outcome.OLD_GONE and old is not None:
            vm.drop_link(old.side, "hung up while it was asked to let go")
            raise StateUnknown(f"vm {vm.name}: switch {old.side} hung up during the hand-over")
        if old is not None:
            old.told = moved(old.told, parking)
            vm.park_wanted.add(old.side)
            vm.ownership = vm.ownership.released(old.side, Proof.FENCE)
        vm.ownership = vm.ownership.grant(new.side)
        new.told = moved(new.told, places(vm.state, Role.OWNER))
        if result.outcome is Outcome.NEW_GONE:
            vm.drop_link(new.side, "hung up while it was given the rings")
            raise StateUnknown(f"vm {vm.name}: switch {new.side} hung up during the hand-over")
        if result.outcome is Outcome.UNPROVEN:
            new.expect(ready.take, lambda: vm.confirmed(new.side))
            self._loop.call_later(self._fence_s, self._retreat, new)
            raise StateUnknown(f"vm {vm.name}: switch {new.side} did not confirm within {self._fence_s * 1e3:g} ms")
        vm.moves += 1
        vm.confirmed(new.side)

    def _settle_later(self, catch: Catch, old: Link, new: Link) -> None:
        """Leave both sides' capture rings as they are until ``settle``."""
        vm = self._vm
        settled = self._settled = self._loop.create_future()

        def settle() -> None:
            self._settle = lambda: None
            vm.touched()
            self._loop.call_later(self._fence_s + _STALE_S, self._forget, settled)
            for link in (old, new):
                vm.repark(link.side)
            if vm.links.get(old.side) is not old or vm.links.get(new.side) is not new:
                _conclude(settled)  # one hung up: what is in the rings is not known to be final
                return
            self._loop.call_later(self._fence_s, _conclude, settled)
            vm.guarded(old, lambda: old.fence(lambda: vm.guarded(new, lambda: new.fence(collect))))

        def collect() -> None:
            if not settled.done():
                settled.set_result(catch.undelivered())

        self._settle = settle
        self._loop.call_later(_LATE_S, lambda: settle() if self._settle is settle else None)

    def _forget(self, settled: asyncio.Future[list[Caught]]) -> None:
        if self._settled is settled:
            self._settled = None

    def settle(self) -> None:
        """Take both sides off the capture rings of the last move, if they are on them: no late copies come any more, or
        they are not waited for."""
        self._settle()

    async def settled(self) -> list[Caught]:
        """``settle``, and the frames for the guest that arrived during the last move and that no side delivered. Told
        only once."""
        self.settle()
        settled = self._settled
        if settled is None:
            return []
        caught = await settled
        if self._settled is not settled:
            return []  # told to somebody else who waited
        self._settled = None
        return caught

    def _retreat(self, link: Link) -> None:
        """A side that was given the rings and stays silent is asked for them back; if it dies instead, that does."""
        vm = self._vm
        vm.touched()
        if vm.ownership == Ownership(link.side, Certainty.TAKING) and vm.links.get(link.side) is link:
            vm.take_back(link)


def _ranked(thread: MessageThread | None, pid: int) -> int | None:
    """The id of a thread that is one of process ``pid`` and has real-time priority."""
    if thread is None or not os.path.exists(f"/proc/{pid}/task/{thread.tid}") or not has_rank(thread.tid):
        return None
    return thread.tid


@contextlib.contextmanager
def _back_in_rank(waiter: int | None) -> Iterator[None]:
    """A thread that was told to wait in the block does not afterwards, whatever came of it."""
    try:
        yield
    finally:
        if waiter is not None and has_rank(waiter):
            give_rank(waiter, Rank.TAKES)


def _conclude(settled: asyncio.Future[list[Caught]]) -> None:
    if not settled.done():
        settled.set_result([])

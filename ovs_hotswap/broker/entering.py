"""How the broker comes between a VM's QEMU and the switch that serves it without a broker, with no disconnect.

The caller has duplicates of both ends of their connection (``adopt.fetching``), keeps QEMU stopped during ``enter``,
and has proven that nothing is under way (``adopt.guard``). Through QEMU's end the broker is the switch's front end;
that is an ordinary connection to a switch (``SwitchConnection``), which has the rings. From there on the VM is moved to
the other side as any VM is. Then a message of an unknown type makes the first switch hang up. It connects again at the
socket that it has always connected to, where the broker listens, and nothing but the broker has the switch's end, which
is the broker's connection to QEMU from then on.

What QEMU sends behind the message of unknown type is not read by the switch, so QEMU may continue as soon as that has
been sent; the broker reads it only when the switch has left.

A VM can also stay with its switch. The switch then only releases the rings before it is sent away, and gets them again
by its next connection. Until then no switch serves the VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Collection, Sequence
from functools import reduce
from operator import or_

from ovs_hotswap.adopt.fetching import Fetched
from ovs_hotswap.adopt.snapshot import UNKNOWN_REQUEST, Snapshot, why_not_carried
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError, HotswapError, ProtocolError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import OwnedFd, PeerClosed
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer
from ovs_hotswap.vhostuser.handover import Swap
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import why_not_parked

log = logging.getLogger(__name__)

_PARKED_S = 10.0  # as for any VM that is parked (``control.parking_api``)
_ANSWERS_S = 1.0  # for the answers to a swap that failed, while QEMU stands still
_CATCH_UP_S = 0.003
_STILL_S = 3.0  # for longer QEMU is not sure to stand still, whatever this process waits for (``adopt.stopping``)
_LEFT_S = 5.0  # a switch connects again a second after an attempt that failed


class Entering:
    """The entering of one VM, whose rings the switch of side ``old`` has and that of side ``new`` is to get; the two
    are the same if the VM stays with its switch.

    ``Entering.prepare`` makes it. Then comes ``enter``, or ``cancel``; after ``enter`` comes ``finish``.
    """

    def __init__(self, slot: VmSlot, old: Side, new: Side, fetched: Fetched) -> None:
        self._slot, self._vm, self._fetched = slot, slot.vm, fetched
        self.old, self.new = old, new
        self._pid = slot.vm.suspects[old]
        self._added = frozenset({new}) - {old} - slot.vm.park_wanted
        self._link: SwitchConnection | None = None
        self._entered = 0.0
        self._flags: list[tuple[int, int]] = []  # of the two ends, which they share with QEMU and the switch

    @classmethod
    async def prepare(cls, slot: VmSlot, snapshot: Snapshot, fetched: Fetched, to: Side) -> Entering:
        """Park the switch of side ``to`` for a VM that the other side's serves without the broker. Nothing is parked if
        it is the switch of side ``to`` itself that serves the VM.

        This object then owns ``fetched``. Raises BrokerError if that is not possible, and StateUnknown; nothing has
        changed then, and the caller still owns ``fetched``.
        """
        vm = slot.vm
        old = to if stays_with(vm, to) else to.other
        if reason := _why_not(slot, snapshot, fetched, to):
            raise BrokerError(f"vm {vm.name} cannot be adopted by switch {to}: {reason}")
        vm.ownership.entered(old)  # raises what ``enter`` would
        made = cls(slot, old, to, fetched)
        fetched.close_ends()  # ``enter`` gets others: until then each process sees that the other one has hung up
        parked = vm.park_wanted | made._added
        vm.commit(vm.record._replace(state=fetched.state, entering=old, park_wanted=parked))
        try:
            vm.sync(to)
            slot.mover.drain()
            await vm.changes.until(lambda: made.is_ready or not made.waits, _PARKED_S,
                                   lambda: f"vm {vm.name}: {vm.parking_fault(to)}")  # fmt: skip
            made.check()
        except BaseException:
            made._forget()
            raise
        return made

    @property
    def waits(self) -> bool:
        """Whether ``enter`` can still come: nothing has happened to the VM and its first switch."""
        vm = self._vm
        untouched = vm.entering is self.old and vm.qemu is None and vm.state is self._fetched.state
        return untouched and vm.ownership == Ownership(suspects=frozenset({self.old}))

    @property
    def is_ready(self) -> bool:
        """Whether the new side's switch has the VM parked, if that is another one, and nothing is under way with it."""
        if self._stays:
            return not self._slot.mover.busy
        return self._vm.is_parked(self.new) and not self._slot.mover.under_way(self.new)

    @property
    def _stays(self) -> bool:
        return self.new is self.old

    def check(self) -> None:
        """Raise BrokerError unless ``enter`` is possible now."""
        vm = self._vm
        if not self.waits:
            raise BrokerError(f"vm {vm.name}: switch {self.old} has ended or connected again in the meantime")
        if not self._stays and (fault := vm.parking_fault(self.new)):
            raise BrokerError(f"vm {vm.name}: {fault}")

    def is_of(self, slot: VmSlot) -> bool:
        """Whether it is of this VM, and not of one that had its name before."""
        return self._slot is slot

    @property
    def is_inside(self) -> bool:
        """Whether the broker is in the place of QEMU and the first switch: it cannot simply be undone."""
        return self._vm.qemu is not None and self._vm.entering is self.old

    async def enter(self, ends: Sequence[OwnedFd], cores: Collection[int] = ()) -> Swap | None:
        """Move the VM. QEMU has to stand still until this returns or raises. Returns how long the rings changed hands,
        or ``None`` if a switch failed in that time and the VM is the broker's nevertheless. ``ends``: duplicates of
        QEMU's end and of the switch's; this object then owns them, unless it raises StateUnknown because of them.

        Raises BrokerError if the VM was not moved: the first switch then serves it as before, QEMU and that switch have
        their connection, and only the preparation is left (``cancel``). Raises StateUnknown if the first switch does
        not answer; ``settle`` is then to be called again.
        """
        self.check()
        self._fetched.take_ends(ends)
        self._entered = time.monotonic()
        fault: HotswapError | None = None
        swap: Swap | None = None
        self._vm.unassigned = self._stays  # no switch is given the rings until the first one has connected again
        try:
            self._begin()
            await self._caught_up()
            swap = None if self._stays else self._slot.mover.swap_to(self.new, {}, cores)
            if self._stays:
                self._take_back()
        except (HotswapError, OSError) as error:
            fault = error if isinstance(error, HotswapError) else BrokerError(f"vm {self._vm.name}: {error}")
            log.warning("vm %s: its handover failed while its connection was entered: %s", self._vm.name, fault)
        if self._link is None or not await self.settle(_ANSWERS_S, still=True):
            raise fault or BrokerError(f"vm {self._vm.name}: switch {self.old} was given its rings back")
        return swap

    async def settle(self, patience: float, *, still: bool = False) -> bool:
        """Wait until it is known which side has the VM, and return whether it is the broker's. If it is not, both ends
        have been given up. ``still``: QEMU stands still. Raises StateUnknown if the first switch has not answered after
        ``patience`` seconds."""
        vm = self._vm
        with contextlib.suppress(BrokerError):
            await vm.changes.until(lambda: self._is_entered() is not None, patience)
        if self._is_entered() is False and await self._back_out():
            return False
        if vm.ownership.holder is self.old and vm.links.get(self.old) is self._link:
            raise StateUnknown(f"vm {vm.name}: switch {self.old} has its rings and does not answer",
                               hint="end that switch, or wait for it")  # fmt: skip
        await self._send_away(still=still)
        return True

    def _begin(self) -> None:
        """Take both ends, and send the first switch the memory table with the scratch region. Raises ProtocolError and
        OSError."""
        vm, state = self._vm, self._fetched.state
        self._flags = [(os.dup(end.fileno()), fcntl.fcntl(end.fileno(), fcntl.F_GETFL))
                       for end in (self._fetched.qemu_end, self._fetched.switch_end)]  # fmt: skip
        try:
            qemu_end, switch_end = self._fetched.sockets()
        except (OSError, ValueError):
            self._restore_flags(0)
            raise
        link = SwitchConnection(self.old, vm.channel(qemu_end, f"switch {self.old}"))
        link.offer = Offer(state.features or 0, state.protocol_features or 0, max(1, len(state.rings) // 2))
        link.told, link.pid = self._fetched.told, self._pid
        vm.commit(vm.record._replace(
            qemu=vm.channel(switch_end, "QEMU"), offered=link.offer, links={**vm.links, self.old: link},
            ownership=vm.ownership.entered(self.old)))  # fmt: skip
        self._link, vm.deaf = link, True
        vm.watch(link)
        vm.sync(self.old)

    async def _caught_up(self) -> None:
        """Wait until the first switch has mapped the memory, and has delivered what waited for that. It holds the locks
        of the rings in the meantime (lib/vhost/vhost_user.c, ``vhost_user_set_mem_table``), so its PMD threads stand
        still. Of what they deliver then, a copy is under way: if that came after the handover, it would be delivered
        again."""
        link = self._link
        assert link is not None
        self._vm.guarded(link, lambda: link.fence(lambda: None))
        with contextlib.suppress(BrokerError):  # the handover finds out whether it answers
            await self._vm.changes.until(lambda: link.quiet, self._slot.mover.fence_s)
        await asyncio.sleep(_CATCH_UP_S)

    def _take_back(self) -> None:
        """Have the first switch release the rings, unless it has ended by now."""
        vm, link = self._vm, self._link
        assert link is not None
        if vm.links.get(self.old) is link:
            vm.take_back(link)

    def _is_entered(self) -> bool | None:
        """Whether the VM is the broker's, as far as the switches have answered; also if the first switch or its
        connection has ended. False if the first switch serves it as before."""
        vm, link = self._vm, self._link
        if link is None or vm.links.get(self.old) is not link:
            return True
        if not link.quiet:
            return None
        if vm.ownership == Ownership(self.old, Certainty.OWNS):
            return False
        if self._stays:
            return True if vm.ownership.holder is None else None
        serves = vm.ownership.certainty in (Certainty.OWNS, Certainty.TAKING)
        return True if vm.ownership.holder is self.new and serves else None

    async def _back_out(self) -> bool:
        """Give both ends up again, if the first switch takes its former memory table back. If it hangs up instead, the
        VM is the broker's. Returns whether both ends were given up."""
        vm, link = self._vm, self._link
        assert link is not None
        regions = vm.state.memory
        with contextlib.suppress(OSError, ProtocolError, BrokerError):
            self._slot.mover.disarm()
            self._slot.mover.drain()
            link.channel.send(messages.build_memory_table(regions), [region.descriptor for region in regions])
            link.fence(lambda: None)
            await vm.changes.until(lambda: link.quiet or vm.links.get(self.old) is not link, _ANSWERS_S)
        if vm.links.get(self.old) is not link or vm.ownership != Ownership(self.old, Certainty.OWNS) or not link.quiet:
            return False
        vm.unwatch(link)
        qemu, links = vm.qemu, {side: each for side, each in vm.links.items() if side is not self.old}
        vm.commit(vm.record._replace(qemu=None, offered=None, links=links, ownership=vm.ownership.left_alone(self.old),
                                     suspects={**vm.suspects, self.old: link.pid}))  # fmt: skip
        vm.deaf = False
        self._restore_flags(2)
        link.close()
        if qemu is not None:
            qemu.close()
        return True

    async def _send_away(self, *, still: bool) -> None:
        """Have the first switch leave the connection, if it has not left. Frames that both switches have caught during
        the swap are taken out of the first one's rings before."""
        vm, link = self._vm, self._link
        if link is not None and vm.links.get(self.old) is link:
            with contextlib.suppress(BrokerError):
                self._slot.mover.drain()
                await vm.changes.until(lambda: link.quiet or vm.links.get(self.old) is not link,
                                       self._slot.mover.fence_s)  # fmt: skip
        if link is not None and vm.links.get(self.old) is link:
            with contextlib.suppress(OSError, ProtocolError):
                link.channel.send(UNKNOWN_REQUEST)
            vm.unwatch(link)
            links = {side: each for side, each in vm.links.items() if each is not link}
            vm.commit(vm.record._replace(links=links))
            link.close()
        else:
            await self._drop_unread(still=still and time.monotonic() < self._entered + _STILL_S)
        self._restore_flags(1)

    async def _drop_unread(self, *, still: bool) -> None:
        """Drop what a switch that has left was sent and has not read. It is what this object has sent, as long as QEMU
        stands ``still``. Otherwise it is not known where QEMU's own messages begin, and QEMU gets a new connection,
        once no switch is on the rings."""
        vm = self._vm
        if vm.qemu is None or not (count := vm.qemu.unread):
            return
        try:
            if not still:
                raise ProtocolError(f"{count} bytes may be QEMU's or the broker's own")
            vm.qemu.discard(count)
            return
        except (PeerClosed, ProtocolError, OSError) as error:
            why = f"switch {self.old} left, and what it has not read is not known: {error}"
        vm.unassigned = True
        with contextlib.suppress(BrokerError, StateUnknown):
            if (owner := vm.owner()) is not None:
                if vm.ownership.certainty is Certainty.OWNS:
                    vm.take_back(owner)
                await vm.changes.until(lambda: vm.ownership.holder is None, self._slot.mover.fence_s)
        vm.drop_qemu(why)

    async def finish(self) -> None:
        """Wait until the first switch has left, and read from QEMU from then on. Raises StateUnknown if it does not
        leave in some seconds; this may then be called again."""
        vm = self._vm
        if self._link is None:
            raise BrokerError(f"vm {vm.name} has not been entered")
        left = lambda: vm.entering is None or self.old in vm.links or vm.ended(self._pid)  # noqa: E731
        try:
            await vm.changes.until(left, _LEFT_S)
        except BrokerError as error:
            raise StateUnknown(
                f"vm {vm.name}: switch {self.old} has not connected again: QEMU is not listened to until then",
                hint="end that switch if it hangs",
            ) from error
        if self.old not in vm.links and vm.entering is not None:  # it has ended, and may not have read all
            await self._drop_unread(still=False)
        said = lambda: self.old not in vm.links or vm.links[self.old].offer is not None  # noqa: E731
        with contextlib.suppress(BrokerError):
            await vm.changes.until(said, _ANSWERS_S)
        if vm.entering is not None:
            vm.commit(vm.record._replace(entering=None, offered=self._offered()))
            vm.unassigned = False
            vm.hear_qemu()
            vm.assign()
            log.info("vm %s: taken over from switch %s", vm.name, self.old)

    def _offered(self) -> Offer | None:
        """Return what QEMU may choose from when its guest boots again. It was offered that by the first switch, long
        ago: so all that either switch has now, and what the guest uses. A side that lacks what is chosen does not get
        the rings (``Vm.missing``)."""
        vm = self._vm
        if vm.qemu is None or vm.offered is None:
            return vm.offered
        offers = [vm.offered, *(link.offer for link in vm.links.values() if link.offer is not None)]
        return Offer(reduce(or_, (offer.features for offer in offers)), vm.offered.protocol_features,
                     max(offer.queue_pairs for offer in offers))  # fmt: skip

    def cancel(self) -> None:
        """Undo ``prepare``, unless the VM is the broker's by now. The other side's switch connects again, and knows
        nothing of the VM then."""
        if self._forget():
            self._fetched.close()

    def _forget(self) -> bool:
        """Forget what QEMU and its switch know; return false if the VM is the broker's by now."""
        vm = self._vm
        if vm.qemu is not None or vm.state is not self._fetched.state:
            return False
        vm.commit(vm.record._replace(state=GuestState(), entering=None, park_wanted=vm.park_wanted - self._added))
        vm.unassigned = False
        if (link := vm.links.get(self.new)) is not None and (link.told.memory or link.told.features is not None):
            vm.drop_link(self.new, "the VM was not taken over")
        vm.assign()
        return True

    def _restore_flags(self, count: int) -> None:
        """Set the file status flags of so many ends as their owners had them: QEMU's end comes first."""
        for number, (descriptor, flags) in enumerate(self._flags):
            if number < count:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
            os.close(descriptor)
        self._flags = []


def stays_with(vm: Vm, side: Side) -> bool:
    """Whether it is the switch of this side that serves the VM without the broker."""
    return vm.ownership.suspects == {side}


def _why_not(slot: VmSlot, snapshot: Snapshot, fetched: Fetched, to: Side) -> str | None:
    vm = slot.vm
    link = vm.links.get(to)
    if vm.qemu is not None:
        return "the broker is connected with its QEMU already"
    if vm.entering is not None:
        return "another attempt is under way"
    if vm.withdrawn or vm.quarantine is not None:
        return "no switch is to serve it"
    old = to if stays_with(vm, to) else to.other
    if vm.suspects.get(old) != snapshot.switch.pid:
        return f"process {snapshot.switch.pid} is not switch {old}"
    if old is to:
        return why_not_carried(snapshot) or why_not_parked(fetched.state)
    if link is None or link.offer is None:
        return f"switch {to} is not connected at {snapshot.socket}"
    if reason := why_not_carried(snapshot) or why_not_parked(fetched.state):
        return reason
    if len(snapshot.rings) > 2 * link.offer.queue_pairs:
        return f"it has {len(snapshot.rings) // 2} queue pairs, and switch {to} offers {link.offer.queue_pairs}"
    missing = snapshot.features & ~link.offer.features
    if names := ", ".join(messages.feature_names(missing)):
        return f"switch {to} does not offer features that the guest uses: {names}"
    return None

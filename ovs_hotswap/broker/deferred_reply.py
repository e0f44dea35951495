"""The one answer for which a VM's QEMU waits, and the back end that has to make it possible.

QEMU waits in its main loop, and its guest waits with it. So the answer is given as soon as nothing has to be awaited
any longer, even if the back end that was asked is lost before it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.vm_record import VmRecord
from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.guest_memory import indices
from ovs_hotswap.vhostuser.guest_state import GuestState, MessageEffect
from ovs_hotswap.vhostuser.messages import Request


class Reading(Protocol):
    """What reads QEMU's messages."""

    def hold(self) -> None:
        """Read no messages until ``FrontEnd.read_qemu`` is called."""


class FrontEnd(Protocol):
    """A VM that owes its QEMU answers: ``broker.vm.Vm``."""

    @property
    def record(self) -> VmRecord: ...

    def commit(self, record: VmRecord) -> None: ...

    @property
    def changes(self) -> Changes: ...

    @property
    def hearing(self) -> Reading: ...

    @property
    def qemu(self) -> object | None: ...

    def owner(self) -> SwitchConnection | None: ...

    def reply(self, request: Request, payload: bytes) -> None: ...

    def guarded(self, link: SwitchConnection, act: Callable[[], None]) -> None: ...

    def drop_qemu(self, reason: str) -> None: ...

    def read_qemu(self) -> None: ...


@dataclass(eq=False, slots=True)
class PendingReply:
    """An answer that is due to QEMU.

    ``pay`` sends the answer; it is called with the base if a back end has reported one. ``link`` is the back end that
    has to answer first. ``ring`` is the index of the ring whose base is asked for.
    """

    pay: Callable[[int | None], None]
    link: SwitchConnection | None = None
    ring: int | None = None


class DeferredReply:
    """The answer that ``vm`` owes its QEMU. There is one at most, because QEMU's messages are not read until then."""

    def __init__(self, vm: FrontEnd, loop: asyncio.AbstractEventLoop) -> None:
        self._vm = vm
        self._loop = loop
        self.owed: PendingReply | None = None

    def base(self, got: MessageEffect, before: GuestState) -> None:
        """Owe QEMU a ring's base. This is to be called before the owner is sent the stop of the ring.

        The base is what the owner reports when it stops the ring. If the owner does not run the ring, or did not have
        it at the guest's address, the base is read from guest memory at that time.
        """
        vm, index, owner = self._vm, got.index, self._vm.owner()

        def pay(base: int | None) -> None:
            if base is None:
                base = indices(vm.record.state.memory, before.ring(index)).used
            base = got.value if base is None else base
            state = vm.record.state
            state = state.with_ring(index, replace(state.ring(index), base=base))
            vm.commit(vm.record._replace(state=state))
            vm.reply(Request.GET_VRING_BASE, messages.VRING_STATE.pack(index, base))

        owed = self._owe(PendingReply(pay, owner, index))
        if owner is None or (owner.quiet and not owner.told.ring(index).started):
            self.pay(owed)
        elif not owner.told.ring(index).started:  # it may have been sent the stop before, and not have stopped yet
            self._pay_behind(owner, owed)

    def settled(self, message: messages.Message) -> None:
        """Owe QEMU an acknowledgement, which is given when the owner has handled what it is sent in this turn."""
        payload = b"" if message.request is Request.SET_LOG_BASE else messages.U64.pack(0)
        owed = self._owe(PendingReply(lambda _: self._vm.reply(message.request, payload)))
        self._loop.call_soon(self._settle, owed)

    def _settle(self, owed: PendingReply) -> None:
        if self.owed is not owed:
            return
        owed.link = self._vm.owner()
        if owed.link is None:
            self.pay(owed)
        else:
            self._pay_behind(owed.link, owed)

    def _pay_behind(self, link: SwitchConnection, owed: PendingReply) -> None:
        self._vm.guarded(link, lambda: link.fence(lambda: self.pay(owed)))

    def _owe(self, owed: PendingReply) -> PendingReply:
        self.owed = owed
        self._vm.hearing.hold()
        return owed

    def dropped(self, link: SwitchConnection) -> None:
        """Give the answer for which back end ``link`` was asked, because it is gone and will not answer."""
        if self.owed is not None and self.owed.link is link:
            self.pay(self.owed)

    def let_go(self, link: SwitchConnection | None) -> None:
        """Stop waiting for ``link``, which is off the rings: a base is read from guest memory, and an acknowledgement
        depends on the present owner, if there is one."""
        if link is None or self.owed is None or self.owed.link is not link:
            return
        if self.owed.ring is None:
            self._settle(self.owed)
        else:
            self.pay(self.owed)

    def pay(self, owed: PendingReply, base: int | None = None) -> None:
        """Give an answer unless it was given before, because what makes it possible may happen twice."""
        vm = self._vm
        if self.owed is not owed or vm.qemu is None:
            return
        self.owed = None
        vm.changes.notify()
        try:
            owed.pay(base)
        except (OSError, ProtocolError) as error:
            vm.drop_qemu(f"QEMU: {error}")
            return
        vm.read_qemu()

"""The methods of the broker's control socket for VMs that a switch serves without the broker: taking them over from it,
and giving them back to it.

The caller stops QEMU and gets the descriptors (``adopt``), because the broker may not do that. It calls
``adopt_prepare``, then ``adopt_enter`` while QEMU stands still, and then ``adopt_finish``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence

from ovs_hotswap.adopt.fetching import Fetched
from ovs_hotswap.adopt.snapshot import read_snapshot
from ovs_hotswap.backends import MoveResult, VmStatus
from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control.documents import move_result, vm_status
from ovs_hotswap.broker.control.moves_api import side_of
from ovs_hotswap.broker.control.server import Method
from ovs_hotswap.broker.entering import Entering, stays_with
from ovs_hotswap.broker.qemu_connector import call
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_record import Note
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown, TryAgain
from ovs_hotswap.model import Side
from ovs_hotswap.priority import control_core
from ovs_hotswap.vhostuser.channel import OwnedFd, close_all
from ovs_hotswap.vhostuser.handover import Outcome, Swap
from ovs_hotswap.vhostuser.ownership import Certainty

log = logging.getLogger(__name__)

_PREPARED_S = 300.0  # how long a caller may take between ``adopt_prepare`` and ``adopt_enter``, with many VMs
_COMES_S = 3.0  # a switch that has been made to hang up connects again at once, or after a second
_SERVED_S = 5.0
_QUEUED_S = 0.05  # for a switch that has been hung up on to connect to QEMU's socket


class Adoptions:
    """The methods. ``slot_of`` returns a VM by its name, or raises BrokerError; ``forget`` removes one."""

    def __init__(
        self, slot_of: Callable[[object], VmSlot], settings: Settings, changes: Changes, forget: Callable[[str], None]
    ) -> None:
        self._slot, self._settings, self._changes, self._forget = slot_of, settings, changes, forget
        self._prepared: dict[str, Entering] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"adopt_prepare": self._prepare, "adopt_enter": self._enter, "adopt_finish": self._finish,
                "adopt_cancel": self._cancel, "adopt_reconnect": self._reconnect,
                "give_back": self._give_back}  # fmt: skip

    async def _prepare(self, vm: str, snapshot: str, to: str, descriptors: Sequence[OwnedFd]) -> VmStatus:
        """Park switch ``to`` for a VM that the other side's switch serves without the broker, or prepare that the VM
        stays with switch ``to``, which serves it.

        ``snapshot`` is a ``Snapshot`` as JSON, ``descriptors`` are those of ``Fetched.descriptors``. What is prepared
        is undone after a while without ``adopt_enter``.
        """
        slot, side = self._slot(vm), side_of(to)
        await self._cancel(vm)
        stays = stays_with(slot.vm, side)
        with contextlib.suppress(BrokerError):  # a switch that has just been hung up on; otherwise the reason follows
            await self._changes.until(lambda: stays or _is_connected(slot, side), _COMES_S)
        facts, mine = read_snapshot(snapshot), [OwnedFd(each.detach(), own=True) for each in descriptors]
        try:
            fetched = Fetched.of(facts, mine)
            made = await Entering.prepare(slot, facts, fetched, side)
        except BaseException:
            for each in mine:
                each.close()
            raise
        self._prepared[vm] = made
        self._begin(self._expire(vm, made))
        return vm_status(slot.vm, read=False)

    async def _expire(self, vm: str, made: Entering) -> None:
        """Undo what is prepared, if it is not used in time or of no use any longer."""
        with contextlib.suppress(BrokerError):
            await self._changes.until(lambda: self._prepared.get(vm) is not made or not made.waits, _PREPARED_S)
        if self._prepared.get(vm) is made:
            del self._prepared[vm]
            made.cancel()

    async def _enter(self, vm: str, descriptors: Sequence[OwnedFd]) -> MoveResult:
        """Enter the connection, and move the VM. QEMU stands still during this call.

        ``descriptors``: duplicates of QEMU's end and of the switch's end of the connection.
        """
        slot, made = self._slot(vm), self._prepared.pop(vm, None)
        if made is None or not made.is_of(slot):
            if made is not None:
                made.cancel()
            raise TryAgain(f"vm {vm}: its adoption has not been prepared, by this broker at least, or took too long")
        ends = [OwnedFd(each.detach(), own=True) for each in descriptors]
        try:
            swap = await made.enter(ends, control_core(self._settings.pmd_cores))
        except BaseException:
            if made.is_inside:
                self._begin(self._settle(vm, made))
            else:
                made.cancel()
                close_all(ends)
            raise
        self._begin(self._complete(vm, made))
        return move_result(slot.vm, swap or Swap(Outcome.MOVED))

    async def _settle(self, vm: str, made: Entering) -> None:
        """Wait for a switch that has not answered, for as long as it takes."""
        if await made.settle(math.inf):
            await self._complete(vm, made)
        else:
            made.cancel()

    async def _complete(self, vm: str, made: Entering) -> None:
        """Have the broker listen to QEMU as soon as the first switch has left."""
        while True:
            try:
                return await made.finish()
            except HotswapError as error:
                log.error("%s", error.message)

    async def _finish(self, vm: str) -> VmStatus:
        """Return the VM's status when the broker has taken it over completely: the first switch has left."""
        slot = self._slot(vm)
        await self._changes.until(lambda: slot.vm.entering is None, _SERVED_S,
                                  lambda: f"vm {vm}: the switch that served it has not connected again")  # fmt: skip
        if slot.vm.qemu is None:
            raise BrokerError(f"vm {vm} was not adopted")
        return vm_status(slot.vm, read=False)

    async def _cancel(self, vm: str) -> None:
        """Undo ``adopt_prepare``; nothing happens if there is nothing to undo."""
        if (made := self._prepared.pop(vm, None)) is not None:
            made.cancel()

    async def _reconnect(self, vm: str, to: str, descriptors: Sequence[OwnedFd]) -> VmStatus:
        """Take a VM over by a new connection of its QEMU: the guest has no network for some milliseconds.

        ``descriptors`` has a duplicate of the switch's end of the connection. The switch sees the end of the stream and
        connects to the broker. By then it is off the rings. QEMU sees the end after that, and takes up the broker's
        connection. Raises BrokerError if nothing was begun, and StateUnknown if the VM is not served in time.
        """
        slot, side = self._slot(vm), side_of(to)
        old = _served_directly(slot)
        if (slot.vm.links.get(side) is None and side is not old) or len(descriptors) != 1:
            raise BrokerError(f"vm {vm}: switch {side} is not connected, or the end of the connection is missing")
        held = slot.vm
        held.commit(held.record._replace(home=side), Note.CONTINUE)
        with socket.socket(fileno=descriptors[0].detach()) as end:
            end.shutdown(socket.SHUT_RD)
            await self._until(lambda: not slot.direct, _COMES_S, f"vm {vm}: switch {old} did not connect")
            await self._until(lambda: not held.expected, _COMES_S, f"vm {vm}: switch {old} does not say what it can do")
            if held.wants_qemu:
                call(slot, self._settings.config, time.monotonic())
        await self._until(lambda: held.owner() is not None and held.ownership.certainty is Certainty.OWNS, _SERVED_S,
                          f"vm {vm}: its guest is not served yet")  # fmt: skip
        return vm_status(held, read=False)

    async def _give_back(self, vm: str) -> None:
        """Give a VM to the only switch that is connected for it, which then serves it without the broker.

        The rings are taken back first, QEMU's socket gets its name back, and the switch connects there. The guest has
        no network until then. The broker does not serve the VM any longer, until it reads the file of ports again.
        Raises BrokerError if nothing was begun, or the switch does not release the rings and has them again.
        """
        slot = self._slot(vm)
        held, shared = slot.vm, slot.shared
        await self._cancel(vm)
        if shared is None or held.entering is not None:
            raise BrokerError(f"vm {vm} cannot be given back: it is being taken over, or this host's VMs are ours")
        if len(held.links) > 1:
            raise BrokerError(f"vm {vm}: both switches are connected, and either could get it",
                              hint="end the standby first: `ovs-hotswap instance stop SIDE`")  # fmt: skip
        if slot.direct:
            self._forget(vm)
            return
        slot.withdraw()
        try:
            await self._changes.until(lambda: slot.is_withdrawn and slot.settled, self._settings.fence_s + 1.0,
                                      f"vm {vm}: a switch does not release its rings")  # fmt: skip
        except BrokerError:
            slot.serve_again()
            raise
        try:
            shared.give_back()
        except OSError as error:
            slot.serve_again()
            raise BrokerError(f"{shared.path}: {error.strerror}: vm {vm} was not given back") from error
        for side in list(held.links):
            held.drop_link(side, "the VM is given back to it")
        await asyncio.sleep(_QUEUED_S)
        self._forget(vm)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, true: Callable[[], bool], timeout: float, otherwise: str) -> None:
        """Wait. Raises StateUnknown instead of BrokerError, because something was begun."""
        try:
            await self._changes.until(true, timeout, otherwise)
        except BrokerError as error:
            raise StateUnknown(error.message, hint="`ovs-hotswap vm list` says what it waits for") from error


def _is_connected(slot: VmSlot, side: Side) -> bool:
    link = slot.vm.links.get(side)
    return link is not None and link.offer is not None


def _served_directly(slot: VmSlot) -> Side:
    """Return the side whose switch serves a VM without the broker. Raises BrokerError if that is not known."""
    vm = slot.vm
    if vm.entering is not None:
        raise BrokerError(f"vm {vm.name} is being taken over")
    if not slot.direct or len(vm.ownership.suspects) != 1:
        raise BrokerError(f"vm {vm.name}: it is not one switch that serves it without the broker: {vm!r}")
    (side,) = vm.ownership.suspects
    return side

"""The methods of the broker's control socket for moving VMs: arming, moves, and fetching undelivered frames."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ovs_hotswap.backends import MoveResult
from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control import client
from ovs_hotswap.broker.control.documents import move_result
from ovs_hotswap.broker.control.each_vm import Faults, names_of
from ovs_hotswap.broker.control.server import Method
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import control_core
from ovs_hotswap.vhostuser.handover import Threads
from ovs_hotswap.vhostuser.messages import Descriptor

_TIMEOUT_S = 2.0
_ANSWER_LENGTH = 2 << 20  # hexadecimal digits of frames


class Moves:
    """The methods for moving VMs. ``seat_of`` returns a VM by its name, or raises BrokerError."""

    def __init__(
        self, seat_of: Callable[[object], VmSlot], saver: StateSaver, settings: Settings, changes: Changes
    ) -> None:  # fmt: skip
        self._slot, self._saver, self._settings, self._changes = seat_of, saver, settings, changes

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"arm": self._arm, "disarm": self._disarm, "move": self._move, "move_many": self._move_many,
                "unserved": self._unserved, "undelivered": self._undelivered,
                "undelivered_many": self._undelivered_many}  # fmt: skip

    async def _move(self, vm: str, to: str) -> MoveResult:
        return await self._swap(vm, side_of(to), {})

    async def _swap(self, vm: str, to: Side, threads: Threads) -> MoveResult:
        slot = self._slot(vm)
        await self._quiet(slot, to)
        return move_result(slot.vm, slot.mover.swap_to(to, threads, control_core(self._settings.pmd_cores)))

    async def _quiet(self, slot: VmSlot, to: Side) -> None:
        """Wait, for a limited time, until no messages are under way that keep a VM from being moved."""
        if slot.mover.under_way(to):
            slot.mover.drain()
            with contextlib.suppress(BrokerError):
                await self._changes.until(lambda: not slot.mover.under_way(to), _TIMEOUT_S)

    async def _arm(self, vms: list[str], to: str) -> list[str]:
        """Capture frames for VMs that are about to be moved from now on; return the VMs for which that is done."""
        side, told = side_of(to), []
        for vm in vms:
            slot = self._slot(vm)
            await self._quiet(slot, side)
            try:
                if slot.mover.arm(side):
                    told.append(vm)
            except BrokerError:
                break  # its move will say why, and is the last one
        with contextlib.suppress(BrokerError):  # if a switch does not answer, the move will say so
            armed = lambda: all(self._slot(vm).mover.is_armed(side) for vm in told)  # noqa: E731
            await self._changes.until(armed, self._settings.fence_s)
        return [vm for vm in told if self._slot(vm).mover.is_armed(side)]

    async def _disarm(self, vms: list[str]) -> None:
        """End the capture for VMs that were armed and are not moved after all."""
        for vm in vms:
            self._slot(vm).mover.disarm()

    async def _move_many(
        self, vms: list[str], to: str, threads: Mapping[str, Any] | None = None,
        descriptors: Sequence[Descriptor] = (), gone: Callable[[], bool] = lambda: False,
    ) -> dict[str, object]:  # fmt: skip
        """Move VMs in this order, up to the first that cannot be moved; ``moved`` in the answer has those before it.

        ``threads`` are the switches' message threads by side: each has its ``tid``, and ``pipe`` if its notify pipe is
        the next of ``descriptors``. A caller that is ``gone`` has given up, and may be about to move VMs back: no
        further VM is moved for it.
        """
        moved: list[MoveResult] = []
        side = side_of(to)
        with contextlib.ExitStack() as stack:
            known = _message_threads(threads or {}, descriptors, stack)
            stack.enter_context(self._saver.paused())
            for vm in vms:
                if gone():
                    await self._disarm(vms[len(moved) :])
                    raise BrokerError(f"the caller has hung up: {len(moved)} of {len(vms)} VMs were moved")
                try:
                    moved.append(await self._swap(vm, side, known))
                except HotswapError as error:
                    return {"moved": moved, **client.error_document(error)}
                await asyncio.sleep(0)  # lets the loop read answers for the VMs before
        return {"moved": moved, "error": None}

    async def _unserved(self, vms: list[str]) -> list[str]:
        """Return the VMs that had frames to send at their last move, of which no switch has taken any since."""
        return [vm for vm in vms if not self._slot(vm).mover.served]

    async def _undelivered(self, vm: str) -> dict[str, Any]:
        """Return the frames that arrived during the VM's last move. Late copies are not awaited any longer."""
        caught = await self._slot(vm).mover.undelivered()
        return {
            "vm": vm,
            "frames": [each.frame.hex() for each in caught if not each.segments],
            "undeliverable": sum(each.segments for each in caught),
        }

    async def _undelivered_many(self, vms: list[str]) -> dict[str, object]:
        """Return the frames of many VMs: ``vms`` is a list of what ``undelivered`` returns, ``errors`` has the others.
        The answer ends early after some bytes of frames: a client asks again for the VMs that are in neither."""
        faults, found, size = Faults("undelivered_many"), [], 0
        for vm in (names := names_of(vms)):  # none waits for the switches until all of them have been asked
            with faults.of(vm):
                self._slot(vm).mover.drain()
        for vm in (vm for vm in names if vm not in faults.errors):
            with faults.of(vm):
                found.append(answer := await self._undelivered(vm))
                size += sum(map(len, answer["frames"]))
            if size >= _ANSWER_LENGTH:
                break
        return {"vms": found, "errors": faults.errors}


def _message_threads(
    given: Mapping[str, Any], descriptors: Sequence[Descriptor], stack: contextlib.ExitStack
) -> Threads:
    """Return the message threads in a request. ``stack`` closes what is opened here.

    Raises BrokerError if the request is malformed, or a descriptor is no pipe.
    """
    left = list(descriptors)
    try:
        threads = {}
        for side, thread in given.items():
            pipe = _pipe(side, left.pop(0), stack) if thread["pipe"] else None
            threads[side_of(side)] = MessageThread(int(thread["tid"]), pipe)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BrokerError("threads: a tid and whether there is a pipe for each side, and those pipes") from error
    if left:
        raise BrokerError(f"{len(left)} descriptors too many")
    return threads


def _pipe(side: str, given: Descriptor, stack: contextlib.ExitStack) -> int | None:
    """Return a new descriptor of a notify pipe, or ``None`` if no process reads from the pipe any longer.

    The pipe is opened again because O_NONBLOCK belongs to the open file, which the caller has as well.
    """
    descriptor = given.fileno()
    writes = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    if not (writes and stat.S_ISFIFO(os.fstat(descriptor).st_mode)):
        raise BrokerError(f"notify pipe of {side}: not a pipe that is open for writing")
    try:
        pipe = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    stack.callback(os.close, pipe)
    return pipe


def side_of(text: str) -> Side:
    try:
        return Side(text)
    except ValueError as error:
        raise BrokerError(f"no side {text!r}; there are a and b") from error

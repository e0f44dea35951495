"""What the broker's control socket offers for moving VMs: capture rings armed before, moves, and what they left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.priority import control_core
from ovs_hotswap.vhost import control
from ovs_hotswap.vhost.desk import Method
from ovs_hotswap.vhost.keeping import Keeping
from ovs_hotswap.vhost.report import swap_document
from ovs_hotswap.vhost.seat import Seat

_TIMEOUT_S = 2.0
_TICK_S = 0.001


class Moves:
    """``seat_of`` finds a VM by its name, or raises BrokerError."""

    def __init__(self, seat_of: Callable[[object], Seat], keeping: Keeping, config: Config) -> None:
        self._seat, self._keeping, self._fence_s = seat_of, keeping, config.broker.fence_ms / 1e3
        self._pmd_cores = [core for side in Side for core in config.instance(side).pmd_cores]

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"arm": self._arm, "move": self._move, "move_many": self._move_many, "unserved": self._unserved,
                "undelivered": self._undelivered}  # fmt: skip

    async def _move(self, vm: str, to: str) -> dict[str, Any]:
        seat, side = self._seat(vm), side_of(to)
        await self._quiet(seat, side)
        return swap_document(seat.vm, seat.mover.swap_to(side, control_core(self._pmd_cores)))

    async def _quiet(self, seat: Seat, to: Side) -> None:
        """Wait while messages are under way that keep a VM from being moved."""
        if "under way" in (seat.mover.why_not(to) or ""):
            seat.mover.settle()
            with contextlib.suppress(BrokerError):
                await until(lambda: seat.mover.why_not(to) is None, _TIMEOUT_S, "")

    async def _arm(self, vms: list[str], to: str) -> list[str]:
        """Have frames for VMs that are about to be moved caught from now on; answers those for which that can be."""
        side, told = side_of(to), []
        for vm in vms:
            seat = self._seat(vm)
            await self._quiet(seat, side)
            try:
                if seat.mover.arm(side):
                    told.append(vm)
            except BrokerError:
                break  # its move tells why, and is the last one
        with contextlib.suppress(BrokerError):  # the move of one that does not answer tells that
            await until(lambda: all(self._seat(vm).mover.armed(side) for vm in told), self._fence_s, "")
        return [vm for vm in told if self._seat(vm).mover.armed(side)]

    async def _move_many(self, vms: list[str], to: str) -> dict[str, Any]:
        """Move VMs in this order, up to the first one that cannot be: ``moved`` tells of those before it."""
        moved: list[dict[str, Any]] = []
        with self._keeping.held():
            for vm in vms:
                try:
                    moved.append(await self._move(vm, to))
                except HotswapError as error:
                    return {"moved": moved, **control.error_document(error)}
                await asyncio.sleep(0)  # answers of those before have come meanwhile
        return {"moved": moved, "error": None}

    async def _unserved(self, vms: list[str]) -> list[str]:
        """VMs of which something that was to be sent at their last move still waits, and nothing was taken since."""
        return [vm for vm in vms if not self._seat(vm).mover.served]

    async def _undelivered(self, vm: str) -> dict[str, Any]:
        """Frames that arrived during the VM's last move; late copies are not waited for any more."""
        caught = await self._seat(vm).mover.settled()
        return {
            "vm": vm,
            "frames": [each.frame.hex() for each in caught if not each.segments],
            "undeliverable": sum(each.segments for each in caught),
        }


async def until(true: Callable[[], bool], timeout: float, otherwise: str) -> None:
    """Wait. Raises BrokerError with ``otherwise`` after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() >= end:
            raise BrokerError(f"{otherwise} after {timeout:g} s")
        await asyncio.sleep(_TICK_S)


def side_of(text: str) -> Side:
    try:
        return Side(text)
    except ValueError as error:
        raise BrokerError(f"no side {text!r}; there are a and b") from error

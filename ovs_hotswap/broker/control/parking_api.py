"""The methods of the broker's control socket for parking VMs, one at a time or many at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control.documents import vm_status
from ovs_hotswap.broker.control.each_vm import Faults, names_of
from ovs_hotswap.broker.control.moves_api import side_of
from ovs_hotswap.broker.control.server import Method
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side

_TIMEOUT_S = 10.0  # a first use creates mempools under the device lock: half a second was measured
_MANY_S = 5.0  # shorter than a client waits for an answer; it asks again for the VMs that are late


class Parking:
    """The methods for parking VMs. ``seat_of`` returns a VM by its name, or raises BrokerError."""

    def __init__(self, seat_of: Callable[[object], VmSlot], changes: Changes) -> None:
        self._slot, self._changes = seat_of, changes

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"park": self._park, "park_many": self._park_many, "unpark": self._unpark}

    async def _park(self, vm: str, side: str) -> VmStatus:
        """Keep ``side`` parked, and return the VM's status when its back end has handled everything."""
        slot, where = self._slot(vm), side_of(side)
        slot.vm.park(where)
        await self._changes.until(lambda: _is_there(slot, where), _TIMEOUT_S, lambda: _why_late(slot, where))
        return vm_status(slot.vm)

    async def _park_many(self, vms: list[str], side: str) -> dict[str, object]:
        """Park many VMs, none of which waits for another. The answer names each VM once: in ``parked``, in ``errors``
        with its error, or in ``late`` with its error if its back end has not handled everything after some seconds."""
        where, faults, asked = side_of(side), Faults("park_many"), dict[str, VmSlot]()
        for vm in names_of(vms):
            with faults.of(vm):
                slot = self._slot(vm)
                slot.vm.park(where)
                asked[vm] = slot
            await asyncio.sleep(0)  # QEMUs and switches are served between two VMs
        with contextlib.suppress(BrokerError):
            await self._changes.until(lambda: all(_is_there(slot, where) for slot in asked.values()), _MANY_S)
        late = Faults("park_many")
        for vm, slot in asked.items():
            if not _is_there(slot, where):
                with late.of(vm):
                    raise BrokerError(f"{_why_late(slot, where)} after {_MANY_S:g} s")
        return {"parked": [vm for vm in asked if vm not in late.errors], "errors": faults.errors, "late": late.errors}

    async def _unpark(self, vm: str, side: str) -> VmStatus:
        slot = self._slot(vm)
        slot.vm.unpark(side_of(side))
        return vm_status(slot.vm)


def _is_there(slot: VmSlot, side: Side) -> bool:
    """Whether there is nothing to wait for: the side is parked or has the rings, or the VM has no guest."""
    return slot.vm.qemu is None or slot.vm.ownership.holder is side or slot.vm.is_parked(side)


def _why_late(slot: VmSlot, side: Side) -> str:
    return f"vm {slot.vm.name}: {slot.vm.parking_fault(side)}"

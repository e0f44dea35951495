"""VMs that no switch serves, by order, because each is suspected or known to end any switch that serves it.

A VM in quarantine keeps its QEMU's connection, and its rings are given to no side and parked nowhere. It is recorded in
``quarantine.json`` in run_dir, so that the next broker knows of it. If that file cannot be written, the quarantine
lasts until this broker ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import TypeAdapter

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.broker.control.documents import vm_status
from ovs_hotswap.broker.control.server import Method
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser.ownership import Certainty

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0
_REASONS = TypeAdapter(dict[str, str])


class Quarantine:
    """The quarantine of all VMs. ``seat_of`` returns a VM by its name, or raises BrokerError."""

    def __init__(self, path: Path, system: System, seat_of: Callable[[object], VmSlot]) -> None:
        self._path, self._system, self._slot = path, system, seat_of
        self._reasons = _read(path)

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"quarantine": self._hold, "release": self._release}

    def enter(self, vm: Vm) -> Vm:
        """Put a VM that has just been made in quarantine if it is recorded, and return it."""
        vm.commit(vm.record._replace(quarantine=self._reasons.get(vm.name)))
        return vm

    @staticmethod
    def enforce(vm: Vm) -> None:
        """Take a VM's rings back, if it is in quarantine and a switch has them."""
        owner = vm.owner()
        serves = vm.ownership.certainty in (Certainty.OWNS, Certainty.TAKING)
        if vm.quarantine is not None and owner is not None and serves:
            vm.take_back(owner)

    async def _hold(self, vm: str, reason: str) -> VmStatus:
        """Put the VM in quarantine, and return its status when no switch has its rings, or after a while.

        A switch that does not release them in that time is not given them again either. Raises BrokerError if the
        reason is no text, which the next broker could not read.
        """
        if not isinstance(reason, str):
            raise BrokerError(f"quarantine: reason: not a text: {reason!r}")
        slot = self._slot(vm)
        held = slot.vm
        slot.mover.disarm()
        slot.mover.drain()
        self._set(held, reason)
        self.enforce(held)
        with contextlib.suppress(BrokerError):
            await held.changes.until(lambda: slot.is_withdrawn, _PATIENCE_S)
        if held.quarantine is not None:
            held.sync_all()
        return vm_status(held, read=False)

    async def _release(self, vm: str) -> VmStatus:
        """Have the VM served again, by any switch that is connected."""
        held = self._slot(vm).vm
        self._set(held, None)
        held.assign()
        held.sync_all()
        return vm_status(held, read=False)

    def _set(self, vm: Vm, reason: str | None) -> None:
        vm.commit(vm.record._replace(quarantine=reason))
        if reason is None:
            self._reasons.pop(vm.name, None)
        else:
            self._reasons[vm.name] = reason
        try:
            self._system.write_atomic(self._path, json.dumps(self._reasons) + "\n")
        except (OSError, HotswapError) as error:
            log.error("%s cannot be written: %s; it holds until this broker ends", self._path, error)


def _read(path: Path) -> dict[str, str]:
    try:
        return _REASONS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.error("%s cannot be read, so no VM is in quarantine: %s", path, error)
        return {}

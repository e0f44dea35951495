"""VMs that no switch serves, by order: each is suspected, or known, to end whatever serves it.

A VM in quarantine keeps its QEMU's connection, and its rings are given to nobody and parked nowhere. It is kept in
``quarantine.json`` in run_dir, so that a next broker knows of it; what cannot be written there is in force until this
one ends.
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
    """``seat_of`` finds a VM by its name, or raises BrokerError."""

    def __init__(self, path: Path, system: System, seat_of: Callable[[object], VmSlot]) -> None:
        self._path, self._system, self._seat = path, system, seat_of
        self._reasons = _read(path)

    @property
    def methods(self) -> Mapping[str, Method]:
        return {"quarantine": self._hold, "release": self._release}

    def enter(self, vm: Vm) -> Vm:
        """A VM that has just been made."""
        vm.commit(vm.record._replace(quarantine=self._reasons.get(vm.name)))
        return vm

    @staticmethod
    def enforce(vm: Vm) -> None:
        """Take a VM's rings back, if it is in quarantine and some switch has them."""
        owner = vm.owner()
        serves = vm.ownership.certainty in (Certainty.OWNS, Certainty.TAKING)
        if vm.quarantine is not None and owner is not None and serves:
            vm.take_back(owner)

    async def _hold(self, vm: str, reason: str) -> VmStatus:
        """Take the VM's rings back, and answer when no switch has them, or does not let go of them for a while: it is
        given them no more in any case. Raises BrokerError if the reason is no text, which the next broker could not
        read."""
        if not isinstance(reason, str):
            raise BrokerError(f"quarantine: reason: not a text: {reason!r}")
        seat = self._seat(vm)
        held = seat.vm
        seat.mover.disarm()
        seat.mover.drain()
        self._set(held, reason)
        self.enforce(held)
        with contextlib.suppress(BrokerError):
            await held.changes.until(lambda: seat.is_withdrawn, _PATIENCE_S)
        if held.quarantine is not None:
            held.sync_all()
        return vm_status(held, read=False)

    async def _release(self, vm: str) -> VmStatus:
        """Serve the VM again, by whoever is there."""
        held = self._seat(vm).vm
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

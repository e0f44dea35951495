"""The end of the broker for good: every VM's rings are taken back from its switch before its QEMU is hung up on.

A QEMU whose back end is gone works on the rings itself (hw/net/virtio-net.c, ``virtio_net_drop_tx_queue_data``). A
switch that does not answer may work on them as well, at that time or when it wakes up: it has the guest's memory for as
long as it lives.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.process_watch import Processes
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.errors import BrokerError

log = logging.getLogger(__name__)


class ShutdownFence:
    """Takes back the rings of all ``seats``, which may change at any time. ``begun``: no side is given rings any
    longer."""

    def __init__(
        self, slots: Mapping[str, VmSlot], processes: Processes, saver: StateSaver, changes: Changes
    ) -> None:  # fmt: skip
        self._slots, self._processes, self._saver, self._changes = slots, processes, saver, changes
        self.begun = self._enforced = False

    async def try_release(self, patience: float) -> None:
        """Take back all rings and hang up on all QEMUs.

        Raises BrokerError if after ``patience`` seconds a switch may still be on the rings of a VM. All VMs are then
        served again.
        """
        stuck = await self._take_back(patience)
        if not stuck:
            self._drop_qemus()
            return
        sides = sorted({side for slot in stuck for side in slot.on_rings})
        ends = " and ".join(f"`ovs-hotswap instance stop {side} --force`" for side in sides)
        refusal = f"a switch does not release the rings of VM {', '.join(map(str, stuck))}"
        if not self._enforced:
            self.begun = False
            for slot in self._slots.values():
                if not slot.leaving:
                    slot.serve_again()
        log.warning("%s: all VMs are still served", refusal)
        raise BrokerError(refusal, hint=f"{ends} ends it; then try again")

    async def force_release(self, patience: float) -> None:
        """Take back all rings and hang up on all QEMUs, when that cannot be refused.

        After ``patience`` seconds a switch that may still be on rings is killed. If it does not die, this waits until
        this process is killed.
        """
        self._enforced = True
        stuck = await self._take_back(patience)
        for pid in {pid for slot in stuck for pid in slot.on_rings.values()}:
            names = ", ".join(slot.vm.name for slot in stuck if pid in slot.on_rings.values())
            log.error("switch of process %d does not release the rings of VM %s: it is killed", pid, names)
            self._processes.kill(pid)
        await self._changes.until(lambda: not self._stuck())
        self._drop_qemus()

    async def _take_back(self, patience: float) -> list[VmSlot]:
        """Take back all rings, and return the VMs for which that failed within ``patience`` seconds."""
        self.begun = True
        for slot in self._slots.values():
            slot.withdraw()
        with contextlib.suppress(BrokerError):
            await self._changes.until(lambda: not self._stuck(), patience)
        return self._stuck()

    def _stuck(self) -> list[VmSlot]:
        """Return the VMs whose QEMU must not lose its back end yet."""
        slots = [slot for _, slot in sorted(self._slots.items()) if not slot.is_withdrawn]
        return [slot for slot in slots if slot.vm.qemu is not None or self._saver.defers_qemu_close(slot.vm.name)]

    def _drop_qemus(self) -> None:
        for slot in self._slots.values():
            slot.vm.drop_qemu("the broker ends")

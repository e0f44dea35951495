"""Connects to the VMs' QEMUs, each of which listens for its switch."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping

from ovs_hotswap.broker.absence import DIRECT, unreachable
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.predecessor import Predecessor
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_log import alone
from ovs_hotswap.broker.vm_slot import RETRY_S, VmSlot
from ovs_hotswap.config import Config

log = logging.getLogger(__name__)

_RETRY_MAX_S = 5.0
_HOME_S, _OTHER_S = 5.0, 2.0  # how long a living side that served the VM is awaited: switches reconnect after a second


class Reach:
    """Connects to the QEMUs of all ``seats`` that want one. The seats may change at any time."""

    def __init__(
        self, settings: Settings, slots: Mapping[str, VmSlot], saver: StateSaver, passing: Predecessor
    ) -> None:
        self._settings, self._slots, self._saver, self._predecessor = settings, slots, saver, passing

    async def forever(self, first: Callable[[], None]) -> None:
        """Try all QEMUs again and again. ``first`` is called before each round."""
        told, known = "", dict[str, str]()
        while True:
            try:
                first()
            except Exception as error:  # QEMUs are called whatever fails here
                if told != (told := repr(error)):
                    log.exception("before QEMUs are called")
            now = time.monotonic()
            for slot in self._slots.values():
                if self._predecessor.under_way:
                    break
                with alone(slot.vm.name, "its QEMU is not called", known):
                    self._call(slot, now)
            await asyncio.sleep(RETRY_S)  # a QEMU gives no sign when it begins to listen

    def _call(self, slot: VmSlot, now: float) -> None:
        if slot.direct:
            slot.vm.absence, slot.wanted_since = DIRECT, now
        elif self._saver.defers_qemu_close(slot.vm.name) or not slot.vm.wants_qemu:
            slot.wanted_since = now
        elif now >= slot.retry_at and not self._expects(slot, now):
            try:
                call(slot, self._settings.config, now)
            except OSError as error:  # descriptors are short; the other VMs are tried nevertheless
                slot.vm.note(f"connection to QEMU: {error.strerror or error}")

    def _expects(self, slot: VmSlot, now: float) -> bool:
        """Whether the offer of a side is still to come.

        A QEMU chooses once, from what all sides have in common. If it were offered features that only the standby has,
        the active side could never serve it.
        """
        for side in slot.vm.expected:
            if now - slot.wanted_since < (_HOME_S if side is slot.vm.home else _OTHER_S):
                return True
        return False


def call(slot: VmSlot, config: Config, now: float) -> None:
    """Try to connect to a VM's QEMU, at ``now`` (``time.monotonic()``). Raises OSError if descriptors are short.

    A QEMU that keeps breaking the protocol is tried less and less often.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    path = config.qemu_socket(slot.vm.name) if slot.shared is None else slot.shared.qemu
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        slot.vm.absence = unreachable(error)
        if slot.shared is not None and isinstance(error, ConnectionRefusedError):
            slot.shared.refused()
        return
    if slot.shared is not None:
        slot.shared.reached()
    since = now - slot.retry_at
    slot.delay = RETRY_S if since > _RETRY_MAX_S else min(slot.delay * 2, _RETRY_MAX_S)
    slot.retry_at = now + slot.delay
    slot.vm.connected(connection)

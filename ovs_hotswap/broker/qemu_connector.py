"""Connects to the VMs' QEMUs, each of which listens for its switch."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping

from ovs_hotswap.broker.absence import unreachable
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.predecessor import Predecessor
from ovs_hotswap.broker.settings import Settings
from ovs_hotswap.broker.vm_log import alone
from ovs_hotswap.broker.vm_slot import RETRY_S, VmSlot

log = logging.getLogger(__name__)

_RETRY_MAX_S = 5.0
_HOME_S, _OTHER_S = 5.0, 2.0  # how long a living side that served the VM is awaited: switches reconnect after a second


class Reach:
    """Connects to the QEMUs of all ``seats`` that want one. The seats may change at any time."""

    def __init__(
        self, settings: Settings, seats: Mapping[str, VmSlot], keeping: StateSaver, passing: Predecessor
    ) -> None:
        self._settings, self._seats, self._keeping, self._passing = settings, seats, keeping, passing

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
            for seat in self._seats.values():
                if self._passing.under_way:
                    break
                with alone(seat.vm.name, "its QEMU is not called", known):
                    self._call(seat, now)
            await asyncio.sleep(RETRY_S)  # a QEMU gives no sign when it begins to listen

    def _call(self, seat: VmSlot, now: float) -> None:
        if self._keeping.defers_qemu_close(seat.vm.name) or not seat.vm.wants_qemu:
            seat.wanted_since = now
        elif now >= seat.retry_at and not self._expects(seat, now):
            try:
                self._connect(seat, now)
            except OSError as error:  # descriptors are short; the other VMs are tried nevertheless
                seat.vm.note(f"connection to QEMU: {error.strerror or error}")

    def _expects(self, seat: VmSlot, now: float) -> bool:
        """Whether the offer of a side is still to come.

        A QEMU chooses once, from what all sides have in common. If it were offered features that only the standby has,
        the active side could never serve it.
        """
        for side in seat.vm.expected:
            if now - seat.wanted_since < (_HOME_S if side is seat.vm.home else _OTHER_S):
                return True
        return False

    def _connect(self, seat: VmSlot, now: float) -> None:
        """Try to connect to a VM's QEMU. A QEMU that keeps breaking the protocol is tried less and less often."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(str(self._settings.config.qemu_socket(seat.vm.name)))
        except OSError as error:
            connection.close()
            seat.vm.absence = unreachable(error)
            return
        since = now - seat.retry_at
        seat.delay = RETRY_S if since > _RETRY_MAX_S else min(seat.delay * 2, _RETRY_MAX_S)
        seat.retry_at = now + seat.delay
        seat.vm.connected(connection)

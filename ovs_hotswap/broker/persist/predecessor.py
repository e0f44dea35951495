"""The old broker's part in a takeover (``takeover``): when and how each VM is handed over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping

from ovs_hotswap.broker.changes import Changes
from ovs_hotswap.broker.control.server import ControlServer
from ovs_hotswap.broker.persist import takeover
from ovs_hotswap.broker.persist.autosave import StateSaver
from ovs_hotswap.broker.persist.formats import Reader, announced
from ovs_hotswap.broker.persist.recovery import StartsOver
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import Note
from ovs_hotswap.broker.vm_slot import VmSlot
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.vhostuser.channel import OwnedFd, listen

log = logging.getLogger(__name__)


class Predecessor:
    """Hands all ``seats``, which may change at any time, to a successor.

    ``under_way``: a takeover has begun, and no QEMU is to be connected now. ``succeeded``: a successor is the broker,
    and ``done`` was called. ``listener`` is the socket for successors of an earlier broker, if there was one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, config: Config, listener: socket.socket | None,
        slots: Mapping[str, VmSlot], saver: StateSaver, control_server: ControlServer, changes: Changes,
        done: Callable[[], None],
    ) -> None:  # fmt: skip
        self._loop, self._path, self._listener = loop, config.successor_socket, listener
        self._slots, self._saver, self._control_server, self._done = slots, saver, control_server, done
        self._changes = changes
        self._task: asyncio.Task[None] | None = None
        self.under_way = self.succeeded = False

    def open(self) -> None:
        """Wait for successors. If their socket cannot be made, VMs are served nevertheless."""
        try:
            if self._listener is None:
                self._listener = listen(self._path)
            self._listener.setblocking(False)
            self._listener.listen()  # from here on it is this process that peers see there (unix(7), SO_PEERCRED)
            self._loop.add_reader(self._listener.fileno(), self._came, self._listener)
        except (BrokerError, OSError) as error:
            log.error("no broker can succeed this one: %s", error)

    def _came(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except OSError as error:
            log.warning("successor: accept: %s", error)
            return
        if self._task is not None and not self._task.done():
            connection.close()
            return
        self._task = self._loop.create_task(self._hand_over(connection, listener, announced(address)))

    async def _hand_over(
        self, connection: socket.socket, listener: socket.socket, reader: Reader | None
    ) -> None:  # fmt: skip
        """Hand everything to a successor, or continue if it does not become ready."""
        with connection:
            try:
                await self._calm_down()
                slots = [slot for _, slot in sorted(self._slots.items())]  # others may have left in the meantime
                for slot in slots:
                    slot.pause_reading(self._loop)
                connection.setblocking(True)
                given = [(self._passed(slot), slot.listeners) for slot in slots]
                if self._control_server.listener is None:
                    raise BrokerError("this broker has no control socket to hand over")
                shared = [(slot.vm.name, slot.shared) for slot in slots]
                files = {name: each.made for name, each in shared if each is not None and each.made is not None}
                takeover.hand_over(connection, self._control_server.listener, listener, given, reader, files)
            except Exception as error:
                log.error("a successor could not take over: %s", error,
                          exc_info=None if isinstance(error, HotswapError) else error)  # fmt: skip
                self.under_way = False
                for slot in self._slots.values():
                    slot.resume_reading(self._loop)
                return
        self.succeeded = True
        self._control_server.close()
        for slot in slots:
            # No move that was waiting continues here. The successor has the state, so nothing is noted any longer.
            slot.vm.commit(slot.vm.record._replace(withdrawn=True), Note.COVERED)
            slot.vm.shared = True
        self._done()

    async def _calm_down(self) -> None:
        """Wait, for a limited time, until every VM is in a state in which it can be handed over."""
        self.under_way = True
        for slot in self._slots.values():
            slot.mover.disarm()
            slot.mover.drain()
            slot.vm.ignore_qemu()
        with contextlib.suppress(BrokerError):
            await self._changes.until(lambda: all(map(self._is_calm, self._slots.values())), takeover.TIMEOUT_S)

    def _is_calm(self, slot: VmSlot) -> bool:
        return slot.settled and not self._saver.defers_qemu_close(slot.vm.name)

    def _passed(self, slot: VmSlot) -> Vm | StartsOver:
        """Return a VM for the successor: as it is, or, if no broker can continue from there, to start over."""
        vm, held = slot.vm, self._saver.held_qemu(slot.vm.name)
        if vm.settled and held is None:
            return vm
        log.warning("vm %s: messages are under way with it: it starts over with the next broker", vm.name)
        connection = held if vm.qemu is None else vm.qemu
        qemu = None if connection is None else OwnedFd(os.dup(connection.fileno()), own=True)
        return StartsOver(vm.name, vm.processes, qemu)

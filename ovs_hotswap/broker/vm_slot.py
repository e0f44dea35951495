"""All that the broker has for one VM."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from ovs_hotswap.broker.mover import Mover
from ovs_hotswap.broker.shared_socket import GRACE_S, SharedSocket
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.broker.vm_record import Note
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.channel import listen
from ovs_hotswap.vhostuser.ownership import Certainty

RETRY_S = 0.2


class VmSlot:
    """A VM, the sockets at ``paths`` on which its switches connect, and when its QEMU is to be tried again.

    If the switches of both sides connect at one socket, it is ``shared``, and stands in ``paths`` for side a.
    """

    def __init__(
        self, vm: Vm, mover: Mover, listeners: dict[Side, socket.socket], paths: Mapping[Side, Path],
        shared: SharedSocket | None = None,
    ) -> None:  # fmt: skip
        self.shared = shared
        self.vm = vm
        self.mover = mover
        self.listeners = listeners
        self._paths = paths
        self.retry_at = 0.0
        self.wanted_since = 0.0  # QEMU's connection
        self.delay = RETRY_S
        self._accept: Callable[[VmSlot, Side], None]
        self.restored = False  # made from another broker's state, and not continued yet
        self.leaving = False  # no longer a VM that the broker is to serve

    @property
    def settled(self) -> bool:
        return self.vm.settled and not self.mover.busy

    def withdraw(self) -> None:
        """Take the rings back from the side that has them, and give them to no side any longer."""
        self.vm.commit(self.vm.record._replace(withdrawn=True))
        self.mover.disarm()
        self.mover.drain()
        owner = self.vm.owner()
        if owner is not None and self.vm.ownership.certainty in (Certainty.OWNS, Certainty.TAKING):
            self.vm.take_back(owner)

    @property
    def direct(self) -> bool:
        """Whether a switch may be connected with QEMU without the broker, as before the broker had the socket."""
        return self.shared is not None and self.vm.qemu is None and bool(self.vm.ownership.suspects)

    @property
    def is_withdrawn(self) -> bool:
        """Whether no switch can be on the rings."""
        return self.vm.ownership.holder is None and not self.vm.ownership.suspects

    def serve_again(self) -> None:
        """Undo ``withdraw``. A switch that has not answered yet is given the rings when it does."""
        self.vm.commit(self.vm.record._replace(withdrawn=False))
        self.leaving = False
        self.vm.assign()

    def waits_for(self, side: Side) -> None:
        """Have a VM without a guest, whose rings no side holds, served by ``side`` when its guest starts."""
        vm = self.vm
        if vm.qemu is None and vm.ownership.holder is None and vm.home is not side:
            vm.commit(vm.record._replace(home=side), Note.CONTINUE)

    def belongs_to(self, side: Side | None) -> None:
        """Have a VM whose rings no side holds served by ``side``, now or when its guest starts.

        A side that holds the rings keeps them.
        """
        vm = self.vm
        if side is not None and side is not vm.home and vm.ownership.holder is None:
            vm.commit(vm.record._replace(home=side))
            vm.assign()

    @property
    def on_rings(self) -> dict[Side, int]:
        """The switches' processes that may be on the rings, by side."""
        ownership = self.vm.ownership
        return {side: pid for side, pid in self.vm.switch_pids.items()
                if side is ownership.holder or side in ownership.suspects}  # fmt: skip

    def __str__(self) -> str:
        """Return the VM and the switches that may be on its rings, for messages."""
        switches = " and ".join(f"switch {side} (process {pid})" for side, pid in sorted(self.on_rings.items()))
        return f"{self.vm.name}: {switches}"

    def pause_reading(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read nothing more from any peer, and accept no connection."""
        for listener in self.listeners.values():
            loop.remove_reader(listener.fileno())
        self.vm.pause_reading()

    def listen(self, loop: asyncio.AbstractEventLoop, accept: Callable[[VmSlot, Side], None]) -> None:
        """Have ``accept`` called for each switch that connects."""
        self._accept = accept
        for side, listener in self.listeners.items():
            loop.add_reader(listener.fileno(), accept, self, side)

    def listen_again(self, loop: asyncio.AbstractEventLoop) -> str | None:
        """Make the sockets that could not be made before; return why one cannot be made yet, or ``None``.

        Switches that are connected are served without these sockets. A shared socket is made again if QEMU has removed
        or replaced it.
        """
        fault = None if self.shared is None else self._listen_again_shared(loop, self.shared)
        for side in sorted(self._paths.keys() - self.listeners.keys()) if self.shared is None else ():
            try:
                listener = self.listeners[side] = listen(self._paths[side])
            except BrokerError as error:
                fault = error.message
            else:
                loop.add_reader(listener.fileno(), self._accept, self, side)
        if fault is not None:
            self.vm.note(f"switches cannot connect: {fault}")
        return fault

    def connects_at(self, loop: asyncio.AbstractEventLoop, shared: SharedSocket | None) -> None:
        """Have the switches connect at another shared socket, if ``shared`` is another one."""
        if shared is self.shared:
            return
        for listener in self.listeners.values() if self.shared is not None else ():
            loop.remove_reader(listener.fileno())
            listener.close()
        if self.shared is not None:
            self.listeners.clear()
            with contextlib.suppress(OSError):
                self.shared.give_back()
        self.shared = shared

    def _listen_again_shared(self, loop: asyncio.AbstractEventLoop, shared: SharedSocket) -> str | None:
        before = self.listeners.get(Side.A)
        try:
            made = shared.listen(before)
        except BrokerError as error:
            return error.message
        if made is not before:
            if before is not None:
                loop.remove_reader(before.fileno())
                before.close()  # a switch that waits there connects again
            self.listeners[Side.A] = made
            loop.add_reader(made.fileno(), self._accept, self, Side.A)
        elif shared.waits:
            loop.call_later(GRACE_S, self._look_again, loop)
        return None

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.listeners:
            self.listen_again(loop)

    def resume_reading(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undo ``pause_reading``."""
        self.listen(loop, self._accept)
        self.vm.resume_reading()

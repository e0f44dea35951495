"""Gets duplicates of the descriptors of a running connection out of the two processes (pidfd_getfd(2))."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from ovs_hotswap.adopt.snapshot import Snapshot, guest_state, sent_state
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.vhostuser.channel import OwnedFd, close_all
from ovs_hotswap.vhostuser.guest_state import GuestState
from ovs_hotswap.vhostuser.reconcile import SentState


class Fetched:
    """Duplicates of all descriptors of a connection, owned by this object until they are taken out of it.

    ``qemu_end``: a duplicate of QEMU's end; what is written to it, the switch reads. ``switch_end``: a duplicate of the
    switch's end; what is written to it, QEMU reads. ``state`` is the record of the VM; it owns the memory and the
    eventfds. ``told`` is what the switch has been sent.

    ``descriptors`` and ``Fetched.of`` are for passing all of it to another process beside the snapshot.
    """

    def __init__(self, qemu_end: OwnedFd, switch_end: OwnedFd, state: GuestState) -> None:
        self.qemu_end, self.switch_end, self.state = qemu_end, switch_end, state
        self.told: SentState = sent_state(state)

    @classmethod
    def of(cls, snapshot: Snapshot, descriptors: Sequence[OwnedFd]) -> Fetched:
        """Return the object for descriptors in the order of ``descriptors``. Raises StateUnknown if some are missing;
        the caller then still owns them."""
        count = len(snapshot.memory)
        if len(descriptors) < 2 + count:
            raise StateUnknown(f"{len(descriptors)} descriptors do not fit the snapshot")
        qemu_end, switch_end, *rest = descriptors
        return cls(qemu_end, switch_end, guest_state(snapshot, rest[:count], rest[count:]))

    def descriptors(self) -> list[OwnedFd]:
        """Return all descriptors: QEMU's end, the switch's end, the memory regions, and kick and call of each ring."""
        held = [each for each in self.state.descriptors() if isinstance(each, OwnedFd)]
        return [self.qemu_end, self.switch_end, *held]

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Give both ends away: QEMU's end and the switch's end. The caller owns them from then on."""
        return socket.socket(fileno=self.qemu_end.detach()), socket.socket(fileno=self.switch_end.detach())

    def close(self) -> None:
        """Close what is still owned. Neither process notices, because both have their own descriptors."""
        close_all(self.descriptors())

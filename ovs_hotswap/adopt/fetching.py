"""Gets duplicates of the descriptors of a running connection out of the two processes (pidfd_getfd(2))."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from ovs_hotswap.adopt.processes import ForeignProcess, borrowed, is_connection
from ovs_hotswap.adopt.snapshot import EventFact, RegionFact, Snapshot, guest_state, sent_state
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.vhostuser.channel import OwnedFd, close_all
from ovs_hotswap.vhostuser.guest_memory import indices
from ovs_hotswap.vhostuser.guest_state import GuestState
from ovs_hotswap.vhostuser.reconcile import SentState

_EVENTFD = re.compile(r"^eventfd-id:\s*(\d+)$", re.MULTILINE)


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
        self._ends = [_identity(each) for each in (qemu_end, switch_end)]

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

    @property
    def ends(self) -> list[OwnedFd]:
        """QEMU's end and the switch's end."""
        return [self.qemu_end, self.switch_end]

    def close_ends(self) -> None:
        """Close both ends: as long as they are here, a process does not see that the other one has hung up."""
        close_all(self.ends)

    def take_ends(self, ends: Sequence[OwnedFd]) -> None:
        """Own these duplicates of both ends in the place of those that were closed. Raises StateUnknown if they are not
        of the same connection; the caller then still owns them."""
        if len(ends) != len(self._ends) or [_identity(each) for each in ends] != self._ends:
            raise StateUnknown("the connection is another one than it was when the VM was prepared")
        self.qemu_end, self.switch_end = ends

    def close(self) -> None:
        """Close what is still owned. Neither process notices, because both have their own descriptors."""
        close_all(self.descriptors())


def _identity(end: OwnedFd) -> tuple[int, int]:
    found = os.fstat(end.fileno())
    return found.st_dev, found.st_ino


def fetch(snapshot: Snapshot) -> Fetched:
    """Get duplicates of all descriptors of a connection.

    Each is checked to be what the snapshot says: a socket of this connection, the file of a region, the eventfd of a
    ring. Neither process notices. Raises StateUnknown; nothing is then left open.
    """
    made: list[OwnedFd] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: close_all(made))
        qemu = stack.enter_context(ForeignProcess(snapshot.qemu.pid))
        switch = stack.enter_context(ForeignProcess(snapshot.switch.pid))
        qemu.must_be(snapshot.qemu)
        switch.must_be(snapshot.switch)
        for process, number, listener in ((qemu, snapshot.qemu_fd, True), (switch, snapshot.switch_fd, False)):
            made.append(process.fetch(number, own=True))
            _check_end(made[-1], snapshot, process, number, listener=listener)
        for region in snapshot.memory:
            made.append(qemu.fetch(region.fd))
            _check_file(made[-1], region)
        for event in snapshot.events:
            made.append(switch.fetch(event.fd))
            _check_event(made[-1], event)
        fetched = Fetched.of(snapshot, made)
        _check_rings(fetched.state)
        made = []
        return fetched


def _check_end(end: OwnedFd, snapshot: Snapshot, process: ForeignProcess, number: int, *, listener: bool) -> None:
    found = False
    with contextlib.suppress(OSError), borrowed(end) as each:
        found = is_connection(each, snapshot.socket, listener=listener)
    if not found:
        raise StateUnknown(f"descriptor {number} of process {process.pid} is not a connection at {snapshot.socket}")


def _check_file(descriptor: OwnedFd, region: RegionFact) -> None:
    found = os.fstat(descriptor.fileno())
    if (found.st_dev, found.st_ino) != (region.device, region.inode):
        raise StateUnknown(f"descriptor {region.fd} of QEMU is not the file of the region at {region.user_address:#x}")
    if found.st_size < region.offset + region.size:
        raise StateUnknown(f"the file of the region at {region.user_address:#x} is too short: {found.st_size} bytes")


def _check_event(descriptor: OwnedFd, event: EventFact) -> None:
    known = _EVENTFD.search(Path(f"/proc/self/fdinfo/{descriptor.fileno()}").read_text())
    if known is None or int(known[1]) != event.eventfd:
        raise StateUnknown(f"descriptor {event.fd} of the switch is no longer eventfd {event.eventfd}")


def _check_rings(state: GuestState) -> None:
    """Raise StateUnknown if what is at a ring's address cannot be a ring: more entries are in use than it has.

    Rings beyond the first pair have their addresses from one source, which this checks (virtio 1.2, 2.7.6 and 2.7.8).
    """
    for index in state.started:
        ring = state.rings[index]
        found = indices(state.memory, ring)
        if found.used is None or found.available is None:
            continue
        if (found.available - found.used) % (1 << 16) > (ring.size or 0):
            raise StateUnknown(
                f"ring {index} of {ring.size} entries has the indices {found.available} and {found.used}: there is none"
                " at this place, or QEMU has sent a new one",
            )

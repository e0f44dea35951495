"""Guest memory as far as the broker looks into it: two 16-bit indices of each ring, and its own scratch memory.

Reading is done with pread(2), never through a mapping: a guest's QEMU can truncate the file at any time, and a load
from a truncated mapping would kill the broker (SIGBUS).
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.fd_closing import is_eventfd
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.guest_state import GuestState, Ring
from ovs_hotswap.vhostuser.messages import Region, Request
from ovs_hotswap.vhostuser.reconcile import SCRATCH_SIZE

_INDEX_SIZE = 2
_LOOKS = 8
_INDEX_OFFSET = 2  # behind the flags, in both rings (virtio 1.2, 2.7.6 and 2.7.8)


@dataclass(frozen=True, slots=True)
class Indices:
    """A ring's two indices, modulo 2**16: what the guest has offered and what the back end has given back.

    ``None``: the memory cannot be read.
    """

    available: int | None
    used: int | None


def indices(regions: Sequence[Region], ring: Ring) -> Indices:
    """Both as of one moment. Of a ring that never stands still for as long as that takes only the used index is told:
    two that do not belong together look as if two back ends wrote to it."""
    if ring.address is None:
        return Indices(None, None)
    for _ in range(_LOOKS):
        used = _index(regions, ring.address.used)
        available = _index(regions, ring.address.available)
        if _index(regions, ring.address.used) == used:
            return Indices(available, used)
    return Indices(None, used)


def has_pending_tx(state: GuestState) -> bool:
    """Whether the guest has something to send that no switch has taken (transmit rings are the odd ones: virtio 1.2,
    5.1.2)."""
    return any(each.available != each.used for each in transmit(state).values())


def transmit(state: GuestState) -> dict[int, Indices]:
    """Where the transmit rings stand that the guest has enabled."""
    return {index: indices(state.memory, ring) for index, ring in _transmit(state)}


def taken(state: GuestState) -> dict[int, int | None]:
    """The used indices of the same rings."""
    return {index: _index(state.memory, ring.address.used) for index, ring in _transmit(state) if ring.address}


def _transmit(state: GuestState) -> Iterator[tuple[int, Ring]]:
    return ((index, state.rings[index]) for index in state.started if index % 2 and state.enabled(index))


def _index(regions: Sequence[Region], start: int) -> int | None:
    address = start + _INDEX_OFFSET
    for region in regions:
        if region.holds(address, _INDEX_SIZE):
            try:
                return _read(region.descriptor.fileno(), region.offset + address - region.user_address)
            except (OSError, ValueError, OverflowError):
                return None
    return None


def _read(fd: int, offset: int) -> int | None:
    """A 16-bit word of a file. Never blocks: only shared memory and huge pages have seals (mm/memfd.c), and of another
    file, such as one on a disk, what is in memory is read. Raises OSError if that has to be waited for, or if the
    file's kind promises nothing (FUSE, NFS)."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        flags = 0
    except OSError:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise
        flags = os.RWF_NOWAIT
    data = bytearray(_INDEX_SIZE)
    whole = os.preadv(fd, [data], offset, flags) == _INDEX_SIZE
    return int.from_bytes(data, "little") if whole else None


def make_scratch() -> OwnedFd:
    """Zeroed shared memory of SCRATCH_SIZE bytes. Sealed against shrinking: it is mapped by two switches."""
    fd = OwnedFd(os.memfd_create("ovs-hotswap-scratch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), SCRATCH_SIZE)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        fd.close()
        raise
    return fd


def make_safe(message: messages.Message) -> None:
    """A call or kick must be an eventfd, and writing to it must not block, whatever the guest's QEMU made of it:
    writing to anything else, such as a full pipe, could block or do harm. Memory must be what a switch can map: a
    socket could not be handed to a next broker if others are under way in it (unix(7), ETOOMANYREFS). Raises
    ProtocolError."""
    body, name = message.body, message.request.name
    if isinstance(body, messages.MemoryTable):
        for number, region in enumerate(body.regions):
            _refuse_unmappable(region.descriptor, f"{name}: region {number}")
    elif isinstance(body, messages.DirtyLog):
        _refuse_unmappable(body.descriptor, name)
    if message.request not in (Request.SET_VRING_CALL, Request.SET_VRING_KICK):
        return
    assert isinstance(body, messages.RingDescriptor)
    if body.descriptor is None:
        return
    fd = body.descriptor.fileno()
    if not is_eventfd(fd):
        raise ProtocolError(f"{name}: ring {body.index}: the descriptor is not an eventfd")
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def _refuse_unmappable(descriptor: messages.Descriptor, what: str) -> None:
    mode = os.fstat(descriptor.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise ProtocolError(f"{what}: the descriptor is no file or device that can be mapped")

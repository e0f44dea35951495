"""Guest memory, of which the broker reads two 16-bit indices of each ring, and the broker's own scratch memory.

Guest memory is read with pread(2), never through a mapping: the guest's QEMU can truncate the file at any time, and a
load from a truncated mapping would kill the broker (SIGBUS).
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

    An index is ``None`` if the memory cannot be read, or if no consistent pair could be read (``indices``).
    """

    available: int | None
    used: int | None


def indices(regions: Sequence[Region], ring: Ring) -> Indices:
    """Return both indices as they were at one moment.

    If the used index changes during each of several attempts, only the used index is returned: two indices from
    different moments would look as if two back ends wrote to the ring.
    """
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
    """Return the indices of the started and enabled transmit rings, by ring."""
    return {index: indices(state.memory, ring) for index, ring in _transmit(state)}


def taken(state: GuestState) -> dict[int, int | None]:
    """Return the used indices of the started and enabled transmit rings, by ring."""
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
    """Return the 16-bit word at ``offset`` of a file, or ``None`` behind its end. This never blocks.

    Shared memory and huge pages can be read without waiting; only they have seals (mm/memfd.c). Another regular file,
    such as one on a disk, is read with RWF_NOWAIT, which reads what is in memory. Raises OSError if the read would have
    to wait, and for a kind of file that does not support the flag (FUSE, NFS).
    """
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
    """Return zeroed shared memory of SCRATCH_SIZE bytes, sealed against shrinking because two switches map it."""
    fd = OwnedFd(os.memfd_create("ovs-hotswap-scratch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), SCRATCH_SIZE)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        fd.close()
        raise
    return fd


def make_safe(message: messages.Message) -> None:
    """Check the descriptors of a message from QEMU, and set O_NONBLOCK on a call or kick.

    A call or kick must be an eventfd: writing to anything else, such as a full pipe, could block or do harm. Memory
    must be something that a switch can map: a socket could not be passed to the next broker while other descriptors
    are in flight in it (unix(7), ETOOMANYREFS). Raises ProtocolError.
    """
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

"""Looking into guest memory that its owner may change, truncate or have made of anything."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import OwnedFd
from ovs_hotswap.vhostuser.guest_memory import Indices, indices, make_safe, make_scratch
from ovs_hotswap.vhostuser.guest_state import Ring
from ovs_hotswap.vhostuser.messages import Message, Region, Request, RingAddress, RingDescriptor
from ovs_hotswap.vhostuser.reconcile import SCRATCH_SIZE

USER = 0x7F00_0000_0000
RING = Ring(size=8, address=RingAddress(0, USER, USER + 0x2000, USER + 0x1000, 0))
UNKNOWN = Indices(None, None)


@pytest.fixture
def memory() -> Iterator[OwnedFd]:
    fd = OwnedFd(os.memfd_create("guest", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), 0x10000)
    yield fd
    fd.close()


def region(descriptor: messages.Descriptor, offset: int = 0) -> Region:
    return Region(0, 0x4000, USER, offset, descriptor)


def put(memory: OwnedFd, at: int, index: int) -> None:
    os.pwrite(memory.fileno(), struct.pack("<HH", 0xAAAA, index), at)


@pytest.mark.parametrize("offset", [0, 0x4000])
def test_indices_are_read_where_they_are(memory: OwnedFd, offset: int) -> None:
    put(memory, offset + 0x1000, 65535)
    put(memory, offset + 0x2000, 513)
    assert indices([region(memory, offset)], RING) == Indices(65535, 513)


_BUSY = """
import mmap, sys, time
view = memoryview(mmap.mmap(int(sys.argv[1]), 0x10000)).cast("H")
print("runs", flush=True)
for index in range(1 << 30):
    for start in (0x1000, 0x2000):  # what is offered is given back at once
        view[(start + 2) // 2] = index & 0xFFFF
    end = time.perf_counter() + 50e-6
    while time.perf_counter() < end:
        pass
"""


def test_both_indices_of_a_busy_ring_are_of_one_moment(memory: OwnedFd) -> None:
    argv = [sys.executable, "-c", _BUSY, str(memory.fileno())]
    with subprocess.Popen(argv, pass_fds=[memory.fileno()], stdout=subprocess.PIPE) as guest:
        try:
            assert guest.stdout is not None
            assert guest.stdout.readline() == b"runs\n"
            seen = [indices([region(memory)], RING) for _ in range(20_000)]
        finally:
            guest.kill()
    assert len({each.used for each in seen}) > 5
    apart = [((each.available or 0) - (each.used or 0)) & 0xFFFF for each in seen]
    assert set(apart) <= {0, 1}


def test_ring_in_the_second_region(memory: OwnedFd) -> None:
    put(memory, 0x5000, 3)
    other = Region(0, 0x1000, 0, 0, memory)
    assert indices([other, region(memory, 0x4000)], RING).available == 3


def test_ring_without_an_address_has_no_indices(memory: OwnedFd) -> None:
    assert indices([region(memory)], Ring(size=8)) == UNKNOWN


def test_address_outside_every_region(memory: OwnedFd) -> None:
    assert indices([], RING) == UNKNOWN
    assert indices([replace(region(memory), user_address=0)], RING) == UNKNOWN


def test_memory_that_was_truncated_under_the_broker(memory: OwnedFd) -> None:
    os.ftruncate(memory.fileno(), 0x1003)
    assert indices([region(memory)], RING) == UNKNOWN


def test_closed_descriptor(memory: OwnedFd) -> None:
    memory.close()
    assert indices([region(memory)], RING) == UNKNOWN


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[OwnedFd]:
    """A file without seals, as memory-backend-file makes one on a disk."""
    fd = OwnedFd(os.open(tmp_path / "guest", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
    os.ftruncate(fd.fileno(), 0x10000)
    yield fd
    fd.close()


def test_memory_in_a_file_on_a_disk_is_read(disk: OwnedFd) -> None:
    put(disk, 0x1000, 65535)
    put(disk, 0x2000, 513)
    try:
        os.preadv(disk.fileno(), [bytearray(2)], 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("the file system here promises nothing")
    assert indices([region(disk)], RING) == Indices(65535, 513)
    os.ftruncate(disk.fileno(), 0)
    assert indices([region(disk)], RING) == UNKNOWN


@pytest.mark.parametrize("offset", [1 << 62, (1 << 64) - 0x4001])
def test_offset_that_no_file_has(memory: OwnedFd, offset: int) -> None:
    assert indices([region(memory, offset)], RING) == UNKNOWN


def pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


@pytest.mark.parametrize(
    "make",
    [
        pipe,
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/dev/zero", os.O_RDONLY),
        lambda: os.eventfd(0),
        lambda: os.open("/proc/self/smaps", os.O_RDONLY),
    ],
)
def test_what_may_keep_a_reader_waiting_is_not_read(make: Callable[[], int]) -> None:
    """A read could block (a pipe, a FUSE or NFS file), and with it every VM's control path."""
    fd = OwnedFd(make())
    assert indices([region(fd)], RING) == UNKNOWN
    fd.close()


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_no_address_makes_it_raise(user: int, available: int, offset: int) -> None:
    fd = OwnedFd(os.memfd_create("guest", os.MFD_CLOEXEC))
    try:
        ring = Ring(size=8, address=RingAddress(0, 0, user, available, 0))
        indices([Region(0, (1 << 64) - 1 - user, user, offset, fd)], ring)
    finally:
        fd.close()


# -- scratch memory ----------------------------------------------------------------------------------------------------


def test_scratch_is_zero_and_keeps_its_size() -> None:
    fd = make_scratch()
    try:
        assert os.pread(fd.fileno(), SCRATCH_SIZE + 1, 0) == bytes(SCRATCH_SIZE)
        for size in (SCRATCH_SIZE - 4096, SCRATCH_SIZE + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd.fileno(), size)
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
        assert not os.get_inheritable(fd.fileno())
    finally:
        fd.close()


# -- kicks and calls ---------------------------------------------------------------------------------------------------


def line(request: Request, fd: messages.Descriptor | None) -> Message:
    return Message(request, False, RingDescriptor(3, fd))


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_KICK])
def test_eventfd_is_made_nonblocking(request_: Request) -> None:
    fd = OwnedFd(os.eventfd(0))
    make_safe(line(request_, fd))
    os.eventfd_write(fd.fileno(), (1 << 64) - 2)
    with pytest.raises(BlockingIOError):
        os.eventfd_write(fd.fileno(), 1)
    fd.close()


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_KICK])
@pytest.mark.parametrize("make", [pipe, lambda: os.open(__file__, os.O_RDONLY), lambda: os.memfd_create("x")])
def test_anything_but_an_eventfd_is_refused(request_: Request, make: Callable[[], int]) -> None:
    fd = OwnedFd(make())
    with pytest.raises(ProtocolError, match="ring 3: the descriptor is not an eventfd"):
        make_safe(line(request_, fd))
    fd.close()


def test_file_named_like_an_eventfd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "anon_inode:[eventfd]"
    path.touch()
    fd = OwnedFd(os.open(path, os.O_RDONLY))
    with pytest.raises(ProtocolError):
        make_safe(line(Request.SET_VRING_CALL, fd))
    fd.close()


def test_nothing_to_make_safe() -> None:
    make_safe(line(Request.SET_VRING_CALL, None))
    fd = OwnedFd(os.open(__file__, os.O_RDONLY))
    make_safe(line(Request.SET_VRING_ERR, fd))
    fd.close()


def _opath() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY)


@pytest.mark.parametrize(
    "make", [lambda: os.pipe()[0], lambda: socket.socket().detach(), lambda: os.eventfd(0), _opath]
)
def test_memory_that_cannot_be_mapped_is_refused(memory: OwnedFd, make: Callable[[], int]) -> None:
    other = OwnedFd(make())
    regions = (Region(0, 4096, 0, 0, memory), Region(4096, 4096, 4096, 0, other))
    with pytest.raises(ProtocolError, match=r"SET_MEM_TABLE: region 1: .* mapped"):
        make_safe(messages.Message(Request.SET_MEM_TABLE, False, messages.MemoryTable(regions)))
    with pytest.raises(ProtocolError, match=r"SET_LOG_BASE: .* mapped"):
        make_safe(messages.Message(Request.SET_LOG_BASE, False, messages.DirtyLog(4096, 0, other)))
    make_safe(messages.Message(Request.SET_LOG_BASE, False, messages.DirtyLog(4096, 0, memory)))
    other.close()

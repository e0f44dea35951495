"""Descriptors and memory of other processes. The process of the test is QEMU and switch at once."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.adopt.fetching import fetch
from ovs_hotswap.adopt.log_reader import LoggedRegion
from ovs_hotswap.adopt.processes import ForeignProcess, MappedFile, parse_mappings, placed, same_path
from ovs_hotswap.adopt.snapshot import EventFact, ProcessFact, RegionFact, RingFact, RingPlaceFact, Snapshot
from ovs_hotswap.errors import StateUnknown
from tests.unit.test_adopt_snapshot import ring, snapshot

SIZE, USER = 1 << 16, 0x10000
PLACES = [
    RingPlaceFact(size=256, descriptors=at, available=at + 0x1000, used=at + 0x2000) for at in (USER, USER + 0x3000)
]


class Bed:
    """A listening socket with one connection, memory that is mapped, and the eventfds of two rings."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "vm1.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.switch_end = socket.socket(socket.AF_UNIX)
        self.switch_end.connect(str(self.path))
        self.qemu_end, _ = self.listener.accept()
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, SIZE)
        self.mapped = mmap.mmap(self.memory, SIZE)
        self.events = [os.eventfd(0) for _ in range(4)]
        self.process = ForeignProcess(os.getpid())

    def snapshot(self, **changes: object) -> Snapshot:
        known = self.process.eventfds()
        facts = [EventFact(fd=fd, eventfd=known[fd]) for fd in self.events]
        rings: tuple[RingFact, ...] = tuple(
            ring(index).model_copy(
                update={"place": PLACES[index], "kick": facts[2 * index], "call": facts[2 * index + 1]}
            )
            for index in (0, 1)
        )
        at = os.fstat(self.memory)
        region = RegionFact(guest_address=0, size=SIZE, user_address=USER, offset=0, fd=self.memory,
                            device=at.st_dev, inode=at.st_ino)  # fmt: skip
        own = {
            "socket": self.path, "qemu": self.process.fact, "switch": self.process.fact, "rings": rings,
            "qemu_fd": self.qemu_end.fileno(), "switch_fd": self.switch_end.fileno(), "memory": (region,),
        }  # fmt: skip
        return snapshot(**{**own, **changes})

    def close(self) -> None:
        self.process.__exit__()
        self.mapped.close()
        for each in (self.listener, self.switch_end, self.qemu_end):
            each.close()
        for fd in (self.memory, *self.events):
            os.close(fd)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    made.close()


def test_all_descriptors_of_a_connection_are_duplicated(bed: Bed) -> None:
    fetched = fetch(bed.snapshot())
    with contextlib.closing(fetched):
        os.pwrite(fetched.state.memory[0].descriptor.fileno(), b"seen", 0)
        assert bed.mapped[:4] == b"seen"
        call = fetched.state.ring(1).call.descriptor
        assert call is not None
        os.eventfd_write(call.fileno(), 3)
        assert os.eventfd_read(bed.events[3]) == 3
        qemu_end, switch_end = fetched.sockets()
        with qemu_end, switch_end:
            qemu_end.send(b"as QEMU")
            assert bed.switch_end.recv(100) == b"as QEMU"
            switch_end.send(b"as the switch")
            assert bed.qemu_end.recv(100) == b"as the switch"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda bed: {"qemu": ProcessFact(pid=os.getpid(), born=1)}, "not the one"),
        (lambda bed: {"switch": ProcessFact(pid=os.getpid(), born=1)}, "not the one"),
        (lambda bed: {"qemu_fd": bed.switch_end.fileno()}, "not a connection"),
        (lambda bed: {"switch_fd": bed.listener.fileno()}, "not a connection"),
        (lambda bed: {"switch_fd": bed.memory}, "not a connection"),
        (lambda bed: {"switch_fd": 1 << 20}, "cannot be duplicated"),
        (lambda bed: {"memory": (bed.snapshot().memory[0].model_copy(update={"inode": 1}),)}, "not the file"),
        (lambda bed: {"memory": (bed.snapshot().memory[0].model_copy(update={"offset": 1}),)}, "too short"),
        (lambda bed: {"rings": (ring(0), ring(1))}, "cannot be duplicated|no longer eventfd"),
        (lambda bed: {"rings": tuple(each.model_copy(update={"kick": EventFact(fd=bed.memory, eventfd=1)})
                                     for each in bed.snapshot().rings)}, "no longer eventfd"),
    ],
)  # fmt: skip
def test_a_descriptor_that_is_another_one_is_noticed_and_nothing_stays_open(
    bed: Bed, change: object, reason: str
) -> None:
    assert callable(change)
    wrong = bed.snapshot(**change(bed))
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(StateUnknown, match=reason):
        fetch(wrong)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("available", "used", "is_ring"), [(300, 44, True), (300, 43, False), (3, 65500, True)])
def test_a_place_that_cannot_be_a_ring_is_refused(bed: Bed, available: int, used: int, *, is_ring: bool) -> None:
    """A ring of 256 entries: no more than that are in use, and the indices wrap around."""
    bed.mapped[0x4002:0x4004] = available.to_bytes(2, "little")
    bed.mapped[0x5002:0x5004] = used.to_bytes(2, "little")
    if is_ring:
        fetch(bed.snapshot()).close()
        return
    with pytest.raises(StateUnknown, match="ring 1 of 256 entries"):
        fetch(bed.snapshot())


def test_a_process_that_has_ended_is_named(bed: Bed) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(StateUnknown, match=f"process {child.pid}"):
        ForeignProcess(child.pid)


def test_connections_are_found_by_the_names_of_their_sockets(bed: Bed, tmp_path: Path) -> None:
    assert bed.process.connections(bed.path, listener=True) == [bed.qemu_end.fileno()]
    assert bed.process.connections(bed.path, listener=False) == [bed.switch_end.fileno()]
    assert bed.process.connections(tmp_path / "vm2.sock", listener=False) == []


def test_a_descriptor_that_is_there_twice_is_one_connection(bed: Bed) -> None:
    again = bed.qemu_end.dup()
    with again:
        assert len(bed.process.connections(bed.path, listener=True)) == 1


def test_a_socket_that_was_renamed_keeps_the_name_of_its_connection(bed: Bed) -> None:
    """So the broker finds it when it has taken the path over."""
    bed.path.rename(bed.path.with_name("vm1.sock.qemu"))
    assert bed.process.connections(bed.path, listener=True) == [bed.qemu_end.fileno()]


def test_a_path_is_the_same_by_way_of_links(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    assert same_path(str(tmp_path / "var/vm1.sock"), tmp_path / "run/vm1.sock")
    assert not same_path(str(tmp_path / "var/vm2.sock"), tmp_path / "run/vm1.sock")
    assert not same_path(b"\0abstract", tmp_path / "run/vm1.sock")


def test_memory_that_is_mapped_is_found_with_its_file(bed: Bed) -> None:
    at = os.fstat(bed.memory)
    mine = [each for each in bed.process.mappings() if (each.device, each.inode) == (at.st_dev, at.st_ino)]
    (mapping,) = mine
    region = LoggedRegion(SIZE, 0x1000, mapping.low, 0)
    (found,) = placed([region], bed.process.mappings(), bed.process.files())
    assert (found.fd, found.inode, found.user_address) == (bed.memory, at.st_ino, mapping.low)


MAPS = """\
55d0c8a00000-55d0c8c00000 r--p 00000000 fe:00 1311 /usr/bin/qemu-system-x86_64
7f0000000000-7f0004000000 rw-s 00000000 00:01 2061 /memfd:pc.ram (deleted)
7f0004000000-7f0008000000 rw-s 04000000 00:01 2061 /memfd:pc.ram (deleted)
7f1000000000-7f1008000000 rw-s 00200000 00:0f 77 /dev/hugepages/qemu_back_mem.pc.ram.x (deleted)
7f2000000000-7f2000021000 rw-p 00000000 00:00 0
"""
MEMFD, HUGE = (os.makedev(0, 1), 2061), (os.makedev(0, 15), 77)
FILES = {9: MEMFD, 10: HUGE, 11: MEMFD}


def test_the_memory_map_is_read() -> None:
    assert [(each.low, each.offset, each.inode) for each in parse_mappings(MAPS)][1:3] == [
        (0x7F0000000000, 0, 2061),
        (0x7F0004000000, 0x4000000, 2061),
    ]
    assert len(list(parse_mappings(MAPS))) == 4  # memory without a file is left out


def test_a_region_may_be_mapped_in_pieces() -> None:
    found = placed([LoggedRegion(0x8000000, 0, 0x7F0000000000, 0)], parse_mappings(MAPS), FILES)
    assert [(each.fd, each.device, each.inode) for each in found] == [(9, *MEMFD)]


def test_a_region_may_begin_inside_a_file() -> None:
    (found,) = placed([LoggedRegion(0x100000, 0, 0x7F1000100000, 0x300000)], parse_mappings(MAPS), FILES)
    assert (found.fd, found.offset) == (10, 0x300000)


@pytest.mark.parametrize(
    ("region", "files", "reason"),
    [
        (LoggedRegion(0x8000000, 0, 0x7F0000000000, 0x1000), FILES, "another offset"),
        (LoggedRegion(0x8000001, 0, 0x7F0000000000, 0), FILES, "as a whole"),
        (LoggedRegion(0x1000, 0, 0x7F3000000000, 0), FILES, "as a whole"),
        (LoggedRegion(0x1000, 0, 0x7F2000000000, 0), FILES, "as a whole"),
        (LoggedRegion(0x8000000, 0, 0x7F0000000000, 0), {10: HUGE}, "no descriptor"),
    ],
)
def test_a_region_that_qemu_does_not_have_so_is_refused(
    region: LoggedRegion, files: dict[int, tuple[int, int]], reason: str
) -> None:
    with pytest.raises(StateUnknown, match=reason):
        placed([region], parse_mappings(MAPS), files)


def test_a_region_over_two_files_is_refused() -> None:
    both = [MappedFile(0, 0x1000, 0, 1, 1), MappedFile(0x1000, 0x2000, 0x1000, 1, 2)]
    with pytest.raises(StateUnknown, match="two files"):
        placed([LoggedRegion(0x2000, 0, 0, 0)], both, {3: (1, 1), 4: (1, 2)})

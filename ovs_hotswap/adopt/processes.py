"""What the kernel says about the descriptors and the memory of a QEMU and of a switch (proc(5)).

Duplicates of descriptors are taken with pidfd_getfd(2), which needs what ptrace(2) needs (CAP_SYS_PTRACE; Yama's
ptrace_scope 3 forbids it). A duplicate changes nothing for the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.adopt.log_reader import LoggedRegion
from ovs_hotswap.adopt.snapshot import ProcessFact, RegionFact
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.vhostuser.channel import OwnedFd

_PIDFD_GETFD = 438  # asm/unistd.h, on every architecture
_libc = ctypes.CDLL(None, use_errno=True)
_MAPPING = re.compile(
    r"(?P<low>[0-9a-f]+)-(?P<high>[0-9a-f]+) (?P<mode>\S+) (?P<offset>[0-9a-f]+)"
    r" (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>\d+)"
)
_EVENTFD = re.compile(r"^eventfd-id:\s*(\d+)$", re.MULTILINE)
RIGHTS = "CAP_SYS_PTRACE is needed, and `sysctl kernel.yama.ptrace_scope` must be less than 3"


@dataclass(frozen=True, slots=True)
class MappedFile:
    """One line of proc_pid_maps(5): addresses from ``low`` to ``high`` show a file from ``offset`` on, in bytes."""

    low: int
    high: int
    offset: int
    device: int
    inode: int


class ForeignProcess:
    """A process of another program, by its pidfd, so that no later process with its pid is taken for it."""

    def __init__(self, pid: int) -> None:
        """Raises StateUnknown if there is no such process."""
        try:
            self._pidfd = OwnedFd(os.pidfd_open(pid), own=True)
        except OSError as error:
            raise StateUnknown(f"process {pid}: {error.strerror}") from error
        self.pid = pid
        self.born = start_time(pid) or 0

    def __enter__(self) -> ForeignProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pidfd.close()

    @property
    def fact(self) -> ProcessFact:
        """Raises StateUnknown if the process has ended."""
        if not self.born:
            raise StateUnknown(f"process {self.pid} has ended, or /proc does not show it")
        return ProcessFact(pid=self.pid, born=self.born)

    def must_be(self, known: ProcessFact) -> None:
        """Raise StateUnknown if this is not the process that was seen before."""
        if (self.pid, self.born) != (known.pid, known.born):
            raise StateUnknown(f"process {known.pid} is not the one that was seen before: it has ended")

    def fetch(self, fd: int, *, own: bool = False) -> OwnedFd:
        """Return a duplicate of descriptor ``fd`` of the process. ``own`` is as in OwnedFd. Raises StateUnknown."""
        found = int(_libc.syscall(_PIDFD_GETFD, self._pidfd.fileno(), fd, 0))
        if found < 0:
            number = ctypes.get_errno()
            raise StateUnknown(f"descriptor {fd} of process {self.pid} cannot be duplicated: {os.strerror(number)}",
                               hint=RIGHTS if number == 1 else None)  # fmt: skip
        return OwnedFd(found, own=own, sender=self.pid)

    def descriptors(self) -> dict[int, str]:
        """Return what each descriptor is (proc_pid_fd(5)). Raises StateUnknown."""
        found = {}
        try:
            for name in os.listdir(f"/proc/{self.pid}/fd"):
                try:
                    found[int(name)] = os.readlink(f"/proc/{self.pid}/fd/{name}")
                except FileNotFoundError:  # closed in the meantime
                    continue
        except OSError as error:
            raise StateUnknown(f"the descriptors of process {self.pid}: {error.strerror}", hint=RIGHTS) from error
        return found

    def eventfds(self) -> dict[int, int]:
        """Return the ``eventfd-id`` of each eventfd, by descriptor. Raises StateUnknown."""
        found = {}
        for fd, what in self.descriptors().items():
            if what == "anon_inode:[eventfd]" and (number := self._eventfd(fd)) is not None:
                found[fd] = number
        return found

    def _eventfd(self, fd: int) -> int | None:
        try:
            known = _EVENTFD.search(Path(f"/proc/{self.pid}/fdinfo/{fd}").read_text())
        except OSError:  # closed in the meantime
            return None
        return None if known is None else int(known[1])

    def files(self) -> dict[int, tuple[int, int]]:
        """Return device and inode of each descriptor of a file, by descriptor. Raises StateUnknown."""
        found = {}
        for fd, what in self.descriptors().items():
            if what.startswith("/"):  # a memfd is shown as /memfd:NAME (deleted)
                try:
                    at = os.stat(f"/proc/{self.pid}/fd/{fd}")
                except OSError:
                    continue
                found[fd] = at.st_dev, at.st_ino
        return found

    def mappings(self) -> list[MappedFile]:
        """Return the mappings of files. Raises StateUnknown."""
        try:
            text = Path(f"/proc/{self.pid}/maps").read_text(errors="replace")
        except OSError as error:
            raise StateUnknown(f"the memory map of process {self.pid}: {error.strerror}", hint=RIGHTS) from error
        return list(parse_mappings(text))

    def connections(self, path: Path, *, listener: bool) -> list[int]:
        """Return the descriptors of connected stream sockets whose name is ``path``.

        ``listener``: the process has accepted them, so that their own name is ``path``; otherwise it has connected to
        ``path``. Several descriptors of one socket are counted once. Raises StateUnknown.
        """
        found: dict[str, int] = {}
        for fd, what in self.descriptors().items():
            if what.startswith("socket:") and what not in found:
                try:
                    duplicate = self.fetch(fd, own=True)
                except StateUnknown:
                    if fd in self.descriptors():
                        raise
                    continue
                with socket.socket(fileno=duplicate.detach()) as each:
                    if is_connection(each, path, listener=listener):
                        found[what] = fd
        return list(found.values())


@contextlib.contextmanager
def borrowed(end: OwnedFd) -> Iterator[socket.socket]:
    """Lend a descriptor as a socket object that does not close it, and leaves its flags alone. Raises OSError if it is
    no socket."""
    made = socket.socket(fileno=end.fileno())
    try:
        yield made
    finally:
        made.detach()


def is_connection(each: socket.socket, path: Path, *, listener: bool) -> bool:
    """Whether a socket is a connection at ``path`` (``ForeignProcess.connections``)."""
    if each.family != socket.AF_UNIX or each.type != socket.SOCK_STREAM:
        return False
    try:
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        peer, own = each.getpeername(), each.getsockname()
    except OSError:  # not connected
        return False
    return same_path(own if listener else peer, path)


def same_path(name: str | bytes, path: Path) -> bool:
    """Whether a socket's name is ``path``, perhaps by way of symbolic links (/var/run is one to /run)."""
    if not isinstance(name, str) or not name.startswith("/"):
        return False
    return os.path.realpath(os.path.dirname(name)) == os.path.realpath(path.parent) and Path(name).name == path.name


def parse_mappings(text: str) -> Iterator[MappedFile]:
    for line in text.splitlines():
        if (found := _MAPPING.match(line)) and int(found["inode"]):
            device = os.makedev(int(found["major"], 16), int(found["minor"], 16))
            yield MappedFile(int(found["low"], 16), int(found["high"], 16), int(found["offset"], 16), device,
                           int(found["inode"]))  # fmt: skip


def placed(
    regions: Iterable[LoggedRegion], mappings: Iterable[MappedFile], files: Mapping[int, tuple[int, int]]
) -> tuple[RegionFact, ...]:
    """Return the memory regions with the descriptor that QEMU has of each.

    ``regions`` is what the switch was sent, ``mappings`` and ``files`` are QEMU's (``ForeignProcess``). QEMU may have
    mapped a region in several pieces. Raises StateUnknown if a region is not mapped as a whole from one file at the
    offset that the switch was sent, or if QEMU has no descriptor of that file.
    """
    known, found = sorted(mappings, key=lambda each: each.low), []
    for number, region in enumerate(regions):
        what = f"memory region {number} at {region.user_address:#x}"
        at, file = region.user_address, None
        for each in known:
            if not each.low <= at < min(each.high, region.user_address + region.size):
                continue
            if file not in (None, (each.device, each.inode)):
                raise StateUnknown(f"{what} is mapped from two files")
            if each.offset + at - each.low != region.offset + at - region.user_address:
                raise StateUnknown(f"{what} is mapped at another offset of its file than the switch was sent")
            file, at = (each.device, each.inode), each.high
        if file is None or at < region.user_address + region.size:
            raise StateUnknown(f"QEMU has not mapped {what} as a whole: the switch was sent another memory table")
        fds = [fd for fd, key in files.items() if key == file]
        if not fds:
            raise StateUnknown(f"QEMU has no descriptor of the file of {what}")
        found.append(RegionFact(guest_address=region.guest_address, size=region.size, user_address=region.user_address,
                                offset=region.offset, fd=min(fds), device=file[0], inode=file[1]))  # fmt: skip
    return tuple(found)

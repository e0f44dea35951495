"""Ends the connections that controllers, agents and tools have to a daemon, so that each connects again by its path.

After the well-known paths were changed, a client that is connected still speaks to the old instance. All clients of
Open vSwitch reconnect by themselves within about a second (lib/reconnect.c).

``ovsdb-server/reconnect`` would end all connections at once, and must not be used: the old ovs-vswitchd is a client as
well. It would connect to the other instance's database by the same path, find the database's lock taken, and remove all
its bridges at once (vswitchd/bridge.c, bridge_run: "another ovs-vswitchd process is running").

So single connections are ended: duplicates of the daemon's descriptors (pidfd_getfd(2)) tell which path each has and
which process is at its other end (unix(7), SO_PEERCRED), and shutdown(2) on the duplicate ends that connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.process_exit import PROC, lives, parent_of

SWITCH = "ovs-vswitchd"
_PIDFD_GETFD = 438  # include/uapi/asm-generic/unistd.h
_SERVED = re.compile(r"db\.sock|.+\.(mgmt|snoop)")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CONNECTED = "03"  # SS_CONNECTED, include/uapi/linux/net.h
_PARENTS = 64


@dataclass(frozen=True, slots=True)
class Client:
    """A client of a daemon. ``pid``: as this process sees it; 0 if it is in a pid namespace that cannot be seen here.
    ``program``: its name; empty if the process has ended. ``path``: the name of the daemon's socket."""

    pid: int
    program: str
    path: str


def served(unix: str) -> dict[int, str]:
    """Return the inode and the path of each connection that was accepted at a socket for databases or OpenFlow.

    ``unix``: the text of /proc/net/unix (net/unix/af_unix.c, unix_seq_show), where an accepted socket has the path at
    which its daemon listens, as the daemon wrote it, and a client's has none.
    """
    found = {}
    for line in unix.splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[5] == _CONNECTED and _SERVED.fullmatch(words[7].rpartition("/")[2]):
            found[int(words[6])] = words[7]
    return found


class Connections:
    """The connections that the processes of one daemon, such as an ovsdb-server or an ovs-vswitchd, have accepted."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self._pid, self._proc = pid, proc

    def clients(self) -> tuple[Client, ...]:
        """Return the clients. Raises StateUnknown if the process may not be looked at."""
        found: list[Client] = []
        self._each(lambda client, _: found.append(client))
        return tuple(found)

    def drop(self, spared: Collection[int] = ()) -> tuple[Client, ...]:
        """End the connections of all clients, and return these, except for an ovs-vswitchd, for this process with what
        it has started, and for ``spared``. Raises StateUnknown as ``clients`` does; then an unknown part was ended."""
        dropped: list[Client] = []

        def end(client: Client, connection: socket.socket) -> None:
            if client.program.startswith(SWITCH) or client.pid in spared or self._is_ours(client.pid):
                return
            with contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)
            dropped.append(client)

        self._each(end)
        return tuple(dropped)

    def _each(self, act: Callable[[Client, socket.socket], None]) -> None:
        try:
            pidfd = os.pidfd_open(self._pid)
            try:
                paths = served((self._proc / str(self._pid) / "net/unix").read_text())
                for descriptor, inode in self._sockets():
                    if inode in paths and (connection := _duplicate(pidfd, descriptor)) is not None:
                        with connection:
                            act(self._client(connection, paths[inode]), connection)
            finally:
                os.close(pidfd)
        except (FileNotFoundError, ProcessLookupError):
            return  # it is ending: its descriptors are closed before its namespaces are left (kernel/exit.c, do_exit)
        except OSError as error:
            if not lives(self._pid):  # its connections ended with it
                return
            raise StateUnknown(
                f"process {self._pid}: its connections cannot be seen: {error.strerror}",
                hint="it takes the capability CAP_SYS_PTRACE, and kernel.yama.ptrace_scope must not be 3",
            ) from error

    def _sockets(self) -> Iterator[tuple[int, int]]:
        """The descriptor and the inode of each socket of the process. Raises OSError."""
        directory = self._proc / str(self._pid) / "fd"
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(directory / name)
                if target.startswith("socket:["):
                    yield int(name), int(target[8:-1])

    def _client(self, connection: socket.socket, path: str) -> Client:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(peer)[0]
        program = ""
        with contextlib.suppress(OSError):
            program = (self._proc / str(pid) / "comm").read_text().strip()
        return Client(pid, program, path)

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is this one, or was started by it or by what it has started."""
        for _ in range(_PARENTS):
            if pid == os.getpid():
                return True
            if (parent := parent_of(pid, self._proc)) is None:
                return False
            pid = parent
        return False


def _duplicate(pidfd: int, descriptor: int) -> socket.socket | None:
    """Return a duplicate of a process's socket; ``None`` if it has closed it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    duplicate = libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    if duplicate >= 0:
        return socket.socket(fileno=duplicate)
    error = ctypes.get_errno()
    if error == errno.EBADF:
        return None
    raise OSError(error, os.strerror(error))

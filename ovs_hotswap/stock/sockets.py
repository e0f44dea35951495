"""Who is connected to whom over Unix sockets, as the kernel tells it (sock_diag(7)); no socket is touched.

The kernel tells of the sockets of one network namespace only. A connection belongs to the namespace of the process that
connected (net/unix/af_unix.c, unix_stream_connect), which is the switch's for a VM's port.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import DiagSocket
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import HostError

_ESTABLISHED = 1  # TCP_ESTABLISHED, which connected Unix sockets have as their state (net/unix/diag.c)


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A connected socket. ``name``: the path to which it was bound, or, on the side that accepted the connection, to
    which the listener was bound; empty on the other side. ``peer``: the inode of the other end; ``None`` if it is
    closed."""

    inode: int
    name: str
    peer: int | None


def connections() -> tuple[UnixSocket, ...]:
    """Return the connected sockets of this network namespace. Raises HostError."""
    try:
        with DiagSocket() as diag:
            diag.bind()
            found = diag.get_sock_stats(family=socket.AF_UNIX)
    except (OSError, NetlinkError) as error:
        raise HostError(f"the kernel does not list Unix sockets: {error}", hint="modprobe unix_diag") from error
    return tuple(
        UnixSocket(each["udiag_ino"], str(each.get_attr("UNIX_DIAG_NAME") or ""), each.get_attr("UNIX_DIAG_PEER"))
        for each in found
        if each["udiag_state"] == _ESTABLISHED
    )


def holders(inodes: Collection[int], pids: Iterable[int], proc: Path = Path("/proc")) -> dict[int, tuple[int, ...]]:
    """Return the processes that have each socket open; a process that may not be looked into is passed over."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[int]] = {}
    for pid in pids:
        for inode in {wanted[target] for target in _targets(proc / str(pid) / "fd") if target in wanted}:
            found.setdefault(inode, []).append(pid)
    return {inode: tuple(pids) for inode, pids in found.items()}


def inode_of(pid: int, descriptor: int, proc: Path = Path("/proc")) -> int | None:
    """Return the inode of a process's socket; ``None`` if the descriptor is no socket or cannot be seen."""
    try:
        target = os.readlink(proc / str(pid) / "fd" / str(descriptor))
    except OSError:
        return None
    number = target.removeprefix("socket:[").removesuffix("]")
    return int(number) if number.isdecimal() else None


def clients(path: str, sockets: Iterable[UnixSocket], holder: Mapping[int, tuple[int, ...]]) -> list[int]:
    """Return the processes that are connected to whatever listens at ``path``."""
    peers = [each.peer for each in sockets if each.name == path and each.peer is not None]
    return sorted({pid for peer in peers for pid in holder.get(peer, ())})


def _targets(directory: Path) -> Iterable[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(directory / name)
        except OSError:
            continue

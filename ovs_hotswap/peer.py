"""Finds out which process is at the other end of a Unix socket."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("3i")  # struct ucred: unix(7), SO_PEERCRED


class Credentials(NamedTuple):
    """A process that connected to this one, or that listened when this one connected."""

    pid: int
    user: int
    group: int


def credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of the process at the other end of a connection. Raises OSError."""
    return Credentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))

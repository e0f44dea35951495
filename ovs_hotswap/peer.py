"""Who is at the other end of a unix socket."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("3i")  # struct ucred: unix(7), SO_PEERCRED


class Credentials(NamedTuple):
    """A process that connected, or that listened when this one connected."""

    pid: int
    user: int
    group: int


def credentials(connection: socket.socket) -> Credentials:
    """Raises OSError."""
    return Credentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))

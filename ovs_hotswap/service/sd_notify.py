"""A service's side of the protocol with systemd, or with ``supervisor``: readiness, watchdog pings, stored descriptors.

The protocol is in sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3). If neither of the two started this
process, the calls do nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

SD_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START
_PER_MESSAGE = 128  # descriptors; the kernel allows 253 (SCM_MAX_FD)
_SEND_S = 1.0  # if the service manager does not read, the socket's queue fills (unix(7)), and no caller may hang then
BOOTED = Path("/run/systemd/system")  # sd_booted(3)


def tell(line: str) -> None:
    """Send an assignment that the next one replaces, such as ``STATUS=``. It is dropped rather than waited for."""
    notify(line, patience_s=0.0)


def notify(*lines: str, descriptors: Sequence[int] = (), patience_s: float = _SEND_S) -> bool:
    """Send assignments such as ``READY=1``, with descriptors if there are any; return whether they were sent. A missing
    service manager, or one that does not listen for ``patience_s``, is not an error: it must not stop the service."""
    out = _connected(patience_s)
    if out is None:
        return False
    with out:
        try:
            message = "\n".join(lines).encode()
            for start in range(0, max(len(descriptors), 1), _PER_MESSAGE):
                socket.send_fds(out, [message], list(descriptors[start : start + _PER_MESSAGE]))
        except OSError:
            return False
    return True


def _connected(patience_s: float = _SEND_S) -> socket.socket | None:
    """A socket to the service manager at ``$NOTIFY_SOCKET``; ``None`` if none listens there."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return None
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        out.settimeout(patience_s)
        out.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        out.close()
        return None
    return out


def fdstore_add(name: str, descriptors: Sequence[int]) -> bool:
    """Have the service manager keep duplicates for this service's next process (``FileDescriptorStoreMax=``).

    ``name`` has no colon and no control character. The service manager does not poll the descriptors, so it keeps them
    until ``fdstore_remove``. Returns whether the request was sent.
    """
    return notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=descriptors)


def fdstore_remove(name: str) -> bool:
    """Have the service manager close the descriptors stored under ``name``. Returns whether the request was sent."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def listen_fds() -> dict[str, list[int]]:
    """The descriptors that the service manager passed to this process, by name. Only the first call returns them. They
    are close-on-exec."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    found: dict[str, list[int]] = {}
    for index in range(count):
        os.set_inheritable(SD_LISTEN_FDS_START + index, False)
        found.setdefault(names[index] if index < len(names) else "", []).append(SD_LISTEN_FDS_START + index)
    return found


class Heartbeat:
    """Sends ``WATCHDOG=1`` when it is due. The loop that is to be proven alive calls ``beat`` in each iteration."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._every, self._due = clock, ping_interval(), float("-inf")

    def beat(self) -> None:
        if self._every is None or self._clock() < self._due:
            return
        self._due = self._clock() + self._every
        tell("WATCHDOG=1")


def supervised() -> bool:
    """Whether systemd, or ``supervisor``, started this process and takes its notifications."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def supervisor_alive() -> bool:
    """Whether the supervisor of this process still listens; it does not if it was killed."""
    out = _connected()
    if out is None:
        return False
    out.close()
    return True


def in_unit() -> bool:
    """Whether systemd itself started this process as part of a unit (systemd.exec(5), ``$SYSTEMD_EXEC_PID``)."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def ping_interval() -> float | None:
    """The seconds between two ``WATCHDOG=1``: half of what the unit allows; ``None`` if it expects none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 2e6 if microseconds else None

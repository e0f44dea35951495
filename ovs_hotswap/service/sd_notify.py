"""What a service says to systemd, or to `supervisor`, and gets from it: readiness, watchdog pings, stored descriptors.
sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Where neither started this process every call does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

SD_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START
_PER_MESSAGE = 128  # descriptors; the kernel allows 253 (SCM_MAX_FD)
_SEND_S = 1.0  # a service manager that does not read fills the socket's queue (unix(7)); nobody may hang on it
BOOTED = Path("/run/systemd/system")  # sd_booted(3)


def tell(line: str) -> None:
    """Send an assignment that the next one replaces, such as ``STATUS=``, unless it would have to be waited for."""
    notify(line, patience_s=0.0)


def notify(*lines: str, descriptors: Sequence[int] = (), patience_s: float = _SEND_S) -> bool:
    """Send assignments such as ``READY=1``; return whether there was anybody to tell. A service manager that does not
    listen is no error: nothing here may stop a service."""
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
    """A socket to whoever listens at ``$NOTIFY_SOCKET``; ``None`` if nobody does."""
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

    ``name``: no colon or control character. They are not polled, so that they stay until ``fdstore_remove``.
    """
    return notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=descriptors)


def fdstore_remove(name: str) -> bool:
    """Have the descriptors stored under ``name`` closed."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def listen_fds() -> dict[str, list[int]]:
    """The descriptors that the service manager passed to this process, by name. Told once; they are close-on-exec."""
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
    """``WATCHDOG=1`` from the loop that is to be proven alive: it calls ``beat`` each time round."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._every, self._due = clock, ping_interval(), float("-inf")

    def beat(self) -> None:
        if self._every is None or self._clock() < self._due:
            return
        self._due = self._clock() + self._every
        tell("WATCHDOG=1")


def supervised() -> bool:
    """Whether a service manager, or what stands in for it, started this process and wants to hear of it."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def supervisor_alive() -> bool:
    """Whether whoever supervises this process is there: nobody may be, if that was killed."""
    out = _connected()
    if out is None:
        return False
    out.close()
    return True


def in_unit() -> bool:
    """Whether systemd itself started this process, as a unit's (systemd.exec(5), ``$SYSTEMD_EXEC_PID``)."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def ping_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``: half of what the unit allows; ``None`` if it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 2e6 if microseconds else None

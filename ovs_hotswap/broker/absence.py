"""Says why a VM's QEMU is not connected to the broker. This module is pure."""

from __future__ import annotations

import errno

from ovs_hotswap.backends import Absence, AbsenceCause

NO_SWITCH = Absence(AbsenceCause.NO_SWITCH, "no switch has connected for it yet, so it was not called")
KEPT_AWAY = Absence(
    AbsenceCause.KEPT_AWAY, "it is not called while a switch may still be on its rings, or the VM leaves"
)
DIRECT = Absence(AbsenceCause.DIRECT, "a switch is connected with it without the broker")
_UNREACHABLE = {
    errno.ENOENT: Absence(AbsenceCause.NO_SOCKET, "there is no socket for it: it does not run, or is itself a client"),
    errno.ENOTDIR: Absence(AbsenceCause.NO_SOCKET, "there is no socket for it: a part of its path is no directory"),
    errno.EACCES: Absence(AbsenceCause.DENIED, "permission to connect to its socket is denied"),
    errno.EPERM: Absence(AbsenceCause.DENIED, "permission to connect to its socket is denied"),
    errno.ECONNREFUSED: Absence(AbsenceCause.NOBODY_LISTENS, "no process listens on its socket: its maker has ended"),
    errno.EAGAIN: Absence(AbsenceCause.BUSY, "it accepts no connection: it hangs, or is connected to another process"),
    errno.EPROTOTYPE: Absence(AbsenceCause.UNREACHABLE, "its socket is not a stream socket"),
}


def unreachable(error: OSError) -> Absence:
    """Return why QEMU is not connected after an attempt to connect raised ``error``."""
    found = _UNREACHABLE.get(error.errno or 0)
    return found or Absence(AbsenceCause.UNREACHABLE, f"its socket: {error.strerror or error}")


def hung_up(reason: str) -> Absence:
    return Absence(AbsenceCause.HUNG_UP, reason)


def broke(reason: str) -> Absence:
    return Absence(AbsenceCause.HUNG_UP_ON, f"it was hung up on: {reason}")

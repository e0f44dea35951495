"""The parents of daemons that were started with ``--monitor``: they start a daemon again that has crashed.

One that starts a switch again that was ended on purpose, or has a successor by then, would have it listen at the
well-known paths, over the links that lead to the active instance (lib/socket-util-unix.c, make_unix_socket, unlinks
first).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from ovs_hotswap.process_exit import PROC, parent_of
from ovs_hotswap.system import System

_TITLE = re.compile(r".+: monitoring pid (\d+)\b")  # lib/daemon-unix.c, monitor_daemon


def monitor_of(pid: int, system: System, proc: Path = PROC) -> int | None:
    """Return the process that watches over daemon ``pid``; ``None`` if there is none, or the daemon has ended."""
    parent = parent_of(pid, proc)
    if parent is None:
        return None
    title = _TITLE.match(" ".join(system.cmdline(parent)))
    return parent if title is not None and int(title[1]) == pid else None


def end_monitors(pids: tuple[int, ...], system: System, proc: Path = PROC) -> tuple[int, ...]:
    """End the monitors of these daemons, which themselves stay, and return their pids. It is called before the daemons
    are ended. Raises CommandError if one does not die."""
    found = tuple(monitor for pid in pids if (monitor := monitor_of(pid, system, proc)) is not None)
    for monitor in found:
        system.kill(monitor, grace=0)
    return found


def end_family(monitor: int, system: System, proc: Path = PROC) -> tuple[int, ...]:
    """End a monitor whose daemon has died, and what it has started in the daemon's place. Returns all pids. Raises
    CommandError if one does not die."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(monitor, signal.SIGSTOP)  # it starts no other one while it is looked at
    family = (monitor, *(pid for pid in system.pids() if parent_of(pid, proc) == monitor))
    for pid in family:
        system.kill(pid, grace=0)
    return family

"""The pipe that the thread which handles vhost-user messages polls before its connections.

DPDK's only thread for that takes one message of each connection in a turn, and before each turn poll(2) goes through
all connections (lib/vhost/fd_man.c, ``fdset_event_dispatch``). At each descriptor up to the first that has something to
read, poll(2) also queues the thread as a waiter (linux/fs/select.c, ``do_poll``), which costs more than everything
else. The first descriptor is a pipe of DPDK's own: data in it wakes the thread, which reads 16 bytes from it in each
turn and ignores them (``fdset_pipe_read_cb``). So with 16 bytes in the pipe for each message that is to be handled,
every turn is short. The bytes have no other effect.
"""

from __future__ import annotations

import os
import select
import struct
import time
from pathlib import Path

_POLL, _EPOLL = "7", ("232", "281")  # poll; epoll_wait, epoll_pwait (asm/unistd_64.h)
_POLLFD = struct.Struct("ihh")  # descriptor, events asked for, events found (poll(2))
_LOOKS, _LOOK_S = 50, 0.001  # the thread sleeps in poll(2) except for the microseconds of a message


def notify_pipe(pid: int, thread: int) -> int | None:
    """Return a descriptor that writes, without blocking, to the pipe of the message thread of ovs-vswitchd ``pid``.

    The caller closes it. Returns ``None`` if there is no such pipe (another DPDK, or not x86-64), if it is not certain
    which pipe it is, or if this process may not look (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS).
    """
    try:
        first = _polled_first(pid, thread)
        if first is None or not _has_both_ends(pid, first):
            return None
        return os.open(f"/proc/{pid}/fd/{first}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, struct.error):  # the process is ending
        return None


def _polled_first(pid: int, thread: int) -> int | None:
    """Return the first of the descriptors that a thread polls, if it waits for something to read there."""
    for _ in range(_LOOKS):
        call, *arguments = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()
        if call == _POLL:
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(int(arguments[0], 16))
                descriptor, events, _ = _POLLFD.unpack(memory.read(_POLLFD.size))
            return descriptor if events == select.POLLIN else None
        if call in _EPOLL:
            return None
        time.sleep(_LOOK_S)
    return None


def _has_both_ends(pid: int, descriptor: int) -> bool:
    """Whether ``descriptor`` is a pipe from process ``pid`` to itself."""
    directory = Path(f"/proc/{pid}/fd")
    target = os.readlink(directory / str(descriptor))
    if not target.startswith("pipe:"):
        return False
    ends = [name for name in os.listdir(directory) if _link(directory / name) == target]
    return sorted(_access(pid, name) for name in ends) == [os.O_RDONLY, os.O_WRONLY]


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # closed in the meantime
        return None


def _access(pid: int, descriptor: str) -> int:
    """Return the access mode with which a descriptor was opened (proc_pid_fdinfo(5))."""
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    flags = next(line.split()[1] for line in lines if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE

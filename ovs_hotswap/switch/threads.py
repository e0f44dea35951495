"""The threads of an ovs-vswitchd on which a handover depends, and when they get a core.

On each side a handover waits for the thread that handles vhost-user messages. That thread spins for locks which PMD
threads hold (DPDK, ``access_lock``). If these threads share cores with other work, the message thread waits for a core
for milliseconds, and so does a PMD thread that was interrupted while it held the lock. In the window the message thread
therefore gets real-time priority, on a core where no PMD thread runs (``priority.control_core``), or at least none of
its own process: it must never keep a thread from running for which it waits. PMD threads get a better nice value.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from ovs_hotswap.background import threads_of
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.priority import Rank, control_core, other_cores

# lib/vhost/socket.c: the name was changed in DPDK 23.07.
VHOST_THREADS = frozenset({"vhost-events", "dpdk-vhost-evt"})
_PMD_NICE = -15


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How the threads of a process are scheduled: policy, priority (sched_setscheduler(2)) and cores of its vhost-user
    message thread, and the nice value of its PMD threads."""

    policy: int
    priority: int
    cores: tuple[int, ...]
    pmd_nice: int


def is_pmd(name: str) -> bool:
    """Whether a thread of that name is a PMD thread."""
    return name.startswith("pmd-c")


def vhost_thread(pid: int) -> int | None:
    """Return the id of the thread that handles vhost-user messages; there is none before the first such port."""
    return next((thread for thread, name in threads_of(pid) if name in VHOST_THREADS), None)


def _pmd_threads(pid: int) -> list[int]:
    return [thread for thread, name in threads_of(pid) if is_pmd(name)]


def scheduling(pid: int) -> Scheduling | None:
    """Return how ovs-vswitchd ``pid`` is scheduled, without regard to a temporary low priority.

    Returns ``None`` if it has no vhost-user thread. Raises SwitchError if it ends during this.
    """
    thread = vhost_thread(pid)
    if thread is None:
        return None
    try:
        policy = os.sched_getscheduler(thread)
        return Scheduling(
            os.SCHED_OTHER if policy == os.SCHED_IDLE else policy,
            os.sched_getparam(thread).sched_priority,
            tuple(sorted(os.sched_getaffinity(thread))),
            min((os.getpriority(os.PRIO_PROCESS, pmd) for pmd in _pmd_threads(pid)), default=0),
        )
    except OSError as error:
        raise SwitchError(f"process {pid}: {error.strerror}") from error


def prefer(pid: int, own: Collection[int], others: Collection[int], rank: Rank) -> bool:
    """Prefer the threads for which a handover waits; the message thread gets ``rank``.

    ``own`` are the cores of the process's PMD threads, ``others`` those of the other instance. Returns ``False``, with
    nothing changed, if there is no core for the message thread. Raises SwitchError.
    """
    wide = other_cores(own)
    for cores in (control_core([*own, *others]), wide):
        if not cores:
            continue
        try:
            schedule(pid, Scheduling(os.SCHED_FIFO, rank, tuple(sorted(cores)), _PMD_NICE))
            return True
        except SwitchError:
            if cores is wide:  # the process may not be allowed to run on that one core
                raise
    return False


def schedule(pid: int, wanted: Scheduling) -> None:
    """Schedule the threads of ``pid`` as ``wanted``. Raises SwitchError if one ends or this is not permitted."""
    thread = vhost_thread(pid)
    try:
        for pmd in _pmd_threads(pid):
            os.setpriority(os.PRIO_PROCESS, pmd, wanted.pmd_nice)
        if thread is None:
            return
        # At no moment may it have priority on a core of its own PMD threads.
        if wanted.policy == os.SCHED_FIFO:
            os.sched_setaffinity(thread, wanted.cores)
        os.sched_setscheduler(thread, wanted.policy, os.sched_param(wanted.priority))
        os.sched_setaffinity(thread, wanted.cores)
    except OSError as error:
        raise SwitchError(f"process {pid}: scheduling cannot be set: {error.strerror}") from error

"""Threads of an ovs-vswitchd on which a hand-over depends, and when they get a core.

A hand-over waits for the thread that handles vhost-user messages, on either side; that thread spins for locks which PMD
threads hold (DPDK, ``access_lock``). Where they share cores with other work, the one waits for milliseconds to be run,
and so does a PMD thread that was interrupted while it held the lock. In the window the former therefore gets real-time
priority, on a core where no PMD thread runs (``priority.control_core``), at least none of its own, since it must never
keep from running what it waits for; and PMD threads get a better nice value.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from ovs_hotswap.background import threads_of
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.priority import Rank, control_core

# lib/vhost/socket.c: the name was changed in DPDK 23.07.
VHOST_THREADS = frozenset({"vhost-events", "dpdk-vhost-evt"})
_PMD_NICE = -15


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How the threads of a process were scheduled: policy and priority (sched_setscheduler(2)) and cores of its
    vhost-user message thread, nice value of its PMD threads."""

    policy: int
    priority: int
    cores: tuple[int, ...]
    pmd_nice: int


def is_pmd(name: str) -> bool:
    """Whether a thread of that name polls ports."""
    return name.startswith("pmd-c")


def vhost_thread(pid: int) -> int | None:
    """The thread that handles vhost-user messages; there is none before the first vhost-user port."""
    return next((thread for thread, name in threads_of(pid) if name in VHOST_THREADS), None)


def _pmd_threads(pid: int) -> list[int]:
    return [thread for thread, name in threads_of(pid) if is_pmd(name)]


def scheduling(pid: int) -> Scheduling | None:
    """How ovs-vswitchd ``pid`` is scheduled, for a while low priority or not; ``None`` if it has no vhost-user thread.
    Raises SwitchError if it ends meanwhile."""
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
    """Prefer the threads that a hand-over waits for; the message thread gets ``rank``. ``own``: cores of the process's
    PMD threads; ``others``: of the other instance's.

    Returns ``False``, with nothing changed, where there is no core to run on. Raises SwitchError.
    """
    wide = os.sched_getaffinity(0) - set(own)
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

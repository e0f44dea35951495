"""Scheduling of a switch's threads, with threads of those names in a process of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ovs_hotswap.priority import Rank
from ovs_hotswap.switch import threads

_PROGRAM = """
import sys, threading, time

def run(name):
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(name)
    sys.stdout.write(f"{name} {threading.get_native_id()}\\n")
    sys.stdout.flush()
    time.sleep(1000)

for name in sys.argv[1:]:
    threading.Thread(target=run, args=(name,)).start()
"""
VHOST, PMD = "vhost-events", "pmd-c01/id:7"


@pytest.fixture
def switch() -> Iterator[tuple[int, dict[str, int]]]:
    """Its process, and its threads by name."""
    argv = [sys.executable, "-c", _PROGRAM, VHOST, PMD]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.pid, {name: int(thread) for name, thread in (child.stdout.readline().split() for _ in range(2))}
        finally:
            child.kill()


@pytest.mark.parametrize("rank", [Rank.GIVES, Rank.TAKES])
def test_message_thread_gets_its_rank_on_the_core_without_pmd_threads(
    switch: tuple[int, dict[str, int]], rank: Rank
) -> None:
    pid, named = switch
    before = threads.scheduling(pid)
    assert before is not None
    assert threads.prefer(pid, [1], [1], rank)
    thread = named[VHOST]
    assert (os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority) == (os.SCHED_FIFO, rank)
    assert os.sched_getaffinity(thread) == {0}
    assert os.sched_getscheduler(named[PMD]) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, named[PMD]) < 0
    threads.schedule(pid, before)
    assert threads.scheduling(pid) == before


def test_no_thread_is_preferred_where_only_its_own_pmd_threads_run(switch: tuple[int, dict[str, int]]) -> None:
    pid, _ = switch
    before, every = threads.scheduling(pid), sorted(os.sched_getaffinity(0))
    assert not threads.prefer(pid, every, every, Rank.TAKES)
    assert threads.scheduling(pid) == before

"""Scheduling of a switch's threads, with threads of those names in a process of the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.background import Background, low_threads, serve, threads_of
from ovs_hotswap.priority import Rank
from ovs_hotswap.switch import threads
from tests.support.waiting import eventually

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
for line in sys.stdin:
    threading.Thread(target=run, args=(line.strip(),)).start()
"""
VHOST, PMD = "vhost-events", "pmd-c01/id:7"


@pytest.fixture
def switch() -> Iterator[tuple[int, dict[str, int]]]:
    """Its process, and its threads by name."""
    argv = [sys.executable, "-c", _PROGRAM, VHOST, PMD]
    with _child(argv) as child:
        assert child.stdout is not None
        yield child.pid, {name: int(thread) for name, thread in (child.stdout.readline().split() for _ in range(2))}


@contextlib.contextmanager
def _child(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            yield child
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


LONG = 1000.0


def _policies(pid: int) -> dict[str, int]:
    return {name: os.sched_getscheduler(thread) for thread, name in threads_of(pid)}


def _normal(pid: int) -> bool:
    return set(_policies(pid).values()) == {os.SCHED_OTHER} and not low_threads(pid)


def test_all_but_pmd_threads_are_low_until_the_end(switch: tuple[int, dict[str, int]]) -> None:
    pid, named = switch
    with Background(lambda: [pid], threads.is_pmd, os.getpid(), LONG):
        eventually(lambda: _policies(pid)[VHOST] == os.SCHED_IDLE, "not lowered")
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert os.sched_getscheduler(named[PMD]) == os.SCHED_OTHER
        found = threads.scheduling(pid)
        assert found is not None
        assert found.policy == os.SCHED_OTHER  # never taken for the operator's
    assert _normal(pid)


def test_a_thread_that_a_low_one_has_made_is_raised_with_it_and_a_pmd_thread_at_once() -> None:
    with _child([sys.executable, "-c", _PROGRAM]) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with Background(lambda: [child.pid], threads.is_pmd, os.getpid(), LONG):
            eventually(lambda: os.sched_getscheduler(child.pid) == os.SCHED_IDLE, "not lowered")
            child.stdin.write(f"{PMD}\n{VHOST}\n")
            child.stdin.flush()
            child.stdout.readline(), child.stdout.readline()
            eventually(lambda: _policies(child.pid)[PMD] == os.SCHED_OTHER, "the PMD thread is low")
            assert _policies(child.pid)[VHOST] == os.SCHED_IDLE
        assert _normal(child.pid)


def test_nothing_stays_low_when_whoever_served_has_ended(switch: tuple[int, dict[str, int]]) -> None:
    pid, _ = switch
    with _child(["cat"]) as serving, Background(lambda: [pid], threads.is_pmd, serving.pid, LONG):
        eventually(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE, "not lowered")
        serving.kill()
        eventually(lambda: _normal(pid), "still low")


def test_nothing_stays_low_longer_than_patience_lasts(switch: tuple[int, dict[str, int]]) -> None:
    pid, _ = switch
    with Background(lambda: [pid], threads.is_pmd, os.getpid(), 0.5):
        eventually(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE, "not lowered")
        eventually(lambda: _normal(pid), "still low")


def test_what_somebody_else_has_raised_is_not_lowered_again(switch: tuple[int, dict[str, int]]) -> None:
    pid, _ = switch
    with Background(lambda: [pid], threads.is_pmd, os.getpid(), LONG) as background:
        eventually(lambda: _policies(pid)[VHOST] == os.SCHED_IDLE, "not lowered")
        assert serve(pid)
        eventually(lambda: not background.active, "it continues")
        assert _normal(pid)


def test_the_thread_that_writes_the_log_does_not_count() -> None:
    """It has its process's name and chooses its own priority, after everything else has been raised."""
    own = Path(sys.executable).resolve().name[:15]
    with _child(
        [sys.executable, "-c", f"import sys; open('/proc/self/comm', 'w').write('{own}')\n{_PROGRAM}", own, VHOST]
    ) as child:
        assert child.stdout is not None
        named = {name: int(thread) for name, thread in (child.stdout.readline().split() for _ in range(2))}
        for thread in named.values():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        assert low_threads(child.pid) == {named[VHOST]: VHOST}
        assert serve(child.pid)
        assert _normal(child.pid)


def test_nobody_s_session_but_the_process_s_own_is_lowered() -> None:
    argv = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        before = Path("/proc/self/autogroup").read_text()
        with Background(lambda: [child.pid], threads.is_pmd, os.getpid(), LONG):
            eventually(lambda: os.sched_getscheduler(child.pid) == os.SCHED_IDLE, "not lowered")
            assert Path("/proc/self/autogroup").read_text() == before

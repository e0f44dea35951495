"""The end of real processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.process_exit import ExitWatch, has_memory, locks_memory, start_time
from tests.support.shortage import few_descriptors, no_threads

# Locks its file as Open vSwitch does (lib/daemon-unix.c, make_pidfile), with a second thread, and obeys one word.
_PROGRAM = """
import fcntl, sys, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
file.close()
print("unlocked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "pid"
    path.touch()
    return path


@pytest.fixture
def child(lock: Path) -> Iterator[subprocess.Popen[str]]:
    made = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with made:
        assert made.stdout is not None
        assert made.stdout.readline() == "locked\n"
        yield made
        made.kill()


def readable(found: ExitWatch, seconds: float) -> bool:
    poller = select.poll()
    poller.register(found.fileno(), select.POLLIN)
    return bool(poller.poll(seconds * 1e3))


@pytest.mark.parametrize("watches_lock", [True, False])
def test_a_killed_process_is_noticed(child: subprocess.Popen[str], lock: Path, watches_lock: bool) -> None:
    found = ExitWatch(child.pid, [lock] if watches_lock else [])
    assert not readable(found, 0)
    assert not found.ended()
    child.kill()
    assert readable(found, 10)
    while not found.ended():  # the lock's end comes before the last thread is seen without memory
        assert readable(found, 10)
    assert not has_memory(child.pid)
    found.close()


def test_a_lock_that_is_let_go_is_not_the_end(child: subprocess.Popen[str], lock: Path) -> None:
    found = ExitWatch(child.pid, [lock])
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert readable(found, 10)
    assert not found.ended()
    assert not readable(found, 0.05)
    child.kill()
    assert readable(found, 10)
    assert found.ended()
    found.close()


def test_somebody_elses_lock_is_not_waited_for(child: subprocess.Popen[str], lock: Path) -> None:
    """It ends with a process that is not the one that is watched."""
    with subprocess.Popen(["sleep", "600"]) as other:
        found = ExitWatch(other.pid, [lock, lock.with_name("absent")])
        child.kill()
        child.wait()
        assert not readable(found, 0.1)
        other.kill()
        assert readable(found, 10)
        found.close()


def test_a_stopped_process_has_its_memory(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert has_memory(child.pid)


def test_zombies_and_nobody_have_none() -> None:
    assert has_memory(os.getpid())
    with subprocess.Popen(["true"]) as gone:
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        assert not has_memory(gone.pid)
    assert not has_memory(gone.pid)
    with pytest.raises(ProcessLookupError):
        ExitWatch(gone.pid)


def test_two_processes_of_one_pid_differ_in_their_start(child: subprocess.Popen[str]) -> None:
    own, childs = start_time(os.getpid()), start_time(child.pid)
    assert own
    assert childs
    assert own <= childs
    child.kill()
    child.wait()
    assert start_time(child.pid) == 0


def test_a_process_that_is_not_shown_is_not_taken_for_ended(child: subprocess.Popen[str], tmp_path: Path) -> None:
    """/proc mounted with hidepid=ptraceable, seen by one with fewer capabilities."""
    nothing = tmp_path / "proc"
    nothing.mkdir()
    assert has_memory(child.pid, nothing)
    assert start_time(child.pid, nothing) is None
    found = ExitWatch(child.pid, proc=nothing)
    assert found.born is None
    assert not found.ended()
    child.kill()
    assert readable(found, 10)
    assert found.ended()
    found.close()
    assert not has_memory(child.pid, nothing)
    assert start_time(child.pid, nothing) == 0


def test_who_may_not_look_takes_it_that_there_is_memory(child: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / f"proc/{child.pid}").mkdir(parents=True)
    (tmp_path / f"proc/{child.pid}/task").write_text("no directory")
    assert has_memory(child.pid, tmp_path / "proc")


@pytest.mark.parametrize("left", range(5))
def test_what_cannot_be_watched_leaves_nothing_open(child: subprocess.Popen[str], lock: Path, left: int) -> None:
    before = os.listdir("/proc/self/fd")
    with few_descriptors(left), contextlib.suppress(OSError):
        ExitWatch(child.pid, [lock]).close()
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_without_threads_the_end_is_noticed_all_the_same(child: subprocess.Popen[str], lock: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with no_threads():
        found = ExitWatch(child.pid, [lock])
    child.kill()
    assert readable(found, 10)
    found.close()
    assert set(os.listdir("/proc/self/fd")) <= set(before)


def test_locked_memory(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    for text, locked in (
        ("VmPin:\t       0 kB\nVmLck:\t  143352 kB\nVmHWM:\t 5 kB\n", True),
        ("VmLck:\t       0 kB\n", False),
        ("", False),
    ):
        (tmp_path / "7/status").write_text(text)
        assert locks_memory(7, tmp_path) is locked
    assert not locks_memory(8, tmp_path)

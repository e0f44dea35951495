"""A process is stopped for a moment, and continues whatever happens to the one that stopped it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.adopt.stopping import Stopped
from ovs_hotswap.errors import StateUnknown, TryAgain
from ovs_hotswap.waiting import wait_until

# Counts in two threads and in the main thread, and counts its signals, all in a shared file.
COUNTER = """
import mmap, os, signal, sys, threading, time
shared = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 32)
def add(at): shared[at:at+8] = (int.from_bytes(shared[at:at+8], "little") + 1).to_bytes(8, "little")
signal.signal(signal.SIGUSR1, lambda *_: add(24))
def count(at):
    while True: add(at); time.sleep(0.0005)
for at in (0, 8): threading.Thread(target=count, args=(at,), daemon=True).start()
count(16)
"""


class Counter:
    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(32))
        self._path = path
        self.process = subprocess.Popen([sys.executable, "-c", COUNTER, str(path)])
        assert wait_until(lambda: all(self.counts()[:3]), 20)

    @property
    def pid(self) -> int:
        return self.process.pid

    def counts(self) -> list[int]:
        data = self._path.read_bytes()
        return [int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16, 24)]

    def continues(self) -> bool:
        before = self.counts()[:3]
        return wait_until(lambda: all(new > old for new, old in zip(self.counts(), before, strict=False)), 10)


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    made = Counter(tmp_path / "counts")
    yield made
    made.process.kill()
    made.process.wait()


def soon() -> float:
    return time.monotonic() + 5


def tracer(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("TracerPid"))


def test_no_thread_runs_inside(counter: Counter) -> None:
    with Stopped(counter.pid, soon()):
        before = counter.counts()
        time.sleep(0.05)
        assert counter.counts() == before
    assert counter.continues()
    assert tracer(counter.pid) == "0"


def test_it_continues_after_an_error_inside(counter: Counter) -> None:
    with pytest.raises(ZeroDivisionError), Stopped(counter.pid, soon()):
        _ = 1 / 0
    assert counter.continues()


def test_it_continues_after_the_limit_whatever_the_block_does(counter: Counter) -> None:
    with Stopped(counter.pid, soon(), limit_s=0.05) as section:
        assert counter.continues()
        assert section.overrun
    assert tracer(counter.pid) == "0"
    with Stopped(counter.pid, soon()) as section:
        pass
    assert not section.overrun


def test_a_signal_is_not_lost(counter: Counter) -> None:
    """Signals arrive before, while and after the process is stopped; each is taken."""
    for sent in range(1, 51):
        os.kill(counter.pid, signal.SIGUSR1)
        with Stopped(counter.pid, soon()):
            pass
        assert wait_until(lambda: counter.counts()[3], 5, done=sent.__eq__) == sent
    assert counter.continues()


def test_a_process_that_was_stopped_before_stays_so(counter: Counter) -> None:
    os.kill(counter.pid, signal.SIGSTOP)
    with Stopped(counter.pid, soon()):
        pass
    time.sleep(0.05)
    before = counter.counts()
    time.sleep(0.05)
    assert counter.counts() == before
    os.kill(counter.pid, signal.SIGCONT)
    assert counter.continues()


def in_a_process(act: Callable[[], None]) -> int:
    """Call ``act`` in a process of its own, which it does not leave; return its pid."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    return child


def test_it_continues_when_the_process_that_stopped_it_is_killed(counter: Counter) -> None:
    def stop() -> None:
        with Stopped(counter.pid, soon()):
            time.sleep(60)

    child = in_a_process(stop)
    assert wait_until(lambda: tracer(counter.pid) != "0", 5)
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert counter.continues()


def test_a_process_that_another_one_traces_is_left_alone(counter: Counter) -> None:
    def stop() -> None:
        with Stopped(counter.pid, soon()):
            time.sleep(60)

    child = in_a_process(stop)
    try:
        assert wait_until(lambda: tracer(counter.pid) != "0", 5)
        time.sleep(0.05)
        with pytest.raises(StateUnknown, match="cannot be stopped"), Stopped(counter.pid, soon()):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert counter.continues()


def test_a_time_that_is_over_gives_up_and_continues(counter: Counter) -> None:
    for _ in range(20):
        try:
            with Stopped(counter.pid, 0.0):
                pass
        except TryAgain:
            pass
        assert counter.continues()
    assert tracer(counter.pid) == "0"


def test_a_process_that_has_ended_is_named(counter: Counter) -> None:
    counter.process.kill()
    counter.process.wait()
    with pytest.raises(StateUnknown, match="has ended"), Stopped(counter.pid, soon()):
        pass


def kill_inside(pid: int) -> None:
    with Stopped(pid, soon()):
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def test_a_process_that_is_killed_inside_ends(counter: Counter) -> None:
    """Its parent gets its exit status, also if that is the process that stopped it."""
    kill_inside(counter.pid)
    assert counter.process.wait(5) == -signal.SIGKILL


def test_a_process_that_another_one_kills_inside_ends(counter: Counter) -> None:
    def act() -> None:
        kill_inside(counter.pid)
        time.sleep(60)

    child = in_a_process(act)
    try:
        assert counter.process.wait(10) == -signal.SIGKILL
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_signal_that_ends_it_is_taken_afterwards(counter: Counter) -> None:
    with Stopped(counter.pid, soon()):
        os.kill(counter.pid, signal.SIGTERM)
    assert counter.process.wait(5) == -signal.SIGTERM

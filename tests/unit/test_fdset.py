"""Whose pipe is written to: processes whose threads poll other things first than DPDK's does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ovs_hotswap.switch.notify_pipe import notify_pipe
from ovs_hotswap.switch.threads import vhost_thread

# Polls what the first word says, in a thread called as the second does; tells when it does so, and what came.
PROGRAM = """
import os, select, socket, sys, threading

def run():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(sys.argv[2])
    read, write = os.pipe()
    one, other = socket.socketpair()
    if sys.argv[1] == "half":
        os.close(write)
        read = int(sys.argv[3])
    poll = select.poll()
    first = {"socket": one.fileno()}.get(sys.argv[1], read)
    poll.register(first, select.POLLIN)
    poll.register(one if first == read else read, select.POLLIN)
    print("polls", flush=True)
    (found, _), *_ = poll.poll()
    print(len(os.read(found, 16)), flush=True)

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@contextlib.contextmanager
def polling(what: str, name: str = "vhost-events") -> Iterator[subprocess.Popen[str]]:
    read, write = os.pipe()  # of which the process has one end only
    command = [sys.executable, "-c", PROGRAM, what, name, str(read)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[read])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "polls\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        os.close(read)
        os.close(write)


def found(process: subprocess.Popen[Any]) -> int | None:
    thread = vhost_thread(process.pid)
    return None if thread is None else notify_pipe(process.pid, thread)


@pytest.mark.parametrize("name", ["vhost-events", "dpdk-vhost-evt"])
def test_the_pipe_that_is_polled_first(name: str) -> None:
    with polling("pipe", name) as process:
        pipe = found(process)
        assert pipe is not None
        assert not os.get_blocking(pipe)
        assert not os.get_inheritable(pipe)
        assert os.write(pipe, bytes(40)) == 40
        os.close(pipe)
        assert process.stdout is not None
        assert process.stdout.readline() == "16\n"


@pytest.mark.parametrize("what", ["socket", "half"])
def test_something_else_is_polled_first(what: str) -> None:
    with polling(what) as process:
        assert found(process) is None


def test_no_thread_that_handles_messages() -> None:
    with polling("pipe", "another") as process:
        assert found(process) is None


def test_a_thread_that_does_not_poll() -> None:
    program = "import pathlib,time; pathlib.Path('/proc/self/comm').write_text('vhost-events'); print(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert found(process) is None
        process.kill()
    assert found(process) is None

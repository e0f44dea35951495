"""The namespaces of a stock host: what is private in them, and that they end with those who made them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ovs_hotswap.errors import CommandError
from ovs_hotswap.system import System
from tests.support.stock_space import Space
from tests.support.waiting import eventually


@pytest.fixture
def space(tmp_path: Path, system: System) -> Iterator[Space]:
    made = Space(tmp_path, system)
    with contextlib.closing(made):
        yield made


def test_files_and_devices_are_private_and_can_be_reached_from_outside(space: Space) -> None:
    space.run(["sh", "-ec", "mkdir /run/openvswitch; echo here >/run/openvswitch/x; ip link add v0 type veth peer v1"])
    assert space.outside("/run/openvswitch/x").read_text() == "here\n"
    assert not Path("/run/openvswitch/x").exists()
    assert space.run(["ls", "/sys/class/net"]).stdout.split() == ["lo", "v0", "v1"]
    space.run(["ip", "netns", "add", "there"])
    assert space.run(["ls", "/sys/class/net"], netns="there").stdout.split() == ["lo"]
    assert not Path("/run/netns/there").exists()


def test_a_command_that_fails_says_why(space: Space) -> None:
    with pytest.raises(CommandError, match="No such file"):
        space.run(["ls", "/run/nothing"])


def test_every_process_ends_with_the_namespaces(space: Space) -> None:
    space.run(["ip", "netns", "add", "there"])
    processes = [
        space.popen(["sleep", "1000"]),
        space.popen(["sleep", "1000"], netns="there"),
        space.popen(["unshare", "--mount", "sleep", "1000"]),
        space.popen(["unshare", "--net", "sleep", "1000"]),
    ]
    for process in processes:
        eventually(partial(_sleeps, process.pid), "the command", 10.0)
    space.close()
    assert [process.wait(5) for process in processes] == [-signal.SIGKILL] * len(processes)
    space.close()


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


_TEST = """\
import sys, time
from pathlib import Path
from ovs_hotswap.system import System
from tests.support.stock_space import Space
space = Space(Path(sys.argv[1]), System())
print(space.popen(["sleep", "1000"]).pid, flush=True)
time.sleep(1000)
"""


def test_every_process_ends_when_the_tests_are_killed(tmp_path: Path, system: System) -> None:
    root = Path(__file__).parents[2]
    tests = subprocess.Popen(
        [sys.executable, "-c", _TEST, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert tests.stdout is not None
    with tests.stdout:
        pid = int(tests.stdout.readline())
    assert system.alive(pid)
    tests.kill()
    tests.wait()
    eventually(lambda: not system.alive(pid), "the end of what the tests had started", 10.0)

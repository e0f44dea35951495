"""What a service says to its service manager, and gets from it; the manager is a real datagram socket."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.broker import watchdog_ping
from ovs_hotswap.service import sd_notify


class Manager:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(0.0)

    def received(self) -> list[tuple[list[str], list[int]]]:
        """Lines and descriptors of each message that waits; the descriptors are the caller's."""
        found: list[tuple[list[str], list[int]]] = []
        while True:
            try:
                text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(1024))
            except BlockingIOError:
                return found
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            found.append((text.decode().split("\n"), list(descriptors)))

    def lines(self) -> list[list[str]]:
        return [lines for lines, _ in self.received()]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@ovsh-test-{os.getpid()}"
    made = Manager(name.replace("@", "\0"))
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    for variable in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(variable, raising=False)
    yield made
    made.close()


def test_notify_sends_its_lines_as_one_message(manager: Manager) -> None:
    assert sd_notify.supervised()
    assert sd_notify.notify("READY=1", "STATUS=serves 2 VMs")
    assert manager.lines() == [["READY=1", "STATUS=serves 2 VMs"]]


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify.supervised()
    assert not sd_notify.notify("READY=1")
    assert not sd_notify.fdstore_add("vm1", [0])


def test_a_manager_that_is_gone_is_no_error(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    manager.close()
    assert not sd_notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    assert not sd_notify.notify("READY=1")


def test_a_manager_that_does_not_read_hangs_nobody(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd_notify, "_SEND_S", 0.01)
    while sd_notify.notify("STATUS=" + "x" * 1000):
        pass
    assert len(manager.lines()) > 1


def test_stored_descriptors_arrive_in_messages_that_the_kernel_takes(manager: Manager) -> None:
    count = 300  # more than one message may carry
    with open(os.devnull) as null:
        assert sd_notify.fdstore_add("vm1", [null.fileno()] * count)
        messages = manager.received()
        assert [lines for lines, _ in messages] == [["FDSTORE=1", "FDNAME=vm1", "FDPOLL=0"]] * 3
        descriptors = [descriptor for _, some in messages for descriptor in some]
        assert len(descriptors) == count
        assert all(os.path.sameopenfile(null.fileno(), descriptor) for descriptor in descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
    assert sd_notify.fdstore_remove("vm1")
    assert manager.lines() == [["FDSTOREREMOVE=1", "FDNAME=vm1"]]


STORED = """
import os, sys
from ovs_hotswap.service import sd_notify
found = sd_notify.listen_fds()
print({name: [os.read(fd, 9).decode() for fd in fds] for name, fds in found.items()})
print([os.get_inheritable(fd) for fds in found.values() for fd in fds], sd_notify.listen_fds())
"""
STARTER = """
import os, sys
pipes = [int(number) for number in sys.argv[2:]]
for number, pipe in enumerate(pipes):
    os.dup2(pipe, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(pipes)), "LISTEN_FDNAMES": "vm1:vm2:vm1"}
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def test_what_was_stored_is_found_by_name_once() -> None:
    """In a process that is started as systemd starts one: descriptors from 3 on (sd_listen_fds(3))."""
    pipes = [os.pipe() for _ in range(3)]
    for number, (_, end) in enumerate(pipes):
        os.write(end, f"pipe {number}".encode())
    readings = [reading for reading, _ in pipes]
    try:
        done = subprocess.run(
            [sys.executable, "-c", STARTER, STORED, *map(str, readings)], capture_output=True, text=True,
            pass_fds=readings, check=True,
        )  # fmt: skip
    finally:
        for descriptor in (end for pipe in pipes for end in pipe):
            os.close(descriptor)
    assert done.stdout.splitlines() == [
        "{'vm1': ['pipe 0', 'pipe 2'], 'vm2': ['pipe 1']}",
        "[False, False, False] {}",
    ]


def test_what_was_stored_for_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert sd_notify.listen_fds() == {}


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [(None, None, None), ("0", None, None), ("10000000", None, 5.0), ("10000000", "own", 5.0), ("10000000", "1", None)],
)
def test_a_ping_is_due_twice_within_what_the_unit_allows(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None, interval: float | None
) -> None:
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert sd_notify.ping_interval() == interval
    now = [0.0]
    heart = sd_notify.Heartbeat(lambda: now[0])
    for time in (100.0, 104.9, 105.0, 105.1, 110.0):
        now[0] = time
        heart.beat()
    assert len(manager.lines()) == (0 if interval is None else 3)


def test_the_broker_s_ping_comes_from_its_event_loop(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pinged(turns: int) -> None:
        pinging = asyncio.get_running_loop().create_task(watchdog_ping.ping_forever())
        seen = 0
        while seen < turns:
            assert not pinging.done()
            await asyncio.sleep(0)
            seen += manager.lines().count(["WATCHDOG=1"])
        pinging.cancel()

    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    asyncio.run(pinged(3))
    monkeypatch.setenv("WATCHDOG_USEC", "0")
    asyncio.run(watchdog_ping.ping_forever())
    assert manager.lines() == []


def test_a_manager_that_stands_still_holds_nobody_up(manager: Manager) -> None:
    """What the next message replaces is not waited for."""
    while sd_notify.notify("STATUS=x", patience_s=0.0):
        pass

    def tell() -> None:
        for _ in range(100):
            sd_notify.tell("STATUS=y")

    told = threading.Thread(target=tell, daemon=True)
    told.start()
    told.join(20.0)
    assert not told.is_alive()
    assert manager.lines()[-1] == ["STATUS=x"]

"""Ending the connections of a daemon's clients. Daemon and clients are processes of the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovs_hotswap.controllers.connections import Client, Connections, served
from ovs_hotswap.errors import StateUnknown

UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 11 /var/run/openvswitch/db.sock
0000000000000000: 00000003 00000000 00000000 0001 03 12 /var/run/openvswitch/db.sock
0000000000000000: 00000003 00000000 00000000 0001 03 13
0000000000000000: 00000003 00000000 00000000 0001 03 14 /run/x/br int.mgmt
0000000000000000: 00000003 00000000 00000000 0001 03 15 /run/x/ovs-vswitchd.3.ctl
0000000000000000: 00000003 00000000 00000000 0001 03 16 @/tmp/db.socket
"""
# A child that connects to the path, says so, and ends when the connection does.
CLIENT = """\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print(1, flush=True)
s.recv(1)
"""


def test_only_accepted_connections_for_databases_and_openflow_are_served() -> None:
    assert served(UNIX) == {12: "/var/run/openvswitch/db.sock", 14: "/run/x/br int.mgmt"}


Start = Callable[[str], int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a client with a name, connected to the daemon's ``db.sock``, that does not descend from this process."""
    pids: list[int] = []

    def begin(name: str) -> int:
        program = tmp_path / name
        if not program.exists():
            shutil.copy(os.path.realpath(sys.executable), program)
        said = tmp_path / f"said-{len(pids)}"
        os.mkfifo(said)
        script = 'exec 3>"$4"; "$1" -c "$2" "$3" >&3 & echo $! >&3'
        subprocess.run(["setsid", "--fork", "sh", "-c", script, "sh", program, CLIENT, tmp_path / "db.sock", said],
                       check=True, env={**os.environ, "PYTHONHOME": sys.base_prefix})  # fmt: skip
        with said.open() as lines:
            pids.append(next(pid for pid in (int(lines.readline()), int(lines.readline())) if pid != 1))
        return pids[-1]

    yield begin
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The daemon's listening socket; the daemon is this process."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "db.sock"))
        made.listen()
        made.settimeout(10)
        yield made


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_all_clients_are_dropped_but_switches_own_processes_and_spared_ones(
    tmp_path: Path, start: Start, listener: socket.socket
) -> None:
    path = str(tmp_path / "db.sock")
    controller, spared, switch = start("controller"), start("agent"), start("ovs-vswitchd-dp")
    child = subprocess.Popen([sys.executable, "-c", CLIENT, path], stdout=subprocess.PIPE)
    accepted = [listener.accept()[0] for _ in range(4)]
    daemon = Connections(os.getpid())
    assert {client.program for client in daemon.clients()} >= {"controller", "agent", "ovs-vswitchd-dp"}
    assert daemon.drop(spared={spared}) == (Client(controller, "controller", path),)
    accepted[0].settimeout(10)
    assert accepted[0].recv(1) == b"", "the daemon sees the end of the connection"
    accepted[0].close()
    assert {client.pid for client in daemon.clients()} == {spared, switch, child.pid}
    for each in accepted[1:]:
        each.close()
    child.wait(timeout=10)
    assert daemon.clients() == ()


def test_a_process_that_has_ended_has_no_connections() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for _ in ("a zombie", "nothing"):
        assert Connections(child.pid).clients() == ()
        child.wait()


def test_a_process_that_is_ending_has_no_connections(tmp_path: Path) -> None:
    """It lives still, and has no files and no network namespace any longer."""
    assert Connections(os.getpid(), tmp_path).clients() == ()


def test_what_a_living_process_has_and_does_not_show_is_unknown(tmp_path: Path) -> None:
    (tmp_path / str(os.getpid()) / "net" / "unix").mkdir(parents=True)  # a directory cannot be read as a file
    with pytest.raises(StateUnknown, match=str(os.getpid())):
        Connections(os.getpid(), tmp_path).clients()

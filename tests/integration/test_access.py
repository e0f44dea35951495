"""Who may connect to what: real users against the real sockets. Every directory on the way is open to everybody, so
that it is the sockets' own modes that are tested."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.model import Release, Side
from tests.integration.conftest import MakeConfig, RunInstance
from tests.support.broker_bed import Bed, MakeBed

NOBODY = 65534
GROUP = "daemon"  # it exists on every Debian, and has no members

_ASK = """
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode())
    print(connection.makefile().readline() if sys.argv[2] else "connected")
except PermissionError:
    print("denied")
"""


def ask(path: Path, request: str = "", *, user: int = NOBODY, groups: str = "") -> str:
    """What another user's process gets that connects to ``path``: "denied", "connected", or an answer."""
    keep = ["--groups", groups] if groups else ["--clear-groups"]
    become = ["setpriv", "--reuid", str(user), "--regid", str(NOBODY), *keep]
    done = subprocess.run(
        [*become, sys.executable, "-c", _ASK, str(path), request],
        capture_output=True, text=True, timeout=30, check=True, cwd="/",
    )  # fmt: skip
    return done.stdout.strip()


def open_up(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


@pytest.fixture
def bed(make_bed: MakeBed) -> Bed:
    made = make_bed()
    open_up(made.broker.directory)
    return made


def test_the_control_socket_is_for_root_and_the_group(bed: Bed) -> None:
    path = bed.broker.config.broker_socket
    status = json.dumps({"method": "status"}) + "\n"
    assert ask(path, status) == "denied"
    assert json.loads(ask(path, status, user=0))["result"]["vms"] == 1
    os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)  # what broker.group does
    assert json.loads(ask(path, status, groups=str(grp.getgrnam(GROUP).gr_gid)))["result"]["vms"] == 1
    assert ask(path, status) == "denied"


def test_who_changes_something_is_logged(bed: Bed) -> None:
    bed.client.unpark("vm0", Side.B)
    wanted = f'unpark {{"vm": "vm0", "side": "b"}}: asked by user 0, process {os.getpid()}'
    assert wanted in bed.broker.log.read_text()


def test_switches_and_successors_are_roots(bed: Bed) -> None:
    config = bed.broker.config
    for path in (config.successor_socket, *(config.vhost_socket(side, "vm0") for side in Side)):
        assert ask(path) == "denied"
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_instances_sockets_are_roots(
    make_config: MakeConfig, run_instance: RunInstance, host_release: Release
) -> None:
    config: Config = make_config()
    instance = run_instance(config, Side.A, host_release)
    open_up(config.run_dir.parent)
    sockets = [path for path in instance.paths.run_dir.rglob("*") if path.is_socket()]
    assert {instance.paths.db_socket, instance.paths.vswitchd_ctl, instance.paths.ovsdb_ctl} <= set(sockets)
    assert {path.name: ask(path) for path in sockets} == {path.name: "denied" for path in sockets}

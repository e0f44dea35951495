"""Why a VM's QEMU is not connected: each cause has a text of its own."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from ovs_hotswap.backends import AbsenceCause
from ovs_hotswap.broker.absence import unreachable
from ovs_hotswap.upgrade.collect import calls


def attempt(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> OSError:
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except OSError as error:
            return error
    raise AssertionError("connected")


def test_what_the_kernel_says_of_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    assert unreachable(attempt(Path("none"))).cause is AbsenceCause.NO_SOCKET
    Path("file").touch()
    assert unreachable(attempt(Path("file/vm"))).cause is AbsenceCause.NO_SOCKET
    assert unreachable(attempt(Path("file"))).cause is AbsenceCause.NOBODY_LISTENS
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("vm")
        assert unreachable(attempt(Path("vm"))).cause is AbsenceCause.NOBODY_LISTENS
        assert unreachable(attempt(Path("vm"), socket.SOCK_SEQPACKET)).cause is AbsenceCause.UNREACHABLE
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect("vm")
            assert unreachable(attempt(Path("vm"))).cause is AbsenceCause.BUSY
    assert unreachable(PermissionError(errno.EACCES, "")).cause is AbsenceCause.DENIED
    assert unreachable(OSError(errno.ELOOP, "Too many links")).text == "its socket: Too many links"


@pytest.mark.parametrize(
    ("options", "is_client"),
    [
        ("socket,id=web1,path=/vm/web1.sock,server=on,wait=off", False),
        ("socket,id=web1,path=/vm/web1.sock,server,nowait", False),
        ("socket,id=web1,path=/vm/web1.sock,reconnect=1", True),
        ("socket,id=web1,path=/vm/web10.sock", False),
    ],
)
def test_a_qemu_that_is_itself_a_client(options: str, is_client: bool) -> None:
    assert calls(["qemu-system-x86_64", "-chardev", options], "/vm/web1.sock") is is_client

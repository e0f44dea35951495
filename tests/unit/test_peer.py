"""Whether the two ends of the peer link are connected, from /proc/net/unix."""

from __future__ import annotations

import socket
from pathlib import Path

from ovs_hotswap.switch.memif import has_connection


def table() -> str:
    return Path("/proc/self/net/unix").read_text()


def test_a_connection_is_seen_while_it_lasts(tmp_path: Path) -> None:
    path = str(tmp_path / "peer.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen()
        assert not has_connection(table(), path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(path)
            with server.accept()[0]:
                assert has_connection(table(), path)
                assert not has_connection(table(), path + "x")
        assert not has_connection(table(), path)


def test_a_table_that_is_none() -> None:
    assert not has_connection("", "/x")
    assert not has_connection("Num\nnonsense\n0: 1 2 3", "/x")

"""A descriptor whose closing waits holds nobody up."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ovs_hotswap.vhost.channel import OwnedFd
from ovs_hotswap.vhost.closing import Closer, may_wait
from tests.waiting import eventually

LINGER_S = 20


def lingering() -> tuple[int, socket.socket, socket.socket]:
    """A TCP socket whose last close waits for ``LINGER_S``, its other end, which reads nothing, and the listener."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    reader, _ = listener.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        return sender.detach(), reader, listener


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_a_socket_that_lingers_holds_nobody_up() -> None:
    fd, reader, listener = lingering()
    assert may_wait(fd)
    with reader, listener:
        done = threading.Event()

        def act() -> None:
            OwnedFd(fd).close()
            done.set()

        threading.Thread(target=act, daemon=True).start()
        assert done.wait(LINGER_S / 2)


def test_eventfds_and_memory_are_closed_at_once(tmp_path: Path) -> None:
    for fd in (os.eventfd(0), os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), os.memfd_create("m")):
        assert not may_wait(fd)
        OwnedFd(fd).close()
        assert not is_open(fd)


def test_others_are_closed_aside() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        here, there = os.pipe()
        made = [here, there, os.open(directory, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)]
        assert all(map(may_wait, made))
        for fd in made:
            OwnedFd(fd).close()
        eventually(lambda: not any(map(is_open, made)), "they are closed")


@pytest.mark.parametrize("stuck", [1, 2])
def test_no_more_threads_than_allowed(stuck: int) -> None:
    closer, held = Closer(threads=2), [lingering() for _ in range(stuck)]
    before = threading.active_count()
    try:
        for fd, _, _ in held:
            closer.close(fd)
        plain = [os.eventfd(0) for _ in range(20)]
        for fd in plain:
            closer.close(fd)
        assert threading.active_count() <= before + 2
        if stuck == 1:
            eventually(lambda: not any(map(is_open, plain)), "the others are closed")
        else:
            time.sleep(0.1)
            assert all(map(is_open, plain))  # they wait, and nobody with them
    finally:
        for _, reader, listener in held:
            reader.close()  # a reset ends the lingering
            listener.close()
    eventually(lambda: not any(map(is_open, plain)), "all are closed")

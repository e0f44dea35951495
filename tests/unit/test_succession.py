"""The last words between two brokers, with a process that stands for the old one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from ovs_hotswap.broker.persist import takeover
from ovs_hotswap.broker.persist.takeover import Heir, Inherited, OldBroker, take_over
from ovs_hotswap.errors import BrokerError, StateUnknown


class Scene:
    """An old broker's process and its end of the connection; ``heir`` takes over in a thread."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(self.process.kill)
        self.old, connection = socket.socketpair()
        control, other = socket.socketpair()
        for each in (self.old, control, other):
            stack.enter_context(each)
        self.heir = Heir(connection, OldBroker(self.process.pid), Inherited(control, None, {}))
        self.fault: BrokerError | None = None
        self.thread = threading.Thread(target=self._take_over)
        stack.callback(self.thread.join)
        stack.callback(self.process.kill)

    def _take_over(self) -> None:
        try:
            take_over(self.heir)
        except BrokerError as error:
            self.fault = error

    def ready(self) -> None:
        self.thread.start()
        assert self.old.recv(1) == b"R"


@pytest.fixture
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_who_was_told_to_go_on_waits_for_the_end_of_the_old_one(scene: Scene) -> None:
    scene.ready()
    scene.old.sendall(b"G")
    scene.thread.join(0.2)
    assert scene.thread.is_alive()  # two brokers would be at work
    scene.process.kill()
    scene.thread.join()
    assert scene.fault is None


def test_a_word_that_comes_late_counts(scene: Scene) -> None:
    """The old broker may stand still for any time between the two words: it has given up its VMs, or it has not."""
    scene.ready()
    scene.thread.join(0.2)
    assert scene.thread.is_alive()
    scene.old.sendall(b"G")
    scene.process.kill()
    scene.thread.join()
    assert scene.fault is None


def test_one_that_dies_without_a_word_is_succeeded(scene: Scene) -> None:
    """With what the successor has said still unread, which resets the connection."""
    scene.process.kill()
    scene.process.wait()
    scene.heir.connection.sendall(b"unread")
    scene.old.close()
    scene.thread.start()
    scene.thread.join()
    assert scene.fault is None


def test_one_that_hangs_up_and_lives_goes_on(scene: Scene) -> None:
    scene.ready()
    scene.old.close()
    scene.thread.join()
    assert scene.fault is not None
    assert "it continues" in scene.fault.message


@pytest.mark.parametrize(
    "document",
    [
        b"{", b"\xff", b"[1]", b'"text"', b"[" * 100_000, b'{"format": [1]}', b'{"format": 1}',
        b'{"format": 1, "vms": [{"over": 1}]}', b'{"format": 1, "vms": [{"over": {"name": "a", "processes": []}}]}',
        b'{"format": 1, "vms": [[]]}', b'{"format": 1, "vms": [{"vm": {"name": "a"}, "listeners": []}]}',
    ],
)  # fmt: skip
def test_what_is_no_state_is_refused_as_one(document: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(takeover._LENGTH.pack(len(document), 0) + document)
        with pytest.raises(StateUnknown):
            takeover._receive(ours)

"""The conversation of ``ovs-hotswap --host`` with a host that is silent, slow, or does not keep to it."""

from __future__ import annotations

import os
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from paramiko import Channel

from ovs_hotswap import __version__
from ovs_hotswap.errors import ConnectionLost, RemoteError
from ovs_hotswap.remote.far_end import Link, Lost
from ovs_hotswap.remote.frames import MAGIC, PROTOCOL, Frame, Kind, Request, Size, documented, harmless
from ovs_hotswap.remote.hosts import PROGRAM
from ovs_hotswap.remote.session import Session, Way
from ovs_hotswap.remote.ssh_settings import SshFiles


class Wire:
    """A channel, whose other end is ``there``. What is to be said before the request came is said then."""

    closed = eof_received = False

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self._waits: bytes | None = b""

    def fileno(self) -> int:
        return self.here.fileno()

    def recv_ready(self) -> bool:
        return bool(select.select([self.here], [], [], 0)[0])

    def recv(self, size: int) -> bytes:
        return self.here.recv(size)

    def recv_stderr_ready(self) -> bool:
        return False

    def sendall(self, data: bytes) -> None:
        if data.startswith(Kind.REQUEST.value) and self._waits is not None:
            self.there.sendall(self._waits)
            self._waits = None

    def say(self, *frames: Frame) -> None:
        self.say_bytes(b"".join(frame.encode() for frame in frames))

    def say_bytes(self, data: bytes) -> None:
        if self._waits is None:
            self.there.sendall(data)
        else:
            self._waits += data


class Blind:
    """A screen without a terminal. ``on_show`` is called when something is shown."""

    def __init__(self, on_show: Callable[[], None] = lambda: None) -> None:
        self.on_show = on_show

    def show(self, kind: Kind, data: bytes) -> None:
        self.on_show()

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def job(self, name: str) -> None:
        return

    def keyboard(self) -> None:
        return None

    def typed(self) -> bytes:
        return b""

    def size(self) -> Size:
        return Size()

    def interrupts(self) -> int:
        return 0


JOB = Frame(Kind.JOB, b"20261129-081500-upgrade")
END = Frame(Kind.EXIT, b'{"code": 0}')


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    hello = documented(Kind.HELLO, {"version": __version__, "protocol": PROTOCOL})
    made.there.sendall(MAGIC + hello.encode())
    yield made
    made.here.close()
    made.there.close()


def converse(wire: Wire, screen: Blind, prepare: Callable[[Session], None] = lambda _session: None) -> int:
    session = Session("hv", cast(Channel, wire), Way(PROGRAM, False, SshFiles()), screen)
    prepare(session)
    return session.run(Request(("upgrade",), __version__), changes=True)


def test_a_reader_that_stands_still_does_not_make_the_connection_a_lost_one(wire: Wire) -> None:
    """``ovs-hotswap --host hv overlay show | less``, for an hour."""
    sessions: list[Session] = []

    def an_hour_later() -> None:
        sessions[0]._heard -= 3600
        wire.say(END)

    wire.say(Frame(Kind.OUT, b"text"))
    assert converse(wire, Blind(an_hour_later), sessions.append) == 0


def test_a_host_that_is_silent_is_lost(wire: Wire) -> None:
    sessions: list[Session] = []

    def an_hour_later() -> None:
        sessions[0]._heard -= 3600

    wire.say(JOB, Frame(Kind.OUT, b"text"))
    with pytest.raises(ConnectionLost, match="nothing was heard for 30 s; job 20261129-081500-upgrade continues"):
        converse(wire, Blind(an_hour_later), sessions.append)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (Frame(Kind.JOB, b"x; rm -rf ~").encode(), "it names a job that is none"),
        (Frame(Kind.JOB, b"20261129-081500-upgrade\x1b[2J").encode(), "it names a job that is none"),
        (Frame(Kind.EXIT, b'{"code": 256}').encode(), "the exit code is none"),
        (Frame(Kind.EXIT, b"[" * 100_000).encode(), "the exit code is none"),
        (Frame(Kind.EXIT, b"[]").encode(), "the exit code is none"),
        (b"a line that a library prints\n", "what came is not from ovs-hotswap"),
    ],
)
def test_what_a_host_says_out_of_turn_ends_the_connection_and_not_the_change(
    wire: Wire, said: bytes, cause: str
) -> None:
    """The error is never one that says that nothing began."""
    wire.say_bytes(said)
    with pytest.raises(ConnectionLost, match=f"{cause}; whether the command has begun there is not known"):
        converse(wire, Blind())


@pytest.mark.parametrize("document", [[], "x", {"message": "no\x1b[2J", "hint": "\x1b]0;x\x07`y`"}])
def test_a_fault_changes_nothing_of_the_terminal(wire: Wire, document: object) -> None:
    wire.say(documented(Kind.FAULT, document))
    with pytest.raises(RemoteError) as error:
        converse(wire, Blind())
    assert not re.search(r"[\x00-\x1f]", f"{error.value.message}{error.value.hint}")


def test_colours_are_harmless() -> None:
    assert harmless("\x1b[1;32mgreen\x1b[0m\tand\n") == "\x1b[1;32mgreen\x1b[0m\tand\n"
    assert harmless("\x1b[2Jx\x9b1A\r") == "\ufffd[2Jx\ufffd1A\ufffd"


@pytest.fixture
def link() -> Iterator[tuple[Link, int, int]]:
    """The host's end, and the descriptors with which to write to it and to read from it."""
    (source, to_it), (from_it, target) = os.pipe(), os.pipe()
    yield Link(source, target), to_it, from_it
    for descriptor in (source, to_it, from_it, target):
        os.close(descriptor)


def test_a_host_s_end_that_stood_still_first_reads_what_came(link: tuple[Link, int, int]) -> None:
    end, to_it, _ = link
    end._heard -= 3600
    os.write(to_it, Frame(Kind.PING).encode())
    assert end.turn([], 0) == {end.source}
    assert end.receive() == [Frame(Kind.PING)]
    assert end.turn([], 0) == set()
    end._heard -= 3600
    with pytest.raises(Lost):
        end.turn([], 0)


def test_while_the_last_words_wait_signs_of_life_are_heard(link: tuple[Link, int, int]) -> None:
    """A pager may stand still at the end of a long output."""
    end, to_it, from_it = link
    end.send(Frame(Kind.OUT, bytes(1 << 20)))
    assert end.waits
    end._heard -= 3600
    os.write(to_it, Frame(Kind.PING).encode())
    end.hold()
    assert not select.select([end.source], [], [], 0)[0]
    seen = bytearray()

    def read() -> None:
        while len(seen) < 1 << 20:
            seen.extend(os.read(from_it, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    end.flush_at_end()
    reader.join()
    assert not end.waits

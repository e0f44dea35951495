"""One command on one host, seen from here."""

from __future__ import annotations

import contextlib
import select
import time
from dataclasses import dataclass
from typing import Protocol

from paramiko import Channel, SSHException

from ovs_hotswap import __version__
from ovs_hotswap.errors import ConnectionLost, RemoteError, from_document
from ovs_hotswap.remote.connection import connect
from ovs_hotswap.remote.frames import PING_S, SILENCE_S, Decoder, Frame, Kind, Request, Size, documented, not_ours
from ovs_hotswap.remote.hosts import Destination, remote_command
from ovs_hotswap.remote.ssh_settings import SshFiles
from ovs_hotswap.remote.versions import Fit, Hello, judge

_TURN_S = 0.2  # between two looks for a signal and the size of the terminal
_GREETS_S = 60.0
_READ = 1 << 16
_SHELL_NOT_FOUND = 127  # POSIX, 2.8.2


class Screen(Protocol):
    """Where a session shows what comes, and from where it gets what is typed."""

    def show(self, kind: Kind, data: bytes) -> None:
        """Print bytes of the command, on standard output or error as ``kind`` says."""

    def say(self, text: str) -> None:
        """Print a warning."""

    def job(self, name: str) -> None:
        """Take note of the job that does the work."""

    def keyboard(self) -> int | None:
        """The descriptor from which keys are read; ``None`` if there is none."""

    def typed(self) -> bytes:
        """The keys that were pressed."""

    def size(self) -> Size: ...

    def interrupts(self) -> int:
        """How often the user has pressed Ctrl-C so far."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the program on a host is started."""

    program: str
    sudo: bool
    files: SshFiles


def run(host: str, request: Request, way: Way, screen: Screen, *, changes: bool) -> int:
    """Run one command on a host and return its exit code. ``changes``: whether it changes something.

    Raises RemoteError if nothing was begun, ConnectionLost if the connection was lost later, and KeyboardInterrupt at
    the second Ctrl-C.
    """
    with connect(Destination.parse(host), way.files) as connection:
        channel = connection.execute(remote_command(way.program, sudo=way.sudo))
        with contextlib.closing(channel):
            return _Session(host, channel, way, screen).run(request, changes)


class _Session:
    def __init__(self, host: str, channel: Channel, way: Way, screen: Screen) -> None:
        self._host, self._channel, self._way, self._screen = host, channel, way, screen
        self._decoder = Decoder(magic=True)
        self._raw = b""  # what came before the host's end answered
        self._stderr = b""
        self._greeted = False
        self._job: str | None = None
        self._changes = False
        self._interrupts = 0
        self._size = Size()
        self._heard = self._said = time.monotonic()

    def run(self, request: Request, changes: bool) -> int:
        self._judge(self._hello(), request.arguments, changes)
        self._size, self._changes = request.size, changes
        self._send(request.frame())
        while True:
            for frame in self._turn():
                if frame.kind is Kind.EXIT:
                    return int(frame.document["code"])
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind in {Kind.OUT, Kind.ERR}:
            self._screen.show(frame.kind, frame.payload)
        elif frame.kind is Kind.JOB:
            self._job = frame.payload.decode(errors="replace")
            self._screen.job(self._job)
        elif frame.kind is Kind.FAULT:
            raise from_document(frame.document, RemoteError)

    # -- the beginning

    def _hello(self) -> Hello:
        """Wait for the host's end. Raises RemoteError, which says why it does not answer."""
        end = time.monotonic() + _GREETS_S
        while time.monotonic() < end:
            try:
                frames = self._turn()
            except ConnectionLost:
                raise self._no_answer() from None
            for frame in frames:
                if frame.kind is Kind.HELLO:
                    self._greeted = True
                    return Hello.parse(frame.document)
        raise RemoteError(f"{self._host}: {self._way.program} does not answer in {_GREETS_S:g} s",
                          hint=f"`ssh {self._host} {self._way.program} --version`")  # fmt: skip

    def _no_answer(self) -> RemoteError:
        """Why the command ended without an answer."""
        while self._channel.recv_stderr_ready():
            self._stderr += self._channel.recv_stderr(_READ)
        status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        return why_no_answer(self._host, self._way, status, self._stderr.decode(errors="replace").strip(), self._raw)

    def _judge(self, there: Hello, arguments: tuple[str, ...], changes: bool) -> None:
        """Refuse another version if it matters. Raises RemoteError."""
        fit = judge(__version__, there)
        text = f"{self._host} has ovs-hotswap {there.version}, and this is {__version__}"
        hint = f"install {__version__} there, or {there.version} here; or run the command there: `ssh {self._host}`"
        if fit is Fit.UNFIT:
            raise RemoteError(f"{text}: they do not understand each other", hint=hint)
        if fit is Fit.DIFFERENT and changes:
            raise RemoteError(f"{text}: a command that changes something needs the same version", hint=hint)
        if fit is Fit.DIFFERENT:
            self._screen.say(text)

    # -- the stream

    def _turn(self) -> list[Frame]:
        """Wait a moment, pass on what was typed, and return the frames that have come. Raises ConnectionLost."""
        self._keep_in_touch()
        keyboard = self._screen.keyboard() if self._greeted else None
        sources: list[Channel | int] = [self._channel, *([] if keyboard is None else [keyboard])]
        ready, _, _ = select.select(sources, [], [], _TURN_S)
        if keyboard is not None and keyboard in ready and (typed := self._screen.typed()):
            self._send(Frame(Kind.INPUT, typed))
        while self._channel.recv_stderr_ready():
            self._errors(self._channel.recv_stderr(_READ))
        return self._received() if self._channel in ready else []

    def _received(self) -> list[Frame]:
        if not self._channel.recv_ready() and not self._channel.closed and not self._channel.eof_received:
            return []  # what came was on standard error
        try:
            data = self._channel.recv(_READ)
        except (OSError, SSHException) as error:
            raise self._lost(str(error)) from error
        if not data:
            raise self._lost("it was closed")
        self._heard = time.monotonic()
        if not self._greeted:
            self._raw += data
        try:
            return list(self._decoder.feed(data))
        except RemoteError as error:
            error.message = f"{self._host}: {error.message}"
            raise

    def _errors(self, data: bytes) -> None:
        """Take what was printed beside the frames: by a shell, sudo(8), or a host's end that breaks down."""
        if self._greeted:
            self._screen.show(Kind.ERR, data)
        else:
            self._stderr += data

    def _keep_in_touch(self) -> None:
        """Send signals, the terminal's size, and a sign of life; notice that none comes."""
        pressed = self._screen.interrupts()
        while self._interrupts < pressed:
            self._interrupts += 1
            if self._interrupts > 1 or not self._greeted:
                raise KeyboardInterrupt
            self._send(Frame(Kind.SIGNAL, b"INT"))
        if not self._greeted:
            return
        if (size := self._screen.size()) != self._size:
            self._size = size
            self._send(documented(Kind.SIZE, [size.columns, size.rows]))
        now = time.monotonic()
        if now - self._said > PING_S:
            self._send(Frame(Kind.PING))
        if now - self._heard > SILENCE_S:
            raise self._lost(f"nothing was heard for {SILENCE_S:g} s")

    def _send(self, frame: Frame) -> None:
        self._said = time.monotonic()
        try:
            self._channel.sendall(frame.encode())
        except (OSError, SSHException) as error:
            raise self._lost(str(error)) from error

    def _lost(self, cause: str) -> ConnectionLost:
        return lost(self._host, cause, job=self._job, changes=self._changes)


def lost(host: str, cause: str, *, job: str | None, changes: bool) -> ConnectionLost:
    """The error for a connection that ended before the command did. ``changes``: whether a command was asked for that
    changes something; ``job``: the job that does the work, if the host has said it."""
    text = f"the connection to {host} was lost: {cause or 'it was closed'}"
    if job is not None:
        return ConnectionLost(f"{text}; job {job} continues there", hint=f"`ovs-hotswap --host {host} attach {job}`")
    if changes:
        return ConnectionLost(f"{text}; whether the command has begun there is not known",
                              hint=f"`ovs-hotswap --host {host} job list`")  # fmt: skip
    return ConnectionLost(f"{text}; nothing was being changed there", hint="repeat the command")


def why_no_answer(host: str, way: Way, status: int | None, said: str, raw: bytes) -> RemoteError:
    """The error for a host whose command ended with ``status``, and printed ``said`` and ``raw`` and no answer."""
    last = said.splitlines()[-1] if said else ""
    if way.sudo and any(word in said for word in ("password", "terminal", "not allowed")):
        rule = f"USER ALL=(root) NOPASSWD: {way.program if '/' in way.program else f'/usr/bin/{way.program}'} host-end"
        return RemoteError(f"{host}: sudo does not run {way.program} without asking: {last}",
                           hint=f"allow it there with `visudo`: `{rule}`")  # fmt: skip
    if status == _SHELL_NOT_FOUND or "command not found" in said:
        missing = "sudo" if way.sudo and "sudo" in said and way.program not in said else way.program
        hint = "install ovs-hotswap there, or name its path: --host-program /opt/ovs-hotswap/bin/ovs-hotswap"
        return RemoteError(f"{host}: {missing} is not installed there, or not in PATH: {last}",
                           hint="log in as root, without --sudo" if missing == "sudo" else hint)  # fmt: skip
    if "No such command 'host-end'" in said:
        return RemoteError(f"{host} has an ovs-hotswap that does not know --host",
                           hint=f"install {__version__} there; or run the command there: `ssh {host}`")  # fmt: skip
    if raw:
        error = not_ours(raw)
        return RemoteError(f"{host}: {error.message}", hint=error.hint)
    how = "without an exit code" if status is None else f"with exit code {status}"
    return RemoteError(f"{host}: {way.program} ended {how}: {last or 'it printed nothing'}",
                       hint=f"`ssh {host} {way.program} --version`")  # fmt: skip

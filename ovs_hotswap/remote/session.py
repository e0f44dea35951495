"""One command on one host, seen from here."""

from __future__ import annotations

import contextlib
import select
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from paramiko import Channel, SSHException

from ovs_hotswap import __version__
from ovs_hotswap.errors import ConnectionLost, RemoteError
from ovs_hotswap.remote import jobs
from ovs_hotswap.remote.connection import connect
from ovs_hotswap.remote.frames import (
    PING_S,
    SILENCE_S,
    Decoder,
    Frame,
    Kind,
    Request,
    Size,
    documented,
    fault_in,
    harmless,
    not_ours,
)
from ovs_hotswap.remote.hosts import PROGRAM, Destination, remote_command
from ovs_hotswap.remote.ssh_settings import SshFiles
from ovs_hotswap.remote.versions import Fit, Hello, judge

_TURN_S = 0.2  # between two looks for a signal and the size of the terminal
_GREETS_S = 60.0
_READ = 1 << 16
_KEPT = 1 << 12  # bytes of what comes before the host's end answers
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
    """How the program on a host is started. ``config``: the configuration file there, if it is named."""

    program: str
    sudo: bool
    files: SshFiles
    config: str | None = None

    def again(self, host: str, *words: str) -> str:
        """The command that runs ``words`` on the host in the same way."""
        return shlex.join([
            PROGRAM, "--host", host, *(["--sudo"] if self.sudo else []),
            *([] if self.program == PROGRAM else ["--host-program", self.program]),
            *([] if self.config is None else ["--config", self.config]), *words,
        ])  # fmt: skip

    def continues(self, host: str, job: str) -> str:
        return f"job {job} continues there; `{self.again(host, 'attach', job)}` follows it"


def run(host: str, request: Request, way: Way, screen: Screen, *, changes: bool) -> int:
    """Run one command on a host and return its exit code. ``changes``: whether it changes something.

    Raises RemoteError if nothing was begun, ConnectionLost if the connection was lost later, and KeyboardInterrupt at
    the second Ctrl-C.
    """
    with connect(Destination.parse(host), way.files) as connection:
        channel = connection.execute(remote_command(way.program, sudo=way.sudo))
        with contextlib.closing(channel):
            return Session(host, channel, way, screen).run(request, changes)


class Session:
    """A command on a host, from the greeting of the host's end to the exit code."""

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
        self._heard = time.monotonic()
        self._sending = threading.Lock()

    def run(self, request: Request, changes: bool) -> int:
        self._judge(self._hello(), request.arguments, changes)
        self._size, self._changes = request.size, changes
        self._screen.keyboard()  # from here on Ctrl-C is for the command there
        with self._pulse():
            self._send(request.frame())
            while True:
                for frame in self._turn():
                    if frame.kind is Kind.EXIT:
                        return self._exit_code(frame)
                    self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.kind in {Kind.OUT, Kind.ERR}:
            self._screen.show(frame.kind, frame.payload)
        elif frame.kind is Kind.JOB:
            name = frame.payload.decode(errors="replace")
            if not jobs.is_id(name):  # it becomes a part of commands that people type
                raise self._lost("it names a job that is none")
            self._job = name
            self._screen.job(name)
        elif frame.kind is Kind.FAULT:
            raise fault_in(frame)

    def _exit_code(self, frame: Frame) -> int:
        with contextlib.suppress(RemoteError):
            match frame.document:
                case {"code": int(code)} if 0 <= code < 256:
                    return code
        raise self._lost("the exit code is none")

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
                          hint=f"`{_by_ssh(self._host, self._way.program, '--version')}`")  # fmt: skip

    def _no_answer(self) -> RemoteError:
        """Why the command ended without an answer."""
        while self._channel.recv_stderr_ready():
            self._errors(self._channel.recv_stderr(_READ))
        status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        return why_no_answer(self._host, self._way, status, self._stderr.decode(errors="replace").strip(), self._raw)

    def _judge(self, there: Hello, arguments: tuple[str, ...], changes: bool) -> None:
        """Refuse another version if it matters. Raises RemoteError."""
        fit = judge(__version__, there)
        text = f"{self._host} has ovs-hotswap {there.version}, and this is {__version__}"
        hint = (
            f"install {__version__} there, or {there.version} here; or run the command there: `{_by_ssh(self._host)}`"
        )
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
        if self._channel in ready:
            return self._received()
        # Not before: what is shown may have waited for its reader, such as a pager, and much may have come since.
        if self._greeted and time.monotonic() - self._heard > SILENCE_S:
            raise self._lost(f"nothing was heard for {SILENCE_S:g} s")
        return []

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
            self._raw = (self._raw + data)[:_KEPT]
        try:
            return list(self._decoder.feed(data))
        except RemoteError as error:
            if self._greeted:
                raise self._lost("what came is not from ovs-hotswap") from error
            error.message = f"{self._host}: {error.message}"
            raise

    def _errors(self, data: bytes) -> None:
        """Take what was printed beside the frames: by a shell, sudo(8), or a host's end that breaks down."""
        if self._greeted:
            self._screen.show(Kind.ERR, data)
        else:
            self._stderr = (self._stderr + data)[-_KEPT:]

    def _keep_in_touch(self) -> None:
        """Send signals and the terminal's size."""
        pressed = self._screen.interrupts()
        while self._interrupts < pressed:
            self._interrupts += 1
            if self._interrupts > 1 or not self._greeted:
                raise KeyboardInterrupt
            self._send(Frame(Kind.SIGNAL, b"INT"))
        if self._greeted and (size := self._screen.size()) != self._size:
            self._size = size
            self._send(documented(Kind.SIZE, [size.columns, size.rows]))

    @contextlib.contextmanager
    def _pulse(self) -> Iterator[None]:
        """Send signs of life, also while what is shown waits for its reader."""
        end = threading.Event()

        def beat() -> None:
            with contextlib.suppress(ConnectionLost):
                while not end.wait(PING_S):
                    self._send(Frame(Kind.PING))

        threading.Thread(target=beat, name="pulse", daemon=True).start()
        try:
            yield
        finally:
            end.set()

    def _send(self, frame: Frame) -> None:
        try:
            with self._sending:
                self._channel.sendall(frame.encode())
        except (OSError, SSHException) as error:
            raise self._lost(str(error)) from error

    def _lost(self, cause: str) -> ConnectionLost:
        return lost(self._host, cause, self._way, job=self._job, changes=self._changes)


def lost(host: str, cause: str, way: Way, *, job: str | None, changes: bool) -> ConnectionLost:
    """The error for a connection that ended before the command did. ``changes``: whether a command was asked for that
    changes something; ``job``: the job that does the work, if the host has said it."""
    text = f"the connection to {host} was lost: {cause or 'it was closed'}"
    if job is not None:
        return ConnectionLost(f"{text}; job {job} continues there", hint=f"`{way.again(host, 'attach', job)}`")
    if changes:
        return ConnectionLost(f"{text}; whether the command has begun there is not known",
                              hint=f"`{way.again(host, 'job', 'list')}`")  # fmt: skip
    return ConnectionLost(f"{text}; nothing was being changed there", hint="repeat the command")


def why_no_answer(host: str, way: Way, status: int | None, said: str, raw: bytes) -> RemoteError:
    """The error for a host whose command ended with ``status``, and printed ``said`` and ``raw`` and no answer."""
    said = harmless(said)
    last = said.splitlines()[-1] if said else ""
    absent = status == _SHELL_NOT_FOUND or "command not found" in said.lower()
    ours = any(line.startswith(("error:", "Traceback")) for line in said.splitlines())
    if way.sudo and status == 1 and not (absent or ours or raw):  # sudo(8) may speak any language
        rule = f"USER ALL=(root) NOPASSWD: {way.program if '/' in way.program else f'/usr/bin/{way.program}'} host-end"
        return RemoteError(f"{host}: sudo does not run {way.program} without asking: {last}",
                           hint=f"allow it there with `visudo`: `{rule}`")  # fmt: skip
    if absent:
        missing = "sudo" if way.sudo and "sudo" in said and way.program not in said else way.program
        hint = "install ovs-hotswap there, or name its path: --host-program /opt/ovs-hotswap/bin/ovs-hotswap"
        return RemoteError(f"{host}: {missing} is not installed there, or not in PATH: {last}",
                           hint="log in as root, without --sudo" if missing == "sudo" else hint)  # fmt: skip
    if "No such command 'host-end'" in said:
        return RemoteError(
            f"{host} has an ovs-hotswap that does not know --host",
            hint=f"install {__version__} there, or run the command there: `{_by_ssh(host)}`",
        )
    if raw:
        error = not_ours(raw)
        return RemoteError(f"{host}: {error.message}", hint=error.hint)
    how = "without an exit code" if status is None else f"with exit code {status}"
    return RemoteError(f"{host}: {way.program} ended {how}: {last or 'it printed nothing'}",
                       hint=f"`{_by_ssh(host, way.program, '--version')}`")  # fmt: skip


def _by_ssh(host: str, *words: str) -> str:
    return shlex.join(["ssh", Destination.parse(host).for_ssh, *words])

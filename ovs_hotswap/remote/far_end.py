"""The host's end of ``ovs-hotswap --host``: runs one command, on a terminal if there is one at the other end.

What changes something is a job, and the command that runs here only follows it. So if the connection is lost, this
process ends what it runs, and the work continues.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ovs_hotswap import __version__
from ovs_hotswap.errors import HotswapError, RemoteError, to_document
from ovs_hotswap.remote.frames import (
    MAGIC,
    PING_S,
    PROTOCOL,
    SILENCE_S,
    Decoder,
    Frame,
    Kind,
    Request,
    Size,
    documented,
    in_pieces,
)  # fmt: skip

_READ = 1 << 16
_HELD_MAX = 1 << 18  # bytes that wait for the connection; then the command waits, too
_SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
_ENDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: the arguments of this program. ``job``: the id of the job that they follow, if it is one."""

    arguments: Sequence[str]
    job: str | None = None


def serve(prepare: Callable[[Request], Task]) -> None:
    """Speak with the other end over standard input and output until its command has ended, or the connection has."""
    link = Link(0, 1)
    try:
        try:
            request = link.greet()
            task = prepare(request)
        except HotswapError as error:
            link.send(documented(Kind.FAULT, to_document(error)))
            link.flush_at_end()
            return
        if task.job is not None:
            link.send(Frame(Kind.JOB, task.job.encode()))
        _Work(link, request, task.arguments).run()
    except Lost:
        return


class Lost(Exception):
    """The connection was lost."""


class Link:
    """The frames on two descriptors. What is sent waits in memory until the connection takes it."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._decoder = Decoder(magic=False)
        self._held = bytearray(MAGIC)
        self._heard = self._said = time.monotonic()
        for descriptor in (source, target):
            os.set_blocking(descriptor, False)
        self.send(documented(Kind.HELLO, {"version": __version__, "protocol": PROTOCOL}))

    @property
    def full(self) -> bool:
        return len(self._held) > _HELD_MAX

    @property
    def waits(self) -> bool:
        return bool(self._held)

    def send(self, frame: Frame) -> None:
        self._said = time.monotonic()
        self._held += frame.encode()
        self.flush()

    def flush(self) -> None:
        """Write what the connection takes. Raises Lost."""
        while self._held:
            try:
                del self._held[: os.write(self.target, self._held)]
            except BlockingIOError:
                return
            except OSError as error:
                raise Lost from error

    def flush_at_end(self) -> None:
        while self._held:
            self.hold()

    def hold(self) -> None:
        """Wait a moment for the connection to take what waits. What comes is of no interest any longer. Raises Lost."""
        if self.source in self.turn([], 1.0):
            self.receive()

    def receive(self) -> list[Frame]:
        """The frames that have come. Raises Lost if there will be none any longer."""
        try:
            data = os.read(self.source, _READ)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Lost from error
        if not data:
            raise Lost
        self._heard = time.monotonic()
        try:
            return list(self._decoder.feed(data))
        except RemoteError as error:
            raise Lost from error

    def turn(self, sources: Sequence[int], seconds: float) -> set[int]:
        """Wait until a source, or this connection, can be read; write what waits. Raises Lost after a long silence."""
        if time.monotonic() - self._said > PING_S:
            self.send(Frame(Kind.PING))
        ready, writable, _ = select.select([self.source, *sources], [self.target] if self._held else [], [], seconds)
        if writable:
            self.flush()
        # Not before: this process may have stood still, and much may have come since.
        if self.source not in ready and time.monotonic() - self._heard > SILENCE_S:
            raise Lost
        return set(ready)

    def greet(self) -> Request:
        """Wait for the request. Raises Lost, RemoteError."""
        while True:
            if self.source in self.turn([], 1.0):
                for frame in self.receive():
                    if frame.kind is Kind.REQUEST:
                        return Request.parse(frame)


class _Work:
    """A command that runs in a session of its own, with a terminal if the request has one. Besides what it prints, it
    says through a pipe which job it starts or follows."""

    def __init__(self, link: Link, request: Request, arguments: Sequence[str]) -> None:
        self._link, self._request = link, request
        self._outputs: dict[int, Kind] = {}  # our ends of what the command prints on
        self._terminal: int | None = None
        self._typed = bytearray()
        self._pid = self._start(arguments)
        self._pidfd = os.pidfd_open(self._pid)

    def run(self) -> None:
        """Pass everything on until the command has ended. Raises Lost."""
        try:
            while not self._turn():
                pass
            self._drain()
            self._link.send(documented(Kind.EXIT, {"code": self._exit_code()}))
            self._link.flush_at_end()
        finally:
            self._end()

    def _turn(self) -> bool:
        """Pass on what there is; return whether the command has ended."""
        sources = [] if self._link.full else list(self._outputs)
        ready = self._link.turn([*sources, self._pidfd], 1.0)
        if self._link.source in ready:
            for frame in self._link.receive():
                self._take(frame)
        self._type()
        for descriptor in [each for each in self._outputs if each in ready]:
            self._pass_on(descriptor)
        return self._pidfd in ready

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.SIGNAL:
            number = _SIGNALS.get(frame.payload.decode(errors="replace"))
            if number is not None:
                self._signal(number)
        elif frame.kind is Kind.INPUT:
            self._typed += frame.payload
        elif frame.kind is Kind.SIZE and self._terminal is not None:
            columns, rows = frame.document
            _resize(self._terminal, Size(int(columns), int(rows)))

    def _type(self) -> None:
        if self._typed and self._terminal is not None:
            with contextlib.suppress(BlockingIOError, OSError):
                del self._typed[: os.write(self._terminal, self._typed)]

    def _pass_on(self, descriptor: int) -> bool:
        """Send what the command has printed; return whether there may be more."""
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says whose other end is closed: pty(7)
                raise
            data = b""
        if not data:
            self._close(descriptor)
            return False
        for frame in in_pieces(self._outputs[descriptor], data):
            self._link.send(frame)
        return True

    def _drain(self) -> None:
        """Send what is left in the pipes of a command that has ended; another process may keep them open."""
        for descriptor in list(self._outputs):
            while self._pass_on(descriptor):
                while self._link.full:
                    self._link.hold()

    def _close(self, descriptor: int) -> None:
        del self._outputs[descriptor]
        os.close(descriptor)
        if descriptor == self._terminal:
            self._terminal = None

    def _start(self, arguments: Sequence[str]) -> int:
        """Start the command. Its arguments are in a file in memory, and not in the list of processes."""
        request = os.memfd_create("arguments", 0)
        os.write(request, json.dumps(list(arguments)).encode())
        job = self._pipe(Kind.JOB)  # the first of the outputs: it is known before anything is shown
        streams = self._streams()
        program = [sys.executable, "-P", "-m", "ovs_hotswap", "host-command", str(request), str(job)]
        environment = {**os.environ, **self._request.environment}
        pid = os.fork()
        if pid == 0:
            _become(program, environment, streams, (request, job), tty=self._request.terminals.index(True)
                    if any(self._request.terminals) else None)  # fmt: skip
        for descriptor in {*streams, request, job}:
            os.close(descriptor)
        return pid

    def _streams(self) -> tuple[int, int, int]:
        """The command's standard streams: the terminal, or else nothing, a pipe and a pipe."""
        wanted = self._request.terminals
        slave = -1
        if any(wanted):
            self._terminal, slave = os.openpty()
            os.set_blocking(self._terminal, False)
            _resize(self._terminal, self._request.size)
            _no_suspend(slave)
            self._outputs[self._terminal] = Kind.OUT if wanted[1] else Kind.ERR
        given = [slave if wanted[0] else os.open(os.devnull, os.O_RDONLY)]
        for is_terminal, kind in zip(wanted[1:], (Kind.OUT, Kind.ERR), strict=True):
            if is_terminal:
                given.append(slave)
                continue
            given.append(self._pipe(kind))
        return given[0], given[1], given[2]

    def _pipe(self, kind: Kind) -> int:
        """Return the command's end of a pipe whose contents are passed on as ``kind``."""
        ours, its = os.pipe()
        os.set_blocking(ours, False)
        self._outputs[ours] = kind
        return its

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, number)

    def _exit_code(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._pid = 0
        return code if code >= 0 else 128 - code

    def _end(self) -> None:
        """End the command if the connection was lost. A job that it follows is not ended."""
        if not self._pid:
            return
        for number in (signal.SIGHUP, signal.SIGKILL):
            self._signal(number)
            if select.select([self._pidfd], [], [], _ENDS_S)[0]:
                break
        os.waitpid(self._pid, 0)


def _become(
    program: list[str], environment: dict[str, str], streams: Sequence[int], kept: Sequence[int], *, tty: int | None
) -> None:
    """Become the command, in a child process. ``kept``: other descriptors that it needs; ``tty``: the number of the
    stream that is its terminal. Never returns."""
    try:
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        if tty is not None:
            fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        os.execve(program[0], program, environment)
    finally:
        os._exit(127)


def _resize(terminal: int, size: Size) -> None:
    """Set a terminal's size; its processes get SIGWINCH (ioctl_tty(2))."""
    with contextlib.suppress(OSError, struct.error):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _no_suspend(terminal: int) -> None:
    """Have Ctrl-Z do nothing: nothing there could continue the command."""
    attributes = termios.tcgetattr(terminal)
    attributes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def arguments_of(descriptor: int) -> list[str]:
    """Read the arguments that ``_Work`` left in a file. Raises RemoteError."""
    try:
        with open(descriptor, "rb") as file:
            file.seek(0)
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise RemoteError(f"descriptor {descriptor} has no arguments: this command is not for people") from error
    return [str(word) for word in found]


def job_sender(descriptor: int) -> Callable[[str], None]:
    """Return what sends the id of a job, once, through the descriptor that ``_Work`` left for it. No other process gets
    that descriptor. Raises RemoteError."""
    try:
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise RemoteError(f"descriptor {descriptor} is not open: this command is not for people") from error
    sent: list[str] = []

    def send(job: str) -> None:
        if not sent:
            sent.append(job)
            with contextlib.suppress(OSError):  # the other end is gone, and this process will be
                os.write(descriptor, job.encode())

    return send

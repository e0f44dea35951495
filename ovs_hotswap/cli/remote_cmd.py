"""Running a command on other hosts: on one as if it ran here, on several side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

import click

from ovs_hotswap import __version__
from ovs_hotswap.cli.app import App, Effect, effect_of
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.remote import connection, session
from ovs_hotswap.remote.frames import PASSED_ON, Kind, Request, Size
from ovs_hotswap.remote.hosts import Destination, listed
from ovs_hotswap.remote.ssh_settings import SshFiles

_READ = 4096


def run_there(app: App, root: click.Group, arguments: Sequence[str]) -> int:
    """Run ``arguments`` on the hosts that were named, and return the exit code. Raises HotswapError if there is one
    host, and nothing could begin there."""
    hosts = [*app.remote.hosts, *_hosts_in_file(app)]
    hosts = list(dict.fromkeys(hosts))
    if not hosts:
        raise ConfigError(f"{app.remote.hosts_file} names no host", hint="write one on each line")
    for host in hosts:
        Destination.parse(host)
    connection.silence(debug=app.debug)
    way = session.Way(app.remote.program, app.remote.sudo, SshFiles(), app.remote.config)
    changes = effect_of(root, arguments) is not Effect.READS
    words = (*global_options(app), *arguments)
    if len(hosts) == 1:
        return _run_on_one(app, hosts[0], words, way, changes)
    from ovs_hotswap.cli.fleet_cmd import run_on_several

    return run_on_several(app, hosts, Request(words, __version__, environment=_environment()), way, changes)


def global_options(app: App) -> list[str]:
    """The options that stand before the command, for the program there."""
    config = [] if app.remote.config is None else ["--config", app.remote.config]
    return [*config, *(["--json"] if app.output.json else []), *(["--debug"] if app.debug else [])]


def _hosts_in_file(app: App) -> list[str]:
    file = app.remote.hosts_file
    return [] if file is None else listed(file.read_text(errors="replace"))


def _environment() -> dict[str, str]:
    return {key: os.environ[key] for key in PASSED_ON if key in os.environ}


def _run_on_one(app: App, host: str, words: tuple[str, ...], way: session.Way, changes: bool) -> int:
    with Terminal(app.output, changes) as screen:
        request = Request(words, __version__, screen.terminals, screen.size(), _environment())
        try:
            code = session.run(host, request, way, screen, changes=changes)
        except _Unread:
            return 0  # the caller makes of it what it makes of a command here whose output is not read
        except KeyboardInterrupt:
            if screen.job_id is not None:
                screen.say(way.continues(host, screen.job_id))
            raise
    app.output.done = code == 0
    return code


class _Unread(Exception):
    """Standard output cannot be written any longer, so a command that only shows something need not continue."""


class Terminal:
    """The standard streams as the screen of a session. While it is entered, keys are passed on as they are pressed.

    ``changes``: whether the command changes something. One that only reads asks nothing, so the keys are left to the
    program that its output goes to, such as a pager.
    """

    def __init__(self, output: Output, changes: bool) -> None:
        self._output, self._changes = output, changes
        self._interrupts = 0
        self._begun = False
        self._before: list[tuple[int, object]] = []
        self._attributes: list[object] | None = None
        self.job_id: str | None = None
        self.terminals = (_is_terminal(sys.stdin), output.out.isatty(), output.err.isatty())

    def __enter__(self) -> Terminal:
        for number, handler in ((signal.SIGINT, self._on_signal), (signal.SIGTERM, _end)):
            self._before.append((number, signal.signal(number, handler)))
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned
        if self._attributes is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._attributes)  # type: ignore[arg-type]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._begun:
            raise KeyboardInterrupt
        self._interrupts += 1

    def show(self, kind: Kind, data: bytes) -> None:
        sink = self._output.out if kind is Kind.OUT else self._output.err
        sink.write_bytes(data)
        if self.job_id is None and self._output.out.fault is not None:
            raise _Unread

    def say(self, text: str) -> None:
        self._output.warning(text)

    def job(self, name: str) -> None:
        self.job_id = name

    def keyboard(self) -> int | None:
        """From the first call on, which is when the command begins, keys are not interpreted here."""
        self._begun = True
        on_terminal, out, err = self.terminals
        if not on_terminal or not (out or self._changes):
            return None
        if self._attributes is None:
            self._attributes = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
            if not (out and err):  # the ends of lines that come by a pipe, as of `| tee`, are those of a pipe
                raw = termios.tcgetattr(0)
                raw[tty.OFLAG] |= termios.OPOST
                termios.tcsetattr(0, termios.TCSADRAIN, raw)
        return 0

    def typed(self) -> bytes:
        return os.read(0, _READ)

    def size(self) -> Size:
        for number, is_terminal in enumerate(self.terminals):
            if is_terminal:
                with contextlib.suppress(OSError):
                    return Size(*os.get_terminal_size(number))
        return Size()

    def interrupts(self) -> int:
        return self._interrupts


def _end(number: int, _frame: FrameType | None) -> None:
    """End at SIGTERM, and not before the terminal is as it was."""
    sys.exit(128 + number)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()

"""What a command that runs in the foreground as a daemon logs, and where."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from ovs_hotswap.cli.sink import ATOMIC, writable
from ovs_hotswap.system import files

LIMIT = 16 << 20  # bytes, after which a log is renamed; so it takes about twice that
HELD = 1 << 18  # bytes that wait for a reader

log_level = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
log_file = click.option(
    "--log-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="standard error",
    help=f"Log to FILE; above {LIMIT >> 20} MiB it is renamed to FILE.1.",
)


class PatientLog(logging.Handler):
    """Logs to ``descriptor`` and never waits for who reads there: a journal, a pipe or a terminal that stands still
    must not hold a failover up. What cannot be written at once comes before what is logged next; beyond ``HELD`` bytes
    of it messages are left out, and counted."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._held = bytearray()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - of who logs, and what tells of it may wait
            text = f"{record.msg!r} cannot be logged: {error}"
        self.flush()
        if len(self._held) >= HELD:
            self._left_out += 1
            return
        if self._left_out:
            text = f"{self._left_out} messages were left out, because they were not read\n{text}"
            self._left_out = 0
        self._held += f"{text}\n".encode(errors="backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Write as much as there is room for."""
        try:
            while self._held and writable(self._descriptor):
                del self._held[: os.write(self._descriptor, self._held[:ATOMIC])]
        except OSError:  # the reader has gone, or the disk is full
            self._held.clear()


class FileLog(logging.StreamHandler[TextIO]):
    """Logs to the end of ``path`` by way of ``streams``, which have it open: what a process says when it crashes is in
    it as well, and what a process says that it starts.

    Processes may share the file. Whichever sees it longer than ``limit`` bytes renames it, and each opens the new one
    before it logs the next time; until then it writes to the end of the renamed one. So nothing is lost.
    """

    def __init__(self, path: Path, streams: Sequence[TextIO], limit: int = LIMIT) -> None:
        """Raises HostError."""
        super().__init__(streams[0])
        self._path, self._streams, self._limit = path, streams, limit
        with files(path):
            self._renew()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the log stays where it is, and this is tried again
            self._renew()
        super().emit(record)

    def _renew(self) -> None:
        """Have the file open, and not too long. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            found = self._path.stat()
            if found.st_size > self._limit:
                self._rename()
            elif all(os.path.samestat(found, os.fstat(stream.fileno())) for stream in self._streams):
                return
        with self._path.open("ab") as log:
            for stream in self._streams:
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())

    def _rename(self) -> None:
        """Unless another process does, or has just done so."""
        with self._path.open("rb") as log:  # not the one that others have inherited, who would have the lock as well
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            found = os.fstat(log.fileno())
            if found.st_size > self._limit and os.path.samestat(found, self._path.stat()):
                self._path.rename(self._path.with_name(f"{self._path.name}.1"))


def start_log(level: str, file: Path | None = None) -> None:
    """Log to ``file``, or else to the standard error, from ``level`` on. Raises HostError."""
    streams = [_open(sys.stderr, 2), _open(sys.stdout, 1)]
    handler = PatientLog(streams[0].fileno()) if file is None else FileLog(file, streams)
    logging.basicConfig(
        level=level.upper(), handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _open(stream: TextIO | None, descriptor: int) -> TextIO:
    """A standard stream; if it was closed before this program began, there is a descriptor in its place by now."""
    return stream or open(descriptor, "w", closefd=False)

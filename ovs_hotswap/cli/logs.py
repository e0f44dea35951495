"""The log of a command that runs as a daemon in the foreground."""

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

LIMIT = 16 << 20  # bytes, after which a log is renamed; so the two files take about twice as much
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
    """Logs to ``descriptor`` and never waits for its reader: a journal, a pipe or a terminal that stands still must not
    hold up a failover. Text that cannot be written at once is written before the next message. While more than ``HELD``
    bytes wait, messages are left out and counted."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._held = bytearray()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - a fault of the caller; `handleError` might wait for a reader
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
        """Write as much as can be written without waiting."""
        try:
            while self._held and writable(self._descriptor):
                del self._held[: os.write(self._descriptor, self._held[:ATOMIC])]
        except OSError:  # the reader has gone, or the disk is full
            self._held.clear()


class FileLog(logging.StreamHandler[TextIO]):
    """Logs to the end of ``path`` through ``streams``, which have the file open. So the file also has the last output
    of a process that crashes, and the output of the processes that it starts.

    Processes may share the file. A process that finds it longer than ``limit`` bytes renames it. Each process opens the
    new file before its next message, and until then writes to the end of the renamed one. So no message is lost.
    """

    def __init__(self, path: Path, streams: Sequence[TextIO], limit: int = LIMIT) -> None:
        """Open the file. Raises HostError."""
        super().__init__(streams[0])
        self._path, self._streams, self._limit = path, streams, limit
        with files(path):
            self._renew()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the log stays where it is, and the next message tries it again
            self._renew()
        super().emit(record)

    def _renew(self) -> None:
        """Open the file if the streams do not have it open, and rename it before if it is too long. Raises OSError."""
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
        """Rename the file, unless another process does so or has just done so."""
        with self._path.open("rb") as log:  # child processes inherit the streams, and would hold a lock on these, too
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            found = os.fstat(log.fileno())
            if found.st_size > self._limit and os.path.samestat(found, self._path.stat()):
                self._path.rename(self._path.with_name(f"{self._path.name}.1"))


def start_log(level: str, file: Path | None = None) -> None:
    """Log messages of ``level`` and above to ``file``, or to standard error without one. Raises HostError."""
    streams = [_open(sys.stderr, 2), _open(sys.stdout, 1)]
    handler: logging.Handler
    if file is not None:
        handler = FileLog(file, streams)
    elif sys.stderr is not None and not _is_file(sys.stderr):  # that of a job, which never waits
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = PatientLog(streams[0].fileno())
    logging.basicConfig(
        level=level.upper(), handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _open(stream: TextIO | None, descriptor: int) -> TextIO:
    """A standard stream that is a file. If it was closed before this program began, ``main`` has opened another file in
    its place; that of a job is none."""
    return stream if stream is not None and _is_file(stream) else open(descriptor, "w", closefd=False)


def _is_file(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True

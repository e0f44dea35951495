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

from ovs_hotswap.system import files

LIMIT = 16 << 20  # bytes, after which a log is renamed; so it takes about twice that

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
        with contextlib.suppress(OSError):  # it goes on where it is, and this is tried again
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
    handler = logging.StreamHandler(sys.stderr) if file is None else FileLog(file, [sys.stderr, sys.stdout])
    logging.basicConfig(
        level=level.upper(), handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

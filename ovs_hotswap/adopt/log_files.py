"""The log of a running ovs-vswitchd as a file that grows, is renamed and is compressed (logrotate(8))."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from ovs_hotswap.adopt.log_reader import RECONNECT, Logged, Since, joined, messages_since, read_connection
from ovs_hotswap.adopt.snapshot import LogMark
from ovs_hotswap.errors import StateUnknown, TryAgain

_OLDER = 8  # rotated files that are looked into
_MOST = 64 << 20  # bytes of one rotated file
_BLOCK = 1 << 20


def mark(path: Path) -> LogMark:
    """Return the end of the log's last whole line. Raises StateUnknown if the log cannot be read."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            return LogMark(
                path=path, device=found.st_dev, inode=found.st_ino, offset=_whole(file.fileno(), found.st_size)
            )
    except OSError as error:
        raise _unreadable(path, error) from error


def connection(until: LogMark, socket: Path) -> Logged:
    """Return what was sent on the last connection over ``socket``, as far as it was logged before the mark.

    Rotated files are read as well, if the connection is that old. Raises TryAgain if the file with the mark is another
    one, and StateUnknown (``read_connection``).
    """
    try:
        return read_connection(_text(until, f"({socket}) new device, handle is ".encode()), str(socket))
    except OSError as error:
        raise _unreadable(until.path, error) from error


def since(begin: LogMark, socket: Path) -> Since:
    """Return what was logged about the connection behind the mark. Raises TryAgain if the file is another one, and
    StateUnknown if it cannot be read."""
    try:
        with begin.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_dev, found.st_ino) != (begin.device, begin.inode) or found.st_size < begin.offset:
                raise TryAgain(f"{begin.path} was rotated in the meantime")
            file.seek(begin.offset)
            return messages_since(file.read().decode(errors="replace"), str(socket))
    except OSError as error:
        raise _unreadable(begin.path, error) from error


def _whole(fd: int, size: int) -> int:
    """Return the place behind the last line end before ``size``."""
    while size > 0:
        start = max(0, size - 4096)
        block = os.pread(fd, size - start, start)
        if (at := block.rfind(b"\n")) >= 0:
            return start + at + 1
        size = start
    return 0


def _text(until: LogMark, beginning: bytes) -> str:
    """Return the log from the last line that has ``beginning`` in it, or from as far back as there are files."""
    with until.path.open("rb") as file:
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino) != (until.device, until.inode) or found.st_size < until.offset:
            raise TryAgain(f"{until.path} was rotated in the meantime")
        newest = _from(file.fileno(), until.offset, beginning)
    if beginning.decode() in newest:
        return newest
    pieces = [newest]
    for older in _older(until.path):
        pieces.insert(0, older)
        if beginning.decode() in older:
            break
    return joined(pieces)


def _from(fd: int, size: int, beginning: bytes) -> str:
    """Return what is before ``size``, from the last line that has ``beginning`` in it, or else all of it.

    The file is read, not mapped: the kernel would kill this process if the file was cut short (SIGBUS).
    """
    blocks: list[bytes] = []
    start, overlap = size, b""
    while start > 0:
        step = min(start, _BLOCK)
        start -= step
        block = os.pread(fd, step, start)
        blocks.insert(0, block)
        at = (block + overlap).rfind(beginning)
        if at >= 0 and ((line := block.rfind(b"\n", 0, at)) >= 0 or start == 0):
            blocks[0] = block[line + 1 :]
            break
        overlap = block[: len(beginning)] if at < 0 else block[: at + len(beginning)]
    return b"".join(blocks).decode(errors="replace")


def _older(path: Path) -> Iterator[str]:
    """Yield the contents of rotated files, from the newest to the oldest. They are called after the log, with a number
    or a date, and may be packed (logrotate.conf(5), ``dateext`` and ``compress``)."""
    found = [(each.stat().st_mtime_ns, each) for each in path.parent.glob(f"{path.name}[.-]*") if each.is_file()]
    for _, each in sorted(found, reverse=True)[:_OLDER]:
        if each.suffix != ".gz":
            yield each.read_bytes().decode(errors="replace")
            continue
        try:
            with gzip.open(each) as file:
                yield file.read(_MOST).decode(errors="replace")
        except (EOFError, zlib.error) as error:
            raise StateUnknown(f"{each} is damaged: {error}", hint=RECONNECT) from error


def _unreadable(path: Path, error: OSError) -> StateUnknown:
    return StateUnknown(
        f"{path}: {error.strerror or error}", hint="`ovs-appctl vlog/list` says whether there is a log file"
    )

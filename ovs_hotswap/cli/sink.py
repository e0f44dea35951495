"""A stream to print on that never fails: what a command does must not depend on the reader of its output."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
from typing import TextIO

ATOMIC = select.PIPE_BUF  # bytes for which a pipe has room if poll(2) reports any room (pipe(7))


def writable(descriptor: int) -> bool:
    """Whether writing ``ATOMIC`` bytes succeeds or fails at once, without waiting for a reader."""
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(0))


class Sink(io.TextIOBase):
    """Writes to ``stream``, which may be ``None`` if it was closed before the program began. A character that the
    stream's encoding lacks is written as its code. After the first OSError, which is kept as ``fault``, nothing more is
    written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.fault: OSError | None = None if stream is not None else OSError(errno.EBADF, os.strerror(errno.EBADF))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def takes(self, text: str) -> bool:
        """Whether ``text`` can be written without waiting for a reader."""
        if self._stream is None or self.fault is not None:
            return True
        try:
            return 4 * len(text) <= ATOMIC and writable(self.fileno())
        except (OSError, ValueError):  # the stream is not a file
            return True

    def write(self, text: str, /) -> int:
        if self.fault is None and self._stream is not None:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except OSError as error:
                self._give_up(error)
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write and flush bytes that another process has encoded."""
        below = getattr(self._stream, "buffer", None)
        if below is None:  # the stream takes text alone
            self.write(data.decode(self.encoding, "replace"))
        elif self.fault is None:
            self.flush()
            try:
                below.write(data)
                below.flush()
            except OSError as error:
                self._give_up(error)

    def flush(self) -> None:
        if self.fault is None and self._stream is not None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Discard buffered output. Otherwise the interpreter would fail to write it at its exit, and end with a status
        of its own."""
        self.fault = error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.dup2(nowhere, self.fileno())
            finally:
                os.close(nowhere)

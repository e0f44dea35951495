"""The socket at which both sides' switches find the broker on a host that others program, and QEMU's beside it.

There both instances' ports have the path that QEMU's socket has had all along. The broker renames QEMU's socket, which
its listener and connections do not notice, and listens at the path itself. QEMU knows its socket by the path alone:
when it ends it removes what is there, and when it starts it removes that and makes its own socket
(util/qemu-sockets.c, ``unix_listen_saddr``). So the path has to be looked at whenever its directory has changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import time
from pathlib import Path

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.vhostuser.channel import listen

log = logging.getLogger(__name__)

_SOCKETS = Path("/proc/self/net/unix")
_LISTENS, _UNCONNECTED, _CONNECTED = 1 << 16, "01", "03"  # net/unix/af_unix.c, ``unix_seq_show``
GRACE_S = 0.1  # between QEMU's removal of a socket and the making of its own there are microseconds
_LEFT_S = 1.0  # after this time a socket on which no process listens is no longer one that is being made

Identity = tuple[int, int]  # device and inode of a socket's file


class SharedSocket:
    """The socket at ``path``, which QEMU made and now has at ``qemu``.

    ``made`` identifies the file that this broker's listener has at ``path``. A listener's file keeps its inode number
    as long as the listener is open, so that no other file has it. It is ``None`` before the first listener, and after
    ``give_back``.
    """

    def __init__(self, path: Path, qemu: Path) -> None:
        self.path, self.qemu = path, qemu
        self.made: Identity | None = None
        self._refused_since: float | None = None
        self._missing_since: float | None = None

    @property
    def waits(self) -> bool:
        """Whether there is nothing at ``path``, and QEMU may be about to make its socket: it cannot if one is there."""
        return self._missing_since is not None

    def listen(self, listener: socket.socket | None) -> socket.socket:
        """Return the listener at ``path``: ``listener``, if its file is still there, or else a new one.

        What another process has put there becomes QEMU's socket. If nothing is there, ``waits`` may be true after this,
        and this is to be called again after GRACE_S. If the listener returned is a new one, the caller
        closes ``listener``. Raises BrokerError if it cannot be made.
        """
        there = _identity(self.path)
        if listener is not None and (self.made is None or there == self.made):
            return listener
        now = time.monotonic()
        if listener is not None and there is None:
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since < GRACE_S:
                return listener
        self._missing_since = None
        qemus = there is not None and (listener is not None or not self._is_left_over())
        try:
            made = self._take_place(qemus, first=listener is None)
        except OSError as error:
            raise BrokerError(f"{self.path}: {error.strerror}") from error
        self.made = _identity(self.path)
        return made

    def _take_place(self, qemus: bool, *, first: bool) -> socket.socket:
        """Return a new listener at ``path``. ``qemus``: what is there is QEMU's socket. If this fails, nothing of the
        broker is there, and QEMU's socket is there again if this would be the ``first`` listener; otherwise the
        switches are not to find it. Raises OSError, BrokerError."""
        with contextlib.ExitStack() as undo:
            if qemus:
                self.path.rename(self.qemu)
                if first:
                    undo.callback(self._put_back)
                self._refused_since = None
                log.info("%s: QEMU has made this socket: it is %s from now on", self.path, self.qemu.name)
            made = listen(self.path)
            undo.callback(self.path.unlink)
            undo.callback(made.close)
            self._be_like_qemus()
            undo.pop_all()
            return made

    def _put_back(self) -> None:
        with contextlib.suppress(OSError):
            self.qemu.rename(self.path)

    def inherit(self, made: Identity | None) -> None:
        """Continue with an earlier broker's listener. ``made`` is as that broker knew it."""
        self.made = _identity(self.path) if made is None else made

    def _is_left_over(self) -> bool:
        """Whether the socket at ``path`` is that of a broker that has ended. If QEMU's is not where a broker would have
        moved it, the socket is QEMU's."""
        return self.qemu.exists() and not _answers(self.path)

    def _be_like_qemus(self) -> None:
        """Have the switches that could connect to QEMU's socket connect to this one: they need not be root's."""
        with contextlib.suppress(FileNotFoundError):
            found = self.qemu.stat()
            self.path.chmod(stat.S_IMODE(found.st_mode))  # as the owner: the broker's unit lacks CAP_FOWNER
            os.chown(self.path, found.st_uid, found.st_gid)

    def in_use(self) -> bool | None:
        """Whether QEMU has a connection by ``path`` or ``qemu``; ``None`` if that is not seen, or none listens."""
        try:
            return connected(_SOCKETS.read_text(errors="replace"), str(self.path))
        except OSError:
            return None

    def reached(self) -> None:
        """Note that a process listens on QEMU's socket."""
        self._refused_since = None

    def refused(self) -> None:
        """Remove QEMU's socket if no process has listened on it for a while: QEMU removes only what is at ``path``."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since >= _LEFT_S:
            self._refused_since = None
            with contextlib.suppress(OSError):
                self.qemu.unlink()

    def give_back(self) -> None:
        """Give QEMU's socket its name back, and listen no longer. It may be called again. Raises OSError."""
        if self.made is None:
            return
        if _identity(self.path) in (self.made, None):
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.qemu.rename(self.path)
        self.made = None


def connected(text: str, path: str) -> bool | None:
    """Return whether a process that listens, or has listened, at ``path`` has a connection, according to the text of
    /proc/net/unix; ``None`` if no process listens there. An accepted socket has the name that its listener was bound to
    (net/unix/af_unix.c, ``unix_stream_connect``), also after a rename."""
    rows = [words for line in text.splitlines()[1:] if len(words := line.split(maxsplit=7)) == 8 and words[7] == path]
    if any(words[5] == _CONNECTED for words in rows):
        return True
    return False if any(words[5] == _UNCONNECTED and int(words[3], 16) & _LISTENS for words in rows) else None


def _identity(path: Path) -> Identity | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _answers(path: Path) -> bool:
    """Whether a process listens on a socket. It gets a connection that ends at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

"""One unix socket that carries vhost-user frames, and the descriptors that come with them. Never blocks.

``Channel.exchange`` is the exception, and the hand-over's only way to wait: it has a deadline.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from ovs_hotswap.errors import BrokerError, ProtocolError
from ovs_hotswap.fd_closing import close, hang_up
from ovs_hotswap.peer import credentials
from ovs_hotswap.vhostuser.message_trace import MessageTrace
from ovs_hotswap.vhostuser.messages import Descriptor, Frame, FrameReader

_serials = itertools.count(1)
# Space for as many descriptors as the kernel allows (SCM_MAX_FD): it closes those for which there is no space itself,
# however long that takes.
ANCILLARY = socket.CMSG_SPACE(253 * array.array("i").itemsize)
FDS_PER_MESSAGE = 128  # in bulk; the kernel allows 253 (SCM_MAX_FD)
_SPIN_S = 0.0001  # an answer that comes in this time is not waited for asleep: to be woken takes a third of it
_OUTBOX_LIMIT = 4096  # messages a peer may leave unread: more than 256 rings need


class PeerClosed(Exception):
    """The other end hung up."""


class OwnedFd:
    """A file descriptor that is closed exactly once, and by nobody who would have to wait for it. ``own``: it is of a
    socket of ours, and not the last of it: its closing waits for nothing, and so for no descriptor of others either.
    ``sender``: the process that has sent it, where that is known."""

    __slots__ = ("_fd", "_own", "_sender", "serial")

    def __init__(self, fd: int, *, own: bool = False, sender: int = 0) -> None:
        self._fd, self._own, self._sender = fd, own, sender
        self.serial = next(_serials)

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd}>" if self._fd >= 0 else "<OwnedFd, closed>"

    def fileno(self) -> int:
        """Raises ValueError after ``close``."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    def detach(self) -> int:
        """The number, which is the caller's to close from then on. Raises ValueError after ``close``."""
        number = self.fileno()
        self._fd = -1
        return number

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._own:
                os.close(fd)
            else:
                close(fd, self._sender)


class Channel:
    """Frames in, frames out, over a connected stream socket that this object owns."""

    def __init__(self, connection: socket.socket, trace: MessageTrace | None = None) -> None:
        connection.setblocking(False)
        # Else the kernel throws an urgent byte away and itself closes what came with it (af_unix.c, ``manage_oob``).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._socket = connection
        self.trace = trace
        self._reader = FrameReader()
        self._sought, self._found = b"", b""
        self._outbox: deque[tuple[bytes, list[OwnedFd]]] = deque()
        self._poll_in = select.poll()
        self._poll_in.register(connection, select.POLLIN)
        self.peer_pid = credentials(connection).pid

    def __repr__(self) -> str:
        return f"<Channel to process {self.peer_pid}, descriptor {self._socket.fileno()}>"

    def fileno(self) -> int:
        return self._socket.fileno()

    def duplicate(self) -> OwnedFd:
        """Another descriptor of the same connection."""
        return OwnedFd(os.dup(self._socket.fileno()), own=True)

    def receive(self) -> Frame | None:
        """The next frame, or ``None`` if it is not whole yet. Its descriptors are the caller's.

        Raises ProtocolError for a broken frame, PeerClosed at the end of the stream, OSError.
        """
        while True:
            wanted = len(self._sought) - len(self._found) or self._reader.wanted
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(wanted, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            descriptors = adopt(ancillary, self.peer_pid)
            if flags & socket.MSG_CTRUNC:
                close_all(descriptors)
                # there is space for all that a message can have
                raise ProtocolError("descriptors were lost: this process may open no more, or may not have one of them")
            if not data:
                close_all(descriptors)
                raise PeerClosed
            if self._sought and not self._seen(data):
                close_all(descriptors)
                continue
            if self._sought:
                data, self._sought, self._found = self._sought, b"", b""
            frame = self._reader.feed(data, descriptors)
            if frame is not None:
                if self.trace is not None:
                    self.trace.received(frame)
                return frame

    def seek(self, header: bytes) -> None:
        """Throw away what comes before ``header``, which begins the next frame: where the stream stands is not known,
        since another process has read from it."""
        self._sought = header

    @property
    def seeking(self) -> bool:
        """Whether what was sought has not come yet."""
        return bool(self._sought)

    def _seen(self, data: bytes) -> bool:
        """Whether ``data`` ends what is sought; never more is read than may be its rest."""
        found = self._found + data
        while not self._sought.startswith(found):
            found = found[1:]
        self._found = found
        return found == self._sought

    @property
    def half(self) -> tuple[bytes, tuple[Descriptor, ...]]:
        """What was received of a message that is not whole; its descriptors stay this object's."""
        return self._reader.half

    def resume(self, data: bytes, descriptors: Sequence[Descriptor]) -> None:
        """Go on from what another process had received of a message; the descriptors are this object's from then on.
        Raises ProtocolError if that is whole, or is none."""
        while data:
            now, data = data[: self._reader.wanted], data[self._reader.wanted :]
            if self._reader.feed(now, descriptors) is not None:
                raise ProtocolError("half a message is a whole one")
            descriptors = ()

    def send(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Send a frame now, or keep it (with duplicates of its descriptors) until ``flush``.

        Raises ProtocolError if the peer has left too much unread, OSError if it is gone.
        """
        self._send(data, descriptors)
        if self.trace is not None:
            self.trace.sent(data, len(descriptors))

    def _send(self, data: bytes, descriptors: Sequence[Descriptor]) -> None:
        if not self._outbox:
            sent = self._try(data, [descriptor.fileno() for descriptor in descriptors])
            if sent == len(data):
                return
            data, descriptors = data[sent:], () if sent else descriptors
        if len(self._outbox) >= _OUTBOX_LIMIT:
            raise ProtocolError(f"the peer left {_OUTBOX_LIMIT} messages unread")
        self._outbox.append((data, _duplicates(descriptors)))

    @property
    def hung_up(self) -> bool:
        """Whether the peer has closed its end, even if something it sent before is still unread."""
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        return bool(poller.poll(0))

    @property
    def backlog(self) -> bool:
        """Whether something waits for ``flush``."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send what waits, as far as the peer reads it. Raises OSError if it is gone."""
        while self._outbox:
            data, descriptors = self._outbox[0]
            sent = self._try(data, [descriptor.fileno() for descriptor in descriptors])
            if sent:
                close_all(descriptors)
                descriptors.clear()
            if sent < len(data):
                self._outbox[0] = (data[sent:], descriptors)
                return
            self._outbox.popleft()

    def _try(self, data: bytes, fds: list[int]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    @property
    def quiet(self) -> bool:
        """Whether nothing is half sent or half received: the condition for ``exchange``."""
        return not self._outbox and not self._reader.half[0]

    def exchange(self, data: bytes, answer: bytearray, deadline: float, *, asleep: bool = False) -> bool:
        """Send ``data`` and wait until ``answer`` is filled or ``time.monotonic()`` reaches ``deadline``. ``asleep``:
        from the first moment, as one must who has priority on the core where the peer runs.

        Returns whether the answer came whole; after ``False`` its bytes are still due on this channel. For prepared
        buffers on a quiet channel. Raises PeerClosed and OSError.
        """
        sock = self._socket
        view = memoryview(data)
        while view:
            try:
                view = view[sock.send(view, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                if not _wait(sock, select.POLLOUT, deadline):
                    raise ProtocolError("the peer does not read") from None
        filled, rest = 0, memoryview(answer)
        # This spins on purpose, and blocks the event loop: between the halves of a swap no switch serves the guest.
        clock, poll = time.monotonic, self._poll_in.poll
        spin = 0.0 if asleep else clock() + _SPIN_S
        while filled < len(answer):
            now = clock()
            if now >= spin and (now >= deadline or not poll(max(1, int((deadline - now) * 1000)))):
                if filled:
                    raise ProtocolError("half an answer")
                return False
            try:
                count = sock.recv_into(rest[filled:])
            except BlockingIOError:
                continue
            if count == 0:
                raise PeerClosed
            filled += count
        return True

    def hang_up(self) -> None:
        """``close``, and have the peer see the end whoever has a duplicate."""
        hang_up(self._socket, self.peer_pid)
        self.close()

    def close(self) -> None:
        """Close the socket and every descriptor that is still in transit."""
        self._socket.close()
        self._reader.close()
        for _, descriptors in self._outbox:
            close_all(descriptors)
        self._outbox.clear()


def listen(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening socket at ``path``, in the place of one that a dead process left: there is one at any time. Raises
    BrokerError."""
    made = path.with_name(f".{os.getpid()}")
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise BrokerError(f"{path}: {error.strerror}") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        made.unlink(missing_ok=True)
        listener.bind(str(made))
        made.chmod(mode)
        listener.listen(16)
        made.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        listener.close()
        raise BrokerError(f"{path}: {error.strerror or error}") from error
    return listener


def _wait(sock: socket.socket, event: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(sock, event)
    left = deadline - time.monotonic()
    return left > 0 and bool(poller.poll(max(1, int(left * 1000))))


def adopt(ancillary: list[tuple[int, int, bytes]], sender: int = 0) -> list[OwnedFd]:
    """Own every received descriptor before anything else can fail."""
    descriptors = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            descriptors += [OwnedFd(number, sender=sender) for number in numbers]
    return descriptors


def _duplicates(descriptors: Sequence[Descriptor]) -> list[OwnedFd]:
    made: list[OwnedFd] = []
    try:
        for descriptor in descriptors:
            made.append(OwnedFd(os.dup(descriptor.fileno())))
    except OSError:
        close_all(made)
        raise
    return made


def close_all(descriptors: Iterable[Descriptor]) -> None:
    for descriptor in descriptors:
        descriptor.close()

"""One Unix socket that carries vhost-user frames and the descriptors that come with them. It never blocks.

The exception is ``Channel.exchange``, with which a handover waits for an answer; it has a deadline.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import os
import select
import socket
import termios
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
# Space for as many descriptors as the kernel allows (SCM_MAX_FD). The kernel itself would close those for which there
# is no space, however long that takes.
ANCILLARY = socket.CMSG_SPACE(253 * array.array("i").itemsize)
FDS_PER_MESSAGE = 128  # when many are sent; the kernel allows 253 (SCM_MAX_FD)
_SPIN_S = 0.0001  # for this time an answer is awaited by polling: waking up from sleep takes a third of it
_OUTBOX_LIMIT = 4096  # messages that a peer may leave unread: more than 256 rings need


class PeerClosed(Exception):
    """The peer closed its end of the connection."""


class OwnedFd:
    """A file descriptor that is closed exactly once. A close that may block is left to another thread (``fd_closing``).

    ``own``: the descriptor belongs to a socket of this process and is not the last one of it, so that closing it cannot
    block. ``sender`` is the process that sent the descriptor, or 0 if that is not known.
    """

    __slots__ = ("_fd", "_own", "_sender", "serial")

    def __init__(self, fd: int, *, own: bool = False, sender: int = 0) -> None:
        self._fd, self._own, self._sender = fd, own, sender
        self.serial = next(_serials)

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd}>" if self._fd >= 0 else "<OwnedFd, closed>"

    def fileno(self) -> int:
        """Return the number of the descriptor. Raises ValueError after ``close``."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    def detach(self) -> int:
        """Return the number, which the caller has to close from then on. Raises ValueError after ``close``."""
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
    """Receives and sends frames over a connected stream socket that this object owns."""

    def __init__(self, connection: socket.socket, trace: MessageTrace | None = None) -> None:
        connection.setblocking(False)
        # Otherwise the kernel drops an urgent byte and itself closes what came with it (af_unix.c, ``manage_oob``).
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
        """Return another descriptor of the same connection."""
        return OwnedFd(os.dup(self._socket.fileno()), own=True)

    def receive(self) -> Frame | None:
        """Return the next frame, or ``None`` if it is not complete yet. The caller owns the frame's descriptors.

        Raises ProtocolError for a broken frame, PeerClosed at the end of the stream, and OSError.
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
                raise ProtocolError("descriptors were lost: this process is at its limit, or may not have one of them")
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

    @property
    def unread(self) -> int:
        """How many bytes have come that were not received yet (unix(7), SIOCINQ)."""
        count = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, count)
        return count[0]

    def discard(self, count: int) -> None:
        """Throw away the next bytes, with what comes with them. Raises PeerClosed, OSError, and ProtocolError if a
        message has been received in part, or fewer bytes have come."""
        if self._reader.half[0]:
            raise ProtocolError("a message was received in part")
        while count:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(count, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                raise ProtocolError(f"{count} bytes that were to be thrown away have not come") from None
            close_all(adopt(ancillary, self.peer_pid))
            if not data:
                raise PeerClosed
            count -= len(data)

    def seek(self, header: bytes) -> None:
        """Throw away what comes before ``header``, with which the next frame begins.

        This finds the start of a frame in a stream from which another process has read, up to an unknown place.
        """
        self._sought = header

    @property
    def seeking(self) -> bool:
        """Whether the header given to ``seek`` has not come yet."""
        return bool(self._sought)

    def _seen(self, data: bytes) -> bool:
        """Whether ``data`` completes the header that is sought. The caller never reads more than its missing bytes."""
        found = self._found + data
        while not self._sought.startswith(found):
            found = found[1:]
        self._found = found
        return found == self._sought

    @property
    def half(self) -> tuple[bytes, tuple[Descriptor, ...]]:
        """The bytes and descriptors received of a message that is not complete. This object still owns them."""
        return self._reader.half

    def resume(self, data: bytes, descriptors: Sequence[Descriptor]) -> None:
        """Continue with the part of a message that another process received; this object then owns the descriptors.

        Raises ProtocolError if that part is a complete message or is no message.
        """
        while data:
            now, data = data[: self._reader.wanted], data[self._reader.wanted :]
            if self._reader.feed(now, descriptors) is not None:
                raise ProtocolError("half a message is a whole one")
            descriptors = ()

    def send(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Send a frame now, or keep it (with duplicates of its descriptors) until ``flush``.

        Raises ProtocolError if the peer has left too many messages unread, and OSError if the peer has closed its end.
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
        """Whether the peer has closed its end, even if something that it sent before is still unread."""
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        return bool(poller.poll(0))

    @property
    def backlog(self) -> bool:
        """Whether ``flush`` has something to send."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send what was kept, as far as the peer reads it. Raises OSError if the peer has closed its end."""
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
        """Send ``data`` and wait until ``answer`` is filled or ``time.monotonic()`` reaches ``deadline``.

        Returns whether the answer came; after ``False`` its bytes are still due on this channel. ``asleep``: sleep from
        the beginning instead of polling, as a thread must that has priority on the core where the peer runs. The
        channel must be ``quiet``. Raises ProtocolError if the peer does not read or sends half an answer, PeerClosed
        and OSError.
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
        """Close, and have the peer see the end of the stream even if another process has a duplicate."""
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
    """Return a listening socket at ``path``. It replaces the socket that a dead process left, without a gap.

    ``mode`` is the mode of the socket's file. Raises BrokerError.
    """
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
    """Return an owner for every received descriptor, before anything else can fail. ``sender`` is as in OwnedFd."""
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

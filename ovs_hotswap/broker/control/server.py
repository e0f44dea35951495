"""The server of the broker's control socket: who may use it, what is logged, and how a request finds its method."""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import json
import logging
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ovs_hotswap.broker.control import client
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.peer import credentials
from ovs_hotswap.vhostuser.channel import OwnedFd, adopt, close_all, listen

log = logging.getLogger(__name__)

# Methods that change something. They are logged with the caller.
_CHANGES = {
    "park", "park_many", "unpark", "arm", "disarm", "move", "move_many", "reload", "withdraw", "quarantine", "release",
    "adopt_prepare", "adopt_enter", "adopt_finish", "adopt_cancel", "adopt_reconnect", "give_back",
}  # fmt: skip
_READ = 1 << 16
_DESCRIPTORS = 253  # with one request: the most that the kernel sends at once (SCM_MAX_FD)
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
_BACKLOG = 100
_TRACED = 400  # bytes of a request that are logged
_PAUSE_S = 1.0  # after a connection could not be accepted because descriptors are short

Method = Callable[..., Awaitable[Any]]


class ControlServer:
    """Serves ``methods`` to root and to ``group``. Their parameters are those of the requests, by name.

    A method with a parameter ``descriptors`` gets those that came with the request. A method with a parameter ``gone``
    gets a function that returns whether the caller has hung up. ``inherited`` is the listening socket of the broker in
    a takeover. Raises BrokerError if no socket can be made; if it is not ``needed``, it is made as soon as it can be.
    """

    def __init__(
        self, config: Config, methods: Mapping[str, Method], inherited: socket.socket | None, group: int | None = None,
        *, needed: bool = True,
    ) -> None:  # fmt: skip
        self._path, self._group = config.broker_socket, group
        self._methods = methods
        self._closed = False
        self._traced = log.isEnabledFor(logging.DEBUG)
        self.listener = inherited
        if inherited is not None:
            inherited.setblocking(False)
            return
        try:
            self.listener = listen(self._path, mode=0o660)
        except BrokerError as error:
            if needed:
                raise
            log.error("no command reaches this broker until its socket can be made: %s", error.message)

    def open(self) -> asyncio.Task[None]:
        """Begin to serve. Cancel the task that this returns to accept no further connection."""
        return asyncio.get_running_loop().create_task(self._accept())

    async def _opened(self) -> socket.socket:
        """Wait until there is a listening socket, and return it.

        If its group cannot be set, that is logged, and only root is served.
        """
        while self.listener is None:
            await asyncio.sleep(_PAUSE_S)
            with contextlib.suppress(BrokerError):
                self.listener = listen(self._path, mode=0o660)
        try:
            self.listener.listen(_BACKLOG)
            if self._group is not None:
                os.chown(self._path, -1, self._group)
        except OSError as error:
            log.error("%s: %s", self._path, error.strerror)
        return self.listener

    def close(self) -> None:
        """Answer no further request, because another broker does. Callers are hung up on, and ask that broker."""
        self._closed = True

    async def _accept(self) -> None:
        loop, callers = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        listener = await self._opened()
        while True:
            try:  # not the loop's ``sock_accept``, which loses a connection that comes while it is cancelled
                await _readable(listener)
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                log.warning("control: accept: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            task = loop.create_task(self._serve(connection))
            callers.add(task)
            task.add_done_callback(callers.discard)

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # An error of a method is answered; these errors are of the connection, or of the broker's end.
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError), _ClientConnection(connection) as caller:
            pid, user, _ = credentials(connection)
            while line := await caller.line():
                descriptors, began = caller.taken(), time.monotonic()
                if self._closed:
                    close_all(descriptors)
                    return
                try:
                    who = f"asked by user {user}, process {pid}"
                    answer = await self._answer(line, {"descriptors": descriptors, "gone": caller.gone}, who)
                finally:
                    close_all(descriptors)
                if self._traced:
                    self._trace(line, answer, who, time.monotonic() - began)
                if self._closed:
                    return
                await loop.sock_sendall(connection, client.encode(answer))

    @staticmethod
    def _trace(line: bytes, answer: Mapping[str, Any], who: str, seconds: float) -> None:
        request = line[:_TRACED].decode(errors="replace").rstrip()
        fault = answer.get("error")
        how = "answered" if fault is None else f"refused ({fault['class']}: {fault['message']})"
        log.debug("control: %s %s: %s after %.3f ms", request, who, how, seconds * 1e3)

    async def _answer(self, line: bytes, beside: Mapping[str, Any], who: str) -> dict[str, object]:
        """Return the answer to a request. ``beside``: arguments of methods that are not in the request."""
        try:
            request = client.decode_request(line)
            method = self._methods.get(request.method)
            if method is None:
                raise BrokerError(f"no method {request.method!r}; there are {', '.join(sorted(self._methods))}")
            if given := beside.keys() & request.params:
                raise BrokerError(f"{', '.join(sorted(given))}: not a parameter of a request")
            signature = inspect.signature(method)
            wanted = {key: value for key, value in beside.items() if key in signature.parameters}
            if beside["descriptors"] and "descriptors" not in wanted:
                raise BrokerError(f"{request.method} takes no descriptors")
            params = {**request.params, **wanted}
            try:
                signature.bind(**params)
            except TypeError as error:
                raise BrokerError(f"{request.method}: {error}") from error
            try:
                if request.method in _CHANGES:
                    log.info("%s %s: %s", request.method, json.dumps(request.params)[:_TRACED], who)
                return {"result": await method(**params)}
            except HotswapError:
                raise
            except Exception as error:
                log.exception("%s: %s", request.method, who)
                raise BrokerError(f"{request.method}: {type(error).__name__}: {error}") from error
        except HotswapError as error:
            return client.error_document(error)


class _ClientConnection:
    """A connection, which this object owns. It reads lines and the descriptors that come with them.

    asyncio's streams would lose the descriptors.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = bytearray()
        self._descriptors: list[OwnedFd] = []

    def __enter__(self) -> _ClientConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        close_all(self._descriptors)

    async def line(self) -> bytes:
        """Return the next line, which is empty at the end of the stream.

        Raises ValueError if the line is too long, or too many descriptors come with it, and OSError.
        """
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            await _readable(self._connection)
            with contextlib.suppress(BlockingIOError):
                data, ancillary, flags, _ = self._connection.recvmsg(_READ, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                self._descriptors += adopt(ancillary)
                if not data:
                    return b""
                self._received += data
                too_many = flags & socket.MSG_CTRUNC or len(self._descriptors) > _DESCRIPTORS
                if too_many or len(self._received) > client.LINE_LIMIT:
                    raise ValueError("not a request")
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def gone(self) -> bool:
        """Whether the caller no longer waits for an answer. A caller that has only shut down its sending side does."""
        poller = select.poll()
        poller.register(self._connection, 0)  # POLLHUP is reported without being requested
        return bool(poller.poll(0))

    def taken(self) -> list[OwnedFd]:
        """Return the descriptors that came with the last line. A caller sends its next request after the answer."""
        taken, self._descriptors = self._descriptors, []
        return taken


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def came() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, came)
    try:
        await ready
    finally:
        loop.remove_reader(connection)

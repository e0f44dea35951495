"""The broker's end of its control socket (``control``): who may ask, what is logged, how a request finds its method."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import inspect
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.vhost import control
from ovs_hotswap.vhost.channel import listen

log = logging.getLogger(__name__)

_CHANGES = {"park", "unpark", "arm", "move", "move_many", "reload", "withdraw"}  # logged with who asked
_PEER = struct.Struct("3i")  # struct ucred: unix(7), SO_PEERCRED

Method = Callable[..., Awaitable[Any]]


class Desk:
    """Serves ``methods``, whose parameters are those of the requests, by name.

    ``inherited``: the listening socket of a broker that is succeeded. Raises BrokerError if there can be none.
    """

    def __init__(self, config: Config, methods: Mapping[str, Method], inherited: socket.socket | None) -> None:
        path = config.broker_socket
        self._methods = methods
        self.listener = listen(path, mode=0o660) if inherited is None else inherited
        if config.broker.group is not None:
            try:
                os.chown(path, -1, grp.getgrnam(config.broker.group).gr_gid)
            except KeyError as error:
                raise BrokerError(f"broker.group: no group {config.broker.group!r} on this host") from error

    async def open(self) -> asyncio.AbstractServer:
        # From 3.13 on asyncio would remove the socket of a server that it closes: a successor still listens on it.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        return await asyncio.start_unix_server(self._client, sock=self.listener, limit=control.LINE_LIMIT, **keep)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled when the broker ends: asyncio's streams would log that as an error (cpython issue 110894).
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, ValueError, asyncio.CancelledError):
            pid, user, _ = _PEER.unpack(
                writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            )
            while line := await reader.readline():
                writer.write(control.encode(await self._answer(line, f"asked by user {user}, process {pid}")))
                await writer.drain()

    async def _answer(self, line: bytes, who: str) -> dict[str, Any]:
        try:
            request = control.decode_request(line)
            method = self._methods.get(request.method)
            if method is None:
                raise BrokerError(f"no method {request.method!r}; there are {', '.join(sorted(self._methods))}")
            try:
                inspect.signature(method).bind(**request.params)
            except TypeError as error:
                raise BrokerError(f"{request.method}: {error}") from error
            if request.method in _CHANGES:
                log.info("%s %s: %s", request.method, json.dumps(request.params), who)
            return {"result": await method(**request.params)}
        except HotswapError as error:
            return control.error_document(error)

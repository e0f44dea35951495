"""One JSON-RPC request over a unix socket with a deadline.

``ovs.unixctl.client`` and ``ovsdbapp``'s schema query wait for ever when the server's main thread is blocked. Both
protocols are JSON-RPC 1.0 (RFC 7047, section 4; ovs-appctl(8)), so one call with a deadline serves both.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import ovs.jsonrpc
import ovs.poller
import ovs.stream
import ovs.timeval

from ovs_hotswap.errors import SwitchError


class NoAnswer(SwitchError):
    """The server did not answer within the deadline. Whether it has carried out the request is unknown."""


def call(socket: Path, method: str, params: list[Any], *, timeout: float) -> Any:
    """Send one request to ``socket`` and return the result of the reply.

    ``timeout`` (seconds) covers connecting, sending and the reply together. Raises NoAnswer when it passes and
    SwitchError when nothing listens, the connection breaks or the server answers with an error; each message names
    the socket and the method.
    """
    deadline = ovs.timeval.msec() + int(timeout * 1000)
    error, stream = ovs.stream.Stream.open_block(ovs.stream.Stream.open(f"unix:{socket}"), int(timeout * 1000))
    if error == errno.ETIMEDOUT:
        raise _no_answer(socket, method, timeout)
    if error:
        raise SwitchError(
            f"{socket}: {method}: cannot connect: {os.strerror(error)}",
            hint="is the instance running? `ovs-hotswap instance list`",
        )
    connection = ovs.jsonrpc.Connection(stream)
    try:
        request = ovs.jsonrpc.Message.create_request(method, params)
        error, reply = connection.send(request), None
        while not error:
            error, reply = connection.recv()
            if reply is not None and reply.id == request.id:
                break
            if error == errno.EAGAIN:
                error = _wait(connection, deadline)
        if error == errno.ETIMEDOUT:
            raise _no_answer(socket, method, timeout)
        if reply is None:
            cause = "closed the connection" if error < 0 else os.strerror(error)
            raise SwitchError(f"{socket}: {method}: {cause} before it answered")
    finally:
        connection.close()
    if reply.error is not None:
        raise SwitchError(f"{socket}: {method}: {str(reply.error).strip()}")
    return reply.result


def _wait(connection: Any, deadline: int) -> int:
    """Sleep until the connection can go on; 0, or ETIMEDOUT when ``deadline`` (ms) has passed."""
    if ovs.timeval.msec() >= deadline:
        return errno.ETIMEDOUT
    connection.run()
    poller = ovs.poller.Poller()
    connection.wait(poller)
    connection.recv_wait(poller)
    poller.timer_wait_until(deadline)
    poller.block()
    return 0


def _no_answer(socket: Path, method: str, timeout: float) -> NoAnswer:
    return NoAnswer(
        f"{socket}: {method}: no answer within {timeout:g} s",
        hint="its main thread is blocked; look at its log",
    )

"""One JSON-RPC request over a Unix socket with a deadline.

``ovs.unixctl.client`` and ``ovsdbapp``'s schema query wait indefinitely if the server's main thread is blocked. Both
protocols are JSON-RPC 1.0 (RFC 7047, section 4; ovs-appctl(8)), so one call with a deadline serves both.
"""

from __future__ import annotations

import errno
import json
import os
import socket as sockets
import time
from pathlib import Path
from typing import Any

import ovs.jsonrpc
import ovs.poller
import ovs.stream
import ovs.timeval

from ovs_hotswap.errors import SwitchError

_ANSWER_MAX = 1 << 28
_ECHO_S = 5.0


class NoAnswer(SwitchError):
    """The server did not answer within the deadline. Whether it has carried out the request is unknown."""


def listens(socket: Path) -> bool:
    """Whether a process listens on ``socket``, which need not answer."""
    with sockets.socket(sockets.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(socket))
        except BlockingIOError:  # too many others wait to be accepted (unix(7))
            return True
        except OSError:
            return False
        return True


def call(socket: Path, method: str, params: list[Any], *, timeout: float) -> Any:
    """Send one request to ``socket`` and return the result of the reply.

    ``timeout`` (seconds) covers connecting, sending and the reply together. Raises NoAnswer after it, and SwitchError
    if nothing listens, the connection breaks or the server answers with an error. Each message names the socket and
    the method.
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


def quick_call(socket: Path, method: str, params: list[Any], *, timeout: float) -> Any:
    """Do what ``call`` does, for answers with hundreds of rows: the JSON parser of the ``ovs`` package takes fifty
    times as long as Python's own. Raises SwitchError and NoAnswer."""
    deadline = time.monotonic() + timeout
    try:
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(socket))
            connection.sendall(json.dumps({"method": method, "params": params, "id": 0}).encode())
            answer = _receive(connection, deadline)
    except TimeoutError as error:
        raise _no_answer(socket, method, timeout) from error
    except OSError as error:
        raise SwitchError(f"{socket}: {method}: {error.strerror or error}") from error
    except ValueError as error:
        raise SwitchError(f"{socket}: {method}: not an answer: {error}") from error
    if not isinstance(answer, dict) or answer.get("error") is not None or "result" not in answer:
        raise SwitchError(f"{socket}: {method}: {answer.get('error') if isinstance(answer, dict) else answer}")
    return answer["result"]


def hangs(socket: Path, timeout: float = _ECHO_S) -> bool:
    """Whether a server listens at ``socket`` and does not answer an echo (RFC 7047, 4.1.11) in ``timeout`` seconds."""
    try:
        quick_call(socket, "echo", [], timeout=timeout)
    except NoAnswer:
        return True
    except SwitchError:
        return False
    return False


def transact(socket: Path, operations: list[dict[str, Any]], *, timeout: float, database: str = "Open_vSwitch") -> Any:
    """Have ovsdb-server carry out the operations of one transaction (RFC 7047, 4.1.3); return the result of each.

    Raises SwitchError, even if only the transaction fails, and NoAnswer.
    """
    results = quick_call(socket, "transact", [database, *operations], timeout=timeout)
    if not isinstance(results, list):
        raise SwitchError(f"{socket}: transact: {results}")
    for result in results:
        if isinstance(result, dict) and "error" in result:
            raise SwitchError(f"{socket}: transact: {result.get('details') or result['error']}")
    return results


def _receive(connection: sockets.socket, deadline: float) -> Any:
    """Return the next JSON text. Nothing marks its end except that it is complete. Raises OSError and ValueError."""
    received = bytearray()
    while True:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = connection.recv(1 << 20)
        received += part
        if received.endswith(b"}") or not part:
            try:
                return json.loads(received)
            except ValueError:
                if not part:
                    raise
        if len(received) > _ANSWER_MAX:
            raise ValueError("it is too long")


def _wait(connection: Any, deadline: int) -> int:
    """Sleep until the connection is ready; return 0, or ETIMEDOUT after ``deadline`` (ms)."""
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

"""The client of the broker's control socket, which carries one JSON object per line in each direction.

A request is ``{"method": "move", "params": {"vm": "vm1", "to": "b"}}``; the answer ``{"result": ...}`` or
``{"error": {"class": ..., "message": ..., "hint": ...}}``. Connections may carry any number of requests, answered in
order, and descriptors with those that need some (SCM_RIGHTS, unix(7)). ``BrokerClient`` is the orchestrator's end.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_fixed

from ovs_hotswap.backends import MoveResult, Undelivered, VmStatus
from ovs_hotswap.broker.control import answers
from ovs_hotswap.broker.control.answers import Kind
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.errors import BrokerError, ConnectionLost, HotswapError, from_document, to_document
from ovs_hotswap.model import MessageThread, Side

_ATTEMPTS = 3  # not more often: the request itself may be what ends each broker
_DIES_S = 0.05  # a broker that dies closes what it listens on last
_STARTS_S = 0.01  # between two attempts to connect with a broker that restarts
RESTART_S = 5.0  # a service manager has started a broker again by then, also on a busy machine
_BATCH = 32  # VMs in one request
_LATE_ROUNDS = 2  # answers in which no VM has become parked before all that are late are given up
LINE_LIMIT = 16 << 20  # bytes; the status of 255 VMs with 64 rings each is about 4 MiB


def encode(document: Mapping[str, object]) -> bytes:
    """Return a document as one line. Raises TypeError for a value that is neither JSON nor a status."""
    return json.dumps(document, separators=(",", ":"), default=_plain).encode() + b"\n"


def _plain(value: object) -> dict[str, object]:
    if isinstance(value, VmStatus | MoveResult | BrokerStatus):
        return value.document()
    raise TypeError(f"{type(value).__name__} is no JSON")


@dataclass(frozen=True, slots=True)
class ControlRequest:
    method: str
    params: dict[str, Any]


def decode_request(line: bytes) -> ControlRequest:
    """Return the request in a line. Raises BrokerError if the line is none."""
    try:
        document = json.loads(line)
        method, params = document["method"], document.get("params", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokerError("not a request: one JSON object a line, with method and params") from error
    if not isinstance(method, str) or not isinstance(params, dict):
        raise BrokerError("method must be a string and params an object")
    return ControlRequest(method, params)


def error_document(error: HotswapError) -> dict[str, object]:
    return {"error": to_document(error)}


def reported(document: Mapping[str, object]) -> HotswapError:
    """Return the error that a broker reported, with the class that it had there."""
    return from_document(document, BrokerError)


class BrokerClient:
    """A connection to the broker. It is made again when it is lost: a broker may be replaced, or die, at any time.

    A request to a broker that died is repeated to the next broker, which does only what is still to be done (a VM that
    was moved stays where it is). Only frames that the dead broker had captured and not reported are lost
    (``undelivered``), and it is then not known whether the frames that a VM had to send have been taken (``unserved``).
    Every call raises BrokerError if the broker cannot be reached or does not answer within ``timeout`` seconds (the
    request may have been carried out nevertheless), and any HotswapError that the broker reports.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._path = path
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._received = b""

    def __enter__(self) -> BrokerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def call(self, method: str, *, descriptors: Sequence[int] = (), **params: object) -> Any:
        answer, error = self._try(method, descriptors, **params)
        if error is not None:
            raise error
        return answer

    def _try(self, method: str, descriptors: Sequence[int] = (), **params: object) -> tuple[Any, HotswapError | None]:
        """Return the result, or the error that the broker reports. Raises BrokerError if the broker does not answer."""
        try:
            answer = self._ask(encode({"method": method, "params": params}), descriptors)
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise BrokerError(f"broker at {self._path}: {method}: {error or 'no answer'}") from error
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            return None, reported(answer["error"])
        return self._read(method, answers.result, answer), None

    def _read(self, method: str, read: Callable[[object], Kind], value: object) -> Kind:
        try:
            return read(value)
        except ValueError as error:
            raise BrokerError(
                f"broker at {self._path}: {method}: it does not answer as this version expects: {error}",
                hint="`ovs-hotswap broker take-over` replaces it by one of this version",
            ) from error

    @retry(
        retry=retry_if_exception_type(ConnectionError),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_fixed(_DIES_S),
        reraise=True,
    )
    def _ask(self, request: bytes, descriptors: Sequence[int]) -> Any:
        connection = self._connected()
        try:
            sent = socket.send_fds(connection, [request], descriptors) if descriptors else 0
            connection.sendall(request[sent:])
            answer = json.loads(self._line(connection))
        except ConnectionError as error:  # while sending (EPIPE) or while reading: a caller need not tell them apart
            self.close()
            raise ConnectionResetError("it hung up") from error
        return answer

    def _ask_once(self, request: bytes, descriptors: Sequence[int]) -> Any:
        """Send a request that may not be sent to a next broker. Raises OSError."""
        connection = self._connected()
        sent = socket.send_fds(connection, [request], descriptors)
        connection.sendall(request[sent:])
        return json.loads(self._line(connection))

    def _connected(self) -> socket.socket:
        if self._socket is not None and _hung_up(self._socket):
            self.close()
        if self._socket is None:
            try:
                self._socket = self._connect()
            except OSError as error:
                raise BrokerError(
                    f"broker at {self._path}: {error.strerror or error}", hint="start it: `ovs-hotswap broker start`"
                ) from error
        return self._socket

    @retry(
        retry=retry_if_exception_type(ConnectionRefusedError),
        stop=stop_after_delay(RESTART_S),
        wait=wait_fixed(_STARTS_S),
        reraise=True,
    )
    def _connect(self) -> socket.socket:
        """Return a new connection. Raises OSError, which is ConnectionRefusedError while a broker restarts: its socket
        exists then, and no process listens on it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._timeout)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection

    def _line(self, connection: socket.socket) -> bytes:
        while b"\n" not in self._received:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def status(self) -> BrokerStatus:
        return self._read("status", answers.status, self.call("status"))

    def reload(self) -> list[str]:
        """Have the broker read the overlay intent and the active side again. Returns the VMs that are no longer in the
        intent and are kept nevertheless."""
        return list(self._read("reload", answers.status, self.call("reload")).leaving)

    def vms(self, *, read: bool = True) -> list[VmStatus]:
        """Return the status of every VM. Without ``read`` the rings' indices are not read from guest memory."""
        return self._read("vms", answers.vms, self.call("vms", read=read))

    def vm(self, name: str) -> VmStatus:
        return self._read("vm", answers.vm, self.call("vm", vm=name))

    def dump(self, name: str) -> object:
        """Return the broker's whole record of a VM, in the terms of its version."""
        return self.call("dump", vm=name)

    def park(self, name: str, side: Side) -> None:
        self.call("park", vm=name, side=side)

    def park_many(self, names: Sequence[str], side: Side) -> dict[str, HotswapError]:
        """Park VMs, none of which waits for another, and return the error of each VM that is not parked. A VM that is
        late is awaited for as long as others of its request become parked."""
        errors: dict[str, HotswapError] = {}
        for batch in _batches(names):
            left, patience = batch, _LATE_ROUNDS
            while left:
                answer, error = self._try("park_many", vms=left, side=side)
                if error is not None and not _is_unknown(error, "park_many"):
                    raise error
                if error is not None:
                    errors |= self._park_each(left, side)
                    break
                found = self._read("park_many", answers.parked, answer)
                patience -= len(found.late) == len(left)
                errors |= {vm: reported(each) for vm, each in {**found.errors, **found.late}.items()}
                left = list(found.late) if patience else []
                for vm in left:
                    del errors[vm]
        return errors

    def _park_each(self, names: Sequence[str], side: Side) -> dict[str, HotswapError]:
        """Park VMs one by one, for a broker of an earlier version."""
        answered = ((name, self._try("park", vm=name, side=side)) for name in names)
        return {name: error for name, (_, error) in answered if error is not None}

    def unpark(self, name: str, side: Side) -> None:
        self.call("unpark", vm=name, side=side)

    def quarantine(self, name: str, reason: str) -> VmStatus:
        """Have no switch serve a VM until ``release``, and return the VM's status after that."""
        return self._read("quarantine", answers.vm, self.call("quarantine", vm=name, reason=reason))

    def release(self, name: str) -> None:
        self.call("release", vm=name)

    def adopt_prepare(self, name: str, snapshot: str, to: Side, descriptors: Sequence[int]) -> VmStatus:
        """Park switch ``to`` for a VM that the other side's switch serves without the broker (``adopt``).

        ``snapshot`` is a ``Snapshot`` as JSON, ``descriptors`` are those of ``Fetched.descriptors``. Another call of
        this method, or ``adopt_cancel``, undoes it, as do five minutes without ``adopt_enter``.
        """
        answer = self.call("adopt_prepare", descriptors=descriptors, vm=name, snapshot=snapshot, to=to)
        return self._read("adopt_prepare", answers.vm, answer)

    def adopt_enter(self, name: str, ends: Sequence[int]) -> MoveResult:
        """Move the VM to the prepared side. Its QEMU has to stand still during this call, which is made only once.
        ``ends``: QEMU's end and the switch's end, as in ``Fetched.ends``.

        Raises ConnectionLost if the broker ended: nothing is known then (``adopt.send_away``). Raises BrokerError if
        the VM was not moved and is served as before, and StateUnknown if the first switch does not answer.
        """
        try:
            answer = self._ask_once(encode({"method": "adopt_enter", "params": {"vm": name}}), ends)
        except OSError as error:
            self.close()
            raise ConnectionLost(f"broker at {self._path}: adopt_enter: {error or 'no answer'}") from error
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise reported(answer["error"])
        return self._read("adopt_enter", answers.move, self._read("adopt_enter", answers.result, answer))

    def adopt_finish(self, name: str) -> VmStatus:
        """Return the VM's status when the switch that served it has left the connection with QEMU."""
        return self._read("adopt_finish", answers.vm, self.call("adopt_finish", vm=name))

    def adopt_cancel(self, name: str) -> None:
        """Undo ``adopt_prepare``; nothing happens if there is nothing to undo."""
        self.call("adopt_cancel", vm=name)

    def adopt_reconnect(self, name: str, to: Side, switch_end: int) -> VmStatus:
        """Take a VM over by a new connection of its QEMU, for side ``to``. The guest has no network for some
        milliseconds, and may see its link go down and up. ``switch_end``: a duplicate of the switch's end.

        Raises StateUnknown if that was begun and the VM is not served in time.
        """
        answer = self.call("adopt_reconnect", descriptors=[switch_end], vm=name, to=to)
        return self._read("adopt_reconnect", answers.vm, answer)

    def give_back(self, name: str) -> None:
        """Give a VM to the only switch that is connected for it, which serves it without the broker from then on. The
        guest has no network until it has connected: some ten milliseconds, or up to two seconds."""
        self.call("give_back", vm=name)

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        """Have side ``to`` capture frames from now on for VMs that are about to be moved; return the VMs for which it
        does. So a frame is not lost if its copy for the other side is late."""
        return self._read("arm", answers.names, self.call("arm", vms=list(names), to=to))

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        sizes = {vm.name: vm.capture_bytes for vm in self.vms(read=False)}
        capture = self.status().capture
        limit = capture.limit if capture is not None else 0
        found: list[list[str]] = []
        left = 0
        for name in names:
            size = sizes.get(name, 0)
            if not found or size > left:
                found.append([])
                left = limit
            found[-1].append(name)
            left -= size
        return found

    def disarm(self, names: Sequence[str]) -> None:
        """End the capture that ``arm`` began. VMs that were not armed, or have been moved, are left as they are."""
        self.call("disarm", vms=list(names))

    def move(self, name: str, to: Side) -> MoveResult:
        """Move a VM to side ``to``. The times are by the broker's clock."""
        return self._read("move", answers.move, self.call("move", vm=name, to=to))

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[MoveResult], HotswapError | None]:
        """Move VMs one by one, up to the first that cannot be moved. Returns the results of the VMs before it, and its
        error or ``None``. ``threads`` are the message threads of the switches, as far as they are known."""
        known = threads or {}
        pipes = [thread.pipe for thread in known.values() if thread.pipe is not None]
        told = {side: {"tid": thread.tid, "pipe": thread.pipe is not None} for side, thread in known.items()}
        more = {"threads": told} if told else {}  # an older broker knows nothing of it
        answer = self.call("move_many", descriptors=pipes, vms=list(names), to=to, **more)
        moved = self._read("move_many", answers.moves, answer)
        return moved.moved, None if moved.error is None else reported(moved.error)

    def unserved(self, names: Sequence[str]) -> list[str]:
        """Return the VMs that have frames to send of which no switch has taken any since the VM was moved."""
        return self._read("unserved", answers.names, self.call("unserved", vms=list(names)))

    def undelivered(self, name: str) -> list[bytes]:
        """Return the frames that arrived while the VM was moved and that neither side delivered.

        The caller gives them to the guest through its new owner. The broker returns them once, and keeps them for
        seconds only. Ask when late copies of frames have come: a frame of which one side's copy comes later is lost.
        """
        return self._read("undelivered", answers.frames, self.call("undelivered", vm=name))

    def undelivered_many(self, names: Sequence[str]) -> Iterator[Undelivered]:
        """Fetch the ``undelivered`` frames of many VMs, none of which waits for another; each VM is answered once."""
        for batch in _batches(names):
            found: list[Undelivered] = []
            left = batch
            while left:
                answer, error = self._try("undelivered_many", vms=left)
                if error is not None and not _is_unknown(error, "undelivered_many"):
                    raise error
                if error is not None:
                    found += map(self._undelivered, left)
                    break
                found += self._read("undelivered_many", answers.frames_of_many, answer)
                known = {each.vm for each in found}
                left, before = [name for name in left if name not in known], left
                if len(left) == len(before):
                    raise BrokerError(f"broker at {self._path}: undelivered_many: no answer for VM {', '.join(left)}")
            yield from found  # all of the batch: the broker keeps what it has been asked for a second

    def _undelivered(self, name: str) -> Undelivered:
        """Fetch the frames of one VM, from a broker of an earlier version."""
        answer, error = self._try("undelivered", vm=name)
        return Undelivered(name, [] if error else self._read("undelivered", answers.frames, answer), error)


def _is_unknown(error: HotswapError, method: str) -> bool:
    """Whether a broker of an earlier version does not have the method."""
    return error.message.startswith(f"no method {method!r}")


def _batches(names: Sequence[str]) -> list[list[str]]:
    """Yield the VMs in batches, one for each request: a request is answered when it is done for all of its VMs."""
    return [list(names[start : start + _BATCH]) for start in range(0, len(names), _BATCH)]


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other end has closed the connection. Between two calls there is nothing else to read."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(0))

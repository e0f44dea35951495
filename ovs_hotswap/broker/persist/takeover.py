"""One broker is replaced by another process, perhaps of another version, and no VM notices.

The successor connects to ``successor.sock``. The old broker reads from no QEMU any more, waits until none waits for an
answer, stops reading from anybody, and sends every VM's state with its descriptors, the listening sockets included. A
VM that is not ready for that by then is handed over too, to start over alone. The successor builds everything, answers
*ready*, and only after the old one's *go* does it touch a connection; the old one ends then without another act. Until
*go* the old broker can take up its work again, and does if the successor goes silent. What peers send meanwhile waits
in their sockets. So at no time do two brokers act, and at no time is a connection closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovs_hotswap.broker.persist.recovery import StartsOver, parts
from ovs_hotswap.broker.persist.snapshot import FORMATS, Table, VmParts, decode, encode, format_of
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process, readable
from ovs_hotswap.vhostuser.channel import FDS_PER_MESSAGE, OwnedFd, adopt, close_all

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<QI")  # bytes of the document, number of descriptors
_READY, _GO = b"R", b"G"
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Inherited:
    """What a successor takes over: the control socket's listener and, for each VM, its state and its listeners.
    ``successors``: where the next successor connects; ``None`` from a broker that did not hand that over."""

    control: socket.socket
    successors: socket.socket | None
    vms: dict[str, tuple[VmParts | StartsOver, dict[Side, socket.socket]]]


def _socket(descriptor: OwnedFd) -> socket.socket:
    return socket.socket(fileno=descriptor.detach())


def hand_over(
    connection: socket.socket, control: socket.socket, successors: socket.socket,
    vms: Sequence[tuple[Vm | StartsOver, dict[Side, socket.socket]]],
) -> None:  # fmt: skip
    """The old broker's part, with every VM paused, and settled unless it starts over. After it returns the old one must
    not act again.

    Raises BrokerError if the successor did not become ready in time: the old broker is then still the broker.
    """
    table = Table()
    with contextlib.ExitStack() as stack:

        def own(of: socket.socket) -> int:
            duplicate = OwnedFd(os.dup(of.fileno()), own=True)
            stack.callback(duplicate.close)
            return table.add(duplicate)

        try:
            document: dict[str, Any] = {"format": FORMATS[0], "control": own(control), "successors": own(successors)}
            document["vms"] = []
            for vm, listeners in vms:
                if isinstance(vm, StartsOver):
                    if vm.qemu is not None:
                        stack.callback(vm.qemu.close)
                    entry, needed = {"over": _encode(vm, table)}, FORMATS[-1]
                else:
                    entry = {"vm": encode(stack.enter_context(parts(vm)), table)}
                    needed = format_of(entry["vm"])
                entry["listeners"] = {side: own(listener) for side, listener in listeners.items()}
                document["vms"].append(entry)
                document["format"] = max(document["format"], needed)
            connection.settimeout(TIMEOUT_S)
            _send(connection, document, [descriptor.fileno() for descriptor in table.descriptors])
            if connection.recv(1) != _READY:
                raise BrokerError("the successor hung up before it was ready")
            connection.sendall(_GO)
        except OSError as error:
            raise BrokerError(f"the successor did not become ready: {error or 'time-out'}") from error


def _encode(vm: StartsOver, table: Table) -> dict[str, Any]:
    processes = {side: [process.pid, process.born] for side, process in vm.processes.items()}
    return {"name": vm.name, "processes": processes, "qemu": None if vm.qemu is None else table.add(vm.qemu)}


def _decode(entry: dict[str, Any], received: Sequence[OwnedFd]) -> StartsOver:
    """Raises KeyError, IndexError, TypeError, ValueError."""
    processes = {Side(side): Process(int(pid), born) for side, (pid, born) in entry["processes"].items()}
    return StartsOver(str(entry["name"]), processes, None if entry["qemu"] is None else received[entry["qemu"]])


def _send(connection: socket.socket, document: dict[str, Any], fds: list[int]) -> None:
    data = json.dumps(document).encode()
    connection.sendall(_LENGTH.pack(len(data), len(fds)))
    for start in range(0, len(fds), FDS_PER_MESSAGE):
        socket.send_fds(connection, [b"D"], fds[start : start + FDS_PER_MESSAGE])
    connection.sendall(data)


@dataclass(frozen=True)
class Heir:
    """A successor that has received everything, and is not the broker yet: ``take_over`` makes it that."""

    connection: socket.socket
    old: OldBroker
    inherited: Inherited


def meet(config: Config) -> Heir:
    """The successor's part: receive everything. Raises BrokerError, StateUnknown; the old broker then goes on, as it
    does when the connection is closed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(2 * TIMEOUT_S)
        connection.connect(str(config.successor_socket))
        return Heir(connection, _watch(connection), _receive(connection))
    except OSError as error:
        connection.close()
        raise BrokerError(f"{config.successor_socket}: {error or 'time-out'}: nothing was taken over",
                          hint="`ovs-hotswap broker status`, `ovs-hotswap broker start`") from error  # fmt: skip
    except BaseException:
        connection.close()
        raise


def take_over(heir: Heir) -> None:
    """Return once this process is the broker and the old one has ended, however long that takes: nobody else has the
    VMs then. Raises BrokerError if the old one goes on. Whatever can fail is to be done before."""
    with heir.connection, heir.old:
        went = False
        with contextlib.suppress(OSError):  # it closes the connection, at the latest when it ends
            heir.connection.settimeout(None)
            heir.connection.sendall(_READY)
            went = heir.connection.recv(1) == _GO
        if not went and not heir.old.ended(TIMEOUT_S):
            raise BrokerError("the old broker did not let go: it goes on")
        while not heir.old.ended(TIMEOUT_S):
            log.warning("the old broker, process %d, has let go and not ended yet: it is waited for", heir.old.pid)


class OldBroker:
    """The old broker's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = OwnedFd(os.pidfd_open(pid))

    def __enter__(self) -> OldBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pidfd.close()

    def ended(self, timeout_s: float) -> bool:
        return readable(self._pidfd.fileno(), timeout_s)


def _watch(connection: socket.socket) -> OldBroker:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return OldBroker(pid)


def _receive(connection: socket.socket) -> Inherited:
    received: list[OwnedFd] = []
    try:
        length, count = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        while len(received) < count:
            _, ancillary, flags, _ = connection.recvmsg(1, socket.CMSG_SPACE(4 * 253), socket.MSG_CMSG_CLOEXEC)
            more = adopt(ancillary)
            received += more
            if flags & socket.MSG_CTRUNC or not more:
                raise StateUnknown("descriptors were cut off on their way from the old broker")
        try:
            document = json.loads(_exactly(connection, length))
        except (ValueError, RecursionError) as error:
            raise StateUnknown(f"the old broker's state cannot be read: {error}") from error
        given = document.get("format") if isinstance(document, dict) else None
        if given not in FORMATS:
            raise StateUnknown(f"the old broker hands over format {given}, this one knows {FORMATS}")
        return _inherited(document, received)
    except BaseException:
        close_all(received)
        raise


def _inherited(document: dict[str, Any], received: Sequence[OwnedFd]) -> Inherited:
    try:
        vms: dict[str, tuple[VmParts | StartsOver, dict[Side, socket.socket]]] = {}
        for entry in document["vms"]:
            given = decode(entry["vm"], received) if "vm" in entry else _decode(entry["over"], received)
            listeners = {Side(side): _socket(received[index]) for side, index in entry["listeners"].items()}
            vms[given.name] = (given, listeners)
        successors = document.get("successors")
        return Inherited(
            _socket(received[document["control"]]), None if successors is None else _socket(received[successors]), vms
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise StateUnknown(f"the old broker's state cannot be read: {error}") from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(min(size - len(data), 1 << 20))
        if not more:
            raise StateUnknown("the old broker hung up")
        data += more
    return bytes(data)

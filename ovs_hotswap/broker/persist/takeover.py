"""One broker is replaced by another process, perhaps of another version, and no VM notices.

The successor connects to ``successor.sock``. The old broker stops reading from QEMUs, waits until no QEMU waits for an
answer, stops reading from all peers, and sends every VM's state with its descriptors and the listening sockets. A VM
that is not ready for that in time is handed over as well, and starts over alone. The successor builds everything and
answers *ready*. It touches no connection before the old broker's *go*, and the old broker ends after *go* without
another act. Until *go* the old broker can continue its work, and it does if the successor goes silent. What peers send
during the takeover waits in their sockets. So at no time do two brokers act, and at no time is a connection closed.

The successor announces by its socket's address which formats it reads (``formats``), and gets the newest that both
brokers know, or the reason why there is none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, JsonValue, model_validator

from ovs_hotswap import __version__
from ovs_hotswap.broker.persist.formats import (
    FORMATS,
    NEWEST,
    OLDEST,
    Reader,
    agree,
    announcement,
    needed_format,
    newer_parts,
    unknown_format,
)
from ovs_hotswap.broker.persist.recovery import StartsOver, parts
from ovs_hotswap.broker.persist.snapshot import Table, VmParts, encode
from ovs_hotswap.broker.persist.snapshot_reader import Born, Fd, Name, Part, Pid, Received, decode, validated
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.peer import credentials
from ovs_hotswap.process_exit import Process, readable
from ovs_hotswap.vhostuser.channel import ANCILLARY, FDS_PER_MESSAGE, OwnedFd, adopt, close_all
from ovs_hotswap.vhostuser.messages import Descriptor

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<QI")  # bytes of the document, number of descriptors
_READY, _GO = b"R", b"G"
_MAX_LENGTH = 1 << 28  # bytes of a document: a VM with 256 rings needs less than 200 kB
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Inherited:
    """What a successor takes over: the control socket's listener and, for each VM, its state and its listeners.

    ``successors`` is where the next successor connects; it is ``None`` if the old broker did not hand that over.
    ``files`` has device and inode of the socket's file of each VM whose switches share one (``shared_socket``).
    """

    control: socket.socket
    successors: socket.socket | None
    vms: dict[str, tuple[VmParts | StartsOver, dict[Side, socket.socket]]]
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class _Over(Part):
    """A VM that starts over (``StartsOver``): the switches' processes with when these were started."""

    name: Name
    processes: dict[Side, tuple[Pid, Born | None]]
    qemu: Fd | None

    def made(self) -> StartsOver:
        processes = {side: Process(*each) for side, each in self.processes.items()}
        return StartsOver(self.name, processes, self.qemu)


class _Entry(Part):
    vm: dict[str, Any] | None = None
    over: _Over | None = None
    listeners: dict[Side, Fd]
    file: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> _Entry:
        if (self.vm is None) is (self.over is None):
            raise ValueError("neither a VM's state nor one that starts over, or both")
        return self


class _Handed(Part):
    """What the old broker hands over."""

    control: Fd
    successors: Fd | None = None
    vms: list[_Entry]


class _Refusal(Part):
    """Why the old broker hands nothing over."""

    message: Annotated[str, Field(max_length=4096)]
    hint: Annotated[str, Field(max_length=4096)] | None


def _socket(descriptor: Descriptor) -> socket.socket:
    return socket.socket(fileno=descriptor.detach())


def hand_over(
    connection: socket.socket, control: socket.socket, successors: socket.socket,
    vms: Sequence[tuple[Vm | StartsOver, dict[Side, socket.socket]]], reader: Reader | None = None,
    files: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Do the old broker's part. Every VM is paused, and settled unless it starts over.

    ``reader`` is what the successor has announced, ``files`` is that of ``Inherited``. After this returns, the old
    broker must not act again.

    Raises BrokerError if the successor cannot read the state or did not become ready in time: the old broker is then
    still the broker.
    """
    table = Table()
    with contextlib.ExitStack() as stack:

        def own(of: socket.socket) -> int:
            duplicate = OwnedFd(os.dup(of.fileno()), own=True)
            stack.callback(duplicate.close)
            return table.add(duplicate)

        try:
            document: dict[str, Any] = {"version": __version__, "control": own(control), "successors": own(successors)}
            document["vms"], needed, newer = [], OLDEST, list[str]()
            for vm, listeners in vms:
                entry, number, why = _entry(vm, table, stack)
                file = {"file": files[vm.name]} if vm.name in files else {}
                theirs = {side: own(each) for side, each in listeners.items()}
                document["vms"].append(entry | {"listeners": theirs} | file)
                needed, newer = max(needed, number), newer + why
            connection.settimeout(TIMEOUT_S)
            try:
                document["format"] = agree(reader, needed, newer)
            except BrokerError as error:
                refusal = {"format": NEWEST, "refused": {"message": error.message, "hint": error.hint}}
                _send(connection, refusal | {"version": __version__}, [])
                raise
            _send(connection, document, [descriptor.fileno() for descriptor in table.descriptors])
            if connection.recv(1) != _READY:
                raise BrokerError("the successor hung up before it was ready")
            connection.sendall(_GO)
        except OSError as error:
            raise BrokerError(f"the successor did not become ready: {error or 'time-out'}") from error


def _entry(vm: Vm | StartsOver, table: Table, stack: contextlib.ExitStack) -> tuple[dict[str, Any], int, list[str]]:
    """Return a VM's part of the document, the oldest format that can express it, and why no older format can."""
    if not isinstance(vm, StartsOver):
        document = encode(stack.enter_context(parts(vm)), table)
        return {"vm": document}, needed_format(document), newer_parts(document)
    if vm.qemu is not None:
        stack.callback(vm.qemu.close)
    processes = {side: [process.pid, process.born] for side, process in vm.processes.items()}
    over = {"name": vm.name, "processes": processes, "qemu": None if vm.qemu is None else table.add(vm.qemu)}
    return {"over": over}, NEWEST, [f"VM {vm.name}: it has to start over"]


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
    """Do the first part of the successor: receive everything.

    Raises BrokerError and StateUnknown; the old broker then continues, as it does if the connection is closed.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(2 * TIMEOUT_S)
        connection.bind(announcement(f"{os.getpid():x}{os.urandom(8).hex()}"))
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
    """Make this process the broker, and return when the old broker has ended, however long that takes, because no
    other process has the VMs then. Raises BrokerError if the old broker continues. All that can fail is done before."""
    with heir.connection, heir.old:
        went = False
        with contextlib.suppress(OSError):  # it closes the connection, at the latest when it ends
            heir.connection.settimeout(None)
            heir.connection.sendall(_READY)
            went = heir.connection.recv(1) == _GO
        if not went and not heir.old.ended(TIMEOUT_S):
            raise BrokerError("the old broker gave no *go*: it continues")
        while not heir.old.ended(TIMEOUT_S):
            log.warning("the old broker, process %d, gave its *go* and has not ended yet: this one waits", heir.old.pid)


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
    return OldBroker(credentials(connection).pid)


def _receive(connection: socket.socket) -> Inherited:
    received: list[OwnedFd] = []
    try:
        length, count = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        if length > _MAX_LENGTH:
            raise StateUnknown(f"the old broker's state cannot be read: {length} bytes, at most {_MAX_LENGTH}")
        while len(received) < count:
            _, ancillary, flags, _ = connection.recvmsg(1, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            more = adopt(ancillary)
            received += more
            if flags & socket.MSG_CTRUNC or not more:
                raise StateUnknown("descriptors were cut off on their way from the old broker")
        try:
            document = json.loads(_exactly(connection, length))
        except (ValueError, RecursionError) as error:
            raise StateUnknown(f"the old broker's state cannot be read: {error}") from error
        return _inherited(document, received)
    except BaseException:
        close_all(received)
        raise


def _inherited(document: JsonValue, descriptors: Sequence[OwnedFd]) -> Inherited:
    """Return what the old broker hands over.

    Raises StateUnknown if it cannot be read, and BrokerError if the old broker has refused. The descriptors are then
    still the caller's.
    """
    what = "the old broker's state"
    if not isinstance(document, dict):
        raise StateUnknown(f"{what} cannot be read: it is no object")
    received, number, version = Received(descriptors), document.get("format"), document.get("version")
    if "refused" in document:
        refusal = validated(_Refusal, document["refused"], received, "the old broker's refusal")
        raise BrokerError(refusal.message, hint=refusal.hint)
    if type(number) is not int or number not in FORMATS:
        raise unknown_format(number, version)
    handed = validated(_Handed, document, received, what)
    given = [
        (decode(entry.vm, received, number, version) if entry.over is None else entry.over.made(), entry)
        for entry in handed.vms
    ]
    if len({vm.name for vm, _ in given}) < len(given):
        raise StateUnknown(f"{what} cannot be read: two VMs have one name")
    close_all(received.rest())
    return Inherited(
        _socket(handed.control),
        None if handed.successors is None else _socket(handed.successors),
        {vm.name: (vm, {side: _socket(each) for side, each in entry.listeners.items()}) for vm, entry in given},
        {vm.name: entry.file for vm, entry in given if entry.file is not None},
    )


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(min(size - len(data), 1 << 20))
        if not more:
            raise StateUnknown("the old broker hung up")
        data += more
    return bytes(data)

"""Where a VM's state with its descriptors outlives a broker: messages in a socket pair that nobody reads.

systemd's descriptor store holds both ends (``ovs-hotswap-broker.service``), so what was sent stays queued, descriptors
included (unix(7), SCM_RIGHTS), when this process ends in whatever way. The newest message tells: a state, which is all
that a next broker needs, or that work had begun which changes it, with the switches' processes and QEMU's connection.
In the second case nobody can say how far that work went: the VM starts over with its peers. So an outdated state keeps
nothing from being closed. QEMU's connection is closed by the next broker, when no switch can be on the rings any more:
a QEMU that sees its back end go takes the rings itself (hw/net/virtio-net.c, ``virtio_net_drop_tx_queue_data``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ovs_hotswap import sd
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhost.channel import FDS_PER_MESSAGE, OwnedFd, adopt, close_all
from ovs_hotswap.vhost.snapshot import FORMAT, Table, VmParts, decode, encode

log = logging.getLogger(__name__)

_STATE = struct.Struct("!ci")  # b"S" and the number of descriptors, in this message and those that continue it
_BUSY = struct.Struct("!cii")  # b"B" and the processes of side a's and side b's switch, 0 for none
_MORE = b"M"
_ANCILLARY = socket.CMSG_SPACE(4 * 253)


class Connection(Protocol):
    """What has a descriptor, for as long as it is the same object."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What a vault held. ``state`` is ``None`` if work was under way; then ``pids`` are the switches' processes and
    ``qemu`` is QEMU's connection, for the caller to close when no switch can be on the rings any more."""

    state: VmParts | None
    pids: Mapping[Side, int]
    qemu: OwnedFd | None = None


class Vault:
    """One VM's place. ``inlet`` is written to, ``outlet`` read from; both are this object's."""

    def __init__(self, inlet: socket.socket, outlet: socket.socket) -> None:
        for end in (inlet, outlet):
            end.setblocking(False)
        self._inlet, self._outlet = inlet, outlet
        self._queued = 0
        self.busy = True
        # By the newest message, if that says that work is under way.
        self._said: tuple[Mapping[Side, int], Connection | None] | None = None

    @classmethod
    def make(cls, name: str) -> Vault:
        """A vault that the service manager keeps, for VM ``name``."""
        vault = cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sd.store(f"{name}.in", [vault._inlet.fileno()])
        sd.store(f"{name}.out", [vault._outlet.fileno()])
        return vault

    @classmethod
    def kept(cls) -> dict[str, Vault]:
        """The vaults of an earlier broker, by VM. Told once."""
        ends: dict[str, dict[str, socket.socket]] = {}
        for key, descriptors in sd.stored().items():
            name, _, end = key.rpartition(".")
            for descriptor in descriptors:
                ends.setdefault(name, {})[end] = socket.socket(fileno=descriptor)
        found = {}
        for name, pair in ends.items():
            if pair.keys() == {"in", "out"}:
                found[name] = cls(pair["in"], pair["out"])
            else:
                for alone in pair.values():
                    alone.close()
        return found

    def begin(self, pids: Mapping[Side, int], qemu: Connection | None) -> None:
        """Before anything of the VM changes: what was kept is let go, but for ``qemu``."""
        if self._said is not None and self._said[0] == pids and self._said[1] is qemu:
            return
        older, kept = self._queued, [] if qemu is None else [qemu.fileno()]
        self._said = None
        try:
            self._send(_BUSY.pack(b"B", pids.get(Side.A, 0), pids.get(Side.B, 0)), kept)
            self._said = dict(pids), qemu
        except OSError as error:  # an empty vault says as much, but for the pids, which pid files tell too
            log.warning("cannot keep that work is under way: %s", error)
        self.busy = True
        self._drop(older)

    def put(self, vm: VmParts) -> None:
        """Keep ``vm``, whose state it is until the next ``begin``. Raises OSError; then work stays under way."""
        table, older = Table(), self._queued
        entry = encode(vm, table)
        document = json.dumps({"format": FORMAT, "qemu": entry["qemu"], "vm": entry}).encode()
        with _memfd(document) as text:
            descriptors = [text, *(each.fileno() for each in table.descriptors)]
            for start in range(0, len(descriptors), FDS_PER_MESSAGE):
                head = _MORE if start else _STATE.pack(b"S", len(descriptors))
                self._send(head, descriptors[start : start + FDS_PER_MESSAGE])
        self.busy, self._said = False, None
        self._drop(older)

    def _drop(self, older: int) -> None:
        for _ in range(older):
            self._outlet.recv(_BUSY.size)  # its descriptors are closed with it
        self._queued -= older

    def _send(self, head: bytes, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._inlet, [head], list(descriptors))
        self._queued += 1

    def take(self) -> Kept:
        """Empty it. Raises StateUnknown if what it held cannot be read."""
        state: list[OwnedFd] = []
        due, pids, busy, vm = 0, dict[Side, int](), True, None
        qemu: OwnedFd | None = None  # of the newest note
        try:
            while (message := self._receive()) is not None:
                head, descriptors = message
                if head[:1] != _MORE:  # the newest counts
                    close_all(state)
                    state.clear()
                if head[:1] == b"B":
                    close_all([qemu] if qemu else [])
                    qemu, busy = descriptors.pop() if descriptors else None, True
                    close_all(descriptors)
                    _, *numbers = _BUSY.unpack(head)
                    pids = {side: pid for side, pid in zip(Side, numbers, strict=True) if pid}
                    continue
                state += descriptors
                if head[:1] == b"S":
                    _, due = _STATE.unpack(head)
                busy = len(state) != due
            if not busy:
                close_all([qemu] if qemu else [])
                qemu = None
                vm, qemu = _decode(state)
        except struct.error as error:
            close_all([qemu] if qemu else [])
            raise StateUnknown(f"what an earlier broker kept cannot be read: {error}") from error
        finally:
            self._queued, self.busy, self._said = 0, True, None
            if vm is None:  # what is not gone on with must not stay open
                close_all([each for each in state if each is not qemu])
        return Kept(vm, pids, qemu)

    def _receive(self) -> tuple[bytes, list[OwnedFd]] | None:
        try:
            head, ancillary, _, _ = self._outlet.recvmsg(_BUSY.size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        return head, adopt(ancillary)

    def remove(self, name: str) -> None:
        """Let go of it everywhere, with all that is in it."""
        sd.forget(f"{name}.in")
        sd.forget(f"{name}.out")
        self.close()

    def close(self) -> None:
        """Leave it to the next broker."""
        self._inlet.close()
        self._outlet.close()


def _decode(descriptors: list[OwnedFd]) -> tuple[VmParts | None, OwnedFd | None]:
    """A state, or of one in another format QEMU's connection. Raises StateUnknown."""
    text = descriptors.pop(0)
    try:
        size = os.fstat(text.fileno()).st_size
        document: Any = json.loads(os.pread(text.fileno(), size, 0))
        if document["format"] == FORMAT:
            return decode(document["vm"], descriptors), None
        log.warning("an earlier broker kept format %s, this one knows %s", document["format"], FORMAT)
        return None, None if document["qemu"] is None else descriptors[document["qemu"]]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise StateUnknown(f"what an earlier broker kept cannot be read: {error}") from error
    finally:
        text.close()


@contextlib.contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("ovs-hotswap-vm", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)

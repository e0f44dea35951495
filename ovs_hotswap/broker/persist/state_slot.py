"""The place where a VM's state outlives a broker, with its descriptors: messages in a socket pair that are not read.

systemd's descriptor store holds both ends (``ovs-hotswap-broker.service``). So what was sent stays queued, with its
descriptors (unix(7), SCM_RIGHTS), no matter how this process ends. The newest messages count. They are a state, which
is all that a next broker needs; or a state and the work that was done with the switches since then (``Work``), such as
a row of moves; or the note that the guest has sent something since then, with the switches' processes and QEMU's
connection. After such a note it is not known how far the work went, and the VM starts over with its peers. So an
outdated state keeps no descriptor open. The next broker closes QEMU's connection when no switch can be on the rings any
longer: a QEMU that loses its back end takes the rings itself (hw/net/virtio-net.c, ``virtio_net_drop_tx_queue_data``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ovs_hotswap import __version__
from ovs_hotswap.broker.persist.formats import needed_format
from ovs_hotswap.broker.persist.snapshot import Table, VmParts, Work, encode
from ovs_hotswap.broker.persist.snapshot_reader import Received, decode
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import Process
from ovs_hotswap.service import sd_notify
from ovs_hotswap.vhostuser.channel import ANCILLARY, FDS_PER_MESSAGE, OwnedFd, adopt, close_all

log = logging.getLogger(__name__)

_STATE = struct.Struct("!ci")  # b"S" and the number of descriptors in this message and those that continue it
_BUSY = struct.Struct("!ciiqq")  # b"B", side a's and side b's process, 0 for none, and when these were started
_OLD_BUSY = struct.Struct("!cii")  # from a broker that did not keep that
_WORK = struct.Struct("!cccBB")  # b"W", sides as letters or b"-": home, owner; as sets: parked, told (and _NOBODY)
_NOBODY = 0x80  # no owner, and the rings do not change hands; a reader that does not know this bit believes they do
_MORE = b"M"
_READ = b"MR"  # a broker continues from this state; an older version takes it for a part without descriptors
_UNKNOWN = -1  # when a process was started
_PEEK_OFFSET = 42  # SO_PEEK_OFF (socket(7)): each MSG_PEEK looks behind what the one before has seen
_PEEK = socket.MSG_CMSG_CLOEXEC | socket.MSG_PEEK


class Connection(Protocol):
    """An object that has the same descriptor as long as it exists."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LoadedState:
    """What a slot holds: a ``state``, and the ``work`` that was done since then.

    There is no state if there was work from which no broker can continue. Then ``processes`` are those of the switches,
    and ``qemu`` is QEMU's connection, which the caller closes when no switch can be on the rings any longer. ``first``:
    no broker has continued from this state yet, so another one still can if this one ends before it stores its own.
    """

    state: VmParts | None
    processes: Mapping[Side, Process]
    qemu: OwnedFd | None = None
    work: Work | None = None
    first: bool = False


class StateSlot:
    """The slot of one VM. This object owns ``inlet``, which is written to, and ``outlet``, which is read from."""

    def __init__(self, inlet: socket.socket, outlet: socket.socket) -> None:
        for end in (inlet, outlet):
            end.setblocking(False)
        self._inlet, self._outlet = inlet, outlet
        self._queued = 0
        self.busy = True
        # What the newest message says, if it says that work is under way.
        self._said: tuple[Mapping[Side, Process], Connection | None] | None = None
        self._work: Work | None = None  # what the newest message says, if it is beside a state

    @classmethod
    def make(cls, name: str) -> StateSlot:
        """Return a new slot for VM ``name``, which the service manager keeps."""
        slot = cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sd_notify.fdstore_add(f"{name}.in", [slot._inlet.fileno()])
        sd_notify.fdstore_add(f"{name}.out", [slot._outlet.fileno()])
        return slot

    @classmethod
    def kept(cls) -> dict[str, StateSlot]:
        """Return the slots of an earlier broker, by VM. This can be called once."""
        ends: dict[str, dict[str, socket.socket]] = {}
        for key, descriptors in sd_notify.listen_fds().items():
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

    def mark_dirty(self, processes: Mapping[Side, Process], qemu: Connection | None) -> None:
        """Drop the stored state, except ``qemu``. To be called before anything of the VM changes or is closed."""
        if self._said is not None and self._said[0] == processes and self._said[1] is qemu:
            return
        older, self._said = self._queued, None
        noted = self._note(processes, qemu)
        self.busy = True
        self._drop(older)
        if noted is not None:  # the slot may have been full
            noted = self._note(processes, qemu)
        if noted is not None:  # an empty slot says the same, except for the pids, which are in pid files as well
            log.warning("cannot keep that work is under way: %s", noted)

    def _note(self, processes: Mapping[Side, Process], qemu: Connection | None) -> OSError | None:
        """Store the note that work is under way; return the error if that fails, else ``None``."""
        found = [processes.get(side, Process(0)) for side in Side]
        born = [_UNKNOWN if each.born is None else each.born for each in found]
        try:
            head = _BUSY.pack(b"B", *(each.pid for each in found), *born)
            self._send(head, [] if qemu is None else [qemu.fileno()])
        except OSError as error:
            return error
        self._said = dict(processes), qemu
        return None

    def add(self, work: Work) -> bool:
        """Note ``work`` beside the state, from which a next broker can then continue.

        This is to be called before switches are sent something that does not come from their guest. Returns whether the
        work is noted, or there is no state to which it could belong. It is not noted if the owner was sent more than
        ring addresses: no broker can continue from that.
        """
        if self.busy:
            return True
        if self._work is not None:
            work = replace(work, told=work.told | self._work.told)
        if work.owner in work.told:
            return False
        if work == self._work:
            return True
        parked, told = (sum(1 << k for k, side in enumerate(Side) if side in of) for of in (work.parked, work.told))
        told |= _NOBODY if work.nobody else 0
        letters = ((each or "-").encode() for each in (work.home, work.owner))
        try:
            self._send(_WORK.pack(b"W", *letters, parked, told), ())
        except OSError:  # there are more notes than a socket holds
            return False
        self._work = work
        return True

    def store(self, vm: VmParts) -> None:
        """Store the state ``vm``, which is valid until the next ``mark_dirty``. Raises OSError; the note stays then."""
        table, older = Table(), self._queued
        entry = encode(vm, table)
        # Which version will read this is not known, so it is written in the oldest format that can express it.
        about = {"format": needed_format(entry), "version": __version__, "qemu": entry["qemu"]}
        document = json.dumps(about | {"vm": entry}).encode()
        with _memfd(document) as text:
            descriptors = [text, *(each.fileno() for each in table.descriptors)]
            for start in range(0, len(descriptors), FDS_PER_MESSAGE):
                head = _MORE if start else _STATE.pack(b"S", len(descriptors))
                self._send(head, descriptors[start : start + FDS_PER_MESSAGE])
        self.busy, self._said, self._work = False, None, None
        self._drop(older)

    def _drop(self, older: int) -> None:
        """Drop the ``older`` messages. The kernel closes the descriptors of a message with it, at once. The broker
        still has each of them, so none is the last one of its file, whose closing could block (``fd_closing``)."""
        for _ in range(older):
            self._outlet.recv(_BUSY.size)
        self._queued -= older

    def _send(self, head: bytes, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._inlet, [head], list(descriptors))
        self._queued += 1

    def mark_read(self) -> bool:
        """Note that a broker continues from the state, which stays. Return whether that is noted."""
        try:
            self._send(_READ, ())
        except OSError:
            return False
        return True

    def load(self) -> LoadedState:
        """Return what the slot holds. It stays there until ``mark_dirty`` or ``store``, so that the next broker finds
        it if this process ends. The caller owns the descriptors in it, which are duplicates. Raises StateUnknown."""
        state: list[OwnedFd] = []
        due, processes, busy, vm, first = 0, dict[Side, Process](), True, None, True
        work: Work | None = None
        qemu: OwnedFd | None = None  # of the newest note
        try:
            self._queued = 0
            self._outlet.setsockopt(socket.SOL_SOCKET, _PEEK_OFFSET, 0)
            while (message := self._receive()) is not None:
                head, descriptors = message
                self._queued += 1
                if head == _READ:
                    first = False
                    continue
                if head[:1] == b"W":
                    work = _read_work(head)
                    continue
                if head[:1] != _MORE:  # the newest counts
                    work, first = None, True
                    close_all(state)
                    state.clear()
                if head[:1] == b"B":
                    close_all([qemu] if qemu else [])
                    qemu, busy = descriptors.pop() if descriptors else None, True
                    close_all(descriptors)
                    processes = _read_processes(head)
                    continue
                state += descriptors
                if head[:1] == b"S":
                    _, due = _STATE.unpack(head)
                busy = len(state) != due
            if not busy:
                close_all([qemu] if qemu else [])
                qemu = None
                vm, qemu = _decode(state)
        except (struct.error, ValueError) as error:
            close_all([qemu] if qemu else [])
            raise StateUnknown(f"what an earlier broker kept cannot be read: {error}") from error
        finally:
            self._outlet.setsockopt(socket.SOL_SOCKET, _PEEK_OFFSET, -1)
            self.busy, self._said, self._work = vm is None, None, work
            if vm is None:  # no broker continues with it, so it must not stay open
                close_all([each for each in state if each is not qemu])
        return LoadedState(vm, processes, qemu, work, vm is not None and first)

    def _receive(self) -> tuple[bytes, list[OwnedFd]] | None:
        try:
            head, ancillary, _, _ = self._outlet.recvmsg(_BUSY.size, ANCILLARY, _PEEK)
        except BlockingIOError:
            return None
        return head, adopt(ancillary)

    def remove(self, name: str) -> None:
        """Remove the slot and all that is in it, here and at the service manager, before that is closed elsewhere."""
        self._drop(self._queued)
        sd_notify.fdstore_remove(f"{name}.in")
        sd_notify.fdstore_remove(f"{name}.out")
        self.close()

    def close(self) -> None:
        """Leave it to the next broker."""
        self._inlet.close()
        self._outlet.close()


def _decode(descriptors: list[OwnedFd]) -> tuple[VmParts | None, OwnedFd | None]:
    """Return a state; if this version does not read its format, QEMU's connection instead. Raises StateUnknown."""
    text = descriptors.pop(0)
    try:
        size = os.fstat(text.fileno()).st_size
        document: Any = json.loads(os.pread(text.fileno(), size, 0))
        received = Received(descriptors)
        qemu = None if document["qemu"] is None else received.look(document["qemu"])
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise StateUnknown(f"what an earlier broker kept cannot be read: {error}") from error
    finally:
        text.close()
    try:
        state = decode(document.get("vm"), received, document.get("format"), document.get("version"))
    except StateUnknown as error:
        log.warning("an earlier broker kept format %.20s, and its VM starts over: %s", document.get("format"), error)
        return None, next((each for each in descriptors if each is qemu), None)
    close_all(received.rest())
    return state, None


def _read_processes(head: bytes) -> dict[Side, Process]:
    """Return the processes in a note that work is under way. Raises struct.error."""
    if len(head) == _OLD_BUSY.size:
        pids, born = _OLD_BUSY.unpack(head)[1:], (_UNKNOWN, _UNKNOWN)
    else:
        _, *numbers = _BUSY.unpack(head)
        pids, born = tuple(numbers[:2]), tuple(numbers[2:])
    given = zip(Side, pids, born, strict=True)
    return {side: Process(pid, None if at == _UNKNOWN else at) for side, pid, at in given if pid}


def _read_work(head: bytes) -> Work:
    """Return the work in a note beside a state. Raises struct.error and ValueError."""
    _, home, owner, parked, told = _WORK.unpack(head)
    sides = [None if each == b"-" else Side(each.decode()) for each in (home, owner)]
    sets = [frozenset(side for k, side in enumerate(Side) if bits >> k & 1) for bits in (parked, told)]
    return Work(sides[0], sides[1], sets[0], sets[1], bool(told & _NOBODY))


@contextlib.contextmanager
def _memfd(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("ovs-hotswap-vm", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)

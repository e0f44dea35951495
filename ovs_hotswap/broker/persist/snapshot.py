"""A VM's whole state in the broker, and its JSON document, which one broker hands to the next. This module is pure.

``snapshot_reader`` reads such documents, and ``formats`` says which formats there are.

Descriptors travel beside the document and appear in it as indices (``Table``). What a switch was sent (``SentState``)
names descriptors by serial numbers, which mean nothing in another process. They become indices too, or ``None`` for a
descriptor that is closed: no descriptor of the successor equals it, so the switch is sent the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.broker.persist.formats import Document
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, VringFd
from ovs_hotswap.vhostuser.messages import Descriptor, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import SentState

CLOSED = -2  # a serial that no descriptor has; -1 means "none was sent"


class Table:
    """The descriptors that go with a document, each once."""

    def __init__(self) -> None:
        self.descriptors: list[Descriptor] = []
        self._indices: dict[int, int] = {}

    def add(self, descriptor: Descriptor) -> int:
        index = self._indices.setdefault(descriptor.serial, len(self.descriptors))
        if index == len(self.descriptors):
            self.descriptors.append(descriptor)
        return index

    def find(self, serial: int) -> int | None:
        """Return the index of a descriptor that was added; -1 for none, ``None`` for a descriptor that is closed."""
        return -1 if serial == -1 else self._indices.get(serial)


@dataclass(frozen=True, slots=True)
class LinkParts:
    """A switch's connection.

    ``connection`` is its socket. ``born`` is the start time of its process (``process_exit.start_time``), if that is
    known: while no broker ran, the pid may have become another process's. ``due``: answers of it may be under way.
    """

    connection: Descriptor
    pid: int
    born: int | None
    offer: Offer
    told: SentState
    due: bool = False


@dataclass(frozen=True, slots=True)
class VmParts:
    """Everything of a VM that outlives a broker.

    ``cut_pid`` is the process that held the rings when its connection closed. ``suspects`` are the processes, by side,
    that may be on the rings from an earlier broker's time. ``born`` has the start times of these, by pid. ``half`` is
    what has come of an incomplete message from QEMU.
    """

    name: str
    home: Side | None
    state: GuestState
    ownership: Ownership
    scratch: Descriptor
    qemu: Descriptor | None
    offered: Offer | None
    links: Mapping[Side, LinkParts]
    park_wanted: frozenset[Side]
    suspects: Mapping[Side, int]
    cut_pid: int
    moves: int
    born: Mapping[int, int | None] = field(default_factory=dict)
    half: tuple[bytes, tuple[Descriptor, ...]] = (b"", ())


@dataclass(frozen=True, slots=True)
class Work:
    """What a broker has done with a VM's switches since it stored a state.

    A next broker can still continue from that state, because the guest has sent nothing. ``owner`` is the only side
    that may be on the rings; it is ``None`` if they are changing hands, or if no side may be on them, which ``nobody``
    says. ``parked`` is ``park_wanted``. ``told`` are the sides that were sent more than ring addresses, so that what
    they were sent is not known.
    """

    home: Side | None
    owner: Side | None
    parked: frozenset[Side]
    told: frozenset[Side]
    nobody: bool = False


def encode(vm: VmParts, table: Table) -> Document:
    """Return ``vm`` as a document; its descriptors are added to ``table``."""
    scratch = table.add(vm.scratch)
    for descriptor in vm.state.descriptors():
        table.add(descriptor)
    data, descriptors = vm.half
    more: Document = {"half": [data.hex(), [table.add(each) for each in descriptors]]} if data else {}
    certainty = vm.ownership.certainty
    if certainty is Certainty.UNKNOWN:  # older readers know suspects, which are not connected, and no such certainty
        certainty, more["doubted"] = Certainty.NOBODY, True
    if vm.born:
        more["born"] = {str(pid): born for pid, born in vm.born.items()}
    return more | {
        "name": vm.name,
        "home": vm.home,
        "state": _state(vm.state, table),
        "holder": vm.ownership.holder,
        "certainty": certainty,
        "suspected": sorted(vm.ownership.suspects),
        "scratch": scratch,
        "qemu": None if vm.qemu is None else table.add(vm.qemu),
        "offered": _offer(vm.offered),
        "links": {
            side: {
                "connection": table.add(link.connection),
                "pid": link.pid,
                "born": link.born,
                "offer": _offer(link.offer),
                "told": _told(link.told, table),
            }
            | ({"due": True} if link.due else {})
            for side, link in vm.links.items()
        },
        "park_wanted": sorted(vm.park_wanted),
        "suspects": dict(vm.suspects),
        "cut_pid": vm.cut_pid,
        "moves": vm.moves,
    }


def _offer(offer: Offer | None) -> list[int] | None:
    return None if offer is None else [offer.features, offer.protocol_features, offer.queue_pairs]


def _address(at: RingAddress | None) -> list[int] | None:
    return None if at is None else [at.flags, at.descriptors, at.used, at.available, at.log]


def _state(state: GuestState, table: Table) -> Document:
    def line(of: VringFd) -> list[Any]:
        return [of.said, None if of.descriptor is None else table.add(of.descriptor)]

    return {
        "features": state.features,
        "protocol_features": state.protocol_features,
        "owned": state.owned,
        "memory": [
            [each.guest_address, each.size, each.user_address, each.offset, table.add(each.descriptor)]
            for each in state.memory
        ],
        "rings": [
            {
                "size": ring.size,
                "address": _address(ring.address),
                "base": ring.base,
                "kick": line(ring.kick),
                "call": line(ring.call),
                "enabled": ring.enabled,
                "life": ring.life,
                "anew": ring.anew,
            }
            for ring in state.rings
        ],
        "status": state.status,
        "mtu": state.mtu,
        "log": None if state.log is None else [state.log.size, state.log.offset, table.add(state.log.descriptor)],
    }


def _told(told: SentState, table: Table) -> Document:
    return {
        "features": told.features,
        "protocol_features": told.protocol_features,
        "owned": told.owned,
        "memory": [[*fields[:4], table.find(fields[4])] for fields in told.memory],
        "rings": [
            {
                "size": ring.size,
                "address": _address(ring.address),
                "kick": [ring.kick[0], table.find(ring.kick[1])],
                "call": [ring.call[0], table.find(ring.call[1])],
                "enabled": ring.enabled,
                "life": ring.life,
            }
            for ring in told.rings
        ],
        "status": told.status,
        "mtu": told.mtu,
        "log": None if told.log is None else [*told.log[:2], table.find(told.log[2])],
    }

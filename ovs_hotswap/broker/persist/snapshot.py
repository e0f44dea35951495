"""A VM's whole state in the broker as a JSON document, and back: what one broker hands to its successor. Pure.

Descriptors travel beside the document and appear in it as indices (``Table``). What a switch was sent (``SentState``)
names descriptors by serial numbers, which mean nothing in another process. They become indices too, or ``None`` for a
descriptor that is closed: no descriptor of the successor equals it, so the switch is sent the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import Descriptor, DirtyLog, Region, RingAddress
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import SentRing, SentState

FORMATS = (3, 4)  # that can be read; 4 is 3 with what is told in ``format_of``
_GONE = -2  # a serial that no descriptor has; -1 means "none was sent"

Document = dict[str, Any]


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
        """The index of a descriptor that was added; -1 for none, ``None`` for one that is gone."""
        return -1 if serial == -1 else self._indices.get(serial)


@dataclass(frozen=True, slots=True)
class LinkParts:
    """A switch's connection. ``connection`` is its socket. ``born``: when its process was started
    (``exits.started``), if that is known: while no broker ran, the pid may have become another process's. ``due``:
    answers of it may be under way."""

    connection: Descriptor
    pid: int
    born: int | None
    offer: Offer
    told: SentState
    due: bool = False


@dataclass(frozen=True, slots=True)
class VmParts:
    """Everything of a VM that outlives a broker. ``cut_pid``: the process that held the rings when its connection
    closed; ``suspects``: processes by side that may be on the rings from an earlier broker's time; ``born``: when these
    were started, by pid. ``half``: what has come of a message of QEMU's."""

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
    """What a broker has done with a VM's switches since it kept a state, which can be gone on from all the same: the
    guest has said nothing. ``owner``: the only side that may be on the rings; ``None`` if they are changing hands, or
    if none may, which is ``nobody``. ``parked``: ``park_wanted``. ``told``: sides that were told more than places of
    rings, so that what they have heard is not known."""

    home: Side | None
    owner: Side | None
    parked: frozenset[Side]
    told: frozenset[Side]
    nobody: bool = False


def format_of(document: Document) -> int:
    """The format that whoever reads a VM's document must know: 4 with a half message of QEMU's, with answers that are
    due from a switch, or with a ring of which QEMU has not said where it begins."""
    due = any("due" in link for link in document["links"].values())
    left_out = any(ring["base"] is None for ring in document["state"]["rings"])
    return 4 if "half" in document or due or left_out else 3


def encode(vm: VmParts, table: Table) -> Document:
    """``vm`` as a document; its descriptors are added to ``table``."""
    scratch = table.add(vm.scratch)
    for descriptor in vm.state.descriptors():
        table.add(descriptor)
    data, descriptors = vm.half
    more: Document = {"half": [data.hex(), [table.add(each) for each in descriptors]]} if data else {}
    if vm.born:
        more["born"] = {str(pid): born for pid, born in vm.born.items()}
    return more | {
        "name": vm.name,
        "home": vm.home,
        "state": _state(vm.state, table),
        "holder": vm.ownership.holder,
        "certainty": vm.ownership.certainty,
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


def decode(document: Document, descriptors: Sequence[Descriptor]) -> VmParts:
    """Raises StateUnknown if the document is not one that ``encode`` makes."""
    try:
        return _decode(document, descriptors)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StateUnknown(f"the state of a VM cannot be read: {type(error).__name__}: {error}") from error


def _decode(document: Document, descriptors: Sequence[Descriptor]) -> VmParts:
    def pick(index: int) -> Descriptor:
        if not 0 <= index < len(descriptors):
            raise IndexError(f"no descriptor {index}")
        return descriptors[index]

    def serial(index: int | None) -> int:
        return _GONE if index is None else -1 if index == -1 else pick(index).serial

    offered = document["offered"]
    half, with_it = document.get("half", ("", ()))
    return VmParts(
        name=str(document["name"]),
        home=_side(document["home"]),
        state=_read_state(document["state"], pick),
        ownership=Ownership(
            _side(document["holder"]),
            Certainty(document["certainty"]),
            frozenset(Side(side) for side in document["suspected"]),
        ),
        scratch=pick(document["scratch"]),
        qemu=None if document["qemu"] is None else pick(document["qemu"]),
        offered=None if offered is None else Offer(*offered),
        links={
            Side(side): LinkParts(
                pick(link["connection"]),
                int(link["pid"]),
                None if link["born"] is None else int(link["born"]),
                Offer(*link["offer"]),
                _read_told(link["told"], serial),
                bool(link.get("due")),
            )
            for side, link in document["links"].items()
        },
        park_wanted=frozenset(Side(side) for side in document["park_wanted"]),
        suspects={Side(side): int(pid) for side, pid in document["suspects"].items()},
        cut_pid=int(document["cut_pid"]),
        moves=int(document["moves"]),
        born={int(pid): born for pid, born in document.get("born", {}).items()},
        half=(bytes.fromhex(half), tuple(pick(index) for index in with_it)),
    )


def _side(text: str | None) -> Side | None:
    return None if text is None else Side(text)


def _offer(offer: Offer | None) -> list[int] | None:
    return None if offer is None else [offer.features, offer.protocol_features, offer.queue_pairs]


def _address(at: RingAddress | None) -> list[int] | None:
    return None if at is None else [at.flags, at.descriptors, at.used, at.available, at.log]


def _read_address(fields: Sequence[int] | None) -> RingAddress | None:
    return None if fields is None else RingAddress(*fields)


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


def _read_state(document: Document, pick: Callable[[int], Descriptor]) -> GuestState:
    def line(fields: Sequence[Any]) -> VringFd:
        said, index = fields
        return VringFd(bool(said), None if index is None else pick(index))

    log = document["log"]
    return GuestState(
        features=document["features"],
        protocol_features=document["protocol_features"],
        owned=bool(document["owned"]),
        memory=tuple(Region(at, size, user, offset, pick(fd)) for at, size, user, offset, fd in document["memory"]),
        rings=tuple(
            Ring(
                ring["size"],
                _read_address(ring["address"]),
                ring["base"],
                line(ring["kick"]),
                line(ring["call"]),
                ring["enabled"],
                int(ring.get("life", 0)),
                bool(ring.get("anew")),
            )
            for ring in document["rings"]
        ),
        status=document["status"],
        mtu=document["mtu"],
        log=None if log is None else DirtyLog(log[0], log[1], pick(log[2])),
    )


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


def _read_told(document: Document, serial: Callable[[int | None], int]) -> SentState:
    log = document["log"]
    return SentState(
        features=document["features"],
        protocol_features=document["protocol_features"],
        owned=bool(document["owned"]),
        memory=tuple((*fields[:4], serial(fields[4])) for fields in document["memory"]),
        rings=tuple(
            SentRing(
                ring["size"],
                _read_address(ring["address"]),
                (bool(ring["kick"][0]), serial(ring["kick"][1])),
                (bool(ring["call"][0]), serial(ring["call"][1])),
                ring["enabled"],
                int(ring.get("life", 0)),
            )
            for ring in document["rings"]
        ),
        status=document["status"],
        mtu=document["mtu"],
        log=None if log is None else (log[0], log[1], serial(log[2])),
    )

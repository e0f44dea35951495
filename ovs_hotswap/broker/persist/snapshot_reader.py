"""Reads documents that ``snapshot.encode`` wrote, in this version or an older one.

A document is checked as if QEMU or a switch had sent it: every number has its range, every list its length, and every
descriptor one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ovs_hotswap.broker.persist.formats import FORMATS, NEWEST, Document, raised, unknown_format
from ovs_hotswap.broker.persist.snapshot import CLOSED, LinkParts, VmParts
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import (
    HEADER,
    MAX_PAYLOAD,
    MAX_REGIONS,
    MAX_RING_SIZE,
    MAX_RINGS,
    Descriptor,
    DirtyLog,
    Region,
    RingAddress,
)
from ovs_hotswap.vhostuser.ownership import Certainty, Ownership
from ovs_hotswap.vhostuser.reconcile import SentRing, SentState


class Received:
    """The descriptors that came beside a document. Each belongs to the only place in the document that names it."""

    def __init__(self, descriptors: Sequence[Descriptor]) -> None:
        self._descriptors = descriptors
        self._named: set[int] = set()

    def look(self, index: object) -> Descriptor:
        """Return the descriptor with an index. Raises ValueError if there is none."""
        if type(index) is not int or not 0 <= index < len(self._descriptors):
            raise ValueError(f"no descriptor {index!r:.40}")
        return self._descriptors[index]

    def take(self, index: object) -> Descriptor:
        """Take the descriptor with an index for one place. Raises ValueError if there is none, or it is taken."""
        found = self.look(index)
        assert isinstance(index, int)
        if index in self._named:
            raise ValueError(f"descriptor {index} is named twice")
        self._named.add(index)
        return found

    def rest(self) -> list[Descriptor]:
        """Return the descriptors that no place has named."""
        return [each for index, each in enumerate(self._descriptors) if index not in self._named]


def _take(index: object, info: ValidationInfo) -> Descriptor:
    return cast(Received, info.context).take(index)


def _serial(index: object, info: ValidationInfo) -> int:
    """Return the serial number of a descriptor that a switch was sent, which is named elsewhere or has been closed."""
    if index is None:
        return CLOSED
    return -1 if type(index) is int and index == -1 else cast(Received, info.context).look(index).serial


Fd = Annotated[Descriptor, PlainValidator(_take)]
_Serial = Annotated[int, PlainValidator(_serial)]
_U8 = Annotated[int, Field(strict=True, ge=0, lt=1 << 8)]
_U16 = Annotated[int, Field(strict=True, ge=0, lt=1 << 16)]
_U32 = Annotated[int, Field(strict=True, ge=0, lt=1 << 32)]
_U64 = Annotated[int, Field(strict=True, ge=0, lt=1 << 64)]
_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
_RingSize = Annotated[int, Field(strict=True, ge=1, le=MAX_RING_SIZE)]
_Mtu = Annotated[int, Field(strict=True, ge=68, lt=1 << 16)]
_Pairs = Annotated[int, Field(strict=True, ge=0, le=MAX_RINGS // 2)]
Pid = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Born = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]  # when a process was started
Name = Annotated[str, Field(strict=True, min_length=1, max_length=255)]
_Offer = tuple[_U64, _U64, _Pairs]
_Address = tuple[_U32, _U64, _U64, _U64, _U64]
_Bytes = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=2 * (HEADER.size + MAX_PAYLOAD))]
_OWNED = {Certainty.OWNS, Certainty.TAKING, Certainty.LETTING_GO, Certainty.CUT}  # what is known of an owner
_Rings = Field(max_length=MAX_RINGS)
_Regions = Field(max_length=MAX_REGIONS)


LineT = TypeVar("LineT")
RingT = TypeVar("RingT")


class Part(BaseModel):
    """A part of a document. Keys that it does not have are ignored: a newer version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _RingOf(Part, Generic[LineT]):
    """What the guest and a switch both have of a ring; they name its kick and call in different ways."""

    size: _RingSize | None
    address: _Address | None
    kick: tuple[StrictBool, LineT]
    call: tuple[StrictBool, LineT]
    enabled: StrictBool | None
    life: _Count


class _Ring(_RingOf[Fd | None]):
    base: _U16 | None
    anew: StrictBool

    def made(self) -> Ring:
        return Ring(
            self.size, _address(self.address), self.base, VringFd(*self.kick), VringFd(*self.call), self.enabled,
            self.life, self.anew,
        )  # fmt: skip


class _SentRing(_RingOf[_Serial]):
    def made(self) -> SentRing:
        return SentRing(self.size, _address(self.address), self.kick, self.call, self.enabled, self.life)


class _StateOf(Part, Generic[LineT, RingT]):
    """The state of a guest, or what a switch was sent of it. ``LineT`` is a descriptor, or the serial number of one."""

    features: _U64 | None
    protocol_features: _U64 | None
    owned: StrictBool
    memory: Annotated[list[tuple[_U64, _U64, _U64, _U64, LineT]], _Regions]
    rings: Annotated[list[RingT], _Rings]
    status: _U8 | None
    mtu: _Mtu | None
    log: tuple[_U64, _U64, LineT] | None


class _State(_StateOf[Fd, _Ring]):
    @model_validator(mode="after")
    def _memory_is_memory(self) -> _State:
        if any(max(at, user, offset) + size >= 1 << 64 or not size for at, size, user, offset, _ in self.memory):
            raise ValueError("a memory region is empty or wraps around")
        return self

    def made(self) -> GuestState:
        return GuestState(
            features=self.features, protocol_features=self.protocol_features, owned=self.owned,
            memory=tuple(Region(*fields) for fields in self.memory), rings=tuple(ring.made() for ring in self.rings),
            status=self.status, mtu=self.mtu, log=None if self.log is None else DirtyLog(*self.log),
        )  # fmt: skip


class _Sent(_StateOf[_Serial, _SentRing]):
    def made(self) -> SentState:
        return SentState(
            features=self.features, protocol_features=self.protocol_features, owned=self.owned,
            memory=tuple(self.memory), rings=tuple(ring.made() for ring in self.rings),
            status=self.status, mtu=self.mtu, log=self.log,
        )  # fmt: skip


class _Link(Part):
    connection: Fd
    pid: Pid
    born: Born | None
    offer: _Offer
    told: _Sent
    due: StrictBool = False

    def made(self) -> LinkParts:
        return LinkParts(self.connection, self.pid, self.born, Offer(*self.offer), self.told.made(), self.due)


class _Vm(Part):
    name: Name
    home: Side | None
    state: _State
    holder: Side | None
    certainty: Certainty
    suspected: frozenset[Side]
    doubted: StrictBool = False
    scratch: Fd
    qemu: Fd | None
    offered: _Offer | None
    links: dict[Side, _Link]
    park_wanted: frozenset[Side]
    suspects: dict[Side, Pid]
    cut_pid: Pid
    moves: _Count
    born: dict[Annotated[int, Field(ge=0)], Born | None] = Field({}, max_length=64)
    half: tuple[_Bytes, Annotated[list[Fd], _Regions]] = ("", [])

    @model_validator(mode="after")
    def _an_owner_is_one(self) -> _Vm:
        if (self.holder is not None) is not (self.certainty in _OWNED) or (self.doubted and self.holder is not None):
            raise ValueError(f"owner {self.holder} is {self.certainty}")
        return self

    def made(self) -> VmParts:
        return VmParts(
            name=self.name, home=self.home, state=self.state.made(),
            ownership=Ownership(self.holder, Certainty.UNKNOWN if self.doubted else self.certainty, self.suspected),
            scratch=self.scratch, qemu=self.qemu,
            offered=None if self.offered is None else Offer(*self.offered),
            links={side: link.made() for side, link in self.links.items()}, park_wanted=self.park_wanted,
            suspects=self.suspects, cut_pid=self.cut_pid, moves=self.moves, born=self.born,
            half=(bytes.fromhex(self.half[0]), tuple(self.half[1])),
        )  # fmt: skip


def _address(fields: _Address | None) -> RingAddress | None:
    return None if fields is None else RingAddress(*fields)


def decode(document: object, received: Received, number: object = NEWEST, version: object = None) -> VmParts:
    """Return a VM's state from its document of format ``number``, which broker ``version`` wrote.

    Raises StateUnknown if this version does not read that format, or the document is not valid.
    """
    if type(number) is not int or number not in FORMATS:
        raise unknown_format(number, version)
    what = "the state of a VM"
    if not isinstance(document, dict):
        raise StateUnknown(f"{what} cannot be read: it is no object")
    try:
        whole: Document = raised(document, number)
    except (AttributeError, LookupError, TypeError) as error:
        raise StateUnknown(f"{what} cannot be read as format {number}: {type(error).__name__}: {error}") from error
    return validated(_Vm, whole, received, what).made()


PartT = TypeVar("PartT", bound=Part)


def validated(model: type[PartT], document: Any, received: Received, what: str) -> PartT:
    """Return ``document`` as ``model``. Raises StateUnknown, which names the first place in it that is wrong."""
    try:
        return model.model_validate(document, context=received)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise StateUnknown(f"{what} cannot be read: {place}: {first['msg']}") from error

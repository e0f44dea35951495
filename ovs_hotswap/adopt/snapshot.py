"""What a running vhost-user connection between a QEMU and a switch consists of, as a value that can be passed on.

A ``Snapshot`` is taken of a connection that has no broker (``adopt.taking``) and names descriptors by their numbers in
the two processes. ``adopt.fetching`` gets duplicates of them, which together with the snapshot are the record of the VM
(``guest_state``) and of what its switch has been sent (``sent_state``).

The *end* of a connection is the socket of one of the two processes. What is written to QEMU's end is read by the
switch, as if QEMU had sent it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ovs_hotswap.config import AbsolutePath
from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.toml_file import Strict
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, Ring, VringFd
from ovs_hotswap.vhostuser.messages import Descriptor, Feature, ProtocolFeature, Region, RingAddress
from ovs_hotswap.vhostuser.reconcile import SentRing, SentState

Fd = Annotated[int, Field(ge=0)]
Word = Annotated[int, Field(ge=0, lt=1 << 64)]


class ProcessFact(Strict):
    """A process, by its number and its start time (``process_exit.start_time``)."""

    pid: Annotated[int, Field(gt=1)]
    born: Annotated[int, Field(gt=0)]


class RegionFact(Strict):
    """One region of the memory table that the switch has. All sizes and addresses are in bytes.

    ``fd`` is the number of its descriptor in QEMU; ``device`` and ``inode`` identify the file behind it (fstat(2)).
    """

    guest_address: Word
    size: Annotated[int, Field(gt=0, lt=1 << 64)]
    user_address: Word
    offset: Word
    fd: Fd
    device: int
    inode: int

    def holds(self, user_address: int, length: int) -> bool:
        return self.user_address <= user_address and user_address + length <= self.user_address + self.size


class EventFact(Strict):
    """One eventfd of a ring: its number in the switch, and its ``eventfd-id``, which is the same in every process
    (fs/eventfd.c, ``eventfd_show_fdinfo``)."""

    fd: Fd
    eventfd: int


class RingPlaceFact(Strict):
    """Where a ring is, in QEMU's addresses, and how many entries it has."""

    size: Annotated[int, Field(gt=0, le=messages.MAX_RING_SIZE)]
    descriptors: Word
    available: Word
    used: Word


class RingFact(Strict):
    """One ring. ``place`` is ``None`` if QEMU has not started it, as the further pairs of a guest with one queue are.

    ``kick`` or ``call`` is ``None`` if QEMU has sent none, of a started ring on purpose. ``enabled`` is ``None`` if it
    was neither enabled nor disabled.
    """

    place: RingPlaceFact | None
    kick: EventFact | None
    call: EventFact | None
    enabled: bool | None


class LogMark(Strict):
    """A place in the switch's log: what is behind it was written after the facts were read."""

    path: AbsolutePath
    device: int
    inode: int
    offset: Annotated[int, Field(ge=0)]


class Snapshot(Strict):
    """Everything of one connection. ``socket`` is the path on which QEMU listened when the switch connected.

    ``qemu_fd`` and ``switch_fd`` are the numbers of the two ends, each in its own process. ``features`` are those that
    the guest has acknowledged, with PROTOCOL_FEATURES. ``status`` and ``mtu`` are ``None`` if QEMU has not sent them.
    """

    socket: AbsolutePath
    qemu: ProcessFact
    qemu_fd: Fd
    switch: ProcessFact
    switch_fd: Fd
    features: Word
    protocol_features: Word
    status: Annotated[int, Field(ge=0, le=0xFF)] | None
    mtu: Annotated[int, Field(ge=68, le=65535)] | None
    memory: Annotated[tuple[RegionFact, ...], Field(min_length=1, max_length=messages.MAX_REGIONS)]
    rings: Annotated[tuple[RingFact, ...], Field(min_length=2, max_length=messages.MAX_RINGS)]
    log: LogMark

    @property
    def events(self) -> tuple[EventFact, ...]:
        """The kicks and calls, ring by ring, those that exist."""
        return tuple(event for ring in self.rings for event in (ring.kick, ring.call) if event is not None)

    def same_connection(self, earlier: Snapshot) -> bool:
        """Whether QEMU and the switch have told each other nothing since the ``earlier`` snapshot."""
        return self.model_copy(update={"log": earlier.log}) == earlier

    @property
    def carried_protocol_features(self) -> int:
        """The agreed protocol features without those that a broker does not carry, which only permit messages."""
        return self.protocol_features & messages.CARRIED_PROTOCOL_FEATURES


def read_snapshot(text: str) -> Snapshot:
    """Return the snapshot that ``Snapshot.model_dump_json`` wrote. Raises StateUnknown."""
    try:
        return Snapshot.model_validate_json(text)
    except ValueError as error:
        raise StateUnknown(f"the snapshot of a VM's connection cannot be read: {error}") from error


def why_not_carried(snapshot: Snapshot) -> str | None:
    """Return why a broker cannot carry the connection, or ``None`` if it can."""
    if extra := snapshot.features & ~messages.CARRIED_FEATURES:
        return f"the guest uses features that a broker does not carry: {', '.join(messages.feature_names(extra))}"
    if snapshot.features >> Feature.LOG_ALL & 1:
        return "the VM is being migrated"
    if not snapshot.features >> Feature.PROTOCOL_FEATURES & 1:
        return "the guest's QEMU has not agreed on protocol features"
    if len(snapshot.memory) >= messages.MAX_REGIONS:
        return f"its memory has {len(snapshot.memory)} regions; vhost-user allows 8 and parking needs one of them"
    if snapshot.protocol_features >> ProtocolFeature.STATUS & 1 and snapshot.status is None:
        return "its QEMU has agreed to send the device status and has not sent it"
    return None


def guest_state(snapshot: Snapshot, memory: Sequence[Descriptor], events: Sequence[Descriptor]) -> GuestState:
    """Return the record of the VM.

    ``memory`` has a descriptor for each region, ``events`` one for each of ``snapshot.events``, in their order. The
    record owns them. Raises StateUnknown if the numbers of descriptors do not fit.
    """
    if len(memory) != len(snapshot.memory) or len(events) != len(snapshot.events):
        raise StateUnknown(f"{len(memory)} regions and {len(events)} eventfds do not fit the snapshot")
    regions = tuple(
        Region(fact.guest_address, fact.size, fact.user_address, fact.offset, descriptor)
        for fact, descriptor in zip(snapshot.memory, memory, strict=True)
    )
    left = iter(events)
    rings = []
    for fact in snapshot.rings:
        kick = None if fact.kick is None else next(left)
        call = None if fact.call is None else next(left)
        started = fact.place is not None
        rings.append(
            Ring(
                None if fact.place is None else fact.place.size,
                _address(fact.place),
                None if started else 0,
                VringFd(started, kick),
                VringFd(started or call is not None, call),
                fact.enabled,
            )
        )
    return GuestState(
        features=snapshot.features, protocol_features=snapshot.carried_protocol_features, owned=True,
        memory=regions, rings=tuple(rings), status=snapshot.status, mtu=snapshot.mtu,
    )  # fmt: skip


def sent_state(state: GuestState) -> SentState:
    """Return what the switch has been sent by QEMU, if ``state`` is the record of the VM (``guest_state``).

    ``reconcile`` then returns the differences alone: the memory table with the scratch region, and what the role asks
    for. Protocol features that the broker does not carry are left out of both, or the switch would be sent others.
    """
    memory = tuple((r.guest_address, r.size, r.user_address, r.offset, r.descriptor.serial) for r in state.memory)
    rings = tuple(
        SentRing(ring.size, ring.address, ring.kick.key, ring.call.key, ring.enabled, ring.life) for ring in state.rings
    )
    return SentState(state.features, state.protocol_features, True, memory, rings, state.status, state.mtu)


def _address(place: RingPlaceFact | None) -> RingAddress | None:
    return None if place is None else RingAddress(0, place.descriptors, place.used, place.available, 0)


UNKNOWN_REQUEST = struct.pack("<III", 250, messages.VERSION, 0)
"""A message that no vhost-user has. DPDK closes the connection over it (lib/vhost/vhost_user.c,
``vhost_user_msg_handler``: a negative result), destroys the device and connects again."""

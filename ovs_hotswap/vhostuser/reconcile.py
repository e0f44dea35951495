"""How to make a back end agree with the record of a VM. This module is pure.

``SentState`` is what one back end has been sent on its connection. ``reconcile`` compares it with what the back end's
role entitles it to and returns the messages that close the gap, in an order that DPDK accepts. Parking, following a
reboot, replaying to a switch that came back and forwarding a single message are all this one comparison.

A *parked* back end sees the guest as it is, with two exceptions: every ring address points into the scratch region,
and the memory table carries that region as an additional one. The back end is live in every other respect, so making it
the owner takes one SET_VRING_ADDR per ring.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, Ring, VringFd
from ovs_hotswap.vhostuser.messages import Descriptor, Region, Request, RingAddress


class Role(enum.StrEnum):
    """What a back end is for one VM. IDLE: connected, and sent nothing that names the guest."""

    IDLE = "idle"
    PARKED = "parked"
    OWNER = "owner"


# One empty ring serves as the parking place of all rings of a VM: back ends only read its available index, which stays
# 0, and write notification hints beside it. Its parts lie at fixed offsets that suit the largest ring, so that rings of
# different sizes never take one part for another.
PARKING_SIZE = 1 << 20
CAPTURE_OFFSET = PARKING_SIZE  # the capture rings lie behind the parking place (``capture``)
CAPTURE_SIZE = 64 << 20  # sparse
SCRATCH_SIZE = PARKING_SIZE + CAPTURE_SIZE
_SCRATCH_AVAILABLE = 0x90000
_SCRATCH_USED = 0xB0000
# No process has this address (bit 63 set is the kernel's half) and no machine this physical one (52 bits at most).
SCRATCH_USER_ADDRESS = 1 << 63
SCRATCH_GUEST_ADDRESS = 1 << 62
PARKING = RingAddress(
    flags=0,
    descriptors=SCRATCH_USER_ADDRESS,
    used=SCRATCH_USER_ADDRESS + _SCRATCH_USED,
    available=SCRATCH_USER_ADDRESS + _SCRATCH_AVAILABLE,
    log=0,
)


def scratch_region(descriptor: Descriptor, size: int = SCRATCH_SIZE) -> Region:
    """Return the region that memory tables carry besides the guest's; ``descriptor`` has SCRATCH_SIZE zero bytes. A
    back end that is to map less of it gets its first ``size`` bytes."""
    return Region(SCRATCH_GUEST_ADDRESS, size, SCRATCH_USER_ADDRESS, 0, descriptor)


def scratch_size(told: SentState) -> int | None:
    """Return the size of the scratch region that a back end was sent; ``None`` if it was sent none."""
    return next((size for _, size, address, *_ in told.memory if address == SCRATCH_USER_ADDRESS), None)


@dataclass(frozen=True, slots=True)
class SentRing:
    """What one back end has been sent about one ring. ``life`` is the life in which the ring was started there."""

    size: int | None = None
    address: RingAddress | None = None
    kick: tuple[bool, int] = (False, -1)
    call: tuple[bool, int] = (False, -1)
    enabled: bool | None = None
    life: int = 0

    @property
    def started(self) -> bool:
        return self.kick[0]


@dataclass(frozen=True, slots=True)
class SentState:
    """What one back end has been sent on its present connection. Descriptors appear as serials: they are not held."""

    features: int | None = None
    protocol_features: int | None = None
    owned: bool = False
    memory: tuple[tuple[int, ...], ...] = ()
    rings: tuple[SentRing, ...] = ()
    status: int | None = None
    mtu: int | None = None
    log: tuple[int, ...] | None = None

    def ring(self, index: int) -> SentRing:
        return self.rings[index] if index < len(self.rings) else SentRing()

    def at(self, places: Mapping[int, RingAddress]) -> bool:
        """Whether the back end has each of these rings at the given address."""
        return all(self.ring(index).address == place for index, place in places.items())


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message to a back end. ``expects`` is the request whose reply follows; ``stops`` is the ring it stops."""

    data: bytes
    descriptors: tuple[Descriptor, ...] = ()
    expects: Request | None = None
    stops: int | None = None


@dataclass(slots=True)
class _Script:
    """The messages so far, and what the back end will have been sent after them."""

    told: SentState
    out: list[OutgoingMessage] = field(default_factory=list)

    def ring(self, index: int, ring: SentRing) -> None:
        if index < len(self.told.rings) and self.told.rings[index] is ring:
            return
        rings = list(self.told.rings) + [SentRing()] * (index + 1 - len(self.told.rings))
        rings[index] = ring
        self.told = replace(self.told, rings=tuple(rings))


def table(state: GuestState, scratch: Region) -> tuple[Region, ...]:
    """Return the memory table for a back end: the guest's and, if there is room for one region more, the scratch."""
    if len(state.memory) >= messages.MAX_REGIONS or not state.memory:
        return state.memory
    return (*state.memory, scratch)


def why_not_parked(state: GuestState) -> str | None:
    """Return why no back end can be parked for this VM, or ``None`` if one can be."""
    if len(state.memory) >= messages.MAX_REGIONS:
        return f"its memory has {len(state.memory)} regions; vhost-user allows 8 and parking needs one of them"
    for region in state.memory:
        if (
            region.overlaps(SCRATCH_USER_ADDRESS, SCRATCH_SIZE)
            or region.guest_address + region.size > SCRATCH_GUEST_ADDRESS
        ):
            return "its memory table uses addresses that no machine has"
    return None


def reconcile(
    told: SentState,
    state: GuestState,
    role: Role,
    scratch: Region,
    offer: Offer,
    base: Callable[[int], int],
    only: int | None = None,
) -> tuple[list[OutgoingMessage], SentState]:
    """Return the messages that bring a back end from ``told`` to what its role entitles it to, and ``told`` after them.

    ``only`` is the one ring that may differ, if that is known; the cost of a message then does not grow with the number
    of rings. ``base(index)`` is the index at which an owner is to begin with a ring that starts now. A ring that QEMU
    has stopped, or described again, is stopped. Stops come first. All parameters of a ring come before its enable,
    because DPDK calls ``new_device`` at the first enabled pair (``virtio_is_ready``) and OVS counts the rings at that
    moment. Addresses and calls of all rings come before the first kick: to DPDK 17.11 a device is ready as soon as
    those rings are ready of which it has been sent something, enabled or not.
    """
    script = _Script(told)
    heard = range(len(told.rings)) if only is None else range(only, only + 1)
    known = range(len(state.rings)) if only is None else range(only, only + 1)
    if role is Role.IDLE:
        for index in heard:
            if told.ring(index).started:
                _stop(script, index)
        return script.out, script.told
    for index in heard:
        ring, was = state.ring(index), told.ring(index)
        if was.started and (not ring.started or (ring.size, ring.life) != (was.size, was.life)):
            _stop(script, index)
    _device(script, state, offer)
    _memory_and_log(script, state, scratch, offer)
    for index in known:
        _place_and_call(script, index, state.ring(index), role, base)
    for index in known:
        _kick(script, index, state.ring(index))
    for index in known:
        ring = state.ring(index)
        if ring.enabled is not None and ring.enabled != script.told.ring(index).enabled:
            script.out.append(
                OutgoingMessage(messages.build_ring_value(Request.SET_VRING_ENABLE, index, int(ring.enabled)))
            )
            script.ring(index, replace(script.told.ring(index), enabled=ring.enabled))
    if state.status is not None and state.status != script.told.status and _has(offer, messages.ProtocolFeature.STATUS):
        script.out.append(OutgoingMessage(messages.build_number(Request.SET_STATUS, state.status)))
        script.told = replace(script.told, status=state.status)
    return script.out, script.told


def _has(offer: Offer, bit: messages.ProtocolFeature) -> bool:
    return bool(offer.protocol_features >> bit & 1)


def _stop(script: _Script, index: int) -> None:
    request = Request.GET_VRING_BASE
    script.out.append(OutgoingMessage(messages.build_ring_value(request, index, 0), expects=request, stops=index))
    # DPDK forgets size, addresses, kick and call (``vhost_user_get_vring_base``) but keeps the enable.
    script.ring(index, SentRing(enabled=script.told.ring(index).enabled))


def _device(script: _Script, state: GuestState, offer: Offer) -> None:
    told = script.told
    if state.protocol_features is not None or (state.features is not None and told.protocol_features):
        # On this connection it may have been sent those of a QEMU that left before its guest's driver started.
        bits = (state.protocol_features or 0) & offer.protocol_features
        if bits != told.protocol_features:
            script.out.append(OutgoingMessage(messages.build_number(Request.SET_PROTOCOL_FEATURES, bits)))
            told = replace(told, protocol_features=bits)
    if state.owned and not told.owned:
        script.out.append(OutgoingMessage(messages.build(Request.SET_OWNER)))
        told = replace(told, owned=True)
    if state.features is not None and state.features != told.features:
        script.out.append(OutgoingMessage(messages.build_number(Request.SET_FEATURES, state.features)))
        told = replace(told, features=state.features)
    if state.mtu is not None and state.mtu != told.mtu and _has(offer, messages.ProtocolFeature.NET_MTU):
        script.out.append(OutgoingMessage(messages.build_number(Request.NET_SET_MTU, state.mtu)))
        told = replace(told, mtu=state.mtu)
    script.told = told


def _memory_and_log(script: _Script, state: GuestState, scratch: Region, offer: Offer) -> None:
    regions = table(state, scratch)
    keys = tuple((r.guest_address, r.size, r.user_address, r.offset, r.descriptor.serial) for r in regions)
    if regions and keys != script.told.memory:
        script.out.append(OutgoingMessage(messages.build_memory_table(regions), tuple(r.descriptor for r in regions)))
        script.told = replace(script.told, memory=keys)
    if state.log is not None and _has(offer, messages.ProtocolFeature.LOG_SHMFD):
        key = (state.log.size, state.log.offset, state.log.descriptor.serial)
        if key != script.told.log:
            request = Request.SET_LOG_BASE
            script.out.append(OutgoingMessage(messages.build_log(state.log), (state.log.descriptor,), expects=request))
            script.told = replace(script.told, log=key)


def _place_and_call(script: _Script, index: int, ring: Ring, role: Role, base: Callable[[int], int]) -> None:
    heard = script.told.ring(index)
    if ring.started and not heard.started:
        assert ring.size is not None
        start = base(index) if role is Role.OWNER else 0
        script.out.append(OutgoingMessage(messages.build_ring_value(Request.SET_VRING_NUM, index, ring.size)))
        script.out.append(OutgoingMessage(messages.build_ring_value(Request.SET_VRING_BASE, index, start)))
        heard = replace(heard, size=ring.size, life=ring.life)
    waits_already = role is Role.PARKED and is_parking_address(
        heard.address
    )  # perhaps on a capture ring, which the mover minds
    if ring.started and not waits_already and (wanted := place(ring, role)) != heard.address:
        script.out.append(OutgoingMessage(messages.build_ring_address(index, wanted)))
        heard = replace(heard, address=wanted)
    if ring.call.said and ring.call.key != heard.call:
        script.out.append(_line(Request.SET_VRING_CALL, index, ring.call))
        heard = replace(heard, call=ring.call.key)
    script.ring(index, heard)


def _kick(script: _Script, index: int, ring: Ring) -> None:
    heard = script.told.ring(index)
    if ring.started and ring.kick.key != heard.kick:
        script.out.append(_line(Request.SET_VRING_KICK, index, ring.kick))
        script.ring(index, replace(heard, kick=ring.kick.key))


def place(ring: Ring, role: Role) -> RingAddress:
    """Return the address at which a back end of this role has a started ring."""
    assert ring.address is not None
    return ring.address if role is Role.OWNER else PARKING


def is_parking_address(address: RingAddress | None) -> bool:
    """Whether a back end that has a ring at ``address`` is parked: on the empty ring or on a capture ring."""
    return address is not None and address.descriptors >= SCRATCH_USER_ADDRESS


def places(state: GuestState, role: Role) -> dict[int, RingAddress]:
    """Return the address of every started ring for a role, by ring."""
    return {index: place(state.rings[index], role) for index in state.started}


def _line(request: Request, index: int, line: VringFd) -> OutgoingMessage:
    data = messages.build_ring_descriptor(request, index, present=line.descriptor is not None)
    return OutgoingMessage(data, () if line.descriptor is None else (line.descriptor,))


def without_capture_rings(told: SentState) -> SentState:
    """Return ``told`` without the capture rings, so that ``reconcile`` puts the back end on the empty ring."""
    captures = [
        index for index, ring in enumerate(told.rings) if is_parking_address(ring.address) and ring.address != PARKING
    ]
    rings = [replace(ring, address=None) if index in captures else ring for index, ring in enumerate(told.rings)]
    return replace(told, rings=tuple(rings)) if captures else told


def unplaced(told: SentState) -> SentState:
    """Return ``told`` without ring addresses, so that ``reconcile`` sends all of them again.

    This is for a back end of which it is not known which addresses it was sent last.
    """
    return replace(told, rings=tuple(replace(ring, address=None) for ring in told.rings))


def only_places(before: SentState, after: SentState) -> bool:
    """Whether ``before`` and ``after`` differ in nothing but the addresses of rings."""
    return unplaced(before) == unplaced(after)


def with_ring_addresses(told: SentState, places: Mapping[int, RingAddress]) -> SentState:
    """Return ``told`` after a handover has sent the back end these ring addresses."""
    rings = list(told.rings)
    for index, at in places.items():
        ring = rings[index]
        rings[index] = SentRing(ring.size, at, ring.kick, ring.call, ring.enabled, ring.life)
    return replace(told, rings=tuple(rings))

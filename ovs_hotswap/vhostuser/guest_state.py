"""What a VM's QEMU asked for. Pure.

``GuestState`` is the record of one VM: everything its QEMU said that a new back end has to hear. ``apply_message``
takes one message into it and says which reply QEMU is due. ``reconcile`` makes a back end agree with the record.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Descriptor, DirtyLog, Region, Request, RingAddress
from ovs_hotswap.vhostuser.unsupported import CHANGES_MESSAGES, protocol_feature_names


@dataclass(frozen=True, slots=True)
class Offer:
    """What a back end can do: virtio features, protocol features, queue pairs."""

    features: int
    protocol_features: int
    queue_pairs: int

    def masked(self) -> Offer:
        """The part of it that the broker can carry."""
        return Offer(
            self.features & messages.CARRIED_FEATURES,
            self.protocol_features & messages.CARRIED_PROTOCOL_FEATURES,
            min(self.queue_pairs, messages.MAX_RINGS // 2),
        )

    def common(self, other: Offer) -> Offer:
        return Offer(
            self.features & other.features,
            self.protocol_features & other.protocol_features,
            min(self.queue_pairs, other.queue_pairs),
        )


def offer_to_guest(offers: Iterable[Offer], withheld: int, queues: int | None) -> Offer:
    """What all of at least one back end can do, without some feature bits and no more than ``queues`` queue pairs."""
    common = reduce(Offer.common, offers)
    pairs = common.queue_pairs if queues is None else min(common.queue_pairs, queues)
    return Offer(common.features & ~withheld, common.protocol_features, pairs)


@dataclass(frozen=True, slots=True)
class VringFd:
    """A kick or call: said or not, and the descriptor, if there is one."""

    said: bool = False
    descriptor: Descriptor | None = None

    @property
    def key(self) -> tuple[bool, int]:
        """Tells two of them apart without looking into the descriptor."""
        return self.said, -1 if self.descriptor is None else self.descriptor.serial


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring as QEMU described it. ``kick`` said means started (spec, *Ring states*).

    ``base`` is where a back end is to begin, ``None``: where the used index in the guest's memory is. ``life`` counts
    how often the ring was stopped, by GET_VRING_BASE or because it was described anew while it was started; a back end
    that serves an earlier life stops the ring and begins anew. ``anew``: it was described anew, and neither kicked,
    enabled nor disabled since.
    """

    size: int | None = None
    address: RingAddress | None = None
    base: int | None = 0
    kick: VringFd = VringFd()
    call: VringFd = VringFd()
    enabled: bool | None = None
    life: int = 0
    anew: bool = False

    @property
    def started(self) -> bool:
        return self.kick.said and self.size is not None and self.address is not None

    @property
    def stopped(self) -> Ring:
        """The ring after its front end has stopped it."""
        return Ring(base=None, enabled=self.enabled, life=self.life + 1)

    @property
    def again(self) -> Ring:
        """The ring begun anew: where its front end has said, if that has just described it, else where it stands."""
        return replace(self, base=self.base if self.anew else None, life=self.life + 1)

    def described(
        self, *, size: int | None = None, address: RingAddress | None = None, base: int | None = None
    ) -> Ring:
        """The ring with a part of its description.

        A started ring need not be stopped with GET_VRING_BASE before it is described again (Cloud Hypervisor resets a
        device without it): whoever serves it has to stop, or goes on at an index that the new ring does not have. Only
        another place or log of the ring is no new life: QEMU sends that while the ring runs, when a migration starts.
        """
        elsewhere = address is not None and address != self.address
        ring = self if not self.started or elsewhere else replace(self.again, anew=True)
        return replace(ring, size=size or ring.size, address=address or ring.address,
                       base=ring.base if base is None else base)  # fmt: skip

    def kicked(self, kick: VringFd, *, runs: bool) -> Ring:
        """The ring with its kick. One that is started and does not run, because it is disabled or the device was reset,
        begins anew with it."""
        ring = self.again if self.started and not self.anew and not runs else self
        return replace(ring, kick=kick, anew=False)


@dataclass(frozen=True)
class GuestState:
    """The record of one VM. ``None``: QEMU has not said it."""

    features: int | None = None
    protocol_features: int | None = None
    owned: bool = False
    memory: tuple[Region, ...] = ()
    rings: tuple[Ring, ...] = ()
    status: int | None = None
    mtu: int | None = None
    log: DirtyLog | None = None

    @cached_property
    def started(self) -> tuple[int, ...]:
        """Indices of the rings that a back end serves."""
        return tuple(index for index, ring in enumerate(self.rings) if ring.started)

    def ring(self, index: int) -> Ring:
        return self.rings[index] if index < len(self.rings) else Ring()

    def enabled(self, index: int) -> bool:
        """Whether a back end processes the ring once it is started. Without PROTOCOL_FEATURES there is no message for
        it, and a ring is enabled from its start (spec, *Ring states*)."""
        said = self.ring(index).enabled
        return not (self.features or 0) >> messages.Feature.PROTOCOL_FEATURES & 1 if said is None else said

    def with_ring(self, index: int, ring: Ring) -> GuestState:
        rings = list(self.rings) + [Ring()] * (index + 1 - len(self.rings))
        rings[index] = ring
        return replace(self, rings=tuple(rings))

    def descriptors(self) -> Iterator[Descriptor]:
        """All descriptors that the record owns."""
        for region in self.memory:
            yield region.descriptor
        for ring in self.rings:
            for line in (ring.kick, ring.call):
                if line.descriptor is not None:
                    yield line.descriptor
        if self.log is not None:
            yield self.log.descriptor


class ReplyDue(enum.Enum):
    """What QEMU is owed for a message. NOW: ``value`` at once. BASE: ring ``index``'s base, once the owner has stopped
    it. SETTLED: an acknowledgement once the back ends have taken the change. RARP: pass on to the owner."""

    NOTHING = enum.auto()
    NOW = enum.auto()
    BASE = enum.auto()
    SETTLED = enum.auto()
    RARP = enum.auto()


@dataclass(frozen=True, slots=True)
class MessageEffect:
    """What came of one message. ``surplus``: descriptors nobody needs any more, to be closed. ``remark``: what to tell
    the operator about it."""

    state: GuestState
    answer: ReplyDue = ReplyDue.NOTHING
    value: int = 0
    index: int = 0
    surplus: tuple[Descriptor, ...] = ()
    remark: str | None = None


def apply_message(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Take one message from QEMU into the record.

    ``offer`` is what QEMU was or will be offered. Raises ProtocolError if QEMU acknowledges what was not offered, names
    a ring beyond the queue pairs offered (each can hold two descriptors of the broker's) or memory that it did not
    share; the record is then as before, and the message's descriptors are the caller's.
    """
    if (ring := message.ring) is not None and ring >= 2 * offer.queue_pairs:
        raise ProtocolError(f"{message.request.name}: ring {ring} of {offer.queue_pairs} queue pairs")
    handler = _HANDLERS.get(message.request)
    if handler is None:
        raise ProtocolError(f"{message.request.name} is not carried")
    got = handler(state, message, offer)
    if message.need_reply and got.answer is ReplyDue.NOTHING and message.request not in _ANSWERED:
        return replace(got, answer=ReplyDue.SETTLED)
    return got


_ANSWERED = {Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM, Request.GET_STATUS}


def _offer_features(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(state, ReplyDue.NOW, offer.features)


def _offer_protocol(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(state, ReplyDue.NOW, offer.protocol_features)


def _offer_queues(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(state, ReplyDue.NOW, offer.queue_pairs)


def _tell_status(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(state, ReplyDue.NOW, state.status or 0)


def _number(message: messages.Message) -> int:
    assert isinstance(message.body, messages.Number)
    return message.body.value


def _features(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    value = _number(message)
    # LOG_ALL is acknowledged when a migration starts, whether or not QEMU passes it on to the guest.
    if extra := value & ~(offer.features | 1 << messages.Feature.LOG_ALL):
        raise ProtocolError(f"SET_FEATURES: not offered: {', '.join(messages.feature_names(extra))}")
    rings = state.rings
    if ((state.features or 0) ^ value) & ~(1 << messages.Feature.LOG_ALL):
        # A running device takes no other features (DPDK's ``vhost_user_set_features``): its rings begin anew.
        rings = tuple(ring.again if ring.started else ring for ring in rings)
    return MessageEffect(replace(state, features=value, rings=rings))


def _protocol_features(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Features that were not offered are left out, and are not missed before they are used."""
    value = _number(message)
    extra = value & ~offer.protocol_features
    names = f"SET_PROTOCOL_FEATURES: not offered: {protocol_feature_names(extra)} ({extra:#x})"
    if extra & CHANGES_MESSAGES:
        raise ProtocolError(names)
    known = replace(state, protocol_features=value & offer.protocol_features)
    return MessageEffect(known, remark=f"{names}; ignored until it is used" if extra else None)


def _owner(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(replace(state, owned=True))


def _reset_owner(state: GuestState, _: messages.Message, offer: Offer) -> MessageEffect:
    """Deprecated (spec, RESET_OWNER): stops and disables every ring."""
    lines = [line for ring in state.rings for line in (ring.kick, ring.call)]
    surplus = tuple(line.descriptor for line in lines if line.descriptor is not None)
    rings = tuple(replace(ring.stopped, enabled=None if ring.enabled is None else False) for ring in state.rings)
    return MessageEffect(replace(state, owned=False, rings=rings), surplus=surplus)


def _memory(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.MemoryTable)
    regions = message.body.regions
    for number, region in enumerate(regions):
        if any(region.overlaps(other.user_address, other.size) for other in regions[:number]):
            raise ProtocolError(f"SET_MEM_TABLE: region {number} overlaps another")
    return MessageEffect(replace(state, memory=regions), surplus=tuple(region.descriptor for region in state.memory))


def _ring_size(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingValue)
    index, value = message.body.index, message.body.value
    return MessageEffect(state.with_ring(index, state.ring(index).described(size=value)))


def _ring_base(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingValue)
    index, value = message.body.index, message.body.value
    return MessageEffect(state.with_ring(index, state.ring(index).described(base=value)))


def _ring_enable(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingValue)
    index, enabled = message.body.index, bool(message.body.value)
    ring = state.ring(index)
    return MessageEffect(state.with_ring(index, replace(ring, enabled=enabled, anew=False)))


def ring_parts(size: int) -> tuple[int, int, int]:
    """Bytes of a split ring's descriptor table, available ring and used ring with event index (virtio 1.2, 2.7)."""
    return 16 * size, 6 + 2 * size, 6 + 8 * size


def _ring_address(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingPlace)
    index, at = message.body.index, message.body.address
    ring = state.ring(index)
    # A back end answers OK for addresses it cannot translate and then never serves the ring: look here.
    for part, start, length in zip(
        ("descriptor table", "available ring", "used ring"),
        (at.descriptors, at.available, at.used),
        ring_parts(ring.size or 1),
        strict=True,
    ):
        if not any(region.holds(start, length) for region in state.memory):
            raise ProtocolError(f"SET_VRING_ADDR: {part} of ring {index} at {start:#x} is not in shared memory")
    return MessageEffect(state.with_ring(index, ring.described(address=at)))


def _ring_kick(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingDescriptor)
    index, new = message.body.index, VringFd(True, message.body.descriptor)
    old = state.ring(index)
    if old.size is None or old.address is None:
        raise ProtocolError(f"SET_VRING_KICK: ring {index} has no size or address yet")
    surplus = () if old.kick.descriptor is None else (old.kick.descriptor,)
    runs = state.enabled(index) and state.status != 0
    return MessageEffect(state.with_ring(index, old.kicked(new, runs=runs)), surplus=surplus)


def _ring_call(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingDescriptor)
    index, new = message.body.index, VringFd(True, message.body.descriptor)
    old = state.ring(index)
    surplus = () if old.call.descriptor is None else (old.call.descriptor,)
    return MessageEffect(state.with_ring(index, replace(old, call=new)), surplus=surplus)


def _ring_error(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Not kept: DPDK closes the descriptor unused (``vhost_user_set_vring_err``)."""
    assert isinstance(message.body, messages.RingDescriptor)
    return MessageEffect(state, surplus=() if message.body.descriptor is None else (message.body.descriptor,))


def _ring_stop(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingValue)
    index = message.body.index
    ring = state.ring(index)
    surplus = tuple(line.descriptor for line in (ring.kick, ring.call) if line.descriptor is not None)
    return MessageEffect(
        state.with_ring(index, ring.stopped), ReplyDue.BASE, index=index, value=ring.base or 0, surplus=surplus
    )


def _status(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    value = _number(message)
    if value > 0xFF:
        raise ProtocolError(f"SET_STATUS: {value:#x} does not fit 8 bits")
    return MessageEffect(replace(state, status=value))


def _mtu(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    value = _number(message)
    if not 68 <= value <= 65535:
        raise ProtocolError(f"NET_SET_MTU: {value} is not between 68 and 65535")
    return MessageEffect(replace(state, mtu=value))


def _log_base(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.DirtyLog)
    if not offer.protocol_features >> messages.ProtocolFeature.LOG_SHMFD & 1:
        # Nobody would write the log, and the migration for which it is would lose what the guest received.
        raise ProtocolError("SET_LOG_BASE: protocol feature LOG_SHMFD is not offered")
    surplus = () if state.log is None else (state.log.descriptor,)
    return MessageEffect(replace(state, log=message.body), ReplyDue.SETTLED, surplus=surplus)


def _unused_descriptor(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Not kept. DPDK closes that of SET_LOG_FD unused (``vhost_user_set_log_fd``). The channel for a back end's
    requests is for what nobody sends, and the buffer for inflight descriptors is not needed: DPDK finds its place in a
    split ring by the used index."""
    assert isinstance(message.body, messages.OneDescriptor)
    return MessageEffect(state, surplus=(message.body.descriptor,))


def _rarp(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    return MessageEffect(state, ReplyDue.RARP, value=_number(message))


_HANDLERS: dict[Request, Callable[[GuestState, messages.Message, Offer], MessageEffect]] = {
    Request.GET_FEATURES: _offer_features,
    Request.GET_PROTOCOL_FEATURES: _offer_protocol,
    Request.GET_QUEUE_NUM: _offer_queues,
    Request.GET_STATUS: _tell_status,
    Request.SET_FEATURES: _features,
    Request.SET_PROTOCOL_FEATURES: _protocol_features,
    Request.SET_OWNER: _owner,
    Request.RESET_OWNER: _reset_owner,
    Request.SET_MEM_TABLE: _memory,
    Request.SET_LOG_BASE: _log_base,
    Request.SET_LOG_FD: _unused_descriptor,
    Request.SET_BACKEND_REQ_FD: _unused_descriptor,
    Request.SET_INFLIGHT_FD: _unused_descriptor,
    Request.SET_VRING_NUM: _ring_size,
    Request.SET_VRING_ADDR: _ring_address,
    Request.SET_VRING_BASE: _ring_base,
    Request.GET_VRING_BASE: _ring_stop,
    Request.SET_VRING_KICK: _ring_kick,
    Request.SET_VRING_CALL: _ring_call,
    Request.SET_VRING_ERR: _ring_error,
    Request.SET_VRING_ENABLE: _ring_enable,
    Request.SEND_RARP: _rarp,
    Request.NET_SET_MTU: _mtu,
    Request.SET_STATUS: _status,
}

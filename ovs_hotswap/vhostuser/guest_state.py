"""The record of what a VM's QEMU has asked for. This module is pure.

``GuestState`` is the record of one VM: everything from its QEMU that a new back end has to be sent. ``apply_message``
applies one message to the record and says which reply is due to QEMU. ``reconcile`` makes a back end agree with the
record.
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
    """What a back end can do: virtio feature bits, protocol feature bits, number of queue pairs."""

    features: int
    protocol_features: int
    queue_pairs: int

    def masked(self) -> Offer:
        """Return the part of the offer that the broker can carry."""
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
    """Return what all the back ends (one at least) can do.

    The feature bits in ``withheld`` are left out. ``queues`` limits the number of queue pairs, unless it is ``None``.
    """
    common = reduce(Offer.common, offers)
    pairs = common.queue_pairs if queues is None else min(common.queue_pairs, queues)
    return Offer(common.features & ~withheld, common.protocol_features, pairs)


@dataclass(frozen=True, slots=True)
class VringFd:
    """A kick or call of a ring: whether QEMU has sent the message (``said``), and the descriptor, if it had one."""

    said: bool = False
    descriptor: Descriptor | None = None

    @property
    def key(self) -> tuple[bool, int]:
        """A value that differs between two descriptors, so that nothing has to look into them."""
        return self.said, -1 if self.descriptor is None else self.descriptor.serial


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring as QEMU described it. A ring whose ``kick`` was sent is started (spec, *Ring states*).

    ``base`` is the index at which a back end is to begin; ``None`` stands for the used index in the guest's memory.
    ``life`` counts how often the ring was stopped, by GET_VRING_BASE or because QEMU described it again while it was
    started. A back end that serves an earlier life has to stop the ring and start it again. ``anew``: QEMU described
    the ring again while it was started, and has neither kicked, enabled nor disabled it since.
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
        """Return the ring after its front end has stopped it."""
        return Ring(base=None, enabled=self.enabled, life=self.life + 1)

    @property
    def again(self) -> Ring:
        """Return the ring started again, as a new life.

        It begins at the base that its front end gave, if the front end has just described it; otherwise at the used
        index in the guest's memory.
        """
        return replace(self, base=self.base if self.anew else None, life=self.life + 1)

    def described(
        self, *, size: int | None = None, address: RingAddress | None = None, base: int | None = None
    ) -> Ring:
        """Return the ring with a new part of its description: ``size`` in entries, ``address`` or ``base``.

        A front end may describe a started ring again without stopping it by GET_VRING_BASE (Cloud Hypervisor resets a
        device so). Then this is a new life: the back end has to stop the ring, or would continue at an index that the
        new ring does not have. Only a changed address is no new life: QEMU sends another place or log of a ring while
        it runs, when a migration starts.
        """
        elsewhere = address is not None and address != self.address
        ring = self if not self.started or elsewhere else replace(self.again, anew=True)
        return replace(ring, size=size or ring.size, address=address or ring.address,
                       base=ring.base if base is None else base)  # fmt: skip

    def kicked(self, kick: VringFd, *, runs: bool) -> Ring:
        """Return the ring with its kick.

        ``runs`` is false if the ring is disabled or the device was reset. A started ring that does not run begins a new
        life with the kick.
        """
        ring = self.again if self.started and not self.anew and not runs else self
        return replace(ring, kick=kick, anew=False)


@dataclass(frozen=True)
class GuestState:
    """The record of one VM. ``None`` in a field: QEMU has not sent it."""

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
        """The indices of the rings that are started, and therefore served by a back end."""
        return tuple(index for index, ring in enumerate(self.rings) if ring.started)

    def ring(self, index: int) -> Ring:
        return self.rings[index] if index < len(self.rings) else Ring()

    def enabled(self, index: int) -> bool:
        """Whether a back end processes the ring once it is started.

        Without PROTOCOL_FEATURES there is no message that enables a ring, and each is enabled from its start (spec,
        *Ring states*).
        """
        said = self.ring(index).enabled
        return not (self.features or 0) >> messages.Feature.PROTOCOL_FEATURES & 1 if said is None else said

    def with_ring(self, index: int, ring: Ring) -> GuestState:
        rings = list(self.rings) + [Ring()] * (index + 1 - len(self.rings))
        rings[index] = ring
        return replace(self, rings=tuple(rings))

    def descriptors(self) -> Iterator[Descriptor]:
        """Yield all descriptors that the record owns."""
        for region in self.memory:
            yield region.descriptor
        for ring in self.rings:
            for line in (ring.kick, ring.call):
                if line.descriptor is not None:
                    yield line.descriptor
        if self.log is not None:
            yield self.log.descriptor


class ReplyDue(enum.Enum):
    """The reply that is due to QEMU for a message.

    NOTHING: no reply. NOW: ``value``, at once. BASE: the base of ring ``index``, after the owner has stopped it.
    SETTLED: an acknowledgement, after the back ends have applied the change. RARP: no reply; the broker passes the
    message on to the owner.
    """

    NOTHING = enum.auto()
    NOW = enum.auto()
    BASE = enum.auto()
    SETTLED = enum.auto()
    RARP = enum.auto()


@dataclass(frozen=True, slots=True)
class MessageEffect:
    """The effect of one message: the record after it, and the reply that is due.

    ``surplus``: descriptors that are no longer needed, for the caller to close. ``remark``: what the operator should
    know about the message.
    """

    state: GuestState
    answer: ReplyDue = ReplyDue.NOTHING
    value: int = 0
    index: int = 0
    surplus: tuple[Descriptor, ...] = ()
    remark: str | None = None


def apply_message(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Apply one message from QEMU to the record.

    ``offer`` is what QEMU was or will be offered. Raises ProtocolError if QEMU acknowledges what was not offered, or
    names memory that it did not share, or a ring beyond the queue pairs offered (each ring can hold two of the broker's
    descriptors). The record is then as before, and the caller owns the message's descriptors.
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
        # A running device accepts no other features (DPDK's ``vhost_user_set_features``): its rings are started again.
        rings = tuple(ring.again if ring.started else ring for ring in rings)
    return MessageEffect(replace(state, features=value, rings=rings))


def _protocol_features(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Leave out features that were not offered: that matters only if the front end uses them, which is then refused."""
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
    """Stop and disable every ring. The request is deprecated (spec, RESET_OWNER)."""
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
    """Return the bytes of a split ring's descriptor table, available ring and used ring (virtio 1.2, 2.7).

    ``size`` is the number of entries. Both rings are counted with the event index.
    """
    return 16 * size, 6 + 2 * size, 6 + 8 * size


def _ring_address(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    assert isinstance(message.body, messages.RingPlace)
    index, at = message.body.index, message.body.address
    ring = state.ring(index)
    # A back end answers OK for addresses that it cannot translate, and then never serves the ring: so they are checked.
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
    """Do not keep the descriptor: DPDK closes it unused (``vhost_user_set_vring_err``)."""
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
        # No back end would write the log, and the migration that uses it would lose what the guest received.
        raise ProtocolError("SET_LOG_BASE: protocol feature LOG_SHMFD is not offered")
    surplus = () if state.log is None else (state.log.descriptor,)
    return MessageEffect(replace(state, log=message.body), ReplyDue.SETTLED, surplus=surplus)


def _unused_descriptor(state: GuestState, message: messages.Message, offer: Offer) -> MessageEffect:
    """Do not keep the descriptor.

    DPDK closes the descriptor of SET_LOG_FD unused (``vhost_user_set_log_fd``). The channel of SET_BACKEND_REQ_FD is
    for requests that no back end sends here. The buffer of SET_INFLIGHT_FD is not needed: DPDK finds its place in a
    split ring by the used index.
    """
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

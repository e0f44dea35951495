"""The broker's connection to one switch for one VM. On this connection the broker is the vhost-user front end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import locks_memory
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.capture import reach
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer
from ovs_hotswap.vhostuser.messages import Descriptor, Region, Request, RingAddress
from ovs_hotswap.vhostuser.reconcile import SCRATCH_SIZE, OutgoingMessage, Role, SentState, scratch_region, scratch_size

FENCE = messages.build(Request.GET_FEATURES)
FENCE_ANSWER_SIZE = messages.HEADER.size + messages.U64.size

Then = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class FencedMessages:
    """A number of messages (``count``) in ``data``, of which the back end answers the last with a number.

    When that answer has come, the back end has handled all of them. ``request`` is the request that the answer names.
    """

    data: bytes
    request: Request
    count: int = 1

    @property
    def answer_header(self) -> bytes:
        return messages.HEADER.pack(self.request, messages.VERSION | messages.REPLY, messages.U64.size)


@dataclass(frozen=True, slots=True)
class _Due:
    request: Request
    then: Then | None


class SwitchConnection:
    """Sends requests to one back end and keeps, in order, what is to be done with each answer.

    ``told`` is what the back end has been sent. ``offer`` is ``None`` until ``probe`` has asked for it.
    """

    def __init__(self, side: Side, channel: Channel) -> None:
        self.side = side
        self.channel = channel
        self.pid = channel.peer_pid
        self.told = SentState()
        self.offer: Offer | None = None
        self.resync_with = Request.GET_PROTOCOL_FEATURES
        self.inherited = False  # from another process that may not have read every answer: ``resync`` is to come
        self._due: deque[_Due] = deque()
        self._agreed: tuple[GuestState, Role, SentState] | None = None

    def __repr__(self) -> str:
        known = "not asked yet" if self.offer is None else f"{len(self._due)} answers due"
        return f"<SwitchConnection {self.side}: process {self.pid}, {known}>"

    def agreed(self, state: GuestState, role: Role) -> None:
        """Remember that the back end has been sent all of ``state`` that its ``role`` entitles it to."""
        self._agreed = state, role, self.told

    def agrees(self, state: GuestState, role: Role) -> bool:
        """Whether the back end was sent all of exactly this state for this role, and nothing since."""
        if self._agreed is None:
            return False
        known, was, told = self._agreed
        return known is state and was is role and told is self.told

    def scratch_region(self, descriptor: Descriptor, pairs: int | None, mtu: int | None) -> Region:
        """Return how much of the scratch memory this back end maps: always the same on one connection. A switch that
        locks its memory (``--mlockall``, which `ovs-ctl` sets) allocates all of a region when it maps it, for each VM.
        So it gets only what parking and the VM's capture rings need (``capture.reach``)."""
        size = scratch_size(self.told)
        if size is None:
            size = reach(pairs, mtu) if locks_memory(self.pid) else SCRATCH_SIZE
        return scratch_region(descriptor, size)

    @property
    def quiet(self) -> bool:
        """Whether every answer has come, so that the back end has handled everything it was sent."""
        return not self._due and self.channel.quiet

    def probe(self, done: Callable[[Offer], None]) -> None:
        """Ask the back end what it can do, and call ``done`` with its offer.

        The connection must not be dropped before SET_FEATURES: OVS 3.2 and later would offer less on the next
        connection (``destroy_connection`` in netdev-dpdk.c).
        """
        found: dict[Request, int] = {}

        def features(value: int | None) -> None:
            found[Request.GET_FEATURES] = value or 0
            if found[Request.GET_FEATURES] >> messages.Feature.PROTOCOL_FEATURES & 1:
                self.request(Request.GET_PROTOCOL_FEATURES, protocol)
            else:
                finish(1)

        def protocol(value: int | None) -> None:
            found[Request.GET_PROTOCOL_FEATURES] = value or 0
            if found[Request.GET_PROTOCOL_FEATURES] >> messages.ProtocolFeature.MQ & 1:
                self.request(Request.GET_QUEUE_NUM, finish)
            else:
                finish(1)

        def finish(queue_pairs: int | None) -> None:
            protocols = found.get(Request.GET_PROTOCOL_FEATURES, 0)
            self.offer = Offer(found[Request.GET_FEATURES], protocols, queue_pairs or 1).masked()
            done(self.offer)

        self.request(Request.GET_FEATURES, features)

    def request(self, request: Request, then: Then | None = None) -> None:
        """Send a request that is answered with a number; ``then`` is called with the number."""
        self._due.append(_Due(request, then))
        self.channel.send(messages.build(request))

    def resync(self) -> None:
        """Continue a connection on which another process may have left answers unread, or read half of one.

        This sends ``resync_with`` and throws away what comes before its answer. After ``probe``, only a process that
        continues a connection sends this request, and that process does not hand the connection on before the answer
        has come (``Channel.seeking``). A process that continues from the same state as one before it sends another
        request than that process did, because an answer to the earlier request may still come. Raises ProtocolError if
        the back end cannot be asked, because it did not offer PROTOCOL_FEATURES.
        """
        if self.offer is None or not self.offer.features >> messages.Feature.PROTOCOL_FEATURES & 1:
            raise ProtocolError("it is not known which answers are due")
        request = self.resync_with
        self.channel.seek(messages.HEADER.pack(request, messages.VERSION | messages.REPLY, messages.U64.size))
        self.request(request)

    def fence(self, then: Callable[[], None]) -> None:
        """Have ``then`` called once the back end has handled everything sent so far."""
        self.request(Request.GET_FEATURES, lambda _: then())

    @property
    def acknowledges(self) -> bool:
        """Whether REPLY_ACK was agreed with the back end: it answers a message that has NEED_REPLY set."""
        return bool((self.told.protocol_features or 0) >> messages.ProtocolFeature.REPLY_ACK & 1)

    def placed(self, places: Mapping[int, RingAddress]) -> FencedMessages:
        """Return SET_VRING_ADDR for each ring of ``places``, and a fence behind them.

        If REPLY_ACK was agreed, the back end answers the last SET_VRING_ADDR itself, after handling it (DPDK's
        ``vhost_user_msg_handler``), which saves a message. Otherwise GET_FEATURES follows as the fence. Neither answer
        says that the addresses can be translated, because DPDK answers OK either way: a ring that cannot be used shows
        only by the switch taking nothing from it.
        """
        if not places or not self.acknowledges:
            addresses = b"".join(messages.build_ring_address(index, at) for index, at in places.items())
            return FencedMessages(addresses + FENCE, Request.GET_FEATURES, len(places) + 1)
        *rest, (last, there) = places.items()
        data = b"".join(messages.build_ring_address(index, at) for index, at in rest)
        return FencedMessages(data + messages.build_ring_address(last, there, messages.VERSION | messages.NEED_REPLY),
                      Request.SET_VRING_ADDR, len(places))  # fmt: skip

    def send(self, fenced: FencedMessages, then: Callable[[], None]) -> None:
        """Send messages and have ``then`` called once the back end has handled them."""
        self.expect(fenced, then)
        self.channel.send(fenced.data)

    def expect(self, fenced: FencedMessages, then: Callable[[], None]) -> None:
        """Have ``then`` called when the back end answers ``fenced``, which a handover has sent already."""
        self._due.append(_Due(fenced.request, lambda _: then()))

    def apply(self, script: Sequence[OutgoingMessage], told: SentState, stopped: Callable[[int, int], None]) -> None:
        """Send the messages that ``reconcile`` returned; ``told`` is what the back end has been sent after them.

        ``stopped(index, base)`` is called for each ring that the messages stop, when the back end has answered.
        """
        for out in script:
            if out.expects is not None:
                then: Then | None = None
                if out.stops is not None:
                    index = out.stops
                    then = lambda base, index=index: stopped(index, base or 0)  # noqa: E731
                self._due.append(_Due(out.expects, then))
            self.channel.send(out.data, out.descriptors)
        self.told = told

    def answered(self, frame: messages.Frame) -> None:
        """Take a frame from the back end as the answer that is due next.

        Raises ProtocolError if no answer was due, or if the frame is not that answer. No answer carries descriptors;
        if the frame has any, the caller closes them.
        """
        if not self._due:
            raise ProtocolError(f"request {frame.request} from the switch, which was asked nothing")
        value = messages.parse_reply(frame, self._due[0].request)
        due = self._due.popleft()
        if due.then is not None:
            due.then(value)

    def hang_up(self) -> None:
        """Close the connection, also for other processes that have it; answers that are due are given up."""
        self._due.clear()
        self.channel.hang_up()

    def close(self) -> None:
        """Close this process's end, and give up the answers that are due. A process that has a duplicate keeps it."""
        self._due.clear()
        self.channel.close()

"""One switch's connection for one VM, seen from the broker: it is the front end there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer
from ovs_hotswap.vhostuser.messages import Request, RingAddress
from ovs_hotswap.vhostuser.reconcile import OutgoingMessage, Role, SentState

FENCE = messages.build(Request.GET_FEATURES)
FENCE_ANSWER_SIZE = messages.HEADER.size + messages.U64.size

Then = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class FencedMessages:
    """``count`` messages of which the last is answered with a number: then the back end has handled all of them.
    ``request`` is what the answer names."""

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
    """Requests to one back end and, in order, what is to be done with its answers.

    ``told`` is what it has heard. ``offer`` is ``None`` until ``probe`` has asked for it.
    """

    def __init__(self, side: Side, channel: Channel) -> None:
        self.side = side
        self.channel = channel
        self.pid = channel.peer_pid
        self.told = SentState()
        self.offer: Offer | None = None
        self.resync_with = Request.GET_PROTOCOL_FEATURES
        self.inherited = False  # from another process, with what that was told or not, and ``resync`` is to come
        self._due: deque[_Due] = deque()
        self._agreed: tuple[GuestState, Role, SentState] | None = None

    def __repr__(self) -> str:
        known = "not asked yet" if self.offer is None else f"{len(self._due)} answers due"
        return f"<SwitchConnection {self.side}: process {self.pid}, {known}>"

    def agreed(self, state: GuestState, role: Role) -> None:
        """The back end has been told all of ``state`` that its ``role`` entitles it to."""
        self._agreed = state, role, self.told

    def agrees(self, state: GuestState, role: Role) -> bool:
        """Whether it was told all of just that state, and nothing since."""
        if self._agreed is None:
            return False
        known, was, told = self._agreed
        return known is state and was is role and told is self.told

    @property
    def quiet(self) -> bool:
        """Whether every answer has come: the back end has taken all it was told."""
        return not self._due and self.channel.quiet

    def probe(self, done: Callable[[Offer], None]) -> None:
        """Ask the back end what it can do. The connection must not be dropped before SET_FEATURES: OVS 3.2 and later
        then offer less on the next one (``destroy_connection`` in netdev-dpdk.c)."""
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
        """Ask for a number."""
        self._due.append(_Due(request, then))
        self.channel.send(messages.build(request))

    def resync(self) -> None:
        """Go on where another process may have asked what it did not hear the answer of, or has read half an answer:
        what comes before the answer to ``resync_with`` is thrown away. Apart from ``probe``, only another process that
        continued likewise asks it, and that process hands nothing on before it has the answer (``Channel.seeking``). A
        process that continues from the same state as one before it asks another question than that one did: an answer
        to that one's may still come. Raises ProtocolError if it cannot be asked."""
        if self.offer is None or not self.offer.features >> messages.Feature.PROTOCOL_FEATURES & 1:
            raise ProtocolError("nobody can say which answers are due")
        request = self.resync_with
        self.channel.seek(messages.HEADER.pack(request, messages.VERSION | messages.REPLY, messages.U64.size))
        self.request(request)

    def fence(self, then: Callable[[], None]) -> None:
        """Have ``then`` called once the back end has handled everything sent so far."""
        self.request(Request.GET_FEATURES, lambda _: then())

    @property
    def acknowledges(self) -> bool:
        """Whether the back end was told that it shall answer where that is asked for."""
        return bool((self.told.protocol_features or 0) >> messages.ProtocolFeature.REPLY_ACK & 1)

    def placed(self, places: Mapping[int, RingAddress]) -> FencedMessages:
        """SET_VRING_ADDR for each ring, and a fence.

        A back end that was told REPLY_ACK answers the last of them (DPDK's ``vhost_user_msg_handler``, when it has
        handled it), which is one message less; else the fence is a question behind them. Neither says that the
        addresses translate, because DPDK answers OK either way: a ring that cannot be used shows in what is not taken.
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
        """Have ``then`` called when messages that the hand-over sent, and that are not answered yet, are."""
        self._due.append(_Due(fenced.request, lambda _: then()))

    def apply(self, script: Sequence[OutgoingMessage], told: SentState, stopped: Callable[[int, int], None]) -> None:
        """Send what ``reconcile`` found; ``stopped(index, base)`` is called for each ring that it stops."""
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
        """Take a frame from the back end. Raises ProtocolError if no answer was due or it does not fit; the frame's
        descriptors, which no answer has, are the caller's to close."""
        if not self._due:
            raise ProtocolError(f"request {frame.request} from the switch, which was asked nothing")
        value = messages.parse_reply(frame, self._due[0].request)
        due = self._due.popleft()
        if due.then is not None:
            due.then(value)

    def hang_up(self) -> None:
        """Answers that were due never come."""
        self._due.clear()
        self.channel.hang_up()

    def close(self) -> None:
        """The same, but for another process that may have the connection: it does not end for that one."""
        self._due.clear()
        self.channel.close()

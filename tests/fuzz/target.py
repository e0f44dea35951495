"""What the fuzzer calls with each input, and the corpus test with each file."""

from __future__ import annotations

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.guest_state import GuestState, Offer, apply_message
from ovs_hotswap.vhostuser.reconcile import Role, SentState, reconcile, scratch_region

OFFER = Offer(messages.CARRIED_FEATURES, messages.CARRIED_PROTOCOL_FEATURES, 8)


class Counted:
    """A descriptor that knows how often it was closed."""

    serials = 0

    def __init__(self) -> None:
        Counted.serials += 1
        self.serial = Counted.serials
        self.closed = 0

    def fileno(self) -> int:
        return self.serial

    def detach(self) -> int:
        self.close()
        return self.serial

    def close(self) -> None:
        self.closed += 1


SCRATCH = scratch_region(Counted())


def one_input(data: bytes) -> None:
    """Feed a session: each step is a byte (how many bytes to feed, and how many descriptors with them), then the bytes.

    Raises AssertionError if a descriptor ends with other than one owner.
    """
    reader, state, told = messages.FrameReader(), GuestState(), SentState()
    made: list[Counted] = []
    position = 0
    try:
        while position < len(data):
            count = data[position] >> 5  # descriptors that come with this piece
            size = min(max(1, data[position] & 31), reader.wanted)
            piece, position = data[position + 1 : position + 1 + size], position + 1 + size
            if not piece:
                break
            fresh = [Counted() for _ in range(count)]
            made += fresh
            frame = reader.feed(piece, fresh)
            if frame is not None:
                state, told = _message(frame, state, told)
    except ProtocolError:
        pass
    finally:
        reader.close()
        for descriptor in state.descriptors():
            descriptor.close()
    assert all(descriptor.closed == 1 for descriptor in made), [each.closed for each in made]


def _message(frame: messages.Frame, state: GuestState, told: SentState) -> tuple[GuestState, SentState]:
    """Take a frame like ``Vm._take``: on an error close the frame's descriptors, otherwise those that are surplus."""
    try:
        got = apply_message(state, messages.parse(frame), OFFER)
    except ProtocolError:
        for descriptor in frame.descriptors:
            descriptor.close()
        # The record is as before: the caller still owns what it holds.
        return state, told
    for descriptor in got.surplus:
        descriptor.close()
    for role in Role:
        script, after = reconcile(told, got.state, role, SCRATCH, OFFER, lambda index: index)
        again, _ = reconcile(after, got.state, role, SCRATCH, OFFER, lambda index: index)
        assert not again, (role, script, again)
        if role is Role.OWNER:
            told = after
    return got.state, told

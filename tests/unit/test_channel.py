"""The socket with descriptors: nothing lost, nothing leaked, nothing that waits without a deadline."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import FENCE, FENCE_ANSWER_SIZE
from ovs_hotswap.vhostuser.channel import Channel, OwnedFd, PeerClosed
from ovs_hotswap.vhostuser.messages import Request
from tests.support.shortage import few_descriptors


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the peer's bare socket; no descriptor may be left over."""
    before = sorted(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = Channel(ours)
    theirs.settimeout(5)
    yield channel, theirs
    channel.close()
    theirs.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


Pair = tuple[Channel, socket.socket]


def nulls(count: int) -> list[int]:
    return [os.eventfd(0) for _ in range(count)]


def send_with(peer: socket.socket, data: bytes, count: int) -> None:
    fds = nulls(count)
    socket.send_fds(peer, [data], fds)
    for fd in fds:
        os.close(fd)


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_peer_pid_is_that_of_the_peer(pair: Pair) -> None:
    assert pair[0].peer_pid == os.getpid()


def test_nothing_to_receive_is_none_and_does_not_block(pair: Pair) -> None:
    assert pair[0].receive() is None


def test_frames_keep_their_own_descriptors(pair: Pair) -> None:
    channel, peer = pair
    call = messages.build_ring_descriptor(Request.SET_VRING_CALL, 1, present=True)
    peer.sendall(messages.build(Request.GET_FEATURES))
    send_with(peer, call, 1)
    peer.sendall(messages.build(Request.SET_OWNER))
    send_with(peer, call, 1)
    frames = [channel.receive() for _ in range(4)]
    assert channel.receive() is None
    assert [frame and len(frame.descriptors) for frame in frames] == [0, 1, 0, 1]
    for frame in frames:
        assert frame is not None
        for descriptor in frame.descriptors:
            assert not os.get_inheritable(descriptor.fileno())
            descriptor.close()


def test_frame_that_comes_byte_by_byte(pair: Pair) -> None:
    channel, peer = pair
    data = messages.build_number(Request.SET_FEATURES, 5)
    for k in range(len(data) - 1):
        peer.sendall(data[k : k + 1])
        assert channel.receive() is None
        assert not channel.quiet
    peer.sendall(data[-1:])
    frame = channel.receive()
    assert frame is not None
    assert frame.payload == data[12:]
    assert channel.quiet


def test_descriptors_of_an_unfinished_frame_are_closed_with_the_channel(pair: Pair) -> None:
    channel, peer = pair
    send_with(peer, messages.build(Request.SET_MEM_TABLE, bytes(8))[:15], 8)
    assert channel.receive() is None


@pytest.mark.parametrize("count", [9, 33, 200])
def test_too_many_descriptors_fail_and_are_all_closed(pair: Pair, count: int) -> None:
    channel, peer = pair
    send_with(peer, messages.build(Request.SET_MEM_TABLE, bytes(8)), count)
    with pytest.raises(ProtocolError, match="descriptors"):
        channel.receive()


def test_descriptors_trickling_in_with_every_byte_are_limited(pair: Pair) -> None:
    channel, peer = pair
    data = messages.build_number(Request.SET_FEATURES, 5)
    for k in range(12):
        send_with(peer, data[k : k + 1], 1)
    with pytest.raises(ProtocolError, match="9 descriptors"):
        channel.receive()


def test_what_is_discarded_goes_with_its_descriptors_and_the_next_frame_is_whole(pair: Pair) -> None:
    channel, peer = pair
    old, new = messages.build(Request.SET_OWNER), messages.build(Request.GET_FEATURES)
    assert channel.unread == 0
    send_with(peer, old, 2)
    send_with(peer, old[:5], 1)
    count = channel.unread
    assert count == len(old) + 5
    send_with(peer, new, 1)
    channel.discard(count)
    frame = channel.receive()
    assert frame is not None
    assert (frame.request, len(frame.descriptors)) == (Request.GET_FEATURES, 1)
    frame.descriptors[0].close()


def test_only_what_has_come_and_only_between_frames_is_discarded(pair: Pair) -> None:
    channel, peer = pair
    peer.send(messages.build(Request.SET_OWNER))
    with pytest.raises(ProtocolError, match=r"5 bytes .* have not come"):
        channel.discard(17)
    peer.send(messages.build(Request.SET_OWNER)[:5])
    assert channel.receive() is None
    with pytest.raises(ProtocolError, match="in part"):
        channel.discard(1)
    peer.close()
    with pytest.raises((PeerClosed, ProtocolError)):
        channel.discard(1)


def test_end_of_stream(pair: Pair) -> None:
    channel, peer = pair
    peer.sendall(messages.build(Request.SET_OWNER) + b"\x01")
    assert not channel.hung_up
    peer.close()
    assert channel.hung_up
    assert channel.receive() is not None
    with pytest.raises(PeerClosed):
        channel.receive()


# -- sending -----------------------------------------------------------------------------------------------------------


def drain(peer: socket.socket, channel: Channel, size: int) -> tuple[bytes, int]:
    """Read ``size`` bytes at the peer while the channel flushes; also counts the descriptors that came."""
    data, descriptors = b"", 0
    while len(data) < size:
        channel.flush()
        part, fds, _, _ = socket.recv_fds(peer, 1 << 16, 64)
        for fd in fds:
            os.close(fd)
        data += part
        descriptors += len(fds)
    return data, descriptors


def test_what_the_peer_does_not_read_is_kept_with_duplicates_of_its_descriptors(pair: Pair) -> None:
    channel, peer = pair
    held = OwnedFd(nulls(1)[0])
    data = messages.build_ring_descriptor(Request.SET_VRING_CALL, 0, present=True)
    sent = 0
    while len(channel._outbox) < 100:
        channel.send(data, [held])
        sent += 1
    assert channel.backlog
    assert not channel.quiet
    held.close()
    got, descriptors = drain(peer, channel, sent * len(data))
    assert got == data * sent
    assert descriptors == sent
    assert channel.quiet


def test_large_frame_is_cut_where_the_buffer_is_full_and_continued(pair: Pair) -> None:
    channel, peer = pair
    data = bytes(range(256)) * 16384
    (fd,) = nulls(1)
    held = OwnedFd(fd)
    channel.send(data, [held])
    assert channel.backlog
    got, descriptors = drain(peer, channel, len(data))
    held.close()
    assert got == data
    assert descriptors == 1


def test_peer_that_never_reads_is_given_up(pair: Pair) -> None:
    channel, _ = pair
    while len(channel._outbox) < 4096:
        channel.send(bytes(100))
    with pytest.raises(ProtocolError, match="unread"):
        channel.send(bytes(100))


def test_sending_to_a_peer_that_is_gone(pair: Pair) -> None:
    channel, peer = pair
    peer.close()
    with pytest.raises(OSError, match="pipe"):
        channel.send(b"x")


def test_kept_descriptors_are_closed_with_the_channel(pair: Pair) -> None:
    channel, _ = pair
    held = OwnedFd(nulls(1)[0])
    while len(channel._outbox) < 50:
        channel.send(bytes(1000), [held])
    held.close()


# -- exchange ----------------------------------------------------------------------------------------------------------


def answer(peer: socket.socket, pieces: list[bytes]) -> threading.Thread:
    def run() -> None:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(0.002)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_exchange_fills_the_answer_however_it_comes(pair: Pair) -> None:
    channel, peer = pair
    due = messages.reply(Request.GET_FEATURES, bytes(range(8)))
    got = bytearray(FENCE_ANSWER_SIZE)
    thread = answer(peer, [due[:1], due[1:13], due[13:]])
    assert channel.exchange(FENCE, got, time.monotonic() + 5)
    thread.join()
    assert got == due
    assert peer.recv(100) == FENCE
    assert channel.quiet


def test_exchange_ends_at_its_deadline(pair: Pair) -> None:
    channel, _ = pair
    assert not channel.exchange(FENCE, bytearray(FENCE_ANSWER_SIZE), time.monotonic() + 0.02)
    assert not channel.exchange(FENCE, bytearray(FENCE_ANSWER_SIZE), time.monotonic() - 1)


def test_half_an_answer_is_a_fault(pair: Pair) -> None:
    channel, peer = pair
    peer.sendall(b"1234")
    with pytest.raises(ProtocolError, match="half"):
        channel.exchange(FENCE, bytearray(FENCE_ANSWER_SIZE), time.monotonic() + 0.02)


def test_exchange_with_a_peer_that_hangs_up(pair: Pair) -> None:
    channel, peer = pair
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerClosed):
        channel.exchange(FENCE, bytearray(FENCE_ANSWER_SIZE), time.monotonic() + 5)


def test_exchange_with_a_peer_that_does_not_read(pair: Pair) -> None:
    channel, _ = pair
    with pytest.raises(ProtocolError, match="does not read"):
        channel.exchange(bytes(1 << 24), bytearray(FENCE_ANSWER_SIZE), time.monotonic() + 0.02)


def test_descriptors_that_come_with_an_answer_are_dropped(pair: Pair) -> None:
    channel, peer = pair
    send_with(peer, bytes(FENCE_ANSWER_SIZE), 3)
    assert channel.exchange(FENCE, bytearray(FENCE_ANSWER_SIZE), time.monotonic() + 5)


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_owned_descriptor_is_closed_once_and_has_no_number_after() -> None:
    one, other = (OwnedFd(fd) for fd in nulls(2))
    assert one.serial != other.serial
    number = one.fileno()
    one.close()
    (reused,) = nulls(1)
    assert reused == number
    one.close()
    os.fstat(reused)
    with pytest.raises(ValueError, match="closed"):
        one.fileno()
    os.close(reused)
    other.close()


MARK = messages.HEADER.pack(Request.GET_PROTOCOL_FEATURES, messages.VERSION | messages.REPLY, messages.U64.size)


@pytest.mark.parametrize("gone", range(messages.HEADER.size + messages.U64.size + 1))
def test_what_another_process_was_to_hear_is_thrown_away(pair: Pair, gone: int) -> None:
    """``gone``: how much of the first answer that process has read."""
    channel, peer = pair
    stale = messages.reply(Request.GET_FEATURES, messages.U64.pack(7)) + messages.reply(
        Request.GET_VRING_BASE, MARK[:8]
    )
    peer.sendall(
        stale[gone:] + MARK + messages.U64.pack(5) + messages.reply(Request.GET_FEATURES, messages.U64.pack(9))
    )
    channel.seek(MARK)
    frames = [channel.receive(), channel.receive()]
    assert [(frame.request, messages.U64.unpack(frame.payload)[0]) for frame in frames if frame is not None] == [
        (Request.GET_PROTOCOL_FEATURES, 5),
        (Request.GET_FEATURES, 9),
    ]


@pytest.mark.parametrize("read", [1, 11, 12, 13, 30])
def test_half_a_message_goes_on_in_another_process(pair: Pair, read: int) -> None:
    channel, peer = pair
    data = messages.build(Request.SET_MEM_TABLE, bytes(40))
    send_with(peer, data[:read], 2)
    assert channel.receive() is None
    half, descriptors = channel.half
    assert half == data[:read]
    own = [OwnedFd(os.dup(each.fileno())) for each in descriptors]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    other = Channel(ours)
    with theirs:
        other.resume(half, own)
        theirs.sendall(data[read:])
        frame = other.receive()
        other.close()
    assert frame is not None
    assert (frame.payload, list(frame.descriptors)) == (bytes(40), own)
    for each in own:
        each.close()


def test_half_a_message_that_is_whole_is_refused(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="whole"):
        pair[0].resume(messages.build(Request.GET_FEATURES), ())


def test_that_descriptors_are_short_is_told(pair: Pair) -> None:
    """It is not the peer that has sent too many."""
    channel, peer = pair
    send_with(peer, messages.build(Request.SET_OWNER), 2)
    with few_descriptors(1), pytest.raises(ProtocolError, match="at its limit"):
        channel.receive()

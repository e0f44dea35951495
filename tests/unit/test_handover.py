"""The handover over real sockets: every way in which either side can fail, and what was sent to each by then."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank, has_rank, realtime_priority, set_thread_rank
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import SwitchConnection
from ovs_hotswap.vhostuser.channel import Channel
from ovs_hotswap.vhostuser.handover import Outcome, prepare, swap
from ovs_hotswap.vhostuser.messages import Request
from ovs_hotswap.vhostuser.reconcile import Role, SentState, places
from tests.unit.vhost_frames import booted

STATE = booted(4)
PARK, TAKE = places(STATE, Role.PARKED), places(STATE, Role.OWNER)
Behaviour = Callable[["Peer"], None]


@dataclass
class Peer:
    """A back end that behaves in one way when a fence comes. ``heard``: the addresses it was sent. ``acknowledges``: it
    was told REPLY_ACK."""

    behave: Behaviour
    acknowledges: bool
    heard: list[tuple[int, messages.RingAddress]] = field(default_factory=list)

    def __post_init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link = SwitchConnection(Side.A, Channel(ours))
        self.link.told = SentState(protocol_features=self.acknowledges << messages.ProtocolFeature.REPLY_ACK)
        fence = Request.SET_VRING_ADDR if self.acknowledges else Request.GET_FEATURES
        self.good = messages.reply(fence, bytes(8))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def thread(self) -> int:
        """Its id, with which it can be scheduled."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def _run(self) -> None:
        reader = messages.FrameReader()
        while data := self.socket.recv(reader.wanted):
            frame = reader.feed(data, ())
            if frame is None:
                continue
            message = messages.parse(frame)
            if isinstance(message.body, messages.RingPlace):
                self.heard.append((message.body.index, message.body.address))
            if message.need_reply or message.request is Request.GET_FEATURES:
                self.behave(self)

    def end(self) -> None:
        self.link.close()
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.socket.close()


def answers(peer: Peer) -> None:
    peer.socket.sendall(peer.good)


def is_silent(peer: Peer) -> None:
    pass


def hangs_up(peer: Peer) -> None:
    peer.socket.shutdown(socket.SHUT_RDWR)


def says_half(peer: Peer) -> None:
    peer.socket.sendall(peer.good[:7])


def answers_something_else(peer: Peer) -> None:
    peer.socket.sendall(messages.reply(Request.GET_PROTOCOL_FEATURES, bytes(8)))


def asks_in_return(peer: Peer) -> None:
    peer.socket.sendall(messages.build_number(Request.GET_FEATURES, 0))


@pytest.fixture(params=[False, True], ids=["questions", "acknowledgements"])
def peers(request: pytest.FixtureRequest) -> Iterator[Callable[[Behaviour], Peer]]:
    made: list[Peer] = []

    def make(behave: Behaviour) -> Peer:
        made.append(Peer(behave, request.param))
        return made[-1]

    yield make
    for peer in made:
        peer.end()


MakePeer = Callable[[Behaviour], Peer]


def run(old: Peer | None, new: Peer, calls: list[int], timeout: float = 5.0) -> Outcome:
    ready = prepare(None if old is None else old.link, new.link, PARK, TAKE, calls)
    return swap(ready, timeout, {}).outcome


def test_rings_pass_from_the_old_side_to_the_new_one(peers: MakePeer) -> None:
    old, new = peers(answers), peers(answers)
    call = os.eventfd(0, os.EFD_NONBLOCK)
    assert run(old, new, [call]) is Outcome.MOVED
    assert os.eventfd_read(call) == 1
    os.close(call)
    assert old.heard == list(PARK.items())
    assert new.heard == list(TAKE.items())


def test_times_are_those_of_the_two_waits(peers: MakePeer) -> None:
    done = swap(prepare(peers(answers).link, peers(answers).link, PARK, TAKE, []), 5.0, {})
    assert done.give_us > 0
    assert done.take_us > 0
    assert done.total_us == done.give_us + done.take_us


@pytest.mark.parametrize("one_core", [False, True])
def test_each_side_finds_something_in_its_pipe_for_every_message(peers: MakePeer, one_core: bool) -> None:
    old, new = peers(answers), peers(answers)
    old.link.side, new.link.side = Side.A, Side.B
    pipes = {side: os.pipe2(os.O_NONBLOCK) for side in Side}
    ready = prepare(old.link, new.link, PARK, TAKE, [])
    threads = {side: MessageThread(0, end) for side, (_, end) in pipes.items()}
    with realtime_priority():  # whatever rank it takes, this thread gives it back
        assert swap(ready, 5.0, threads, one_core=one_core).outcome is Outcome.MOVED
    messages = len(PARK) + (not old.acknowledges)  # a question behind them is one more
    for read, write in pipes.values():
        assert len(os.read(read, 1 << 16)) == 16 * (messages + (not one_core))
        os.close(read)
        os.close(write)


def test_the_new_side_comes_first_once_the_old_one_is_done(peers: MakePeer) -> None:
    seen: list[int] = []

    def answers_and_looks(peer: Peer) -> None:
        seen.append(os.sched_getparam(new.thread).sched_priority)
        answers(peer)

    old, new = peers(answers_and_looks), peers(answers_and_looks)
    old.link.side, new.link.side = Side.A, Side.B
    set_thread_rank(new.thread, Rank.WAITS)
    if not has_rank(new.thread):
        pytest.skip("real-time priority is not permitted")
    ready = prepare(old.link, new.link, PARK, TAKE, [])
    assert swap(ready, 5.0, {}, waiter=new.thread).outcome is Outcome.MOVED
    assert seen == [Rank.WAITS, Rank.TAKES]


@pytest.mark.parametrize("fault", ["full", "nobody reads"])
def test_a_pipe_that_takes_nothing_changes_nothing(peers: MakePeer, fault: str) -> None:
    old, new = peers(answers), peers(answers)
    read, write = os.pipe2(os.O_NONBLOCK)
    if fault == "full":
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, bytes(4096))
    else:
        os.close(read)
    ready = prepare(old.link, new.link, PARK, TAKE, [])
    assert swap(ready, 5.0, dict.fromkeys(Side, MessageThread(0, write))).outcome is Outcome.MOVED
    os.close(write)
    if fault == "full":
        os.close(read)


def test_nobody_to_take_them_from(peers: MakePeer) -> None:
    new = peers(answers)
    assert run(None, new, []) is Outcome.MOVED
    assert new.heard == list(TAKE.items())


def test_silent_old_side_gets_its_rings_back_and_the_new_one_hears_nothing(peers: MakePeer) -> None:
    old, new = peers(is_silent), peers(answers)
    assert run(old, new, [], timeout=0.05) is Outcome.REFUSED_BY_OLD
    old.end()
    assert old.heard == [*PARK.items(), *TAKE.items()]
    assert new.heard == []


def _patience(behave: Behaviour) -> float:
    """Seconds: only of those who say too little is the end of the wait the answer."""
    return 0.5 if behave in (is_silent, says_half) else 5.0


@pytest.mark.parametrize("behave", [hangs_up, says_half, answers_something_else, asks_in_return])
def test_old_side_that_proves_nothing_leaves_the_new_one_without(peers: MakePeer, behave: Behaviour) -> None:
    old, new = peers(behave), peers(answers)
    assert run(old, new, [], timeout=_patience(behave)) is Outcome.OLD_GONE
    new.end()
    assert new.heard == []


@pytest.mark.parametrize(
    ("behave", "outcome"),
    [
        (is_silent, Outcome.UNPROVEN),
        (hangs_up, Outcome.NEW_GONE),
        (says_half, Outcome.NEW_GONE),
        (answers_something_else, Outcome.NEW_GONE),
    ],
)
def test_new_side_that_does_not_confirm(peers: MakePeer, behave: Behaviour, outcome: Outcome) -> None:
    old, new = peers(answers), peers(behave)
    assert run(old, new, [], timeout=_patience(behave)) is outcome
    assert old.heard == list(PARK.items())


@pytest.mark.parametrize(("rings", "expected"), [(4, 4), (0, 1)])
def test_an_acknowledging_back_end_is_asked_nothing_more(peers: MakePeer, rings: int, expected: int) -> None:
    link = peers(is_silent).link
    placed = link.placed(dict(list(TAKE.items())[:rings]))
    reader, count, rest = messages.FrameReader(), 0, placed.data
    while rest:
        rest, size = rest[reader.wanted :], rest[: reader.wanted]
        count += reader.feed(size, ()) is not None
    acknowledges = placed.request is Request.SET_VRING_ADDR
    assert count == expected + (1 if rings and not acknowledges else 0)


def test_old_side_that_is_gone_already(peers: MakePeer) -> None:
    old, new = peers(answers), peers(answers)
    hangs_up(old)
    assert run(old, new, []) is Outcome.OLD_GONE
    new.end()
    assert new.heard == []

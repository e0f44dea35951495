"""The handover: one VM's rings pass from one back end to the other.

``prepare`` builds all buffers; ``swap`` is system calls only. Between the first and the last of these calls the guest
has no back end, so nothing is allocated, logged or decided there that can be done before or after.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ovs_hotswap.errors import ProtocolError
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.priority import Rank, set_own_rank, set_thread_rank
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.backend import FENCE_ANSWER_SIZE, FencedMessages, SwitchConnection
from ovs_hotswap.vhostuser.call_signals import Calls, signaller
from ovs_hotswap.vhostuser.channel import PeerClosed
from ovs_hotswap.vhostuser.messages import Request, RingAddress

TURN = 16  # bytes of a notify pipe that a turn of DPDK's thread reads (lib/vhost/fd_man.c, ``fdset_pipe_read_cb``)

Threads = Mapping[Side, MessageThread]  # without a side whose thread is not known


class Outcome(enum.Enum):
    """How a swap ended.

    MOVED: both fences were answered. REFUSED_BY_OLD: the old side did not confirm in time; it was given its rings
    back and is still the only side that may use them. OLD_GONE: the old side hung up; whether it is off the rings is
    not known.
    UNPROVEN: the new side was given the rings and did not confirm in time. NEW_GONE: the new side was given the rings
    and hung up.
    """

    MOVED = enum.auto()
    REFUSED_BY_OLD = enum.auto()
    OLD_GONE = enum.auto()
    UNPROVEN = enum.auto()
    NEW_GONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Swap:
    """The outcome of a swap and how long it took by the broker's clock, in microseconds.

    ``give_us`` is the time until the old side was off the rings, or 0 if there was no old side; ``take_us`` is the time
    from then until the new side had the rings.
    """

    outcome: Outcome
    give_us: float = 0.0
    take_us: float = 0.0

    @property
    def total_us(self) -> float:
        return self.give_us + self.take_us


@dataclass(frozen=True, slots=True)
class Prepared:
    """A handover that is ready to run.

    ``old`` is ``None`` if no side holds the rings. ``park`` takes the rings from ``old``, ``keep`` gives them back to
    it, and ``take`` gives them to ``new``.
    """

    old: SwitchConnection | None
    new: SwitchConnection
    park: FencedMessages
    keep: FencedMessages
    take: FencedMessages
    calls: Calls
    answer: bytearray


def prepare(
    old: SwitchConnection | None,
    new: SwitchConnection,
    park: Mapping[int, RingAddress],
    take: Mapping[int, RingAddress],
    calls: Sequence[int],
) -> Prepared:
    """Build every buffer of a handover.

    ``park`` and ``take`` are addresses of the same rings: where the old side is to be parked, and where the guest has
    them. ``calls`` are the call eventfds to signal afterwards. Both connections must be quiet, and the rings must be
    started on ``new``.
    """
    taken, answer, signals = new.placed(take), bytearray(FENCE_ANSWER_SIZE), signaller().calls(calls)
    if old is None:
        return Prepared(None, new, taken, taken, taken, signals, answer)
    keep = taken if old.acknowledges == new.acknowledges else old.placed(take)
    return Prepared(old, new, old.placed(park), keep, taken, signals, answer)


def swap(
    ready: Prepared, timeout: float, threads: Threads, *, one_core: bool = False, waiter: int | None = None
) -> Swap:
    """Run a prepared handover. Each of its two waits ends after ``timeout`` seconds.

    ``one_core``: this thread and the message threads of both sides run on one core, with the priorities of
    ``priority.Rank``. ``waiter`` is the message thread of the new side, if it has ``Rank.WAITS``.

    The order makes this safe: the new side is sent the guest's addresses only after the old side has answered its
    fence. After REFUSED_BY_OLD, two fences of the old side are unanswered; after UNPROVEN, one of the new side is.
    """
    clock = time.monotonic
    if ready.old is not None:
        _prime_notify_pipe(threads.get(ready.old.side), ready.park, one_core)
    start = clock()
    if ready.old is not None:
        try:
            if not fenced(ready.old, ready.park, ready.answer, start + timeout, asleep=one_core):
                # Sent behind the parking addresses on the same stream, so the guest's addresses always come last.
                ready.old.channel.send(ready.keep.data)
                return Swap(Outcome.REFUSED_BY_OLD, give_us=(clock() - start) * 1e6)
        except (OSError, PeerClosed, ProtocolError):
            return Swap(Outcome.OLD_GONE)
    middle = clock()
    if waiter is not None:
        set_thread_rank(waiter, Rank.TAKES)
    _prime_notify_pipe(threads.get(ready.new.side), ready.take, one_core)
    try:
        confirmed = fenced(ready.new, ready.take, ready.answer, middle + timeout, asleep=one_core)
    except (OSError, PeerClosed, ProtocolError):
        return Swap(Outcome.NEW_GONE, give_us=(middle - start) * 1e6)
    end = clock()
    if one_core and confirmed:  # a thread that has not answered may spin, and would keep this one from running
        set_own_rank(Rank.AFTER)
    ready.calls.signal()  # see ``notify``
    outcome = Outcome.MOVED if confirmed else Outcome.UNPROVEN
    return Swap(outcome, (middle - start) * 1e6 if ready.old is not None else 0.0, (end - middle) * 1e6)


def _prime_notify_pipe(thread: MessageThread | None, fence: FencedMessages, one_core: bool) -> None:
    """Shorten the turns that a switch's message thread is about to make for these messages.

    On another core this includes the turn in which the thread may find that the messages have not come yet.
    """
    if thread is not None and thread.pipe is not None:
        with contextlib.suppress(OSError):  # full: it has what it needs; broken: the switch has ended
            os.write(thread.pipe, bytes(TURN * (fence.count + (not one_core))))


def fenced(
    link: SwitchConnection, fence: FencedMessages, answer: bytearray, deadline: float, *, asleep: bool = False
) -> bool:
    """Send ``fence`` and return whether it was answered in time.

    ``deadline``, ``asleep`` and the errors are those of ``Channel.exchange``. Also raises ProtocolError if something
    other than the answer came: then nothing is proven.
    """
    if not link.channel.exchange(fence.data, answer, deadline, asleep=asleep):
        return False
    if not answer.startswith(fence.answer_header):
        raise ProtocolError("no answer to the fence")
    if fence.request is Request.SET_VRING_ADDR and any(answer[-messages.U64.size :]):
        raise ProtocolError("the switch refused the addresses")
    return True


def notify(calls: Sequence[int]) -> None:
    """Signal each call eventfd, as if the back end had: the guest looks at its rings and finds what is there.

    DPDK remembers across a change of addresses up to which index it has signalled (``signalled_used``), and may skip an
    interrupt for which the guest waits. One signal too many does no harm.
    """
    signaller().calls(calls).signal()

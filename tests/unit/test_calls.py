"""Call eventfds are signalled, and nothing that a VM's QEMU makes of one, at whatever moment, is waited for."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from ovs_hotswap.vhostuser.call_signals import Signaller
from tests.support.waiting import eventually

FULL = (1 << 64) - 2  # a write to it waits
MORE_THAN_THERE_IS = 1 << 30


@pytest.fixture(params=[256, MORE_THAN_THERE_IS], ids=["asynchronous reads", "threads"])
def signaller(request: pytest.FixtureRequest) -> Signaller:
    made = Signaller(room=request.param)
    assert made.ready() is (request.param == 256)
    return made


@pytest.fixture
def eventfd() -> Iterator[Callable[[int], int]]:
    made: list[int] = []

    def make(count: int = 0) -> int:
        made.append(os.eventfd(0, os.EFD_NONBLOCK))
        if count:
            os.eventfd_write(made[-1], count)
        os.set_blocking(made[-1], True)  # as its other owner can at any time
        return made[-1]

    yield make
    for fd in made:
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)  # a thread that waits for it continues
        os.close(fd)


def count(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}") as info:
        return next(int(line.split()[1], 16) for line in info if line.startswith("eventfd-count:"))


MakeEventfd = Callable[[int], int]


@pytest.mark.parametrize("rings", [0, 1, 2, 256, 300])
def test_each_is_signalled_once_a_time(signaller: Signaller, eventfd: MakeEventfd, rings: int) -> None:
    fds = [eventfd(0) for _ in range(rings)]
    calls = signaller.calls(fds)
    for _ in range(3):
        calls.signal()
    eventually(lambda: [count(fd) for fd in fds] == [3] * rings, lambda: "not signalled")


def test_a_full_one_is_not_waited_for(eventfd: MakeEventfd) -> None:
    full, free = eventfd(FULL), eventfd(0)
    signalling = threading.Thread(target=Signaller().calls([full, free]).signal, daemon=True)
    signalling.start()
    signalling.join(10)
    assert not signalling.is_alive()
    assert count(free) == 1
    assert count(full) >= FULL


def test_what_is_none_is_passed_over(eventfd: MakeEventfd) -> None:
    fds = [eventfd(0) for _ in range(3)]
    read, write = os.pipe()
    Signaller().calls([read, fds[0], write, fds[1], 999_999, fds[2]]).signal()
    os.close(read)
    os.close(write)
    assert [count(fd) for fd in fds] == [1, 1, 1]


def test_whoever_holds_threads_up_holds_a_bounded_number(eventfd: MakeEventfd) -> None:
    signaller = Signaller(threads=2, room=MORE_THAN_THERE_IS)
    before = threading.active_count()
    for _ in range(5):
        signaller.calls([eventfd(FULL)]).signal()
        assert threading.active_count() <= before + 2
    assert threading.active_count() == before + 2

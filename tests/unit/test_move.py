"""What was got ready for a move is used only for what it was got ready for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ovs_hotswap.model import Side
from ovs_hotswap.vhost.channel import Channel
from ovs_hotswap.vhost.handover import prepare
from ovs_hotswap.vhost.link import Link
from ovs_hotswap.vhost.move import Ready
from ovs_hotswap.vhost.session import GuestState


class Sides:
    def __init__(self) -> None:
        self._ends = [socket.socketpair() for _ in range(3)]
        self.old, self.new, self.other = (Link(Side.A, Channel(end)) for end, _ in self._ends)

    def close(self) -> None:
        for link in (self.old, self.new, self.other):
            link.close()
        for _, end in self._ends:
            end.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    made = Sides()
    yield made
    made.close()


def test_it_fits_as_long_as_nothing_has_changed(sides: Sides) -> None:
    old, new, other, state = sides.old, sides.new, sides.other, GuestState(features=1)
    heard = old.told, new.told
    ready = Ready(state, None, prepare(old, new, {}, {}, []), heard, heard)
    assert ready.fits(state, old, new)
    assert not ready.fits(replace(state), old, new)
    assert not ready.fits(state, other, new)
    assert not ready.fits(state, None, new)
    assert not ready.fits(state, old, other)
    for link in (old, new):
        before = link.told
        link.told = replace(before, features=1)
        assert not ready.fits(state, old, new)
        link.told = before
    assert ready.fits(state, old, new)

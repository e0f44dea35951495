"""Moves: what was got ready for one is used only for what it was got ready for, and what is kept is told first."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.vhost.channel import Channel
from ovs_hotswap.vhost.delays import Delays
from ovs_hotswap.vhost.handover import prepare
from ovs_hotswap.vhost.link import Link
from ovs_hotswap.vhost.move import Mover, Ready
from ovs_hotswap.vhost.ownership import Certainty, Ownership
from ovs_hotswap.vhost.session import GuestState
from tests.unit.broker_bed import Bed, run, turns


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


def test_a_broker_that_ends_tells_a_switch_that_was_armed_nothing_more() -> None:
    """The next broker, or what is kept for it, would know nothing of that."""

    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        mover = Mover(vm, bed.loop, Delays(bed.loop), 0.05)
        vm.go_on()
        assert mover.arm(Side.B)
        bed.switches[Side.B].answer(bed.switches[Side.B].heard())
        await turns()
        assert mover.armed(Side.B)
        mover.close()
        assert not mover.busy
        assert bed.heard() == {Side.A: [], Side.B: []}

    run(test)


def test_a_move_without_arming_is_told_of_before_a_switch_is() -> None:
    async def test(bed: Bed) -> None:
        vm = bed.served(Ownership(Side.A, Certainty.OWNS))
        heard: list[list[str]] = []
        vm.talks = lambda told=None, moving=False: heard.append(bed.switches[Side.B].heard())
        with pytest.raises(BrokerError, match="did not answer"):
            Mover(vm, bed.loop, Delays(bed.loop), 0.01).swap_to(Side.B, {})
        assert heard[0] == []
        assert heard[1] != []

    run(test)

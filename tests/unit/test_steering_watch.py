"""The watchdog restores an uplink that no longer leads to the active instance, and never beside an upgrade."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import BusyError, UplinkError
from ovs_hotswap.model import Side
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.watchdog.steering_watch import SteeringWatch
from tests.unit.watch_bed import Bed, FakeUplink, config

__all__ = ["config"]


class Watched(Bed):
    """A host whose steering is watched."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.watch = SteeringWatch(self.board)

    def see(self, active: Side = Side.A, may_steer: Callable[[], bool] = lambda: True) -> None:
        self.world.now += 10
        self.watch.look(self.host, active, may_steer)


@pytest.fixture
def bed(config: Config) -> Watched:
    found = Watched(config)
    found.see()
    found.world.done.clear()
    return found


@pytest.mark.parametrize("found", [None, Side.B])
def test_an_uplink_that_leads_elsewhere_is_steered_again_and_reported(bed: Watched, found: Side | None) -> None:
    bed.world.uplink_owner = found
    bed.see()
    bed.see()
    assert bed.world.done == ["steer a"]
    (event,) = bed.events()
    assert (event["event"], event["side"], event["found"]) == ("uplink-restored", "a", found)


def test_what_was_never_right_is_left_alone(config: Config) -> None:
    """The overlay intent may have another address than the instance, which has not been programmed with it yet."""
    bed = Watched(config)
    bed.world.uplink_owner = None
    bed.see()
    bed.see(Side.B)
    assert bed.world.done == []
    assert bed.events() == []


def test_a_new_intent_or_a_new_active_side_begins_again(bed: Watched) -> None:
    bed.world.uplink_owner = None
    bed.see(Side.B)
    bed.follow(bed.host.intent)
    bed.see()
    assert bed.world.done == []


def test_nothing_is_steered_beside_an_upgrade(bed: Watched) -> None:
    bed.world.uplink_owner = Side.B
    bed.see(may_steer=lambda: False)
    with bed.host.lock(), pytest.raises(BusyError):
        bed.see()
    assert bed.world.done == []


def test_nothing_is_steered_to_an_instance_that_died_or_is_no_longer_the_active_one(bed: Watched) -> None:
    bed.world.uplink_owner = None
    bed.world.pid[Side.A] = None
    bed.see()

    def dies() -> bool:
        bed.world.pid[Side.A] = None
        return True

    bed.world.pid[Side.A] = 1
    bed.see(may_steer=dies)
    bed.world.pid[Side.A] = 1
    bed.host.record_active(Side.B)
    bed.see()
    assert bed.world.done == []


def test_a_failover_waits_for_it_and_steers_last(bed: Watched) -> None:
    """The failover steers after the look has, so the traffic ends with the side that it chose."""
    bed.world.uplink_owner = None
    with bed.watch.turning:
        looks = threading.Thread(target=bed.see)
        looks.start()
        looks.join(0.05)
        assert looks.is_alive()
        bed.world.pid[Side.A] = None  # what the failover does before it steers
    looks.join(10)
    assert bed.world.done == []


def test_a_fault_is_kept_until_it_is_gone(bed: Watched) -> None:
    bed.world.uplink_owner = None
    bed.host.fake_uplink.failures = 1
    bed.see()
    assert isinstance(bed.watch.problem, UplinkError)
    bed.watch.look(bed.host, Side.A, lambda: True)
    assert bed.watch.problem, "not at once again"
    bed.see()
    assert bed.watch.problem is None
    assert bed.world.uplink_owner is Side.A


def test_a_host_without_steering_is_not_locked_for_it(bed: Watched) -> None:
    bed.host.__dict__["uplink"] = NoUplink()
    with bed.host.lock():
        bed.see()
    assert bed.world.done == []


def test_the_keeper_looks_when_it_has_nothing_else_to_do(config: Config) -> None:
    bed = Bed(config)
    for _ in range(5):
        bed.world.now += 10
        bed.keeper.turn()
    bed.world.done.clear()
    bed.world.uplink_owner = None
    bed.world.now += 10
    bed.keeper.turn()
    assert bed.world.done == ["steer a"]
    assert isinstance(bed.host.fake_uplink, FakeUplink)

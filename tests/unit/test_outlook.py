"""Which way an upgrade goes, for everything that can be seen of its two instances."""

from __future__ import annotations

import itertools

import pytest

from ovs_hotswap.model import Life, Side
from ovs_hotswap.upgrade.outlook import Outlook, Service, Situation

SERVICES = [
    None,
    *(
        Service(by_old, by_new, known, uplink)
        for by_old, by_new, known, uplink in itertools.product(
            ((), ("vm1",)), ((), ("vm2",)), (True, False), ("", "gone")
        )
    ),
]
EVERY = [Situation(Side.A, Side.B, *lives, service) for lives in itertools.product(Life, Life) for service in SERVICES]


@pytest.mark.parametrize("seen", EVERY)
def test_there_is_a_way_on_or_a_way_back_wherever_an_instance_lives(seen: Situation) -> None:
    assert not (seen.no_way_back and seen.no_way_on)
    assert bool(seen.no_way_back) is (seen.outlook is Outlook.OLD_LOST)
    assert bool(seen.no_way_on) is (seen.outlook in {Outlook.NEW_DOWN, Outlook.VMS_RETURNED, Outlook.UPLINK_LOST})


@pytest.mark.parametrize("seen", EVERY)
def test_nobody_goes_back_to_a_dead_instance_or_on_to_one_that_is_down(seen: Situation) -> None:
    if seen.old_life is Life.DEAD:
        assert seen.no_way_on == ""
        assert seen.outlook is (Outlook.NONE if seen.new_life is Life.DEAD else Outlook.OLD_LOST)
    elif seen.new_life is not Life.RUNS:
        assert seen.no_way_on == seen.new_down != ""
    assert (seen.old in seen.living) is not seen.old_lost
    assert seen.new in seen.living


@pytest.mark.parametrize("seen", EVERY)
def test_what_is_not_known_of_the_vms_is_no_reason_to_give_up(seen: Situation) -> None:
    if seen.service is None or not seen.service.known:
        assert seen.outlook is not Outlook.VMS_RETURNED


def test_the_vms_have_returned_if_the_new_instance_has_none_left() -> None:
    def after(by_old: tuple[str, ...], by_new: tuple[str, ...]) -> Outlook:
        return Situation(Side.A, Side.B, Life.RUNS, Life.RUNS, Service(by_old, by_new, known=True)).outlook

    assert after(("vm1",), ()) is Outlook.VMS_RETURNED
    assert after(("vm1",), ("vm2",)) is Outlook.BOTH
    assert after((), ()) is Outlook.BOTH


def test_a_lost_uplink_is_the_reason_to_give_up_only_while_the_old_instance_has_no_vm_back() -> None:
    def seen(by_old: tuple[str, ...], by_new: tuple[str, ...]) -> Situation:
        service = Service(by_old, by_new, known=True, uplink="the port has no link")
        return Situation(Side.A, Side.B, Life.RUNS, Life.RUNS, service)

    assert seen((), ("vm1",)).outlook is Outlook.UPLINK_LOST
    assert seen((), ("vm1",)).no_way_on == "the port has no link"
    assert seen(("vm1",), ()).no_way_on == "instance a serves the VMs again"


@pytest.mark.parametrize(
    ("life", "reason"),
    [(Life.RUNS, ""), (Life.STOPPED, "instance b is stopped"), (Life.DEAD, "instance b died")],
)
def test_a_new_instance_that_forwards_nothing_is_named_with_what_became_of_it(life: Life, reason: str) -> None:
    assert Situation(Side.A, Side.B, Life.RUNS, life).new_down == reason


def test_the_vms_are_not_known_unless_the_broker_answered() -> None:
    assert Situation(Side.A, Side.B, Life.RUNS, Life.RUNS, Service(by_old=("vm1",))).outlook is Outlook.BOTH

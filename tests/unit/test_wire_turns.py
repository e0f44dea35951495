"""Which VMs pass before the cut, and which after it."""

from __future__ import annotations

from pathlib import Path

from ovs_hotswap.upgrade.wire_turns import Known, Turns, take_turns
from ovs_hotswap.vm_ports import VmPort

ROOM = {"br-int": 3, "br1": 3}


def ports(bridge: str, *numbers: int) -> tuple[VmPort, ...]:
    return tuple(
        VmPort(name=f"vm{number}", bridge=bridge, ofport=number, socket=Path(f"/run/vm{number}.sock"))
        for number in numbers
    )


def test_a_bridge_with_few_vms_has_them_all_mirrored_by_both() -> None:
    few = ports("br-int", 1, 2, 3)
    assert take_turns(few, ROOM, Known(["vm2"])) == Turns(either=few)


def test_of_many_vms_those_for_which_there_is_room_pass_before_the_cut() -> None:
    many, few = ports("br-int", 1, 2, 3, 4, 5), ports("br1", 6)
    assert take_turns([*many, *few], ROOM) == Turns(few, many[:3], many[3:])


def test_those_that_are_left_out_or_have_waited_before_give_their_place_to_others() -> None:
    many = ports("br-int", 1, 2, 3, 4, 5)
    decided = Turns((), (many[1], many[2], many[4]), (many[0], many[3]))
    assert take_turns(many, ROOM, Known(["vm1", "vm4"])) == decided
    assert take_turns(many, ROOM, Known(["vm1"], later=["vm4"])) == decided


def test_what_was_decided_stays_so_when_there_is_room_for_all_by_now() -> None:
    """The old switch does not mirror those that were to pass after the cut."""
    left = ports("br-int", 1, 2, 5)
    assert take_turns(left, ROOM, Known(later=["vm4", "vm5"])) == Turns((), left[:2], left[2:])
    assert take_turns(left, ROOM, Known(later=["vm4"])) == Turns(either=left)


def test_no_more_than_there_are_pass_before_the_cut() -> None:
    many = ports("br-int", 1, 2, 3, 4)
    assert take_turns(many, ROOM, Known(["vm1", "vm2"])) == Turns((), many[2:], many[:2])


def test_vms_beyond_both_switches_mirrors_are_those_that_move_at_once() -> None:
    many = ports("br-int", *range(1, 9))
    quick = ["vm1", "vm2", "vm4", "vm6"]
    slow = (many[2], many[4], many[6])
    turns = take_turns(many, ROOM, Known(quick=quick))
    assert turns == Turns((), slow, (many[7], many[0], many[1]), (many[3], many[5]))
    names = {"later": [port.name for port in (*turns.later, *turns.bare)], "bare": [port.name for port in turns.bare]}
    assert take_turns(many, ROOM, Known(quick=quick, **names)) == turns


def test_who_is_left_out_is_mirrored_after_the_cut_and_no_more_than_there_is_room_for() -> None:
    many = ports("br-int", *range(1, 9))
    turns = take_turns(many, ROOM, Known(left_out=["vm8"], quick=[port.name for port in many]))
    assert turns == Turns((), many[:3], (many[7], *many[3:5]), many[5:7])


def test_without_any_mirror_every_vm_is_without() -> None:
    many = ports("br-int", 1, 2)
    assert take_turns(many, {"br-int": 0}, Known(quick=["vm1", "vm2"])) == Turns(bare=many)

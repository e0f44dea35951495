"""Which of an upgrade's instances can still serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovs_hotswap.backends import ABSENT_SWITCH, BackendMode, Switches
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, SwitchError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.standby import park_each, unpark_each
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.qemu.dual import DualQemu
from ovs_hotswap.qemu.monitor import Answer
from ovs_hotswap.upgrade import clone_loss
from ovs_hotswap.upgrade.outlook import Outlook
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import upgrade_plan
from tests.support.fake_backends import CONNECTED, FakeBackEnds, GivenVms, VmStates, vm_status
from tests.unit.watch_bed import FakeHost, World


@pytest.fixture
def world() -> World:
    """An upgrade from a to b whose VMs have moved."""
    made = World(["vm1", "vm2"])
    made.owner = dict.fromkeys(made.owner, Side.B)
    return made


@pytest.fixture
def upgrade(world: World, tmp_path: Path) -> Upgrade:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    config = Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "instances": {"a": side, "b": side},
    })  # fmt: skip
    return Upgrade(FakeHost(config, world), Side.A, Side.B, "host")


def nothing(_world: World) -> None:
    pass


def old_dies(world: World) -> None:
    world.pid[Side.A] = None


def new_dies(world: World) -> None:
    world.pid[Side.B] = None


def both_die(world: World) -> None:
    world.pid = {Side.A: None, Side.B: None}


def new_stands_still(world: World) -> None:
    world.stopped_pids = {2}


def all_are_back(world: World) -> None:
    world.owner = dict.fromkeys(world.owner, Side.A)


def new_loses_the_uplink(world: World) -> None:
    world.no_uplink = {Side.B}


def one_is_back(world: World) -> None:
    world.owner["vm1"] = Side.A


@pytest.mark.parametrize(
    ("event", "lost", "failed"),
    [
        (nothing, "", ""),
        (old_dies, "instance a died", ""),
        (new_dies, "", "instance b died"),
        (both_die, "", ""),
        (new_stands_still, "", "instance b is stopped"),
        (new_loses_the_uplink, "", "the datapath of instance b does not have the uplink"),
        (all_are_back, "", "instance a serves the VMs again"),
        (one_is_back, "", ""),
    ],
)
def test_where_an_upgrade_can_go(
    upgrade: Upgrade, world: World, event: Callable[[World], None], lost: str, failed: str
) -> None:
    event(world)
    now = upgrade.look(service=True)
    assert (now.no_way_back, now.no_way_on) == (lost, failed)
    assert now.living == ((Side.B,) if lost else (Side.B, Side.A))
    assert (now.outlook is Outlook.NONE) is (event is both_die)
    assert upgrade.fled(now) is (event is old_dies)


def test_a_switch_that_was_started_in_the_place_of_the_old_one_is_not_the_old_one(
    upgrade: Upgrade, world: World
) -> None:
    """What others had programmed in the old one is not in its successor."""
    of_one = replace(upgrade, old_process=(100, None))
    world.processes[100] = ["ovs-vswitchd"]
    assert of_one.look().outlook is Outlook.BOTH
    assert of_one.unrestored() == ""
    del world.processes[100]
    assert of_one.dead(Side.A)
    assert not of_one.runs(Side.A)
    assert of_one.look().old_lost
    assert upgrade.look().outlook is Outlook.BOTH
    assert of_one.unrestored() == "instance a died, and instance b serves its VMs"
    all_are_back(world)
    assert of_one.unrestored() == "instance a died and was started again"
    old_dies(world)
    assert of_one.unrestored() == "instance a died and has to be started again"


def test_what_a_rollback_has_left_of_the_old_one_is_named(upgrade: Upgrade, world: World) -> None:
    assert upgrade.unrestored() == ""
    world.no_database.add(Side.A)
    assert upgrade.unrestored() == "the ovsdb-server of instance a does not run"


class Told:
    """What a step knows of its journal."""

    def __init__(self, *facts: str) -> None:
        self.facts = dict.fromkeys(facts)


def test_a_copy_that_is_not_whole_is_nothing_to_go_forward_with(upgrade: Upgrade, world: World) -> None:
    half, whole = cast(StepContext, Told()), cast(StepContext, Told(clone_loss.COPIED))
    assert not clone_loss.lost(upgrade, half)
    old_dies(world)
    assert clone_loss.lost(upgrade, whole)
    assert clone_loss.no_way_back(upgrade, whole.facts) == "instance a died"
    with pytest.raises(SwitchError, match="instance a died before it was copied"):
        clone_loss.lost(upgrade, half)
    assert clone_loss.no_way_back(upgrade, half.facts) == ""


def test_a_broker_that_does_not_answer_is_no_reason_to_give_up(upgrade: Upgrade) -> None:
    states = VmStates([])
    states.broker_fault = BrokerError("no answer")
    upgrade.host.__dict__["broker"] = FakeBackEnds(states)
    assert upgrade.look(service=True).no_way_on == ""


@pytest.mark.parametrize(("mode", "waited_for"), [(BackendMode.BROKER, ["vm1"]), (BackendMode.QEMU_DUAL, [])])
def test_without_a_broker_nobody_listens_for_a_vm_that_does_not_run(
    upgrade: Upgrade, mode: BackendMode, waited_for: list[str]
) -> None:
    only_b = Switches(ABSENT_SWITCH, CONNECTED)
    vms = GivenVms(vm_status("vm1", qemu=None, netdev=None, switches=only_b), vm_status("vm2"))
    host = FakeHost(upgrade.host.config.model_copy(update={"backend": mode}), World([]))
    host.__dict__.update(broker=vms, dual=vms)
    assert host.unconnected(Side.A) == waited_for
    assert host.unconnected(Side.B) == []


def test_a_switch_that_does_not_come_to_a_qemu_that_runs_is_missed(upgrade: Upgrade) -> None:
    host = FakeHost(upgrade.host.config.model_copy(update={"backend": BackendMode.QEMU_DUAL}), World([]))
    host.__dict__["dual"] = GivenVms(vm_status(switches=Switches(CONNECTED, ABSENT_SWITCH)))
    assert host.unconnected(Side.B) == ["vm1"]


def test_a_qemu_that_does_not_answer_keeps_no_standby_from_being_there(upgrade: Upgrade) -> None:
    """Nothing is known of its VM, and the others do not wait for it."""
    found = {"netdev": "network", "state": "served", "active-slot": "first", "active-pid": 1, "swaps": 0,
             "standby-state": "parked", "standby-pid": 2, "last-swap-us": None, "rings": []}  # fmt: skip

    class Mute:
        def ask(self, what: dict[str, object]) -> dict[str, Answer]:
            silence = Answer(None, BrokerError("QEMU does not answer"), 7)
            return {name: silence if name == "mute" else Answer([found], None, 8) for name in what}

    host = FakeHost(upgrade.host.config.model_copy(update={"backend": BackendMode.QEMU_DUAL}), World(["vm1"]))
    host.__dict__["dual"] = dual = DualQemu(
        cast(Any, Mute()), lambda: ["vm1", "mute"], lambda _vm: None, 500, host.held, cast(Any, None)
    )
    assert host.unconnected(Side.B) == []
    assert park_each(host, Side.B, dual.vms()) == {"mute": "QEMU does not answer"}


class Left(FakeBackEnds):
    """``vm1`` leaves the overlay intent as soon as the VMs have been listed."""

    def unpark(self, name: str, side: Side) -> None:
        if name == "vm1":
            self._answer()
            raise BrokerError("no VM 'vm1'")
        super().unpark(name, side)


def test_a_vm_that_has_left_keeps_no_other_parked() -> None:
    states = VmStates(["vm0", "vm1", "vm2"])
    for parked in states.parked.values():
        parked.add(Side.B)
    host = cast(Host, SimpleNamespace(backends=Left(states)))
    unpark_each(host, Side.B, list(states.owner))
    assert states.parked == {"vm0": set(), "vm1": {Side.B}, "vm2": set()}
    states.broker_fault = BrokerError("it does not answer")
    with pytest.raises(BrokerError, match="it does not answer"):
        unpark_each(host, Side.B, ["vm1"])


def test_vms_are_not_parked_on_an_instance_that_takes_no_devices(upgrade: Upgrade, world: World) -> None:
    """Without its database it never receives from a device that has connected."""
    world.no_database = {Side.B}
    with pytest.raises(SwitchError, match="cannot connect"):
        park_each(upgrade.host, Side.B, upgrade.host.backends.vms())


class Dying(World):
    """One of its instances, the active one unless told otherwise, ends after a while of sleep."""

    seconds = 0.3
    ends = Side.A

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.now >= self.seconds:
            self.pid[self.ends] = None


def test_a_new_instance_that_takes_no_commands_after_the_commit_is_given_time_to_end(upgrade: Upgrade) -> None:
    world = Dying(["vm1"])
    world.ends, world.owner["vm1"] = Side.B, Side.B
    dying = Upgrade(FakeHost(upgrade.host.config, world), Side.A, Side.B, "host")
    world.now, world.deaf_sides = 0.0, {Side.B}
    assert dying.look(service=True).no_way_on == ""
    assert upgrade_plan().no_way_on(dying) == "instance b died"
    assert world.now < 1.0


def test_a_new_instance_that_is_well_after_the_commit_is_not_waited_for(upgrade: Upgrade, world: World) -> None:
    world.owner["vm1"] = Side.B
    before = world.now
    assert upgrade.look_after_the_commit().no_way_on == ""
    assert world.now == before


def test_an_old_instance_that_stands_still_is_given_time_to_end(upgrade: Upgrade) -> None:
    world = Dying(["vm1"])
    dying = Upgrade(FakeHost(upgrade.host.config, world), Side.A, Side.B, "host")
    world.now, world.stopped_pids = 0.0, {1}
    assert dying.look().no_way_back == ""
    assert dying.look_after_waiting().no_way_back == "instance a died"
    assert world.now < 1.0


def test_an_old_instance_that_takes_no_commands_is_given_time_to_end(upgrade: Upgrade) -> None:
    world = Dying(["vm1"])
    dying = Upgrade(FakeHost(upgrade.host.config, world), Side.A, Side.B, "host")
    world.now, world.deaf_sides = 0.0, {Side.A}
    assert dying.look_after_waiting().no_way_back == "instance a died"
    assert world.now < 1.0


def test_an_old_instance_that_stands_still_for_ever_is_not_waited_for_for_ever(upgrade: Upgrade, world: World) -> None:
    world.stopped_pids = {1}
    assert upgrade.look_after_waiting().no_way_back == ""


def test_an_old_instance_that_is_well_is_not_waited_for(upgrade: Upgrade, world: World) -> None:
    before = world.now
    assert upgrade.look_after_waiting().no_way_back == ""
    assert world.now == before

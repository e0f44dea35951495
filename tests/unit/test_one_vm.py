"""What one VM may do to an upgrade of all the others: nothing."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.backends import OwnerCertainty, SwitchStatus, VmStatus
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BrokerError, HostError, SwitchError
from ovs_hotswap.model import Proof, Side
from ovs_hotswap.plan.executor import Event, StepContext
from ovs_hotswap.switch.rxqs import RxQueue
from ovs_hotswap.upgrade import baseline
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.soak import Soak, see_served
from ovs_hotswap.upgrade.steps import MoveVms, Park, Retire
from ovs_hotswap.upgrade.uplink_checks import Passed
from ovs_hotswap.upgrade.way_back import take_back
from tests.support.fake_backends import FakeBackEnds, ring_status
from tests.unit.watch_bed import FakeHost, FakeInstance, World


class Guests(World):
    """VMs that have moved to b. ``wedged`` are served by no side, ``deaf`` not by b; ``odd`` have eight regions, so
    that they can be owned and not parked; ``under_way``: QEMU has sent half a message; ``gone`` have no owner;
    ``fleeting`` are put in quarantine when they are to be moved."""

    def __init__(self, vms: list[str]) -> None:
        super().__init__(vms)
        self.owner = dict.fromkeys(vms, Side.B)
        self.parked = {name: {Side.A} for name in vms}
        self.wedged: set[str] = set()
        self.deaf: set[str] = set()
        self.odd: set[str] = set()
        self.under_way: set[str] = set()
        self.fleeting: set[str] = set()
        self.gone: set[str] = set()
        self.cut: dict[str, Side] = {}
        self.moves = dict.fromkeys(vms, 1)
        self.refused_by_a = False
        self.sent = 0
        self.until = float("inf")

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.now > self.until:
            self.gone = set()


class GuestBackEnds(FakeBackEnds):
    def __init__(self, world: Guests) -> None:
        super().__init__(world)
        self.world = world

    def vm(self, name: str) -> VmStatus:
        world = self.world
        world.sent += 1  # every guest sends all the time
        used = 9 if self._stuck(name) else world.sent & 0xFFFF
        found = replace(super().vm(name), rings=(ring_status(1, used + 1 & 0xFFFF, used),), last_error="it says why",
                        unparkable="its memory has 8 regions" if name in world.odd else None)  # fmt: skip
        return replace(found, owner=None, certainty=OwnerCertainty.NOBODY) if name in world.gone else found

    def _stuck(self, name: str) -> bool:
        return name in self.world.wedged or (name in self.world.deaf and self.world.owner[name] is Side.B)

    def switch(self, name: str, side: Side) -> SwitchStatus:
        found = super().switch(name, side)
        return replace(found, connected=found.connected and self.world.cut.get(name) is not side)

    def park(self, name: str, side: Side) -> None:
        if name in self.world.odd:
            raise BrokerError(f"vm {name} cannot be parked: its memory has 8 regions")
        if side is Side.A and self.world.refused_by_a:
            raise BrokerError(f"vm {name}: switch a is not parked after 5 s")
        super().park(name, side)

    def why_not_moved(self, name: str, to: Side) -> str | None:
        world = self.world
        if name in world.fleeting:
            world.quarantine[name] = "it ends whatever serves it"
        if name in world.quarantine:
            world.gone.add(name)
            return f"vm {name} is in quarantine"
        if name in world.odd | world.under_way or (to is Side.A and world.refused_by_a):
            return f"vm {name} cannot move to {to}: messages are under way"
        return None

    def reload(self) -> list[str]:
        """VMs that no instance serves are given to the active side."""
        super().reload()
        for name, owner in self.world.owner.items():
            if self.world.pid[owner] is None:
                self.world.owner[name] = owner.other
        return []

    def unserved(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self._stuck(name)]


class InTurn(GuestBackEnds):
    """The guest of vm1 writes the indices of two rings as it likes: at any moment one of them looks unserved, and none
    does all the time."""

    def __init__(self, world: Guests, cycle: float) -> None:
        super().__init__(world)
        self.cycle, self.end = cycle, world.now + 600

    def vm(self, name: str) -> VmStatus:
        found, at = super().vm(name), self.world.now / self.cycle % 1
        assert self.world.now < self.end, "no end"
        if name == "vm1":
            good = int(self.world.now * 100) & 0xFFFF
            found = replace(found, rings=tuple(
                ring_status(index, 5000 if bad else good, 7 if bad else good)
                for index, bad in ((1, at < 0.7), (3, at >= 0.5 or at < 0.2))
            ))  # fmt: skip
        return found


class Instance(FakeInstance):
    def status(self) -> Any:
        return type("Status", (), {"state": self.world.state[self.side], "dpdk_initialized": True})


class Flows:
    """Packets that the flows have counted: VMs send to other hosts, which answer."""

    def __init__(self, world: World) -> None:
        self._world = world

    def packets(self, cookie: int, mask: int = 0) -> int:
        return int(100 * self._world.now)

    def arrived(self, port: int) -> int:
        return int(100 * self._world.now)


class GuestHost(FakeHost):
    def __init__(self, config: Config, world: Guests) -> None:
        super().__init__(config, world)
        self.instances = {side: Instance(config, world, side) for side in Side}  # type: ignore[misc]
        self.__dict__["broker"] = GuestBackEnds(world)

    def openflow(self, side: Side, bridge: str | None = None) -> Any:
        return Flows(self.world)

    def polled(self, side: Side) -> dict[str, tuple[RxQueue, ...]]:
        return {name: (RxQueue(0, 0, enabled=True),) for name in self.world.owner}

    def prefer_threads(self, side: Side, rank: Any) -> None:
        pass

    @contextlib.contextmanager
    def message_threads(self) -> Any:
        yield {}


class Bed:
    def __init__(self, tmp_path: Path) -> None:
        side = {"pmd_cores": [0], "uplink_devargs": "x"}
        config = Config.model_validate({
            "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
        })  # fmt: skip
        self.world = Guests(["vm1", "vm2", "vm3"])
        self.host = GuestHost(config, self.world)
        self.context = Upgrade(self.host, Side.A, Side.B, "host")
        self.facts: dict[str, Any] = {}
        self.events: list[Event] = []
        self.run = StepContext(lambda: self.facts, self.facts.update, self.events.append)

    @property
    def told(self) -> str:
        return "\n".join(each for each in self.facts.get("warnings", []) if "uplink" not in each)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


# ------------------------------------------------------------------------------------------------------- the way back


def test_a_wedged_ring_does_not_keep_the_way_back_from_ending(bed: Bed) -> None:
    bed.world.wedged = {"vm2"}
    take_back(bed.context, bed.run)
    assert set(bed.world.owner.values()) == {Side.A}
    assert bed.told == "instance a does not take what the guest sends of VM vm2"


@pytest.mark.parametrize("fault", ["odd", "under_way"])
def test_a_vm_that_cannot_be_moved_back_goes_back_when_the_new_instance_ends(bed: Bed, fault: str) -> None:
    setattr(bed.world, fault, {"vm2"})
    take_back(bed.context, bed.run)
    assert set(bed.world.owner.values()) == {Side.A}
    assert bed.world.done.index("move vm3 a") < bed.world.done.index("kill b")
    assert bed.told == ""


def test_the_new_instance_is_not_ended_where_the_old_one_takes_nobody(bed: Bed) -> None:
    bed.world.refused_by_a = True
    with pytest.raises(BrokerError):
        take_back(bed.context, bed.run)
    assert "kill b" not in bed.world.done
    assert set(bed.world.owner.values()) == {Side.B}


def test_a_vm_that_the_old_instance_does_not_reach_is_named(bed: Bed) -> None:
    bed.world.cut = {"vm2": Side.A}
    take_back(bed.context, bed.run)
    assert "instance a has no port for VM vm2 (VM vm2: it says why)" in bed.told


def test_an_old_instance_that_reaches_nobody_is_no_way_back(bed: Bed) -> None:
    bed.world.cut = dict.fromkeys(bed.world.owner, Side.A)
    with pytest.raises(SwitchError, match="instance a has no port for VM vm1, vm2, vm3"):
        take_back(bed.context, bed.run)


def quarantine(bed: Bed, name: str) -> None:
    bed.world.quarantine, bed.world.gone = {name: "by order"}, {name}
    bed.world.parked[name] = set()


def test_a_vm_in_quarantine_is_no_reason_to_end_the_new_instance(bed: Bed) -> None:
    quarantine(bed, "vm1")
    take_back(bed.context, bed.run)
    assert bed.world.done == ["move vm2 a", "move vm3 a"]
    assert bed.told == ""


def test_a_vm_that_is_put_in_quarantine_on_the_way_back_is_no_reason_either(bed: Bed) -> None:
    bed.world.fleeting = {"vm1"}
    take_back(bed.context, bed.run)
    assert bed.world.done == ["move vm2 a", "move vm3 a"]
    assert bed.told == ""


# ----------------------------------------------------------------------------------------------------------- the soak


def test_a_ring_that_is_wedged_in_the_soak_is_tried_on_the_old_instance_once(bed: Bed) -> None:
    bed.world.wedged = {"vm2"}
    Soak().do(bed.context, bed.run)
    assert bed.world.done == ["move vm2 a", "move vm2 b"]
    assert "VM vm2 ring 1: stuck, 1 buffers outstanding at index 9, on both instances: not judged" in bed.told
    assert baseline.known(bed.run) == {("vm2", 1)}
    Soak().do(bed.context, bed.run)
    assert bed.world.done == ["move vm2 a", "move vm2 b"]


def test_nothing_is_committed_that_could_not_be_recorded(bed: Bed) -> None:
    bed.world.full, bed.world.no_writing = {bed.host.config.restore_file.name}, errno.EROFS
    with pytest.raises(HostError, match="Read-only"):
        Soak().do(bed.context, bed.run)
    bed.world.pid[Side.A] = None
    Soak().do(bed.context, bed.run)  # there is no way back


def test_a_vm_that_the_old_instance_serves_and_the_new_one_does_not_is_a_reason_to_go_back(bed: Bed) -> None:
    bed.world.deaf = {"vm2"}
    with pytest.raises(SwitchError, match="instance b does not take what the guest sends of VM vm2, instance a does"):
        Soak().do(bed.context, bed.run)
    assert bed.world.owner == {"vm1": Side.B, "vm2": Side.A, "vm3": Side.B}


def test_a_wedged_ring_is_named_where_there_is_no_old_instance_to_try(bed: Bed) -> None:
    bed.world.wedged = {"vm2"}
    bed.world.pid[Side.A] = None
    Soak().do(bed.context, bed.run)
    assert bed.told == "VM vm2 ring 1: stuck, 1 buffers outstanding at index 9"


def test_a_vm_whose_qemu_comes_again_in_the_soak_is_waited_for(bed: Bed) -> None:
    bed.world.gone, bed.world.until = {"vm2"}, bed.world.now + 4.0
    Soak().do(bed.context, bed.run)
    assert bed.world.gone == set()
    assert bed.told == ""


def test_a_vm_that_is_not_served_at_the_end_of_the_soak_is_named(bed: Bed) -> None:
    bed.world.gone = {"vm2"}
    with pytest.raises(SwitchError, match=r"^instance b does not serve VM vm2$"):
        Soak().do(bed.context, bed.run)


def test_a_newcomer_that_cannot_be_moved_is_named_with_the_reason(bed: Bed) -> None:
    bed.world.owner["vm2"], bed.world.moves["vm2"], bed.world.odd = Side.A, 0, {"vm2"}
    with pytest.raises(SwitchError, match=r"^instance b does not serve VM vm2: its memory has 8 regions$"):
        Soak().do(bed.context, bed.run)


def test_a_vm_that_lost_its_switch_is_moved_again_once(bed: Bed) -> None:
    bed.world.owner["vm2"] = Side.A
    Soak().do(bed.context, bed.run)
    assert set(bed.world.owner.values()) == {Side.B}
    assert bed.told == "VM vm2 went back to instance a: it says why; it is moved again"


def test_a_vm_is_not_moved_again_to_an_instance_that_takes_no_devices(bed: Bed) -> None:
    bed.world.owner["vm2"], bed.world.no_database = Side.A, {Side.B}
    with pytest.raises(SwitchError, match="cannot connect"):
        Soak().do(bed.context, bed.run)
    assert bed.world.owner["vm2"] is Side.A


def test_rings_that_look_unserved_in_turn_do_not_keep_the_first_look_from_ending(bed: Bed) -> None:
    bed.host.__dict__["broker"] = InTurn(bed.world, 1.0)
    assert {vm for vm, _ in baseline.look(bed.host).wedged} == {"vm1"}


def test_rings_that_look_unserved_in_turn_do_not_keep_the_soak_from_ending(bed: Bed) -> None:
    bed.host.__dict__["broker"] = InTurn(bed.world, 2.0)
    Soak().do(bed.context, bed.run)
    assert {vm for vm, _ in baseline.known(bed.run)} == {"vm1"}
    assert "VM vm1 ring" in bed.told


class ComeAndGo(GuestBackEnds):
    """The QEMUs of vm1 and vm2 come again in turn, so that at any moment one of them is not served."""

    def vm(self, name: str) -> VmStatus:
        found, first = super().vm(name), self.world.now % 6 < 3
        assert self.world.now < 2000, "no end"
        gone = name == ("vm1" if first else "vm2")
        return replace(found, owner=None, certainty=OwnerCertainty.NOBODY) if gone else found


class ComesLate(GuestBackEnds):
    """The QEMU of vm2 comes again long after the soak would have ended."""

    def __init__(self, world: Guests) -> None:
        super().__init__(world)
        self.begun = world.now

    def vm(self, name: str) -> VmStatus:
        found = super().vm(name)
        gone = name == "vm2" and 21 < self.world.now - self.begun < 24
        return replace(found, owner=None, certainty=OwnerCertainty.NOBODY) if gone else found


class LateFlows(Flows):
    """Packets come 26 s from now on."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._first = world.now + 26

    def packets(self, cookie: int, mask: int = 0) -> int:
        return int(100 * max(0.0, self._world.now - self._first))


def test_a_vm_whose_qemu_comes_again_while_packets_are_waited_for_is_waited_for(bed: Bed) -> None:
    flows = LateFlows(bed.world)
    bed.host.__dict__["broker"] = ComesLate(bed.world)
    bed.host.__dict__["openflow"] = lambda _side: flows
    bed.facts["uplink_carried"] = asdict(Passed(9.0, 5, 5))
    bed.facts["uplink_proof"] = Proof().fact()
    begun = bed.world.now
    Soak().do(bed.context, bed.run)
    assert bed.world.now - begun > 26
    assert bed.told == ""


def test_vms_that_are_not_served_in_turn_do_not_keep_the_soak_from_ending(bed: Bed) -> None:
    bed.host.__dict__["broker"] = ComeAndGo(bed.world)
    with pytest.raises(SwitchError, match="instance b does not serve VM vm"):
        Soak().do(bed.context, bed.run)


def test_vms_that_are_not_served_in_turn_do_not_keep_the_old_instance_from_being_retired(bed: Bed) -> None:
    bed.host.__dict__["broker"] = ComeAndGo(bed.world)
    see_served(bed.context, bed.run)
    assert "instance b does not serve VM vm" in bed.told


def test_a_vm_that_is_put_in_quarantine_meanwhile_is_not_missed(bed: Bed) -> None:
    quarantine(bed, "vm2")
    bed.world.wedged = {"vm2"}
    Soak().do(bed.context, bed.run)
    see_served(bed.context, bed.run)
    assert bed.told == ""


# --------------------------------------------------------------------------------------------------- after the commit


def test_after_the_commit_one_vm_that_is_not_served_is_named_and_no_error(bed: Bed) -> None:
    bed.world.gone = {"vm2"}
    see_served(bed.context, bed.run)
    assert bed.told == "instance b does not serve VM vm2"


def test_after_the_commit_an_instance_that_serves_nobody_is_an_error(bed: Bed) -> None:
    bed.world.gone = set(bed.world.owner)
    with pytest.raises(SwitchError, match="instance b does not serve VM vm1; "):
        see_served(bed.context, bed.run)


# ---------------------------------------------------------------------------------------------------------- leaving out


def leaving_out(bed: Bed, name: str) -> Upgrade:
    bed.world.owner[name] = Side.A
    return replace(bed.context, leave_out=frozenset({name}))


def test_a_vm_that_is_left_out_is_neither_parked_nor_moved(bed: Bed) -> None:
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.A)
    bed.world.odd, bed.world.wedged = {"vm2"}, {"vm2"}
    context = leaving_out(bed, "vm2")
    Park().do(context, bed.run)
    MoveVms().do(context, bed.run)
    Soak().do(context, bed.run)
    see_served(context, bed.run)
    assert bed.world.owner == {"vm1": Side.B, "vm2": Side.A, "vm3": Side.B}
    assert not any("vm2" in each for each in bed.world.done)


def test_all_that_cannot_be_parked_are_named_with_the_way_out(bed: Bed) -> None:
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.A)
    bed.world.odd = {"vm1", "vm3"}
    with pytest.raises(SwitchError) as raised:
        Park().do(bed.context, bed.run)
    assert raised.value.message == (
        "VM vm1 cannot be parked on b: its memory has 8 regions; VM vm3 cannot be parked on b: its memory has 8 regions"
    )
    assert "`ovs-hotswap upgrade --release host --leave-out vm1 --leave-out vm3`" in str(raised.value.hint)


def test_a_vm_that_cannot_be_moved_is_named_with_the_way_out(bed: Bed) -> None:
    bed.world.owner = dict.fromkeys(bed.world.owner, Side.A)
    bed.world.under_way = {"vm2"}
    with pytest.raises(BrokerError, match="vm vm2 cannot move to b: messages are under way") as raised:
        MoveVms().do(bed.context, bed.run)
    assert "--leave-out" in str(raised.value.hint)
    assert bed.world.owner == {"vm1": Side.B, "vm2": Side.A, "vm3": Side.B}


@pytest.mark.parametrize("served", [True, False])
def test_a_vm_that_was_left_out_goes_to_the_new_instance_when_the_old_one_has_ended(bed: Bed, served: bool) -> None:
    context = leaving_out(bed, "vm2")
    if not served:
        bed.world.gone = {"vm2"}
    Retire().do(context, bed.run)
    assert bed.world.done == ["stop a", "reload"]
    assert bed.world.owner["vm2"] is Side.B
    text = "VM vm2 was left out: it was without network until instance a had ended" if served else (
        "VM vm2 was left out and has no network: instance b does not serve it"
    )  # fmt: skip
    assert bed.told == text


def test_a_vm_in_quarantine_that_was_left_out_stays_in_it(bed: Bed) -> None:
    context = leaving_out(bed, "vm2")
    quarantine(bed, "vm2")
    Retire().do(context, bed.run)
    assert bed.told == "VM vm2 was left out and has no network: it is in quarantine"


def test_an_upgrade_is_not_given_up_because_the_old_instance_serves_a_vm_that_is_left_out(bed: Bed) -> None:
    assert leaving_out(bed, "vm2").look(service=True).no_way_on == ""

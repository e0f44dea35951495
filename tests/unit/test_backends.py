"""The contract of a VM's two back ends. The same is asked of the fake that other tests use, of a broker in a process of
its own between a front end and two switches written for tests, and of ``qemu-dual`` with a script in place of QEMU.

There are two VMs: ``vm0`` has a guest, side a owns it, and it is parked on b. ``vm1`` has none.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.backends import VM_FIELDS, BackEnds, MoveResult, OwnerCertainty, Undelivered, VmStatus
from ovs_hotswap.broker.control.status import BROKER_FIELDS
from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import BrokerError
from ovs_hotswap.model import Side
from ovs_hotswap.qemu.dual import DualQemu
from ovs_hotswap.qemu.held import Held
from ovs_hotswap.qemu.monitor import Monitors
from ovs_hotswap.system import System
from tests.support.broker_bed import Bed
from tests.support.dual_bed import Qemu, Switches, TwoBackEnds
from tests.support.fake_backends import FakeBackEnds, VmStates
from tests.support.json_schema import faults
from tests.support.waiting import eventually
from tools import schema

NAMES = ["vm0", "vm1"]
VM, BROKER = (json.loads(schema.schemas()[f"{name}.schema.json"]) for name in ("vm", "broker"))


@contextlib.contextmanager
def fake(_directory: Path) -> Iterator[BackEnds]:
    states = VmStates(NAMES)
    states.empty = {"vm1"}
    yield FakeBackEnds(states)


@contextlib.contextmanager
def broker_bed() -> Iterator[Bed]:
    with contextlib.ExitStack() as stack:
        bed = Bed(stack, len(NAMES), Side.A, fence_ms=300)
        bed.running()
        bed.wait(lambda: bed.client.vm("vm0").switches[Side.B].parked, "parked")
        yield bed


@contextlib.contextmanager
def broker(_directory: Path) -> Iterator[BackEnds]:
    with broker_bed() as bed:
        yield bed.client


@contextlib.contextmanager
def qemu_dual(directory: Path) -> Iterator[BackEnds]:
    with Qemu(directory / "vm0.qmp") as server:
        switches = Switches(NAMES)
        server.answers = TwoBackEnds(lambda: any("vm0" in each.ports for each in switches.both.values())).answers
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            monitors = Monitors(lambda vm: directory / f"{vm}.qmp", 10.0)
            held = Held(directory / "quarantine", System())
            yield DualQemu(monitors, lambda: NAMES, lambda _vm: None, 500, held, switches.ports)
        finally:
            server.shutdown()
            thread.join()


MODES: dict[str, Callable[[Path], contextlib.AbstractContextManager[BackEnds]]] = {
    "fake": fake, "broker": broker, "qemu-dual": qemu_dual,
}  # fmt: skip


@pytest.fixture(params=MODES)
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BackEnds]:
    with MODES[request.param](tmp_path) as made:
        yield made


def test_every_vm_is_described_in_full(backends: BackEnds) -> None:
    found = {vm.name: vm for vm in backends.vms()}
    assert list(found) == NAMES
    for name, vm in found.items():
        alone = backends.vm(name)
        assert (alone.name, alone.owner, alone.switches) == (name, vm.owner, vm.switches)
        document = json.loads(json.dumps(vm.document()))
        assert faults(VM, document) == []
        assert document.keys() | vm.unreported == set(VM_FIELDS)
    assert [vm.name for vm in backends.vms(read=False)] == NAMES


def test_a_vm_that_there_is_not(backends: BackEnds) -> None:
    with pytest.raises(BrokerError, match="'vm9'"):
        backends.vm("vm9")
    with pytest.raises(BrokerError, match="'vm9'"):
        backends.quarantine("vm9", "by order")


def test_a_vm_with_a_guest(backends: BackEnds) -> None:
    vm = backends.vm("vm0")
    assert vm.to_serve
    assert vm.served_by(Side.A)
    assert vm.switches[Side.B].parked
    assert [vm.unprotected(side) or not vm.parkable(side) for side in Side] == [False, False]
    assert (vm.stranded(Side.B), vm.unparked(Side.B), vm.newcomer(Side.A)) == (True, False, True)
    assert vm.can_be_quarantined


def test_a_vm_without_a_guest(backends: BackEnds) -> None:
    vm = backends.vm("vm1")
    assert not vm.has_guest
    for side in Side:
        assert not any((vm.served_by(side), vm.astray(side), vm.unprotected(side), vm.stranded(side)))
    backends.park("vm1", Side.B)
    assert backends.move("vm1", Side.B) == MoveResult("vm1", None, 0.0, 0.0, 0.0)


def test_a_vm_is_parked_and_need_not_be(backends: BackEnds) -> None:
    for _ in range(2):
        backends.park("vm0", Side.B)
        assert backends.vm("vm0").switches[Side.B].parked
    backends.unpark("vm0", Side.B)
    assert backends.vm("vm0").served_by(Side.A)


def wait_served(backends: BackEnds, side: Side) -> None:
    eventually(lambda: backends.vm("vm0").served_by(side), f"{side} serves it")


def test_a_move_there_and_back(backends: BackEnds) -> None:
    for count, to in enumerate((Side.B, Side.A), 1):
        moved = backends.move("vm0", to)
        assert (moved.vm, moved.owner) == ("vm0", to)
        assert 0 < moved.total_us == pytest.approx(moved.give_us + moved.take_us, abs=0.2)
        wait_served(backends, to)
        assert backends.vm("vm0").moves == count
        backends.park("vm0", to.other)


def test_many_are_moved_up_to_the_first_that_cannot_be(backends: BackEnds) -> None:
    backends.quarantine("vm0", "by order")
    moved, error = backends.move_many(["vm1", "vm0"], Side.B)
    assert [each.vm for each in moved] == ["vm1"]
    assert isinstance(error, BrokerError)
    with pytest.raises(BrokerError):
        backends.move("vm0", Side.B)
    moved, error = backends.move_many(["vm0", "vm1"], Side.B)
    assert (moved, isinstance(error, BrokerError)) == ([], True)


def test_a_vm_in_quarantine_is_served_by_no_side(backends: BackEnds) -> None:
    def see_held(vm: VmStatus) -> None:
        assert (vm.quarantine, vm.owner) == ("by order", None)
        assert vm.certainty is not OwnerCertainty.OWNS
        assert vm.has_guest
        assert not vm.to_serve
        assert not any(vm.parkable(side) or vm.unprotected(side) or vm.switches[side].parked for side in Side)

    see_held(backends.quarantine("vm0", "by order"))
    see_held(backends.vm("vm0"))
    with pytest.raises(BrokerError, match="quarantine: by order"):
        backends.park("vm0", Side.B)
    backends.release("vm0")
    eventually(lambda: backends.vm("vm0").owner is not None, "it is served again")
    assert backends.vm("vm0").can_be_quarantined


def test_what_surrounds_a_move(backends: BackEnds) -> None:
    rows = backends.rows(["vm1", "vm0"])
    assert [name for row in rows for name in row] == ["vm1", "vm0"]
    assert backends.rows([]) == []
    assert set(backends.arm(["vm0"], Side.B)) <= {"vm0"}
    backends.disarm(["vm0"])
    backends.move("vm0", Side.B)
    assert set(backends.unserved(NAMES)) <= {"vm0"}
    assert list(backends.undelivered_many(["vm0", "vm1"])) == [Undelivered("vm0", []), Undelivered("vm1", [])]


def test_a_vm_that_cannot_be_parked_keeps_no_other_from_it(backends: BackEnds) -> None:
    backends.quarantine("vm1", "by order")
    errors = backends.park_many(["vm1", "vm0"], Side.B)
    assert list(errors) == ["vm1"]
    assert "quarantine: by order" in errors["vm1"].message
    assert backends.vm("vm0").switches[Side.B].parked
    assert backends.park_many([], Side.B) == {}
    assert list(backends.park_many(["vm9", "vm0"], Side.B)) == ["vm9"]


def test_the_intent_is_read_again(backends: BackEnds) -> None:
    assert backends.reload() == []
    assert backends.vm("vm0").served_by(Side.A)


def test_what_the_command_line_prints_is_as_the_schemas_say() -> None:
    with broker_bed() as bed:

        def printed(*arguments: str) -> Any:
            out, err = io.StringIO(), io.StringIO()
            argv = ["--config", str(bed.broker.config_path), "--json", *arguments]
            assert main.run(argv, App(Output(out=out, err=err))) == 0, err.getvalue()
            return json.loads(out.getvalue())

        shown, listed, status = printed("vm", "show", "vm0"), printed("vm", "list")["vms"], printed("broker", "status")
    assert [faults(VM, each) for each in (shown, *listed)] == [[], [], []]
    assert shown.keys() == set(VM_FIELDS) - {"netdev"}
    assert [each["name"] for each in listed] == NAMES
    assert faults(BROKER, status) == []
    assert status.keys() == set(BROKER_FIELDS)


def test_the_list_of_vms_names_those_in_quarantine() -> None:
    with broker_bed() as bed:
        bed.client.quarantine("vm1", "by order")
        out = io.StringIO()
        assert main.run(["--config", str(bed.broker.config_path), "vm", "list"], App(Output(out=out))) == 0
    assert "VM vm1 is in quarantine: by order (`ovs-hotswap vm release vm1`)" in out.getvalue()
    assert "VM vm0 is in" not in out.getvalue()

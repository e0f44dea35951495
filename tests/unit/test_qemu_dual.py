"""The back-end mode ``qemu-dual``: what QEMU says of its back ends as the document of a VM, and its commands over real
QMP sockets. The other end is a script here; ``tests/integration/test_qemu_dual.py`` asks the same of the patched
QEMU."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.backends import OwnerCertainty, SwitchRole, SwitchStatus
from ovs_hotswap.errors import BrokerError, StateUnknown, SwitchError
from ovs_hotswap.model import Side
from ovs_hotswap.qemu.dual import DualQemu, chosen, vm_status
from ovs_hotswap.qemu.held import Held
from ovs_hotswap.qemu.monitor import Command, Monitors
from ovs_hotswap.system import System
from ovs_hotswap.watchdog import culprit_search
from tests.support.dual_bed import NETDEV, Qemu, Switches, netdev, swapped


@pytest.fixture
def qemus(tmp_path: Path) -> Iterator[dict[str, Qemu]]:
    made: dict[str, Qemu] = {}
    with ExitStack() as stack:
        for name in ("vm1", "vm2"):
            qemu = stack.enter_context(Qemu(tmp_path / f"{name}.qmp"))
            stack.callback(qemu.shutdown)
            threading.Thread(target=qemu.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            made[name] = qemu
        yield made


@pytest.fixture
def switches() -> Switches:
    return Switches()


@pytest.fixture
def dual(tmp_path: Path, qemus: dict[str, Qemu], switches: Switches) -> DualQemu:
    monitors = Monitors(lambda vm: tmp_path / f"{vm}.qmp", 2.0)
    held = Held(tmp_path / "quarantine", System())
    return DualQemu(monitors, lambda: [*qemus, "absent"], lambda _vm: None, 500, held, switches.ports)


def test_a_vm_in_quarantine_has_no_port_on_either_instance(
    dual: DualQemu, qemus: dict[str, Qemu], switches: Switches
) -> None:
    qemus["vm1"].answers["query-vhost-user-backends"][0] |= {"state": "unowned", "standby-state": "absent"}
    found = dual.quarantine("vm1", "by order")
    assert switches.told == ["remove vm1 a", "remove vm1 b"], "else its QEMU gives the rings to the other"
    assert (found.owner, found.quarantine, found.unparkable) == (None, "by order", "in quarantine: by order")
    assert [vm.quarantine for vm in dual.vms()] == ["by order", None, None]
    with pytest.raises(BrokerError, match="vm vm1 is in quarantine: by order"):
        dual.park("vm1", Side.A)
    moved, error = dual.move_many(["vm1"], Side.A)
    assert (moved, isinstance(error, BrokerError)) == ([], True)
    assert culprit_search.quarantined(dual.vms()) == {"vm1": "by order"}
    switches.told.clear()
    dual.release("vm1")
    assert switches.told == ["add vm1 b", "add vm1 a"], "the first that its QEMU meets has the rings"
    assert dual.vm("vm1").quarantine is None
    dual.release("vm1")
    assert len(switches.told) == 2


def test_a_dead_instance_needs_no_port_removed_and_one_that_keeps_its_port_is_told(
    dual: DualQemu, qemus: dict[str, Qemu], switches: Switches
) -> None:
    qemus["vm1"].answers["query-vhost-user-backends"][0] |= {"state": "down", "standby-state": "absent"}
    switches.both[Side.B].fault = SwitchError("no answer")
    with pytest.raises(SwitchError):
        dual.quarantine("vm1", "by order")
    assert dual.vm("vm1").quarantine is None
    switches.both[Side.B].number = None
    assert dual.quarantine("vm1", "by order").quarantine == "by order"
    with pytest.raises(BrokerError, match="no vm 'vm9'"):
        dual.quarantine("vm9", "by order")


def test_the_vms(dual: DualQemu) -> None:
    vms = {vm.name: vm for vm in dual.vms()}
    assert [vm.owner for vm in vms.values()] == [Side.A, Side.A, None]
    assert vms["vm1"].qemu
    assert vms["absent"].qemu is None
    assert vms["vm1"].switches[Side.B] == SwitchStatus(True, 1377, SwitchRole.PARKED, True, None, ())
    assert "No such file" in str(vms["absent"].last_error)


@pytest.mark.parametrize(("state", "owner", "certainty"), [
    ("served", Side.B, "owns"), ("unowned", Side.B, "cut"), ("down", None, "nobody"),
])  # fmt: skip
def test_who_has_the_rings(state: str, owner: Side | None, certainty: str) -> None:
    found = vm_status("vm1", 7, netdev(**{"active-slot": "second", "state": state}), None)
    assert (found.owner, found.certainty) == (owner, certainty)


def test_a_refused_standby_is_told_with_its_reason() -> None:
    found = vm_status("vm1", 7, netdev(**{"standby-state": "refused", "reason": "it lacks MRG_RXBUF"}), None)
    assert found.unparkable == "it lacks MRG_RXBUF"
    assert found.switches[Side.B].connected
    assert not found.switches[Side.B].parked


def test_which_netdev() -> None:
    two = [netdev(), netdev(netdev="net1")]
    assert chosen("vm1", [netdev()], None).netdev == "net0"
    assert chosen("vm1", two, "net1").netdev == "net1"
    for netdevs, wanted, text in ((two, None, "several netdevs with two back ends: net0, net1"),
                                  ([], None, "no netdev with two back ends"),
                                  (two, "net2", "no netdev 'net2' with two back ends")):  # fmt: skip
        with pytest.raises(BrokerError, match=text):
            chosen("vm1", netdevs, wanted)


def test_moves_in_their_order_up_to_the_first_that_fails(dual: DualQemu, qemus: dict[str, Qemu]) -> None:
    qemus["vm1"].answers["vhost-user-swap"] = swapped()
    qemus["vm2"].answers["vhost-user-swap"] = ("GenericError", "net0: sw0 did not let go of its rings in time")
    moved, error = dual.move_many(["vm1", "absent", "vm2"], Side.B)
    assert [(each.vm, each.owner, each.total_us) for each in moved] == [
        ("vm1", Side.B, 171.0), ("absent", None, 0.0),
    ]  # fmt: skip
    assert isinstance(error, BrokerError)
    assert error.message == "vm vm2: vhost-user-swap: net0: sw0 did not let go of its rings in time"
    assert qemus["vm1"].asked[-1] == ("vhost-user-swap", {"netdev": "net0", "to": "second", "timeout-ms": 500})


def test_a_side_that_has_not_confirmed_is_an_open_end(dual: DualQemu, qemus: dict[str, Qemu]) -> None:
    qemus["vm1"].answers["vhost-user-swap"] = swapped(outcome="unconfirmed")
    with pytest.raises(StateUnknown, match="vm vm1: switch b was given the rings and has not confirmed"):
        dual.move("vm1", Side.B)


def test_parking_waits_and_gives_reasons(dual: DualQemu, qemus: dict[str, Qemu], monkeypatch: Any) -> None:
    monkeypatch.setattr("ovs_hotswap.qemu.dual._PARKED_S", 0.1)
    dual.park("vm1", Side.B)
    dual.park("absent", Side.B)
    for state, text in (("negotiating", "switch b is not parked yet"), ("absent", "switch b is not connected"),
                        ("refused", "cannot be parked on b: it lacks a ring")):  # fmt: skip
        netdev = {**NETDEV, "standby-state": state, "reason": "it lacks a ring"}
        qemus["vm1"].answers["query-vhost-user-backends"] = [netdev]
        with pytest.raises(BrokerError, match=text):
            dual.park("vm1", Side.B)


def test_a_guest_is_served_when_what_it_sends_is_taken(dual: DualQemu, qemus: dict[str, Qemu]) -> None:
    def at(available: int, used: int) -> None:
        ring = {"index": 1, "enabled": True, "available": available, "used": used}
        qemus["vm1"].answers["query-vhost-user-backends"] = [{**NETDEV, "rings": [ring]}]

    qemus["vm1"].answers["vhost-user-swap"] = swapped()
    at(60, 52)
    dual.move("vm1", Side.B)
    assert dual.unserved(["vm1"]) == ["vm1"]
    at(61, 53)
    assert dual.unserved(["vm1"]) == []
    at(52, 52)
    assert dual.unserved(["vm1"]) == []


def test_a_stock_qemu_is_told_from_one_that_fails(dual: DualQemu, qemus: dict[str, Qemu]) -> None:
    text = "The command query-vhost-user-backends has not been found"
    qemus["vm2"].answers["query-vhost-user-backends"] = ("CommandNotFound", text)
    with pytest.raises(BrokerError, match=f"vm vm2: .*{text}") as raised:
        dual.vm("vm2")
    assert "qemu-patches" in (raised.value.hint or "")


GARBAGE: list[Any] = [
    5, None, {}, [5], [{"netdev": "net0"}], [{**NETDEV, "active-slot": "third"}], [{**NETDEV, "state": 1}],
    [{**NETDEV, "active-pid": "1"}], [{**NETDEV, "rings": [{"index": 1}]}], [{**NETDEV, "rings": 3}],
    [{**NETDEV, "rings": [{"index": 1, "enabled": True, "available": "x", "used": 3}]}], [], [NETDEV, NETDEV],
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_an_answer_of_the_wrong_shape_is_its_vms_fault_alone(
    dual: DualQemu, qemus: dict[str, Qemu], garbage: Any
) -> None:
    qemus["vm2"].answers["query-vhost-user-backends"] = garbage
    vms = {vm.name: vm for vm in dual.vms()}
    assert vms["vm1"].owner is Side.A
    bad = vms["vm2"]
    assert (bad.owner, bad.certainty, bad.rings) == (None, OwnerCertainty.UNKNOWN, ())
    assert bad.qemu is not None, "it runs"
    assert not any(bad.switches[side].connected or bad.switches[side].parked for side in Side)
    assert str(bad.last_error).startswith("vm vm2: ")
    assert [vm.name for vm in vms.values() if vm.unprotected(Side.B)] == ["vm2"]
    assert not any(vm.stranded(Side.A) for vm in vms.values())
    with pytest.raises(BrokerError, match="vm vm2: "):
        dual.park("vm2", Side.B)
    qemus["vm1"].answers["vhost-user-swap"] = swapped()
    moved, error = dual.move_many(["vm1", "vm2"], Side.B)
    assert [each.vm for each in moved] == ["vm1"]
    assert isinstance(error, BrokerError)


@pytest.mark.parametrize("garbage", [5, None, [], [{}], [{"outcome": "confirmed", "give-us": "1"}]], ids=repr)
def test_a_swap_whose_answer_cannot_be_understood_is_an_open_end(
    dual: DualQemu, qemus: dict[str, Qemu], garbage: Any
) -> None:
    qemus["vm1"].answers["vhost-user-swap"] = garbage
    with pytest.raises(StateUnknown, match="vm vm1: QEMU's answer to vhost-user-swap"):
        dual.move("vm1", Side.B)


def test_one_monitor_that_is_mute_holds_up_no_other(
    tmp_path: Path, qemus: dict[str, Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovs_hotswap.qemu.monitor._QUESTION_S", 0.3)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute.qmp"))
        mute.listen()
        monitors = Monitors(lambda vm: tmp_path / f"{vm}.qmp", 30.0)
        held = Held(tmp_path / "quarantine", System())
        dual = DualQemu(monitors, lambda: ["mute", "vm1"], lambda _vm: None, 500, held, Switches().ports)
        for _ in range(3):
            vms = dual.vms()
            assert [(vm.owner, vm.certainty) for vm in vms] == [(None, "unknown"), (Side.A, "owns")]
            assert "did not answer query-vhost-user-backends" in str(vms[0].last_error)


def test_a_monitor_that_does_not_answer_holds_nobody_up(tmp_path: Path) -> None:
    class Silent(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.read()

    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "vm1.qmp"), Silent) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        answer = Monitors(lambda vm: tmp_path / f"{vm}.qmp", 0.2).ask({"vm1": Command("query-status")})["vm1"]
        server.shutdown()
    assert answer.error is not None
    assert "QEMU did not answer query-status" in answer.error.message

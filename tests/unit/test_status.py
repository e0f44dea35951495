"""The status of VMs and of the broker: the JSON documents, and what the names of its states are."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ovs_hotswap.backends import (
    ABSENT_SWITCH,
    Absence,
    AbsenceCause,
    LastProof,
    MoveResult,
    OwnerCertainty,
    RingStatus,
    Switches,
    SwitchRole,
    SwitchStatus,
    VmStatus,
)  # fmt: skip
from ovs_hotswap.broker.control.client import encode
from ovs_hotswap.broker.control.status import BrokerStatus, CaptureStatus
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser.ownership import Certainty
from ovs_hotswap.vhostuser.reconcile import Role
from tests.support.fake_backends import ring_status, vm_status

VM = VmStatus(
    name="vm1", qemu=7, owner=Side.A, certainty=OwnerCertainty.OWNS, owner_since=1.5,
    last_proof=LastProof(Side.B, "fence"), home=Side.A,
    features="0x130000000", feature_names=("RING_EVENT_IDX", "VERSION_1"), memory_bytes=1 << 30, memory_regions=2,
    unparkable=None, switches=Switches(SwitchStatus(True, 11, SwitchRole.OWNER, False, "0x1", ("VERSION_1",)),
                                       ABSENT_SWITCH),
    rings=(RingStatus(0, 256, True, True, 65535, None),), capture_bytes=4096, moves=3, last_move_us=12.5,
    last_error="a note", unreported=frozenset({"netdev"}),
)  # fmt: skip
DOCUMENT = {
    "name": "vm1", "qemu": 7, "absent": None, "owner": "a", "certainty": "owns", "owner_since": 1.5,
    "last_proof": {"side": "b", "proof": "fence"}, "home": "a",
    "features": "0x130000000", "feature_names": ["RING_EVENT_IDX", "VERSION_1"], "memory_bytes": 1 << 30,
    "memory_regions": 2, "unparkable": None, "quarantine": None,
    "switches": {
        "a": {"connected": True, "pid": 11, "role": "owner", "parked": False, "offers": "0x1",
              "missing": ["VERSION_1"]},
        "b": {"connected": False, "pid": None, "role": None, "parked": False, "offers": None, "missing": []},
    },
    "rings": [{"index": 0, "size": 256, "started": True, "enabled": True, "available": 65535, "used": None}],
    "capture_bytes": 4096, "moves": 3, "last_move_us": 12.5, "last_error": "a note",
}  # fmt: skip
BROKER = BrokerStatus(version="1.0", pid=5, uptime_s=2.5, vms=1, home=Side.B, capture=CaptureStatus(4, 3, 2, 1))


def as_json(value: object) -> object:
    return json.loads(encode({"result": value}))["result"]


def test_the_document_of_a_vm() -> None:
    assert as_json(VM) == DOCUMENT
    assert list(VM.document()) == list(DOCUMENT), "for people, in the same order"


def test_a_reason_why_qemu_is_not_there() -> None:
    vm = replace(VM, qemu=None, absent=Absence(AbsenceCause.BUSY, "it hangs"))
    assert as_json(vm) == {**DOCUMENT, "qemu": None, "absent": {"cause": "busy", "text": "it hangs"}}


def test_the_document_of_a_move() -> None:
    assert as_json([MoveResult("vm1", Side.B, 1.0, 2.0, 3.0)]) == [
        {"vm": "vm1", "owner": "b", "give_us": 1.0, "take_us": 2.0, "total_us": 3.0}
    ]


def test_the_document_of_a_broker() -> None:
    assert as_json(BROKER) == {
        "version": "1.0", "pid": 5, "uptime_s": 2.5, "vms": 1, "supervised": False, "withdrawn": False, "unsaved": 0,
        "unit": False, "formats": [], "home": "b", "capture": {"limit": 4, "taken": 3, "largest": 2, "all": 1},
        "config_fault": None, "differing": [], "leaving": [],
    }  # fmt: skip


def test_what_is_no_status_is_not_sent() -> None:
    with pytest.raises(TypeError):
        encode({"result": object()})


@pytest.mark.parametrize(("inside", "reported"), [(Certainty, OwnerCertainty), (Role, SwitchRole)])
def test_each_state_in_the_broker_has_a_name_of_its_own(
    inside: type[enum.StrEnum], reported: type[enum.StrEnum]
) -> None:
    assert {each.value for each in inside} | {"unknown"} == {each.value for each in reported}


@pytest.mark.parametrize(
    ("kind", "fallback"),
    [(OwnerCertainty, OwnerCertainty.UNKNOWN), (SwitchRole, SwitchRole.UNKNOWN),
     (AbsenceCause, AbsenceCause.UNREACHABLE)],
)  # fmt: skip
def test_a_state_that_a_newer_version_has(kind: Callable[[object], enum.StrEnum], fallback: enum.StrEnum) -> None:
    assert kind("of-tomorrow") is fallback
    with pytest.raises(ValueError, match="5"):
        kind(5)


CUT, TAKING = OwnerCertainty.CUT, OwnerCertainty.TAKING
PARKED = SwitchStatus(True, 11, SwitchRole.PARKED, True, None, ())
IDLE = replace(PARKED, role=SwitchRole.IDLE, parked=False)
LACKS = replace(IDLE, missing=("VERSION_1",))
# Side a serves it, and it could be parked on b and is not.
USUAL = vm_status(switches=Switches(IDLE, IDLE))
ASKED: dict[str, Callable[[VmStatus], bool]] = {
    "served by a": lambda vm: vm.served_by(Side.A),
    "astray from b": lambda vm: vm.astray(Side.B),
    "parkable on b": lambda vm: vm.parkable(Side.B),
    "unparked on b": lambda vm: vm.unparked(Side.B),
    "unprotected by b": lambda vm: vm.unprotected(Side.B),
    "stranded from b": lambda vm: vm.stranded(Side.B),
    "newcomer on a": lambda vm: vm.newcomer(Side.A),
    "to serve": lambda vm: vm.to_serve,
    "may be held": lambda vm: vm.can_be_quarantined,
}
ALL = set(ASKED)
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, ALL),
    ({"moves": 1}, ALL - {"newcomer on a"}),
    ({"switches": Switches(IDLE, PARKED)}, ALL - {"unparked on b", "unprotected by b"}),
    ({"switches": Switches(IDLE, ABSENT_SWITCH)}, ALL - {"parkable on b", "unparked on b", "stranded from b"}),
    ({"switches": Switches(IDLE, LACKS)}, ALL - {"parkable on b", "unparked on b", "stranded from b"}),
    ({"unparkable": "8 regions"}, ALL - {"parkable on b", "unparked on b", "stranded from b"}),
    ({"certainty": CUT}, ALL - {"served by a", "newcomer on a"}),
    ({"certainty": TAKING, "owner": Side.B},
     {"astray from b", "parkable on b", "stranded from b", "to serve", "may be held"}),
    ({"owner": Side.B}, {"parkable on b", "to serve", "may be held"}),
    ({"owner": None, "certainty": OwnerCertainty.NOBODY},
     ALL - {"served by a", "newcomer on a", "unparked on b"}),
    ({"qemu": None, "owner": None, "certainty": OwnerCertainty.NOBODY}, {"parkable on b", "may be held"}),
    ({"quarantine": "by order"}, ALL - {"unprotected by b", "to serve", "may be held"}),
    ({"unreported": frozenset({"quarantine"})}, ALL - {"may be held"}),
]  # fmt: skip


@pytest.mark.parametrize(("change", "true"), CASES, ids=[", ".join(change) or "usual" for change, _ in CASES])
def test_what_can_be_said_of_a_vm(change: dict[str, Any], true: set[str]) -> None:
    vm = replace(USUAL, **change)
    assert {name for name, ask in ASKED.items() if ask(vm)} == true


def test_the_features_that_a_guest_uses() -> None:
    assert (replace(USUAL, features="0x130000000").features_used, USUAL.features_used) == (0x130000000, 0)


def test_the_odd_rings_are_those_that_the_guest_sends_on() -> None:
    assert [ring_status(index).transmits for index in range(4)] == [False, True, False, True]

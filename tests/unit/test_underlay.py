"""What the instances' tunnels are to be given, from the intent, the answers, and what both instances have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host.underlay import Underlay
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.next_hops import NextHops
from ovs_hotswap.switch.owned import PROGRAMMED_TUNNELS
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.tunnel import TunnelConfig
from ovs_hotswap.upgrade import collect

NEAR, M1, M2 = "172.31.0.2", "52:54:00:00:00:01", "52:54:00:00:00:02"
ADDRESS = "172.31.0.1/24"
ROOT = Path(__file__).parents[2]


class Database:
    def __init__(self, note: TunnelConfig | None) -> None:
        self.note = note

    def external_ids(self) -> dict[str, str]:
        return {} if self.note is None else {PROGRAMMED_TUNNELS: self.note.note()}


class Instance:
    """An instance with what it was given. ``silent``: its database does not answer."""

    def __init__(self, pid: int | None, macs: dict[str, str] | None = None, *, silent: bool = False) -> None:
        self.paths = InstancePaths.__new__(InstancePaths)
        object.__setattr__(self.paths, "netns", "ovsh-x")
        self.number, self.silent = pid, silent
        self.note = None if macs is None else TunnelConfig(ADDRESS, {}, macs)

    def pid(self) -> int | None:
        return self.number

    @contextmanager
    def database(self, *, tables: object) -> Iterator[Database]:
        if self.silent:
            raise SwitchError("db.sock: cannot connect")
        yield Database(self.note)


class Switches:
    """The ends of both instances; ``speaking`` speaks for the VTEP's address."""

    def __init__(self, speaking: Side | None = None) -> None:
        self.speaking = speaking

    def end(self, side: Side) -> Any:
        return End(side, side is self.speaking)


@dataclass(frozen=True)
class End:
    side: Side
    speaking: bool

    def speaks(self) -> bool:
        return self.speaking

    def send(self, frame: bytes) -> None: ...


def underlay(a: Instance, b: Instance, active: Side | None, *, mac: str | None = None, **uplink: str) -> Underlay:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    config = Config.model_validate({"overlay": "/x", "instances": {"a": side, "b": side}, "uplink": uplink})
    intent = Intent.model_validate({
        "vtep": {"address": ADDRESS, "mac": "52:54:00:1f:00:01"}, "neighbour": [{"address": NEAR, "mac": mac}],
    })  # fmt: skip
    instances: Any = {Side.A: a, Side.B: b}
    return Underlay(config, intent, instances, Switches().end, lambda: active)


@pytest.mark.parametrize(
    ("a", "b", "active", "expected"),
    [
        (Instance(1, {NEAR: M1}), Instance(2, {NEAR: M2}), Side.A, M1),
        (Instance(1, {NEAR: M1}), Instance(2, {NEAR: M2}), Side.B, M2),
        (Instance(1, {}), Instance(2, {NEAR: M2}), Side.A, M2),
        (Instance(None, {NEAR: M1}), Instance(2, {NEAR: M2}), Side.A, M2),
        (Instance(1, {NEAR: M1}, silent=True), Instance(2, {NEAR: M2}), Side.A, M2),
        (Instance(1), Instance(None), Side.A, None),
    ],
)  # fmt: skip
def test_a_silent_neighbour_keeps_the_mac_that_the_active_instance_has(
    a: Instance, b: Instance, active: Side, expected: str | None
) -> None:
    of = underlay(a, b, active)
    assert of.wanted({}).neighbours.get(NEAR) == expected
    assert of.wanted({NEAR: "52:54:00:00:00:03"}).neighbours == {NEAR: "52:54:00:00:00:03"}


def test_static_neighbours_need_no_look_at_the_instances() -> None:
    of = underlay(Instance(1, silent=True), Instance(2, silent=True), Side.A, mac=M1)
    assert not of.asks
    assert of.answers() == {}
    assert of.wanted({}) == TunnelConfig(ADDRESS, {}, {NEAR: M1})


def test_questions_leave_by_the_kernels_device_or_else_by_an_instance() -> None:
    driver = {"driver": "tc", "device": "pf0", "representor_a": "rep-a", "representor_b": "rep-b"}
    of = underlay(Instance(1), Instance(2), Side.A, **driver).asker()
    assert [getattr(each, "args", None) for each in of.mouths] == [("pf0",)]
    assert (len(of.ears), len(of.bridges)) == (1, 2), "the device, and both bridges"
    of = underlay(Instance(None), Instance(2), Side.A).asker()
    assert [getattr(each, "__name__", "") for each in of.mouths] == ["send"]
    assert (len(of.ears), len(of.bridges)) == (0, 1)
    assert underlay(Instance(None), Instance(None), None).asker().mouths == []
    of = underlay(Instance(1), Instance(None), Side.A, driver="exclusive", device="pf0").asker()
    assert (len(of.ears), len(of.bridges)) == (0, 1), "the NIC is the instance's alone"


@pytest.mark.parametrize("name", ["watch", "restore"])
def test_a_unit_that_programs_tunnels_may_ask_next_hops(name: str) -> None:
    unit = (ROOT / f"systemd/ovs-hotswap-{name}.service").read_text()
    (capabilities,) = re.findall(r"^CapabilityBoundingSet=(.*)", unit, re.MULTILINE)
    (families,) = re.findall(r"^RestrictAddressFamilies=(.*)", unit, re.MULTILINE)
    assert "CAP_NET_RAW" in capabilities.split()
    assert "AF_PACKET" in families.split()


@pytest.mark.parametrize(
    ("active", "silent", "asks"),
    [
        (Side.A, (), [Side.A]), (Side.B, (), [Side.B]), (Side.B, (Side.B,), [Side.A]), (None, (Side.A,), [Side.B]),
        (Side.A, tuple(Side), []),
    ],
)  # fmt: skip
def test_of_two_instances_the_active_one_asks_if_it_answers(
    active: Side | None, silent: tuple[Side, ...], asks: list[Side]
) -> None:
    """With the driver exclusive, the other one has no uplink."""

    def end(side: Side) -> Any:
        if side in silent:
            raise SwitchError(f"instance {side} is stopped")
        return End(side, speaking=False)

    of = underlay(Instance(1), Instance(2), active)
    of._end = end
    assert [getattr(each, "__self__", None) for each in of.asker().mouths] == [
        End(side, speaking=False) for side in asks
    ]


@pytest.mark.parametrize(
    ("a", "b", "uplink", "expected"),
    [
        (Instance(1), Instance(None), {}, True),
        (Instance(1), Instance(2), {}, False),
        (Instance(1, {}), Instance(None), {}, False),
        (Instance(1), Instance(None), {"driver": "none", "device": "pf0"}, False),
    ],
)
def test_an_instance_that_was_just_started_does_not_ask_in_vain(
    a: Instance, b: Instance, uplink: dict[str, str], expected: bool
) -> None:
    """It has no flows for the answers yet, and after a death its VMs wait."""
    of = underlay(a, b, Side.A, **uplink)
    assert of._asks_in_vain(Side.A, of.programmed(Side.A)) is expected


def test_a_silent_host_keeps_no_upgrade_from_others() -> None:
    """It may be down for long, and the active instance cannot send to it either."""
    intent = Intent.model_validate({
        "vtep": {"address": ADDRESS, "mac": "52:54:00:1f:00:01"}, "neighbour": [{"address": NEAR}],
    })  # fmt: skip
    host: Any = SimpleNamespace(
        intent=intent, underlay=SimpleNamespace(asks=True, answers=dict[str, str], in_use=NextHops)
    )
    (found,) = collect.next_hops(host)
    assert found.severity is Severity.ERROR
    (told,) = collect.upgraded_next_hops(host)
    assert told == replace(found, severity=Severity.WARNING)


@pytest.mark.parametrize("speaking", [Side.A, Side.B])
def test_where_the_address_is_announced_the_instance_that_speaks_for_it_asks(speaking: Side) -> None:
    """Neighbours learn from a question."""
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    macs = {Side.A: "52:54:00:1f:00:0a", Side.B: "52:54:00:1f:00:0b"}
    config = Config.model_validate({
        "overlay": "/x", "instances": {each: {**side, "uplink_mac": macs[each]} for each in Side},
        "uplink": {"driver": "announce", "device": "pf0"},
    })  # fmt: skip
    intent = Intent.model_validate({"vtep": {"address": ADDRESS, "mac": "52:54:00:1f:00:01"}})
    both: Any = {Side.A: Instance(1), Side.B: Instance(2)}
    asker = Underlay(config, intent, both, Switches(speaking).end, lambda: speaking.other).asker()
    (mouth,) = asker.mouths
    assert getattr(mouth, "__self__", None) == End(speaking, True)
    assert asker.vtep.mac == macs[speaking]
    assert (len(asker.ears), len(asker.bridges)) == (0, 1)
    with pytest.raises(UplinkError):
        Underlay(config, intent, both, Switches().end, lambda: Side.A).asker().ask(intent.neighbours, {})


def test_an_earlier_versions_note_has_no_links() -> None:
    note = TunnelConfig(ADDRESS, {}, {}, ("192.0.2.1/31",))
    assert TunnelConfig.of_note(note.note()) == note
    assert "link 192.0.2.1/31" in note.lines()
    earlier = '{"address": "172.31.0.1/24", "routes": {}, "neighbours": {}}'
    assert TunnelConfig.of_note(earlier) == TunnelConfig(ADDRESS)

"""Neighbours are asked for their MACs and followed, over a stand-in for the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host.underlay import in_use
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent, Neighbour
from ovs_hotswap.overlay.next_hops import NextHops
from ovs_hotswap.switch.tunnel import TunnelConfig
from ovs_hotswap.uplink.frames import BROADCAST, Ear, Host, answerer, question
from ovs_hotswap.uplink.neighbours import Asker
from ovs_hotswap.watchdog import next_hop_watch
from ovs_hotswap.watchdog.next_hop_watch import NextHopWatch
from ovs_hotswap.watchdog.status_file import StatusFile, last_events
from tests.unit.watch_bed import World

MAC = "52:54:00:1f:00:01"
ONE, TWO, NEAR = "192.0.2.0", "192.0.2.2", "172.31.0.2"
M1, M2, M3 = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
NETWORK = "10.0.0.0/24"


def intent(*neighbours: str) -> Intent:
    """A VTEP with two links. If both next hops are there, a route has them as gateways."""
    gateways = [each for each in (ONE, TWO) if {ONE, TWO} <= set(neighbours)]
    return Intent.model_validate({
        "vtep": {"address": "172.31.0.1/24", "mac": MAC, "link_addresses": ["192.0.2.1/31", "192.0.2.3/31"]},
        "neighbour": [{"address": each} for each in neighbours],
        "route": [{"destination": NETWORK, "gateway": gateways}] if gateways else [],
    })  # fmt: skip


def answer(by: Host, to: Host) -> bytes:
    def octets(mac: str) -> bytes:
        return bytes.fromhex(mac.replace(":", ""))

    return (
        octets(to.mac) + octets(by.mac) + bytes.fromhex("08060001080006040002")
        + octets(by.mac) + IPv4Address(by.address).packed + octets(to.mac) + IPv4Address(to.address).packed
    ).ljust(60, b"\0")  # fmt: skip


@dataclass
class Wire:
    """A wire with hosts, by address. ``lost``: so many of the first frames are lost. ``noise``: what else is heard."""

    hosts: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    noise: list[bytes] = field(default_factory=list)
    now: float = 0.0
    sent: list[bytes] = field(default_factory=list)
    arrived: list[bytes] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)
        asker = Host(str(IPv4Address(frame[28:32])), frame[22:28].hex(":"))
        target, to = str(IPv4Address(frame[38:42])), frame[0:6].hex(":")
        self.lost -= 1
        if self.lost < 0 and target in self.hosts and to in (BROADCAST, self.hosts[target]):
            self.arrived += [*self.noise, answer(Host(target, self.hosts[target]), asker)]

    @contextmanager
    def listen(self) -> Iterator[Ear]:
        yield self

    def heard(self, seconds: float) -> list[bytes]:
        frames, self.arrived = self.arrived, []
        if not frames:
            self.now += seconds
        return frames


class Down:
    """A link that is down."""

    def send(self, frame: bytes) -> None:
        raise UplinkError("pf1: the network is down")

    @contextmanager
    def listen(self) -> Iterator[Ear]:
        yield self

    def heard(self, seconds: float) -> list[bytes]:
        raise UplinkError("a packet socket: the network is down")


@contextmanager
def absent() -> Iterator[Ear]:
    raise UplinkError("no such device")
    yield


def asker(wire: Wire, of: Intent, *more: Down, opened: tuple[Any, ...] = ()) -> Asker:
    ends: list[Down | Wire] = [*more, wire]
    return Asker(of.vtep, [each.send for each in ends], [*opened, *(each.listen for each in ends)], lambda: wire.now)


def ask(wire: Wire, of: Intent, known: dict[str, str] | None = None, *more: Down) -> dict[str, str]:
    return asker(wire, of, *more).ask(of.neighbours, known or {})


def test_each_neighbour_is_asked_from_this_hosts_address_on_its_link() -> None:
    wire = Wire({ONE: M1, TWO: M2, NEAR: M3})
    assert ask(wire, intent(ONE, TWO, NEAR)) == {ONE: M1, TWO: M2, NEAR: M3}
    sources = [(str(IPv4Address(frame[28:32])), frame[22:28].hex(":")) for frame in wire.sent]
    assert sources == [("192.0.2.1", MAC), ("192.0.2.3", MAC), ("172.31.0.1", MAC)]
    assert {frame[0:6].hex(":") for frame in wire.sent} == {BROADCAST}


def test_the_first_question_goes_to_the_known_mac_alone() -> None:
    wire = Wire({NEAR: M1})
    assert ask(wire, intent(NEAR), {NEAR: M1}) == {NEAR: M1}
    assert [frame[0:6].hex(":") for frame in wire.sent] == [M1]


def test_a_neighbour_that_has_another_mac_now_is_found_by_the_second_question() -> None:
    assert ask(Wire({NEAR: M2}), intent(NEAR), {NEAR: M1}) == {NEAR: M2}


@pytest.mark.parametrize(("lost", "found"), [(1, {NEAR: M1}), (2, {NEAR: M1}), (3, {})])
def test_two_questions_may_be_lost(lost: int, found: dict[str, str]) -> None:
    wire = Wire({NEAR: M1}, lost=lost)
    assert ask(wire, intent(NEAR)) == found
    assert len(wire.sent) == min(lost + 1, 3)


def test_one_that_is_silent_does_not_hide_the_others() -> None:
    assert ask(Wire({TWO: M2}), intent(ONE, TWO)) == {TWO: M2}


def test_what_is_no_answer_of_a_neighbour_to_this_host_is_not_taken() -> None:
    this = Host("172.31.0.1", MAC)
    wire = Wire({NEAR: M1}, noise=[
        b"", bytes(60), question(Host(NEAR, M2), this, bytes(18)), answer(Host(NEAR, M2), Host("172.31.0.9", M3)),
        answer(Host("172.31.0.8", M2), this), answer(Host(NEAR, MAC), this),
    ])  # fmt: skip
    assert ask(wire, intent(NEAR)) == {NEAR: M1}
    assert answerer(answer(Host(NEAR, M1), this)[:41], [this.address]) is None


def test_one_of_two_links_may_be_down_and_an_ear_may_be_missing() -> None:
    wire = Wire({NEAR: M1})
    assert ask(wire, intent(NEAR), {}, Down()) == {NEAR: M1}
    assert asker(wire, intent(NEAR), opened=(absent,)).ask(intent(NEAR).neighbours, {}) == {NEAR: M1}


def test_an_error_is_raised_if_nothing_can_be_asked_or_heard() -> None:
    vtep, near, wire, down = intent().vtep, intent(NEAR).neighbours, Wire(), Down()
    with pytest.raises(UplinkError, match="network is down"):
        Asker(vtep, [down.send], [wire.listen], lambda: wire.now).ask(near, {})
    with pytest.raises(UplinkError, match="network is down"):
        Asker(vtep, [wire.send], [down.listen], lambda: wire.now).ask(near, {})
    with pytest.raises(UplinkError, match="no such device"):
        Asker(vtep, [wire.send], [absent], lambda: wire.now).ask(near, {})
    with pytest.raises(UplinkError, match="no device is known") as caught:
        Asker(vtep, [wire.send], [], lambda: wire.now).ask(near, {})
    assert caught.value.hint


def test_many_silent_neighbours_are_not_asked_a_third_time() -> None:
    wire, of = Wire(), intent(*(f"172.31.0.{n}" for n in range(10, 50)))
    assert ask(wire, of) == {}
    assert len(wire.sent) == 80
    assert wire.now < 10


# ------------------------------------------------------------------------------------------------- the watchdog's look


class Underlay:
    """An underlay with a real asker on a wire. ``given``: what each running instance was given last."""

    def __init__(self, of: Intent, wire: Wire, given: dict[Side, TunnelConfig]) -> None:
        self.intent, self.wire, self.given, self.read = of, wire, given, 0
        self.asked: list[list[str]] = []
        self.programmed: list[tuple[Side, dict[str, str]]] = []

    @property
    def asks(self) -> bool:
        return any(each.mac is None for each in self.intent.neighbours)

    def asker(self) -> Underlay:
        return self

    def ask(self, neighbours: list[Neighbour], known: dict[str, str]) -> dict[str, str]:
        self.asked.append([each.address for each in neighbours])
        return asker(self.wire, self.intent).ask(neighbours, known)

    def notes(self) -> dict[Side, TunnelConfig]:
        self.read += 1
        return dict(self.given)

    def program(self, side: Side, answers: dict[str, str]) -> None:
        self.programmed.append((side, dict(answers)))
        before, vtep = self.given[side], self.intent.vtep
        gateway = next((each for each in (ONE, TWO) if each in answers), before.routes.get(NETWORK, ONE))
        self.given[side] = TunnelConfig(vtep.interface, {NETWORK: gateway}, {**before.neighbours, **answers},
                                        vtep.link_addresses)  # fmt: skip


class Instance:
    def __init__(self, pid: int | None) -> None:
        self.number = pid

    def pid(self) -> int | None:
        return self.number


class Tunnels:
    def __init__(self, side: Side, into: list[tuple[Side, str, str]]) -> None:
        self.side, self.into = side, into

    def set_neighbour(self, address: str, mac: str) -> None:
        if self.into is None:
            raise SwitchError("no answer")
        self.into.append((self.side, address, mac))


class Bed:
    """A host as ``NextHopWatch`` sees it. Instance b does not run."""

    def __init__(self, config: Config, of: Intent, wire: Wire) -> None:
        config.run_dir.mkdir(exist_ok=True)
        self.config, self.system, self.intent = config, World([]), of
        vtep = of.vtep
        first = TunnelConfig(vtep.interface, {NETWORK: ONE}, {ONE: M1, TWO: M2}, vtep.link_addresses)
        self.underlay = Underlay(of, wire, {Side.A: first})
        self.instances = {Side.A: Instance(1), Side.B: Instance(None)}
        self.set: list[tuple[Side, str, str]] = []
        self.watch = NextHopWatch(StatusFile(config, self.system))

    def tunnels(self, side: Side) -> Tunnels:
        return Tunnels(side, self.set)

    def look(self, after: float = 10.0) -> None:
        self.system.now += after
        self.watch.look(self)  # type: ignore[arg-type]

    def events(self) -> list[Any]:
        return [each.get("changes") or each["text"] for each in last_events(self.config, 100)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "x"}
    return Config.model_validate({
        "overlay": str(tmp_path / "overlay.toml"), "run_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"), "instances": {"a": side, "b": side},
    })  # fmt: skip


@pytest.fixture
def bed(config: Config) -> Bed:
    return Bed(config, intent(ONE, TWO), Wire({ONE: M1, TWO: M2}))


def test_nothing_is_programmed_while_nothing_changes(bed: Bed) -> None:
    for _ in range(3):
        bed.look()
    assert bed.underlay.asked == [[ONE, TWO]] * 3
    assert bed.underlay.read == 1, "the instances' databases are not read in every look"
    assert bed.underlay.programmed == []
    assert bed.events() == []


def test_the_looks_are_seconds_apart(bed: Bed) -> None:
    bed.look()
    bed.look(0.5)
    assert len(bed.underlay.asked) == 1


def test_another_mac_is_programmed_and_reported_once(bed: Bed) -> None:
    bed.look()
    bed.underlay.wire.hosts[ONE] = M3
    bed.look()
    bed.look()
    assert bed.underlay.programmed == [(Side.A, {ONE: M3, TWO: M2})]
    assert bed.events() == [[f"next hop {ONE} is at {M3} now, before at {M1}"]]


def test_a_route_leaves_a_silent_gateway_and_returns_to_it(bed: Bed) -> None:
    bed.look()
    del bed.underlay.wire.hosts[ONE]
    bed.look()
    assert bed.underlay.given[Side.A].routes == {NETWORK: TWO}
    bed.underlay.wire.hosts[ONE] = M1
    bed.look()
    assert bed.underlay.given[Side.A].routes == {NETWORK: ONE}
    assert bed.events() == [
        [f"{NETWORK} goes through {TWO} now, before through {ONE}"],
        f"{ONE} does not answer: what is for the network {NETWORK} goes through {TWO}",
        [f"{NETWORK} goes through {ONE} now, before through {TWO}"],
    ]


def test_nothing_is_given_up_when_every_gateway_is_silent(bed: Bed) -> None:
    bed.look()
    bed.underlay.wire.hosts.clear()
    bed.look()
    assert bed.underlay.programmed == []
    assert ["last known MAC" in each for each in bed.events()] == [True]


def test_many_neighbours_are_asked_in_several_looks_and_judged_when_all_were(config: Config) -> None:
    addresses = [f"172.31.0.{n}" for n in range(2, 2 + next_hop_watch._AT_ONCE + 3)]
    bed = Bed(config, intent(*addresses), Wire(dict.fromkeys(addresses, M3)))
    bed.look()
    assert bed.underlay.programmed == []
    bed.look()
    assert [len(each) for each in bed.underlay.asked] == [next_hop_watch._AT_ONCE, 3]
    assert bed.underlay.programmed == [(Side.A, dict.fromkeys(addresses, M3))]


def test_an_instance_that_has_another_vtep_is_left_to_those_who_program_it(bed: Bed) -> None:
    bed.underlay.given[Side.A] = TunnelConfig("172.31.0.9/24", {NETWORK: ONE}, {ONE: M3})
    bed.look()
    assert bed.underlay.programmed == []


def test_an_instance_that_was_started_since_is_looked_up(bed: Bed) -> None:
    bed.look()
    bed.instances[Side.B].number = 2
    bed.underlay.given[Side.B] = TunnelConfig("172.31.0.1/24", {}, {}, bed.intent.vtep.link_addresses)
    bed.look()
    assert bed.underlay.programmed == [(Side.B, {ONE: M1, TWO: M2})]


def test_neighbours_are_set_again_before_they_are_forgotten(bed: Bed) -> None:
    bed.look(next_hop_watch._REFRESH_S)
    assert bed.set == [(Side.A, ONE, M1), (Side.A, TWO, M2)]
    bed.look(1)
    assert len(bed.set) == 2
    bed.look(next_hop_watch._REFRESH_S)
    assert len(bed.set) == 4


def test_a_fault_is_reported_once_and_ends_nothing(bed: Bed) -> None:
    bed.look()
    bed.underlay.wire.send = Down().send  # type: ignore[method-assign]
    bed.look()
    bed.look()
    assert bed.events() == ["pf1: the network is down"]


def test_neighbours_are_set_again_also_while_none_can_be_asked(bed: Bed) -> None:
    bed.look()
    bed.set.clear()
    bed.underlay.wire.send = Down().send  # type: ignore[method-assign]
    bed.look(next_hop_watch._REFRESH_S)
    assert bed.set == [(Side.A, ONE, M1), (Side.A, TWO, M2)]
    assert bed.events() == ["pf1: the network is down"]


def test_the_active_instances_next_hops_count() -> None:
    active = TunnelConfig("x", {NETWORK: TWO}, {ONE: M1})
    other = TunnelConfig("x", {NETWORK: ONE}, {ONE: M3, TWO: M2})
    assert in_use({Side.B: active, Side.A: other}) == NextHops({NETWORK: TWO}, {ONE: M1, TWO: M2})

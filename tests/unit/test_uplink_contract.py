"""What every driver of the uplink does, whichever NIC it is for. Each driver runs over a fake of what it talks to.

A driver is added by one row in DRIVERS. A clause that cannot hold for a driver is named in the row, with the reason.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.tables import Voice
from ovs_hotswap.uplink import match
from ovs_hotswap.uplink.base import ShowsRules, Uplink, rules_of
from ovs_hotswap.uplink.ethtool import IP_USER_FLOW, Ethtool, FlowRule
from ovs_hotswap.uplink.exclusive import ExclusiveUplink
from ovs_hotswap.uplink.frames import ETH_P_IP, Host, PacketSockets
from ovs_hotswap.uplink.i40e import I40eUplink
from ovs_hotswap.uplink.i40e_rules import CLOUD
from ovs_hotswap.uplink.nic_links import NicLinks
from ovs_hotswap.uplink.pair import Nic, PairUplink
from ovs_hotswap.uplink.rules import Kernel, Rule
from ovs_hotswap.uplink.tc import ANY, TcUplink, tunnel_keys
from tests.support.announce_bed import MACS, Fabric, Instance
from tests.support.fake_i40e import FakeCards, FakeI40e, Look, Match, plan
from tests.support.flower_kernel import FlowerBed
from tests.support.uplink_bed import Bed, Calls, Driver, Failing
from tests.unit.test_uplink import MAC, PF, REP_A, REP_B, VTEP, FakeTrafficControl
from tests.unit.test_uplink_exclusive import FakePorts

MATCH = match.Match(VTEP)


@dataclass
class TcBed:
    """``tc`` over the fake of the kernel's filters, with a foreign filter on the device."""

    kernel: FakeTrafficControl = field(default_factory=FakeTrafficControl)
    calls: Calls = field(default_factory=lambda: Calls(lambda: UplinkError("traffic control: no buffer space")))

    def __post_init__(self) -> None:
        self.kernel.installed[PF.index] = [Rule(9999, ETH_P_IP, 0x80300001, ANY, 99)]

    def uplink(self) -> Uplink:
        return TcUplink(
            device="pf0", representors={Side.A: "rep-a", Side.B: "rep-b"}, match=MATCH, mac=MAC, mtu=1500, control=self,
            sockets=PacketSockets(None),
        )  # fmt: skip

    @contextlib.contextmanager
    def open(self) -> Iterator[Kernel]:
        yield Failing(self.kernel, self.calls)

    def state(self) -> object:
        return {index: list(rules) for index, rules in self.kernel.installed.items() if rules}

    def leads_to(self) -> Side | None:
        targets = {rule.target for rule in self.kernel.installed[PF.index] if rule.keys == tunnel_keys(MATCH)}
        return next((side for side, link in ((Side.A, REP_A), (Side.B, REP_B)) if targets == {link.index}), None)

    def break_steering(self) -> None:
        self.kernel.installed[PF.index] = [r for r in self.kernel.installed[PF.index] if r.keys != tunnel_keys(MATCH)]


@dataclass
class I40eBed:
    """``i40e`` over a fake NIC with foreign rules beside ours. The seam is what the kernel is asked: every ioctl, and
    every look through rtnetlink."""

    match: Match = "udp-port"
    nic: FakeI40e = field(default_factory=FakeI40e)
    calls: Calls = field(default_factory=lambda: Calls(lambda: OSError(errno.EIO, "Input/output error")))

    def __post_init__(self) -> None:
        tool = Ethtool(self.nic, "pf0")
        tool.insert(FlowRule(7, IP_USER_FLOW, None, 2, address="172.31.0.1"))
        tool.insert(FlowRule(9, IP_USER_FLOW, 1, 0, address="10.9.9.9", user=CLOUD))

    def uplink(self) -> Uplink:
        cards = FakeCards(self.nic, Failing(self.nic, self.calls), Failing(Look(self.nic), self.calls))
        return I40eUplink(
            device="pf0", plan=plan(self.match), vtep=Host(VTEP, MAC), mtu=1500, cards=cards,
            sockets=PacketSockets(None), sleep=lambda seconds: None,
        )  # fmt: skip

    def state(self) -> object:
        return self.nic.cloud, self.nic.director, self.nic.firmware

    def leads_to(self) -> Side | None:
        return {0: Side.A, 1: Side.B}.get(-1 if (vf := self.nic.vf_of(VTEP)) is None else vf)

    def break_steering(self) -> None:
        self.nic.reset_vf(0)
        self.nic.reset_vf(1)


def _without_package() -> Bed:
    return I40eBed("address", FakeI40e(l4mode=False, package=False))


@dataclass
class ExclusiveBed:
    """``exclusive`` over two instances and one NIC."""

    ports: FakePorts = field(default_factory=FakePorts)
    calls: Calls = field(default_factory=lambda: Calls(lambda: SwitchError("ovs-vswitchd.ctl: no answer")))

    def uplink(self) -> Uplink:
        return ExclusiveUplink(Failing(self.ports, self.calls), Host(VTEP, MAC), sleep=self.ports.sleep)

    def state(self) -> object:
        return set(self.ports.has)

    def leads_to(self) -> Side | None:
        return next(iter(self.ports.has), None)

    def break_steering(self) -> None:
        self.ports.has.clear()


@dataclass
class PairBed:
    """Two NICs with ``tc``, whose calls fail as those of one."""

    nics: list[TcBed] = field(default_factory=lambda: [TcBed(), TcBed()])
    calls: Calls = field(default_factory=lambda: Calls(lambda: UplinkError("traffic control: no buffer space")))

    def __post_init__(self) -> None:
        for nic in self.nics:
            nic.calls = self.calls

    def uplink(self) -> Uplink:
        links = NicLinks(self.nics[0].kernel, ("pf0", "pf0"))
        nics = [Nic(name, nic.uplink()) for name, nic in zip(("pf0", "pf1"), self.nics, strict=True)]
        return PairUplink(nics, links, lambda side, nic: cast(Any, None))

    def state(self) -> object:
        return [nic.state() for nic in self.nics]

    def leads_to(self) -> Side | None:
        """Where the packets of both NICs go."""
        sides = {nic.leads_to() for nic in self.nics}
        return sides.pop() if len(sides) == 1 else None

    def break_steering(self) -> None:
        self.nics[1].break_steering()


@dataclass
class AnnounceBed:
    """``announce`` over a fabric with a host that sends to the MAC that it learnt last."""

    fabric: Fabric = field(default_factory=Fabric)
    calls: Calls = field(default_factory=lambda: Calls(lambda: SwitchError("ovs-ofctl: no answer")))

    def uplink(self) -> Uplink:
        self.fabric.wrap = self._failing
        record: Any = Failing(self.fabric, self.calls)
        return self.fabric.uplink(record=record)

    def _failing(self, instance: Instance) -> Any:
        return Failing(instance, self.calls)

    def state(self) -> object:
        return {side: each.voice for side, each in self.fabric.instances.items()}, self.fabric.record

    def leads_to(self) -> Side | None:
        """A host asks again, sooner or later, when no instance answers for the MAC that it knows."""
        speaking = [side for side, each in self.fabric.instances.items() if each.voice is Voice.SPEAKS]
        (peer,) = self.fabric.peers
        return next((side for side in speaking if MACS[side] == peer.knows), speaking[0] if speaking else None)

    def break_steering(self) -> None:
        for each in self.fabric.instances.values():
            each.voice = Voice.SILENT


DRIVERS = [
    Driver("tc", TcBed),
    Driver("switchdev", FlowerBed),
    Driver("exclusive", ExclusiveBed),
    Driver("i40e, UDP port", I40eBed),
    Driver("i40e, outer address", lambda: I40eBed("address")),
    Driver("i40e, address", _without_package),
    Driver(
        "two NICs",
        PairBed,
        {
            "lasting failure": "the NICs may lead to different instances, both of which deliver (test_uplink_pair.py)",
        },
    ),
    Driver("announce", AnnounceBed),
]


Make = Callable[[], Bed]


def holds(clause: str) -> pytest.MarkDecorator:
    """Run the test for each driver for which the clause holds."""
    chosen = [each for each in DRIVERS if clause not in each.skips]
    return pytest.mark.parametrize("make", [each.bed for each in chosen], ids=[each.name for each in chosen])


def bed_on(make: Make, side: Side | None) -> Bed:
    """A bed whose traffic goes to ``side``."""
    bed = make()
    if side is not None:
        bed.uplink().steer(side)
        assert bed.leads_to() is side
    bed.calls.expect(None)
    return bed


def calls_of(make: Make, side: Side | None, to: Side | None) -> int:
    """The number of calls that the driver makes to steer from ``side`` to ``to``; ``None`` is no steering."""
    bed = bed_on(make, side)
    if to is None:
        bed.uplink().clear()
    else:
        bed.uplink().steer(to)
    assert bed.calls.made > 0
    return bed.calls.made


@holds("steer")
def test_what_is_steered_is_read_back_by_any_process(make: Make) -> None:
    bed = bed_on(make, None)
    assert bed.uplink().owner() is None
    assert bed.leads_to() is None
    for side in (Side.A, Side.B, Side.A):
        bed.uplink().steer(side)
        assert bed.leads_to() is side
        assert bed.uplink().owner() is side
        assert bed.uplink().steered(side.other) is None, "only the side with the traffic has counters"


@holds("rules")
def test_the_rules_that_are_shown_are_those_that_are_there(make: Make) -> None:
    bed = bed_on(make, None)
    if not isinstance(bed.uplink(), ShowsRules):
        assert rules_of(bed.uplink()) == []
        return
    shown = [rules_of(bed.uplink())]
    for side in Side:
        bed.uplink().steer(side)
        shown.append(rules_of(bed.uplink()))
    nics = len(bed.nics) if isinstance(bed, PairBed) else 1
    assert list(map(len, shown)) == [0, nics, nics]
    assert shown[1] != shown[2]


@holds("again")
@pytest.mark.parametrize("side", Side)
def test_steering_again_changes_nothing(make: Make, side: Side) -> None:
    bed = bed_on(make, side)
    before = deepcopy(bed.state())
    bed.uplink().steer(side)
    assert bed.state() == before


@holds("clear")
@pytest.mark.parametrize("side", [*Side, None])
def test_clear_takes_back_what_is_ours_and_nothing_else(make: Make, side: Side | None) -> None:
    bed = bed_on(make, None)
    before = deepcopy(bed.state())
    if side is not None:
        bed.uplink().steer(side)
    for _ in range(2):
        bed.uplink().clear()
        assert bed.state() == before
        assert bed.uplink().owner() is None


@holds("check")
@pytest.mark.parametrize("side", [*Side, None])
def test_a_check_changes_nothing_and_finds_no_error_where_there_is_none(make: Make, side: Side | None) -> None:
    bed = bed_on(make, side)
    before = deepcopy(bed.state())
    found = bed.uplink().check()
    assert found
    assert [each for each in found if each.severity is Severity.ERROR] == []
    assert bed.state() == before


@holds("check fails")
def test_a_check_reports_what_it_cannot_read_and_does_not_raise(make: Make) -> None:
    bed = bed_on(make, Side.A)
    bed.calls.expect(0, lasting=True)
    worst = {each.severity for each in bed.uplink().check()}
    assert worst & {Severity.ERROR, Severity.UNKNOWN}


@holds("broken")
def test_steering_that_something_else_took_away_is_noticed_and_made_again(make: Make) -> None:
    bed = bed_on(make, Side.B)
    bed.break_steering()
    assert bed.uplink().owner() is None
    bed.uplink().steer(Side.B)
    assert bed.leads_to() is Side.B
    assert bed.uplink().owner() is Side.B


@holds("failure")
@pytest.mark.parametrize("begin", [Side.A, None])
@pytest.mark.parametrize("after", [False, True], ids=["without effect", "answer lost"])
def test_one_failure_in_a_steer_leaves_the_traffic_with_one_of_the_two(
    make: Make, begin: Side | None, after: bool
) -> None:
    """Whichever call of the seam fails: the traffic stays where it was or has gone to the new side, it is never lost on
    the way, and the next steer succeeds."""
    failed = 0
    for number in range(calls_of(make, begin, Side.B)):
        bed = bed_on(make, begin)
        bed.calls.expect(number, after=after)
        try:
            bed.uplink().steer(Side.B)
        except UplinkError:
            failed += 1
        else:
            assert bed.leads_to() is Side.B, f"call {number}"
        bed.calls.expect(None)
        assert bed.leads_to() in (begin, Side.B), f"call {number}"
        assert bed.uplink().owner() is bed.leads_to(), f"call {number}"
        bed.uplink().steer(Side.B)
        assert bed.leads_to() is Side.B
    assert failed


@holds("lasting failure")
def test_a_failure_that_lasts_is_said(make: Make) -> None:
    """From each call on everything fails: the steer raises, and where the traffic was lost by that, it says so."""
    for number in range(calls_of(make, Side.A, Side.B)):
        bed = bed_on(make, Side.A)
        bed.calls.expect(number, lasting=True)
        with pytest.raises(UplinkError) as caught:
            bed.uplink().steer(Side.B)
        if bed.leads_to() is None:
            assert "neither instance" in caught.value.message, f"call {number}"
        bed.calls.expect(None)
        bed.uplink().steer(Side.B)
        assert bed.uplink().owner() is bed.leads_to() is Side.B


@holds("clear fails")
def test_a_clear_that_failed_is_finished_by_the_next(make: Make) -> None:
    clean = deepcopy(bed_on(make, None).state())
    for number in range(calls_of(make, Side.A, None)):
        bed = bed_on(make, Side.A)
        bed.calls.expect(number)
        with contextlib.suppress(UplinkError):
            bed.uplink().clear()
        bed.calls.expect(None)
        assert bed.uplink().owner() is bed.leads_to(), f"call {number}"
        bed.uplink().clear()
        assert bed.state() == clean


@holds("owner fails")
def test_an_owner_that_cannot_be_read_is_not_guessed(make: Make) -> None:
    bed = bed_on(make, Side.A)
    bed.calls.expect(0, lasting=True)
    with pytest.raises(UplinkError):
        bed.uplink().owner()

"""Two NICs behind one VTEP: both are steered together, and one without a link keeps nothing from the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.config_uplink import NicConfig
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host import standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.overlay.tables import Kind, cookie, two_ports
from ovs_hotswap.switch.net_bonding import at_start, bonded
from ovs_hotswap.switch.openflow import window_incapable
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import uplink_checks
from ovs_hotswap.upgrade.checks import PortFacts, ports
from ovs_hotswap.upgrade.uplink_checks import Passed
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.nic_links import NicLinks
from ovs_hotswap.uplink.pair import Nic, PairUplink
from ovs_hotswap.uplink.proof import End
from ovs_hotswap.watchdog.nic_watch import NicWatch
from ovs_hotswap.watchdog.status_file import StatusFile, events_path
from tests.unit.test_uplink import PF, FakeTrafficControl
from tests.unit.watch_bed import Bed as WatchBed
from tests.unit.watch_bed import config as config

END = cast(Speaker, None)
BOTH, NEITHER = Proof(True, True), Proof(False, False)


@dataclass
class OneNic:
    """A driver whose answers are set. ``refuses``: the sides to which it is not steered."""

    name: str
    side: Side | None = None
    refuses: set[Side] = field(default_factory=set)
    unreadable: bool = False
    proven: Proof = BOTH
    found: list[Finding] = field(default_factory=lambda: [Finding("uplink", Severity.OK, "good")])
    order: list[str] = field(default_factory=list)

    def owner(self) -> Side | None:
        if self.unreadable:
            raise UplinkError("cannot be read")
        return self.side

    def steer(self, side: Side) -> None:
        self.order.append(f"steer {side}")
        if side in self.refuses:
            raise UplinkError("refused", hint="why")
        self.side = side

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        self.order.append(f"prove {self.name} at {end}")
        return self.proven

    def steered(self, side: Side) -> Steered | None:
        return Steered(3, 4) if self.owner() is side else None

    def clear(self) -> None:
        if self.unreadable:
            raise UplinkError("cannot be read")
        self.side = None

    def check(self) -> list[Finding]:
        return self.found

    def rules(self) -> list[str]:
        if self.unreadable:
            raise UplinkError("cannot be read")
        return [f"{self.name} to instance {self.side}"]


@dataclass
class SetLinks:
    up: tuple[int, ...] = (0, 1)

    def live(self) -> tuple[int, ...]:
        return self.up


@dataclass
class Bed:
    first: OneNic = field(default_factory=lambda: OneNic("pf0"))
    second: OneNic = field(default_factory=lambda: OneNic("pf1"))
    links: SetLinks = field(default_factory=SetLinks)

    def __post_init__(self) -> None:
        self.second.order = self.first.order

    def uplink(self, *, quick: bool = False) -> PairUplink:
        nics = [Nic("pf0", self.first), Nic("pf1", self.second)]
        return PairUplink(nics, self.links, lambda side, nic: cast(Speaker, f"{side}{nic}"), quick=quick)


@pytest.fixture
def bed() -> Bed:
    return Bed()


def test_both_nics_are_steered_and_agree(bed: Bed) -> None:
    bed.uplink().steer(Side.B)
    assert (bed.first.side, bed.second.side) == (Side.B, Side.B)
    assert bed.uplink().owner() is Side.B
    assert bed.uplink().steered(Side.B) == Steered(6, 8)
    assert bed.uplink().steered(Side.A) is None
    bed.uplink().clear()
    assert bed.uplink().owner() is None


@pytest.mark.parametrize("before", [Side.A, None])
def test_a_nic_that_refuses_has_the_other_put_back(bed: Bed, before: Side | None) -> None:
    bed.first.side = bed.second.side = before
    bed.second.refuses = {Side.B}
    whose = "instance a" if before else "neither instance"
    with pytest.raises(UplinkError, match=f"pf1: refused; pf0 was put back to {whose}") as caught:
        bed.uplink().steer(Side.B)
    assert caught.value.hint == "why"
    assert (bed.first.side, bed.second.side) == (before, before)


def test_a_nic_that_cannot_be_put_back_is_said(bed: Bed) -> None:
    bed.first.side = bed.second.side = Side.A
    bed.first.refuses, bed.second.refuses = {Side.A}, {Side.B}
    assert bed.uplink().owner() is Side.A
    with pytest.raises(UplinkError, match="pf1: refused; and pf0 could not be put back to instance a: refused"):
        bed.uplink().steer(Side.B)
    assert bed.uplink().owner() is None, "they do not agree"
    (found,) = [each for each in bed.uplink().check() if each.severity is Severity.ERROR]
    assert found.text == "the NICs do not agree: pf0 is steered to instance b, pf1 is steered to instance a"


def test_a_nic_whose_owner_was_not_known_loses_no_rule(bed: Bed) -> None:
    bed.first.side, bed.first.unreadable, bed.second.refuses = Side.A, True, {Side.B}
    with pytest.raises(UplinkError, match=r"pf1: refused; pf0 is steered to instance b now, and .* is not known"):
        bed.uplink().steer(Side.B)
    assert bed.first.side is Side.B


def test_a_repeated_steer_that_is_refused_puts_nothing_back(bed: Bed) -> None:
    bed.first.side, bed.second.refuses = Side.B, {Side.B}
    with pytest.raises(UplinkError, match=r"^pf1: refused$"):
        bed.uplink().steer(Side.B)
    assert bed.first.side is Side.B


def test_a_failover_steers_every_nic_and_puts_none_back(bed: Bed) -> None:
    bed.first.side = bed.second.side = Side.A
    bed.first.refuses = {Side.B}
    with pytest.raises(UplinkError, match=r"^pf0: refused$"):
        bed.uplink(quick=True).steer(Side.B)
    assert (bed.first.side, bed.second.side) == (Side.A, Side.B)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_nic_without_a_link_keeps_nothing_from_the_other(bed: Bed, dead: int) -> None:
    bed.links.up = (1 - dead,)
    nic = (bed.first, bed.second)[dead]
    nic.refuses, nic.unreadable, nic.proven = {Side.B}, True, NEITHER
    nic.found = [Finding("uplink", Severity.ERROR, "its device is missing")]
    bed.uplink().steer(Side.B)
    assert bed.uplink().owner() is Side.B
    assert bed.uplink().prove(Side.B, END).nics == ((f"pf{1 - dead}", BOTH),)
    assert bed.uplink().steered(Side.B) == Steered(3, 4)
    warnings = [each.text for each in bed.uplink().check() if each.severity is Severity.WARNING]
    assert warnings == [
        f"pf{dead} has no link: all of the overlay's packets use pf{1 - dead}", f"pf{dead}: its device is missing",
    ]  # fmt: skip
    assert not [each for each in bed.uplink().check() if each.severity is Severity.ERROR]


@pytest.mark.parametrize("dead", [0, 1])
def test_rules_are_shown_and_forgotten_on_the_nics_with_a_link_at_least(bed: Bed, dead: int) -> None:
    nics = (bed.first, bed.second)
    bed.first.side = bed.second.side = Side.A
    nics[dead].unreadable = True
    with pytest.raises(UplinkError, match="cannot be read"):
        bed.uplink().rules()
    with pytest.raises(UplinkError, match="cannot be read"):
        bed.uplink().forget(OneNic)
    bed.first.side = bed.second.side = Side.A
    bed.links.up = (1 - dead,)
    assert bed.uplink().rules() == [f"{nics[1 - dead].name} to instance a"]
    bed.uplink().forget(PairUplink)
    assert nics[1 - dead].side is Side.A, "another kind"
    bed.uplink().forget(OneNic)
    assert nics[1 - dead].side is None


def test_an_owner_that_cannot_be_read_on_a_nic_with_a_link_is_not_guessed(bed: Bed) -> None:
    bed.first.side, bed.second.unreadable = Side.A, True
    with pytest.raises(UplinkError, match="cannot be read"):
        bed.uplink().owner()
    with pytest.raises(UplinkError, match="pf1: cannot be read"):
        bed.uplink().clear()
    assert bed.first.side is None, "the other one is cleared nevertheless"


def test_each_nic_is_proven_at_its_own_end_and_the_first_one_last(bed: Bed) -> None:
    bed.second.proven = Proof(None, False)
    proof = bed.uplink().prove(Side.A, cast(Speaker, "a0"))
    assert bed.first.order == ["prove pf1 at a1", "prove pf0 at a0"]
    assert proof == Proof(None, False, (("pf0", BOTH), ("pf1", Proof(None, False))))


# ------------------------------------------------------------------------------------------ how a proof is judged


def pair(first: Proof, second: Proof) -> Proof:
    return Proof(first.out and second.out, first.into and second.into, (("pf0", first), ("pf1", second)))


def severities(found: Sequence[Finding]) -> list[Severity]:
    return [each.severity for each in found]


def test_a_nic_that_the_old_instance_could_use_is_named_as_lost() -> None:
    found = uplink_checks.proof(Side.B, pair(BOTH, Proof(False, True)), pair(BOTH, BOTH))
    assert severities(found) == [Severity.OK, Severity.ERROR]
    assert found[1].text.startswith("instance b's uplink on pf1 passes nothing in one direction: it is mute")


def test_a_nic_that_the_old_instance_could_not_use_either_is_a_warning() -> None:
    found = uplink_checks.proof(Side.B, pair(BOTH, NEITHER), pair(NEITHER, NEITHER))
    assert severities(found) == [Severity.OK, Severity.WARNING]
    (lone,) = uplink_checks.proof(Side.B, Proof(True, True, (("pf0", BOTH),)), pair(BOTH, BOTH))
    assert lone.severity is Severity.OK, "a NIC without a link is not judged"


def test_a_proof_is_recorded_with_its_nics_if_there_are_two() -> None:
    for proof in (BOTH, pair(BOTH, Proof(False, None))):
        assert Proof.restored(json.loads(json.dumps(proof.fact()))) == proof
    assert BOTH.fact() == {"out": True, "into": True}


def test_one_nic_that_is_proven_proves_the_uplink_where_no_nic_is_asked_for() -> None:
    """With the bond dpdk, the second NIC takes nothing in while the first has a link."""
    proof = Proof(True, False, (("pf0", Proof(True, True)), ("pf1", Proof(True, False))))
    assert proof.of_any() == Proof(True, True)
    assert Proof(False, None, (("pf0", Proof(False)), ("pf1", Proof(None)))).of_any() == Proof(False, None)
    assert Proof(True, None).of_any() == Proof(True, None)
    carried = Passed(9.0, 5, 5)
    assert uplink_checks.unshown(Side.B, Passed(30.0, 0, 0), carried, proof)
    assert not uplink_checks.unshown(Side.B, Passed(30.0, 0, 0), carried, proof.of_any())


def test_one_of_two_nics_is_not_what_a_failover_depends_on() -> None:
    once = pair(BOTH, BOTH)
    assert severities(uplink_checks.proof(Side.B, pair(BOTH, NEITHER), once, spare=True)) == [
        Severity.OK, Severity.WARNING,
    ]  # fmt: skip
    both = uplink_checks.proof(Side.B, pair(NEITHER, NEITHER), once, spare=True)
    assert severities(both) == [Severity.ERROR, Severity.ERROR]
    (one,) = uplink_checks.proof(Side.B, NEITHER, BOTH, spare=True)
    assert one.severity is Severity.ERROR, "a host with one NIC has no other"


def test_proofs_of_several_times_are_joined_for_each_nic() -> None:
    out, into = pair(Proof(True), Proof(False)), pair(Proof(into=True), Proof(into=True))
    joined = out.joined(into)
    assert joined == Proof(False, True, (("pf0", BOTH), ("pf1", Proof(False, True))))
    assert joined.joined(pair(NEITHER, BOTH)).of("pf1") == BOTH
    assert Proof().of("pf9") == Proof()


def test_one_uplink_of_two_may_be_down() -> None:
    wanted = ["uplink", "uplink2"]
    for first, second, severity in (
        (True, False, Severity.WARNING), (False, True, Severity.WARNING), (False, False, Severity.ERROR),
    ):  # fmt: skip
        facts = [PortFacts("uplink", first, None), PortFacts("uplink2", second, None)]
        assert {each.severity for each in ports(wanted, facts, uplinks=wanted)} == {severity}


# ------------------------------------------------------------------------------------------------------- the links


def test_a_nic_is_live_if_its_device_is_up_and_has_a_link() -> None:
    kernel = FakeTrafficControl()
    kernel.links |= {"pf1": replace(PF, index=9), "down": replace(PF, up=False), "dark": replace(PF, carrier=False)}

    def live(*devices: str | None) -> tuple[int, ...]:
        return NicLinks(kernel, devices).live()

    assert live("pf0", "pf1") == (0, 1)
    assert live("dark", "pf1") == live("down", "pf1") == live("missing", "pf1") == (1,)
    assert live("dark", None) == (1,), "a NIC without a kernel device counts as up"
    assert live("dark", "down") == (0, 1), "there is nothing better to use"


@pytest.mark.parametrize(("bond", "algorithm"), [("active-backup", "active_backup"), ("balance-slb", "hrw")])
def test_the_flow_to_two_nics_may_be_on_two_instances(bond: str, algorithm: str) -> None:
    assert two_ports(bond, (0, 1)).leave == f"bundle(eth_src,0,{algorithm},ofport,members:1,4)"
    assert two_ports(bond, (1,)).leave.endswith("members:4)")
    ours, foreign = cookie(Kind.TO_UPLINK), cookie(Kind.DELIVER)
    line = f"cookie={{:#x}}, priority=100,in_port=LOCAL actions={two_ports(bond, (0, 1)).leave}"
    assert window_incapable([line.format(ours), f"table=0,{line.format(ours).replace(', ', ',')}"]) == []
    assert len(window_incapable([line.format(foreign), line.format(ours).replace("LOCAL", "10")])) == 2


# ------------------------------------------------------------------------------------------------- a bond of DPDK


@pytest.mark.parametrize(
    ("version", "key"), [("17.11", "slave"), ("22.11.11", "slave"), ("23.07", "slave"), ("23.11.0", "member"),
                         ("24.11", "member"), ("", "member")],
)  # fmt: skip
def test_the_members_of_a_bond_are_named_as_the_release_does(version: str, key: str) -> None:
    found = bonded(["0000:03:02.0,mprq_en=1", "eth_af_packet1,iface=vf1-a"], version)
    assert found == f"net_bonding0,mode=1,{key}=0000:03:02.0,{key}=eth_af_packet1,primary=0000:03:02.0"


def test_virtual_devices_of_a_bond_are_made_at_the_start() -> None:
    assert at_start(["0000:03:02.0", "eth_af_packet1,iface=vf1-a"]) == ["--vdev=eth_af_packet1,iface=vf1-a"]


# ---------------------------------------------------------------------------------------------- following the links


@dataclass
class Bridge:
    """The flows of one instance. ``written``: the actions of its flow to the uplink, one after the other.
    ``installed``: the first ones, empty if there is no flow. ``gone``: nothing answers."""

    written: list[str] = field(default_factory=list)
    installed: str = "bundle(eth_src,0,active_backup,ofport,members:1)"
    gone: bool = False

    def actions(self, number: int) -> list[str]:
        assert number == cookie(Kind.TO_UPLINK)
        if self.gone:
            raise SwitchError("no answer")
        return [self.written[-1] if self.written else self.installed] if self.installed else []

    def set_actions(self, number: int, actions: str) -> None:
        assert number == cookie(Kind.TO_UPLINK)
        self.written.append(actions)


class Followed:
    """A host with two NICs, whose links and processes are set. ``now``: seconds."""

    def __init__(self, tmp_path: Path, *, second: bool = True, bond: str = "active-backup") -> None:
        side = {"pmd_cores": [0], "uplink_devargs": "x"}
        nic = {"device": "pf0", "representor_a": "a", "representor_b": "b"}
        other = {"device": "pf1", "representor_a": "a1", "representor_b": "b1"}
        uplink = {"driver": "tc", "bond": bond, **nic, **({"second": other} if second else {})}
        self.config = Config.model_validate(
            {"overlay": Path("/o.toml"), "run_dir": tmp_path / "run", "state_dir": tmp_path / "state",
             "instances": {"a": side, "b": side}, "uplink": uplink},
        )  # fmt: skip
        self.now = 0.0
        self.nic_links = SetLinks()
        self.pids: dict[Side, int | None] = {Side.A: 1, Side.B: 2}
        self.bridges = {each: Bridge() for each in Side}
        self.system = SimpleNamespace(monotonic=lambda: self.now)
        self.instances = {each: SimpleNamespace(pid=partial(self.pids.get, each)) for each in Side}

    def openflow(self, side: Side) -> Bridge:
        return self.bridges[side]

    def watch(self) -> NicWatch:
        board = StatusFile(self.config, System())
        return NicWatch(lambda: cast(Host, self), board)

    def written(self) -> list[int]:
        return [len(self.bridges[side].written) for side in Side]


FIRST, SECOND = (two_ports("active-backup", live).leave for live in ((0, 1), (1,)))


def test_packets_leave_by_the_nics_with_a_link_on_both_instances(tmp_path: Path) -> None:
    host = Followed(tmp_path)
    watch = host.watch()
    assert watch.look()
    assert [host.bridges[side].written for side in Side] == [[FIRST], [FIRST]]
    host.now = 10.0
    watch.look()
    host.nic_links.up = (1,)
    for host.now in (11.0, 12.0, 20.0, 21.0):
        watch.look()
    # For some seconds another process may install tables that it has rendered before.
    assert host.bridges[Side.A].written == [FIRST, SECOND, SECOND]
    events = [json.loads(line) for line in events_path(host.config).read_text().splitlines()]
    assert [(each["event"], each["links"]) for each in events] == [("nics", ["pf1"])]


def test_the_tag_of_the_underlay_stays_and_a_bridge_without_flows_gets_none(tmp_path: Path) -> None:
    host, tag = Followed(tmp_path), "push_vlan:0x8100,set_field:4196->vlan_vid,"
    host.bridges[Side.A].installed, host.bridges[Side.B].installed = tag + SECOND, ""
    host.watch().look()
    assert [host.bridges[side].written for side in Side] == [[tag + FIRST], []]


def test_a_link_that_is_up_again_is_used_a_second_later(tmp_path: Path) -> None:
    host = Followed(tmp_path)
    watch = host.watch()
    for host.now, host.nic_links.up in ((0.0, (0, 1)), (10.0, (1,)), (20.0, (0, 1)), (20.9, (0, 1))):
        watch.look()
    assert host.bridges[Side.A].written[-1] == SECOND
    host.now = 21.1
    watch.look()
    assert host.bridges[Side.A].written[-1] == FIRST
    host.now, host.nic_links.up = 30.0, (0,)
    watch.look()
    host.now, host.nic_links.up = 30.1, (1,)
    watch.look()
    assert host.bridges[Side.A].written[-1] == SECOND, "there is no better one"


def test_an_instance_that_is_started_again_is_written_again(tmp_path: Path) -> None:
    host = Followed(tmp_path)
    watch = host.watch()
    watch.look()
    host.now = 10.0
    host.pids[Side.B] = None
    watch.look()
    host.pids[Side.B] = 3
    watch.look()
    assert host.written() == [1, 2]


def test_an_instance_that_does_not_answer_keeps_nothing_from_the_other(tmp_path: Path) -> None:
    host = Followed(tmp_path)
    host.bridges[Side.A].gone = True
    watch = host.watch()
    for host.now in (0.0, 10.0):
        with pytest.raises(SwitchError):
            watch.look()
    host.bridges[Side.A].gone = False
    watch.look()
    assert [host.bridges[side].written[-1] for side in Side] == [FIRST, FIRST]


def test_two_nics_that_dpdk_bonds_are_left_to_it(tmp_path: Path) -> None:
    host = Followed(tmp_path, bond="dpdk")
    host.bridges[Side.A].installed = "output:1"
    assert not host.watch().look()
    assert host.written() == [0, 0]


def test_one_nic_is_not_followed(tmp_path: Path) -> None:
    host = Followed(tmp_path, second=False)
    assert not host.watch().look()
    assert host.written() == [0, 0]


class Linked:
    """What ``_await_links`` asks of a host: the links of the ports that are up, and which instances run."""

    def __init__(self, tmp_path: Path, up: set[tuple[Side, str]], *, other: bool = True) -> None:
        self.config = Followed(tmp_path).config
        self.up = up
        self.instances = {
            Side.A: SimpleNamespace(pid=lambda: 1 if other else None), Side.B: SimpleNamespace(pid=lambda: 2),
        }  # fmt: skip

    def link_up(self, side: Side, name: str) -> bool:
        return (side, name) in self.up

    def wait(self, true: Callable[[], bool], seconds: float, otherwise: Callable[[], str], *, on: list[Side]) -> None:
        if not true():
            raise SwitchError(otherwise())


A_ONE, A_TWO, B_ONE, B_TWO = ((side, name) for side in Side for name in ("uplink", "uplink2"))


@pytest.mark.parametrize(
    ("up", "other", "good"),
    [
        ({A_ONE, A_TWO, B_ONE, B_TWO}, True, True),
        ({A_ONE, B_ONE}, True, True),  # the second NIC has no link on either instance
        ({A_ONE, A_TWO, B_ONE}, True, False),  # only the new instance's function has none
        ({A_ONE, B_TWO}, True, False),
        ({B_ONE}, False, True),  # there is no instance to compare with
        ({A_ONE}, True, False),
        (set(), False, False),
    ],
)
def test_a_standby_has_the_links_that_the_other_instance_has(
    tmp_path: Path, up: set[tuple[Side, str]], other: bool, good: bool
) -> None:
    host = cast(Host, Linked(tmp_path, up, other=other))
    with contextlib.nullcontext() if good else pytest.raises(SwitchError, match=r"instance b: the uplink.* is down"):
        standby._await_links(host, Side.B)


@pytest.mark.parametrize(
    ("driver", "owner", "back"), [("tc", None, True), ("tc", Side.A, False), ("none", None, False)]
)
def test_two_nics_that_disagree_when_the_new_instance_dies_are_steered_back(
    config: Config, driver: str, owner: Side | None, back: bool
) -> None:
    changes = {"driver": driver, "second": NicConfig()}
    bed = WatchBed(config.model_copy(update={"uplink": config.uplink.model_copy(update=changes)}))
    bed.world.die(Side.B)
    bed.world.uplink_owner = owner
    bed.look({Side.B})
    assert [event["event"] for event in bed.events()] == ["uplink-back"] * back

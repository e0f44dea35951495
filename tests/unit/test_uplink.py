"""The choice of filters by the ``tc`` uplink, over a stand-in for the kernel's traffic control."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.config import Config
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host.uplink_ends import UplinkEnds
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.upgrade.uplink_checks import PROGRAMS
from ovs_hotswap.uplink.base import make_uplink
from ovs_hotswap.uplink.frames import ETH_P_8021Q, ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, PacketSockets
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.none import NoUplink
from ovs_hotswap.uplink.rules import Kernel, Key, Link, Rule
from ovs_hotswap.uplink.tc import ANY, NODE, PRIORITY, TcUplink, ours, tunnel_keys

VTEP = "172.31.0.1"
MAC = "52:54:00:1f:00:01"
PF, REP_A, REP_B = Link(2, True, MAC), Link(3, True, "02:00:00:00:00:03"), Link(4, True, "02:00:00:00:00:04")


@dataclass
class FakeTrafficControl:
    """Behaves as net/sched/cls_u32.c was seen to: ``replace`` of a handle keeps the keys, of a new node needs it free,
    and removing the last filter leaves the priority behind unless all of it is removed."""

    links: dict[str, Link] = field(default_factory=lambda: {"pf0": PF, "rep-a": REP_A, "rep-b": REP_B})
    installed: dict[int, list[Rule]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)  # looks and changes
    loses_writes: bool = False
    bpf: dict[int, tuple[str, ...]] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)
    offloading: set[str] = field(default_factory=set)

    @contextmanager
    def open(self) -> Iterator[Kernel]:
        yield self

    def link(self, name: str) -> Link | None:
        self.acts.append(f"link {name}")
        return self.links.get(name)

    def rules(self, link: Link) -> list[Rule]:
        self.acts.append(f"rules {link.index}")
        return list(self.installed.get(link.index, []))

    def block(self, link: Link) -> int | None:
        return self.blocks.get(link.index)

    def programs(self, link: Link) -> tuple[str, ...]:
        return self.bpf.get(link.index, ())

    def offloads(self, name: str) -> bool:
        return name in self.offloading

    def replace(self, link: Link, rule: Rule) -> None:
        rules = self.installed.setdefault(link.index, [])
        self.changes.append(f"{'replace' if rule.handle else 'add'} {link.index}")
        self.acts.append(self.changes[-1])
        if link.index in self.blocks:  # net/sched/cls_api.c, __tcf_block_find
            raise NetlinkError(errno.EOPNOTSUPP, "Operation not supported")
        if self.loses_writes and link is PF:
            return
        for at, old in enumerate(rules):
            if rule.handle and old.handle == rule.handle:
                rules[at] = replace(rule, keys=old.keys)
                return
            if old.priority == rule.priority and old.handle & 0xFFF == NODE:
                raise UplinkError("No space left on device")
        rules.append(replace(rule, handle=0x80100000 | NODE))

    def delete(self, link: Link, rule: Rule, *, whole_priority: bool) -> None:
        self.changes.append(f"delete {link.index}{' all' if whole_priority else ''}")
        self.installed[link.index] = [
            old
            for old in self.installed[link.index]
            if old.priority != rule.priority or not (whole_priority or old.handle == rule.handle)
        ]


@pytest.fixture
def kernel() -> FakeTrafficControl:
    return FakeTrafficControl()


def uplink(kernel: FakeTrafficControl, vtep: str | Match = VTEP, *, quick: bool = False) -> TcUplink:
    match = Match(vtep) if isinstance(vtep, str) else vtep
    sides = {Side.A: "rep-a", Side.B: "rep-b"}
    return TcUplink(
        device="pf0", representors=sides, match=match, mac=MAC.upper(), mtu=1500, control=kernel,
        sockets=PacketSockets(None), quick=quick,
    )  # fmt: skip


def foreign(priority: int, handle: int = 0x80200002, keys: tuple[Key, ...] = ANY) -> Rule:
    return Rule(priority, ETH_P_IP, handle, keys, 99)


def test_first_steer_makes_three_filters(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    assert [(r.protocol, r.keys, r.target) for r in kernel.rules(PF)] == [
        (ETH_P_IP, tunnel_keys(Match(VTEP)), REP_A.index)
    ]
    for link in (REP_A, REP_B):
        assert [(r.protocol, r.keys, r.target) for r in kernel.rules(link)] == [(ETH_P_ALL, ANY, PF.index)]
    assert uplink(kernel).owner() is Side.A


def test_flip_replaces_one_action_and_nothing_else(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    kernel.changes.clear()
    uplink(kernel).steer(Side.B)
    assert kernel.changes == [f"replace {PF.index}"]
    assert uplink(kernel).owner() is Side.B


def test_what_was_seen_before_makes_the_flip_the_first_act(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    quick = uplink(kernel, quick=True)
    assert quick.owner() is Side.A
    kernel.changes.clear()
    kernel.acts.clear()
    quick.steer(Side.B)
    assert kernel.acts[0] == f"replace {PF.index}"
    assert kernel.changes == [f"replace {PF.index}"]
    assert quick.owner() is Side.B


def test_a_world_that_changed_since_is_looked_at(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    quick = uplink(kernel, quick=True)
    assert quick.owner() is Side.A
    uplink(kernel).clear()
    quick.steer(Side.B)
    assert uplink(kernel).owner() is Side.B


def test_steering_again_changes_nothing(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.B)
    kernel.changes.clear()
    uplink(kernel).steer(Side.B)
    assert kernel.changes == []


def test_a_new_vtep_address_gets_a_new_filter(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    moved = uplink(kernel, "172.31.0.9")
    assert moved.owner() is None
    moved.steer(Side.B)
    assert [rule.keys for rule in kernel.rules(PF)] == [tunnel_keys(Match("172.31.0.9"))]
    assert moved.owner() is Side.B


def test_owner_without_filters(kernel: FakeTrafficControl) -> None:
    assert uplink(kernel).owner() is None


def test_owner_of_a_filter_that_goes_elsewhere(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    kernel.links["rep-a"] = replace(REP_A, index=33)  # made again: the filter points to a device that is gone
    assert uplink(kernel).owner() is None


@pytest.mark.parametrize("name", ["pf0", "rep-a", "rep-b"])
def test_missing_device(kernel: FakeTrafficControl, name: str) -> None:
    del kernel.links[name]
    with pytest.raises(UplinkError, match=name):
        uplink(kernel).steer(Side.A)
    assert kernel.changes == []
    assert [(f.severity, name in f.text) for f in uplink(kernel).check()] == [(Severity.ERROR, True)]


@pytest.mark.parametrize("name", ["pf0", "rep-b"])
def test_device_down(kernel: FakeTrafficControl, name: str) -> None:
    kernel.links[name] = replace(kernel.links[name], up=False)
    with pytest.raises(UplinkError, match=f"{name} is down") as caught:
        uplink(kernel).steer(Side.B)
    assert caught.value.hint == f"ip link set {name} up"
    assert kernel.changes == []


def test_a_write_that_has_no_effect_is_noticed(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    kernel.loses_writes = True
    with pytest.raises(UplinkError, match="instance b, but reads back as instance a's"):
        uplink(kernel).steer(Side.B)


@pytest.mark.parametrize("handle", [0x80200002, 0x80100000 | NODE])
def test_foreign_filter_at_our_priority_stops_us_and_survives(kernel: FakeTrafficControl, handle: int) -> None:
    intruder = foreign(PRIORITY, handle)
    kernel.installed[PF.index] = [intruder]
    with pytest.raises(UplinkError, match="foreign"):
        uplink(kernel).steer(Side.A)
    assert [f.severity for f in uplink(kernel).check()] == [Severity.ERROR]
    uplink(kernel).clear()
    assert kernel.rules(PF) == [intruder]


def test_clear_leaves_foreign_filters(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.A)
    others = [foreign(PRIORITY), foreign(7), foreign(9999)]
    kernel.installed[PF.index] += others
    uplink(kernel).clear()
    uplink(kernel).clear()
    assert kernel.rules(PF) == others
    assert kernel.rules(REP_A) == kernel.rules(REP_B) == []


def test_clear_without_devices(kernel: FakeTrafficControl) -> None:
    kernel.links.clear()
    uplink(kernel).clear()
    assert kernel.changes == []


def test_check_names_owner_earlier_filters_and_wrong_mac(kernel: FakeTrafficControl) -> None:
    uplink(kernel).steer(Side.B)
    assert [(f.severity, "instance b" in f.text) for f in uplink(kernel).check()] == [(Severity.OK, True)]
    kernel.installed[PF.index].append(foreign(PRIORITY - 1))
    kernel.installed[PF.index].append(foreign(PRIORITY + 1))
    assert [f.severity for f in uplink(kernel).check()] == [Severity.WARNING]
    kernel.links["pf0"] = replace(PF, mac="52:54:00:1f:00:99")
    assert {f.severity for f in uplink(kernel).check()} == {Severity.WARNING, Severity.ERROR}


def test_check_names_a_device_that_carries_less_than_the_underlay(kernel: FakeTrafficControl) -> None:
    """A virtual function takes any MTU, and the physical one drops what is longer than its own."""
    kernel.links["pf0"] = replace(PF, mtu=1400)
    (finding,) = uplink(kernel).check()
    assert (finding.check, finding.severity) == ("mtu", Severity.ERROR)
    assert "pf0 has MTU 1400, the underlay 1500" in finding.text


@pytest.mark.parametrize(("link", "name"), [(PF, "pf0"), (REP_B, "rep-b")])
def test_filters_of_a_block_are_named_before_they_are_in_the_way(
    kernel: FakeTrafficControl, link: Link, name: str
) -> None:
    kernel.blocks[link.index] = 7
    fault = f"{name}: its ingress filters are those of block 7, and no filter can be put on it alone"
    assert [(f.severity, f.text) for f in uplink(kernel).check()] == [(Severity.ERROR, fault)]
    with pytest.raises(UplinkError, match=fault) as refused:
        uplink(kernel).steer(Side.A)
    assert refused.value.hint is not None


def test_check_names_programs_in_front_of_our_filters(kernel: FakeTrafficControl) -> None:
    kernel.bpf[PF.index] = ("1 tcx programs on ingress",)
    (finding,) = uplink(kernel).check()
    assert (finding.check, finding.severity) == (PROGRAMS, Severity.WARNING)
    assert "pf0: 1 tcx programs on ingress" in finding.text


SHAPES = (
    Match(VTEP), Match(VTEP, 8472), Match(VTEP, 4789, 100), Match("fd00:1f::1"), Match("fd00:1f::1", 6081, 4094),
)  # fmt: skip


def test_what_packets_look_like_to_the_filters() -> None:
    assert [match.protocol for match in SHAPES] == [ETH_P_IP, ETH_P_IP, ETH_P_8021Q, ETH_P_IPV6, ETH_P_8021Q]
    assert [str(match) for match in SHAPES][1:3] == [
        "UDP port 8472 of 172.31.0.1", "UDP port 4789 of 172.31.0.1 in VLAN 100",
    ]  # fmt: skip


@pytest.mark.parametrize("old", SHAPES, ids=str)
@pytest.mark.parametrize("new", SHAPES, ids=str)
def test_an_underlay_of_another_shape_gets_another_filter(kernel: FakeTrafficControl, old: Match, new: Match) -> None:
    """The old one is known as ours, whatever its shape was."""
    uplink(kernel, old).steer(Side.A)
    changed = uplink(kernel, new)
    assert changed.owner() is (Side.A if new == old else None)
    changed.steer(Side.B)
    (rule,) = kernel.rules(PF)
    assert (rule.protocol, rule.keys, rule.target) == (new.protocol, tunnel_keys(new), REP_B.index)
    assert changed.owner() is Side.B
    uplink(kernel, old).clear()
    assert kernel.rules(PF) == []


def test_filters_of_others_are_not_ours() -> None:
    match = Match(VTEP)
    keys = tunnel_keys(match)
    mine = Rule(PRIORITY, match.protocol, 0x80100000 | NODE, keys, 3)
    for other, expected in (
        (mine, True),
        (replace(mine, protocol=ETH_P_8021Q), True),
        (replace(mine, protocol=ETH_P_IPV6), False),
        (replace(mine, handle=0x80100002), False),
        (replace(mine, keys=ANY), False),
        (replace(mine, keys=keys[:-1]), False),
        (replace(mine, keys=(*keys[:2], Key(0x00060000, 0x00FF0000, 8), *keys[3:])), False),  # TCP
    ):
        assert ours(other, match.protocol, tunnel_keys(match)) is expected
        assert not ours(other, ETH_P_ALL, ANY)
    assert ours(replace(mine, protocol=ETH_P_ALL, keys=ANY), ETH_P_ALL, ANY)


def in_switchdev_mode(link: Link, switch: str = "a4bf01") -> Link:
    return replace(link, switch=switch, parent="pci/0000:3b:00.0")


def test_check_says_for_which_nics_the_driver_is(kernel: FakeTrafficControl) -> None:
    kernel.links["pf0"] = replace(PF, parent="pci/0000:3b:00.0")
    (finding,) = uplink(kernel).check()
    assert finding.severity is Severity.WARNING
    assert "rep-a and rep-b are no representors of this NIC" in finding.text
    kernel.links |= {"pf0": in_switchdev_mode(PF), "rep-a": in_switchdev_mode(REP_A)}
    kernel.links["rep-b"] = in_switchdev_mode(REP_B, "another")
    (finding,) = uplink(kernel).check()
    assert "rep-b are no representors" in finding.text


def test_check_says_that_the_card_could_do_it(kernel: FakeTrafficControl) -> None:
    kernel.links = {name: in_switchdev_mode(link) for name, link in kernel.links.items()}
    uplink(kernel).steer(Side.A)
    assert len(uplink(kernel).check()) == 1
    kernel.offloading = {"pf0"}
    owned, found = uplink(kernel).check()
    assert (owned.severity, found.severity) == (Severity.OK, Severity.OK)
    assert "instance a" in owned.text
    assert found.hint == 'driver = "switchdev" in [uplink]'


def configuration(driver: str) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "eth_af_packet0,iface=vf-a"}
    uplink = {"driver": driver, "device": "pf0", "representor_a": "rep-a", "representor_b": "rep-b"}
    return Config.model_validate({"overlay": Path("/o.toml"), "instances": {"a": side, "b": side}, "uplink": uplink})


INTENT = Intent.model_validate({"vtep": {"address": f"{VTEP}/24", "mac": MAC}})


def no_flows(side: Side) -> OpenFlow:
    raise SwitchError(f"instance {side} does not run")


def no_path(side: Side) -> Path:
    raise SwitchError(f"instance {side} does not run")


def test_driver_is_chosen_by_configuration() -> None:
    assert isinstance(make_uplink(configuration("tc"), INTENT, UplinkEnds(no_flows, no_path)), TcUplink)


def test_no_uplink_has_no_owner() -> None:
    none = make_uplink(configuration("none"), INTENT, UplinkEnds(no_flows, no_path))
    assert isinstance(none, NoUplink)
    none.steer(Side.A)
    none.clear()
    assert none.owner() is None
    assert [finding.severity for finding in none.check()] == [Severity.OK]

"""A kernel with flower filters over a card in switchdev mode, as net/sched/cls_flower.c and the drivers ice and mlx5
behave according to their source."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Side
from ovs_hotswap.uplink.base import Uplink
from ovs_hotswap.uplink.flower import HANDLE, FlowerUplink, tunnel_packets
from ovs_hotswap.uplink.frames import ETH_P_IP, PacketSockets
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.rules import FlowerKeys, Kernel, Link, Rule
from tests.support.uplink_bed import Calls, Failing

VTEP = "172.31.0.1"
MAC, NIC, SWITCH = "52:54:00:1f:00:01", "pci/0000:3b:00.0", "a4bf01ffff3c5d90"
PF = Link(2, True, MAC, 1500, SWITCH, NIC)
REP_A = Link(3, True, "02:00:00:00:00:03", 1500, SWITCH, NIC)
REP_B = Link(4, True, "02:00:00:00:00:04", 1500, SWITCH, NIC)


@dataclass
class FakeFlower:
    """``room``: how many filters the card holds. ``card``: what was given to the card and taken from it, in order.
    ``counts``: whether the driver counts packets (mlx5) or not (ice). ``any_priority``: whether the firmware takes
    priorities other than 1."""

    links: dict[str, Link] = field(default_factory=lambda: {"pf0": PF, "rep-a": REP_A, "rep-b": REP_B})
    installed: dict[int, list[Rule]] = field(default_factory=dict)
    offloading: set[str] = field(default_factory=lambda: {"pf0", "rep-a", "rep-b"})
    classifier: bool = True
    room: int = 100
    counts: bool = True
    any_priority: bool = False
    blocks: dict[int, int] = field(default_factory=dict)
    card: list[tuple[str, int, int | None]] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Kernel]:
        yield self

    def link(self, name: str) -> Link | None:
        return self.links.get(name)

    def rules(self, link: Link) -> list[Rule]:
        return list(self.installed.get(link.index, []))

    def programs(self, link: Link) -> tuple[str, ...]:
        return ("an XDP program",)

    def block(self, link: Link) -> int | None:
        return self.blocks.get(link.index)

    def offloads(self, name: str) -> bool:
        return name in self.offloading

    def replace(self, link: Link, rule: Rule) -> None:
        if link.index in self.blocks:
            raise NetlinkError(errno.EOPNOTSUPP)
        if not self.classifier:
            raise NetlinkError(errno.ENOENT)
        rules = self.installed.setdefault(link.index, [])
        handle = rule.handle or HANDLE
        if any(each.priority == rule.priority and each.protocol != rule.protocol for each in rules):
            raise NetlinkError(errno.EINVAL)  # net/sched/cls_api.c, tcf_chain_tp_find
        old = next((each for each in rules if (each.priority, each.handle) == (rule.priority, handle)), None)
        if old is not None and _mask(old) != _mask(rule):
            raise NetlinkError(errno.EINVAL)  # fl_check_assign_mask
        if any(each.keys == rule.keys and each.priority == rule.priority and each is not old for each in rules):
            raise NetlinkError(errno.EEXIST)  # fl_ht_insert_unique
        self._give(link, rule)
        made = replace(rule, handle=handle, in_hardware=True, packets=0 if self.counts else None)
        if old is None:
            rules.append(made)
        else:
            rules[rules.index(old)] = made
            self.card.append(("taken", link.index, old.target))

    def _give(self, link: Link, rule: Rule) -> None:
        name = next(name for name, each in self.links.items() if each.index == link.index)
        target = next((each for each in self.links.values() if each.index == rule.target), None)
        if name not in self.offloading or not link.switch or target is None or target.switch != link.switch:
            raise NetlinkError(errno.EOPNOTSUPP)
        if rule.priority != 1 and not self.any_priority:
            raise NetlinkError(errno.EOPNOTSUPP)  # mlx5e_tc_add_fdb_flow
        if rule.keys == FlowerKeys():
            raise NetlinkError(errno.EINVAL)  # ice_add_adv_rule
        if sum(each.in_hardware for rules in self.installed.values() for each in rules) >= self.room:
            raise NetlinkError(errno.ENOSPC)
        self.card.append(("given", link.index, rule.target))

    def delete(self, link: Link, rule: Rule, *, whole_priority: bool) -> None:
        self.installed[link.index] = [
            old for old in self.installed[link.index]
            if old.priority != rule.priority or not (whole_priority or old.handle == rule.handle)
        ]  # fmt: skip

    def reset(self) -> None:
        """What the card held is lost, and the kernel's filters stay."""
        self.installed = {index: [replace(each, in_hardware=False) for each in rules]
                          for index, rules in self.installed.items()}  # fmt: skip


def _mask(rule: Rule) -> tuple[object, ...]:
    """Which fields the filter compares."""
    keys = rule.keys
    assert isinstance(keys, FlowerKeys)
    version = None if keys.address is None else keys.address.version
    return version, keys.udp_port is None, keys.vlan is None, keys.source_mac is None, keys.others


@dataclass
class FlowerBed:
    """``switchdev`` over the fake of flower filters in hardware, with a foreign filter on the device."""

    kernel: FakeFlower = field(default_factory=FakeFlower)
    calls: Calls = field(default_factory=lambda: Calls(lambda: UplinkError("traffic control: no buffer space")))

    def __post_init__(self) -> None:
        keys = FlowerKeys(ip_address("10.0.0.1"), 4789)
        self.kernel.installed[PF.index] = [Rule(9, ETH_P_IP, 1, keys, 99, in_hardware=True)]

    def uplink(self) -> Uplink:
        return FlowerUplink(
            device="pf0", representors={Side.A: "rep-a", Side.B: "rep-b"}, match=Match(VTEP), mac=MAC, mtu=1500,
            control=self, sockets=PacketSockets(None),
        )  # fmt: skip

    @contextmanager
    def open(self) -> Iterator[Kernel]:
        yield Failing(self.kernel, self.calls)

    def state(self) -> object:
        return {index: list(rules) for index, rules in self.kernel.installed.items() if rules}

    def leads_to(self) -> Side | None:
        keys = tunnel_packets(Match(VTEP))[1]
        targets = {rule.target for rule in self.kernel.installed[PF.index] if rule.keys == keys and rule.in_hardware}
        return next((side for side, link in ((Side.A, REP_A), (Side.B, REP_B)) if targets == {link.index}), None)

    def break_steering(self) -> None:
        self.kernel.reset()

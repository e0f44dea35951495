"""Filters of the kernel's traffic control, and the seam through which the drivers ``tc`` and ``switchdev`` read and
change them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Key:
    """A condition of a u32 filter: the 32 bits at ``offset`` bytes from the network header, masked with ``mask``, equal
    ``value``."""

    value: int
    mask: int
    offset: int


@dataclass(frozen=True, slots=True)
class FlowerKeys:
    """The conditions of a flower filter: UDP to ``udp_port`` of ``address``, tagged with ``vlan``, from the MAC
    ``source_mac``. What is ``None`` is not compared. ``others``: the numbers of attributes that are compared, too, and
    that our filters do not have (include/uapi/linux/pkt_cls.h, TCA_FLOWER_*)."""

    address: IPv4Address | IPv6Address | None = None
    udp_port: int | None = None
    vlan: int | None = None
    source_mac: str | None = None
    others: frozenset[int] = frozenset()


Keys = tuple[Key, ...] | FlowerKeys


@dataclass(frozen=True, slots=True)
class Rule:
    """One filter. ``target`` is the index of the device to which it redirects, ``None`` if it has another action.

    ``handle`` is 0 for a rule that is not installed yet. ``keys`` is empty for a filter of a kind that we do not have.
    ``packets``: the packets that it has redirected since its action was made, ``None`` if the card does not count them.
    ``in_hardware``: whether the card carries it out, for a flower filter.
    """

    priority: int
    protocol: int
    handle: int
    keys: Keys
    target: int | None
    packets: int | None = field(default=0, compare=False)
    in_hardware: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. ``mtu`` is in bytes. ``up``: it is set up. ``switch``: the number of the NIC's switch, which
    its devices have in common in switchdev mode, and which is empty in others. ``parent``: its address on the bus, such
    as ``pci/0000:3b:00.0``, empty for a device without hardware. ``carrier``: its link is up, too."""

    index: int
    up: bool
    mac: str
    mtu: int = 1500
    switch: str = ""
    parent: str = ""
    carrier: bool = True


class Kernel(Protocol):
    """The devices and filters of one network namespace. All methods raise UplinkError, or NetlinkError, which ``open``
    turns into one."""

    def link(self, name: str) -> Link | None:
        """The present state of the device; ``None`` if there is no such device."""

    def rules(self, link: Link) -> list[Rule]:
        """All filters on the device's ingress, in no particular order."""

    def programs(self, link: Link) -> tuple[str, ...]:
        """The BPF programs on the device that see packets before filters do, in words."""

    def block(self, link: Link) -> int | None:
        """The number of the block that holds the device's ingress filters, if devices can share this block; otherwise
        ``None``. The kernel puts no filter on such a device alone (net/sched/cls_api.c, __tcf_block_find)."""

    def offloads(self, name: str) -> bool:
        """Whether the device may give filters to its card: the feature ``hw-tc-offload``."""

    def replace(self, link: Link, rule: Rule) -> None:
        """Install ``rule`` if its handle is 0; otherwise give the filter with this handle the action of ``rule``."""

    def delete(self, link: Link, rule: Rule, *, whole_priority: bool) -> None:
        """Remove the filter, or all filters of its priority: only the latter frees the hash table of u32, too."""


class TrafficControl(Protocol):
    """Opens the kernel's state of a network namespace. ``open`` raises UplinkError."""

    def open(self) -> AbstractContextManager[Kernel]: ...

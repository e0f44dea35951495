"""Uplink driver ``tc``: u32 filters that redirect packets between a device and the representors of two VFs.

- ingress of the device: what tunnels send to the VTEP goes to the representor of the active instance's VF;
- ingress of either representor (what the VF sends): everything goes out of the device.

Everything else that arrives on the device stays with the kernel. A ``replace`` on the same handle moves the first
filter from one VF to the other: the kernel swaps the action in one step, so no packet is lost. It keeps the keys of the
old filter (net/sched/cls_u32.c, u32_change), so a filter with other keys is removed and made again.

Priority, handle and keys identify our filters. An empty ``clsact`` is left behind: there is no record of the program
that made it, and it costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Protocol

from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.uplink.frames import ETH_P_8021Q, ETH_P_ALL, Host, Sockets, Tunnel
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.proof import End, Prover

PRIORITY = 4789  # the priority of all our filters; the kernel tries filters with lower numbers first
NODE = 1  # our filters' number within the hash table that the kernel makes for the priority
NODE_MASK = 0xFFF  # of a handle, include/uapi/linux/pkt_cls.h TC_U32_NODE


@dataclass(frozen=True, slots=True)
class Key:
    """A condition: the 32 bits at ``offset`` bytes from the network header, masked with ``mask``, equal ``value``."""

    value: int
    mask: int
    offset: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One u32 filter. ``target`` is the index of the device to which it redirects, ``None`` if it has another action.

    ``handle`` is 0 for a rule that is not installed yet. ``keys`` is empty for a filter of another kind. ``packets``:
    the packets that it has redirected since its action was made.
    """

    priority: int
    protocol: int
    handle: int
    keys: tuple[Key, ...]
    target: int | None
    packets: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. ``mtu`` is in bytes."""

    index: int
    up: bool
    mac: str
    mtu: int = 1500


class Kernel(Protocol):
    """The devices and filters of one network namespace. All methods raise UplinkError."""

    def link(self, name: str) -> Link | None:
        """The present state of the device; ``None`` if there is no such device."""

    def rules(self, link: Link) -> list[Rule]:
        """All filters on the device's ingress, in no particular order."""

    def programs(self, link: Link) -> tuple[str, ...]:
        """The BPF programs on the device that see packets before filters do, in words."""

    def block(self, link: Link) -> int | None:
        """The number of the block that holds the device's ingress filters, if devices can share this block; otherwise
        ``None``. The kernel puts no filter on such a device alone (net/sched/cls_api.c, __tcf_block_find)."""

    def replace(self, link: Link, rule: Rule) -> None:
        """Install ``rule`` as node NODE of its priority if its handle is 0; otherwise change the action of the filter
        with this handle."""

    def delete(self, link: Link, rule: Rule, *, whole_priority: bool) -> None:
        """Remove the filter, or all filters of its priority: only the latter frees the priority's hash table, too."""


class TrafficControl(Protocol):
    """Opens the kernel's state of a network namespace. ``open`` raises UplinkError."""

    def open(self) -> AbstractContextManager[Kernel]: ...


def tunnel_keys(match: Match) -> tuple[Key, ...]:
    """Keys for the packets of ``match`` over IPv4 without options (RFC 791) or IPv6 without extension headers
    (RFC 8200). Offsets are from the IP header, also behind a tag. u32 cannot compare the tag itself, which is no longer
    in the packet's bytes: the instance does, and drops packets of other VLANs."""
    address = ip_address(match.address)
    if address.version == 4:
        return (
            Key(0x45000000, 0xFF000000, 0),  # version 4, a header of five words: the offsets below depend on its length
            Key(0x00000000, 0x00001FFF, 4),  # fragment offset 0
            Key(0x00110000, 0x00FF0000, 8),  # UDP
            Key(int(address), 0xFFFFFFFF, 16),  # destination address
            Key(match.udp_port, 0x0000FFFF, 20),  # destination port
        )
    return (
        Key(0x60000000, 0xF0000000, 0),  # version 6
        Key(0x00001100, 0x0000FF00, 4),  # UDP follows at once: no fragment
        *(Key(word, 0xFFFFFFFF, 24 + 4 * at) for at, word in enumerate(struct.unpack("!4I", address.packed))),
        Key(match.udp_port, 0x0000FFFF, 40),
    )


ANY = (Key(0, 0, 0),)


def ours(rule: Rule, protocol: int, keys: tuple[Key, ...]) -> bool:
    """Whether the filter is one that this driver makes in the place of one with ``protocol`` and ``keys``, perhaps for
    another match."""
    if rule.handle & NODE_MASK != NODE:
        return False
    if keys == ANY:
        return (rule.protocol, rule.keys) == (protocol, keys)
    return any(
        rule.protocol in (like.protocol, ETH_P_8021Q) and _shaped(rule.keys, tunnel_keys(like)) for like in _SHAPES
    )


_SHAPES = (Match("0.0.0.0"), Match("::"))


def _shaped(keys: tuple[Key, ...], like: tuple[Key, ...]) -> bool:
    """Whether ``keys`` equal ``like`` except for the address and the UDP port, which is the last key."""
    return len(keys) == len(like) and all(
        (a.mask, a.offset) == (b.mask, b.offset) and (a.value == b.value or a.mask == 0xFFFFFFFF or b is like[-1])
        for a, b in zip(keys, like, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Found:
    """The filters of one device: ours (at most one), others at our priority (``intruders``), and those that the kernel
    tries before ours (``earlier``)."""

    ours: Rule | None
    intruders: tuple[Rule, ...]
    earlier: tuple[Rule, ...]


def sort(rules: list[Rule], protocol: int, keys: tuple[Key, ...]) -> Found:
    """Separate our filter, which is to have ``protocol`` and ``keys``, from the filters of others."""
    mine = [rule for rule in rules if rule.priority == PRIORITY and ours(rule, protocol, keys)]
    return Found(
        ours=mine[0] if mine else None,
        intruders=tuple(rule for rule in rules if rule.priority == PRIORITY and rule not in mine[:1]),
        earlier=tuple(rule for rule in rules if rule.priority < PRIORITY),
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last look has found. The kernel does not reuse indices of devices, so an index here cannot mean another
    device."""

    device: Link
    rule: Rule
    links: Mapping[Side, Link]


class TcUplink:
    """The driver. ``match``: the packets of tunnels to the VTEP. ``mac``: the MAC that the bridge, and so the device,
    must have. ``mtu``: the MTU of the underlay, which every device on the way must carry. ``neighbours``: on-link hosts
    that a proof can ask. ``tunnel``: the kind of the tunnels.

    ``quick``: ``steer`` begins with the one act that steers the traffic, based on the last look, and looks afterwards.
    If it then finds a fault, this is raised with the traffic steered.
    """

    def __init__(
        self,
        *,
        device: str,
        representors: Mapping[Side, str],
        match: Match,
        mac: str,
        mtu: int,
        control: TrafficControl,
        sockets: Sockets,
        neighbours: Sequence[Host] = (),
        tunnel: Tunnel = "vxlan",
        quick: bool = False,
    ) -> None:
        self._device = device
        self._representors = dict(representors)
        self._match = match
        self._given = (match.protocol, tunnel_keys(match))
        self._mac = mac.lower()
        self._mtu = mtu
        self._prover = Prover(
            sockets, device, Host(match.address, self._mac), tuple(neighbours), mtu,
            vlan=match.vlan, udp_port=match.udp_port, tunnel=tunnel,
        )  # fmt: skip
        self._control = control
        self._quick = quick
        self._known: _Known | None = None

    def owner(self) -> Side | None:
        """The side to whose representor the VTEP's filter redirects; ``None`` if there is no filter, or it is for
        another address or another device."""
        with self._control.open() as kernel:
            return self._owner(kernel)

    def steer(self, side: Side) -> None:
        with self._control.open() as kernel:
            self._steer_as_known(kernel, side)
            device = _need(kernel, self._device)
            links = {one: _need(kernel, name) for one, name in self._representors.items()}
            for name, link in ((self._device, device), (self._representors[side], links[side])):
                if not link.up:
                    raise UplinkError(f"network device {name} is down", hint=f"ip link set {name} up")
            for one, link in links.items():
                _put(kernel, self._representors[one], link, Rule(PRIORITY, ETH_P_ALL, 0, ANY, device.index))
            _put(kernel, self._device, device, Rule(PRIORITY, self._given[0], 0, self._given[1], links[side].index))
            owner = self._owner(kernel)
        if owner is not side:
            raise UplinkError(
                f"{self._device}: the filter for {self._match} was put to instance {side}, but reads back as "
                f"{f'instance {owner}' if owner else 'neither instance'}'s",
                hint=f"tc filter show dev {self._device} ingress",
            )

    def _steer_as_known(self, kernel: Kernel, side: Side) -> None:
        """Steer the traffic with one act, based on the last look (1 ms). The caller looks afterwards (10 ms)."""
        known, self._known = self._known, None
        if known is not None and side in known.links and known.rule.target != known.links[side].index:
            with contextlib.suppress(NetlinkError, UplinkError):  # the devices have changed: the caller looks next
                kernel.replace(known.device, replace(known.rule, target=known.links[side].index))

    def clear(self) -> None:
        self._known = None
        with self._control.open() as kernel:
            for name, protocol, keys in self._places():
                link = kernel.link(name)
                if link is None:
                    continue
                found = sort(kernel.rules(link), protocol, keys)
                if found.ours is not None:
                    kernel.delete(link, found.ours, whole_priority=not found.intruders)

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        return self._prover.prove(self._representors[side], end, way)

    def steered(self, side: Side) -> Steered | None:
        with self._control.open() as kernel:
            device, representor = _need(kernel, self._device), _need(kernel, self._representors[side])
            given = sort(kernel.rules(device), *self._given).ours
            taken = sort(kernel.rules(representor), ETH_P_ALL, ANY).ours
        if given is None or taken is None or given.target != representor.index:
            return None
        return Steered(given.packets, taken.packets)

    def rules(self) -> list[str]:
        with self._control.open() as kernel:
            device, names = _need(kernel, self._device), {}
            for name in self._representors.values():
                if (link := kernel.link(name)) is not None:
                    names[link.index] = name
            ours = sort(kernel.rules(device), *self._given).ours
        if ours is None:
            return []
        to = names.get(ours.target or 0, "another device")
        return [f"{self._device}: {self._match} to {to}"]

    def check(self) -> list[Finding]:
        try:
            with self._control.open() as kernel:
                findings = [finding for place in self._places() for finding in self._check_place(kernel, *place)]
                owner = self._owner(kernel) if not findings else None
        except UplinkError as error:
            return [Finding("uplink", Severity.ERROR, error.message, error.hint)]
        text = f"{self._device}: overlay traffic goes to {f'instance {owner}' if owner else 'neither instance yet'}"
        return findings or [Finding("uplink", Severity.OK, text)]

    def _owner(self, kernel: Kernel) -> Side | None:
        device = _need(kernel, self._device)
        links = {side: kernel.link(name) for side, name in self._representors.items()}
        found = sort(kernel.rules(device), *self._given).ours
        if found is None or (found.protocol, found.keys) != self._given:
            return None
        there = {side: link for side, link in links.items() if link is not None}
        self._known = _Known(device, found, there) if self._quick else None
        return next((side for side, link in there.items() if link.index == found.target), None)

    def _places(self) -> list[tuple[str, int, tuple[Key, ...]]]:
        back = [(name, ETH_P_ALL, ANY) for name in self._representors.values()]
        return [(self._device, *self._given), *back]

    def _check_place(self, kernel: Kernel, name: str, protocol: int, keys: tuple[Key, ...]) -> Iterator[Finding]:
        link = kernel.link(name)
        if link is None:
            yield Finding("uplink", Severity.ERROR, f"there is no network device {name}",
                          "correct [uplink] in the configuration: `ip -br link`")  # fmt: skip
            return
        if not link.up:
            yield Finding("uplink", Severity.ERROR, f"network device {name} is down", f"ip link set {name} up")
        if name == self._device and link.mac != self._mac:
            yield Finding(
                "uplink", Severity.ERROR,
                f"{name} has MAC {link.mac}, the VTEP {self._mac}: packets for the one are not taken by the other",
                f'set [vtep] mac = "{link.mac}" in the overlay file, then `ovs-hotswap overlay apply`',
            )  # fmt: skip
        if link.mtu < self._mtu:
            yield Finding(
                "mtu", Severity.ERROR, f"{name} has MTU {link.mtu}, the underlay {self._mtu}: longer packets are lost",
                f"ip link set {name} mtu {self._mtu}, or correct vtep.mtu in the overlay file",
            )  # fmt: skip
        if fault := _shared(kernel, name, link):
            yield Finding("uplink", Severity.ERROR, fault.message, fault.hint)
        for program in kernel.programs(link):
            yield Finding(
                "uplink programs", Severity.WARNING,
                f"{name}: {program} sees packets before our filter does; it must leave {self._match} alone",
                f"bpftool net show dev {name}",
            )  # fmt: skip
        found = sort(kernel.rules(link), protocol, keys)
        show = f"tc filter show dev {name} ingress"
        if found.intruders:
            yield Finding(
                "uplink", Severity.ERROR, f"{name}: {len(found.intruders)} foreign filters at our priority {PRIORITY}",
                f"give them another priority: {show}",
            )  # fmt: skip
        if found.earlier:
            yield Finding(
                "uplink", Severity.WARNING,
                f"{name}: {len(found.earlier)} foreign filters are looked at before ours (priority below {PRIORITY})",
                f"make sure that they leave {self._match} alone: {show}",
            )  # fmt: skip


def _shared(kernel: Kernel, name: str, link: Link) -> UplinkError | None:
    block = kernel.block(link)
    if block is None:
        return None
    return UplinkError(
        f"{name}: its ingress filters are those of block {block}, and no filter can be put on it alone",
        hint=f"replace its clsact by one without ingress_block: tc qdisc show dev {name}",
    )


def _put(kernel: Kernel, name: str, link: Link, rule: Rule) -> None:
    """Install our filter on the device as ``rule`` says, unless it is so already. Raises UplinkError."""
    found = sort(kernel.rules(link), rule.protocol, rule.keys)
    if found.intruders:
        raise UplinkError(
            f"{name}: foreign filters at priority {PRIORITY}; nothing was changed there",
            hint=f"give them another priority: tc filter show dev {name} ingress",
        )
    handle = 0
    if found.ours is not None:
        same = (found.ours.protocol, found.ours.keys) == (rule.protocol, rule.keys)
        if same and found.ours.target == rule.target:
            return
        if same:
            handle = found.ours.handle
        else:  # the filter is for other packets, which come no longer
            kernel.delete(link, found.ours, whole_priority=True)
    try:
        kernel.replace(link, replace(rule, handle=handle))
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP and (fault := _shared(kernel, name, link)):
            raise fault from error
        raise


def _need(kernel: Kernel, name: str) -> Link:
    link = kernel.link(name)
    if link is None:
        raise UplinkError(
            f"there is no network device {name}", hint="correct [uplink] in the configuration: `ip -br link`"
        )
    return link

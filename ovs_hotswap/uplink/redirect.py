"""Uplinks that redirect packets between a NIC's device and the representors of two virtual functions with filters.

- ingress of the device: the tunnels' packets go to the representor of the active instance's VF;
- ingress of either representor (what the VF sends): what the instance sends goes out of the device.

Everything else that arrives on the device stays with the kernel. Which filters do this, a driver says by its scheme.
An empty ``clsact`` is left behind: there is no record of the program that made it, and it costs nothing.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.overlay.path_mtu import Device, short_device
from ovs_hotswap.uplink.frames import Host, Sockets, Tunnel
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.proof import Answers, End, Prover
from ovs_hotswap.uplink.rules import Kernel, Keys, Link, Rule, TrafficControl


@dataclass(frozen=True, slots=True)
class Scheme:
    """The filters of a driver: all have ``priority``; the one on the device has ``given``, those on the representors
    have ``taken``, each a protocol with keys. ``ours``: whether a filter of this priority is the driver's, for this
    protocol and these keys, perhaps for another VTEP. ``in_hardware``: whether only the card carries them out."""

    priority: int
    given: tuple[int, Keys]
    taken: tuple[int, Keys]
    ours: Callable[[Rule, int, Keys], bool]
    in_hardware: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The filters of one device: ours (at most one), others at our priority (``intruders``), and those that the kernel
    tries before ours (``earlier``)."""

    ours: Rule | None
    intruders: tuple[Rule, ...]
    earlier: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last look has found. The kernel does not reuse indices of devices, so an index here cannot mean another
    device."""

    device: Link
    rule: Rule
    links: Mapping[Side, Link]


class RedirectUplink(ABC):
    """The drivers' common part. ``match``: the packets of tunnels to the VTEP. ``mac``: the MAC that the bridge, and so
    the device, must have. ``mtu``: the MTU of the underlay, which every device on the way must carry. ``neighbours``:
    on-link hosts that a proof can ask. ``answers``: where their answers may arrive, if there is another NIC.
    ``tunnel``: the kind of the tunnels.

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
        answers: Answers | None = None,
        quick: bool = False,
    ) -> None:
        self._device = device
        self._representors = dict(representors)
        self._match = match
        self._mac = mac.lower()
        self._scheme = self._make_scheme(match)
        self._mtu = mtu
        self._prover = Prover(
            sockets, device, Host(match.address, self._mac), tuple(neighbours), mtu,
            vlan=match.vlan, udp_port=match.udp_port, tunnel=tunnel, answers=answers or Answers(),
        )  # fmt: skip
        self._control = control
        self._quick = quick
        self._known: _Known | None = None

    @abstractmethod
    def _make_scheme(self, match: Match) -> Scheme:
        """The driver's filters for the packets of ``match``."""

    def owner(self) -> Side | None:
        """The side to whose representor the VTEP's filter redirects; ``None`` if there is no filter, or it is for
        another address or another device, or the card does not carry it out though it should."""
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
                self._put(kernel, self._representors[one], link, self._scheme.taken, device.index)
            self._put(kernel, self._device, device, self._scheme.given, links[side].index)
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
            for name, wanted in self._places():
                link = kernel.link(name)
                if link is None:
                    continue
                found = self._sort(kernel.rules(link), wanted)
                if found.ours is not None:
                    kernel.delete(link, found.ours, whole_priority=not found.intruders)

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        return self._prover.prove(self._representors[side], end, way)

    def steered(self, side: Side) -> Steered | None:
        with self._control.open() as kernel:
            device, representor = _need(kernel, self._device), _need(kernel, self._representors[side])
            given = self._sort(kernel.rules(device), self._scheme.given).ours
            taken = self._sort(kernel.rules(representor), self._scheme.taken).ours
        if given is None or taken is None or given.target != representor.index:
            return None
        if given.packets is None or taken.packets is None:
            return None
        return Steered(given.packets, taken.packets)

    def rules(self) -> list[str]:
        with self._control.open() as kernel:
            device, names = _need(kernel, self._device), {}
            for name in self._representors.values():
                if (link := kernel.link(name)) is not None:
                    names[link.index] = name
            ours = self._sort(kernel.rules(device), self._scheme.given).ours
        if ours is None:
            return []
        to = names.get(ours.target or 0, "another device")
        idle = ", not in hardware" if self._scheme.in_hardware and not ours.in_hardware else ""
        return [f"{self._device}: {self._match} to {to}{idle}"]

    def check(self) -> list[Finding]:
        try:
            with self._control.open() as kernel:
                findings = [finding for place in self._places() for finding in self._check_place(kernel, *place)]
                findings += self._check_nic(kernel)
                fine = all(each.severity is Severity.OK for each in findings)
                owner = self._owner(kernel) if fine else None
        except UplinkError as error:
            return [Finding("uplink", Severity.ERROR, error.message, error.hint)]
        text = f"{self._device}: overlay traffic goes to {f'instance {owner}' if owner else 'neither instance yet'}"
        return [Finding("uplink", Severity.OK, text), *findings] if fine else findings

    def _owner(self, kernel: Kernel) -> Side | None:
        device = _need(kernel, self._device)
        links = {side: kernel.link(name) for side, name in self._representors.items()}
        ours = self._sort(kernel.rules(device), self._scheme.given).ours
        if ours is None or not self._works(ours, self._scheme.given):
            return None
        there = {side: link for side, link in links.items() if link is not None}
        self._known = _Known(device, ours, there) if self._quick else None
        return next((side for side, link in there.items() if link.index == ours.target), None)

    def _works(self, rule: Rule, wanted: tuple[int, Keys]) -> bool:
        """Whether our filter matches what is wanted, and is carried out where it should be."""
        return (rule.protocol, rule.keys) == wanted and (rule.in_hardware or not self._scheme.in_hardware)

    def _places(self) -> list[tuple[str, tuple[int, Keys]]]:
        back = [(name, self._scheme.taken) for name in self._representors.values()]
        return [(self._device, self._scheme.given), *back]

    def _sort(self, rules: list[Rule], wanted: tuple[int, Keys]) -> Found:
        """Separate our filter, which has the protocol and keys of ``wanted``, from the filters of others."""
        priority = self._scheme.priority
        mine = [rule for rule in rules if rule.priority == priority and self._scheme.ours(rule, *wanted)]
        return Found(
            ours=mine[0] if mine else None,
            intruders=tuple(rule for rule in rules if rule.priority == priority and rule not in mine[:1]),
            earlier=tuple(rule for rule in rules if rule.priority < priority),
        )

    def _put(self, kernel: Kernel, name: str, link: Link, wanted: tuple[int, Keys], target: int) -> None:
        """Install our filter on the device, unless it is there already. Raises UplinkError."""
        found = self._sort(kernel.rules(link), wanted)
        if found.intruders:
            raise UplinkError(
                f"{name}: foreign filters at priority {self._scheme.priority}; nothing was changed there",
                hint=f"give them another priority: tc filter show dev {name} ingress",
            )
        handle = 0
        if found.ours is not None:
            if self._works(found.ours, wanted) and found.ours.target == target:
                return
            if (found.ours.protocol, found.ours.keys) == wanted:
                handle = found.ours.handle
            else:  # the filter is for another VTEP address, which gets no traffic any longer
                kernel.delete(link, found.ours, whole_priority=True)
        try:
            kernel.replace(link, Rule(self._scheme.priority, wanted[0], handle, wanted[1], target))
        except NetlinkError as error:
            if fault := self._why_refused(kernel, name, link, error):
                raise fault from error
            raise

    def _why_refused(self, kernel: Kernel, name: str, link: Link, error: NetlinkError) -> UplinkError | None:
        """Why the kernel has refused a filter on the device, if this can be found out."""
        return _shared(kernel, name, link)

    @abstractmethod
    def _check_nic(self, kernel: Kernel) -> Iterator[Finding]:
        """Whether the NIC is one for this driver."""

    def _check_place(self, kernel: Kernel, name: str, wanted: tuple[int, Keys]) -> Iterator[Finding]:
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
        yield from short_device(Device(name, link.mtu), self._mtu)
        if fault := _shared(kernel, name, link):
            yield Finding("uplink", Severity.ERROR, fault.message, fault.hint)
        for program in () if self._scheme.in_hardware else kernel.programs(link):  # the card comes before them
            yield Finding(
                "uplink programs", Severity.WARNING,
                f"{name}: {program} sees packets before our filter does; it must leave UDP port {self._match.udp_port} "
                "alone",
                f"bpftool net show dev {name}",
            )  # fmt: skip
        found = self._sort(kernel.rules(link), wanted)
        show = f"tc filter show dev {name} ingress"
        if found.intruders:
            yield Finding(
                "uplink", Severity.ERROR,
                f"{name}: {len(found.intruders)} foreign filters at our priority {self._scheme.priority}",
                f"give them another priority: {show}",
            )  # fmt: skip
        if found.earlier:
            yield Finding(
                "uplink", Severity.WARNING,
                f"{name}: {len(found.earlier)} foreign filters are looked at before ours "
                f"(priority below {self._scheme.priority})",
                f"make sure that they leave UDP port {self._match.udp_port} alone: {show}",
            )  # fmt: skip


def _shared(kernel: Kernel, name: str, link: Link) -> UplinkError | None:
    block = kernel.block(link)
    if block is None:
        return None
    return UplinkError(
        f"{name}: its ingress filters are those of block {block}, and no filter can be put on it alone",
        hint=f"replace its clsact by one without ingress_block: tc qdisc show dev {name}",
    )


def _need(kernel: Kernel, name: str) -> Link:
    link = kernel.link(name)
    if link is None:
        raise UplinkError(
            f"there is no network device {name}", hint="correct [uplink] in the configuration: `ip -br link`"
        )
    return link

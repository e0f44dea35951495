"""What `--to` names, and which packets are put to the flow tables as a question. This module is pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

from ovs_hotswap.diagnose.facts import VmPort, Wanted
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.overlay.ports import VXLAN_PORT
from ovs_hotswap.wording import some

_MAC = re.compile(r"^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$")
_ALL = "ff:ff:ff:ff:ff:ff"
_SHOWN = 2  # remote hosts that are asked about if no target is named


class Place(enum.Enum):
    """Where a target is, as seen from a VM."""

    HERE = enum.auto()
    REMOTE = enum.auto()
    OTHER_VNI = enum.auto()
    NOWHERE = enum.auto()
    NO_MAC = enum.auto()
    FOREIGN = enum.auto()


@dataclass(frozen=True, slots=True)
class Target:
    """A target. ``vm``: if it is a VM of this host. ``vtep``: behind which it is. ``vnis``: those in which its MAC is.
    FOREIGN: the bridges are programmed by others, so only they know."""

    place: Place
    mac: str | None
    address: str | None = None
    vm: str | None = None
    vtep: str | None = None
    vnis: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A packet for ``ofproto/trace`` on a bridge. ``words``: what it is. ``needed``: that it is dropped is a fault."""

    words: str
    bridge: str
    flow: str
    vm: str
    needed: bool = True


def is_mac(text: str) -> bool:
    return _MAC.match(text.lower()) is not None


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def find(wanted: Wanted, vm: VmPort, mac: str | None, address: str | None) -> Target:
    """Return where the target with this MAC is. ``address``: the IP address by which it was named."""
    if mac is None:
        return Target(Place.NO_MAC, None, address)
    if not wanted.overlay:
        here = next((each.name for each in wanted.vms.values() if each.mac == mac), None)
        return Target(Place.FOREIGN, mac, address, here)
    here = next((each.name for each in wanted.vms.values() if (each.vni, each.mac) == (vm.vni, mac)), None)
    if here is not None:
        return Target(Place.HERE, mac, address, here)
    vtep = next((each.vtep for each in wanted.remotes if (each.vni, each.mac) == (vm.vni, mac)), None)
    if vtep is not None:
        return Target(Place.REMOTE, mac, address, None, vtep)
    vnis = {each.vni for each in wanted.vms.values() if each.mac == mac and each.vni is not None}
    vnis |= {each.vni for each in wanted.remotes if each.mac == mac}
    return Target(Place.OTHER_VNI if vnis else Place.NOWHERE, mac, address, vnis=tuple(sorted(vnis)))


def judge(vm: VmPort, target: Target) -> Iterator[Found]:
    if target.place is Place.OTHER_VNI:
        others = some([str(vni) for vni in target.vnis])
        yield Found(
            Cause.WRONG_VNI,
            f"{vm.name} is in VNI {vm.vni} and {target.mac} in VNI {others}, so they cannot reach each other.",
            ("both are so in the overlay file",), "correct the overlay file, then `ovs-hotswap overlay apply`", vm.name,
        )  # fmt: skip
    elif target.place is Place.NOWHERE:
        yield Found(
            Cause.UNKNOWN_MAC, f"{target.mac} is nowhere by the overlay file: what {vm.name} sends to it is dropped.",
            (f"no [[vm]] and no [[remote]] of VNI {vm.vni} has this MAC",),
            "add it to the overlay file, if it exists, then `ovs-hotswap overlay apply`", vm.name,
        )  # fmt: skip


def questions(wanted: Wanted, vm: VmPort, target: Target | None) -> list[Question]:
    """Return the packets to ask about: to the target and back, or to some hosts of the VM's VNI."""
    if vm.mac is None:
        return []
    if target is not None:
        return _about(wanted, vm, target)
    peer = next((each for each in wanted.vms.values() if each.vni == vm.vni and each is not vm), None)
    asked = [] if peer is None or not wanted.overlay else [_sends(vm, str(peer.mac), f"{peer.name}, on this host")]
    by_vtep = {each.vtep: each for each in reversed(wanted.remotes) if each.vni == vm.vni}
    for remote in list(reversed(by_vtep.values()))[:_SHOWN]:
        asked.append(_sends(vm, remote.mac, f"{remote.mac}, behind VTEP {remote.vtep}"))
        asked.append(_comes(wanted, vm, remote.mac, remote.vtep))
    return asked or [_asks(vm, None)]


def _about(wanted: Wanted, vm: VmPort, target: Target) -> list[Question]:
    if target.mac is None:
        return [_asks(vm, target.address)]
    asked = [_sends(vm, target.mac, target.address or target.mac, target.address)]
    if target.place not in (Place.HERE, Place.REMOTE):  # it is dropped because of this, or others know
        return [replace(asked[0], needed=False)]
    if target.vtep is not None:
        asked.append(_comes(wanted, vm, target.mac, target.vtep))
    other = wanted.vms.get(target.vm or "")
    if other is not None and target.place is Place.HERE:
        asked.append(_sends(other, str(vm.mac), f"{vm.name}, the way back"))
    return asked


def _sends(vm: VmPort, mac: str, whom: str, address: str | None = None) -> Question:
    kind = "ip" if address is None else f"icmp6,ipv6_dst={address}" if ":" in address else f"icmp,nw_dst={address}"
    flow = f"in_port={vm.ofport},{kind},dl_src={vm.mac},dl_dst={mac},nw_ttl=64"
    return Question(f"A packet of {vm.name} to {whom}", vm.bridge, flow, vm.name)


def _asks(vm: VmPort, address: str | None) -> Question:
    """The question by which every exchange with a host of unknown MAC begins (RFC 826)."""
    target = "" if address is None or ":" in address else f",arp_tpa={address}"
    flow = f"in_port={vm.ofport},arp,dl_src={vm.mac},dl_dst={_ALL},arp_op=1,arp_sha={vm.mac}{target}"
    whom = f"who has {address}" if address else "who has an address"
    return Question(f"The question of {vm.name} {whom}, to all", vm.bridge, flow, vm.name, needed=False)


def _comes(wanted: Wanted, vm: VmPort, mac: str, vtep: str) -> Question:
    ends = "ipv6_src" if ":" in vtep else "src"
    other = ends.replace("src", "dst")
    flow = (f"in_port={VXLAN_PORT},tun_id={vm.vni},tun_{ends}={vtep},tun_{other}={wanted.vtep},ip,dl_src={mac},"
            f"dl_dst={vm.mac},nw_ttl=64")  # fmt: skip
    return Question(f"A packet of {mac}, behind VTEP {vtep}, to {vm.name}", vm.bridge, flow, vm.name)

"""The overlay intent: which VMs, remote hosts, neighbours and routes the single bridge serves.

``load_intent`` reads the intent from TOML and checks it as a whole, and later code relies on these checks. The time of
all checks is linear in the size of the file.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ovs_hotswap import config_rules
from ovs_hotswap.config import Config
from ovs_hotswap.overlay.ports import FIRST_VM_PORT, LAST_VM_PORT, RESERVED_NAMES
from ovs_hotswap.toml_file import Strict, load_toml, refuse

VNI_MAX = (1 << 24) - 1  # RFC 7348, section 5

# A broadcast becomes one list of datapath actions, and OVS gives up above 64 KiB of them (ofproto-dpif-xlate.c,
# xlate_resubmit_resource_check). Measured with ofproto/trace on OVS 3.1: 84 bytes per remote VTEP, 28 per VM.
FLOOD_BYTES = 65_000
FLOOD_BYTES_PER_VTEP = 88
FLOOD_BYTES_PER_VM = 32

ETHERNET_MTU = 1500  # the MTU that a switch gives to a port that has none of its own
TUNNEL_BYTES = 50  # of VXLAN over IPv4: Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348, figure 1)

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def _mac(value: str) -> str:
    mac = value.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError("must be a MAC address such as 52:54:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError("must be a unicast MAC address: an even first byte")
    if mac == "00:00:00:00:00:00":
        raise ValueError("must be a unicast MAC address, not all zeros")
    return mac


def _host(address: IPv4Address) -> None:
    if address.is_multicast or address.is_loopback or address.is_reserved or address in IPv4Network("0.0.0.0/8"):
        raise ValueError(f"must be the unicast IPv4 address of a host; {address} cannot be one")


def _ip(value: str) -> str:
    try:
        address = IPv4Address(value)
    except ipaddress.AddressValueError:
        raise ValueError("must be an IPv4 address such as 172.31.0.2") from None
    _host(address)
    return value


def _interface(value: str) -> str:
    if "/" not in value:
        raise ValueError("must have a prefix, such as 172.31.0.1/24")
    try:
        interface = IPv4Interface(value)
    except ValueError:
        raise ValueError("must be an IPv4 address with a prefix, such as 172.31.0.1/24") from None
    _host(interface.ip)
    if _is_all(interface.ip, interface.network):
        raise ValueError(f"must be the address of a host, not the network or broadcast address of {interface.network}")
    return str(interface)


def _is_all(address: IPv4Address, network: IPv4Network) -> bool:
    """Whether an address is the network's own or its broadcast address (RFC 1122, 3.2.1.3; RFC 3021)."""
    return network.prefixlen < 31 and address in (network.network_address, network.broadcast_address)


def _network(value: str) -> str:
    try:
        network = IPv4Network(value)
    except ValueError:
        raise ValueError("must be an IPv4 network such as 172.31.8.0/24, with no bit set behind the prefix") from None
    if network.is_multicast or network.is_loopback:
        raise ValueError(f"must be a network of hosts; {network} cannot be one")
    return str(network)


def _name(value: str) -> str:
    if value in RESERVED_NAMES:
        raise ValueError(f"is the name of another port; not allowed: {', '.join(sorted(RESERVED_NAMES))}")
    return value


Mac = Annotated[str, AfterValidator(_mac)]
Ip = Annotated[str, AfterValidator(_ip)]
Vni = Annotated[int, Field(ge=1, le=VNI_MAX)]
VmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$"), AfterValidator(_name)]


class Vtep(Strict):
    """This host's end of the tunnels. ``mac`` is the MAC of the bridge, and so of the uplink's physical function.

    ``mtu``: the MTU of the underlay, in bytes; ``None`` leaves it to the switch (1500). ``local_jumbo``: VMs may have
    an MTU that does not fit into the tunnels, for packets between VMs on this host.
    """

    interface: Annotated[str, AfterValidator(_interface)] = Field(alias="address")
    mac: Mac
    mtu: Annotated[int, Field(ge=576, le=9600)] | None = None
    local_jumbo: bool = False

    @property
    def tunnel_mtu(self) -> int:
        """The longest IP packet of a VM that a tunnel carries, in bytes."""
        return (ETHERNET_MTU if self.mtu is None else self.mtu) - TUNNEL_BYTES

    @property
    def address(self) -> str:
        """The address without its prefix."""
        return str(IPv4Interface(self.interface).ip)

    @property
    def prefix(self) -> int:
        """The length of the prefix in bits."""
        return IPv4Interface(self.interface).network.prefixlen

    @property
    def network(self) -> IPv4Network:
        """The addresses that are on-link."""
        return IPv4Interface(self.interface).network


class Vm(Strict):
    """A VM's one port. ``queues`` counts queue pairs; ``ofport`` is its OpenFlow port and its tag on the peer link.

    ``mtu``: the longest IP packet, in bytes; ``None`` leaves it to the switch (1500). The size of the capture rings'
    buffers (``vhostuser.capture``) limits it.
    """

    name: VmName
    ofport: Annotated[int, Field(ge=FIRST_VM_PORT, le=LAST_VM_PORT)]
    mac: Mac
    vni: Vni
    queues: Annotated[int, Field(ge=1, le=32)] = 1
    mtu: Annotated[int, Field(ge=68, le=9000)] | None = None

    @property
    def effective_mtu(self) -> int:
        return ETHERNET_MTU if self.mtu is None else self.mtu


class Remote(Strict):
    """A MAC address of a VNI that is reached through another host's VTEP."""

    vni: Vni
    mac: Mac
    vtep: Ip


class Neighbour(Strict):
    """The MAC address of an on-link host of the underlay."""

    address: Ip
    mac: Mac


class Route(Strict):
    """A network of the underlay behind an on-link gateway."""

    destination: Annotated[str, AfterValidator(_network)]
    gateway: Ip


class Intent(Strict):
    """The whole file. Its tables have singular names (``[[vm]]``), these attributes have plural ones (``vms``)."""

    vtep: Vtep
    vms: Annotated[tuple[Vm, ...], Field(alias="vm", strict=False)] = ()
    remotes: Annotated[tuple[Remote, ...], Field(alias="remote", strict=False)] = ()
    neighbours: Annotated[tuple[Neighbour, ...], Field(alias="neighbour", strict=False)] = ()
    routes: Annotated[tuple[Route, ...], Field(alias="route", strict=False)] = ()

    @property
    def mtu(self) -> int:
        """The largest MTU of a VM, in bytes."""
        return max((vm.effective_mtu for vm in self.vms), default=ETHERNET_MTU)

    @property
    def oversized(self) -> tuple[str, ...]:
        """The VMs without an MTU of their own whose longest packets do not fit into the tunnels, and that have a remote
        MAC to send them to. With the default MTUs of VMs and underlay, this is every VM with a remote MAC."""
        return tuple(vm.name for vm in self._too_long() if vm.mtu is None)

    @property
    def too_long(self) -> dict[str, int]:
        """The configured MTUs, by VM, that do not fit into the tunnels, if the VM has a remote MAC to send to. They are
        not a fault of the file: an instance that runs, or that a boot starts, does not depend on them."""
        return {vm.name: vm.mtu for vm in self._too_long() if vm.mtu is not None}

    def _too_long(self) -> list[Vm]:
        if self.vtep.local_jumbo:
            return []
        vnis, limit = {remote.vni for remote in self.remotes}, self.vtep.tunnel_mtu
        return [vm for vm in self.vms if vm.vni in vnis and vm.effective_mtu > limit]

    @model_validator(mode="after")
    def _fits_together(self) -> Intent:
        faults = [fault for check in _CHECKS for fault in check(self)]
        if faults:
            raise ValidationError.from_exception_data("overlay intent", faults)
        return self


def load_intent(path: Path, config: Config | None = None) -> Intent:
    """Read the overlay intent.

    Raises ConfigError with a list of faults: the faults of single values; if there are none, the values that do not fit
    together, each with both of them; and if there are none, the VMs that do not fit ``config``.
    """
    example = "ovs-hotswap overlay example"
    intent = load_toml(path, Intent, example)
    if config is not None:
        faults = config_rules.sockets(config, [vm.name for vm in intent.vms])
        refuse(path, [(f"vm[{number}].name", text) for number, text in faults], example)
    return intent


Entry = TypeVar("Entry", Vm, Remote, Neighbour, Route)


def _fault(location: tuple[int | str, ...], text: str) -> InitErrorDetails:
    # The input is given as a table so that the report does not repeat it: the text names the values.
    return {"type": PydanticCustomError("intent", "{text}", {"text": text}), "loc": location, "input": {}}


def _repeated(
    table: str,
    key: str,
    entries: Sequence[Entry],
    value: Callable[[Entry], Hashable],
    say: Callable[[Entry, Entry], str],
) -> Iterator[InitErrorDetails]:
    """A fault for each entry whose ``value`` an earlier entry has. ``say`` makes the text from the earlier and the
    later entry."""
    first: dict[Hashable, Entry] = {}
    for index, entry in enumerate(entries):
        earlier = first.setdefault(value(entry), entry)
        if earlier is not entry:
            yield _fault((table, index, key), say(earlier, entry))


def _vm_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    vms = intent.vms
    yield from _repeated(
        "vm", "name", vms, lambda vm: vm.name,
        lambda a, b: f'two VMs are named "{b.name}" (ofport {a.ofport} and ofport {b.ofport}); each needs its own name',
    )  # fmt: skip
    yield from _repeated(
        "vm", "ofport", vms, lambda vm: vm.ofport,
        lambda a, b: f'VMs "{a.name}" and "{b.name}" both have ofport {b.ofport}; each needs its own,'
        f" {FIRST_VM_PORT} to {LAST_VM_PORT}",
    )  # fmt: skip
    yield from _repeated(
        "vm", "mac", vms, lambda vm: (vm.vni, vm.mac),
        lambda a, b: f'VMs "{a.name}" and "{b.name}" both have MAC {b.mac} in VNI {b.vni};'
        " a MAC may be used once in a VNI",
    )  # fmt: skip


def _remote_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    local = {(vm.vni, vm.mac): vm for vm in intent.vms}
    own = intent.vtep.address
    for index, remote in enumerate(intent.remotes):
        if vm := local.get((remote.vni, remote.mac)):
            text = f'remote MAC {remote.mac} in VNI {remote.vni} is also that of VM "{vm.name}"; remove one of them'
            yield _fault(("remote", index, "mac"), text)
        if remote.vtep == own:
            text = f"remote MAC {remote.mac} in VNI {remote.vni} has this host's own VTEP {own}; name the other host's"
            yield _fault(("remote", index, "vtep"), text)
    yield from _repeated(
        "remote", "mac", intent.remotes, lambda remote: (remote.vni, remote.mac),
        lambda a, b: f"remote MAC {b.mac} in VNI {b.vni} is given twice, behind VTEP {a.vtep} and VTEP {b.vtep};"
        " allowed: once",
    )  # fmt: skip


def _neighbour_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    own, network = intent.vtep.address, intent.vtep.network
    for index, neighbour in enumerate(intent.neighbours):
        if neighbour.address == own:
            yield _fault(("neighbour", index, "address"), f"{own} is this host's own VTEP, not a neighbour of it")
        elif IPv4Address(neighbour.address) not in network:
            text = f"{neighbour.address} is not on-link at the VTEP; allowed: addresses in {network}"
            yield _fault(("neighbour", index, "address"), text)
        elif _is_all(IPv4Address(neighbour.address), network):
            text = f"{neighbour.address} is the network or broadcast address of {network}, not that of a host"
            yield _fault(("neighbour", index, "address"), text)
        if neighbour.mac == intent.vtep.mac:
            text = f"neighbour {neighbour.address} has the VTEP's own MAC {neighbour.mac}; give the neighbour's"
            yield _fault(("neighbour", index, "mac"), text)
    yield from _repeated(
        "neighbour", "address", intent.neighbours, lambda neighbour: neighbour.address,
        lambda a, b: f"neighbour {b.address} is given twice, with MAC {a.mac} and MAC {b.mac}; allowed: once",
    )  # fmt: skip


def _route_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    own, network = intent.vtep.address, intent.vtep.network
    known = {neighbour.address for neighbour in intent.neighbours}
    for index, route in enumerate(intent.routes):
        where = ("route", index, "gateway")
        if route.gateway == own:
            yield _fault(where, f"the gateway of {route.destination} is this host's own VTEP {own}")
        elif IPv4Address(route.gateway) not in network:
            text = f"gateway {route.gateway} of {route.destination} is not on-link; allowed: addresses in {network}"
            yield _fault(where, text)
        elif route.gateway not in known:
            text = f"gateway {route.gateway} of {route.destination} has no neighbour entry; add a [[neighbour]] with it"
            yield _fault(where, text)
        if route.destination == str(network):
            text = f"{route.destination} is on-link at the VTEP; remove this [[route]]"
            yield _fault(("route", index, "destination"), text)
        elif route.destination == f"{own}/32":
            yield _fault(("route", index, "destination"), f"{own} is this host's own VTEP; remove this [[route]]")
    yield from _repeated(
        "route", "destination", intent.routes, lambda route: route.destination,
        lambda a, b: f"{b.destination} is given twice, through gateway {a.gateway} and gateway {b.gateway};"
        " allowed: once",
    )  # fmt: skip


def _reach_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    """Check that every remote VTEP has a next hop with a known MAC. Otherwise its tunnel carries nothing."""
    own, network = intent.vtep.address, intent.vtep.network
    known = {neighbour.address for neighbour in intent.neighbours}
    destinations = [IPv4Network(route.destination) for route in intent.routes]
    lengths = sorted({item.prefixlen for item in destinations}, reverse=True)
    routed = {(int(item.network_address), item.prefixlen) for item in destinations}
    seen = {own}
    for index, remote in enumerate(intent.remotes):
        if remote.vtep in seen:
            continue
        seen.add(remote.vtep)
        address = IPv4Address(remote.vtep)
        on_link = address in network
        longest = next((n for n in lengths if (int(address) >> (32 - n) << (32 - n), n) in routed), None)
        if longest is not None and not (on_link and longest <= network.prefixlen):
            continue
        if not on_link:
            text = f"VTEP {remote.vtep} is outside {network} and no route leads to it; add a [[route]] for it"
            yield _fault(("remote", index, "vtep"), text)
        elif remote.vtep not in known:
            text = f"VTEP {remote.vtep} is on-link but has no neighbour entry; add a [[neighbour]] with its MAC"
            yield _fault(("remote", index, "vtep"), text)


def _flood_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    vms = Counter(vm.vni for vm in intent.vms)
    vteps = Counter(vni for vni, _ in {(remote.vni, remote.vtep) for remote in intent.remotes})
    for vni in sorted(vms):
        size = vms[vni] * FLOOD_BYTES_PER_VM + vteps[vni] * FLOOD_BYTES_PER_VTEP
        if size > FLOOD_BYTES:
            text = (
                f"VNI {vni} has {vms[vni]} VMs and {vteps[vni]} remote VTEPs, too many to copy a broadcast to; allowed:"
                f" {FLOOD_BYTES_PER_VM} x VMs + {FLOOD_BYTES_PER_VTEP} x VTEPs up to {FLOOD_BYTES} (it is {size});"
                " split the VNI"
            )
            yield _fault(("remote",), text)


_CHECKS = (_vm_faults, _remote_faults, _neighbour_faults, _route_faults, _reach_faults, _flood_faults)

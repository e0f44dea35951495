"""The overlay intent: which VMs, remote hosts, neighbours and routes the single bridge serves.

``load_intent`` reads the intent from TOML and checks it as a whole, and later code relies on these checks. The time of
all checks is linear in the size of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ovs_hotswap import config_rules
from ovs_hotswap.config import Config, Program
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.errors import ConfigError
from ovs_hotswap.mac import Mac
from ovs_hotswap.overlay.ports import FIRST_VM_PORT, LAST_VM_PORT
from ovs_hotswap.overlay.values import (
    Addresses,
    Destination,
    Interface,
    InterfaceAddress,
    Ip,
    Network,
    VmName,
    Vni,
    is_all,
)
from ovs_hotswap.toml_file import Strict, load_toml, refuse

# A broadcast becomes one list of datapath actions, and OVS gives up above 64 KiB of them (ofproto-dpif-xlate.c,
# xlate_resubmit_resource_check). Measured with ofproto/trace on OVS 3.1: 28 bytes per VM, and per remote VTEP 84 over
# IPv4, 104 over IPv6, 8 more for a VLAN tag. Geneve without options takes as many as VXLAN.
FLOOD_BYTES = 65_000
FLOOD_BYTES_PER_VTEP = 88
FLOOD_BYTES_PER_VM = 32
FLOOD_BYTES_PER_SAMPLE = 92  # of the flow log, for each VM that is logged (xlate_sample_action)

ETHERNET_MTU = 1500  # the MTU that a switch gives to a port that has none of its own
IPV6_MTU = 1280  # the least that every link of IPv6 has (RFC 8200, section 5)
# Over IPv4: Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348, figure 1). Geneve has as many if it has no options
# (RFC 8926, section 3.4), and IPv6 takes 20 more. A VLAN tag is no part of the IP packet.
TUNNEL_BYTES = 50
IPV6_BYTES_MORE = 20

TUNNEL_PORTS = {"vxlan": 4789, "geneve": 6081}  # RFC 7348, section 5; RFC 8926, section 3.3


class Vtep(Strict):
    """This host's end of the tunnels. ``mac`` is the MAC of the bridge, and so of the uplink's physical function; an
    instance with an ``uplink_mac`` has that one instead.

    ``link_addresses``: this host's addresses on the links to its next hops, if the VTEP's own is on none of them.
    ``mtu``: the MTU of the underlay, in bytes; ``None`` leaves it to the switch (1500). ``vlan``: the tag of the
    underlay's packets. ``udp_port``: that of the tunnels, if it is not the one of their kind. ``local_jumbo``: VMs may
    have an MTU that does not fit into the tunnels, for packets between VMs on this host.
    """

    interface: Interface = Field(alias="address")
    mac: Mac
    link_addresses: Annotated[tuple[Interface, ...], Field(strict=False)] = ()
    mtu: Annotated[int, Field(ge=576, le=9600)] | None = None
    vlan: Annotated[int, Field(ge=1, le=4094)] | None = None
    tunnel: Literal["vxlan", "geneve"] = "vxlan"
    udp_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    local_jumbo: bool = False

    @property
    def port(self) -> int:
        """The UDP port to which tunnels send."""
        return TUNNEL_PORTS[self.tunnel] if self.udp_port is None else self.udp_port

    @property
    def options(self) -> dict[str, str]:
        """The options of the port of the tunnels (ovs-vswitchd.conf.db(5))."""
        port = {} if self.udp_port is None else {"dst_port": str(self.udp_port)}
        return {"key": "flow", "remote_ip": "flow", "local_ip": self.address, **port}

    @property
    def tunnel_bytes(self) -> int:
        """What a tunnel adds to an IP packet of a VM, in bytes."""
        return TUNNEL_BYTES + (IPV6_BYTES_MORE if self.version == 6 else 0)

    @property
    def tunnel_mtu(self) -> int:
        """The longest IP packet of a VM that a tunnel carries, in bytes."""
        return (ETHERNET_MTU if self.mtu is None else self.mtu) - self.tunnel_bytes

    @property
    def flood_bytes(self) -> int:
        """What a copy of a broadcast to another VTEP takes of ``FLOOD_BYTES``."""
        return FLOOD_BYTES_PER_VTEP + self.tunnel_bytes - TUNNEL_BYTES + (0 if self.vlan is None else 8)

    @property
    def version(self) -> int:
        """4 or 6: the version of IP of the underlay."""
        return self.network.version

    @property
    def address(self) -> str:
        """The address without its prefix."""
        return str(ip_interface(self.interface).ip)

    @property
    def prefix(self) -> int:
        """The length of the prefix in bits."""
        return self.network.prefixlen

    @property
    def network(self) -> Network:
        """The addresses that are on-link at the VTEP's own address."""
        return self.interfaces[0].network

    @cached_property
    def interfaces(self) -> tuple[InterfaceAddress, ...]:
        """This host's addresses on the underlay: the VTEP's own, and those on the links."""
        return tuple(ip_interface(each) for each in (self.interface, *self.link_addresses))

    def interface_to(self, address: str) -> InterfaceAddress | None:
        """This host's address on the link to ``address``; ``None`` if that is not on-link."""
        host = ip_address(address)
        return next((each for each in self.interfaces if host in each.network), None)


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
    """An on-link host of the underlay. Without ``mac``, its MAC address is asked for and followed."""

    address: Ip
    mac: Mac | None = None


class Route(Strict):
    """A network of the underlay behind an on-link gateway. ``gateways``: one, or several in the order of preference, of
    which the first one that answers is used."""

    destination: Destination
    gateways: Addresses = Field(alias="gateway", strict=False)

    @property
    def gateway(self) -> str:
        """The preferred gateway."""
        return self.gateways[0]


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

    def with_mac(self, mac: str) -> Intent:
        """Return the intent as an instance has it whose VTEP has this MAC."""
        return self.model_copy(update={"vtep": self.vtep.model_copy(update={"mac": mac})})

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
        faults = [*_version_faults(self)] or [fault for check in _CHECKS for fault in check(self)]
        if faults:
            raise ValidationError.from_exception_data("overlay intent", faults)
        return self


def load_intent(path: Path, config: Config | None = None) -> Intent:
    """Read the overlay intent.

    Raises ConfigError with a list of faults: the faults of single values; if there are none, the values that do not fit
    together, each with both of them; and if there are none, the VMs that do not fit ``config``.
    """
    example = "ovs-hotswap overlay example"
    if config is not None and config.program is Program.CLONE:
        raise ConfigError(
            'others program the bridges of this host (program = "clone"), so it has no overlay intent',
            hint="the active instance's own tools, such as `ovs-vsctl show`, show them",
        )
    intent = load_toml(path, Intent, example)
    if config is not None:
        faults = config_rules.sockets(config, [vm.name for vm in intent.vms])
        refuse(path, [(f"vm[{number}].name", text) for number, text in faults], example)
        refuse(path, [("vm", text) for text in _logged_floods(intent, config.flowlog)], example)
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


def _version_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    """Check that everything of the underlay is of the VTEP's version of IP, and that its MTUs are possible with it."""
    own, version = intent.vtep.address, intent.vtep.version
    places = [
        *((("remote", index, "vtep"), remote.vtep) for index, remote in enumerate(intent.remotes)),
        *((("neighbour", index, "address"), each.address) for index, each in enumerate(intent.neighbours)),
        *((("route", index, "destination"), route.destination) for index, route in enumerate(intent.routes)),
        *((("route", index, "gateway"), route.gateway) for index, route in enumerate(intent.routes)),
    ]
    for where, text in places:
        other = ip_interface(text).version
        if other != version:
            yield _fault(where, f"{text} is of IPv{other}, but VTEP {own} of IPv{version}; both must be alike")
    if version == 4:
        return
    if intent.vtep.mtu is not None and intent.vtep.mtu < IPV6_MTU:
        yield _fault(("vtep", "mtu"), f"{own} is of IPv6, which needs an MTU of {IPV6_MTU}; it is {intent.vtep.mtu}")
    for index, vm in enumerate(intent.vms):
        if vm.effective_mtu < IPV6_MTU:
            # A bridge has the least MTU of its ports (ofproto.c, find_min_mtu), and below 1280 the kernel takes its
            # IPv6 addresses away (net/ipv6/addrconf.c, addrconf_notify): the VTEP would have none.
            text = f'VM "{vm.name}" has MTU {vm.mtu}, and with VTEP {own} a bridge needs {IPV6_MTU} on all its ports'
            yield _fault(("vm", index, "mtu"), text)


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


def _link_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    own, *links = intent.vtep.interfaces
    for index, link in enumerate(links):
        if link.ip == own.ip:
            yield _fault(("vtep", "link_addresses", index), f"{link.ip} is the VTEP's own; list those beside it")


def _on_link(intent: Intent) -> str:
    """The networks that are on-link, in words."""
    networks = [each.network for each in intent.vtep.interfaces]
    return ", ".join(str(each) for each in networks if each.num_addresses > 1 or len(networks) == 1)


def _strange(intent: Intent, address: str) -> str | None:
    """Why ``address`` cannot be that of a next hop; ``None`` if it can."""
    link = intent.vtep.interface_to(address)
    if address == intent.vtep.address:
        return f"is this host's own VTEP {address}"
    if link is None:
        return f"is not on-link at the VTEP; allowed: addresses in {_on_link(intent)}"
    if address == str(link.ip):
        return f"is this host's own address on the link {link}"
    if is_all(ip_address(address), link.network):
        return f"is the network or broadcast address of {link.network}, not that of a host"
    return None


def _neighbour_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    for index, neighbour in enumerate(intent.neighbours):
        if fault := _strange(intent, neighbour.address):
            yield _fault(("neighbour", index, "address"), f"neighbour {neighbour.address} {fault}")
        if neighbour.mac == intent.vtep.mac:
            text = f"neighbour {neighbour.address} has the VTEP's own MAC {neighbour.mac}; give the neighbour's"
            yield _fault(("neighbour", index, "mac"), text)
    yield from _repeated(
        "neighbour", "address", intent.neighbours, lambda neighbour: neighbour.address,
        lambda a, b: f"neighbour {b.address} is given twice, with {_mac_of(a)} and {_mac_of(b)}; allowed: once",
    )  # fmt: skip


def _mac_of(neighbour: Neighbour) -> str:
    return f"MAC {neighbour.mac}" if neighbour.mac else "no MAC"


def _route_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    known = {neighbour.address for neighbour in intent.neighbours}
    networks = {str(each.network) for each in intent.vtep.interfaces}
    for index, route in enumerate(intent.routes):
        for number, gateway in enumerate(route.gateways):
            fault = _strange(intent, gateway)
            if fault is None and gateway not in known:
                fault = "has no neighbour entry; add a [[neighbour]] with it"
            elif fault is None and gateway in route.gateways[:number]:
                fault = "is listed twice; allowed: once"
            if fault:
                yield _fault(("route", index, "gateway"), f"gateway {gateway} of {route.destination} {fault}")
        if route.destination == f"{intent.vtep.address}/{intent.vtep.network.max_prefixlen}":
            text = f"{intent.vtep.address} is this host's own VTEP; remove this [[route]]"
            yield _fault(("route", index, "destination"), text)
        elif route.destination in networks:
            text = f"{route.destination} is on-link at the VTEP; remove this [[route]]"
            yield _fault(("route", index, "destination"), text)
    yield from _repeated(
        "route", "destination", intent.routes, lambda route: route.destination,
        lambda a, b: f"{b.destination} is given twice, through gateway {', '.join(a.gateways)} and gateway "
        f"{', '.join(b.gateways)}; allowed: once, and several gateways as a list",
    )  # fmt: skip


def _reach_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    """Check that every remote VTEP has a next hop in the file. Otherwise its tunnel carries nothing."""
    known = {neighbour.address for neighbour in intent.neighbours}
    destinations = [ip_network(route.destination) for route in intent.routes]
    lengths = sorted({item.prefixlen for item in destinations}, reverse=True)
    routed = {(int(item.network_address), item.prefixlen) for item in destinations}
    seen = {intent.vtep.address}
    for index, remote in enumerate(intent.remotes):
        if remote.vtep in seen:
            continue
        seen.add(remote.vtep)
        address, link = ip_address(remote.vtep), intent.vtep.interface_to(remote.vtep)
        width = address.max_prefixlen
        longest = next((n for n in lengths if (int(address) >> (width - n) << (width - n), n) in routed), None)
        if longest is not None and not (link is not None and longest <= link.network.prefixlen):
            continue
        if link is None:
            text = f"VTEP {remote.vtep} is outside {_on_link(intent)} and no route leads to it; add a [[route]] for it"
            yield _fault(("remote", index, "vtep"), text)
        elif remote.vtep not in known:
            text = f"VTEP {remote.vtep} is on-link but has no neighbour entry; add a [[neighbour]] with it"
            yield _fault(("remote", index, "vtep"), text)


def _flood_faults(intent: Intent) -> Iterator[InitErrorDetails]:
    vms = Counter(vm.vni for vm in intent.vms)
    vteps = Counter(vni for vni, _ in {(remote.vni, remote.vtep) for remote in intent.remotes})
    for vni in sorted(vms):
        size = vms[vni] * FLOOD_BYTES_PER_VM + vteps[vni] * intent.vtep.flood_bytes
        if size > FLOOD_BYTES:
            text = (
                f"VNI {vni} has {vms[vni]} VMs and {vteps[vni]} remote VTEPs, too many to copy a broadcast to; allowed:"
                f" {FLOOD_BYTES_PER_VM} x VMs + {intent.vtep.flood_bytes} x VTEPs up to {FLOOD_BYTES} (it is {size});"
                " split the VNI"
            )
            yield _fault(("remote",), text)


def _logged_floods(intent: Intent, flow_log: FlowLogConfig) -> Iterator[str]:
    """Check that a broadcast can still be copied to every VM if each copy is looked at for the flow log."""
    vms = Counter(vm.vni for vm in intent.vms)
    logged = Counter(vm.vni for vm in intent.vms if flow_log.logs(vm.name))
    vteps = Counter(vni for vni, _ in {(remote.vni, remote.vtep) for remote in intent.remotes})
    for vni, count in sorted(logged.items()):
        rest = FLOOD_BYTES - vms[vni] * FLOOD_BYTES_PER_VM - vteps[vni] * intent.vtep.flood_bytes
        if count * FLOOD_BYTES_PER_SAMPLE > rest:
            most = max(rest, 0) // FLOOD_BYTES_PER_SAMPLE
            yield (f"VNI {vni} has {count} VMs in the flow log, and a broadcast can be copied to all and logged for "
                   f"{most} at most; name fewer in flowlog.vms, or split the VNI")  # fmt: skip


_CHECKS = (_vm_faults, _remote_faults, _link_faults, _neighbour_faults, _route_faults, _reach_faults, _flood_faults)

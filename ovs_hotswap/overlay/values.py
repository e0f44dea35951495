"""The kinds of values in the overlay intent, beside MAC addresses: IP addresses and networks, names. Each is checked
and brought into one spelling."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from ovs_hotswap.overlay.ports import RESERVED_NAMES

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
InterfaceAddress = IPv4Interface | IPv6Interface

VNI_MAX = (1 << 24) - 1  # RFC 7348, section 5; RFC 8926, section 3.4

_NO_HOSTS = IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3


def _host(address: Address) -> None:
    wrong = address.is_multicast or address.is_loopback or address.is_reserved
    if wrong or address in _NO_HOSTS or address.is_unspecified:
        raise ValueError(f"must be the unicast IPv{address.version} address of a host; {address} cannot be one")
    if address.version == 6 and address.is_link_local:
        # Without a device, it names no host, and OVS has no route by it unless its bridge has such an address as well.
        raise ValueError(f"must not be a link-local address: give the host's or router's other one than {address}")


def _without_zone(value: str) -> str:
    """``value``; raises ValueError if it names a device (RFC 4007, section 11), which Python allows."""
    if "%" in value:
        raise ValueError(f"{value} has a zone")
    return value


def _ip(value: str) -> str:
    try:
        address = ipaddress.ip_address(_without_zone(value))
    except ValueError:
        raise ValueError("must be an IPv4 address such as 172.31.0.2, or an IPv6 address such as fd00::2") from None
    _host(address)
    return str(address)


def _interface(value: str) -> str:
    if "/" not in value:
        raise ValueError("must have a prefix, such as 172.31.0.1/24 or fd00::1/64")
    try:
        interface = ipaddress.ip_interface(_without_zone(value))
    except ValueError:
        raise ValueError(
            "must be an IPv4 address with a prefix, such as 172.31.0.1/24, or an IPv6 one, such as fd00::1/64"
        ) from None
    _host(interface.ip)
    if is_all(interface.ip, interface.network):
        kind = "network or broadcast address" if interface.version == 4 else "routers' anycast address"
        raise ValueError(f"must be the address of a host, not the {kind} of {interface.network}")
    return str(interface)


def is_all(address: Address, network: Network) -> bool:
    """Whether an address is the network's own or its broadcast address (RFC 1122, 3.2.1.3; RFC 3021), or, of IPv6,
    that of all its routers (RFC 4291, 2.6.1; RFC 6164)."""
    own = address == network.network_address
    return network.max_prefixlen - network.prefixlen > 1 and (
        own or (network.version == 4 and address == network.broadcast_address)
    )


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _ips(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("must have at least one address, such as 172.31.0.2")
    return tuple(map(_ip, values))


def _network(value: str) -> str:
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(
            "must be a network such as 172.31.8.0/24 or fd00:8::/64, with no bit set behind the prefix"
        ) from None
    if network.is_multicast or network.is_loopback or (network.version == 6 and network.is_link_local):
        raise ValueError(f"must be a network of hosts; {network} cannot be one")
    return str(network)


def _name(value: str) -> str:
    if value in RESERVED_NAMES:
        raise ValueError(f"is the name of another port; not allowed: {', '.join(sorted(RESERVED_NAMES))}")
    return value


Ip = Annotated[str, AfterValidator(_ip)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_ips)]  # one, or a list
Interface = Annotated[str, AfterValidator(_interface)]
Destination = Annotated[str, AfterValidator(_network)]
Vni = Annotated[int, Field(ge=1, le=VNI_MAX)]
VmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$"), AfterValidator(_name)]

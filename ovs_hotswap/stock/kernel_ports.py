"""Reads the ports of the running switch that the kernel knows, and what depends on them: addresses, routes, daemons."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import CommandError
from ovs_hotswap.stock.database import Member
from ovs_hotswap.stock.facts import KernelPort
from ovs_hotswap.system import System

_LINK_SCOPE = 253  # RT_SCOPE_LINK (include/uapi/linux/rtnetlink.h): the addresses that the kernel makes
_USER = re.compile(r'"(?P<name>[^"]+)",pid=(?P<pid>\d+)')
_KINDS = frozenset({"", "system", "internal", "tap"})  # types of interfaces that are devices of the kernel


def kernel_ports(members: Collection[Member], system: System, unreadable: list[str]) -> tuple[KernelPort, ...]:
    """Return the ports. What cannot be read is appended to ``unreadable``."""
    wanted = [each for each in members if each.interface["type"] in _KINDS and each.bridge["datapath_type"] == "netdev"]
    if not wanted:
        return ()
    try:
        with IPRoute() as ip:
            indexes = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
            addresses, routes = list(ip.get_addr()), list(ip.get_routes())
    except (OSError, NetlinkError) as error:
        unreadable.append(f"the kernel's network devices: {error}")
        return ()
    listening = _listeners(system)
    return tuple(_port(each, indexes.get(each.name), addresses, routes, listening) for each in wanted)


def _port(
    member: Member, link: Any, addresses: Iterable[Any], routes: Iterable[Any], listening: Iterable[tuple[str, str]]
) -> KernelPort:
    kind = "internal" if member.interface["type"] == "internal" else str(_kind_of(link) or "device")
    if link is None:
        return KernelPort(member.name, str(member.bridge["name"]), kind)
    own = [each for each in addresses if each["index"] == link["index"] and each["scope"] != _LINK_SCOPE]
    found = tuple(f"{each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}" for each in own)
    over = [
        each for each in routes
        if each.get_attr("RTA_OIF") == link["index"] and each["type"] == 1 and each["family"] == socket.AF_INET
    ]  # fmt: skip
    return KernelPort(
        member.name, str(member.bridge["name"]), kind, found, len(over),
        tuple(sorted({who for local, who in listening if _concerns(local, member.name, found)})),
    )  # fmt: skip


def _kind_of(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO") if link is not None else None
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return "tap" if kind == "tun" else kind


def _listeners(system: System) -> list[tuple[str, str]]:
    """Return each local address on which a process waits for packets, with the process. The list is only for people:
    without ss(8) it is empty."""
    try:
        return parse_listeners(system.run(["ss", "-H", "-l", "-n", "-t", "-u", "-p"], timeout=10.0).stdout)
    except CommandError:
        return []


def parse_listeners(text: str) -> list[tuple[str, str]]:
    """Return the fifth column of each line of ss(8), and the processes in the last one as ``NAME (PID)``."""
    found = []
    for line in text.splitlines():
        columns = line.split()
        if len(columns) > 4:
            found += [(columns[4], f"{user['name']} ({user['pid']})") for user in _USER.finditer(line)]
    return found


def _concerns(local: str, device: str, addresses: Iterable[str]) -> bool:
    """Whether a local address, such as ``10.0.0.1%br-ex:67``, is one of a device or is bound to it."""
    place = local.rpartition(":")[0].strip("[]")
    address, _, bound = place.partition("%")
    return bound.strip("[]") == device or address.strip("[]") in {each.partition("/")[0] for each in addresses}

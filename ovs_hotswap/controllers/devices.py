"""A network device of the host as the kernel has it: its settings, and what hangs on it.

It works in the network namespace of the calling thread (``uplink.frames.in_namespace``).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.controllers.netlink_records import RTA_NH_ID, Entry, Kind
from ovs_hotswap.errors import HostError
from ovs_hotswap.system import files

SYSCTL = Path("/proc/sys/net")
IFF_UP = 0x1
_IFF_SETTABLE = 0x1 | 0x80 | 0x100 | 0x200 | 0x1000  # up, noarp, promisc, allmulti, multicast (netdevice(7))
_PLACES = ("ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh")
_PLAIN_QUEUES = frozenset({"noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "sfq", "noop", ""})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a device. ``flags``: those of SIOCSIFFLAGS. ``sysctls``: by the path below /proc/sys/net, with
    ``*`` for the device's name."""

    flags: int
    mac: str
    mtu: int
    queue: int
    alias: str
    group: int
    sysctls: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A device. ``tap``: whether it is a tap of a process. ``on_it``: names of devices that are made on top of it.
    ``part_of``: the bridge, bond or VRF that it is a part of. ``queueing``: its queueing discipline. ``other_names``:
    the alternative names that it has."""

    index: int
    name: str
    settings: Settings
    tap: bool = False
    on_it: tuple[str, ...] = ()
    part_of: str = ""
    queueing: str = ""
    other_names: tuple[str, ...] = ()


def bound(link: Link, entries: list[Entry]) -> list[str]:
    """Return what cannot pass from one device to another of the same name, in words for people. This is pure."""
    found = [f"{name} is made on top of it" for name in link.on_it]
    if link.part_of:
        found.append(f"it is a part of {link.part_of}")
    if link.queueing not in _PLAIN_QUEUES:
        found.append(f"it has the queueing discipline {link.queueing}")
    found += [f"it has the alternative name {name}" for name in link.other_names]
    if any(each.kind is Kind.ROUTE and each.has(RTA_NH_ID) for each in entries):
        found.append("routes go through nexthop objects on it")
    return found


class Devices:
    """The devices of this namespace, through one socket of rtnetlink. Every method raises HostError."""

    def __init__(self) -> None:
        with _named():
            self._route: Any = IPRoute()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def named(self, name: str) -> Link | None:
        with _named():
            return next((self._link(each) for each in self._dump() if each.get_attr("IFLA_IFNAME") == name), None)

    def numbered(self, index: int) -> Link | None:
        with _named():
            return next((self._link(each) for each in self._dump() if each["index"] == index), None)

    def rename(self, index: int, name: str) -> None:
        """Rename a device, which is down if the kernel needs that (before Linux 6.2), and then without addresses."""
        with _named():
            try:
                self._route.link("set", index=index, ifname=name)
            except NetlinkError as error:
                if error.code != errno.EBUSY:
                    raise
                self._route.link("set", index=index, state="down")
                self._route.link("set", index=index, ifname=name)

    def set_up(self, index: int, *, up: bool) -> None:
        with _named():
            self._route.link("set", index=index, state="up" if up else "down")

    def remove(self, index: int) -> None:
        """Remove a device; it is no error if it is gone."""
        with _named():
            try:
                self._route.link("del", index=index)
            except NetlinkError as error:
                if error.code not in (errno.ENODEV, errno.EINVAL):
                    raise

    def bring(self, index: int, wanted: Settings, *, up: bool) -> tuple[str, ...]:
        """Give a device these settings, and set it up or leave it as it is; return what the kernel refuses, in words
        for people. No address of IPv6 is asked for while it is set up: the other device has just had it."""
        link = self.numbered(index)
        if link is None:
            raise HostError(f"network device {index} is gone", hint="`ip link`")
        own, refused = link.settings, []
        pairs: dict[str, tuple[object, object]] = {
            "address": (wanted.mac, own.mac), "mtu": (wanted.mtu, own.mtu), "txqlen": (wanted.queue, own.queue),
            "ifalias": (wanted.alias, own.alias), "group": (wanted.group, own.group),
        }  # fmt: skip
        for name, (value, present) in pairs.items():
            if value == present:
                continue
            try:
                with _named():
                    self._route.link("set", index=index, **{name: value})
            except HostError as error:
                refused.append(f"{link.name}: {name} {value}: {error.message}")
        for name, text in wanted.sysctls.items():
            if own.sysctls.get(name) != text:
                refused += _write(link.name, name, text)
        if up:
            refused += self._set_up(link, wanted)
        return tuple(refused)

    def _set_up(self, link: Link, wanted: Settings) -> list[str]:
        duplicates = "ipv6/conf/*/accept_dad"
        before = wanted.sysctls.get(duplicates)
        refused = _write(link.name, duplicates, "0") if before is not None else []
        flags = wanted.flags & _IFF_SETTABLE
        with _named():
            self._route.link("set", index=link.index, flags=flags, change=_IFF_SETTABLE)
        return refused

    def settle(self, index: int, wanted: Settings) -> None:
        """Put back what ``bring`` has changed for the time in which addresses are given."""
        link = self.numbered(index)
        if link is not None and (before := wanted.sysctls.get("ipv6/conf/*/accept_dad")) is not None:
            _write(link.name, "ipv6/conf/*/accept_dad", before)

    def _dump(self) -> list[Any]:
        return list(self._route.get_links())

    def _link(self, message: Any) -> Link:
        index, name = message["index"], str(message.get_attr("IFLA_IFNAME"))
        links = self._dump()
        names = {each["index"]: str(each.get_attr("IFLA_IFNAME")) for each in links}
        settings = Settings(
            message["flags"] & _IFF_SETTABLE, str(message.get_attr("IFLA_ADDRESS")),
            int(message.get_attr("IFLA_MTU")), int(message.get_attr("IFLA_TXQLEN") or 0),
            str(message.get_attr("IFLA_IFALIAS") or ""), int(message.get_attr("IFLA_GROUP") or 0), _sysctls(name),
        )  # fmt: skip
        info = message.get_attr("IFLA_LINKINFO")
        more = message.get_attr("IFLA_PROP_LIST")
        return Link(
            index, name, settings,
            tap=info is not None and info.get_attr("IFLA_INFO_KIND") == "tun",
            on_it=tuple(names[each["index"]] for each in links if _is_on(each, index)),
            part_of=names.get(message.get_attr("IFLA_MASTER"), ""),
            queueing=str(message.get_attr("IFLA_QDISC") or ""),
            other_names=tuple(str(value) for key, value in more["attrs"] if key == "IFLA_ALT_IFNAME") if more else (),
        )  # fmt: skip


def _is_on(link: Any, index: int) -> bool:
    """Whether a device is made on top of that with ``index``, which it names by its number in its own namespace."""
    elsewhere = link.get_attr("IFLA_LINK_NETNSID") is not None
    return link.get_attr("IFLA_LINK") == index and link["index"] != index and not elsewhere


def _sysctls(name: str) -> dict[str, str]:
    found = {}
    for place in _PLACES:
        with contextlib.suppress(OSError):  # a kernel without IPv6, or a device that has gone
            for path in sorted((SYSCTL / place / name).iterdir()):
                with contextlib.suppress(OSError):  # one that has no value
                    found[f"{place}/*/{path.name}"] = path.read_text().strip()
    return found


def _write(device: str, name: str, text: str) -> list[str]:
    """Write a sysctl; return the cause if the kernel refuses."""
    path = SYSCTL / name.replace("*", device, 1)
    try:
        with files(path):
            path.write_text(text)
    except HostError as error:
        return [error.message]
    return []


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except (OSError, NetlinkError) as error:
        raise HostError(f"the host's network devices: {error}") from error

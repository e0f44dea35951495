"""Network namespaces of the instances, and the devices and addresses in them (rtnetlink, through pyroute2)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_SETLINK

from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.model import Device
from ovs_hotswap.uplink.frames import in_namespace

DIRECTORY = "/run/netns"  # where ip-netns(8) keeps them
IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h
LOOPBACK_INDEX = 1  # the same in every namespace (drivers/net/loopback.c)


class Namespaces:
    """The kernel's network namespaces. Every method raises SwitchError, which names the namespace or device."""

    def exists(self, name: str) -> bool:
        return name in netns.listnetns()

    def holds(self, name: str, pid: int) -> bool:
        """Whether process ``pid`` is in the namespace."""
        try:
            return os.path.samefile(f"{DIRECTORY}/{name}", f"/proc/{pid}/ns/net")
        except OSError:
            return False

    def create(self, name: str) -> None:
        """Make the namespace, and set its loopback up."""
        try:
            netns.create(name)
        except OSError as error:
            raise SwitchError(f"network namespace {name} cannot be made: {error}") from error
        self.set_loopback_up(name)

    def set_loopback_up(self, name: str) -> None:
        try:
            with self._links(name) as route:
                route.link("set", index=LOOPBACK_INDEX, state="up")
        except (OSError, NetlinkError) as error:
            raise SwitchError(f"network namespace {name}: its loopback cannot be set up: {error}") from error

    def remove(self, name: str) -> None:
        """Remove the namespace if it exists; virtual devices in it are removed with it."""
        if not self.exists(name):
            return
        try:
            netns.remove(name)
        except OSError as error:
            raise SwitchError(f"network namespace {name} cannot be removed: {error}") from error

    def look(self, name: str, namespace: str | None) -> Device | None:
        """Return the device as it is in ``namespace``, or ``None`` if it is not there."""
        with self._told(namespace) as route:
            index = _index(route, name)
            if index is None:
                return None
            return Device(name, namespace, route.get_links(index)[0]["state"] == "up")

    def mtu(self, name: str, namespace: str | None) -> tuple[int, int | None] | None:
        """Return the device's MTU and the largest one that its driver takes (``None`` if the kernel does not say), in
        bytes; ``None`` if it is not in ``namespace``."""
        with self._told(namespace) as route:
            index = _index(route, name)
            if index is None:
                return None
            link = route.get_links(index)[0]
            return int(link.get_attr("IFLA_MTU")), int(link.get_attr("IFLA_MAX_MTU") or 0) or None

    def move_in(self, device: Device, namespace: str) -> None:
        """Move the device from where it is into ``namespace`` and set it up there. Until it leaves, the kernel there
        neither tells its MAC on it nor takes IP packets from it: the VTEP's address is the bridge's alone."""
        try:
            self._move(device.name, device.namespace, f"{DIRECTORY}/{namespace}")
            in_namespace(namespace, lambda: silence(device.name))
            self._set(device.name, namespace, up=True)
        except (OSError, NetlinkError, UplinkError) as error:
            raise SwitchError(f"network device {device.name} cannot be moved to {namespace}: {error}") from error

    def move_back(self, device: Device, namespace: str) -> None:
        """Undo ``move_in``. Nothing happens if the device has left ``namespace`` or either namespace is gone.

        If the namespace from which the device came is gone, the kernel gives a physical device to the initial namespace
        and removes a virtual one, as soon as ``namespace`` is removed.
        """
        if not self.exists(namespace) or self.look(device.name, namespace) is None:
            return
        if device.namespace is not None and not self.exists(device.namespace):
            return
        try:
            target = f"{DIRECTORY}/{device.namespace}" if device.namespace else "/proc/self/ns/net"
            self._move(device.name, namespace, target)
            self._set(device.name, device.namespace, up=device.up)
        except (OSError, NetlinkError) as error:
            raise SwitchError(f"network device {device.name} cannot be moved out of {namespace}: {error}") from error

    def put_address(self, device: str, address: str, prefix: int, namespace: str) -> None:
        """Give the device the address, unless it has it, and set it up. An IPv6 address is there at once: the kernel
        does not ask other hosts whether one of them has it (RFC 4862, 5.4), because the other instance does."""
        with self._told(namespace) as route:
            index = _index(route, device)
            if index is None:
                raise SwitchError(f"there is no network device {device} in network namespace {namespace}")
            try:
                route.link("set", index=index, state="up")
                flags = IFA_F_NODAD if ":" in address else 0
                route.addr("add", index=index, address=address, prefixlen=prefix, flags=flags)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise SwitchError(f"{device} in {namespace}: address {address}/{prefix}: {error}") from error

    def remove_address(self, device: str, address: str, prefix: int, namespace: str) -> None:
        """Take the address from the device, if it has it."""
        with self._told(namespace) as route:
            index = _index(route, device)
            if index is None:
                return
            try:
                route.addr("del", index=index, address=address, prefixlen=prefix)
            except NetlinkError as error:
                if error.code != errno.EADDRNOTAVAIL:
                    raise SwitchError(f"{device} in {namespace}: address {address}/{prefix}: {error}") from error

    def addresses(self, device: str, namespace: str) -> set[str]:
        """Return the device's addresses as ``address/prefix``; the set is empty if there is no such device."""
        with self._told(namespace) as route:
            index = _index(route, device)
            found = route.get_addr(index=index) if index is not None else ()
            return {f"{entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}" for entry in found}

    @contextlib.contextmanager
    def _told(self, namespace: str | None) -> Iterator[Any]:
        """Yield what ``_links`` yields, for a block that need not say more of a fault than namespace and cause."""
        try:
            with self._links(namespace) as route:
                yield route
        except (OSError, NetlinkError) as error:
            where = f"network namespace {namespace}" if namespace else "the host's network devices"
            raise SwitchError(f"{where}: {error}") from error

    @contextlib.contextmanager
    def _links(self, namespace: str | None) -> Iterator[Any]:
        """Yield rtnetlink in ``namespace``, which must exist: this never makes it. Raises SwitchError."""
        if namespace is not None and not self.exists(namespace):
            raise SwitchError(f"there is no network namespace {namespace}")
        with IPRoute(netns=namespace, flags=0) if namespace else IPRoute() as route:
            yield route

    def _move(self, device: str, source: str | None, target: str) -> None:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._links(source) as route:
                route.link("set", index=_index(route, device), net_ns_fd=descriptor)
        finally:
            os.close(descriptor)

    def _set(self, device: str, namespace: str | None, *, up: bool) -> None:
        with self._links(namespace) as route:
            route.link("set", index=_index(route, device), state="up" if up else "down")


_RP_FILTER, _ARP_IGNORE = 8, 19  # include/uapi/linux/ip.h
_AF_SPEC, _INET_CONF, _INET6_ADDR_GEN_MODE, _NO_ADDRESS = 26, 1, 8, 1  # include/uapi/linux/if_link.h


class HostNamespace(Namespaces):
    """For instances in the host's own network namespace, whose name is empty: it is neither made nor removed."""

    def exists(self, name: str) -> bool:
        return True

    def holds(self, name: str, pid: int) -> bool:
        try:
            return os.path.samefile("/proc/self/ns/net", f"/proc/{pid}/ns/net")
        except OSError:
            return False

    def create(self, name: str) -> None:
        pass

    def remove(self, name: str) -> None:
        pass


def namespaces_of(name: str) -> Namespaces:
    """Return what makes and removes the network namespace ``name`` of an instance."""
    return Namespaces() if name else HostNamespace()


def silence(device: str) -> None:
    """Documentation/networking/ip-sysctl.rst: no answers to ARP for any address, no packet of IPv4 from an address to
    which the route leads elsewhere, which are all, and nothing of IPv6, or at least no address, if /proc/sys cannot be
    written to. A device that moves to another namespace gets that one's settings (inetdev_init, ipv6_add_dev).
    Raises OSError."""
    index = socket.if_nametoindex(device)
    conf = _attribute(_RP_FILTER, struct.pack("=I", 1)) + _attribute(_ARP_IGNORE, struct.pack("=I", 8))
    _set_family(index, _attribute(socket.AF_INET, _attribute(_INET_CONF, conf)))
    with contextlib.suppress(OSError):  # a kernel without IPv6
        _set_family(index, _attribute(socket.AF_INET6, _attribute(_INET6_ADDR_GEN_MODE, bytes([_NO_ADDRESS]))))
    with contextlib.suppress(OSError):  # the same, or a read-only /proc/sys
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


def _attribute(kind: int, value: bytes) -> bytes:
    """An attribute of netlink (include/uapi/linux/netlink.h, struct nlattr)."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _set_family(index: int, family: bytes) -> None:
    """Set a device's settings for one family of addresses, which pyroute2 can only read. rtnetlink can be written to
    also where /proc/sys cannot, as under a unit with ProtectKernelTunables= (net/ipv4/devinet.c, inet_set_link_af).
    Raises OSError."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + _attribute(_AF_SPEC, family)
    header = struct.pack("=IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(header + body)
        (code,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if code:
        raise OSError(-code, os.strerror(-code))


def _index(route: Any, device: str) -> int | None:
    return next(iter(route.link_lookup(ifname=device)), None)

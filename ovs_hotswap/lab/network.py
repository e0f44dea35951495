"""The lab's network: a host namespace with one NIC or two and their VFs, and a remote namespace with the other VTEP.

All devices are pairs of veths without offloads: DPDK's af_packet takes checksums as they are, and a partial checksum
would be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.errors import LabError
from ovs_hotswap.lab.layout import (
    FABRIC,
    OVERLAY_PREFIX,
    PF,
    REMOTE_BRIDGE,
    REMOTE_DEVICE,
    REMOTE_INNER,
    REMOTE_INNER_MAC,
    REMOTE_VTEP_MAC,
    VF_MACS,
    VNI,
    VTEP_MAC,
    VXLAN_DEVICE,
    Layout,
)
from ovs_hotswap.lab.tags import tag
from ovs_hotswap.model import Side
from ovs_hotswap.switch.netns import IFA_F_NODAD
from ovs_hotswap.system import System

OFFLOADS = ("rx", "tx", "tso", "gso", "gro")
_PERMANENT = 0x80  # NUD_PERMANENT, include/uapi/linux/neighbour.h
FLOOD = "00:00:00:00:00:00"  # the entry for MACs that have no entry of their own (bridge(8))


class Network:
    """The network namespaces of one lab. All methods raise LabError."""

    def __init__(self, layout: Layout, system: System) -> None:
        self._layout = layout
        self._system = system
        self._wire = layout.options.wire
        self._announced = self._wire.driver == "announce"
        self._host, self._remote = layout.host_namespace, layout.remote_namespace

    def up(self) -> None:
        """Make the network, unless it is complete. An incomplete network is removed first."""
        if self.complete():
            return
        self.down()
        try:
            for name in (self._host, self._remote):
                netns.create(name)
                self._inside(name, "sh", "-c", _NO_IPV6)
            with self._links(self._host) as host:
                self._make_host(host)
            with self._links(self._remote) as remote:
                self._make_remote(remote)
        except (OSError, NetlinkError) as error:
            raise LabError(f"the lab's network cannot be made: {error}") from error

    def down(self) -> None:
        """Remove the namespaces and, with them, their devices. It is not an error if there are none."""
        for name in (self._host, self._remote):
            if name in netns.listnetns():
                try:
                    netns.remove(name)
                except OSError as error:
                    raise LabError(f"network namespace {name} cannot be removed: {error}") from error

    def complete(self) -> bool:
        """Whether the network is complete. The VFs do not count: a running instance has taken its own."""
        if not {self._host, self._remote} <= set(netns.listnetns()):
            return False
        with self._links(self._host) as host, self._links(self._remote) as remote:
            stay = [name for nic in self._layout.nics for name in (nic.pf, *map(nic.representor, "ab"))]
            devices = self._layout.one_nic or all(host.link_lookup(ifname=name) for name in stay)
            index = next(iter(remote.link_lookup(ifname=VXLAN_DEVICE)), None)
            # The inner address is made last.
            return devices and index is not None and bool(list(remote.get_addr(index=index)))

    def _make_host(self, host: Any) -> None:
        host.link("set", ifname="lo", state="up")
        if self._layout.one_nic:  # its own MAC is not the VTEP's, so the kernel leaves the VTEP's packets to DPDK
            remote = {"ifname": REMOTE_DEVICE, "address": REMOTE_VTEP_MAC, "net_ns_fd": self._remote}
            host.link("add", ifname=PF, kind="veth", peer=remote)
            self._without_offloads(self._host, PF)
            host.link("set", ifname=PF, state="up")
            return
        for nic in self._layout.nics:
            # Both physical functions have one MAC, as below a bond of the host's kernel.
            own = {"address": REMOTE_VTEP_MAC} if len(self._layout.nics) == 1 else {}
            host.link(
                "add", ifname=nic.pf, kind="veth", address=VTEP_MAC,
                peer={"ifname": nic.remote, "net_ns_fd": self._remote, **own},
            )  # fmt: skip
            for side in Side:
                peer = {"ifname": nic.vf(side)} | ({"address": VF_MACS[side]} if self._announced else {})
                host.link("add", ifname=nic.representor(side), kind="veth", peer=peer)
            for name in (nic.pf, *map(nic.representor, Side), *map(nic.vf, Side)):
                self._without_offloads(self._host, name)
                host.link("set", ifname=name, mtu=self._wire.mtu, state="up")
        if self._announced:
            host.link("add", ifname=FABRIC, kind="bridge", mtu=self._wire.mtu)
            host.link("set", ifname=FABRIC, state="up")
            for name in (PF, "rep-a", "rep-b"):
                host.link("set", ifname=name, master=_index(host, FABRIC))
            return  # only the instances have the VTEP's address
        # The kernel answers ARP for the VTEP. OVS needs no answers: its neighbours are pushed.
        # In a VLAN it hears no such question, and the remote host asks none.
        self._give_address(host, self._host, PF, self._wire.vtep)

    def _make_remote(self, remote: Any) -> None:
        remote.link("set", ifname="lo", state="up")
        for nic in self._layout.nics:
            self._without_offloads(self._remote, nic.remote)
            remote.link("set", ifname=nic.remote, mtu=self._wire.mtu, state="up")
        pair = len(self._layout.nics) > 1
        device = self._make_switch(remote) if pair else REMOTE_DEVICE
        index = _index(remote, device)
        self._give_address(remote, self._remote, device, self._wire.remote_vtep)
        if self._wire.vlan is not None:
            for nic in self._layout.nics:
                tag(remote, _index(remote, nic.remote), self._wire.vlan)
        if (pair or self._wire.vlan is not None) and not self._announced:
            # The host's kernel answers ARP on that NIC alone by which its route to the remote host leads.
            remote.neigh("add", dst=self._wire.vtep, lladdr=VTEP_MAC, ifindex=index, state=_PERMANENT)
        remote.link(
            "add", ifname=VXLAN_DEVICE, kind="vxlan", address=REMOTE_INNER_MAC, vxlan_id=VNI, vxlan_learning=False,
            vxlan_port=self._wire.udp_port,
            **{"vxlan_local6" if self._wire.ipv6 else "vxlan_local": self._wire.remote_vtep},
        )  # fmt: skip
        tunnel = _index(remote, VXLAN_DEVICE)
        for mac in (FLOOD, *(guest.mac for guest in self._layout.guests)):
            remote.fdb("append", ifindex=tunnel, lladdr=mac, dst=self._wire.vtep)
        self._without_offloads(self._remote, VXLAN_DEVICE)
        remote.link("set", index=tunnel, mtu=self._wire.tunnel_mtu, state="up")
        remote.addr("add", index=tunnel, address=REMOTE_INNER, prefixlen=OVERLAY_PREFIX)

    def _give_address(self, route: Any, namespace: str, device: str, address: str) -> None:
        if self._wire.ipv6:
            self._inside(namespace, "sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
        flags = IFA_F_NODAD if self._wire.ipv6 else 0
        route.addr("add", index=_index(route, device), address=address, prefixlen=self._wire.prefix, flags=flags)

    def _make_switch(self, remote: Any) -> str:
        """Make the remote host's end of several NICs, and return its name."""
        remote.link("add", ifname=REMOTE_BRIDGE, kind="bridge", address=REMOTE_VTEP_MAC)
        index = _index(remote, REMOTE_BRIDGE)
        for nic in self._layout.nics:
            remote.link("set", ifname=nic.remote, master=index)
        remote.link("set", index=index, mtu=self._wire.mtu, state="up")
        return REMOTE_BRIDGE

    def _without_offloads(self, namespace: str, device: str) -> None:
        settings = [word for offload in OFFLOADS for word in (offload, "off")]
        self._inside(namespace, "ethtool", "-K", device, *settings)

    def _inside(self, namespace: str, *argv: str) -> None:
        self._system.run(["ip", "netns", "exec", namespace, *argv])

    @contextlib.contextmanager
    def _links(self, namespace: str) -> Iterator[Any]:
        with IPRoute(netns=namespace, flags=0) as route:
            yield route


# Without IPv6, only the frames of the tests are on the wires.
_NO_IPV6 = "for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $file ] || echo 1 >$file; done"


def _index(route: Any, device: str) -> int:
    return int(route.link_lookup(ifname=device)[0])

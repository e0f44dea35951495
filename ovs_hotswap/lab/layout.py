"""The parts of a lab: names, addresses and files, all derived from its directory and its number of guests. Pure.

Two labs in different directories have no name in common, so that several labs can run at once.

With the driver ``announce`` the host namespace has a bridge, ``fabric``, with the ports pf0, rep-a and rep-b.

    remote namespace            host namespace                     instances' namespaces
    vxlan100 -- net0 ======== pf0   rep-a ====== vf-a ........ moved to instance a
    10.100.255.254                  rep-b ====== vf-b ........ moved to instance b
                                                               guests vm1, vm2, ... (QEMU, vhost-user)

With two NICs there are net1, pf1, rep1-a, vf1-a, rep1-b and vf1-b as well, and net0 and net1 are ports of the bridge
lan0, which stands for the switch between the hosts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import ETHERNET_MTU
from ovs_hotswap.toml_file import Strict

VNI = 100
UNDERLAY_PREFIX, UNDERLAY_PREFIX_6 = 24, 64
VTEP, VTEP_6, VTEP_MAC = "172.31.0.1", "fd00:1f::1", "52:54:00:1f:00:01"
REMOTE_VTEP, REMOTE_VTEP_6, REMOTE_VTEP_MAC = "172.31.0.2", "fd00:1f::2", "52:54:00:1f:00:02"
OVERLAY_PREFIX = 16
OVERLAY_BASE = IPv4Address("10.100.0.0")
REMOTE_INNER, REMOTE_INNER_MAC = "10.100.255.254", "52:54:00:64:ff:fe"
GUEST_MTU = 1450  # 1500 less 50 bytes of VXLAN over IPv4 (RFC 7348, figure 1)
FIRST_OFPORT = 10
MAX_GUESTS = 64
VF_MACS = {Side.A: "52:54:00:1f:00:0a", Side.B: "52:54:00:1f:00:0b"}
FABRIC = "fabric"
PF, REMOTE_DEVICE, VXLAN_DEVICE = "pf0", "net0", f"vxlan{VNI}"
REMOTE = "remote"
REMOTE_BRIDGE = "lan0"
RECORD = "lab.json"
# Frames of 2048 bytes hold an MTU of 1500. 4096 of them (8 MiB) outlast a PMD thread that waits for a core.
AF_PACKET_OPTIONS = "blocksz=65536,framesz=2048,framecnt=4096,qdisc_bypass=1"


class WireOptions(Strict):
    """How the lab's host is connected to the remote host.

    ``driver``: that of the uplink. ``pair``: two NICs. ``ipv6``: the VTEPs have IPv6 addresses. ``vlan``: the tag of
    the underlay's packets. ``mtu``: that of the underlay, in bytes. ``udp_port``: that of the tunnels.
    """

    driver: Literal["tc", "announce", "exclusive"] = "tc"
    pair: bool = False
    ipv6: bool = False
    vlan: Annotated[int, Field(ge=1, le=4094)] | None = None
    mtu: Annotated[int, Field(ge=1280, le=9600)] = 1500
    udp_port: Annotated[int, Field(ge=1, le=65535)] = 4789

    @property
    def tunnel_mtu(self) -> int:
        """The longest IP packet of a guest that reaches the remote host, in bytes."""
        return self.mtu - (70 if self.ipv6 else 50)  # of VXLAN over IPv6 and IPv4 (RFC 7348, figures 1 and 2)

    @property
    def vtep(self) -> str:
        return VTEP_6 if self.ipv6 else VTEP

    @property
    def remote_vtep(self) -> str:
        return REMOTE_VTEP_6 if self.ipv6 else REMOTE_VTEP

    @property
    def prefix(self) -> int:
        """The length in bits of the prefix of both VTEPs."""
        return UNDERLAY_PREFIX_6 if self.ipv6 else UNDERLAY_PREFIX

    def devargs(self, device: str, number: int = 0) -> str:
        """DPDK's arguments for a port on ``device``, that of NIC ``number``. The driver for packet sockets takes frames
        of up to 1518 bytes, whatever its arguments say (drivers/net/af_packet, eth_dev_info); that for libpcap takes
        them as they come."""
        if self.mtu > ETHERNET_MTU:
            return f"net_pcap{number},iface={device}"
        return f"eth_af_packet{number},iface={device},{AF_PACKET_OPTIONS}"


class GuestOptions(Strict):
    """How the guests are made. Debian's cloud kernel needs 96 MiB; each queue pair gets a vCPU of its own.

    ``mtu``: the MTU of the guests; if it is more than is usual, their pings are as long wherever they are carried.
    ``device``: properties of virtio-net-pci, such as ``mrg_rxbuf=off``. ``memory_slots``: slots for memory that is
    plugged later. ``qemu``: the program. With the ``backend`` ``qemu-dual`` each guest has a vhost-user socket for each
    side, which only a QEMU of the series in qemu-patches supports. ``wire``: the underlay.
    """

    # The lab's record of an earlier version has `road`.
    backend: Annotated[BackendMode, Field(strict=False, validation_alias=AliasChoices("backend", "road"))] = (
        BackendMode.BROKER
    )
    qemu: str = "qemu-system-x86_64"

    memory_mb: Annotated[int, Field(ge=96, le=4096)] = 96
    memory_slots: Annotated[int, Field(ge=0, le=6)] = 0
    device: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_-]+=[a-z0-9]+$")], ...] = ()
    hugepages: bool = False
    queues: Annotated[int, Field(ge=1, le=8)] = 1
    mtu: Annotated[int, Field(ge=576, le=9000)] = GUEST_MTU
    ping_interval_ms: Annotated[float, Field(ge=2, le=10_000, strict=False)] = 10.0
    wire: WireOptions = WireOptions()


@dataclass(frozen=True, slots=True)
class NicLayout:
    """One NIC: the physical function ``pf``, its other end ``remote``, and a representor and a VF for each side."""

    number: int

    @property
    def pf(self) -> str:
        return f"pf{self.number}"

    @property
    def remote(self) -> str:
        return f"net{self.number}"

    def representor(self, side: str) -> str:
        return f"rep-{side}" if self.number == 0 else f"rep{self.number}-{side}"

    def vf(self, side: str) -> str:
        return f"vf-{side}" if self.number == 0 else f"vf{self.number}-{side}"


@dataclass(frozen=True, slots=True)
class Target:
    """A host that a guest pings. ``name``: the name of a guest, or ``remote``."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class GuestLayout:
    """One guest. ``number`` counts from 1."""

    number: int
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        return guest_name(self.number)

    @property
    def mac(self) -> str:
        return f"52:54:00:64:{self.number >> 8:02x}:{self.number & 0xFF:02x}"

    @property
    def address(self) -> str:
        return guest_address(self.number)

    @property
    def ofport(self) -> int:
        return FIRST_OFPORT + self.number - 1


def guest_name(number: int) -> str:
    return f"vm{number}"


def guest_address(number: int) -> str:
    return str(OVERLAY_BASE + number)


def partner(number: int, count: int) -> int | None:
    """The number of the guest that guest ``number`` of ``count`` pings, which is half of ``count`` away.

    If the guests are moved in order, the two of a pair are on different instances for half of the window. With an odd
    ``count``, the last guest pings guest 1. A single guest has no partner.
    """
    half = count // 2
    if count < 2:
        return None
    if number <= half:
        return number + half
    return number - half if number <= 2 * half else 1


@dataclass(frozen=True, slots=True)
class Layout:
    """A lab of ``count`` guests below ``directory``, which is absolute."""

    directory: Path
    count: int
    options: GuestOptions

    @property
    def tag(self) -> str:
        return hashlib.sha1(bytes(self.directory)).hexdigest()[:8]

    @property
    def host_namespace(self) -> str:
        return f"ovsl-{self.tag}-host"

    @property
    def remote_namespace(self) -> str:
        return f"ovsl-{self.tag}-remote"

    @property
    def nics(self) -> tuple[NicLayout, ...]:
        return tuple(NicLayout(number) for number in range(1 + self.options.wire.pair))

    @property
    def config_file(self) -> Path:
        return self.directory / "config.toml"

    @property
    def overlay_file(self) -> Path:
        return self.directory / "overlay.toml"

    @property
    def record_file(self) -> Path:
        return self.directory / RECORD

    @property
    def initramfs_file(self) -> Path:
        return self.directory / "initramfs.gz"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def guest_dir(self) -> Path:
        return self.directory / "vm"

    def guest_file(self, guest: str, suffix: str) -> Path:
        """The path of a file or socket of one guest, such as ``vm1.qmp``."""
        return self.guest_dir / f"{guest}.{suffix}"

    def vhost_file(self, guest: str, side: Side) -> Path:
        """The socket on which a guest's QEMU listens for a side's switch. With a broker, it is the same for both
        sides."""
        if self.options.backend is BackendMode.QEMU_DUAL:
            return self.switch_dir / f"{guest}.{side}.sock"
        return self.guest_file(guest, "sock")

    @property
    def one_nic(self) -> bool:
        """Whether the instances hand the one NIC over to each other, and there are no VFs."""
        return self.options.wire.driver == "exclusive"

    def uplink_device(self, nic: NicLayout, side: str) -> str:
        """The kernel device of a NIC that the side's instance takes."""
        return nic.pf if self.one_nic else nic.vf(side)

    @property
    def switch_dir(self) -> Path:
        """The directory of sockets to which switches of any release connect. It is below the run directory, because
        that is all that these switches see of the host."""
        return self.run_dir / "qemu"

    def report_file(self, guest: str, target: str) -> Path:
        """The file to which the guest's ping of ``target`` writes its reports."""
        return self.guest_dir / f"{guest}-{target}.pings"

    @property
    def guests(self) -> tuple[GuestLayout, ...]:
        made = []
        for number in range(1, self.count + 1):
            other = partner(number, self.count)
            near = (Target(guest_name(other), guest_address(other)),) if other else ()
            made.append(GuestLayout(number, (*near, Target(REMOTE, REMOTE_INNER))))
        return tuple(made)


def _uplink_text(layout: Layout) -> str:
    table = f"""[uplink]
driver = "{layout.options.wire.driver}"
namespace = "{layout.host_namespace}"
"""
    if layout.one_nic or layout.options.wire.driver == "announce":
        return table
    first, *others = layout.nics
    return table + _nic_text(first) + "".join(f"\n[uplink.second]\n{_nic_text(nic)}" for nic in others)


def _nic_text(nic: NicLayout) -> str:
    return f"""device = "{nic.pf}"
representor_a = "{nic.representor("a")}"
representor_b = "{nic.representor("b")}"
"""


def config_text(layout: Layout, *, memory_mb: int, cores: tuple[int, int]) -> str:
    """The lab's ``config.toml``; ``cores`` are the PMD cores of the two instances."""
    announced = layout.options.wire.driver == "announce"
    instances = "\n".join(
        f"""[instances.{side}]
pmd_cores = [{core}]
memory_mb = {memory_mb}
{_uplink_devices(layout, side)}
{f'uplink_mac = "{VF_MACS[side]}"' if announced else ""}
dpdk_extra = "--no-pci"
pmd_sleep_us = 100
"""
        for side, core in zip(Side, cores, strict=True)
    )
    return f"""# Written by `ovs-hotswap lab up`.
overlay = "{layout.overlay_file}"
run_dir = "{layout.run_dir}"
state_dir = "{layout.state_dir}"
backend = "{layout.options.backend}"

[broker]
qemu_socket = "{layout.guest_dir}/{{vm}}.sock"
# OVS 3.5 offers it, 3.1 does not: a guest that started under 3.5 could not go back.
withhold_features = ["NET_CSUM"]

[qemu]
monitor = "{layout.guest_dir}/{{vm}}.monitor"
socket = "{layout.switch_dir}/{{vm}}.{{side}}.sock"

{instances}
{_uplink_text(layout)}"""


def _uplink_devices(layout: Layout, side: str) -> str:
    """The two keys of the instance of a side that name the device of each NIC."""
    found = []
    for key, nic in zip(("uplink", "second"), layout.nics, strict=False):
        device = layout.uplink_device(nic, side)
        found.append(f'{key}_devargs = "{layout.options.wire.devargs(device, nic.number)}"\n{key}_device = "{device}"')
    return "\n".join(found)


def overlay_text(layout: Layout) -> str:
    """The lab's ``overlay.toml``."""
    wire = layout.options.wire
    vms = "\n".join(
        f"""[[vm]]
name = "{guest.name}"
ofport = {guest.ofport}
mac = "{guest.mac}"
vni = {VNI}
queues = {layout.options.queues}
mtu = {layout.options.mtu}
"""
        for guest in layout.guests
    )
    return f"""# Written by `ovs-hotswap lab up`.
[vtep]
address = "{wire.vtep}/{wire.prefix}"
mac = "{VTEP_MAC}"
{f"vlan = {wire.vlan}" if wire.vlan is not None else ""}
{f"udp_port = {wire.udp_port}" if wire.udp_port != 4789 else ""}
{f"mtu = {wire.mtu}" if wire.mtu != ETHERNET_MTU else ""}
{"local_jumbo = true" if layout.options.mtu > wire.tunnel_mtu else ""}

{vms}
[[remote]]
vni = {VNI}
mac = "{REMOTE_INNER_MAC}"
vtep = "{wire.remote_vtep}"

[[neighbour]]
address = "{wire.remote_vtep}"
mac = "{REMOTE_VTEP_MAC}"
"""

"""The devices of the uplink: IOMMU and vfio, the two virtual functions (VFs), the NIC with its driver and firmware."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import pci_address
from ovs_hotswap.doctor import boot
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.instance import numa_nodes
from ovs_hotswap.wording import ranges, some

_HERE, _PCI = Section.DEVICES, "sys/bus/pci/devices"
ABSENT = Kind(_HERE, "device", Severity.ERROR)
NO_IOMMU = Kind(_HERE, "IOMMU", Severity.ERROR)
UNSAFE = Kind(_HERE, "IOMMU", Severity.WARNING)
NO_VFIO = Kind(_HERE, "vfio-pci", Severity.ERROR)
DRIVER = Kind(_HERE, "driver", Severity.ERROR)
GROUP = Kind(_HERE, "IOMMU group", Severity.ERROR)
FAR = Kind(_HERE, "NUMA node", Severity.WARNING)
SPOOF = Kind(_HERE, "spoof checking", Severity.WARNING)
TRUST = Kind(_HERE, "trust", Severity.WARNING)
LINK = Kind(_HERE, "VF link", Severity.ERROR)
SHORT = Kind(_HERE, "MTU", Severity.ERROR)
UNSEEN = Kind(_HERE, "VF settings", Severity.UNKNOWN)
NO_FIRMWARE = Kind(_HERE, "firmware", Severity.UNKNOWN)

_VFIO = "vfio-pci"
_USER_SPACE = {_VFIO, "uio_pci_generic", "igb_uio"}
# Their DPDK drivers work beside the kernel's (DPDK doc/guides/nics, "bifurcated").
_BIFURCATED = {"mlx4_core", "mlx5_core", "mana"}
_INTEL, _AMD = "DMAR", "IVRS"  # tables of ACPI
_WITH_VFS = 1  # RTEXT_FILTER_VF (include/uapi/linux/rtnetlink.h)
_LINK_DISABLED = 2  # IFLA_VF_LINK_STATE_DISABLE (include/uapi/linux/if_link.h)
_SIOCETHTOOL, _GDRVINFO = 0x8946, 0x3  # include/uapi/linux/sockios.h, ethtool.h
_DRVINFO = struct.Struct("I32s32s32s32s32s12sIIIII")
Ask = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class VfSettings:
    """The settings of a VF in the driver of its physical function (PF); ``None`` if the driver does not report one."""

    mac: str | None = None
    spoof_checking: bool | None = None
    trusted: bool | None = None
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Nic:
    """A network device. ``firmware`` is empty if it has none, and ``None`` if its driver does not say which."""

    name: str
    driver: str
    firmware: str | None
    mtu: int


@dataclass(frozen=True, slots=True)
class Device:
    """The PCI device of a side's uplink. ``driver`` is ``None`` if it is not bound. ``group``: the drivers of the other
    devices in its IOMMU group, by address. ``number`` is that of a VF of the PF ``parent``. ``settings`` is ``None`` if
    they cannot be read."""

    side: Side
    address: str
    present: bool = True
    driver: str | None = None
    node: int | None = None
    group: Mapping[str, str] | None = None
    parent: Nic | None = None
    number: int | None = None
    settings: VfSettings | None = None


@dataclass(frozen=True, slots=True)
class Bus:
    """``iommu``: the host has IOMMU groups. ``vfio``: the module is loaded. ``unsafe``: vfio works without an IOMMU.
    ``cores`` are the NUMA nodes of each side's PMD cores. ``tables``: the firmware's descriptions of an IOMMU.
    ``without_vfs``: the network devices that could have VFs and have none."""

    iommu: bool
    vfio: bool
    unsafe: bool
    cores: Mapping[Side, frozenset[int]]
    tables: frozenset[str] = frozenset()
    without_vfs: tuple[str, ...] = ()


def addresses(config: Config) -> dict[Side, str]:
    """Return the PCI address of each side whose uplink is a PCI device."""
    found = {side: pci_address(config.instance(side).uplink_devargs) for side in Side}
    return {side: address for side, address in found.items() if address is not None}


def read_bus(root: Root, config: Config) -> Bus:
    unsafe = root.text("sys/module/vfio/parameters/enable_unsafe_noiommu_mode") in ("Y", "1")
    cores = {side: frozenset(numa_nodes(config.instance(side).pmd_cores, root.sys)) for side in Side}
    return Bus(
        bool(root.names("sys/kernel/iommu_groups")), root.exists("sys/module/vfio_pci"), unsafe, cores,
        frozenset(root.names("sys/firmware/acpi/tables")) & {_INTEL, _AMD}, tuple(_without_vfs(root)),
    )  # fmt: skip


def _without_vfs(root: Root) -> Iterator[str]:
    for address in root.names(_PCI):
        place = f"{_PCI}/{address}"
        if root.number(f"{place}/sriov_totalvfs") and not root.number(f"{place}/sriov_numvfs"):
            yield from root.names(f"{place}/net")


def read(root: Root, side: Side, address: str, ask: Ask) -> Device:
    """Read a device. ``ask`` says which firmware a network device has. The settings of a VF are not read, because the
    kernel has to be asked for them (``settings``)."""
    place = f"{root.need_directory(_PCI).relative_to(root.directory)}/{address}"
    if not root.exists(place):
        return Device(side, address, present=False)
    members = root.names(f"{place}/iommu_group/devices")
    node, pf = root.number(f"{place}/numa_node"), root.link(f"{place}/physfn")
    number = next((int(name.removeprefix("virtfn")) for name in root.names(f"{_PCI}/{pf}")
                   if name.startswith("virtfn") and root.link(f"{_PCI}/{pf}/{name}") == address), None)  # fmt: skip
    netdevs = root.names(f"{_PCI}/{pf}/net") if pf else root.names(f"{place}/net")
    return Device(
        side, address, True, root.link(f"{place}/driver"), None if node is None or node < 0 else node,
        {each: root.link(f"{_PCI}/{each}/driver") or "" for each in members if each != address},
        read_nic(root, netdevs[0], ask) if netdevs else None, number,
    )  # fmt: skip


def read_nic(root: Root, name: str, ask: Ask) -> Nic:
    driver = root.link(f"sys/class/net/{name}/device/driver") or ""
    return Nic(name, driver, ask(name) if driver else None, root.number(f"sys/class/net/{name}/mtu") or 0)


def firmware(name: str) -> str | None:
    """Ask a driver for the version of its firmware, which is nowhere in /sys (ethtool(8) -i); empty if it has none,
    ``None`` if it does not answer."""
    reply = ctypes.create_string_buffer(_DRVINFO.size)
    _DRVINFO.pack_into(reply, 0, _GDRVINFO, *[b""] * 6, 0, 0, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", name.encode(), ctypes.addressof(reply)))
        except OSError:
            return None
    found: bytes = _DRVINFO.unpack(reply.raw)[3]
    return found.partition(b"\0")[0].decode(errors="replace").strip()


def settings(nic: str, number: int) -> VfSettings | None:
    """Ask the driver of a PF for the settings of its VF ``number``; ``None`` if it has no such VF. Raises OSError."""
    try:
        with IPRoute() as route:
            (message,) = route.link("get", ifname=nic, ext_mask=_WITH_VFS)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise OSError(error.code, f"netlink: {nic}: {error}") from error
    vfs = message.get_attr("IFLA_VFINFO_LIST")
    return None if vfs is None else _of_number(vfs.get_attrs("IFLA_VF_INFO"), number)


def _of_number(vfs: Iterable[Any], number: int) -> VfSettings | None:
    for vf in vfs:
        mac = vf.get_attr("IFLA_VF_MAC")
        if mac is None or mac["vf"] != number:
            continue
        spoof, trust, link = (vf.get_attr(f"IFLA_VF_{name}") for name in ("SPOOFCHK", "TRUST", "LINK_STATE"))
        return VfSettings(
            mac["mac"], _flag(spoof, "spoofchk"), _flag(trust, "trust"),
            link is not None and link["link_state"] == _LINK_DISABLED,
        )  # fmt: skip
    return None


def _flag(attribute: Any, name: str) -> bool | None:
    """A driver that does not report a flag leaves it at -1 (net/core/rtnetlink.c)."""
    return bool(attribute[name]) if attribute is not None and attribute[name] in (0, 1) else None


# ------------------------------------------------------------------------------------------------------------ judging


def judge_bus(bus: Bus, devices: Collection[Device]) -> Iterator[Found]:
    if not devices:
        yield ok(_HERE, NO_IOMMU.check, "not needed: no PCI device is configured")
    vfio = [each for each in devices if each.present and each.driver not in _BIFURCATED]
    if not vfio:
        return
    if not bus.iommu and not bus.unsafe:
        offered = "" if bus.tables else ", and the firmware offers none"
        yield NO_IOMMU(f"the kernel uses no IOMMU{offered}: vfio-pci gives no device to DPDK", _use_iommu(bus))
    elif not bus.iommu:
        yield UNSAFE("vfio-pci works without an IOMMU: an instance's VF can write to any memory of the host",
                     _use_iommu(bus))  # fmt: skip
    else:
        yield ok(_HERE, NO_IOMMU.check, "on")
    if not bus.vfio and not {each.driver for each in vfio} & (_USER_SPACE - {_VFIO}):
        yield NO_VFIO("the kernel's module vfio-pci is not loaded",
                      "modprobe vfio-pci && echo vfio-pci > /etc/modules-load.d/vfio-pci.conf")  # fmt: skip


def _use_iommu(bus: Bus) -> str:
    if _INTEL in bus.tables:
        return boot.with_words("iommu", "intel_iommu=on iommu=pt")
    if bus.tables:  # the kernel uses AMD's by default
        return (
            f"take amd_iommu=off and iommu=off from the kernel's command line (`cat /proc/cmdline`), then {boot.REBOOT}"
        )
    return "turn VT-d or AMD-Vi on in the firmware's setup; `dmesg | grep -i -e DMAR -e AMD-Vi` says what there is"


def judge(bus: Bus, device: Device, mac: str | None, mtu: int) -> Iterator[Found]:
    """Judge one side's device. ``mac`` is that of the VTEP, from which the instance sends; ``None`` if it is not known.
    ``mtu`` is that of the underlay, in bytes."""
    name = f"instance {device.side}'s device {device.address}"
    if not device.present:
        yield ABSENT(f"{name} does not exist", _made(bus), name)
        return
    if device.driver in _BIFURCATED:
        yield ok(_HERE, DRIVER.check, f"{name}: {device.driver}, beside which DPDK has a driver of its own")
    elif device.driver not in _USER_SPACE:
        bound = f"is bound to {device.driver}" if device.driver else "has no driver"
        yield DRIVER(f"{name} {bound}, from which DPDK cannot take it",
                     f"dpdk-devbind.py -b vfio-pci {device.address}", name)  # fmt: skip
    else:
        yield ok(_HERE, DRIVER.check, f"{name}: {device.driver}")
    for other, driver in sorted((device.group or {}).items()):
        if driver and driver not in (_VFIO, "pcieport", "pci-stub") and device.driver == _VFIO:
            yield GROUP(f"{name} is in one IOMMU group with {other}, which {driver} has: vfio-pci refuses it",
                        "configure a device that has a group of its own: `ls -d /sys/kernel/iommu_groups/*/devices/*`; "
                        f"if the host does not need {other}: `dpdk-devbind.py -b vfio-pci {other}`", name)  # fmt: skip
    near = bus.cores.get(device.side, frozenset())
    if device.node is not None and near and device.node not in near:
        yield FAR(f"{name} is on NUMA node {device.node}, and all its PMD cores are on node {ranges(near)}: choose "
                  f"instances.{device.side}.pmd_cores near it",
                  f"cat /sys/devices/system/node/node{device.node}/cpulist", name)  # fmt: skip
    yield from _settings(device, name, mac)
    if device.parent is not None:
        yield from judge_nic(device.parent, mtu)


def _made(bus: Bus) -> str:
    """Return the command that makes VFs, which are gone after a boot, or the one that shows the devices."""
    seen = "lspci -D -nn | grep -i ethernet"
    commands = some([f"`echo 2 > /sys/class/net/{name}/device/sriov_numvfs`" for name in bus.without_vfs], " or ")
    return f"{commands} makes VFs, until the next boot; then `{seen}`" if commands else seen


def _settings(device: Device, name: str, mac: str | None) -> Iterator[Found]:
    found, pf, number = device.settings, device.parent, device.number
    if pf is None or number is None:
        return
    vf = f"ip link set {pf.name} vf {number}"
    if found is None:
        yield UNSEEN(f"{name} is VF {number} of {pf.name}, whose settings are not reported",
                     f"ip -d link show {pf.name}", name)  # fmt: skip
        return
    other = mac is not None and found.mac is not None and found.mac.lower() != mac.lower()
    if found.disabled:
        yield LINK(f"{name}: VF {number} of {pf.name} is disabled", f"{vf} state auto", name)
    if other and found.spoof_checking:
        yield SPOOF(f"{name} has MAC {found.mac}, sends from the VTEP's {mac}, and the NIC drops that (spoof checking)",
                    f"{vf} spoofchk off", name)  # fmt: skip
    if other and found.trusted is False:
        yield TRUST(f"{name} has MAC {found.mac} and is not trusted, so it cannot receive for the VTEP's {mac}",
                    f"{vf} trust on", name)  # fmt: skip


def judge_nic(nic: Nic, mtu: int) -> Iterator[Found]:
    if nic.mtu and nic.mtu < mtu:
        yield SHORT(f"{nic.name} has MTU {nic.mtu}, the underlay {mtu}: longer packets are lost",
                    f"ip link set {nic.name} mtu {mtu}", nic.name)  # fmt: skip
    if nic.driver and nic.firmware is None:
        yield NO_FIRMWARE(f"{nic.name} ({nic.driver}) does not say which firmware it has",
                          f"ethtool -i {nic.name}", nic.name)  # fmt: skip
    elif nic.driver:
        firmware = f"firmware {nic.firmware}" if nic.firmware else "no firmware"
        yield ok(_HERE, NO_FIRMWARE.check, f"{nic.name}: {nic.driver}, {firmware}, MTU {nic.mtu}")


def judge_kernel_devices(root: Root, config: Config, sides: Iterable[Side], mtu: int) -> Iterator[Found]:
    """Judge the kernel's devices that the instances of ``sides`` will take. A running instance has its device in a
    network namespace of its own."""
    for side in sides:
        name = config.instance(side).uplink_device
        if name is None:
            continue
        if not root.exists(f"sys/class/net/{name}"):
            yield ABSENT(f"instance {side}'s device {name} does not exist", "ip -br link", f"device {name}")
            continue
        nic = read_nic(root, name, lambda name: "")
        if nic.mtu < mtu:
            yield from judge_nic(nic, mtu)
        else:
            yield ok(_HERE, ABSENT.check, f"instance {side}'s device {name}, MTU {nic.mtu}")

"""The devices of the uplink: IOMMU and vfio, the two virtual functions (VFs), the NIC with its driver and firmware."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ovs_hotswap.config import Config
from ovs_hotswap.config_rules import pci_address
from ovs_hotswap.doctor import boot
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Kind, Section, ok
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch.machine_parts import numa_nodes
from ovs_hotswap.uplink.pci import BIFURCATED, USER_SPACE, VFIO, PciBus
from ovs_hotswap.wording import ranges, some

_HERE, _PCI = Section.DEVICES, "sys/bus/pci/devices"
ABSENT = Kind(_HERE, "device", Severity.ERROR)
NO_IOMMU = Kind(_HERE, "IOMMU", Severity.ERROR)
UNSAFE = Kind(_HERE, "IOMMU", Severity.WARNING)
NO_VFIO = Kind(_HERE, "vfio-pci", Severity.ERROR)
DRIVER = Kind(_HERE, "driver", Severity.ERROR)
GROUP = Kind(_HERE, "IOMMU group", Severity.ERROR)
FAR = Kind(_HERE, "NUMA node", Severity.WARNING)
SHORT = Kind(_HERE, "MTU", Severity.ERROR)
MALICIOUS = Kind(_HERE, "malicious driver detection", Severity.WARNING)
NO_FIRMWARE = Kind(_HERE, "firmware", Severity.UNKNOWN)

_AUTO_RESET = "mdd-auto-reset-vf"
_INTEL, _AMD = "DMAR", "IVRS"  # tables of ACPI
Ask = Callable[[str], str | None]


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
    devices in its IOMMU group, by address. ``parent``: the network device of its PF if it is a VF, otherwise its
    own."""

    side: Side
    address: str
    present: bool = True
    driver: str | None = None
    node: int | None = None
    group: Mapping[str, str] | None = None
    parent: Nic | None = None


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


def addresses(config: Config) -> list[tuple[Side, str]]:
    """Return the PCI addresses of the devices of each side's uplink, which may be no PCI devices. If both sides have
    the same, it is that of side a."""
    sides = Side if config.uplink.both_open else (Side.A,)
    found = [(side, pci_address(device)) for side in sides for device in config.instance(side).devices]
    return [(side, address) for side, address in found if address is not None]


def read_bus(root: Root, config: Config) -> Bus:
    unsafe = root.text("sys/module/vfio/parameters/enable_unsafe_noiommu_mode") in ("Y", "1")
    cores = {side: frozenset(numa_nodes(config.instance(side).pmd_cores, root.sys)) for side in Side}
    return Bus(
        PciBus(root.sys, root.proc).has_iommu(), root.exists("sys/module/vfio_pci"), unsafe, cores,
        frozenset(root.names("sys/firmware/acpi/tables")) & {_INTEL, _AMD}, tuple(_without_vfs(root)),
    )  # fmt: skip


def _without_vfs(root: Root) -> Iterator[str]:
    for address in root.names(_PCI):
        place = f"{_PCI}/{address}"
        if root.number(f"{place}/sriov_totalvfs") and not root.number(f"{place}/sriov_numvfs"):
            yield from root.names(f"{place}/net")


def read(root: Root, side: Side, address: str, ask: Ask) -> Device:
    """Read a device. ``ask`` says which firmware a network device has."""
    place = f"{root.need_directory(_PCI).relative_to(root.directory)}/{address}"
    if not root.exists(place):
        return Device(side, address, present=False)
    members = root.names(f"{place}/iommu_group/devices")
    node, pf = root.number(f"{place}/numa_node"), root.link(f"{place}/physfn")
    netdevs = root.names(f"{_PCI}/{pf}/net") if pf else root.names(f"{place}/net")
    return Device(
        side, address, True, root.link(f"{place}/driver"), None if node is None or node < 0 else node,
        {each: root.link(f"{_PCI}/{each}/driver") or "" for each in members if each != address},
        read_nic(root, netdevs[0], ask) if netdevs else None,
    )  # fmt: skip


def read_nic(root: Root, name: str, ask: Ask) -> Nic:
    driver = root.link(f"sys/class/net/{name}/device/driver") or ""
    return Nic(name, driver, ask(name) if driver else None, root.number(f"sys/class/net/{name}/mtu") or 0)


# ------------------------------------------------------------------------------------------------------------ judging


def judge_bus(bus: Bus, devices: Collection[Device]) -> Iterator[Found]:
    if not devices:
        yield ok(_HERE, NO_IOMMU.check, "not needed: no PCI device is configured")
    vfio = [each for each in devices if each.present and each.driver not in BIFURCATED]
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
    if not bus.vfio and not {each.driver for each in vfio} & (USER_SPACE - {VFIO}):
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


def judge(bus: Bus, device: Device, mtu: int, *, binds: bool = False) -> Iterator[Found]:
    """Judge one side's device. ``mtu`` is that of the underlay, in bytes. ``binds``: the start of an instance binds its
    VF to vfio-pci."""
    name = f"instance {device.side}'s device {device.address}"
    if not device.present:
        yield ABSENT(f"{name} does not exist", _made(bus), name)
        return
    if device.driver in BIFURCATED:
        yield ok(_HERE, DRIVER.check, f"{name}: {device.driver}, beside which DPDK has a driver of its own")
    elif device.driver not in USER_SPACE and binds:
        yield ok(_HERE, DRIVER.check, f"{name}: the start of instance {device.side} binds it to {VFIO}")
    elif device.driver not in USER_SPACE:
        bound = f"is bound to {device.driver}" if device.driver else "has no driver"
        yield DRIVER(f"{name} {bound}, from which DPDK cannot take it",
                     f"dpdk-devbind.py -b vfio-pci {device.address}", name)  # fmt: skip
    else:
        yield ok(_HERE, DRIVER.check, f"{name}: {device.driver}")
    for other, driver in sorted((device.group or {}).items()):
        if driver and driver not in (VFIO, "pcieport", "pci-stub") and device.driver == VFIO:
            yield GROUP(f"{name} is in one IOMMU group with {other}, which {driver} has: vfio-pci refuses it",
                        "configure a device that has a group of its own: `ls -d /sys/kernel/iommu_groups/*/devices/*`; "
                        f"if the host does not need {other}: `dpdk-devbind.py -b vfio-pci {other}`", name)  # fmt: skip
    near = bus.cores.get(device.side, frozenset())
    if device.node is not None and near and device.node not in near:
        yield FAR(f"{name} is on NUMA node {device.node}, and all its PMD cores are on node {ranges(near)}: choose "
                  f"instances.{device.side}.pmd_cores near it",
                  f"cat /sys/devices/system/node/node{device.node}/cpulist", name)  # fmt: skip
    if device.parent is not None:
        yield from judge_nic(device.parent, mtu)


def _made(bus: Bus) -> str:
    """Return the command that makes VFs, which are gone after a boot, or the one that shows the devices."""
    seen = "lspci -D -nn | grep -i ethernet"
    commands = some([f"`echo 2 > /sys/class/net/{name}/device/sriov_numvfs`" for name in bus.without_vfs], " or ")
    return f"{commands} makes VFs, until the next boot; then `{seen}`" if commands else seen


def judge_flags(name: str, flags: Mapping[str, bool]) -> Iterator[Found]:
    """Judge the private flags of a PF's driver. Without ``mdd-auto-reset-vf``, i40e and ice disable a VF that has sent
    a malformed descriptor, until it is reset by hand (Documentation/networking/device_drivers/ethernet/intel)."""
    if flags.get(_AUTO_RESET) is False:
        text = f"{name} disables a VF after a malformed descriptor, and nothing enables it again ({_AUTO_RESET} is off)"
        yield MALICIOUS(text, f"ethtool --set-priv-flags {name} {_AUTO_RESET} on", name)


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
    every = [(side, config.instance(side)) for side in sides]
    for side, name in [(side, name) for side, own in every for name in (own.uplink_device, own.second_device)]:
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

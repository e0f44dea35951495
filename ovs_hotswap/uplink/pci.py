"""PCI devices in /sys: which virtual function (VF) a device is, who has it open, and the binding to a driver
(Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovs_hotswap.errors import UplinkError

VFIO = "vfio-pci"
USER_SPACE = frozenset({VFIO, "uio_pci_generic", "igb_uio"})
# Their DPDK drivers work beside the kernel's (DPDK doc/guides/nics, "bifurcated").
BIFURCATED = frozenset({"mlx4_core", "mlx5_core", "mana"})
_NO_OVERRIDE = "(null)"  # driver_override_show, drivers/pci/pci-sysfs.c
_NOIOMMU = "vfio-noiommu"  # vfio_noiommu_group_alloc, drivers/vfio/group.c


@dataclass(frozen=True, slots=True)
class Place:
    """A VF: its ``number`` at the PF ``device``, a network device. ``address`` is ``None`` if it is no PCI device."""

    device: str
    number: int
    address: str | None = None

    def __str__(self) -> str:
        return f"VF {self.number} of {self.device}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a device open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


@dataclass(frozen=True, slots=True)
class Binding:
    """How a device was bound: ``driver`` is ``None`` if it had none; ``override`` is empty if none was set."""

    address: str
    driver: str | None
    override: str


class PciBus:
    """The PCI devices below ``sys``, and the processes below ``proc``."""

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._bus, self._groups, self._proc = sys / "bus/pci", sys / "kernel/iommu_groups", proc

    def place(self, address: str, device: str | None = None) -> Place | None:
        """The VF at a PCI address; ``None`` if it is no VF, or its PF has no network device. ``device``: the name of
        the PF, which has other network devices beside it if there are representors, and which is not seen from here if
        it is in another network namespace."""
        place = self._bus / "devices" / address
        names = _names(place / "physfn/net") or ([] if device is None else [device])
        for link in (place / "physfn").glob("virtfn*") if names else ():
            if os.path.realpath(link) == os.path.realpath(place):
                number = int(link.name.removeprefix("virtfn"))
                return Place(device if device is not None and device in names else names[0], number, address)
        return None

    def exists(self, address: str) -> bool:
        return (self._bus / "devices" / address).exists()

    def driver(self, address: str) -> str | None:
        """The driver to which a device is bound."""
        return _link(self._bus / "devices" / address / "driver")

    def has_iommu(self) -> bool:
        """Whether the kernel uses an IOMMU. A device that vfio-pci has without one is in a group, too."""
        return any(_text(self._groups / each / "name") != _NOIOMMU for each in _names(self._groups))

    def holders(self, address: str) -> list[Holder]:
        """The processes that have the device open, through vfio or UIO (Documentation/driver-api/vfio.rst). Of a group
        with several devices it cannot be seen which of them a process has, so it does not count."""
        place = self._bus / "devices" / address
        files = {f"/dev/vfio/devices/{name}" for name in _names(place / "vfio-dev")}
        files |= {f"/dev/{name}" for name in _names(place / "uio")}
        group = _link(place / "iommu_group")
        if group is not None and len(_names(place / "iommu_group/devices")) == 1:
            files |= {f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}"}
        return [each for each in self._processes() if files & self._open_files(each.pid)] if files else []

    def _processes(self) -> Iterator[Holder]:
        for name in _names(self._proc):
            if name.isdecimal():
                yield Holder(int(name), _text(self._proc / name / "comm"))

    def _open_files(self, pid: int) -> set[str]:
        place = self._proc / str(pid) / "fd"
        return {target for name in _names(place) if (target := _target(place / name)) is not None}

    # -- binding

    def binding(self, address: str) -> Binding:
        override = _text(self._bus / "devices" / address / "driver_override")
        return Binding(address, self.driver(address), "" if override == _NO_OVERRIDE else override)

    def bind(self, address: str, driver: str) -> None:
        """Bind a device to ``driver``, if it is not. Raises UplinkError."""
        if self.driver(address) == driver:
            return
        if not (self._bus / "drivers" / driver).exists():
            raise UplinkError(f"{address} cannot be bound to {driver}, which the kernel does not have",
                              hint=f"modprobe {driver}")  # fmt: skip
        self._rebind(Binding(address, driver, driver))

    def put_back(self, before: Binding) -> None:
        """Bind a device as it was bound before. Raises UplinkError."""
        if self.exists(before.address) and self.binding(before.address) != before:
            self._rebind(before)

    def _rebind(self, wanted: Binding) -> None:
        address = wanted.address
        self._write(self._bus / "devices" / address / "driver_override", wanted.override or "\n", address)
        if self.driver(address) not in (wanted.driver, None):
            self._write(self._bus / "devices" / address / "driver/unbind", address, address)
        if wanted.driver is not None and self.driver(address) is None:
            self._write(self._bus / "drivers_probe", address, address)
        if self.driver(address) != wanted.driver:
            raise UplinkError(
                f"{address} is bound to {self.driver(address) or 'no driver'}, and not to {wanted.driver or 'none'}",
                hint=f"dpdk-devbind.py -b {wanted.driver or 'none'} {address}, and `dmesg`",
            )

    def _write(self, path: Path, text: str, address: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise UplinkError(
                f"{address} cannot be bound to another driver: {path}: {error.strerror}",
                hint="as root; under systemd `ovs-hotswap doctor --section units` names the drop-in that is needed",
            ) from error


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:  # there is none, or its process has just ended
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _link(path: Path) -> str | None:
    """The last part of a link's target, as which the kernel names drivers and groups."""
    target = _target(path)
    return None if target is None else Path(target).name

"""VFs and PCI devices of a machine that has none: what the kernel and i40e do with them, as far as we use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink.pci import PciBus
from ovs_hotswap.uplink.vf import NAMES, Value, Vf, VfBusy

FOUND = Vf("02:00:00:00:00:01", 0, True, "auto", False)


class FakeVfs:
    """The VFs of each PF. A setting that resets a VF (``i40e_vc_reset_vf``) leaves the driver ``busy`` for so many
    tries of the next one. ``fails``: settings that are refused; ``deaf``: those that are accepted and not made."""

    def __init__(self, pfs: Mapping[str, list[Vf]]) -> None:
        self.pfs = {name: list(vfs) for name, vfs in pfs.items()}
        self.sets: list[tuple[str, int, str, Value]] = []
        self.fails: set[tuple[str, Value]] = set()
        self.deaf: set[str] = set()
        self.busy = 0
        self._left = 0

    def read(self, device: str, number: int) -> Vf | None:
        vfs = self.pfs.get(device, [])
        return vfs[number] if number < len(vfs) else None

    def set(self, device: str, number: int, name: str, value: Value) -> None:
        assert name in NAMES
        found = self.read(device, number)
        if found is None or (name, value) in self.fails:
            raise UplinkError(f"VF {number} of {device}: {name} cannot be set", hint="dmesg")
        if self._left:
            self._left -= 1
            raise VfBusy("VF still in reset. Try again.")
        self.sets.append((device, number, name, value))
        if name not in self.deaf:
            self.pfs[device][number] = found.having({name: value})
        self._left = 0 if name == "spoof_check" else self.busy


class FakeBus(PciBus):
    """A /sys below a directory, in which devices are bound as the kernel does it (drivers/pci/pci-driver.c)."""

    def __init__(self, directory: Path) -> None:
        self.sys, self.proc = directory / "sys", directory / "proc"
        super().__init__(self.sys, self.proc)
        self.refuses: set[str] = set()
        for name in ("vfio-pci", "iavf"):
            (self.sys / "bus/pci/drivers" / name).mkdir(parents=True)

    def add_vf(self, pf: str, device: str, number: int, address: str, driver: str | None = "iavf") -> None:
        place, parent = self.device(address), self.device(pf)
        place.mkdir(parents=True)
        (parent / "net" / device).mkdir(parents=True, exist_ok=True)
        (place / "physfn").symlink_to(parent)
        (parent / f"virtfn{number}").symlink_to(place)
        (place / "driver_override").write_text("(null)\n")
        self._bound(address, driver)

    def hold(self, address: str, pid: int, file: str = "/dev/vfio/devices/vfio1") -> None:
        (self.device(address) / "vfio-dev" / Path(file).name).mkdir(parents=True, exist_ok=True)
        self.open(pid, file)

    def open(self, pid: int, file: str) -> None:
        (self.proc / str(pid) / "fd").mkdir(parents=True)
        (self.proc / str(pid) / "comm").write_text("ovs-vswitchd\n")
        (self.proc / str(pid) / "fd/9").symlink_to(file)

    def device(self, address: str) -> Path:
        return self.sys / "bus/pci/devices" / address

    def _bound(self, address: str, driver: str | None) -> None:
        link = self.device(address) / "driver"
        link.unlink(missing_ok=True)
        if driver is not None:
            link.symlink_to(self.sys / "bus/pci/drivers" / driver)

    def _write(self, path: Path, text: str, address: str) -> None:
        if path.name in self.refuses:
            path = self.sys / "no-such-directory" / path.name
        elif path.name == "unbind":
            return self._bound(address, None)
        elif path.name == "drivers_probe":
            override = self.binding(address).override
            return self._bound(address, None if override == "none" else override or "iavf")
        super()._write(path, text if text != "\n" else "(null)\n", address)
        return None

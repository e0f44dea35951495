"""Guests as libvirt starts them: QEMU listens on the vhost-user socket of the guest's NIC, and has its own monitor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ovs_hotswap.lab.guest import Guest
from ovs_hotswap.lab.layout import OVERLAY_PREFIX, GuestLayout, Layout
from ovs_hotswap.system import System

Memory = Literal["memfd", "hugetlb", "file"]
_MOST_MB = 1024  # with memory that is plugged


@dataclass(frozen=True, slots=True)
class GuestKind:
    """What a guest is made of. ``memory``: a memfd of ordinary pages, one of huge pages, or a file on
    ``/dev/hugepages``. ``queues``: queue pairs, each with a vCPU. ``memory_slots``: for memory that is plugged."""

    memory: Memory = "memfd"
    queues: int = 1
    memory_mb: int = 96
    memory_slots: int = 0
    device: tuple[str, ...] = ()


class StockGuest(Guest):
    """A guest whose QEMU listens at ``socket`` for the switch. ``qmp`` uses the monitor that a libvirt would hold; QEMU
    serves one client of it at a time."""

    def __init__(self, layout: Layout, guest: GuestLayout, kind: GuestKind, socket: Path, system: System) -> None:
        super().__init__(layout, guest, system)
        self.kind = kind
        self.socket = socket
        self.monitor = layout.guest_file(guest.name, "qmp")
        self.address, self.mac = guest.address, guest.mac

    def carrier_changes(self) -> int:
        """How often the guest's link has changed since it booted. Raises LabError."""
        return int(self.run("cat /sys/class/net/eth0/carrier_changes"))


def boot_line(layout: Layout, guest: GuestLayout) -> str:
    """The command line of the guest's kernel, for ``guest-init.sh``."""
    targets = ",".join(f"{target.address}:56" for target in guest.targets)
    return (
        f"console=ttyS0 quiet panic=-1 mitigations=off lab_address={guest.address}/{OVERLAY_PREFIX} "
        f"lab_mtu={layout.options.mtu} lab_targets={targets} lab_interval={layout.options.ping_interval_ms / 1000:g}"
    )


def command_line(layout: Layout, guest: GuestLayout, kind: GuestKind, socket: Path, kernel: Path) -> list[str]:
    """QEMU's command line. ``vectors=0``: QEMU 7.2 under TCG ends with a segmentation fault if MSI-X is used with
    vhost-user. The names of devices are those that libvirt gives (qemu_alias.c, qemu_command.c)."""
    file = layout.guest_file
    backend = {
        "memfd": "memory-backend-memfd,hugetlb=off",
        "hugetlb": "memory-backend-memfd,hugetlb=on,hugetlbsize=2M",
        "file": "memory-backend-file,mem-path=/dev/hugepages,prealloc=on",
    }[kind.memory]
    slots = f",slots={kind.memory_slots},maxmem={_MOST_MB}M" if kind.memory_slots else ""
    queues = f",queues={kind.queues}" if kind.queues > 1 else ""
    device = [f"mac={guest.mac}", "vectors=0", *(["mq=on"] if kind.queues > 1 else []), *kind.device]
    reports = []
    for number, target in enumerate(guest.targets, 1):
        reports += ["-chardev", f"file,id=report{number},path={layout.report_file(guest.name, target.name)},append=on"]
        reports += ["-device", f"virtserialport,chardev=report{number},nr={number}"]
    return [
        layout.options.qemu, "-name", f"guest={guest.name}", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "pc,usb=off,vmport=off,memory-backend=pc.ram", "-accel", "tcg",
        "-smp", str(min(kind.queues, os.cpu_count() or 1)), "-m", f"{kind.memory_mb}M{slots}",
        "-object", f"{backend},id=pc.ram,size={kind.memory_mb}M,share=on",
        "-kernel", str(kernel), "-initrd", str(layout.initramfs_file), "-append", boot_line(layout, guest),
        "-chardev", f"socket,id=charmonitor,path={file(guest.name, 'qmp')},server=on,wait=off",
        "-mon", "chardev=charmonitor,id=monitor,mode=control",
        "-chardev", f"file,id=charserial0,path={file(guest.name, 'log')},append=on", "-serial", "chardev:charserial0",
        "-chardev", f"socket,id=charnet0,path={socket},server=on,wait=off",
        "-netdev", f"vhost-user,id=hostnet0,chardev=charnet0{queues}",
        "-device", ",".join(["virtio-net-pci,netdev=hostnet0,id=net0", *device]),
        "-device", "virtio-serial-pci,vectors=0",
        "-chardev", f"socket,id=charconsole0,path={file(guest.name, 'console')},server=on,wait=off",
        "-device", "virtconsole,chardev=charconsole0,nr=0",
        *reports,
    ]  # fmt: skip

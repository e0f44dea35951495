"""A healthy host that exists only as files below a directory, for doctor to look at. Tests plant faults in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY_EXAMPLE
from ovs_hotswap.cli.overview import problems
from ovs_hotswap.config import Config
from ovs_hotswap.config_file import load_config
from ovs_hotswap.doctor.examination import Examination, Queries
from ovs_hotswap.doctor.facts import Root
from ovs_hotswap.doctor.report import Found, Section
from ovs_hotswap.doctor.runner import Runner
from ovs_hotswap.doctor.units import UNITS
from ovs_hotswap.model import Severity
from ovs_hotswap.uplink.vf import Vf
from tests.unit.fake_system import FakeSystem
from tests.unit.test_overview import healthy

VF_A, VF_B, PF = "0000:03:02.0", "0000:03:02.1", "0000:03:00.0"
MAC = "52:54:00:1f:00:01"  # the VTEP's in the example of an overlay intent
QEMU = 64055  # the id of Debian's user libvirt-qemu
SHIPPED = Path(__file__).parents[2] / "systemd"
CPU, NODE, PCI = "sys/devices/system/cpu", "sys/devices/system/node", "sys/bus/pci/devices"
WORDS = "isolcpus=managed_irq,domain,2-3 nohz_full=2-3"
INTERRUPTS = (
    "           CPU0       CPU1       CPU2       CPU3\n 24:  5  9  {counted}  0  PCI-MSI 1-edge eno1\nNMI: 1 1 1 1\n"
)
# What systemctl says of each unit.
SYSTEMD = {"LoadState": "loaded", "ActiveState": "active", "NeedDaemonReload": "no", "PrivateTmp": "no",
           "ProtectHome": "no", "ControlGroup": ""}  # fmt: skip


class Bed:
    """The host. ``config`` and ``overlay`` are the real files of its configuration. Of a kernel that exists as files it
    cannot be asked which firmware a card has, so ``firmware``, ``vfs``, ``flags`` and ``synchronised`` are its
    answers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = Root(directory / "root")
        self.config, self.overlay = directory / "config.toml", directory / "overlay.toml"
        self.overlay.write_text(OVERLAY_EXAMPLE)
        text = EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(self.overlay))
        text = text.replace('uplink_devargs = "eth_af_packet0,iface=vf-b"', f'uplink_devargs = "{VF_B}"')
        text = text.replace('uplink_device = "vf-b"', "").replace('driver = "tc"', "")
        self.config.write_text(f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n{text}')
        self.system = FakeSystem(self._systemctl)
        self.systemd = dict(SYSTEMD)
        self.status: dict[str, Any] = healthy()
        self.unknown: dict[str, str] = {}
        self.firmware: str | None = "8.30 0x8000a4ae 1.2926.0"
        self.vfs: list[Vf | None] = [Vf(MAC, 0, False, "auto", True)] * 2
        self.flags = {"mdd-auto-reset-vf": True}
        self.synchronised: bool | None = True
        self.privileged = True
        self.directory_service: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._cores()
        self._memory()
        self._devices()
        self._files()

    # -- what is there

    def _cores(self) -> None:
        for name, text in {"online": "0-3", "isolated": "2-3", "nohz_full": "2-3"}.items():
            self.write(f"{CPU}/{name}", text)
        for core in range(4):
            self.write(f"{CPU}/cpu{core}/topology/thread_siblings_list", str(core))
            self.write(f"{CPU}/cpu{core}/cpufreq/scaling_governor", "performance" if core > 1 else "powersave")
            self.root.path(f"{CPU}/cpu{core}/node0").mkdir()
        self.write("proc/interrupts", INTERRUPTS.format(counted=0))
        self.write("proc/irq/24/effective_affinity_list", "0")
        self.write("proc/irq/24/smp_affinity_list", "0-3")
        self.write("proc/self/cgroup", "0::/user.slice")

    def _memory(self) -> None:
        for place in (f"{NODE}/node0/hugepages", "sys/kernel/mm/hugepages"):
            self.pages(place, 1024, 1024)
        self.write(
            "proc/meminfo", "MemTotal:       65536000 kB\nMemAvailable:   32768000 kB\nHugepagesize:       2048 kB\n"
        )
        self.write("proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0")
        self.write("etc/sysctl.d/80-huge-pages.conf", "vm.nr_hugepages=1024")

    def pages(self, place: str, free: int, total: int, size: int = 2048) -> None:
        for name, count in {"free_hugepages": free, "nr_hugepages": total, "resv_hugepages": 0}.items():
            self.write(f"{place}/hugepages-{size}kB/{name}", str(count))

    def _devices(self) -> None:
        for number, address in enumerate((VF_A, VF_B)):
            self.link(f"{PCI}/{address}/driver", "/sys/bus/pci/drivers/vfio-pci")
            self.link(f"{PCI}/{address}/physfn", f"../{PF}")
            self.link(f"{PCI}/{PF}/virtfn{number}", f"../{address}")
            self.write(f"{PCI}/{address}/numa_node", "0")
            self.write(f"{PCI}/{address}/iommu_group/devices/{address}", "")
        self.write(f"{PCI}/{PF}/net/eno1/mtu", "9000")
        self.write("sys/class/net/eno1/mtu", "9000")
        self.link("sys/class/net/eno1/device/driver", "/sys/bus/pci/drivers/i40e")
        self.write("sys/kernel/iommu_groups/1/type", "DMA-FQ")
        self.write("sys/module/vfio_pci/version", "0.2")

    def _files(self) -> None:
        self.write("proc/sys/kernel/osrelease", "6.1.0-27-amd64")
        self.write("proc/sys/kernel/numa_balancing", "1")
        self.write("boot/vmlinuz-6.1.0-27-amd64", "")
        self.root.path("lib/modules/6.1.0-27-amd64").mkdir(parents=True)
        self.write("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz root=/dev/sda1 {WORDS}")
        self.write("etc/default/grub", f'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="{WORDS}"')
        self.write("etc/group", "root:x:0:\novs:x:990:admin")
        self.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash")
        self.write("usr/lib/systemd/system/chrony.service", "[Unit]")
        self.write("var/lib/dpkg/status", "Package: openvswitch-switch\nStatus: install ok installed\nVersion: 3.1.0-2")
        self.root.path("run/ovs-hotswap/vm").mkdir(parents=True)
        (self.directory / "run").mkdir(mode=0o755)
        (self.directory / "state").mkdir()

    def install_units(self) -> None:
        """Let systemd run the host, with our units as they were shipped."""
        self.configure(f'run_dir = "{self.directory}/run"', "")
        self.configure(f'state_dir = "{self.directory}/state"', "")
        self.root.path("run/systemd/system").mkdir(parents=True)
        for name in UNITS:
            self.write(f"etc/systemd/system/{name}", (SHIPPED / name).read_text())
            if "@" not in name and "logs" not in name:
                self.link(f"etc/systemd/system/multi-user.target.wants/{name}", f"/etc/systemd/system/{name}")

    def _systemctl(self, argv: Sequence[str]) -> tuple[int, str]:
        if argv[:2] == ["systemctl", "show"]:
            return 0, self.systemd.get(argv[2].removeprefix("--property="), "")
        return 0, ""

    # -- changes

    def write(self, name: str, text: str) -> Path:
        path = self.root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if text else "")
        return path

    def link(self, name: str, target: str) -> Path:
        path = self.root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return path

    def directory_at(self, name: str) -> Path:
        path = self.root.path(name)
        path.mkdir(parents=True)
        return path

    def remove(self, name: str) -> Path:
        path = self.root.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return path

    def give_place_to_qemu(self, mode: int) -> None:
        """Give the directory in which QEMUs make their sockets to another user than root, if the test may."""
        place = self.root.path("run/ovs-hotswap/vm")
        place.chmod(mode)
        if os.geteuid() == 0:
            os.chown(place, QEMU, -1)

    def configure(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text, old
        self.config.write_text(text.replace(old, new))

    def intend(self, old: str, new: str) -> None:
        text = self.overlay.read_text()
        assert old in text, old
        self.overlay.write_text(text.replace(old, new, 1))

    def loaded(self) -> Config:
        return load_config(self.config)

    # -- looking

    def look(self) -> dict[str, Any]:
        """The document of `status`, with its own problems."""
        found = {**self.status, "unknown_fields": list(self.unknown)}
        return found | {"problems": [asdict(each) for each in problems(found, steered=True)]}

    def examine(self, *sections: Section, runner: Runner | None = None) -> list[Found]:
        queries = Queries(
            lambda: self.synchronised, lambda name: self.firmware, lambda name, number: self.vfs[number],
            lambda name: self.flags, self.directory_service.get, self.privileged,
        )  # fmt: skip
        examination = Examination(
            self.root, self.config, self.system, lambda host: (self.look(), self.unknown), queries
        )
        # Nothing hangs here, and a machine that is busy with something else is no reason for a finding.
        return examination.run(runner or Runner(self.system, part_s=600.0), sections or tuple(Section))


def bad(found: Sequence[Found]) -> list[Found]:
    return [each for each in found if each.severity is not Severity.OK]


Plant = Callable[[Bed], object]

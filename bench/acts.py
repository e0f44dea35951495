"""What a guest, or the operator of its VM, may do while its switch is replaced. Each is done to one guest of a lab."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ovs_hotswap.errors import LabError
from ovs_hotswap.host.host import Host
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.guest import Guest, command_line
from ovs_hotswap.lab.initramfs import find_kernel
from ovs_hotswap.lab.layout import OVERLAY_PREFIX
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.system import System

_S = 30.0
_PAUSE_S = 0.3
_PLUG_MB = 128  # the size of a memory block of Linux on x86-64
_SLOW, _FAST = 8 << 20, 1 << 30  # bytes a second of a migration


def wait(true: Callable[[], bool], what: str, seconds: float = _S) -> None:
    """Raises LabError."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            raise LabError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


class Act(ABC):
    """``begin`` starts it, before the VMs are moved if there is an upgrade; ``finish`` returns when it is done."""

    name: str

    def __init__(self, lab: Lab, system: System) -> None:
        self.lab, self.system = lab, system

    @property
    def guest(self) -> Guest:
        return self.lab.guests[0]

    @abstractmethod
    def begin(self) -> None: ...

    def finish(self) -> None:  # noqa: B027 - most are done at once
        pass


class Reboot(Act):
    name = "reboots"

    def begin(self) -> None:
        self._boots = self.guest.boots()
        self.guest.reset()

    def finish(self) -> None:
        wait(lambda: self.guest.boots() > self._boots, "the guest's boot")


class Queues(Act):
    name = "changes its queue count (ethtool -L)"
    _pairs = 2

    def begin(self) -> None:
        self._pairs = 3 - self._pairs
        self.guest.run(f"/sbin/ethtool -L eth0 combined {self._pairs}")


class Driver(Act):
    name = "unloads and reloads its driver"

    def begin(self) -> None:
        self.guest.run("rmmod virtio_net && usleep 200000 && insmod /modules/virtio_net.ko && usleep 200000")
        address = f"{self.guest.layout.address}/{OVERLAY_PREFIX}"
        self.guest.run(f"ip link set eth0 mtu {self.lab.layout.options.mtu} up && ip address add {address} dev eth0")


class Memory(Act):
    name = "is given more memory"
    _plugged = 0

    def begin(self) -> None:
        self._plugged += 1
        name = f"more{self._plugged}"
        backend: dict[str, Any] = {"qom-type": "memory-backend-memfd", "id": name, "size": _PLUG_MB << 20}
        self.guest.qmp("object-add", **backend, share=True)
        self.guest.qmp("device_add", driver="pc-dimm", id=f"dimm{self._plugged}", memdev=name)

    def finish(self) -> None:
        online = "for each in /sys/devices/system/memory/memory*/state; do echo online >$each; done 2>/dev/null; true"

        def blocks() -> int:
            self.guest.run(online)
            return int(self.guest.run("grep -l online /sys/devices/system/memory/memory*/state | wc -l"))

        wait(lambda: blocks() >= 1 + self._plugged, "the guest's use of the memory")


class Pause(Act):
    name = "is paused"

    def begin(self) -> None:
        self.guest.qmp("stop")

    def finish(self) -> None:
        time.sleep(_PAUSE_S)
        self.guest.qmp("cont")


class Migrate(Act):
    """Migrates the guest to a QEMU at another port of the same host, as to another host. Its MAC then belongs to the
    other port.

    The other place is the third guest of the lab, which stays empty during this. The memory is copied until ``finish``.
    """

    name = "is live-migrated (dirty log)"

    def __init__(self, lab: Lab, system: System) -> None:
        super().__init__(lab, system)
        self._here, self._there = lab.guests[0], lab.guests[2]
        self._mac = self._here.layout.mac
        lab.stop_guest(self._there.name)

    @property
    def guest(self) -> Guest:
        return self._here

    def begin(self) -> None:
        layout, there = self.lab.layout, self._there
        for path in there.sockets:
            path.unlink(missing_ok=True)
        argv = command_line(layout, there.layout, find_kernel().image)
        argv = [word.replace(there.layout.mac, self._mac) for word in argv]
        pid = self.system.spawn([*argv, "-incoming", "defer"], log=layout.guest_file(there.name, "err"))
        there.pid_file.write_text(f"{pid}\n")
        wait(lambda: self._answers(there), "the other QEMU")
        path = layout.guest_file(there.name, "migration")
        there.qmp("migrate-incoming", uri=f"unix:{path}")
        self._here.qmp("migrate-set-parameters", **{"max-bandwidth": _SLOW})
        self._here.qmp("migrate", uri=f"unix:{path}")
        wait(lambda: self._state() in ("active", "completed"), "the migration's begin")

    @staticmethod
    def _answers(guest: Guest) -> bool:
        try:
            guest.qmp("query-status")
        except LabError:
            return False
        return True

    def _state(self) -> str:
        found: Any = self._here.qmp("query-migrate")
        if found.get("status") == "failed":
            raise LabError(f"the migration failed: {found.get('error-desc')}")
        return str(found.get("status"))

    def finish(self) -> None:
        self._here.qmp("migrate-set-parameters", **{"max-bandwidth": _FAST})
        wait(lambda: self._state() == "completed", "the migration")
        overlay = self.lab.layout.overlay_file
        here, there = (f'name = "{guest.name}"\nofport = {guest.layout.ofport}\nmac = ' for guest in self._places())
        spare = self.lab.guests[2].layout.mac
        text = overlay.read_text()
        text = text.replace(f'{here}"{self._mac}"', f'{here}"{spare}"').replace(
            f'{there}"{spare}"', f'{there}"{self._mac}"'
        )
        overlay.write_text(text)
        host = Host(self.lab.config, self.system)
        host.program_flows(host.active(), Form.FINAL)
        self.lab.stop_guest(self._here.name)
        self._here, self._there = self._there, self._here

    def _places(self) -> tuple[Guest, Guest]:
        return self._here, self._there


ACTS: tuple[type[Act], ...] = (Reboot, Queues, Driver, Memory, Pause, Migrate)

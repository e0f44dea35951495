"""Simulated guests of real QEMUs: each VM is a QEMU whose guest's processor stands still, and its network driver is
this program's (``driver``), on the memory that the QEMU shares.

So everything between the QEMU and its switch is QEMU's own: its socket, its messages, its monitor. ``Fleet`` plays
these too, with less memory and processor time.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.guests.drivers_process import DriversProcess
from bench.guests.fleet import FleetError, GuestTraffic
from bench.guests.qtest import LOW, SLOT, Device, Qtest
from bench.guests.spec import FleetSpec, VmSpec
from ovs_hotswap.adopt.qmp_facts import SocketMonitor
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until

_MIB = 1 << 20
_READY_S = 30.0
# What the processor executes first: cli, hlt, and a jump back (the last 16 bytes below 4 GiB are its first).
_HALT = bytes.fromhex("faf4ebfc")
_ROM_BYTES = 1 << 16
_DEVICE = "/machine/peripheral/net0/virtio-backend"
_MEMORY = "/memfd:memory-backend-memfd (deleted)"

Enter = Callable[[Sequence[str]], list[str]]


def memory_mb(spec: FleetSpec) -> int:
    """The memory of each VM."""
    return -(-spec.shape.memory // _MIB)


class QemuFleet(GuestTraffic):
    """The QEMUs of ``spec``, whose files are in ``directory``. ``start_qemus``, then the switch's ports, then ``boot``;
    ``close`` ends the drivers. The QEMUs are ended by the caller, because they run where ``enter`` makes a command line
    for."""

    def __init__(self, spec: FleetSpec, directory: Path, system: System, enter: Enter) -> None:
        assert spec.begin >= LOW
        super().__init__(spec)
        self._directory, self._system, self._enter = directory, system, enter
        self._stack = ExitStack()
        self._drivers: DriversProcess
        self.pids: list[int] = []

    def close(self) -> None:
        self._stack.close()

    def _status(self) -> int | None:
        return self._drivers.status()

    def start_qemus(self) -> None:
        """Start them; return when each listens for its switch."""
        rom = bytearray(_ROM_BYTES)
        rom[-16:-12] = _HALT
        (self._directory / "halt.bin").write_bytes(rom)
        for vm in self.spec.vms:
            log = self._directory / f"{vm.name}.err"
            self.pids.append(self._system.spawn(self._enter(self._command_line(vm)), log=log))
        self._await(lambda vm: vm.socket.exists(), "does not listen")

    def boot(self) -> None:
        """Have each guest's driver start; the switch's ports must be there. Raises FleetError, LabError."""
        with ExitStack() as stack:
            qtests = [stack.enter_context(Qtest(self._directory / f"{name}.qtest")) for name in self.names]
            devices = [Device(qtest) for qtest in qtests]  # each QEMU answers when its switch has connected
            memory = [_memory_of(pid) for pid in self.pids]
            for descriptor in memory:
                stack.callback(os.close, descriptor)
            self._drivers = self._stack.enter_context(DriversProcess(self.spec, memory))
            self._control = self._drivers.control
            for device, descriptor in zip(devices, memory, strict=True):
                device.start(self.spec.shape.layouts, self.spec.features, descriptor)

    def wait_served(self, timeout: float) -> None:
        late = wait_until(self._unserved, timeout, self._system, done=operator.not_, poll_s=0.1)
        if late:
            raise FleetError(f"not served within {timeout:g} s: {', '.join(late)}")

    def _unserved(self) -> list[str]:
        """The VMs whose QEMUs have not started their rings."""
        asked = {name: self.monitor(name).ask("x-query-virtio-status", path=_DEVICE) for name in self.names}
        return [name for name, status in asked.items() if not status["vhost-started"]]

    def monitor(self, name: str) -> SocketMonitor:
        """The monitor of the QEMU of a VM."""
        return SocketMonitor(self._directory / f"{name}.qmp")

    def relink(self, names: Iterable[str]) -> None:
        """Take the link of VMs down and up again, which makes QEMU tell the switch everything again."""
        for name in names:
            for up in (False, True):
                self.monitor(name).ask("set_link", name="hostnet0", up=up)

    def _await(self, true: Callable[[VmSpec], bool], what: str) -> None:
        if not wait_until(lambda: all(map(true, self.spec.vms)), _READY_S, self._system):
            late = next(vm.name for vm in self.spec.vms if not true(vm))
            raise FleetError(f"the QEMU of {late} {what}: {(self._directory / f'{late}.err').read_text()}")

    def _command_line(self, vm: VmSpec) -> list[str]:
        """The devices have the names that libvirt gives. ``vectors=0``: see ``tests.support.stock_guest``."""
        mb, pairs, place = memory_mb(self.spec), self.spec.pairs, self._directory / vm.name
        queues = f",queues={pairs}" if pairs > 1 else ""
        return [
            "qemu-system-x86_64", "-name", f"guest={vm.name}", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "pc,usb=off,vmport=off,memory-backend=pc.ram", "-accel", "tcg,tb-size=1", "-m", f"{mb}M",
            "-bios", str(self._directory / "halt.bin"),
            "-object", f"memory-backend-memfd,id=pc.ram,size={mb}M,share=on",
            "-chardev", f"socket,id=charmonitor,path={place}.qmp,server=on,wait=off",
            "-mon", "chardev=charmonitor,id=monitor,mode=control",
            "-qtest", f"unix:{place}.qtest,server=on,wait=off", "-qtest-log", "none",
            "-chardev", f"socket,id=charnet0,path={vm.socket},server=on,wait=off",
            "-netdev", f"vhost-user,id=hostnet0,chardev=charnet0{queues}",
            "-device", f"virtio-net-pci,netdev=hostnet0,id=net0,mac={vm.mac},addr={SLOT:#x},vectors=0"
            + (",mq=on" if pairs > 1 else ""),
        ]  # fmt: skip


def _memory_of(pid: int) -> int:
    """A descriptor of the QEMU's guest memory. Raises FleetError."""
    directory = Path(f"/proc/{pid}/fd")
    for entry in directory.iterdir():
        if os.readlink(entry) == _MEMORY:
            return os.open(entry, os.O_RDWR | os.O_CLOEXEC)
    raise FleetError(f"QEMU {pid} has no {_MEMORY}")

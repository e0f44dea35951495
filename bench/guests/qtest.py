"""A virtio network device of a QEMU whose guest does nothing by itself: the driver's part is played from outside.

QEMU's ``-qtest`` socket reads and writes the guest's ports and memory, device registers among them (QEMU,
docs/devel/qtest.rst), beside any accelerator. The driver's rings lie in the guest's memory, which is shared.
"""

from __future__ import annotations

import mmap
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from ovs_hotswap.errors import LabError
from ovs_hotswap.vhostuser.messages import Feature
from tests.support.vhost_rings import Layout, RingView

SLOT = 3  # of the device on the first PCI bus
_ADDRESS, _DATA = 0xCF8, 0xCFC  # of the PCI configuration's two ports
_COMMAND, _BAR4 = 0x04, 0x20
_MEMORY_AND_MASTER = 0x6
_REGISTERS = 0xE0000000  # where nothing else of this guest is
_NOTIFY = _REGISTERS + 0x3000  # hw/virtio/virtio-pci.c, virtio_pci_realize: the parts of the region
_NOTIFY_STEP = 4
# virtio 1.2, 4.1.4.3: struct virtio_pci_common_cfg
_DEVICE_SELECT, _DEVICE_FEATURES, _DRIVER_SELECT, _DRIVER_FEATURES = 0, 4, 8, 12
_STATUS, _QUEUE, _SIZE, _ENABLE, _OFFSET, _PARTS = 20, 22, 24, 28, 30, (32, 40, 48)
_DRIVER, _FEATURES_OK, _DRIVER_OK = 3, 11, 15
_CONTROL_QUEUE = 1 << 17  # VIRTIO_NET_F_CTRL_VQ
_CONTROL = Layout.at(0x10000, 64)  # in the first 640 KiB, which hold no ring of the frames
_SET_PAIRS = bytes((4, 0))  # VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
_NEXT, _WRITE = 1, 2  # VIRTQ_DESC_F_
_ANSWER_S = 30.0
LOW = 1 << 20  # the guest's memory from here on is without holes (PC)


class Qtest:
    """A connection to a QEMU's socket. Context manager. Raises LabError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise LabError(f"{path}: {error.strerror or error}") from error
        self._file = self._socket.makefile("rw")

    def __enter__(self) -> Qtest:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, command: str, *numbers: int) -> int:
        """Send a command, and return the number that it answers; 0 if there is none."""
        try:
            self._file.write(" ".join([command, *map(hex, numbers)]) + "\n")
            self._file.flush()
            words = self._file.readline().split()
        except OSError as error:
            raise LabError(f"{self._path}: {command}: {error}") from error
        if words[:1] != ["OK"]:
            raise LabError(f"{self._path}: {command}: {' '.join(words) or 'QEMU has ended'}")
        return int(words[1], 16) if len(words) > 1 else 0


class Device:
    """The device in slot ``SLOT``."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest
        self._configure(_BAR4, _REGISTERS)
        self._configure(_BAR4 + 4, 0)
        self._configure(_COMMAND, _MEMORY_AND_MASTER)

    def _configure(self, register: int, value: int) -> None:
        self._qtest.ask("outl", _ADDRESS, 1 << 31 | SLOT << 11 | register)
        self._qtest.ask("outl", _DATA, value)

    def start(self, layouts: Sequence[Layout], features: int, memory: int) -> None:
        """Do what a guest's driver does with all queue pairs. ``memory``: the descriptor of the guest's memory, in
        which ``layouts`` are."""
        ask = self._qtest.ask
        self._status(0)
        self._status(_DRIVER)
        for half in (0, 1):
            ask("writel", _REGISTERS + _DEVICE_SELECT, half)
            offered = ask("readl", _REGISTERS + _DEVICE_FEATURES)
            ask("writel", _REGISTERS + _DRIVER_SELECT, half)
            wanted = (features | _CONTROL_QUEUE) >> 32 * half & 0xFFFFFFFF
            ask("writel", _REGISTERS + _DRIVER_FEATURES, offered & wanted)
            if not half:
                several = offered & wanted & 1 << Feature.NET_MQ
        self._status(_FEATURES_OK)
        for number, layout in enumerate((*layouts, _CONTROL)):
            self._place(number, layout)
        self._status(_DRIVER_OK)
        if several:
            self._set_pairs(len(layouts) // 2, memory)

    def _status(self, value: int) -> None:
        self._qtest.ask("writeb", _REGISTERS + _STATUS, value)

    def _place(self, number: int, layout: Layout) -> None:
        ask = self._qtest.ask
        ask("writew", _REGISTERS + _QUEUE, number)
        ask("writew", _REGISTERS + _SIZE, layout.size)
        for register, place in zip(_PARTS, (layout.descriptors, layout.available, layout.used), strict=True):
            ask("writel", _REGISTERS + register, place)
            ask("writel", _REGISTERS + register + 4, 0)
        ask("writew", _REGISTERS + _ENABLE, 1)

    def _set_pairs(self, pairs: int, memory: int) -> None:
        """Have the device use all queue pairs (virtio 1.2, 5.1.6.5.5). The control queue is the last one."""
        low = memoryview(mmap.mmap(memory, LOW))
        view = RingView(low[_CONTROL.descriptors :], low[_CONTROL.available :], low[_CONTROL.used :], _CONTROL.size)
        parts = ((_SET_PAIRS, _NEXT), (pairs.to_bytes(2, "little"), _NEXT), (b"\xff", _WRITE))
        at = _CONTROL.buffers
        for number, (data, flags) in enumerate(parts):
            low[at : at + len(data)] = data
            view.descriptors[2 * number] = at
            view.descriptors[2 * number + 1] = len(data) | flags << 32 | number + 1 << 48
            at += 16
        view.offer(0, 0)
        self._qtest.ask("writew", _REGISTERS + _QUEUE, 2 * pairs)
        offset = self._qtest.ask("readw", _REGISTERS + _OFFSET)
        self._qtest.ask("writew", _NOTIFY + offset * _NOTIFY_STEP, 2 * pairs)
        end = time.monotonic() + _ANSWER_S
        while not view.used16[1] and time.monotonic() < end:
            time.sleep(0.001)
        acknowledged = low[at - 16] == 0
        view.close()
        low.release()
        if not acknowledged:
            raise LabError(f"the device does not use {pairs} queue pairs")

"""A stock host (``tests.support.stock_host``) whose guests are many and simulated, each with a real QEMU."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from bench.guests import FleetSpec, VmSpec
from bench.guests.qemus import QemuFleet
from bench.guests.qtest import LOW
from ovs_hotswap.errors import LabError
from ovs_hotswap.system import System
from ovs_hotswap.waiting import wait_until
from ovs_hotswap.wording import some
from tests.support.stock_guest import GuestKind
from tests.support.stock_host import BRIDGE, RUN_DIR, StockHost

_SERVED_S = 60.0
_EXIT_S = 20.0
MOST_ON_A_BRIDGE = 64  # wire mode has a mirror for each VM on one switch, and a bridge has room for 32


class StockBed(StockHost):
    """Bridges with the action NORMAL, each with at most ``MOST_ON_A_BRIDGE`` VMs; those that exchange frames are on the
    same one. The first bridge has the uplink.

    The log of the switch is not limited: as if the VMs had been started one after the other over hours, not at once.
    """

    switch_mb = 512  # a switch's packet buffers take what they can get of less, and leave too little for rings

    def __init__(self, system: System, vms: int, queues: int, **spec: Any) -> None:
        super().__init__(system, guests=[GuestKind(queues=queues)] * vms)
        count = -(-vms // MOST_ON_A_BRIDGE)
        self.bridges = [BRIDGE, *(f"br-{number}" for number in range(2, count + 1))]
        named = tuple(VmSpec(guest.name, guest.mac, guest.socket) for guest in self.guests)
        self.fleet = QemuFleet(
            FleetSpec(vms=named, pairs=queues, begin=LOW, **spec), self.layout.guest_dir, system,
            lambda argv: self.space.entering(argv),
        )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.fleet.close()
        super().close()

    def bridge_of(self, number: int) -> str:
        """The bridge of a VM by its number. The partners are half of the VMs away, which is a multiple of the bridges'
        number."""
        return self.bridges[number % len(self.bridges)]

    def unreported(self) -> set[str]:
        """The VMs that the switch serves, and of which its database says that they are not connected."""
        return {guest.name for guest in self.guests} - {
            name for name, status in self._status() if status.get("status") == "connected"
        }

    def report_all(self) -> int:
        """Have the database say of every VM that it is connected; return of how many it did not.

        A switch that is started again may leave that out for some: a status that is written while an older one is on
        its way to the database can be lost.
        """
        names = self.unreported()
        self.fleet.relink(names)
        if late := wait_until(self.unreported, _SERVED_S, self._system, done=operator.not_, poll_s=0.2):
            raise LabError(f"the switch does not report that VM {some(sorted(late))} is connected")
        return len(names)

    def _status(self) -> Iterator[tuple[str, dict[str, str]]]:
        text = self.vsctl("--format=json", "--columns=name,status", "find", "interface", "type=dpdkvhostuserclient")
        for name, status in json.loads(text)["data"]:
            yield name, dict(status[1])

    def _make_bridge(self) -> None:
        self.fleet.start_qemus()
        words = [f"add-br {name} -- set bridge {name} datapath_type=netdev" for name in self.bridges]
        self.vsctl(*" -- ".join(words).split())
        self.add_uplink(BRIDGE)
        self.log_everything()
        ports = [
            f"add-port {self.bridge_of(number)} {guest.name} -- set interface {guest.name} type=dpdkvhostuserclient "
            f"options:vhost-server-path={guest.socket}"
            for number, guest in enumerate(self.guests)
        ]
        self.vsctl(*" -- ".join(ports).split())

    def _start_guests(self) -> None:
        self.fleet.boot()
        self.fleet.wait_served(_SERVED_S)

    def log_everything(self) -> None:
        """Take the limit off the log of the stock switch."""
        self.appctl("vlog/disable-rate-limit", "dpdk")

    def end_switch(self) -> None:
        """End the stock switch as ``ovs-ctl stop`` does (utilities/ovs-lib.in, stop_daemon)."""
        pid = self.switch_pid
        assert pid is not None
        self.appctl("-t", f"{RUN_DIR}/ovs-vswitchd.{pid}.ctl", "exit")
        if not wait_until(lambda: not self._system.alive(pid), _EXIT_S, self._system):
            raise LabError(f"ovs-vswitchd, process {pid}, does not end")

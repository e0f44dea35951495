"""A test bed of a host that others program: VMs that switch a serves without a broker, a broker, and switch b.

Everything is written for tests, except the broker and the descriptors that are taken out of the processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ovs_hotswap.adopt.fetching import Fetched, fetch
from ovs_hotswap.adopt.processes import ForeignProcess
from ovs_hotswap.adopt.snapshot import (
    EventFact,
    LogMark,
    ProcessFact,
    RegionFact,
    RingFact,
    RingPlaceFact,
    Snapshot,
)
from ovs_hotswap.backends import MoveResult, OwnerCertainty, VmStatus
from ovs_hotswap.config import Config
from ovs_hotswap.model import Side
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.switch.paths import StockRecord
from ovs_hotswap.system import System
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vm_ports import VmPort, write_ports
from tests.support.broker_bed import ends_well
from tests.support.broker_process import BrokerProcess
from tests.support.vhost_device import FEATURES, SwitchSpec
from tests.support.vhost_qemu import FakeQemu
from tests.support.vhost_rings import Ledger
from tests.support.vhost_switch import SwitchProcess
from tests.support.waiting import eventually

PACKETS = 1 << 20


class PortsBroker(BrokerProcess):
    """A broker whose VMs come from the file of ports. QEMU's sockets are in ``directory``/qemu."""

    def path(self, name: str) -> Path:
        return self.directory / "qemu" / name

    def write(self, names: Sequence[str], more: str = "") -> None:
        self.names = list(names)
        instances = "".join(f'[instances.{x}]\npmd_cores = [0]\nuplink_devargs = "net_null_{x}"\n' for x in "ab")
        self.config_path.write_text(
            f'program = "clone"\nrun_dir = "{self.directory}/run"\nstate_dir = "{self.directory}/state"\n'
            f'[stock]\nrun_dir = "{self.directory}/openvswitch"\n'
            f"[broker]\nfence_ms = {self._fence_ms}\n{more}{instances}"
        )
        (self.directory / "state").mkdir(exist_ok=True)

    def write_ports(self, names: Sequence[str]) -> None:
        ports = tuple(VmPort(name=name, bridge="br-int", ofport=1 + k, socket=self.path(name), queues=self._queues)
                      for k, name in enumerate(names))  # fmt: skip
        write_ports(self.config, System(), ports)

    def sockets(self, side: Side) -> list[str]:
        return [str(self.path(name)) for name in self.names]

    def qemu_path(self, name: str) -> Path:
        return self.path(name)


class DirectBed:
    """VMs ``vm0``.. on switch a, without a broker; ``serve`` starts the broker and switch b."""

    def __init__(
        self, stack: contextlib.ExitStack, vms: int = 1, pairs: int = 1, *, managed: bool = False, unmapped: int = 0
    ) -> None:
        self._stack, self._unmapped = stack, unmapped
        names = [f"vm{k}" for k in range(vms)]
        self.broker = PortsBroker(names, managed=managed)
        self.broker.write_ports(names)
        self.ledger = Ledger(vms + 1, PACKETS)
        stack.callback(self.ledger.close)
        self.switches: list[SwitchProcess] = []
        self.qemus = [stack.enter_context(FakeQemu(self.broker.path(name), pairs)) for name in names]
        self.a = self.switch(None)
        for qemu in self.qemus:
            qemu.boot()
        self.config: Config = self.broker.config
        record = StockRecord(side=Side.A, pid=self.a.pid, born=start_time(self.a.pid), ovsdb_pid=1, ovsdb_born=None)
        self.config.stock_file.write_text(record.model_dump_json())

    def switch(self, pid_file: Path | None, features: int = FEATURES) -> SwitchProcess:
        unmapped = self._unmapped if pid_file is None else 0
        spec = SwitchSpec(self.broker.sockets(Side.A), features=features, unmapped=unmapped)
        made = self._stack.enter_context(SwitchProcess(spec, self.ledger, pid_file))
        self.switches.append(made)
        return made

    def serve(self, *, b: bool = True) -> DirectBed:
        self._stack.enter_context(self.broker)
        self.client = self._stack.enter_context(self.broker.client())
        if b:
            self.start_b()
        return self

    def start_b(self, features: int = FEATURES) -> SwitchProcess:
        self.b = self.switch(self.config.side_dir(Side.B) / "ovs-vswitchd.pid", features)
        self.wait(lambda: all(vm.switches[Side.B].connected for vm in self.client.vms()), "switch b")
        return self.b

    def snapshot(self, number: int = 0) -> Snapshot:
        """What ``adopt.taking`` would find."""
        qemu = self.qemus[number]
        with ForeignProcess(self.a.pid) as switch:
            (switch_fd,) = switch.connections(qemu.path, listener=False)
            theirs = {event: fd for fd, event in switch.eventfds().items()}
        with ForeignProcess(os.getpid()) as own:
            mine, me = own.eventfds(), own.fact
        file = os.fstat(qemu.memory.fd)
        table = qemu.memory_table()
        regions = [messages.REGION.unpack_from(table, 8 + k * messages.REGION.size) for k in range(qemu.regions)]
        rings = []
        for index in range(2 * qemu.pairs):
            at = qemu.address(index)
            events = [EventFact(fd=theirs[mine[fd]], eventfd=mine[fd])
                      for fd in (qemu.kicks[index], qemu.calls[index])]  # fmt: skip
            place = RingPlaceFact(size=qemu.ring_size, descriptors=at.descriptors, available=at.available, used=at.used)
            rings.append(RingFact(place=place, kick=events[0], call=events[1], enabled=True))
        return Snapshot(
            socket=qemu.path, qemu=me, qemu_fd=qemu.filenos()[1] or 0,
            switch=ProcessFact(pid=self.a.pid, born=start_time(self.a.pid) or 0), switch_fd=switch_fd,
            features=qemu.features, protocol_features=qemu._protocol, status=15, mtu=None,
            memory=tuple(
                RegionFact(guest_address=guest, size=size, user_address=user, offset=offset, fd=qemu.memory.fd,
                           device=file.st_dev, inode=file.st_ino)
                for guest, size, user, offset in regions),
            rings=tuple(rings), log=LogMark(path=Path("/dev/null"), device=1, inode=1, offset=0),
        )  # fmt: skip

    def fetched(self, snapshot: Snapshot) -> Fetched:
        made = fetch(snapshot)
        self._stack.callback(made.close)
        return made

    def prepare(self, name: str = "vm0", to: Side = Side.B) -> tuple[Snapshot, Fetched]:
        snapshot = self.snapshot(int(name[2:]))
        fetched = self.fetched(snapshot)
        self.client.adopt_prepare(name, snapshot.model_dump_json(), to, numbers(fetched))
        return snapshot, fetched

    def adopt(self, name: str = "vm0", to: Side = Side.B) -> VmStatus:
        self.prepare(name, to)[1].close()
        self.enter(name)
        return self.client.adopt_finish(name)

    def enter(self, name: str = "vm0") -> MoveResult:
        """Enter the connection that was prepared."""
        with contextlib.closing(fetch(self.snapshot(int(name[2:])))) as fetched:
            return self.client.adopt_enter(name, [each.fileno() for each in fetched.ends])

    def wait(self, true: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
        eventually(true, lambda: f"{what}: {self.client.vms()}", timeout, poll_s=0.005)

    def owner(self, name: str = "vm0") -> Side | None:
        vm = self.client.vm(name)
        return vm.owner if vm.certainty is OwnerCertainty.OWNS else None

    def ends_well(self, doubled: int = 0) -> None:
        """Each VM is served, every packet was taken once, and no ring was touched by two switches at a time."""
        ends_well(self.ledger, self.switches, enumerate(self.qemus), doubled)

    def direct(self, number: int = 0) -> bool:
        """Whether switch a has a connection with QEMU itself."""
        with ForeignProcess(self.a.pid) as switch:
            return bool(switch.connections(self.qemus[number].path, listener=False))


def numbers(fetched: Fetched) -> list[int]:
    return [each.fileno() for each in fetched.descriptors()]


@pytest.fixture
def make_direct() -> Iterator[Callable[..., DirectBed]]:
    with contextlib.ExitStack() as stack:
        yield lambda vms=1, pairs=1, **how: DirectBed(stack, vms, pairs, **how)


MakeDirect = Callable[..., DirectBed]

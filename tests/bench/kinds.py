"""Every kind of guest through an upgrade, and what a guest may do before, during and after one.

Each kind has a lab of its own with real QEMU guests that ping each other and the remote host every 10 ms. *During* is
between parking the VMs on the new instance and moving them there. What is lost is counted over a whole upgrade; where a
guest does something of its own, over the other guest's pings of the remote host.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.pings import Pings, PingStats, Stream
from ovs_hotswap.model import Side
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.host import Host, activate_first
from ovs_hotswap.upgrade.plan import Event, EventKind
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.vhost.service import start_broker
from tests.bench import cases
from tests.bench.acts import Act, Driver, Memory, Migrate, Pause, Queues, Reboot

_SETTLE_S = 0.5
_FLOW_S = 60.0
_BROKER_S = 20.0
_BEGIN = "park"  # the step after which an act begins


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    options: GuestOptions
    act: type[Act] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def guests(self) -> int:
        return 3 if self.act is Migrate else 2


def _device(*properties: str) -> GuestOptions:
    return GuestOptions(device=properties)


KINDS = (
    Kind("modern", _device("disable-legacy=on", "disable-modern=off")),
    Kind("transitional", GuestOptions()),
    Kind("legacy", _device("disable-legacy=off", "disable-modern=on")),
    Kind("4 queue pairs", GuestOptions(queues=4, memory_mb=128)),
    Kind("memory in huge pages", GuestOptions(hugepages=True)),
    Kind("no mergeable buffers", _device("mrg_rxbuf=off")),
    Kind("no event index", _device("event_idx=off")),
    Kind("no indirect descriptors", _device("indirect_desc=off")),
    Kind("MTU of 9000", GuestOptions(mtu=9000)),
    Kind("rings of 1024", _device("rx_queue_size=1024", "tx_queue_size=1024")),
    Kind("asks for packed rings, is given split ones", _device("packed=on")),
    Kind(Reboot.name, GuestOptions(), Reboot),
    Kind(Queues.name, GuestOptions(queues=2), Queues),
    Kind(Driver.name, GuestOptions(), Driver),
    Kind(Memory.name, GuestOptions(memory_slots=3, memory_mb=192), Memory),
    Kind(Pause.name, GuestOptions(), Pause),
    Kind(Migrate.name, GuestOptions(), Migrate),
)


@dataclass(slots=True)
class Result:
    """``fault``: why it did not work, else ``None``. ``moves_us``: the hand-overs, broker's clock."""

    kind: str
    sent: int = 0
    lost: int = 0
    doubled: int = 0
    gap_ms: float | None = None
    moves_us: list[float] = field(default_factory=list)
    fault: str | None = None


class Runner:
    def __init__(self, lab: Lab, kind: Kind, system: System) -> None:
        self._lab, self._kind, self._system = lab, kind, system
        self._result = Result(kind.name)

    def run(self) -> Result:
        """Raises HotswapError, and what it has found until then is lost."""
        lab, kind = self._lab, self._kind
        host = Host(lab.config, self._system)
        start_broker(lab.config, self._system, lab.config_path, _BROKER_S)
        host.instances[Side.A].start(host.releases.get("host"))
        host.program(Side.A)
        activate_first(host, Side.A)
        self._flowing(lab.guests[0].name)
        act = None if kind.act is None else kind.act(lab, self._system)
        if act is not None:
            act.begin()
            act.finish()
            self._flowing(act.guest.name)
        self._upgrade(act)
        if act is not None:
            act.begin()
            act.finish()
            self._flowing(act.guest.name)
        return self._result

    def _upgrade(self, act: Act | None) -> None:
        host = Host(self._lab.config, self._system)  # a migration has changed the intent
        watched = self._watched()
        first = watched.mark()

        def observe(event: Event) -> None:
            if act is not None and event.kind is EventKind.DONE and event.step == _BEGIN:
                act.begin()

        report = Upgrader(host).upgrade("host", observe)
        if act is not None:
            act.finish()
            self._flowing(act.guest.name)
        time.sleep(_SETTLE_S)
        stats = watched.between(first, watched.mark())
        self._count(stats)
        self._result.moves_us = list(report.moves.values())

    def _count(self, stats: Sequence[PingStats]) -> None:
        result = self._result
        result.sent = sum(each.sent for each in stats)
        result.lost = sum(each.lost for each in stats)
        result.doubled = sum(each.duplicated for each in stats)
        gaps = [each.longest_gap_ms for each in stats]
        result.gap_ms = None if None in gaps else max(gap for gap in gaps if gap is not None)

    def _streams(self, *pairs: tuple[str, str]) -> Pings:
        layout = self._lab.layout
        streams = [Stream(guest, target, layout.report_file(guest, target)) for guest, target in pairs]
        return Pings(streams, layout.options.ping_interval_ms, self._system)

    def _watched(self) -> Pings:
        return self._lab.pings if self._kind.act is None else self._streams(("vm2", "remote"))

    def _flowing(self, acting: str) -> None:
        """The pings of the guest that acts, wherever it runs, and those of it, are answered."""
        self._streams((acting, "remote"), ("vm2", "vm1"), ("vm2", "remote")).wait_flowing(_FLOW_S)


def run_kind(kind: Kind, system: System) -> Result:
    lab = Lab(Path(tempfile.mkdtemp(prefix="ovsh-ki-")), kind.guests, system, kind.options)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        try:
            return Runner(lab, kind, system).run()
        except HotswapError as error:
            return Result(kind.name, fault=error.message)


# ------------------------------------------------------------------------------------------------------------ command

_HEAD = """# Guests

Written by `python -m tests.bench kinds --page docs/guests.md`: QEMU {qemu} guests (TCG) with Linux's virtio drivers,
Open vSwitch {release}, through a whole upgrade. The columns count pings of the guests among each other and of the
remote host. Where a guest does something of its own, once before the upgrade, once between parking and moving, and once
after it, they count the other guest's, and the guest itself must answer again each time.

| guest | pings | lost | doubled | longest gap | hand-over | |
|---|---|---|---|---|---|---|
"""

_TAIL = """
The lab's uplink carries 1500 bytes (DPDK's af_packet driver): with an MTU of 9000 the guests ping one another with
full frames, and the remote host with small ones.

Not tried: `in_order` (QEMU 7.2 has no such property), and KVM (the guests run under TCG, without MSI-X). DPDK's
`virtio_user` is what `python -m tests.bench forwarding` measures with.
"""


def row(result: Result) -> str:
    if result.fault is not None:
        return f"| {result.kind} | | | | | | {result.fault} |\n"
    gap = "none answered" if result.gap_ms is None else f"{result.gap_ms:.0f} ms"
    moves = ", ".join(f"{each:.0f}" for each in result.moves_us)
    return f"| {result.kind} | {result.sent} | {result.lost} | {result.doubled} | {gap} | {moves} us | works |\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "kinds")
    parser.add_argument("--page", type=Path, help="write the table to this Markdown file")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a kind did not work or lost something. Raises HotswapError."""

    def measure(kind: Kind) -> Result:
        result = run_kind(kind, system)
        output.line(row(result).strip())
        return result

    results = cases.each_case(KINDS, arguments, output, measure, asdict)
    if arguments.page is not None:
        versions = {"qemu": _version(system, "qemu-system-x86_64"), "release": _version(system, "ovs-vsctl")}
        arguments.page.write_text(_HEAD.format(**versions) + "".join(map(row, results)) + _TAIL)
    return int(any(result.fault or result.lost for result in results))


def _version(system: System, program: str) -> str:
    words = system.run([program, "--version"]).stdout.split()
    return next(word for word in words if word[0].isdigit())

"""Every kind of guest through an upgrade, and what a guest may do before, during and after one.

Each kind has a lab of its own with real QEMU guests that ping each other and the remote host every 10 ms. *During* is
between parking the VMs on the new instance and moving them there. What is lost is counted over a whole upgrade; where a
guest does something of its own, over the other guest's pings of the remote host. In either back-end mode.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench import cases
from bench.acts import Act, Driver, Memory, Migrate, Pause, Queues, Reboot
from bench.testpmd import needed
from bench.users import USERS, User, UserResult, run_user
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.broker.lifecycle import start_broker
from ovs_hotswap.cli.output import Output
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import GuestOptions, Lab
from ovs_hotswap.lab.guest import dual_qemu
from ovs_hotswap.lab.pings import Pings, PingStats, Stream
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.system import System
from ovs_hotswap.upgrade.upgrade import Upgrader

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
    """The result of one kind. ``fault``: why it did not work, otherwise ``None``. ``moves_us``: the microseconds of the
    handovers, on the broker's clock or QEMU's."""

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
        if lab.config.backend is BackendMode.BROKER:
            start_broker(lab.config, self._system, lab.config_path, _BROKER_S)
        start_instance(host, Side.A, host.releases.get("host"))
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

        report = Upgrader(host).upgrade("host", observe, force=True)
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

Linux guests under QEMU (TCG), with Linux's virtio drivers, through a whole upgrade. The columns count pings of the
guests among each other and of the remote host. Where a guest does something of its own, once before the upgrade, once
between parking and moving, and once after it, they count the other guest's, and the guest itself must answer again each
time. `make guests` and `make guests BACKEND=qemu-dual` write a part each.

The lab's uplink carries 1500 bytes (DPDK's af_packet driver): with an MTU of 9000 the guests ping one another with
full frames, and the remote host with small ones.

Not tried: KVM, which runs no guest on that machine, and with it MSI-X (QEMU 7.2 under TCG ends with MSI-X and
vhost-user); `in_order` in QEMU (7.2 has no such property).
"""

_COLUMNS = """
| guest | pings | lost | doubled | longest gap | handover | |
|---|---|---|---|---|---|---|
"""

_TITLES = {BackendMode.BROKER: "With a broker", BackendMode.QEMU_DUAL: "Without a broker"}

_ABOUT = {
    BackendMode.BROKER: "QEMU {qemu}, Open vSwitch {release}, both stock.",
    BackendMode.QEMU_DUAL: """QEMU {qemu} with the series in `qemu-patches`, Open vSwitch {release};
back-end mode `qemu-dual`. It has no
capture rings: what arrives for a guest in the moment of its move is lost.""",
}

_USERS = """
The guests of other people's front end, DPDK's `virtio_user`, through an upgrade and back. Frames go round between two
of them; a second's frames before it, with the VMs parked on the standby, after it, and after the way back:

| guest | before | parked | after | back | handover | |
|---|---|---|---|---|---|---|
"""


def row(result: Result) -> str:
    if result.fault is not None:
        return f"| {result.kind} | | | | | | {result.fault} |\n"
    gap = "none answered" if result.gap_ms is None else f"{result.gap_ms:.0f} ms"
    moves = ", ".join(f"{each:.0f}" for each in result.moves_us)
    return f"| {result.kind} | {result.sent} | {result.lost} | {result.doubled} | {gap} | {moves} us | works |\n"


def user_row(result: UserResult) -> str:
    rates = " | ".join(str(each) for each in [*result.rates, *[""] * (4 - len(result.rates))])
    moves = ", ".join(f"{each:.0f}" for each in result.moves_us)
    return f"| {result.kind} | {rates} | {moves} us | {result.fault or 'works'} |\n"


def section(mode: BackendMode, results: Sequence[Result | UserResult], *, qemu: str, release: str) -> str:
    """The part of the page about one back-end mode, without the marks of a heading."""
    guests = "".join(row(each) for each in results if isinstance(each, Result))
    users = "".join(user_row(each) for each in results if isinstance(each, UserResult))
    about = _ABOUT[mode].format(qemu=qemu, release=release)
    return f"{_TITLES[mode]}\n\n{about}\n{_COLUMNS}{guests}{_USERS + users if users else ''}"


def page(before: str, part: str) -> str:
    """The page with a new section about one back-end mode, and the section of the other mode as it was."""
    title = part.partition("\n")[0]
    others = [each.strip("\n") for each in before.split("\n## ")[1:] if each.partition("\n")[0] != title]
    return _HEAD + "".join(f"\n## {each}\n" for each in sorted([*others, part.strip("\n")]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases.add_arguments(parser, "kinds")
    parser.add_argument("--page", type=Path, help="write the table to its part of this Markdown file")
    parser.add_argument(
        "--backend", "--road", type=BackendMode, choices=list(BackendMode), default=BackendMode.BROKER,
        help="the back-end mode; `--road` is the earlier name of this option",
    )  # fmt: skip
    parser.add_argument("--qemu", help="QEMU's program; with qemu-dual the installed one with two back ends")


def run(arguments: argparse.Namespace, output: Output, system: System) -> int:
    """Exit status: 1 if a kind did not work, or lost something with a broker. Raises HotswapError."""
    mode: BackendMode = arguments.backend
    qemu = arguments.qemu or (dual_qemu() if mode is BackendMode.QEMU_DUAL else GuestOptions().qemu)
    kinds = [replace(kind, options=kind.options.model_copy(update={"backend": mode, "qemu": qemu})) for kind in KINDS]
    users = USERS if mode is BackendMode.BROKER else ()  # they are front ends themselves
    chosen: tuple[Kind | User, ...] = (*kinds, *users)

    def measure(kind: Kind | User) -> Result | UserResult:
        result = run_user(kind, system) if isinstance(kind, User) else run_kind(kind, system)
        output.line((user_row(result) if isinstance(result, UserResult) else row(result)).strip())
        return result

    if users:
        needed()
    results = cases.each_case(chosen, arguments, output, measure, asdict)
    if arguments.page is not None:
        part = section(mode, results, qemu=_version(system, qemu), release=_version(system, "ovs-vsctl"))
        arguments.page.write_text(page(arguments.page.read_text() if arguments.page.exists() else "", part))
    lost = mode is BackendMode.BROKER and any(each.lost for each in results if isinstance(each, Result))
    return int(lost or any(each.fault for each in results))


def _version(system: System, program: str) -> str:
    words = system.run([program, "--version"]).stdout.split()
    return next(word for word in words if word[0].isdigit())

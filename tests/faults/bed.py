"""The real bed of the fault matrix: a lab with guests that ping, a broker, two instances, a watchdog, and upgrades.

It plays the service manager of the host, which starts broker, watchdog, ovsdb-server and QEMU again after their end,
and, if an upgrade is left unfinished, the operator. Nothing of the product is stubbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ovs_hotswap.broker.control.client import BrokerClient
from ovs_hotswap.broker.lifecycle import start_broker
from ovs_hotswap.errors import HotswapError
from ovs_hotswap.host import standby
from ovs_hotswap.host.flow_tables import tables
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import Lab
from ovs_hotswap.lab.layout import GuestOptions
from ovs_hotswap.lab.leftovers import lab_processes
from ovs_hotswap.lab.pings import Mark, PingStats
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.overlay.ports import PEER
from ovs_hotswap.overlay.tables import Form, lines
from ovs_hotswap.switch.unixctl import appctl
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import checks, collect
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.watchdog import status_file
from tests.faults.matrix import STRUCK_VM, Fault, Victim
from tests.faults.remote import Requests
from tests.faults.things import Clocked, DiskLab, damage, fill, forbid_writing, put_away, repair

GUESTS = 2
HOST, TWIN = "host", "twin"
# Failures of instances come every few seconds here: they must not end the watchdog's patience.
CHANGES = """
[upgrade]
soak_s = 0.3
ready_s = 10

[watch]
crash_limit = 100
crash_window_s = 2
hang_ms = 1500
"""
_PING_MS = 50.0  # QEMU without KVM: two guests that ping every 20 ms take 0.4 of a core
_POLL_S = 0.05
_ASKED_S = 0.01  # for a request to be written
_LISTENS_S = 1.0
_READY_S = 60.0
_FORKED_S = 2.0
_END_S = 20.0
_BROKER_S = 10.0
_ANSWERS = 3
PROGRAMS = {
    "ovsdb-server": 2,
    "ovs-vswitchd-dpdk": 2,
    "qemu-system-x86_64": GUESTS,
    "broker run": 1,
    "broker supervise": 1,
    "watch run": 1,
}


class Failed(Exception):
    """The bed is not as it must be."""


class Bed:
    """Everything that runs; ``running`` makes it. ``warm``: an upgrade goes to the release that runs already, so the
    VMs move to the watchdog's standby; otherwise the upgrade ends this standby and starts its own."""

    def __init__(self, lab: Lab, system: System | Clocked, requests: Requests, *, warm: bool) -> None:
        self.lab, self.system, self.requests, self._warm = lab, system, requests, warm
        self.config = lab.config
        self.host = Host(lab.config, system)
        self.watchdog = 0
        self.program = [sys.executable, "-m", "ovs_hotswap", "--config", str(lab.config_path)]

    def wanted_release(self) -> str:
        """The release to which the next upgrade goes."""
        running = self.host.instances[self.host.active()].release()
        name = HOST if running is None else running.name
        return name if self._warm else TWIN if name == HOST else HOST

    # -- services

    def start_broker(self) -> None:
        start_broker(self.config, self.system, self.lab.config_path, _BROKER_S)

    def start_watchdog(self) -> None:
        log = self.lab.layout.directory / "watch.log"
        self.watchdog = self.system.spawn([*self.program, "watch", "run"], log=log)

    def revive(self) -> list[str]:
        """Start again what a service manager starts again; return the names."""
        started = []
        if self.system.read_pid(self.config.run_dir / "broker.pid") is None:
            self.start_broker()
            started.append("broker")
        if not self.system.alive(self.watchdog):
            self.start_watchdog()
            started.append("watchdog")
        for guest in self.lab.guests:
            if guest.pid is None:
                self.lab.start_guest(guest.name)
                started.append(guest.name)
        return started

    # -- processes

    def pid(self, victim: Victim, active: Side) -> int | None:
        """The pid of ``victim``; ``None`` if there is none, and for the orchestrator, which only its parent knows."""
        match victim:
            case Victim.ACTIVE | Victim.STANDBY:
                side = active if victim is Victim.ACTIVE else active.other
                return self.host.instances[side].pid()
            case Victim.ACTIVE_DB | Victim.STANDBY_DB:
                side = active if victim is Victim.ACTIVE_DB else active.other
                return self.system.read_pid(self.host.instances[side].paths.ovsdb_pid)
            case Victim.BROKER:
                return self.system.read_pid(self.config.run_dir / "broker.pid")
            case Victim.WATCHDOG:
                return self.watchdog
            case Victim.QEMU:
                return self.lab.guest(STRUCK_VM).pid
        return None

    def end_cleanly(self, victim: Victim, active: Side, pid: int) -> None:
        """Make a process end in the intended way."""
        side = active if victim in (Victim.ACTIVE, Victim.ACTIVE_DB) else active.other
        paths = self.host.instances[side].paths
        if victim in (Victim.ACTIVE, Victim.STANDBY):
            self._exit(paths.vswitchd_ctl)
        elif victim in (Victim.ACTIVE_DB, Victim.STANDBY_DB):
            self._exit(paths.ovsdb_ctl)
        else:
            os.kill(pid, signal.SIGTERM)

    @staticmethod
    def _exit(ctl: Path) -> None:
        """Ask for the exit without waiting for the answer: the process may stand still, or end before it answers."""

        def ask() -> None:
            with contextlib.suppress(HotswapError):
                appctl(ctl, "exit", timeout=_READY_S)

        end = time.monotonic() + _LISTENS_S
        while not ctl.exists() and time.monotonic() < end:  # the process has just been started
            time.sleep(_ASKED_S)
        threading.Thread(target=ask, daemon=True).start()
        time.sleep(_ASKED_S)

    # -- what is no process

    @property
    def environment(self) -> dict[str, str]:
        """The environment for this program if it is not ``system`` that starts it."""
        return {**os.environ, **(self.system.environment if isinstance(self.system, Clocked) else {})}

    def strike(self, fault: Fault, victim: Victim) -> None:
        match victim:
            case Victim.STATE_DIR if fault is Fault.READ_ONLY:
                forbid_writing(self.config.state_dir, self.system)
            case Victim.STATE_DIR:
                fill(self.config.state_dir)
            case Victim.RUN_DIR:
                fill(self.config.run_dir)
            case Victim.JOURNAL:
                damage(self.config.state_dir / "journal", fault)
            case Victim.CLOCK:
                assert isinstance(self.system, Clocked)
                self.system.set_clock(fault)

    def mend(self) -> None:
        """Do what an operator does about disks and the clock."""
        repair(self.config, self.system)
        if isinstance(self.system, Clocked):
            self.system.set_clock(None)

    def put_journal_away(self) -> None:
        """Do what an operator does about a damaged journal."""
        put_away(self.config.state_dir / "journal")

    def database_command(self, pid: int, side: Side) -> list[str]:
        """The command that starts the database server again that now runs as ``pid``."""
        return ["nsenter", f"--net=/run/netns/{self.host.instances[side].paths.netns}", "--", *self.system.cmdline(pid)]

    # -- waiting

    def wait(self, true: Callable[[], bool], what: Callable[[], str], seconds: float = _READY_S) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(HotswapError):
                if true():
                    return
            if time.monotonic() >= end:
                raise Failed(f"{what()} after {seconds:g} s")
            time.sleep(_POLL_S)

    def wait_standby(self) -> None:
        """Wait until the watchdog's standby is ready: it is programmed, and every VM with a guest is parked on it."""
        self.wait(self._standby_ready, lambda: f"no standby: {status_file.read_state(self.config)}")

    def _standby_ready(self) -> bool:
        now = self.host.recorded_active()
        state = status_file.read_state(self.config) or {}
        if now is None or standby.warm(self.host, now.other) is None:
            return False
        vms = self.host.backends.vms()
        return (
            state.get("pid") == self.watchdog
            and state.get("keeping") == "ready"
            and all(vm.qemu for vm in vms)
            and not any(vm.unprotected(now.other) for vm in vms)
        )

    # -- traffic

    def forwarding(self, spared: frozenset[str], seconds: float) -> list[str]:
        """Wait until all pings except those from and to ``spared`` guests are answered. Returns the pings that are not
        answered after ``seconds``."""
        pings, end = self.lab.pings, time.monotonic() + seconds
        begun = pings.mark()
        while True:
            seen = pings.between(begun, pings.mark(), patience_s=0.0)
            quiet = [
                f"{each.guest} -> {each.target}" for each in seen if self.counts(each, spared) and each.received < 3
            ]
            if not quiet or time.monotonic() >= end:
                return quiet
            time.sleep(_POLL_S)

    @staticmethod
    def counts(stats: PingStats, spared: frozenset[str]) -> bool:
        return stats.guest not in spared and stats.target not in spared

    def outages(self, first: Mark, spared: frozenset[str]) -> dict[str, float | None]:
        """The longest gap of each stream that is not spared, in milliseconds."""
        seen = self.lab.pings.between(first, self.lab.pings.mark(), patience_s=0.3)
        return {f"{each.guest}-{each.target}": each.longest_gap_ms for each in seen if self.counts(each, spared)}

    def copies(self, first: Mark) -> int:
        """The number of answers that a guest got twice."""
        return sum(each.duplicated for each in self.lab.pings.between(first, self.lab.pings.mark(), patience_s=0.0))

    # -- what must be true of a host at rest

    def faults(self) -> list[str]:
        """Everything that is not as it must be while nothing is under way. Empty if all is well."""
        found: list[str] = []
        for look in (self._ownership, self._steering, self._instances, self._journal, self._left_behind, self._rings):
            try:
                found += look()
            except HotswapError as error:
                found.append(f"{look.__name__.strip('_')}: {error.message}")
        return found

    def _ownership(self) -> list[str]:
        active, found = self.host.recorded_active(), []
        if active is None:
            return ["no side is recorded as active"]
        for vm in self.host.backends.vms():
            if (vm.owner, vm.certainty) != (active, "owns") or vm.switches[active].role != "owner":
                found.append(f"{vm.name} is owned by {vm.owner} ({vm.certainty}), active is {active}")
            if vm.switches[active.other].role not in {None, "idle", "parked"}:
                found.append(f"{vm.name}: side {active.other} is {vm.switches[active.other].role} too")
        return found

    def _steering(self) -> list[str]:
        owner, active = self.host.uplink.owner(), self.host.recorded_active()
        return [] if owner is active else [f"the uplink is {owner}'s, active is {active}"]

    def _instances(self) -> list[str]:
        found = []
        active = self.host.recorded_active()
        for side in Side:
            if differences := self.host.openflow(side).diff(lines(tables(self.host, side, Form.FINAL))):
                found.append(f"instance {side}: {len(differences)} flows differ from the final form")
            with self.host.instances[side].database() as database:
                if PEER in database.interfaces():
                    found.append(f"instance {side} still has the peer link")
            sleep, own = self.host.pmd_sleep(side), self.config.instance(side).pmd_sleep_us
            if side is active and sleep != own:
                found.append(f"instance {side}: PMD sleep is {sleep} us, not {own}")
        return found

    def _journal(self) -> list[str]:
        contents = Upgrader(self.host).unfinished()
        return [] if contents is None else [f"the journal is not finished: {contents.standing.phase}"]

    def _left_behind(self) -> list[str]:
        """Processes that do not belong to the bed, stopped processes, and files that a writer did not finish."""
        end = time.monotonic() + _FORKED_S
        programs = self._programs()
        while _counts(programs) != PROGRAMS and time.monotonic() < end:  # pyroute2 forks for a moment
            time.sleep(_POLL_S)
            programs = self._programs()
        found = [] if _counts(programs) == PROGRAMS else [f"processes: {_counts(programs)}"]
        found += [f"process {pid} is stopped" for pids in programs.values() for pid in pids if self.system.stopped(pid)]
        for directory in (self.config.run_dir, self.config.state_dir, self.config.state_dir / "journal"):
            found += [f"{path} was left" for path in directory.glob(".*") if self._stale(path)]
        return found

    def _programs(self) -> dict[str, list[int]]:
        """The pids of the lab's processes, by program."""
        programs: dict[str, list[int]] = {}
        for pid in lab_processes(self.lab.layout.directory, self.system):
            words = self.system.cmdline(pid)
            if "ovs_hotswap" in words:  # ... -m ovs_hotswap --config FILE COMMAND
                begin = words.index("ovs_hotswap") + 3
                words = [" ".join(words[begin : begin + 2])]
            programs.setdefault(Path("".join(words[:1])).name, []).append(pid)
        return programs

    def _stale(self, path: Path) -> bool:
        number = path.name.rpartition(".")[2]
        return number.isdigit() and not self.system.alive(int(number))

    def _rings(self) -> list[str]:
        before = collect.ring_samples(self.host)
        time.sleep(0.2)
        findings = checks.ring_progress(before, collect.ring_samples(self.host))
        return [finding.text for finding in findings if finding.severity is Severity.ERROR]

    def status(self) -> dict[str, object]:
        """The document of `ovs-hotswap status`."""
        found = json.loads(self.system.run([*self.program, "--json", "status"], timeout=90.0, check=False).stdout)
        return found if isinstance(found, dict) else {}

    def recover(self) -> None:
        """Bring the bed to rest again after a moment that was missed."""
        self.mend()
        self.revive()
        for command in ("rollback", "resume"):
            if Upgrader(self.host).unfinished() is not None:
                self.system.run([*self.program, command], timeout=_READY_S, check=False)
        self.lab.pings.wait_flowing(30.0)
        self.wait_standby()

    def save_logs(self, where: Path) -> None:
        """Keep the logs that were written so far, for people."""
        where.mkdir(parents=True, exist_ok=True)
        wanted = ["run/*.log", "run/?/*.log", "*.log", "state/*.log", "state/events.jsonl", "state/journal/*.jsonl"]
        for pattern in wanted:
            for path in sorted(self.lab.layout.directory.glob(pattern)):
                target = where / "-".join(path.relative_to(self.lab.layout.directory).parts)
                target.write_bytes(path.read_bytes())

    def client(self, timeout: float = 1.0) -> BrokerClient:
        """A connection to the broker that gives up soon."""
        return BrokerClient(self.config.broker_socket, timeout=timeout)


def _counts(programs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    return {name: len(pids) for name, pids in programs.items()}


@contextlib.contextmanager
def _twin(system: System) -> Iterator[Path]:
    """A second copy of the host's installed package as a release tree: the root file system, mounted read-only at
    another place."""
    tree = Path(tempfile.mkdtemp(prefix="ovsh-twin-"))
    try:
        system.run(["mount", "--bind", "/", str(tree)])
        try:
            system.run(["mount", "-o", "remount,bind,ro", str(tree)])
            yield tree
        finally:
            system.run(["umount", str(tree)])
    finally:
        tree.rmdir()


@contextlib.contextmanager
def running(
    system: System, say: Callable[[str], None] = lambda _line: None, *, warm: bool = False, clocked: bool = False
) -> Iterator[Bed]:
    """Make a bed at rest: every VM forwards, and the watchdog's standby is ready. Everything is removed afterwards.
    ``clocked``: the bed has a clock that can be struck."""
    lab = _lab(Path(tempfile.mkdtemp(prefix="ovsh-fm-")), system)
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(_twin(system))
        stack.callback(lab.down)
        stack.callback(_continue_all, lab, system)
        lab.up()
        with lab.config_path.open("a") as out:
            out.write(CHANGES)
        own = Clocked(lab.config.run_dir) if clocked else system
        bed = Bed(lab, own, stack.enter_context(Requests(lab.layout.remote_namespace)), warm=warm)
        bed.host.releases.add(TWIN, from_directory=tree)
        bed.start_broker()
        start_instance(bed.host, Side.A, bed.host.releases.get(HOST))
        bed.start_watchdog()
        lab.pings.wait_flowing(60.0)
        bed.wait_standby()
        say(f"the bed is ready: {lab.layout.directory}")
        yield bed


def _lab(directory: Path, system: System) -> Lab:
    return DiskLab(directory, GUESTS, system, GuestOptions(ping_interval_ms=_PING_MS))


def hugepages_mb(system: System) -> int:
    """The MiB of huge pages that a bed takes."""
    return _lab(Path("/run/none"), system).megabytes()


def _continue_all(lab: Lab, system: System) -> None:
    """Continue every stopped process of the lab: a stopped process does not answer when it is asked to end."""
    for pid in lab_processes(lab.layout.directory, system):
        if system.stopped(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

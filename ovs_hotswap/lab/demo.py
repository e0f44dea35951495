"""Shows the main task on one machine: an upgrade under running guests, the way back, and a plain restart to compare.

With the back-end mode ``qemu-dual``, a crash is shown instead of the plain restart.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovs_hotswap.backends import BackendMode
from ovs_hotswap.broker.lifecycle import start_broker, stop_broker
from ovs_hotswap.errors import LabError
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.lifecycle import start_instance
from ovs_hotswap.lab import demo_reports
from ovs_hotswap.lab.lab import Lab
from ovs_hotswap.lab.phases import GuestGaps, Phase
from ovs_hotswap.lab.pings import Mark
from ovs_hotswap.lab.timeline import around, longest
from ovs_hotswap.lab.watch import wait_protected, watchdog
from ovs_hotswap.lab.writeback import wait_written
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.tables import Form
from ovs_hotswap.plan.executor import Event
from ovs_hotswap.reports.document import RunKind, RunReport, Stage
from ovs_hotswap.reports.store import Reports
from ovs_hotswap.reports.timeline import running
from ovs_hotswap.switch.release import HOST
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import run_report
from ovs_hotswap.upgrade.upgrade import Upgrader
from ovs_hotswap.waiting import wait_until

SUITE = "trixie"  # OVS 3.5, DPDK 24.11
QUIET_S = 5.0
AFTER_S = 1.0
BROKER_S = 10.0
FLOW_S = 60.0
REPORT_S = 10.0

Say = Callable[[str], None]
Shown = Callable[[], AbstractContextManager[Callable[[Event], None]]]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The phases of the demo. ``quiet``: the same traffic while nothing is done, which shows the noise of this
    machine."""

    releases: dict[str, str]
    quiet: Phase
    upgrade: Phase
    rollback: Phase
    restart: Phase

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (self.quiet, self.upgrade, self.rollback, self.restart)

    @property
    def lossless(self) -> bool:
        return self.upgrade.lost == 0 and self.rollback.lost == 0

    def run_reports(self) -> list[RunReport]:
        """The reports of the upgrade and the rollback, with what the guests saw."""
        restart = self.restart.longest_gap_ms
        return _reports(self.phases, restart if math.isfinite(restart) else None)

    def document(self) -> dict[str, Any]:
        phases = {phase.name: phase.document() for phase in self.phases}
        return {"releases": self.releases, "lossless": self.lossless, "phases": phases}


@dataclass(frozen=True, slots=True)
class DualReport:
    """The phases of the demo in the back-end mode ``qemu-dual``. ``crash``: SIGKILL of the active instance.
    ``failover_us``: the microseconds for which each VM's rings then had no owner, on QEMU's clock, from the moment at
    which QEMU sees that the switch is gone."""

    releases: dict[str, str]
    quiet: Phase
    upgrade: Phase
    rollback: Phase
    crash: Phase
    failover_us: dict[str, float | None]

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (self.quiet, self.upgrade, self.rollback, self.crash)

    def run_reports(self) -> list[RunReport]:
        """The reports of the upgrade, the rollback and the failover, with what the guests saw."""
        return _reports(self.phases, None)

    def document(self) -> dict[str, Any]:
        phases = {phase.name: phase.document() for phase in self.phases}
        return {"releases": self.releases, "phases": phases, "failover_us": self.failover_us}


def _reports(phases: Sequence[Phase], restart_ms: float | None) -> list[RunReport]:
    """The reports of the phases that left one. The first phase is the quiet one."""
    return [demo_reports.with_guests(phase.report, phase, phases[0], restart_ms) for phase in phases if phase.report]


class DirectHost(Host):
    """A host without a broker: each port connects directly to its VM's QEMU, as is usual without ovs-hotswap."""

    def switch_socket(self, side: Side, vm: str) -> Path:
        return self.config.qemu_socket(vm)


class Demo:
    """Runs the phases in a lab that is up. ``say`` is called with a line for each stage. ``shown`` makes a context for
    each upgrade, and the context's value is called with the upgrade's events."""

    def __init__(self, lab: Lab, system: System, say: Say, shown: Shown) -> None:
        self._lab, self._system, self._say, self._shown = lab, system, say, shown
        self._host = Host(lab.config, system)
        self._reports = Reports(run_report.directory(lab.config), system)

    def run(self) -> DemoReport:
        """Run all phases. Raises LabError if the guests' pings do not flow, and what an upgrade raises."""
        self.start()
        releases, phases = self._there_and_back()
        self._say("for comparison: the same guests and switch without a broker, ovs-vswitchd restarted")
        return DemoReport(releases, *phases, self.plain_restart())

    def run_dual(self) -> DualReport:
        """Like ``run``, in the back-end mode ``qemu-dual`` and with a crash at the end."""
        host = self.start()
        releases, phases = self._there_and_back()
        self._say("the active instance is killed, beside a warm standby")
        with watchdog(host, self._lab.config_path, self._lab.layout.directory / "watch.log"):
            crash = self.phase("crash", self.kill_active)
            wait_protected(host, Side.B)
            crash = replace(crash, report=self._failover())
        return DualReport(releases, *phases, crash, {vm.name: vm.last_move_us for vm in host.backends.vms()})

    def _there_and_back(self) -> tuple[dict[str, str], tuple[Phase, Phase, Phase]]:
        host, quiet = self._host, self.quiet()
        old, new = (host.releases.get(name) for name in (HOST, SUITE))
        upgrader = Upgrader(host)
        self._say(f"upgrading to {new.label}")
        with self._shown() as observe:
            upgrade = self.phase("upgrade", lambda: upgrader.upgrade(new.name, observe).moves)
        self._say(f"rolling back to {old.label}")
        with self._shown() as observe:
            rollback = self.phase("rollback", lambda: upgrader.rollback(observe).moves)
        return {"old": old.label, "new": new.label}, (quiet, upgrade, rollback)

    def kill_active(self) -> dict[str, float]:
        """End the active instance by SIGKILL; return when the watchdog has recorded the failover and pings flow."""
        host, active = self._host, self._host.active()
        pid = host.instances[active].pid()
        if pid is None:
            raise LabError(f"instance {active} does not run")
        os.kill(pid, signal.SIGKILL)
        host.wait(lambda: host.recorded_active() is active.other, FLOW_S, lambda: "no failover is recorded")
        self._lab.pings.wait_flowing(FLOW_S)
        return {}

    def _failover(self) -> RunReport | None:
        """The report of the failover, which the watchdog writes when it has nothing else to do."""

        def written() -> list[RunReport]:
            return [each for each in self._reports.all() if each.kind is RunKind.FAILOVER]

        return next(iter(wait_until(written, REPORT_S, self._system)), None)

    def start(self, suite: str | None = SUITE) -> Host:
        """Make the other release if ``suite`` is given, start the broker if the back-end mode has one, start the active
        instance, and wait until the guests' pings flow."""
        host = self._host
        if suite is not None:
            host.releases.add(suite, suite, self._say)
        wait_written(self._system, self._say)
        old = host.releases.get(HOST)
        if host.config.backend is BackendMode.BROKER:
            self._say("starting the broker")
            start_broker(host.config, self._system, self._lab.layout.config_file, BROKER_S)
        self._say(f"starting instance a: {old.label}")
        start_instance(host, Side.A, old)
        self._say("waiting for the guests' pings")
        self._lab.pings.wait_flowing(FLOW_S)
        return host

    def quiet(self) -> Phase:
        """Watch the traffic while nothing is done."""

        def nothing() -> dict[str, float]:
            self._system.sleep(QUIET_S)
            return {}

        return self.phase("quiet", nothing)

    def plain_restart(self) -> Phase:
        """Boot the guests again, directly connected to the active instance, then restart its ovs-vswitchd as a service
        manager would: it exits, starts with its database, and gets its flows back."""
        active = self._host.active()
        direct = DirectHost(self._lab.config, self._system)
        release = direct.instances[active].status().release
        if release is None:
            raise LabError(f"instance {active} does not run")
        stop_broker(self._lab.config, self._system)
        for guest in self._lab.guests:
            self._lab.stop_guest(guest.name)
            self._lab.start_guest(guest.name)
        direct.instances[active].stop()
        direct.instances[active].start(release)
        direct.program(active)
        self._lab.pings.wait_flowing(FLOW_S)

        def restart() -> dict[str, float]:
            direct.instances[active].restart()
            direct.program_tunnels(active)
            direct.program_flows(active, Form.FINAL)
            with contextlib.suppress(LabError):  # the figures show a guest that does not come back
                self._lab.pings.wait_flowing(FLOW_S)
            return {}

        return self.phase("restart", restart)

    def phase(self, name: str, act: Callable[[], dict[str, float]]) -> Phase:
        """Run ``act``, which returns its handovers, and return what the guests noticed."""
        begun, first, before = self._system.monotonic(), self._lab.pings.mark(), set(self._reports.ids())
        moves = act()
        took = self._system.monotonic() - begun
        self._system.sleep(AFTER_S)
        last = self._lab.pings.mark()
        new = [name for name in self._reports.ids() if name not in before]
        left = self._reports.read(new[0]) if new else None
        gaps = self._gaps(first, last, () if left is None else left.stages, moved=bool(moves))
        return Phase(name, took, self._lab.pings.between(first, last), moves, gaps, left)

    def _gaps(self, first: Mark, last: Mark, stages: Sequence[Stage], *, moved: bool) -> list[GuestGaps]:
        since = {vm.name: vm.owner_since for vm in self._host.backends.vms(read=False)} if moved else {}
        found = []
        for stream, gaps in self._lab.pings.gaps(first, last).items():
            most, when = longest(gaps), since.get(stream.guest)
            near = around(gaps, when) if when is not None else None
            found.append(
                GuestGaps(
                    stream.guest,
                    stream.target,
                    None if near is None else near.ms,
                    None if most is None else most.ms,
                    None if most is None else running(stages, most.begin, most.end),
                )
            )
        return found

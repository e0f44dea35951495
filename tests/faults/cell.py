"""Runs one cell of the matrix on the bed: strikes, watches, repairs, and leaves a bed at rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.host.host import WATCHDOG_S
from ovs_hotswap.plan.records import Phase
from ovs_hotswap.switch import launch
from ovs_hotswap.upgrade.upgrade import Upgrader
from tests.faults.bed import Bed
from tests.faults.matrix import HANDOVER, IDLE, Cell, End, Fault, Mend, Seen, Victim, expectation
from tests.faults.strike import Log, Missed, Trail, asked, attentive, go_on, halt, in_swap, stopped, until

HOLD_S = 1.0  # how long a stopped orchestrator, broker, watchdog or QEMU stands still
RESTART_S = 0.1  # after which a service manager starts a service again (systemd.service(5), RestartSec)
_FENCED_S = 8.0
_LOOK_S = 0.05
_ARMED_S = 0.003  # until the new switch is put on its capture rings
_PASSED_S = 0.3  # until the orchestrator sees the PMD threads progress and asks for the move, without further answers
_ASKED_S = 10.0
_LETS_GO_S = 0.005  # until the old switch answers its fence
_BETWEEN = "between steps"
_STEP_S = 60.0
_SWAP_S = 0.5  # from the request to the swap
_ORCHESTRATOR_S = 150.0
_TRIES = 3
_HELD = (Victim.ORCHESTRATOR, Victim.BROKER, Victim.WATCHDOG, Victim.QEMU)
_EXITS = {0: End.COMMITTED, 5: End.ROLLED_BACK, 6: End.UNKNOWN, 15: End.UNFINISHED}


@dataclass
class Struck:
    """What was struck, and when. ``database``: the command that starts it again, if it was a database server."""

    pid: int
    moment: str
    at: float
    database: list[str] = field(default_factory=list)


class Runner:
    """Runs ``cell`` on ``bed``, which is at rest."""

    def __init__(self, bed: Bed, cell: Cell) -> None:
        self._bed, self._cell = bed, cell
        self._expected = expectation(cell)
        self._active = bed.host.active()
        self._trail = Trail(bed.config.state_dir / "journal" / "current.jsonl")
        self._seen = Seen()
        self._standing: int | None = None  # a process that was stopped and is to be continued at the end

    def run(self) -> Seen:
        """Run the cell, and return what was seen. Raises Failed if the bed does not come to rest again, Missed if the
        moment could not be struck."""
        bed, seen = self._bed, self._seen
        seen.old, mark = self._active, bed.lab.pings.mark()
        bed.requests.begin()
        if self._cell.moment == IDLE:
            struck = self._hit(self._pid(), IDLE)
            if not self._cell.victim.process:
                struck.pid = self._bed.pid(Victim.ACTIVE, self._active) or 0
                os.kill(struck.pid, signal.SIGKILL)
            self._hold(struck)
            bed.revive()
        else:
            struck = self._in_upgrade()
        seen.struck = struck.moment
        seen.silent = bed.forwarding(self._expected.spared, self._expected.within_s)
        seen.outage_ms = bed.outages(mark, self._expected.spared)
        self._look()
        self._let_go(struck)
        bed.revive()
        self._mend()
        self._rest()
        seen.faults = bed.faults()
        seen.active = bed.host.recorded_active()
        seen.doubled, seen.requests = dict(bed.requests.count.doubled), bed.requests.count.requests
        seen.copies = bed.copies(mark)
        return seen

    # -- striking

    def _pid(self) -> int:
        """The pid of the victim; 0 if it is not a process. Raises Missed if the process does not run now."""
        if not self._cell.victim.process:
            return 0
        pid = self._bed.pid(self._cell.victim, self._active)
        if pid is None:
            raise Missed
        return pid

    def _hit(self, pid: int, moment: str) -> Struck:
        struck = Struck(pid, moment, time.monotonic())
        if self._cell.victim in (Victim.ACTIVE_DB, Victim.STANDBY_DB):
            side = self._active if self._cell.victim is Victim.ACTIVE_DB else self._active.other
            struck.database = self._bed.database_command(pid, side)
        match self._cell.fault:
            case Fault.KILL:
                os.kill(pid, signal.SIGKILL)
            case Fault.STOP:
                os.kill(pid, signal.SIGSTOP)
                self._standing = pid
            case Fault.EXIT:
                self._bed.end_cleanly(self._cell.victim, self._active, pid)
            case _:
                self._bed.strike(self._cell.fault, self._cell.victim)
        return struck

    def _hold(self, struck: Struck) -> None:
        """Let a process that will be continued stand still for a while, and check that the VMs forward during that."""
        if not self._cell.victim.process:
            return
        if self._cell.fault is not Fault.STOP:
            time.sleep(RESTART_S)
        elif self._cell.victim in _HELD:
            if self._expected.while_stopped:
                self._seen.silent_while_stopped = self._bed.forwarding(self._expected.spared, HOLD_S)
            time.sleep(max(0.0, struck.at + HOLD_S - time.monotonic()))
            self._continue()
        elif self._cell.moment == IDLE:
            end = struck.at + (_FENCED_S if self._expected.ended else HOLD_S)
            while self._bed.system.alive(struck.pid) and time.monotonic() < end:
                time.sleep(_LOOK_S)

    def _continue(self) -> None:
        if self._standing is not None:
            go_on(self._standing)
            self._standing = None

    def _in_upgrade(self) -> Struck:
        with self._orchestrator("upgrade", "--force", "--release", self._bed.wanted_release()) as (child, output):
            strike = self._in_handover if self._cell.moment == HANDOVER else self._in_step
            try:
                struck = strike(child)
            except Missed as error:
                self._ended(child)
                raise Missed(f"the upgrade ended: {'; '.join(_tail(output))}") from error
            self._hold(struck)
            self._bed.revive()
            self._seen.end = self._ended(child)
            self._seen.message = _tail(output)
        return struck

    @contextlib.contextmanager
    def _orchestrator(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                [*self._bed.program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                env=self._bed.environment,
            )  # fmt: skip
            try:
                yield child, output
            finally:
                try:
                    child.wait(_ORCHESTRATOR_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _ended(self, child: subprocess.Popen[bytes]) -> End:
        try:
            status = child.wait(_ORCHESTRATOR_S)
        except subprocess.TimeoutExpired:
            return End.HANGS
        return End.DIED if status < 0 else _EXITS.get(status, End.REFUSED)

    def _in_step(self, child: subprocess.Popen[bytes]) -> Struck:
        wanted = self._cell.moment
        with attentive():
            until(lambda: self._trail.step() == wanted, child, _STEP_S)
            if self._cell.victim is Victim.ORCHESTRATOR:
                halt(child.pid, self._bed.system)
                try:
                    struck = self._hit(child.pid, self._still(wanted))
                except Missed:
                    go_on(child.pid)
                    raise
                if self._cell.fault is not Fault.STOP:
                    go_on(child.pid)
                return struck
            if self._cell.victim.process:
                until(lambda: self._bed.pid(self._cell.victim, self._active) is not None, child, _STEP_S)
            with stopped(child.pid, self._bed.system):
                return self._hit(self._pid(), self._still(wanted))

    def _still(self, wanted: str) -> str:
        """The step in which the orchestrator stands still. Raises Missed if it is not the wanted one any longer."""
        if self._trail.step() != wanted:
            raise Missed
        return wanted

    def _in_handover(self, child: subprocess.Popen[bytes]) -> Struck:
        bed = self._bed
        broker = bed.pid(Victim.BROKER, self._active)
        assert broker is not None
        with attentive(), contextlib.closing(Log(bed.config.run_dir / "broker.log")) as log:
            until(lambda: log.has(b" arm {"), child, _STEP_S)
            end = time.monotonic() + _ASKED_S
            with self._asked(child, broker, end):
                old, new = (bed.pid(victim, self._active) for victim in (Victim.ACTIVE, Victim.STANDBY))
                if old is None or new is None:
                    raise Missed
                halt(old, bed.system)
            try:
                until(lambda: in_swap(broker), child, _SWAP_S)
                halt(new, bed.system)
            finally:
                go_on(old)
            try:
                time.sleep(_LETS_GO_S)
                if not in_swap(broker):
                    raise Missed
                return self._hit(child.pid if self._cell.victim is Victim.ORCHESTRATOR else self._pid(), HANDOVER)
            finally:
                if self._standing != new:
                    go_on(new)

    @contextlib.contextmanager
    def _asked(self, child: subprocess.Popen[bytes], broker: int, end: float) -> Iterator[None]:
        """Hold the broker still while the request for a move waits for it. Raises Missed if there is no request."""
        system = self._bed.system
        while child.poll() is None and time.monotonic() < end:
            time.sleep(_ARMED_S)
            with stopped(broker, system):
                look_until = time.monotonic() + _PASSED_S
                while time.monotonic() < look_until:
                    if asked(child.pid, broker, system):
                        yield
                        return
                    time.sleep(_LOOK_S)
        raise Missed

    # -- looking and repairing

    def _look(self) -> None:
        """Note what the journal says after the end of the orchestrator."""
        upgrader, seen = Upgrader(self._bed.host), self._seen
        seen.recorded = self._bed.host.recorded_active()
        try:
            contents = upgrader.unfinished()
            seen.phase = None if contents is None else str(contents.standing.phase)
            last = upgrader.last()
            seen.last_committed = None if last is None else last.committed
        except StateUnknown:
            if self._cell.victim is not Victim.JOURNAL:
                raise

    def _let_go(self, struck: Struck) -> None:
        """Continue a process that stands still, make room on disks, start a database server again."""
        self._bed.mend()
        if self._expected.ended:  # by the upgrade, or by the watchdog when that is over
            end = time.monotonic() + _FENCED_S
            while self._bed.system.alive(struck.pid) and time.monotonic() < end:
                time.sleep(_LOOK_S)
        self._seen.ended = not self._bed.system.alive(struck.pid)
        self._continue()
        if struck.database and not self._bed.system.alive(struck.pid):
            side = self._active if self._cell.victim is Victim.ACTIVE_DB else self._active.other
            instance = self._bed.host.instances[side]
            paths = instance.paths
            # Otherwise it was retired, or the watchdog has started another one. The lock keeps it from doing so now.
            with self._bed.host.lock(WATCHDOG_S):
                if paths.db_file.exists() and instance.database_pid() is None:
                    self._bed.system.run(struck.database, env=launch.environment(paths.run_dir), check=False)

    def _mend(self) -> None:
        """Do what an operator does about an unfinished journal, as `status` says."""
        seen = self._seen
        for _ in range(_TRIES):
            try:
                if Upgrader(self._bed.host).unfinished() is None:
                    return
            except StateUnknown as error:
                if error.message not in str(self._bed.status().get("unknown")):
                    seen.problems.append("`status` does not show the damaged journal")
                self._bed.put_journal_away()
                return
            if self._bed.status().get("unfinished") is None:
                seen.problems.append("`status` does not show the unfinished upgrade")
            command = str(Mend.RESUME if seen.phase == Phase.COMMITTED else self._expected.mend)
            with self._orchestrator(command) as (child, output):
                end = self._ended(child)
                said = "done" if end is End.COMMITTED else f"{end} ({'; '.join(_tail(output))})"
            seen.mended.append(f"{command}: {said}")

    def _rest(self) -> None:
        bed = self._bed
        bed.lab.pings.wait_flowing(30.0)
        bed.wait_standby()


def _tail(output: IO[bytes]) -> list[str]:
    """The last lines that were written."""
    output.seek(0)
    return output.read().decode(errors="replace").strip().splitlines()[-3:]

"""The watchdog: notices that the active instance died or hangs, and moves every VM to the standby.

The broker gives a dead instance's VMs to the standby by itself. The watchdog ends an instance that hangs, steers the
uplink and records the new active side. This needs no lock, since no other work can be done on a dead instance; so it is
also done during an upgrade whose other instance has the VMs parked. Longer tasks are left to the ``Keeper``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.config import Config, Program
from ovs_hotswap.config_changes import values
from ovs_hotswap.config_follower import ConfigFollower
from ovs_hotswap.errors import BrokerError, BusyError, HotswapError, StateUnknown
from ovs_hotswap.host import scheduling, standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.plan.interrupts import ended_as_child
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import Phase
from ovs_hotswap.priority import raise_priority
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.service import sd_notify
from ovs_hotswap.system import System
from ovs_hotswap.toml_file import stamp_of
from ovs_hotswap.trust import own_directory
from ovs_hotswap.watchdog import status_file
from ovs_hotswap.watchdog.failover import Act, FailoverState, next_act
from ovs_hotswap.watchdog.health import Health, History, Limits, Sample, Signal, Verdict, judge
from ovs_hotswap.watchdog.nic_watch import NicWatch
from ovs_hotswap.watchdog.probes import ExitPoller, MainThreadProbe
from ovs_hotswap.watchdog.standby_keeper import Keeper

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # until the broker has given every VM an owner
_NUDGE_S = 0.1  # by then the broker has moved the VMs that were parked
_AWAIT_S = 0.02  # between two questions: describing every VM keeps the broker from its work
_AGAIN_S = 0.5


@dataclass
class FailOver:
    """One failover. ``begun``: when it was detected, in monotonic seconds; ``wall``: the same in seconds since the
    epoch. ``at``: seconds from then to the end of each stage. ``vms``: the broker's last description of the VMs."""

    side: Side
    verdict: Verdict
    begun: float
    wall: float
    at: dict[str, float] = field(default_factory=dict)
    vms: list[VmStatus] = field(default_factory=list)
    steered: bool = False
    nudged: bool = False
    blind: bool = False  # the broker does not answer


class Guard:
    """Looks at the active instance and fails over. Only the watchdog's own thread calls the methods.

    A failover to a prepared standby needs the two processes and the uplink, and nothing else. An unreadable journal, a
    silent broker or a full disk does not hold it up.
    """

    def __init__(
        self,
        host: Host,
        board: status_file.StatusFile,
        keeper: Keeper,
        main: MainThreadProbe,
        follow: Callable[[Intent], Host],
    ) -> None:
        """``follow`` makes a new host with another overlay intent."""
        watch = host.config.watch
        self._follow = follow
        self._host, self._board, self._keeper, self._main = host, board, keeper, main
        self._limits = Limits(watch.check_ms / 1e3, watch.hang_ms / 1e3, watch.main_ms / 1e3)
        self._history = History()
        self._watched: tuple[Side, int] | None = None
        self._under_way: FailOver | None = None
        self._not_before = float("-inf")
        self._uplink_back: Side | None = None
        self._intent: Intent | None = None  # the last one taken from the keeper
        self._problem: str | None = None

    def look(self, dead: set[Side], pids: dict[Side, int | None]) -> Verdict | None:
        """Look at the active instance once, act on what is seen, and return the verdict; ``None`` if there is none.
        ``pids``: the processes that lived before this look. ``dead``: the sides whose processes have ended since.

        Never raises for a fault of the host: the next look follows soon.
        """
        verdict: Verdict | None = None
        try:
            self._follow_intent()
            active = self._host.recorded_active()
            if active is None or not self._host.instances[active].ours:  # its own units start it again
                self._under_way = self._uplink_back = None
                return None
            verdict = self._judge(active, None if active in dead else pids[active])
            self._act(active, verdict, dead)
        except HotswapError as error:
            self._failed(error.message)
        except Exception as error:  # an unforeseen fault of the host
            if self._failed(f"{type(error).__name__}: {error}"):
                log.exception("looking at the instances")
        return verdict

    def _follow_intent(self) -> None:
        """Steer by the overlay intent that the keeper has programmed: a Host reads it once."""
        intent = self._keeper.followed
        if intent is not None and intent is not self._intent and self._under_way is None:
            self._host = self._follow(intent)  # if this raises, the next look tries it again
            self._intent = intent

    def _act(self, active: Side, verdict: Verdict, dead: set[Side]) -> None:
        self._board.update(health=verdict.health, reason=verdict.reason if verdict.signal else None)
        if active.other in dead:
            self._uplink_back = active.other
        if verdict.health is Health.FAILED:
            self._fail_over(active, verdict)
            return
        self._under_way = None
        if self._uplink_back is active.other:
            self._follow_uplink(active, active.other)
        self._uplink_back = None
        if verdict.health is Health.HEALTHY:
            scheduling.serve(self._host, active)  # the process that started it may have been killed too early
            self._problem = None
            self._board.update(failover_problem=None)

    def _failed(self, problem: str) -> bool:
        """Log a problem, only once even if every look meets it. Returns whether it is new."""
        new, self._problem = problem != self._problem, problem
        if new:
            log.warning("%s", problem)
        self._board.update(failover_problem=problem)
        return new

    def _judge(self, active: Side, pid: int | None) -> Verdict:
        system = self._host.system
        if pid is None:
            return Verdict(Health.FAILED, Signal.PROCESS, "its process is dead")
        if self._watched != (active, pid):
            self._watched, self._history = (active, pid), History()
            self._main.watch(self._host.control(active), pid)
        silent, answer = self._main.seen()
        sample = Sample(system.monotonic(), True, system.stopped(pid), silent, answer)
        self._history, verdict = judge(self._history, sample, self._limits)
        return verdict

    @staticmethod
    def _try(what: str, act: Callable[[], object]) -> None:
        """Do something after the active side was recorded. A fault is only logged: the failover is done."""
        try:
            act()
        except Exception:
            log.exception("after the failover: %s", what)

    def _follow_uplink(self, active: Side, dead: Side) -> None:
        """Steer the uplink back to the active side. During an upgrade it may be steered to the other side; if this one
        dies, the broker gives the VMs back to the active side."""
        self._keeper.wake()
        uplink = self._host.config.uplink
        # Without an owner, one of two NICs may lead to the dead side, or it had the uplink that only one can have.
        partly = uplink.driver != "none" and (uplink.second is not None or not uplink.both_open)
        with self._keeper.steering.turning:
            owner = self._host.uplink.owner()
            if owner is not dead and not (owner is None and partly):
                return
            self._host.uplink.steer(active)
        self._board.event("uplink-back", dead=dead, to=active)

    # -- failover

    def _fail_over(self, side: Side, verdict: Verdict) -> None:
        host, system = self._host, self._host.system
        work = self._under_way
        if work is None or work.side is not side or (not work.at and work.verdict.signal is not verdict.signal):
            self._under_way = work = FailOver(side, verdict, system.monotonic(), system.wall())
        elif system.monotonic() < self._not_before:
            return
        self._not_before = system.monotonic() + _AGAIN_S
        while True:
            act = next_act(self._state_of(work))
            if host.recorded_active() is not side:
                return  # `instance stop` wants no active instance
            if act is Act.NO_TARGET:
                lack = "the standby's uplink passes nothing" if self._loses(work, alive=True) else "no standby is ready"
                self._board.update(failover_problem=f"instance {side}: {verdict.reason}, and {lack}")
                self._keeper.wake()
                return
            self._do(work, act)
            if act is Act.RECORD:
                return

    def _state_of(self, work: FailOver) -> FailoverState:
        host, other = self._host, work.side.other
        alive = host.instances[work.side].has_memory()
        target_ready = (
            host.instances[other].pid() is not None and self._takes(other) and not self._loses(work, alive=alive)
        )
        if not (target_ready and work.steered):
            useless = not target_ready and work.verdict.signal is Signal.STOPPED and self._starts_again(work.side)
            return FailoverState(alive, target_ready, useless, work.steered)
        stranded = self._stranded(work)
        patience = host.system.monotonic() - work.begun < _PATIENCE_S
        return FailoverState(alive, target_ready, steered=work.steered, stranded=stranded, patience=patience)

    def _loses(self, work: FailOver, *, alive: bool) -> bool:
        """Whether a failover would lose packets that pass now: an instance still forwards if only its main thread is
        silent, and the other side's uplink passes nothing."""
        silent = alive and work.verdict.signal is Signal.MAIN_THREAD
        return silent and self._keeper.wires.worse(work.side.other)

    def _stranded(self, work: FailOver) -> int:
        """The number of VMs that the other side could own and does not own. It is 1 if the back ends do not answer:
        there may be such a VM, and a broker, or a QEMU with two back ends, moves parked VMs by itself."""
        host, other = self._host, work.side.other
        try:
            work.vms = host.backends.vms(read=False)
        except HotswapError as error:
            log.warning("which VMs are moved is not known: %s", error.message)
            work.vms, work.blind = [], True
            return 1
        work.blind = False
        waiting = [vm for vm in work.vms if vm.stranded(other)]
        if not waiting:
            since = [vm.owner_since for vm in work.vms if vm.owner_since and vm.owner == other]
            seen = host.system.monotonic() - work.begun  # a QEMU with two back ends does not report the time
            work.at.setdefault("owned", max(0.0, max(since) - work.wall) if since else seen)
        return len(waiting)

    def _takes(self, side: Side) -> bool:
        """Whether VMs can move to ``side``: it is the warm standby, or an upgrade has parked VMs on it or is about to.
        In these two cases the upgrade continues without the failed instance."""
        if self._host.config.program is Program.CLONE:  # there, the upgrade itself answers the death of an instance
            return False
        if standby.warm(self._host, side) is not None:
            return True
        try:
            vms = self._host.backends.vms(read=False)
            if any(vm.reachable(side) for vm in vms):
                return True
            return not self._host.unconnected(side) and self._upgrade_under_way()
        except BrokerError as error:
            log.warning("whether instance %s can take the VMs is not known: %s", side, error.message)
            return False

    def _upgrade_under_way(self) -> bool:
        """Whether an upgrade runs before its commit. An upgrade whose journal cannot be read does not continue."""
        host = self._host
        try:
            contents = Journals(host.config.state_dir, host.system).read()
            if contents is None or contents.standing.phase is not Phase.FORWARD:
                return False
            with host.lock():
                return False  # no process executes it
        except BusyError:
            return True
        except (OSError, StateUnknown):
            return False

    def _starts_again(self, active: Side) -> bool:
        """Whether the keeper would start the active instance again if it ended now, with no target for a failover.
        While an upgrade waits to be resumed, or may do so, the keeper does this only if no instance is left."""
        host = self._host
        cloned = host.config.program is Program.CLONE
        if host.instances[active.other].pid() is None and not cloned:
            return True
        try:
            unfinished = Journals(host.config.state_dir, host.system).read() is not None
        except (OSError, StateUnknown):
            unfinished = True
        return not unfinished or (not cloned and self._upgrade_under_way())

    def _do(self, work: FailOver, act: Act) -> None:
        host, other = self._host, work.side.other
        match act:
            case Act.FENCE:
                host.instances[work.side].kill()
                self._stamp(work, "fenced")
            case Act.STEER:
                scheduling.serve(host, other)  # it may have been in the middle of its start
                with self._keeper.steering.turning:
                    host.uplink.steer(other)
                work.steered = True
                self._stamp(work, "steered")
            case Act.AWAIT:
                host.system.sleep(_AWAIT_S)
                if not work.nudged and not work.blind and host.system.monotonic() - work.begun >= _NUDGE_S:
                    work.nudged = True
                    # A broker that was restarted has forgotten that these VMs were parked.
                    self._nudge([vm.name for vm in work.vms if vm.stranded(other)], other)
            case Act.RECORD:
                self._record(work)

    def _nudge(self, names: Sequence[str], side: Side) -> None:
        errors: list[HotswapError] = []
        try:
            errors += self._host.backends.park_many(names, side).values()
        except HotswapError as unanswered:  # the broker may park them nevertheless, and the failover waits for that
            errors.append(unanswered)
        for error in errors:
            log.warning("%s", error.message)

    def _record(self, work: FailOver) -> None:
        """Record the new active side, which ends the failover. What follows is done as far as possible."""
        host, other = self._host, work.side.other
        self._keeper.expect(work.wall)
        try:
            host.record_active(other)
        except (OSError, HotswapError):
            if host.recorded_active() is not other:
                raise
            log.exception("instance %s is not recorded for the next boot", other)
        self._stamp(work, "recorded")
        self._under_way = None
        log.warning("instance %s: %s; the VMs were moved to %s", work.side, work.verdict.reason, other)
        self._keeper.poison.died(work.begun)
        self._keeper.poison.serves(host.system.monotonic())
        self._try("count", self._board.failure)
        self._try("event", lambda: self._tell(work))
        self._board.update(failover_problem=None)
        self._keeper.wake(work.wall)
        self._try("reload", host.backends.reload)  # VMs that start from now on belong to the new active side

    def _tell(self, work: FailOver) -> None:
        other = work.side.other
        seen = {} if work.blind else {
            "moved": sum(vm.served_by(other) for vm in work.vms),
            "left": [vm.name for vm in work.vms if vm.has_guest and vm.owner != other],
        }  # fmt: skip
        self._board.event(
            "failover",
            **{"from": work.side, "to": other},
            signal=work.verdict.signal,
            reason=work.verdict.reason,
            detected=round(work.wall, 6),
            ms={stage: round(seconds * 1e3, 3) for stage, seconds in work.at.items()},
            **seen,
        )

    def _stamp(self, work: FailOver, stage: str) -> None:
        work.at.setdefault(stage, self._host.system.monotonic() - work.begun)


class Watchdog:
    """The daemon. ``run`` returns after a signal handler or another thread has called ``stop``."""

    def __init__(self, config: Config, system: System, path: Path | None = None) -> None:
        """``path``: the configuration file, of which the flow log is followed."""
        self._config, self._system, self._path = config, system, path
        self._stop = threading.Event()
        self._process = os.getpid()

    def stop(self) -> None:
        self._stop.set()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT: stop the daemon."""
        if not ended_as_child(self._process, number):
            self.stop()

    def run(self) -> None:
        """Watch until ``stop`` is called. The standby stays afterwards, with the VMs parked on it.

        Raises BusyError if a watchdog runs already. In mode ``required``, also raises what keeps a standby from being
        prepared. Does nothing in mode ``off``.
        """
        if self._config.watch.mode == "off":
            return
        own_directory(self._config.run_dir)
        with self._system.lock(status_file.lock_path(self._config), "a watchdog"):
            board = status_file.StatusFile(self._config, self._system)
            board.update(pid=os.getpid(), born=start_time(os.getpid()), config=values(self._config))
            board.update(mode=self._config.watch.mode, failures=0, gave_up=False, problem=None,
                         failover_problem=None)  # fmt: skip
            keeper = self._keeper(board)
            if self._config.watch.mode == "required":
                keeper.bring_up()
            try:
                self._watch(board, keeper)
                while not self._stop.is_set():
                    self._watch(board, self._keeper(board))
            finally:
                sd_notify.notify("STOPPING=1")

    def _keeper(self, board: status_file.StatusFile) -> Keeper:
        follower = ConfigFollower(self._config, self._path)
        return Keeper(lambda: Host(follower.config, self._system), board, lambda: follower.config.flowlog)

    def _watch(self, board: status_file.StatusFile, keeper: Keeper) -> None:
        """Watch until ``stop`` is called, or until the distribution's switch has become one of the two instances or is
        one no longer: what an instance is, and where its files are, is known from then on by another ``Host``."""
        stock = stamp_of(self._config.stock_file)

        def quick(intent: Intent | None = None) -> Host:
            host = Host(self._config, self._system, quick=True, intent=intent)
            if self._config.uplink.both_open:  # otherwise it asks the instances, one of which may hang
                host.uplink.owner()  # which opens the connection to the kernel
            return host

        host = quick()
        deaths = ExitPoller([host.instances[side].paths.vswitchd_pid for side in Side])
        main = MainThreadProbe(self._system.monotonic, self._config.watch.hang_ms / 2e3)
        guard = Guard(host, board, keeper, main, quick)
        nics = NicWatch(lambda: Host(self._config, self._system, quick=True), board)
        main.start()
        keeper.start()
        nics.start()
        raise_priority()  # of this thread alone: processes that the keeper starts must not have it
        heart = sd_notify.Heartbeat(self._system.monotonic)
        sd_notify.notify("READY=1")
        try:
            while not self._stop.is_set() and stamp_of(self._config.stock_file) == stock:
                heart.beat()
                try:
                    pids = {side: deaths.pid(side) or host.instances[side].pid() for side in Side}
                    deaths.track(pids)
                    dead = deaths.wait(self._config.watch.check_ms / 1e3)
                except (OSError, HotswapError) as error:  # for example, there are no descriptors left
                    log.error("the instances cannot be looked at: %s", error)
                    board.update(failover_problem=f"the instances cannot be looked at: {error}")
                    self._stop.wait(self._config.watch.check_ms / 1e3)
                    continue
                guard.look(dead, pids)
        finally:
            nics.close()
            keeper.close()
            main.close()
            deaths.close()

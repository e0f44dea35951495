"""The watchdog: notices that the active instance died or hangs, and moves every VM to the standby.

The broker gives a dead instance's VMs to the standby by itself; here a hung one is ended first, the uplink is steered,
and the new active side is recorded. That needs no lock: a dead instance is nobody's to work with, so it is done during
an upgrade too, where its other instance has the VMs parked. What takes longer is the ``Keeper``'s.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from ovs_hotswap import sd
from ovs_hotswap.config import Config
from ovs_hotswap.errors import BusyError, HotswapError
from ovs_hotswap.model import Side
from ovs_hotswap.priority import raise_priority
from ovs_hotswap.system import System
from ovs_hotswap.trust import own_directory
from ovs_hotswap.upgrade import standby, watchlog
from ovs_hotswap.upgrade.failover import Act, Health, History, Limits, Sample, Scene, Signal, Verdict, judge, next_act
from ovs_hotswap.upgrade.host import Host
from ovs_hotswap.upgrade.journal import Journals
from ovs_hotswap.upgrade.keeper import Keeper
from ovs_hotswap.upgrade.records import Phase
from ovs_hotswap.upgrade.vitals import Deaths, MainThread

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # for the broker to have every VM owned
_NUDGE_S = 0.1  # by then the broker has moved what was parked
_AWAIT_S = 0.02  # to describe every VM keeps the broker from its work
_AGAIN_S = 0.5


@dataclass
class FailOver:
    """One fail-over. ``at``: seconds since it was detected, by stage. ``vms``: as the broker described them last."""

    side: Side
    verdict: Verdict
    begun: float
    wall: float
    at: dict[str, float] = field(default_factory=dict)
    vms: list[standby.Document] = field(default_factory=list)
    steered: bool = False
    nudged: bool = False


class Guard:
    """Looks at the active instance and fails over. All methods are the watchdog's own thread's."""

    def __init__(self, host: Host, board: watchlog.Board, keeper: Keeper, main: MainThread) -> None:
        watch = host.config.watch
        self._host, self._board, self._keeper, self._main = host, board, keeper, main
        self._limits = Limits(watch.check_ms / 1e3, watch.hang_ms / 1e3, watch.main_ms / 1e3)
        self._history = History()
        self._watched: tuple[Side, int] | None = None
        self._under_way: FailOver | None = None
        self._not_before = float("-inf")

    def look(self, dead: set[Side], pids: dict[Side, int | None]) -> Verdict | None:
        """One look: ``pids`` lived before it, and sides ``dead`` have ended since. Act on what is seen.

        Never raises for a fault of the host: it is looked at again.
        """
        active = self._host.recorded_active()
        if active is None:
            return None
        pid = None if active in dead else pids[active]
        verdict = self._judge(active, pid)
        if verdict.health is Health.FAILED:
            self._try(lambda: self._fail_over(active, verdict))
        else:
            self._under_way = None
        self._board.update(health=verdict.health, reason=verdict.reason if verdict.signal else None)
        if active.other in dead:
            self._try(lambda: self._follow_uplink(active, active.other))
        return verdict

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

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except HotswapError as error:
            log.warning("%s", error.message)
            self._board.update(failover_problem=error.message)

    def _follow_uplink(self, active: Side, dead: Side) -> None:
        """In an upgrade the uplink may point to the side that died while the recorded one still lives: the broker
        takes the VMs back there."""
        self._keeper.wake()
        if self._host.uplink.owner() is dead:
            self._host.uplink.steer(active)
            self._board.event("uplink-back", dead=dead, to=active)

    # -- fail-over

    def _fail_over(self, side: Side, verdict: Verdict) -> None:
        system = self._host.system
        if self._under_way is None or self._under_way.side is not side:
            self._under_way = FailOver(side, verdict, system.monotonic(), system.wall())
        elif system.monotonic() < self._not_before:
            return
        self._not_before = system.monotonic() + _AGAIN_S
        work = self._under_way
        while True:
            scene = self._scene(work)
            act = next_act(scene)
            if act is Act.NO_REFUGE:
                self._board.update(failover_problem=f"instance {side}: {verdict.reason}, and no standby is ready")
                self._keeper.wake()
                return
            self._do(work, act)
            if act is Act.RECORD:
                return

    def _scene(self, work: FailOver) -> Scene:
        host, other = self._host, work.side.other
        alive = host.instances[work.side].has_memory()
        refuge = host.instances[other].pid() is not None and self._takes(other)
        if not (refuge and work.steered):
            useless = work.verdict.signal is Signal.STOPPED and not self._abandoned()
            return Scene(alive, True, refuge, useless, work.steered)
        work.vms = host.road.vms(read=False)
        waiting = standby.stranded(work.vms, other)
        if not waiting:
            since = [vm["owner_since"] for vm in work.vms if vm["owner_since"] and vm["owner"] == other]
            seen = host.system.monotonic() - work.begun  # a QEMU with two back ends does not tell when
            work.at.setdefault("owned", max(0.0, max(since) - work.wall) if since else seen)
        patience = host.system.monotonic() - work.begun < _PATIENCE_S
        return Scene(alive, True, refuge, steered=work.steered, stranded=len(waiting), patience=patience)

    def _takes(self, side: Side) -> bool:
        """Whether VMs can move to ``side``: it is the warm standby, or an upgrade has parked VMs on it, or is about to:
        it goes on without the failed one then."""
        record = standby.read_record(self._host)
        if record is not None and record.side is side and record.prepared:
            return True
        vms = self._host.road.vms(read=False)
        if any(vm["owner"] == side or vm["switches"][side]["parked"] for vm in vms):
            return True
        return not self._host.unconnected(side) and self._upgrade_under_way()

    def _upgrade_under_way(self) -> bool:
        host = self._host
        contents = Journals(host.config.state_dir, host.system).read()
        if contents is None or contents.standing.phase is not Phase.FORWARD:
            return False
        try:
            with host.lock():
                return False  # nobody carries it on
        except BusyError:
            return True

    def _abandoned(self) -> bool:
        """Whether there is an unfinished upgrade that nobody carries on: then nothing is started either."""
        unfinished = Journals(self._host.config.state_dir, self._host.system).read() is not None
        return unfinished and not self._upgrade_under_way()

    def _do(self, work: FailOver, act: Act) -> None:
        host, other = self._host, work.side.other
        match act:
            case Act.FENCE:
                host.instances[work.side].kill()
                self._stamp(work, "fenced")
            case Act.STEER:
                host.uplink.steer(other)
                work.steered = True
                self._stamp(work, "steered")
            case Act.AWAIT:
                host.system.sleep(_AWAIT_S)
                if not work.nudged and host.system.monotonic() - work.begun >= _NUDGE_S:
                    work.nudged = True
                    for name in standby.stranded(work.vms, other):
                        host.road.park(name, other)  # a broker that was restarted meanwhile has forgotten it
            case Act.RECORD:
                self._record(work)

    def _record(self, work: FailOver) -> None:
        host, other = self._host, work.side.other
        self._keeper.expect(work.wall)
        host.record_active(other)
        self._stamp(work, "recorded")
        self._under_way = None
        self._board.failure()
        self._board.event(
            "failover",
            **{"from": work.side, "to": other},
            signal=work.verdict.signal,
            reason=work.verdict.reason,
            detected=round(work.wall, 6),
            ms={stage: round(seconds * 1e3, 3) for stage, seconds in work.at.items()},
            moved=len(standby.owned(work.vms, other)),
            left=[vm["name"] for vm in work.vms if vm["qemu"] and vm["owner"] != other],
        )
        log.warning("instance %s: %s; the VMs were moved to %s", work.side, work.verdict.reason, other)
        self._board.update(failover_problem=None)
        self._keeper.wake(work.wall)
        host.road.reload()  # VMs that come from now on belong there

    def _stamp(self, work: FailOver, stage: str) -> None:
        work.at.setdefault(stage, self._host.system.monotonic() - work.begun)


class Watchdog:
    """The daemon. ``run`` returns when ``stop`` was called, by a signal or another thread."""

    def __init__(self, config: Config, system: System) -> None:
        self._config, self._system = config, system
        self._stop = threading.Event()
        self._process = os.getpid()

    def stop(self) -> None:
        self._stop.set()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """A handler for SIGTERM and SIGINT."""
        if os.getpid() != self._process:  # a child that pyroute2 forked to enter a namespace, and ends by signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.stop()

    def run(self) -> None:
        """Watch. The standby and what is parked on it stay when this ends.

        Raises BusyError if a watchdog runs already, and, in mode ``required``, what keeps a standby from being there.
        Does nothing in mode ``off``.
        """
        if self._config.watch.mode == "off":
            return
        own_directory(self._config.run_dir)
        with self._system.lock(watchlog.lock_path(self._config), "a watchdog"):
            board = watchlog.Board(self._config, self._system)
            board.update(pid=os.getpid(), mode=self._config.watch.mode, failures=0, gave_up=False, problem=None,
                         failover_problem=None)  # fmt: skip
            keeper = Keeper(lambda: Host(self._config, self._system), board)
            if self._config.watch.mode == "required":
                keeper.bring_up()
            self._watch(board, keeper)

    def _watch(self, board: watchlog.Board, keeper: Keeper) -> None:
        host = Host(self._config, self._system, quick=True)
        host.uplink.owner()  # connects it
        deaths = Deaths([host.instances[side].paths.vswitchd_pid for side in Side])
        main = MainThread(self._system.monotonic, self._config.watch.hang_ms / 2e3)
        guard = Guard(host, board, keeper, main)
        main.start()
        keeper.start()
        raise_priority()  # of this thread alone: what the keeper starts is not to have it
        heart = sd.Heartbeat(self._system.monotonic)
        sd.notify("READY=1")
        try:
            while not self._stop.is_set():
                heart.beat()
                pids = {side: deaths.pid(side) or host.instances[side].pid() for side in Side}
                deaths.track(pids)
                guard.look(deaths.wait(self._config.watch.check_ms / 1e3), pids)
        finally:
            sd.notify("STOPPING=1")
            keeper.close()
            main.close()
            deaths.close()

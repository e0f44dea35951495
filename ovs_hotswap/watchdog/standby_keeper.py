"""Keeps a warm standby: starts it, programs it, follows VMs and overlay, cleans up after a death.

The keeper works in a thread beside the watchdog's own, because its tasks take seconds. It changes things only under the
upgrade lock, and nothing while an upgrade is under way. If an upgrade waits to be resumed, or its journal cannot be
read, the keeper acts only when the active instance has ended and the other one is gone or has no VM: it starts the
active one again.

Starting the active instance again needs neither the broker nor a valid overlay intent: a fault of these is reported
once nothing else is to be done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.config import Program
from ovs_hotswap.config_flowlog import FlowLogConfig
from ovs_hotswap.errors import BrokerError, BusyError, CommandError, HotswapError, StateUnknown, SwitchError
from ovs_hotswap.host import active_record, standby
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.scheduling import in_background
from ovs_hotswap.model import Release, Severity, Side
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.plan.journal import Journals
from ovs_hotswap.plan.records import StepMark
from ovs_hotswap.switch.instance import State
from ovs_hotswap.system import host_error
from ovs_hotswap.toml_file import Stamp, stamp_of
from ovs_hotswap.upgrade import checks, collect
from ovs_hotswap.upgrade.steps import Retire
from ovs_hotswap.watchdog.clone_keeper import CloneKeeper
from ovs_hotswap.watchdog.culprit_search import Poison, quarantined
from ovs_hotswap.watchdog.failover_report import FailoverReport
from ovs_hotswap.watchdog.installed_files import InstalledFiles, present, same_place
from ovs_hotswap.watchdog.log_rotation import LogWatch
from ovs_hotswap.watchdog.next_hop_watch import NextHopWatch
from ovs_hotswap.watchdog.refusals import Refusals
from ovs_hotswap.watchdog.restarting import mend, restart, start_programmed
from ovs_hotswap.watchdog.settings_follower import SettingsWatch
from ovs_hotswap.watchdog.standby_plan import StandbyState, Task, next_task
from ovs_hotswap.watchdog.status_file import StatusFile
from ovs_hotswap.watchdog.steering_watch import SteeringWatch
from ovs_hotswap.watchdog.uplink_watch import PROOF_S, OneUplink, WireWatch

log = logging.getLogger(__name__)

_TURN_S = 1.0
_TRIAL_S = 0.1  # during a search, in which it matters how long an instance lives
_SERVED_S = 0.2
# Before an intent that could not be programmed is tried again, because each try configures the standby's ports again.
_REFUSED_S, _REFUSED_MOST_S = 5.0, 300.0
_Wanted = tuple[Stamp | None, FlowLogConfig]  # what the instances are programmed from


class Keeper:
    """Keeps the standby. ``make_host`` makes a new host when the overlay intent has changed, because a Host reads the
    intent once. ``flow_log`` returns the settings of the flow log as they are now."""

    def __init__(
        self, make_host: Callable[[], Host], board: StatusFile, flow_log: Callable[[], FlowLogConfig] = FlowLogConfig
    ) -> None:
        self._make_host, self._board, self._flow_log = make_host, board, flow_log
        self._host = make_host()
        self._stamp = self._intent_stamp()
        with contextlib.suppress(HotswapError):  # a fault is reported later; a valid intent is remembered from now on
            _ = self._host.intent
        self._programmed: _Wanted | None = None
        self.wires = WireWatch(board)
        self.steering = SteeringWatch(board)
        self._one_uplink = OneUplink(board, self.steering.turning)
        self._refusal: str | None = None
        self._refused_until, self._refused_s = float("-inf"), _REFUSED_S
        self._fault: HotswapError | None = None  # the fault in spite of which the last turn was made
        self._told: str | None = None
        self._refusals = Refusals(board, self._host.system.monotonic)
        self.poison = Poison(board, self._host.system.monotonic)
        self._clone = CloneKeeper(board, self.poison)
        self.followed: Intent | None = None
        """The overlay intent that the instances were last programmed with; the failover steers by it."""
        self._next_hops = NextHopWatch(board)
        self._settings = SettingsWatch()
        self._logs = LogWatch()
        self.files = InstalledFiles()
        self._report = FailoverReport()
        self._failover: float | None = None
        self._unseen = False  # whether the rings have advanced since a failover
        self._standing: tuple[int, float] | None = None
        self._woken = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    # -- thread

    def start(self) -> None:
        self._thread.start()

    def expect(self, failover: float) -> None:
        """Note a failover, detected at ``failover``, before the new active side is recorded: the old one has died, and
        the failover counts its death."""
        self._failover = failover

    def wake(self, failover: float | None = None) -> None:
        """Start the next turn at once. ``failover``: when the failover was detected after which a new standby is
        needed, in seconds since the epoch."""
        if failover is not None:
            self._failover, self._unseen = failover, True
        self._woken.set()

    def close(self, patience_s: float = 10.0) -> None:
        """End after the present task. A task that takes longer than ``patience_s`` is left half done, and the next
        watchdog continues it."""
        self._ended.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._ended.is_set():
            if self.round() is Task.NOTHING:
                self._woken.wait(_TRIAL_S if self.poison.under_way else _TURN_S)
                self._woken.clear()

    def round(self) -> Task:
        """Make a turn, and report what went wrong instead of raising it: a fault of the standby must not end the
        watchdog."""
        try:
            done = self.turn()
        except BusyError:
            self._board.update(keeping="an upgrade is under way")
        except HotswapError as error:
            self._tell(error.message)
        except OSError as error:  # for example, there are no descriptors left
            self._tell(host_error(error).message, error)
        except Exception as error:  # noqa: BLE001 - see above
            self._tell("internal error: see the watchdog's log", error)
        else:
            self._told = None
            self._board.update(problem=self._refusal)
            if done is not Task.NOTHING:
                return done
        self._report.write_if_due(self._host)  # only now, because a standby matters more
        return Task.NOTHING

    def _tell(self, problem: str, error: Exception | None = None) -> None:
        """Log a problem, only once even if every turn meets it. ``error``: log its traceback, too."""
        if self._told != (told := f"{problem} {error!r}"):
            log.warning("%s", problem, exc_info=error)
        self._told = told
        self._board.update(problem=problem)

    def bring_up(self) -> None:
        """Bring up a standby before anything else. Raises what prevents it."""
        while self.turn() is not Task.NOTHING:
            pass
        active = self._host.recorded_active()
        if active is not None:
            while self.wires.under_way:
                self.wires.look(self._host, active)
            self.wires.require(active.other)

    # -- one turn

    def turn(self) -> Task:
        """Do the next task and return it. Raises BusyError while an upgrade is under way, and any fault of the task."""
        self._fault = None
        host = self._refreshed()
        try:
            task = self._turn(host)
        finally:  # also after a fault: one that stays fills the logs
            self._logs.look(host)
        if task is Task.NOTHING and self._fault is not None:
            raise self._fault
        return task

    def _turn(self, host: Host) -> Task:
        if self._unseen:
            self._see_served(host)
        active = host.recorded_active()
        if active is None:
            self._board.update(active=None, standby=None, keeping="no instance is active")
            return Task.NOTHING
        if host.config.program is Program.CLONE:
            return self._clone.turn(host, active, lambda: self._unfinished(host))
        unfinished = self._unfinished(host)
        if unfinished:
            self._programmed = None  # the upgrade may program either intent
            # The upgrade may have ended the standby, or made it the active side.
            warm = standby.warm(host, active.other)
            self._board.update(active=active, standby=None if warm is None else warm.side,
                               keeping="an upgrade is not finished")  # fmt: skip
            if not self._nowhere_to_go(host, active):
                self._one_uplink.look(host, active)
                return Task.NOTHING
        if host.instances[active].pid() is not None:
            self.poison.step(host, alive=True)
        state = self._look(host, active)
        if next_task(state) is Task.NOTHING:
            self._next_hops.look(host)
            self._one_uplink.look(host, active)
            if not unfinished:
                self.steering.look(host, active, lambda: not self._unfinished(host))
                self._fault = self._fault or self.steering.problem
            if not unfinished and not self._starts_soon(state):
                self.wires.look(host, active)
            self._settings.look(host, active)
            self._record_for_boot(host, active)
            return Task.NOTHING
        with host.lock():
            if host.recorded_active() is not active or self._unfinished(host) is not unfinished:
                return Task.NOTHING
            state = self._look(host, active)
            task = next_task(state)
            self._board.update(keeping=str(task))
            self._carry_out(host, active, task, state)
        return task

    def _record_for_boot(self, host: Host, active: Side) -> None:
        """Record the active side for the next boot, if this failed when it became the active one. Raises BusyError,
        HostError."""
        release = host.instances[active].release()
        if release is None or active_record.recorded(host.config, active, release.name):
            return
        with host.lock():
            if host.recorded_active() is active:
                host.record_active(active)

    def _see_served(self, host: Host) -> None:
        """Check after a failover that every ring with something to send advances, and report those that do not."""
        try:
            before = collect.ring_samples(host)
            host.system.sleep(_SERVED_S)
            found = checks.ring_progress(before, collect.ring_samples(host))
        except BrokerError as error:
            self._fault = error  # the next turn tries it again
            return
        self._unseen = False
        self._board.event("rings", stuck=[each.text for each in found if each.severity is Severity.ERROR])
        active = host.recorded_active()
        if active is not None:
            self.wires.after_failover(active)
        self._report.due = True

    def _unfinished(self, host: Host) -> bool:
        """Whether an upgrade works with the instances, or may do so. After it has retired the old one it only looks at
        the new one."""
        try:
            contents = Journals(host.config.state_dir, host.system).read()
            return contents is not None and contents.standing.marks.get(Retire.name) is not StepMark.DONE
        except StateUnknown as error:
            self._fault = error
        except OSError as error:
            self._fault = StateUnknown(f"the journal cannot be read: {error}")
        return True

    def _nowhere_to_go(self, host: Host, active: Side) -> bool:
        """Whether the active instance has ended, and the other one is gone too or has no VM and will be given none."""
        if host.instances[active].pid() is not None:
            return False
        side = active.other
        if host.instances[side].pid() is None:
            return True
        try:
            vms = host.backends.vms(read=False)
        except BrokerError as error:
            self._fault = error
            return False
        return not any(vm.reachable(side) for vm in vms)

    def _look(self, host: Host, active: Side) -> StandbyState:
        side = active.other
        record = standby.read_record(host)
        if host.instances[active].pid() is None:
            there = record is not None and record.side is side
            self._board.update(active=active, standby=None)
            return StandbyState(False, there, prepared=record is not None and record.prepared,
                             may_restart=self.poison.under_way or self._board.may_restart())  # fmt: skip
        prepared = record is not None and record.is_warm(side)
        state = State.RUNNING if prepared else host.instances[side].status().state  # status() asks the database
        if prepared and self._useless(host, side):
            state, prepared = State.DEAD, False
        runs = state is State.RUNNING
        vms = self._vms(host) if runs else []
        unsafe = sorted({*(vm.name for vm in vms if vm.unprotected(side)), *self._refusals.of(vms)})
        self._board.update(active=active, standby=side if prepared else None, unprotected=unsafe if prepared else None,
                           keeping="looking for the VM that ends the instances" if self.poison.under_way
                           else "ready" if prepared else str(state))  # fmt: skip
        if prepared:
            self._board.update(quarantined=quarantined(vms))
        return StandbyState(
            active_runs=True,
            broken=host.instances[active].lacks_database(),
            standby_runs=runs,
            standby_dead=state is State.DEAD,
            settle=record is not None and record.side is active,
            right_release=not runs or self._runs_right_files(host, active),
            prepared=prepared,
            outdated=self._programmed != self._stamp and host.system.monotonic() >= self._refused_until,
            strays=tuple(vm.name for vm in vms if vm.served_by(side) and vm.parkable(active)),
            unparked=tuple(
                self._refusals.due([*(vm.name for vm in vms if vm.unparked(side)), *self._refusals.of(vms)])
            ),
            keeps=host.config.watch.keeps_standby,
            may_start=self._board.may_start() and state is not State.STARTING and not self.poison.under_way,
        )

    def _runs_right_files(self, host: Host, active: Side) -> bool:
        side = active.other
        right = same_place(host.instances[side].release(), self._wanted(host, active))
        return right and not self.files.replaced(host, side)

    def _starts_soon(self, state: StandbyState) -> bool:
        """Whether an instance may be started, or prepared, before a proof of an uplink would be over."""
        if not state.active_runs:
            return not state.may_restart and self._board.may_restart(PROOF_S)
        return not state.prepared and not state.may_start and self._board.may_start(PROOF_S)

    def _vms(self, host: Host) -> list[VmStatus]:
        try:
            return host.backends.vms(read=False)
        except BrokerError as error:  # repairing or replacing an instance does not need it
            self._fault = error
            return []

    def _useless(self, host: Host, side: Side) -> bool:
        """Whether a standby lives and could not serve VMs: it has been stopped for as long as an active instance may
        be, or its database server has ended, so that it cannot be programmed."""
        pid = host.instances[side].pid()
        if pid is None or not host.system.stopped(pid):
            self._standing = None
        elif self._standing is None or self._standing[0] != pid:
            self._standing = pid, host.system.monotonic()
        elif host.system.monotonic() - self._standing[1] >= host.config.watch.hang_ms / 1e3:
            return True
        return host.instances[side].database_pid() is None

    def _wanted(self, host: Host, active: Side) -> Release:
        """The release that the standby is to run. Raises ReleaseError, SwitchError."""
        if host.config.watch.release is not None:
            return host.releases.get(host.config.watch.release)
        release = host.software(active)
        if release is None:
            raise SwitchError(f"what instance {active} runs is not known", hint="`ovs-hotswap instance list`")
        return release

    # -- tasks

    def _carry_out(self, host: Host, active: Side, task: Task, state: StandbyState) -> None:
        side = active.other
        log.info("%s", task)
        match task:
            case Task.MEND:
                mend(host, active, self._board)
            case Task.SETTLE:
                standby.settle(host, active)
            case Task.RESTART:
                self._restart(host, active)
            case Task.CLEAN:
                self._clean(host, side)
            case Task.REPLACE:
                standby.end_standby(host, side)
            case Task.START:
                self._start(host, side, present(host, self._wanted(host, active)))
            case Task.PREPARE:
                self._prepare(host, side)
            case Task.PROGRAM:
                self._program(host, active)
            case Task.RETURN:
                self._return(host, state.strays, active)
            case Task.PARK:
                wanted = [host.backends.vm(name) for name in state.unparked]
                self._refusals.take(wanted, standby.park_each(host, side, wanted))

    def _return(self, host: Host, names: Sequence[str], active: Side) -> None:
        """Give VMs back to the active side. One that cannot be does not keep the others; its error is raised then."""
        refused = standby.park_each(host, active, [host.backends.vm(name) for name in names])
        errors: list[HotswapError] = [BrokerError(f"VM {name}: {why}") for name, why in refused.items()]
        for name in names:
            if name not in refused:
                try:
                    host.backends.move(name, active)
                except HotswapError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _start(self, host: Host, side: Side, release: Release) -> None:
        """Start a standby. An instance that does not start is counted as a failure; a fault of the configuration is
        not."""
        try:
            with in_background(host, side):
                host.instances[side].start(release)
        except (SwitchError, CommandError) as error:
            self._board.event("start-failed", cause=error.message)
            if self.files.busy():  # its files may be of several versions now
                self._board.pause()
            else:
                self._board.failure()
            raise
        except Exception:
            self._board.pause()
            raise

    def _prepare(self, host: Host, side: Side) -> None:
        """Prepare a standby. One that ends during this is counted as a failure. Otherwise only the next attempt is
        delayed: the cause may be the uplink, the broker or the configuration. Only after a fault of the instance or its
        uplink is the standby ended, because only then a new one helps."""
        try:
            vms, refused = standby.prepare(host, side)
        except Exception as error:
            self._board.event("start-failed", cause=_cause(error))
            if host.instances[side].pid() is None:
                self._board.failure()
            else:
                self._board.pause()
            if isinstance(error, SwitchError) and host.recorded_active() is not side:  # no failover went to it
                standby.end_standby(host, side)
            raise
        self._board.prepared()
        self._refusals.take(vms, refused)
        self.followed = host.intent
        release = host.instances[side].release()
        since = {} if self._failover is None else {"after_s": round(host.system.wall() - self._failover, 3)}
        self._failover = None
        self._board.event("standby", side=side, release=release.name if release else None, **since)
        if since:
            self._report.due = True

    def _clean(self, host: Host, side: Side) -> None:
        """Remove the remains of an instance that died. If it was the active one, the failover has counted its death."""
        if self._failover is None:
            self._board.event("standby-died", side=side)
            self._board.failure()
        standby.end_standby(host, side)

    def _restart(self, host: Host, active: Side) -> None:
        restart(host, active, self._board, self.poison, partial(start_programmed, host, active))
        self.followed = host.intent
        self._settings.put_back(host, active)

    def _program(self, host: Host, active: Side) -> None:
        stamp = self._stamp
        host.follow_pmd_sleep(active)
        try:
            host.follow_intent(Side)
        except Exception as error:  # the standby refused it and the active one was not touched, or it was undone there
            self._refusal = f"the overlay intent is not programmed: {_cause(error)}"
            self._refused_until = host.system.monotonic() + self._refused_s
            self._refused_s = min(2 * self._refused_s, _REFUSED_MOST_S)
            raise
        self._programmed, self.followed = stamp, host.intent
        self._forget_refusal()

    def _forget_refusal(self) -> None:
        self._refusal, self._refused_until, self._refused_s = None, float("-inf"), _REFUSED_S

    # -- overlay intent

    def _refreshed(self) -> Host:
        """The host with the present overlay intent, or with the one before while the present one is faulty."""
        stamp = self._intent_stamp()
        if stamp != self._stamp:
            host = self._make_host()
            try:
                _ = host.intent
            except HotswapError as error:
                self._fault = error
            else:
                self._host, self._stamp = host, stamp
                self._forget_refusal()
        return self._host

    def _intent_stamp(self) -> _Wanted:
        return stamp_of(self._host.config.overlay), self._flow_log()


def _cause(error: Exception) -> str:
    """A text for people about what went wrong."""
    known = host_error(error) if isinstance(error, OSError) else error
    return known.message if isinstance(known, HotswapError) else f"{type(error).__name__}: {error}"

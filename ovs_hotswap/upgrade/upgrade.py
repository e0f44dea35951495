"""Upgrade, rollback and resume of one host, with the plan, its journal, the lock and the active side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ovs_hotswap import __version__
from ovs_hotswap.config import Program
from ovs_hotswap.errors import BrokerError, BusyError, HostError, HotswapError, PrecheckFailed, StateUnknown
from ovs_hotswap.host import traces
from ovs_hotswap.host.host import WATCHDOG_S, Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.plan.executor import Event, Executor
from ovs_hotswap.plan.interrupts import Interrupted, Interrupts
from ovs_hotswap.plan.journal import Contents, Header, Journal, Journals
from ovs_hotswap.plan.records import Facts, Json, Phase
from ovs_hotswap.process_exit import start_time
from ovs_hotswap.reports.compose import GOES_BACK
from ovs_hotswap.upgrade import clone_checks, collect, run_report
from ovs_hotswap.upgrade.plans import plan_for
from ovs_hotswap.upgrade.recognise import recognised
from ovs_hotswap.upgrade.situation import Upgrade

KIND = "upgrade"
_UNFINISHED = "an upgrade is not finished", "`ovs-hotswap resume` or `ovs-hotswap rollback`"
_KEPT = (
    "a VM that is left out goes to the new instance when the old one ends, so the old one cannot be kept",
    "leave out --keep-old, and keep_old in the configuration",
)
Observe = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What an ended upgrade did. ``moves``: the microseconds of each VM's handover, on the broker's clock.
    ``warnings``: what the operator should know although the upgrade ended well. ``before``: the release to which a
    rollback would have gone when the upgrade began, if one is known. ``changed``: whether there was anything to do.
    ``uplink_gap_ms``: for how long no instance had the uplink, if only one can have it open."""

    old: Side
    new: Side
    release: str
    previous: str
    committed: bool
    moves: dict[str, float]
    warnings: tuple[str, ...] = ()
    before: str | None = None
    changed: bool = True
    uplink_gap_ms: float | None = None

    @property
    def back_to(self) -> str | None:
        """The release to which a rollback after this upgrade goes; ``None`` if there is none."""
        return self.previous if self.committed and self.previous != self.release else self.before

    @property
    def outcome(self) -> str:
        """The release that this upgrade left active."""
        return self.release if self.committed else self.previous

    @classmethod
    def of(cls, header: Header, committed: bool, facts: Facts) -> Report:
        """Read the report from a journal. Raises StateUnknown if it is not the journal of an upgrade."""
        parameters: dict[str, Any] = header.parameters
        moves: Any = facts.get("moves", {})
        warnings: Any = facts.get("warnings", ())
        before, gap = parameters.get("before"), facts.get("uplink_gap_ms")
        try:
            return cls(Side(parameters["old"]), Side(parameters["new"]), str(parameters["release"]),
                       str(parameters["previous"]), committed, {str(vm): float(us) for vm, us in moves.items()},
                       tuple(str(text) for text in warnings), None if before is None else str(before),
                       uplink_gap_ms=gap if isinstance(gap, float) else None)  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_upgrade(header) from error


def _no_upgrade(header: Header) -> StateUnknown:
    return StateUnknown(
        f"the journal's parameters are not an upgrade's: {header.parameters}",
        hint="see which instance owns each VM with `ovs-hotswap vm list`; then move the file away",
    )


def _no_way_back(last: Report | None) -> PrecheckFailed:
    """The refusal of a rollback where no other release ran before."""
    if last is None or not last.committed:
        return PrecheckFailed("there is no upgrade to roll back", hint="`ovs-hotswap status`")
    hint = f"bring the earlier files of {last.release} back, then: `ovs-hotswap upgrade --release {last.release}`"
    text = f"the last upgrade was from {last.release} to its newer files, and no other release ran before it"
    return PrecheckFailed(text, hint=hint)


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without repeated errors: one fault may keep several checks from being made."""
    errors: set[str] = set()
    kept = []
    for each in findings:
        if each.severity is not Severity.ERROR or each.text not in errors:
            kept.append(each)
        if each.severity is Severity.ERROR:
            errors.add(each.text)
    return kept


class Upgrader:
    """Upgrades one host. Every public method that changes something takes the host's upgrade lock, or raises
    BusyError."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.journals = Journals(host.config.state_dir, host.system)

    def check(self, release: str, leave_out: Collection[str] = (), *, keep_old: bool = False) -> list[Finding]:
        """The precheck's findings for an upgrade to ``release``. Nothing is changed. A broker that does not answer, and
        an active side that is not clear, are findings, and the checks that do not need them are made. Raises
        StateUnknown if the journal is damaged, HostError if a record cannot be read."""
        if self.unfinished() is not None:
            return [Finding("journal", Severity.ERROR, *_UNFINISHED)]
        if self.host.config.program is Program.CLONE:
            serving = self.host.recorded_active() or Side.A
            return clone_checks.precheck(self.host, serving, serving.other, release, leave_out)
        found: list[Finding] = []
        without = list(leave_out)
        try:
            self.host.active()
            without = self._left_out(leave_out)
        except (BrokerError, StateUnknown) as error:
            found.append(Finding("active", Severity.ERROR, error.message, error.hint))
        if (old := self.host.recorded_active()) is not None:
            found += collect.precheck(self.host, old, old.other, release, without)
        found = _once(found)
        return found + ([Finding("leave-out", Severity.ERROR, *_KEPT)] if leave_out and keep_old else [])

    def nothing_to_do(self, release: str) -> Finding | None:
        """The finding that an upgrade to ``release`` would change nothing, and so makes no prechecks either; ``None``
        if it has something to do, or would not come so far. Raises StateUnknown if the journal is damaged."""
        if self.unfinished() is not None:
            return None
        try:
            return collect.runs_already(self.host, self.host.active(), self.host.releases.get(release))
        except HotswapError:  # the precheck says it, with all else that is wrong
            return None

    def _left_out(self, leave_out: Collection[str]) -> list[str]:
        """The VMs of ``leave_out`` and those in quarantine, sorted."""
        return sorted({*leave_out, *(vm.name for vm in self.host.backends.vms(read=False) if vm.quarantine)})

    def upgrade(
        self,
        release: str,
        observe: Observe,
        *,
        keep_old: bool = False,
        force: bool = False,
        leave_out: Collection[str] = (),
    ) -> Report:
        """Replace the active instance by one of ``release``: by the watchdog's warm standby, if this runs just that
        release. If the active instance already runs the release from the present files, nothing is done unless
        ``force`` is set. VMs in ``leave_out`` are not moved: they pass to the new instance when the old one has ended.
        VMs in quarantine are left out, too, and stay in quarantine.

        Raises PrecheckFailed if nothing was changed, RolledBack if everything was undone, PostcheckFailed if something
        failed after the commit, and StateUnknown if the outcome is not known.
        """
        with self.host.lock(WATCHDOG_S):
            return self._upgrade(release, observe, keep_old=keep_old, force=force, leave_out=leave_out)

    def _upgrade(
        self,
        release: str,
        observe: Observe,
        *,
        keep_old: bool = False,
        force: bool = False,
        leave_out: Collection[str] = (),
        goes_back: bool = False,
    ) -> Report:
        """Do what ``upgrade`` does. The caller holds the lock. ``goes_back``: a rollback was asked for."""
        wanted = self.host.releases.get(release)
        self.host = recognised(self.host)
        old = self.host.active()
        running = self.host.software(old)
        if running is None:
            raise PrecheckFailed(
                f"instance {old}, which is active, does not run", hint=self.host.instances[old].starting
            )
        self.refuse_if_unfinished()
        if leave_out and keep_old:
            text, hint = _KEPT
            raise PrecheckFailed(text, hint=hint)
        before = self._before(running.name)
        if not force and collect.up_to_date(self.host, old, wanted):
            return Report(old, old, release, running.name, False, {}, before=before, changed=False)
        traces.remove(self.host)  # a copy of the database would have their copies too, and their mirrors need room
        parameters: dict[str, Json] = {"old": old, "new": old.other, "release": release, "previous": running.name,
                      "before": before, "keep_old": keep_old, "leave_out": self._left_out(leave_out),
                      "old_process": self._process(old), **({GOES_BACK: True} if goes_back else {})}  # fmt: skip
        journal = self.journals.begin(
            KIND, plan_for(self.host.config).shape, parameters=parameters, versions={"ovs-hotswap": __version__}
        )
        return self._execute(journal, observe, forward=True)

    def resume(self, observe: Observe) -> Report:
        """Finish an interrupted upgrade in the direction in which it was going. Raises what ``upgrade`` raises."""
        with self.host.lock(WATCHDOG_S):
            return self._execute(self._reopen(), observe, forward=True)

    def rollback(self, observe: Observe) -> Report:
        """Undo an unfinished upgrade; after a finished one, upgrade back to the release that ran before it. Raises what
        ``upgrade`` raises."""
        with self.host.lock(WATCHDOG_S):
            contents = self.journals.read()
            if contents is not None:
                return self._execute(self._reopen(), observe, forward=False)
            active = self.host.active()
            running = self.host.software(active)
            wanted = self.release_before(None if running is None else running.name)
            last = self.last()
            if last is None or wanted is None:
                raise _no_way_back(last)
            if running is not None and last.committed and last.outcome != running.name == last.back_to:
                # A failover, or a start by hand, did it. The operator may not know, and not mean the way forward.
                hint = f"to go to {last.outcome} nevertheless: `ovs-hotswap upgrade --release {last.outcome}`"
                text = f"instance {active} runs {running.name} already, which ran before the last upgrade"
                raise PrecheckFailed(text, hint=hint)
            if not last.committed:  # the operator may mean that upgrade
                hint = f"to the release that ran before: `ovs-hotswap upgrade --release {wanted}`"
                raise PrecheckFailed("the last upgrade was rolled back already", hint=hint)
            return self._upgrade(wanted, observe, goes_back=True)  # under the same lock: what ran before is still that

    def release_before(self, running: str | None) -> str | None:
        """The release that ran before ``running``.

        If ``running`` is not what the newest upgrade left active, a failover or a start by hand has changed it since,
        and what that upgrade left is the release before. Otherwise the newest upgrade that names another release has
        it. Raises HostError or StateUnknown if a journal cannot be read before one is found.
        """
        last = self.last()
        if last is not None and running is not None and last.outcome != running:
            return last.outcome
        return next((found for report in self._ended() if (found := report.back_to) not in (None, running)), None)

    def _process(self, side: Side) -> Json:
        """The process of a switch whose flows only others could program again; ``None`` for one that we program."""
        pid = self.host.instances[side].pid()
        return None if self.host.config.program is not Program.CLONE or pid is None else [pid, start_time(pid)]

    def _before(self, running: str) -> str | None:
        """Like ``release_before``, but ``None`` if a journal cannot be read. The release is only reported, so a damaged
        journal of an earlier upgrade does not prevent the next one."""
        try:
            return self.release_before(running)
        except (HostError, StateUnknown):
            return None

    def refuse_if_unfinished(self) -> None:
        """Raises BusyError if an upgrade was interrupted and is not finished."""
        if self.unfinished() is not None:
            text, hint = _UNFINISHED
            raise BusyError(text, hint=hint)

    def unfinished(self) -> Contents | None:
        """The journal of an upgrade that was interrupted or is under way. Raises StateUnknown if it is damaged."""
        return self.journals.read()

    def last(self) -> Report | None:
        """The report of the newest ended upgrade; ``None`` if there is none."""
        return next(self._ended(), None)

    def _ended(self) -> Iterator[Report]:
        """The reports of ended upgrades, the newest first."""
        for contents in self.journals.ended():
            if contents.header.kind == KIND:
                standing = contents.standing
                yield Report.of(contents.header, standing.phase is Phase.FINISHED, standing.facts)

    def _reopen(self) -> Journal:
        journal = self.journals.reopen()
        if journal is None:
            raise PrecheckFailed("there is no unfinished upgrade", hint="`ovs-hotswap status`")
        return journal

    def _execute(self, journal: Journal, observe: Observe, *, forward: bool) -> Report:
        header = journal.header
        with journal, Interrupts() as interrupts:
            executor = Executor(
                plan_for(self.host.config),
                self._context(header),
                journal,
                clock=self.host.system.monotonic,
                records=journal.records,
                observe=observe,
                shield=interrupts.shield,
            )
            fault: HotswapError | None = None
            try:
                if forward:
                    executor.run()
                else:
                    executor.rollback()
            except HotswapError as error:
                fault = error
                raise
            finally:
                self.host.cloning.keep_wired_no_longer()
                journal.ended |= executor.standing.ended
                with contextlib.suppress(Interrupted), interrupts.shield():  # there is nothing left to stop
                    run_report.leave(self.host, self.journals, fault)
            standing = executor.standing
        return Report.of(header, standing.phase is Phase.FINISHED, standing.facts)

    def _context(self, header: Header) -> Upgrade:
        parameters: dict[str, Any] = header.parameters
        try:
            return Upgrade(self.host, Side(parameters["old"]), Side(parameters["new"]), parameters["release"],
                           parameters["keep_old"], frozenset(parameters.get("leave_out", ())),
                           tuple(process) if (process := parameters.get("old_process")) else None)  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise _no_upgrade(header) from error

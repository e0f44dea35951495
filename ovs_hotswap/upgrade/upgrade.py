"""Upgrade, roll-back and resume of one host: the plan, its journal, the lock, and who is active."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ovs_hotswap import __version__
from ovs_hotswap.errors import BrokerError, BusyError, HostError, PrecheckFailed, StateUnknown
from ovs_hotswap.host.host import WATCHDOG_S, Host
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.plan.executor import Event, Executor
from ovs_hotswap.plan.interrupts import Interrupts
from ovs_hotswap.plan.journal import Contents, Header, Journal, Journals
from ovs_hotswap.plan.records import Facts, Json, Phase
from ovs_hotswap.upgrade import collect
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.upgrade.steps import upgrade_plan

KIND = "upgrade"
_UNFINISHED = "an upgrade is not finished", "`ovs-hotswap resume` or `ovs-hotswap rollback`"
_KEPT = (
    "a VM that is left out goes to the new instance when the old one ends, so that cannot be kept",
    "without --keep-old, and keep_old in the configuration",
)
Observe = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What an ended upgrade did. ``moves``: microseconds of each VM's hand-over, on the broker's clock. ``warnings``:
    what the operator should know though it ended well. ``before``: the release that a roll-back would have gone to when
    it began, if one is known. ``changed``: whether anything was to be done."""

    old: Side
    new: Side
    release: str
    previous: str
    committed: bool
    moves: dict[str, float]
    warnings: tuple[str, ...] = ()
    before: str | None = None
    changed: bool = True

    @property
    def back_to(self) -> str | None:
        """The release to roll back to after it."""
        return self.previous if self.committed and self.previous != self.release else self.before

    @classmethod
    def of(cls, header: Header, committed: bool, facts: Facts) -> Report:
        """Raises StateUnknown if the journal is none of an upgrade."""
        parameters: dict[str, Any] = header.parameters
        moves: Any = facts.get("moves", {})
        warnings: Any = facts.get("warnings", ())
        before = parameters.get("before")
        try:
            return cls(Side(parameters["old"]), Side(parameters["new"]), str(parameters["release"]),
                       str(parameters["previous"]), committed, {str(vm): float(us) for vm, us in moves.items()},
                       tuple(str(text) for text in warnings), None if before is None else str(before))  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_upgrade(header) from error


def _no_upgrade(header: Header) -> StateUnknown:
    return StateUnknown(
        f"the journal's parameters are not an upgrade's: {header.parameters}",
        hint="see which instance owns each VM with `ovs-hotswap vm list`; then move the file away",
    )


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, with an error that keeps several checks from being made only once."""
    errors: set[str] = set()
    kept = []
    for each in findings:
        if each.severity is not Severity.ERROR or each.text not in errors:
            kept.append(each)
        if each.severity is Severity.ERROR:
            errors.add(each.text)
    return kept


class Upgrader:
    """Every public method that changes something takes the host's upgrade lock, or raises BusyError."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.journals = Journals(host.config.state_dir, host.system)

    def check(self, release: str, leave_out: Collection[str] = (), *, keep_old: bool = False) -> list[Finding]:
        """The precheck's findings for an upgrade to ``release``. Changes nothing. A broker that does not answer, and
        an active side that is not clear, are findings, and what can be looked at without them is looked at. Raises
        StateUnknown if the journal is damaged, HostError if what is recorded cannot be read."""
        if self.unfinished() is not None:
            return [Finding("journal", Severity.ERROR, *_UNFINISHED)]
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

    def _left_out(self, leave_out: Collection[str]) -> list[str]:
        """With those in quarantine."""
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
        """Replace the active instance by one of ``release``: the watchdog's warm standby, if it runs just that. Nothing
        is done where the active one runs that release from the files that are there, unless by ``force``. VMs to
        ``leave_out`` are not moved: the new instance is given them when the old one has ended. VMs in quarantine are
        left out, too, and stay in it.

        Raises PrecheckFailed with nothing changed, RolledBack with everything put back, PostcheckFailed if something
        failed after the commit, StateUnknown if it cannot be told.
        """
        with self.host.lock(WATCHDOG_S):
            wanted = self.host.releases.get(release)
            old = self.host.active()
            running = self.host.software(old)
            if running is None:
                raise PrecheckFailed(
                    f"instance {old}, which is active, does not run", hint=f"`ovs-hotswap instance start {old}`"
                )
            self.refuse_if_unfinished()
            if leave_out and keep_old:
                text, hint = _KEPT
                raise PrecheckFailed(text, hint=hint)
            before = self._before(running.name)
            if not force and collect.up_to_date(self.host, old, wanted):
                return Report(old, old, release, running.name, False, {}, before=before, changed=False)
            parameters: dict[str, Json] = {"old": old, "new": old.other, "release": release, "previous": running.name,
                          "before": before, "keep_old": keep_old, "leave_out": self._left_out(leave_out)}  # fmt: skip
            journal = self.journals.begin(
                KIND, upgrade_plan().shape, parameters=parameters, versions={"ovs-hotswap": __version__}
            )
            return self._execute(journal, observe, forward=True)

    def resume(self, observe: Observe) -> Report:
        """Finish what was interrupted, in the direction it was going. Raises as ``upgrade``."""
        with self.host.lock(WATCHDOG_S):
            return self._execute(self._reopen(), observe, forward=True)

    def rollback(self, observe: Observe) -> Report:
        """Undo an unfinished upgrade, or upgrade back to the release that ran before the last one."""
        with self.host.lock(WATCHDOG_S):
            contents = self.journals.read()
            if contents is not None:
                return self._execute(self._reopen(), observe, forward=False)
            running = self.host.software(self.host.active())
            wanted = self.release_before(None if running is None else running.name)
            last = self.last()
            if last is None or wanted is None:
                raise PrecheckFailed("there is no upgrade to roll back", hint="`ovs-hotswap status`")
            if not last.committed:  # whoever asks may mean that one
                hint = f"to the release that ran before: `ovs-hotswap upgrade --release {wanted}`"
                raise PrecheckFailed("the last upgrade was rolled back already", hint=hint)
        return self.upgrade(wanted, observe)

    def release_before(self, running: str | None) -> str | None:
        """The release that ran before ``running``, as the newest upgrade that knows of another one has it. Raises
        HostError or StateUnknown if a journal on the way there cannot be read."""
        return next((found for report in self._ended() if (found := report.back_to) not in (None, running)), None)

    def _before(self, running: str) -> str | None:
        """``release_before`` as far as it is known: it is only told, so an earlier upgrade's journal that is damaged is
        no reason against the next."""
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
        """The newest ended upgrade."""
        return next(self._ended(), None)

    def _ended(self) -> Iterator[Report]:
        """Ended upgrades, the newest first."""
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
                upgrade_plan(),
                self._context(header),
                journal,
                clock=self.host.system.monotonic,
                records=journal.records,
                observe=observe,
                shield=interrupts.shield,
            )
            try:
                if forward:
                    executor.run()
                else:
                    executor.rollback()
            finally:
                journal.ended |= executor.standing.ended
            standing = executor.standing
        return Report.of(header, standing.phase is Phase.FINISHED, standing.facts)

    def _context(self, header: Header) -> Upgrade:
        parameters: dict[str, Any] = header.parameters
        try:
            return Upgrade(self.host, Side(parameters["old"]), Side(parameters["new"]), parameters["release"],
                           parameters["keep_old"], frozenset(parameters.get("leave_out", ())))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise _no_upgrade(header) from error

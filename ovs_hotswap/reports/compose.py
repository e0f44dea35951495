"""Makes a report from what a run left: a plan's journal, or the watchdog's events. This module is pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.plan.records import Facts, Json, Kind, Phase, PlanProgress, Record, StepNames, fold
from ovs_hotswap.reports.document import (
    CheckResult,
    Gap,
    GapSource,
    Happening,
    Outcome,
    RunKind,
    RunReport,
    Stage,
    VmPart,
)
from ovs_hotswap.reports.timeline import running, stages
from ovs_hotswap.wording import some, summary

GOES_BACK = "goes_back"
"""The parameter of a plan that the command `rollback` has begun after a finished upgrade."""
CHECKS = {"precheck": "prechecks", "postcheck": "postchecks"}
"""The facts that have the findings of a step, by the step's name. A finding is a list: check, severity, text, hint."""
MOVED_BACK = "moved_back"
"""The fact that has the microseconds of each VM's handover back to the old instance."""
_BY_ITSELF = "its owner got the rings without a handover: an instance ended, or its guest began"
_EARLIER_S = 5.0  # so much earlier than the watchdog the broker may see that a process has ended, on a busy host
_SAME_US = 0.1  # the broker rounds the duration of the last move to this
_STAGES = {
    "fenced": ("fence", "end the process that hangs, and see it dead"),
    "steered": ("steer", "steer the uplink to the standby"),
    "owned": ("own", "see the standby own every VM"),
    "recorded": ("record", "record the standby as the active side"),
}
"""The stages of a failover by the names that their ends have in the event `failover` (docs/json.md): the name of each,
and what it does."""


@dataclass(frozen=True, slots=True)
class Run:
    """A plan's journal. ``times`` are those of the records."""

    parameters: Mapping[str, Any]
    shape: StepNames
    started: float
    records: Sequence[Record]
    times: Sequence[float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known besides the journal or the events. ``vms`` is empty if the back ends did not answer. ``labels``:
    the versions of releases by name; ``descriptions``: what the steps do. ``events``: those of the watchdog,
    in order. ``message`` and ``hint``: of the error with which the command ended."""

    host: str
    program: str
    vms: Sequence[VmStatus] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    message: str | None = None
    hint: str | None = None


def kept_checks(findings: Sequence[Finding]) -> list[Json]:
    """The findings of a check as a fact for the journal."""
    return [[each.check, str(each.severity), each.text, each.hint] for each in summary(findings)]


def identity(started: float, kind: RunKind) -> str:
    """The id of a report, such as ``20261129-081500-upgrade``; the time is UTC."""
    return f"{datetime.fromtimestamp(started, UTC):%Y%m%d-%H%M%S}-{kind}"


# ------------------------------------------------------------------------------------------------------------- a plan


def of_plan(run: Run, seen: Seen) -> RunReport:
    """Return the report of an upgrade from its journal. Raises StateUnknown if the journal makes no sense."""
    standing, found = fold(run.shape, run.records), stages(run.records, run.times)
    kind = RunKind.ROLLBACK if run.parameters.get(GOES_BACK) is True else RunKind.UPGRADE
    facts, ended = standing.facts, run.times[-1] if run.times else run.started
    return RunReport(
        id=identity(run.started, kind), kind=kind, outcome=_outcome(standing, found), host=seen.host,
        program=seen.program, started=run.started, ended=ended,
        old=_side(run.parameters.get("old")), new=_side(run.parameters.get("new")),
        previous=_text(run.parameters.get("previous")), release=_text(run.parameters.get("release")),
        labels=dict(seen.labels), failed_step=standing.failed_step or None, failure=standing.failure or None,
        message=seen.message, hint=seen.hint, steps=(*run.shape.before, *run.shape.after),
        descriptions=dict(seen.descriptions),
        committed=next((time for record, time in zip(run.records, run.times, strict=True)
                        if record.kind is Kind.COMMIT), None),
        stages=tuple(found), vms=tuple(_vms(run, facts, found, ended, seen)),
        uplink_gap_ms=_number(facts.get("uplink_gap_ms")),
        warnings=(*_texts(facts.get("warnings")), *_failures(run, ended, seen.events)),
        checks=tuple(_checks(facts)), happenings=tuple(_happenings(run, ended, seen.events)),
    )  # fmt: skip


def _outcome(standing: PlanProgress, found: Sequence[Stage]) -> Outcome:
    if standing.phase is Phase.FINISHED:
        return Outcome.DONE
    if standing.phase is not Phase.ROLLED_BACK:
        return Outcome.UNFINISHED
    return Outcome.ROLLED_BACK if any(stage.undo for stage in found) else Outcome.REFUSED


def _failures(run: Run, ended: float, events: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """The failovers during the run: what ended well nevertheless needs a look."""
    failed = [each for each in events if each.get("event") == "failover"]
    return [f"{text}, during this run" for time, text in _told(failed) if run.started <= time <= ended]


def _happenings(run: Run, ended: float, events: Sequence[Mapping[str, Any]]) -> Sequence[Happening]:
    """What the journal says beside its steps, and what the watchdog did during the run, in order of time."""
    found = [Happening(time, each) for time, each in _told(events) if run.started <= time <= ended]
    for record, time in zip(run.records, run.times, strict=True):
        if record.kind is Kind.RESUME:
            found.append(Happening(time, "an interrupted plan was taken up again"))
        elif record.kind in {Kind.FORWARD_ANYWAY, Kind.TURNED_BACK}:
            found.append(Happening(time, record.text))
    return sorted(found, key=lambda each: each.time)


def _checks(facts: Facts) -> Iterable[CheckResult]:
    for step, name in CHECKS.items():
        rows: Any = facts.get(name)
        for row in rows if isinstance(rows, list | tuple) else ():
            match row:
                case [str(check), str(severity), str(text), (str() | None) as hint] if severity in set(Severity):
                    yield CheckResult(step, check, Severity(severity), text, hint)


def _vms(run: Run, facts: Facts, found: Sequence[Stage], ended: float, seen: Seen) -> Iterable[VmPart]:
    """Yield the part of each VM that was moved or is known."""
    timed = {back: _numbers(facts.get(name)) for back, name in ((False, "moves"), (True, MOVED_BACK))}
    stopped, uplink = _numbers(facts.get("stopped_ms")), _number(facts.get("uplink_gap_ms"))
    left_out, known = _texts(run.parameters.get("leave_out")), {vm.name: vm for vm in seen.vms}
    for name in dict.fromkeys([*known, *timed[False], *timed[True], *stopped]):
        vm = known.get(name)
        since = None if vm is None or vm.owner_since is None else vm.owner_since
        since = since if since is not None and run.started <= since <= ended else None
        gaps, note, new = [], None, _side(run.parameters.get("new"))
        for back, moves in timed.items():
            if name in moves:
                own = since if vm is not None and _was(vm, moves[name], new, back) else None
                gaps.append(_handover(moves[name], own, found))
        if since is not None and name not in stopped and not any(gap.begin is not None for gap in gaps):
            gap = _since_failure(since, seen.events, run.started, found)
            gaps, note = [*gaps, *([gap] if gap else [])], None if gap else _BY_ITSELF
        if name in stopped:
            gaps.append(Gap(GapSource.STOPPED, stopped[name], None, "adopt"))
        if gaps and uplink is not None:
            gaps.append(Gap(GapSource.UPLINK, uplink, None, "steer"))
        us = timed[True].get(name, timed[False].get(name))
        apart = None if gaps or note else _why_apart(name, vm, left_out)
        yield VmPart(name, us, since, _sorted(gaps), apart, note)


def _was(vm: VmStatus, us: float, new: Side | None, back: bool) -> bool:
    """Whether the VM's owner has got the rings by this handover, of ``us`` microseconds. A VM that passed since because
    an instance ended has another owner."""
    there = new if not back or new is None else new.other
    return vm.owner is there and vm.last_move_us is not None and abs(vm.last_move_us - us) <= _SAME_US


def _handover(us: float, since: float | None, found: Sequence[Stage]) -> Gap:
    """The gap of a handover, after which the owner had the rings at ``since``, if that is known."""
    begin = None if since is None else since - us / 1e6
    step = "move" if begin is None or since is None else running(found, begin, since)
    return Gap(GapSource.HANDOVER, us / 1e3, begin, step)


def _since_failure(
    since: float, events: Sequence[Mapping[str, Any]], started: float, found: Sequence[Stage]
) -> Gap | None:
    """The time from the detection of a failure until a VM's owner got the rings; ``None`` if no failover of the run was
    under way then."""
    for each in events:
        begun = each.get("detected")
        if each.get("event") != "failover" or not isinstance(begun, int | float):
            continue
        took = max(_numbers(each.get("ms")).values(), default=0.0) / 1e3
        if max(started, begun) <= since <= begun + took:
            return Gap(GapSource.FAILOVER, (since - begun) * 1e3, float(begun), running(found, begun, since))
    return None


def _why_apart(name: str, vm: VmStatus | None, left_out: Sequence[str]) -> str | None:
    if vm is not None and vm.quarantine:
        return f"in quarantine: {vm.quarantine}"
    if name in left_out:
        return "left out"
    return "has no guest" if vm is not None and not vm.has_guest else None


# ---------------------------------------------------------------------------------------------------------- a failover


def of_failover(events: Sequence[Mapping[str, Any]], seen: Seen) -> RunReport | None:
    """Return the report of the newest failover among the watchdog's events, which are in order; ``None`` if there is
    none, or its event is not as docs/json.md says. What happened from then on until a standby was ready again is part
    of it."""
    place = max((number for number, each in enumerate(events) if each.get("event") == "failover"), default=None)
    if place is None:
        return None
    event, later = events[place], events[place + 1 :]
    begun, old, new = event.get("detected"), _side(event.get("from")), _side(event.get("to"))
    if not isinstance(begun, int | float) or old is None or new is None:
        return None
    found = _failover_stages(float(begun), _numbers(event.get("ms")))
    ended = max([stage.end for stage in found], default=float(begun))
    left = _texts(event.get("left"))
    standby = next((number for number, each in enumerate(later) if each.get("event") == "standby"), len(later))
    after = later[standby].get("after_s") if standby < len(later) else None
    release = later[standby].get("release") if standby < len(later) else None
    return RunReport(
        id=identity(float(begun), RunKind.FAILOVER), kind=RunKind.FAILOVER,
        outcome=Outcome.INCOMPLETE if left else Outcome.DONE, host=seen.host, program=seen.program,
        started=float(begun), ended=ended, old=old, new=new, release=_text(release), labels=dict(seen.labels),
        reason=_text(event.get("reason")), failure=f"VM {some(left)} was not moved" if left else None,
        message=seen.message, hint=seen.hint,
        steps=tuple(stage.name for stage in found),
        descriptions=dict(_STAGES.values()), stages=tuple(found),
        vms=tuple(_after_failover(float(begun), new, found, left, seen.vms)),
        protected_after_s=_number(after),
        warnings=tuple(_faults(later[:standby])),
        happenings=tuple(Happening(*each) for each in _told(later[: standby + 1])),
    )  # fmt: skip


def _failover_stages(begun: float, ms: Mapping[str, float]) -> list[Stage]:
    """The stages in order of their ends. Each begins where the one before ended."""
    found, begin = [], begun
    for name, end_ms in sorted(((name, ms[name]) for name in _STAGES if name in ms), key=lambda each: each[1]):
        end = begun + end_ms / 1e3
        found.append(Stage(_STAGES[name][0], begin, end))
        begin = end
    return found


def _after_failover(
    begun: float, new: Side, found: Sequence[Stage], left: Sequence[str], vms: Sequence[VmStatus]
) -> Iterable[VmPart]:  # fmt: skip
    """Yield the part of each VM. The broker reports since when the owner has the rings, and no duration, because it
    made no handover; a QEMU with two back ends reports how long they had no owner, and no time."""
    for vm in vms:
        since, us = vm.owner_since, vm.last_move_us
        why = "it was not moved" if vm.name in left else _why_apart(vm.name, vm, ())
        if why is not None or vm.owner is not new or (since is not None and since < begun - _EARLIER_S):
            served = f"instance {new} served it before" if vm.owner is new else f"instance {vm.owner} serves it"
            yield VmPart(vm.name, apart=why or (served if vm.owner else "no instance serves it"))
        elif since is None:
            gaps = () if us is None else (Gap(GapSource.HANDOVER, us / 1e3),)
            yield VmPart(vm.name, us, None, gaps, None, None if gaps else _BY_ITSELF)
        elif since < begun:
            yield VmPart(vm.name, None, since, note="it passed before the watchdog had detected the failure")
        else:
            yield VmPart(vm.name, None, since, (Gap(GapSource.FAILOVER, (since - begun) * 1e3, begun,
                                                    running(found, begun, since)),))  # fmt: skip


def _faults(events: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for each in events:
        if each.get("event") == "rings":
            yield from _texts(each.get("stuck"))
        elif each.get("event") == "failover-uplink" and each.get("severity") != Severity.OK:
            yield str(each.get("text"))


def _told(events: Iterable[Mapping[str, Any]]) -> Iterable[tuple[float, str]]:
    """The time and the text of each event that has a time."""
    for each in events:
        if isinstance(time := each.get("time"), int | float):
            yield float(time), _in_words(each)


def _in_words(event: Mapping[str, Any]) -> str:
    match event:
        case {"event": "failover", "from": str(old), "to": str(new)}:
            return f"failover from {old} to {new}: {event.get('reason')}"
        case {"event": "rings", "stuck": list(stuck)}:
            return "; ".join(map(str, stuck)) if stuck else "every ring with something to send advances"
        case {"event": "failover-uplink", "text": str(text)}:
            return text
        case {"event": "standby", "side": str(side)}:
            return f"instance {side} is ready as the standby"
    rest = [f"{key} {_shown(value)}" for key, value in event.items() if key not in {"time", "event"}]
    return ", ".join([str(event.get("event")), *rest])


def _shown(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


# ------------------------------------------------------------------------------------------------------ reading values


def _sorted(gaps: Iterable[Gap]) -> tuple[Gap, ...]:
    return tuple(sorted(gaps, key=lambda gap: -gap.ms))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(value: Json) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return {}
    return {str(key): float(each) for key, each in value.items() if isinstance(each, int | float)}


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _side(value: object) -> Side | None:
    return Side(value) if value in set(Side) else None  # type: ignore[arg-type]  # it is one of them

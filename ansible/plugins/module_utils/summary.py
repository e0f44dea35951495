# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""What became of a run over a fleet: the documents of its hosts in, frozen totals out.

Nothing here reads a file, asks a host or looks at a clock, so the same documents always give the same summary. A figure
that no document holds is absent; none is estimated.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Every state that a host can be in, the ones that need a person first. `waiting`: planned, without a document yet;
# `unknown`: its document cannot be read, or has a state that is not of this list.
STATES = (
    "failed", "rolled_back", "unreachable", "unknown", "running", "waiting", "skipped", "unchanged", "upgraded",
)  # fmt: skip
PROBLEMS = ("failed", "rolled_back", "unreachable", "unknown")
DONE = ("upgraded", "unchanged")  # the host runs the release that was asked for
ENDED = (*DONE, *PROBLEMS, "skipped")
CANARY = "canary"
UNDO = "rollback"  # the name of a run of the playbook `rollback`, whose release is the one that is taken back
UTC = datetime.timezone(datetime.timedelta(0))
_MOST = 1e11  # the year 5138, in seconds
_SERVED = (*DONE, "rolled_back", "failed")  # an instance of the host was worked on, so it has a standby to look at

# `upgrade` warns of these two, and of no other loss: docs/operations.md, "What a VM notices".
_LOST = re.compile(
    r"VM (?P<vm>.+?): (?P<frames>a|\d{1,15}) large frames? of several segments \(GSO\) arrived during its move"
)
_NOT_KNOWN = re.compile(r"VM (?P<vm>.+?): frames that arrived during its move are not known")


@dataclasses.dataclass(frozen=True)
class Host:
    """A host of the run. ``moves``: microseconds of the handover of each VM that was moved and stayed so.
    ``concerns``: what is wrong with a host although it runs the release."""

    name: str
    wave: str
    state: str
    started: float | None = None
    ended: float | None = None
    reason: str | None = None
    hint: str | None = None
    look: str | None = None
    moves: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lost: int = 0
    lost_unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    concerns: tuple[str, ...] = ()
    standby: str | None = None
    standby_reason: str | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.started is None or self.ended is None else max(0.0, self.ended - self.started)

    @property
    def needs_a_person(self) -> bool:
        wrong = self.concerns or self.lost or self.lost_unknown or self.standby == "missing"
        return self.state in PROBLEMS or bool(wrong)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The VM with the longest handover, and its microseconds."""
        return max(self.moves.items(), key=lambda move: (move[1], move[0])) if self.moves else None


@dataclasses.dataclass(frozen=True)
class Wave:
    """``ended`` is None as long as a host of the wave is not at its end."""

    name: str
    states: Mapping[str, int]
    started: float | None
    ended: float | None
    vms: int
    worst_us: float | None

    @property
    def hosts(self) -> int:
        return sum(self.states.values())

    @property
    def finished(self) -> int:
        return sum(self.states.get(state, 0) for state in ENDED)

    @property
    def seconds(self) -> float | None:
        return None if self.started is None or self.ended is None else max(0.0, self.ended - self.started)


@dataclasses.dataclass(frozen=True)
class Stop:
    """What ended the run early. ``limit`` and ``value`` are None if the record of the run does not say them."""

    threshold: str
    limit: float | None = None
    value: float | None = None
    wave: str | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class Totals:
    """``undo``: the run takes back what another one has done, so that ``upgraded`` hosts no longer run the release.
    ``lost``: frames that a host reports as lost; ``lost_unknown``: VMs of which a host cannot say it. ``p50_us`` and
    ``p99_us`` are over all moves of all hosts."""

    run: str
    release: str
    undo: bool
    final: bool
    started: float | None
    ended: float | None
    hosts: tuple[Host, ...]
    waves: tuple[Wave, ...]
    policy: Mapping[str, Any]
    stop: Stop | None
    states: Mapping[str, int]
    moves: int
    p50_us: float | None
    p99_us: float | None
    worst_us: float | None
    worst_vm: str | None
    worst_host: str | None
    lost: int
    lost_unknown: int
    standby: Mapping[str, int]

    @property
    def problems(self) -> tuple[Host, ...]:
        """Hosts that need a person: those that failed first, then those that are done and not as they must be."""
        found = [host for host in self.hosts if host.needs_a_person]
        return tuple(sorted(found, key=lambda host: STATES.index(host.state)))

    @property
    def without_standby(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.standby in ("missing", "unknown"))

    @property
    def done(self) -> int:
        return sum(self.states.get(state, 0) for state in DONE)

    @property
    def verdict(self) -> str:
        """One of ``stopped``, ``running``, ``incomplete`` (the run is over and a host does not run the release),
        ``attention`` (every host does, and something is to be looked at), ``complete``."""
        if self.stop is not None:
            return "stopped"
        if not self.final:
            return "running"
        if self.done + self.states.get("skipped", 0) < len(self.hosts) or not self.hosts:
            return "incomplete"
        look = self.lost or self.lost_unknown or self.without_standby or self.problems
        return "attention" if look else "complete"


# ------------------------------------------------------------------------------------------------- reading documents


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _text(value: Any) -> str | None:
    """The first line of a text that has one."""
    lines = [line.strip() for line in str(value).splitlines() if line.strip()] if isinstance(value, str) else []
    return lines[0] if lines else None


def _number(value: Any) -> float | None:
    """A number that a figure or a time can be; no calendar and no column has room for more."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST < value < _MOST
    return value if usable else None


def instant(value: Any) -> float | None:
    """Seconds since the epoch, from these or from ISO 8601; without an offset the time is UTC."""
    found = _number(value)
    if isinstance(value, str):
        try:
            parsed = datetime.datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
            found = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return found if found is not None and found >= 0 else None


def standby(watch: Any) -> tuple[str, str | None]:
    """From ``watch status``: ``restored``, ``missing`` (and why), ``off`` (none is kept), ``unknown``."""
    if not isinstance(watch, Mapping):
        return "unknown", "watch status was not read after the run"
    if watch.get("ready") is True:
        return "restored", None
    if watch.get("mode") in ("off", "restart"):
        return "off", None
    if watch.get("running") is False:
        return "missing", "the watchdog does not run"
    reasons = [_text(watch.get(key)) for key in ("problem", "failover_problem", "reason", "keeping")]
    return "missing", next((reason for reason in reasons if reason), None)


def command(name: str, state: str, exit_code: Any, release: str) -> str:
    """What shows more about a host that needs a person."""
    quoted = shlex.quote(name)
    if state == "unreachable":
        return f"ansible {quoted} -m ansible.builtin.ping"
    if exit_code == 4:  # PrecheckFailed
        return f"ovs-hotswap --host {quoted} check --release {shlex.quote(release)}"
    return f"ovs-hotswap --host {quoted} status"


def _reason(state: str, document: Mapping[str, Any], error: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Why a host is in its state, in one line, and the hint that the host itself gave."""
    refused = next(iter(_errors(document)), {})
    given, message = _text(document.get("reason")), _text(error.get("message"))
    reason = f"{given}: {message}" if given and message and message not in given else given or message
    if reason is None and state in (*PROBLEMS, "skipped"):
        reason = _text(refused.get("text")) or ("no reason is recorded" if state in PROBLEMS else None)
    return reason, _text(error.get("hint")) or (_text(refused.get("hint")) if state in PROBLEMS else None)


def _errors(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    findings = [_map(each) for each in _list(_map(document.get("check")).get("findings"))]
    return [each for each in findings if each.get("severity") == "error"]


def _concerns(document: Mapping[str, Any], reason: str | None) -> tuple[str, ...]:
    """A reason that is recorded of a host that is done, and the errors that its check found afterwards."""
    errors = [text for each in _errors(document) if (text := _text(each.get("text")))]
    return tuple(([reason] if reason else []) + errors)


def _frames(text: str) -> int:
    return 1 if text == "a" else int(text)


def wave_name(value: Any) -> str:
    return "?" if value is None or value == "" else str(value)


def host(document: Mapping[str, Any], release: str, name: str | None = None) -> Host:
    """A host from its document; ``name`` is that of its file, for a document without one."""
    called = str(document.get("host") or name or "?")
    state = document.get("state") if document.get("state") in STATES else "unknown"
    report = _map(document.get("report"))
    error = _map(report.get("error"))
    warnings = tuple(str(each) for each in _list(report.get("warnings")))
    reason, hint = _reason(str(state), document, error)
    if state == "unknown" and document.get("state") != "unknown":
        reason = f"its state is {document.get('state')!r}, which this version does not know"
    kept, why = standby(document.get("watch")) if state in _SERVED else (None, None)
    concerns = _concerns(document, reason) if state in DONE else ()
    moves = _map(report.get("moves")) if report.get("committed") is True else {}
    found = Host(
        name=called,
        wave=wave_name(document.get("wave")),
        state=str(state),
        started=instant(document.get("started")),
        ended=instant(document.get("ended")) if state in ENDED else None,
        reason=reason,
        hint=hint,
        moves={str(vm): us for vm, us in moves.items() if _number(us) is not None},
        lost=sum(_frames(found["frames"]) for each in warnings if (found := _LOST.match(each))),
        lost_unknown=tuple(found["vm"] for each in warnings if (found := _NOT_KNOWN.match(each))),
        warnings=warnings,
        concerns=concerns,
        standby=kept,
        standby_reason=why,
    )
    if not found.needs_a_person:
        return found
    return dataclasses.replace(found, look=command(called, found.state, error.get("exit_code"), release))


def unreadable(name: str, cause: str) -> Host:
    """A host whose document cannot be read."""
    reason = f"its record cannot be read: {cause}"
    return Host(name, "?", "unknown", reason=reason, look=command(name, "unknown", None, ""))


# ----------------------------------------------------------------------------------------------------------- totals


def quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest rank: a value that occurred."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _natural(text: str) -> list[Any]:
    """hv2 before hv10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,15})", text) if part]


def wave_order(name: str) -> tuple[int, list[Any]]:
    return (0 if name == CANARY else 1 if name != "?" else 2, _natural(name))


def _count(values: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    found = list(values)
    return {each: found.count(each) for each in order if each in found}


def _wave(name: str, hosts: Sequence[Host]) -> Wave:
    started = [each.started for each in hosts if each.started is not None]
    ended = [each.ended for each in hosts if each.ended is not None]
    over = all(each.state in ENDED for each in hosts)
    moved = [us for each in hosts for us in each.moves.values()]
    return Wave(
        name=name,
        states=_count((each.state for each in hosts), STATES),
        started=min(started, default=None),
        ended=max(ended, default=None) if over else None,
        vms=len(moved),
        worst_us=max(moved, default=None),
    )


def stop(record: Any) -> Stop | None:
    """From the entry ``stopped`` of a run's record: null, a sentence, or an object."""
    if isinstance(record, str) and record.strip():
        return Stop("", text=_text(record))
    found = _map(record)
    if not found:
        return None
    wave = found.get("wave")
    return Stop(
        threshold=str(found.get("threshold") or "a threshold"),
        limit=_number(found.get("limit")),
        value=_number(found.get("value")),
        wave=None if wave is None else wave_name(wave),
        text=_text(found.get("text") or found.get("reason")),
    )


def totals(run: Mapping[str, Any], hosts: Iterable[Host], final: bool) -> Totals:
    """Planned hosts (``run["hosts"]``: names, each with its wave, if the run recorded them) that have no document are
    ``waiting``."""
    known = {each.name: each for each in hosts}
    planned = _map(run.get("hosts"))
    waiting = {str(name): Host(str(name), wave_name(wave), "waiting") for name, wave in planned.items()}
    every = sorted({**waiting, **known}.values(), key=lambda each: (wave_order(each.wave), _natural(each.name)))
    by_wave: dict[str, list[Host]] = {}
    for each in every:
        by_wave.setdefault(each.wave, []).append(each)
    moved = [(us, vm, each.name) for each in every for vm, us in each.moves.items()]
    worst = max(moved, default=None)
    times = [us for us, _vm, _host in moved]
    ends = [each.ended for each in every if each.ended is not None]
    return Totals(
        run=str(run.get("id") or "?"),
        release=str(run.get("release") or "?"),
        undo=run.get("id") == UNDO,
        final=final,
        started=instant(run.get("started")),
        ended=max(ends, default=None),
        hosts=tuple(every),
        waves=tuple(_wave(name, members) for name, members in by_wave.items()),
        policy=dict(_map(run.get("policy"))),
        stop=stop(run.get("stopped")),
        states=_count((each.state for each in every), STATES),
        moves=len(moved),
        p50_us=quantile(times, 0.5),
        p99_us=quantile(times, 0.99),
        worst_us=worst[0] if worst else None,
        worst_vm=worst[1] if worst else None,
        worst_host=worst[2] if worst else None,
        lost=sum(each.lost for each in every),
        lost_unknown=sum(len(each.lost_unknown) for each in every),
        standby=_count((each.standby for each in every if each.standby), ("missing", "unknown", "off", "restored")),
    )

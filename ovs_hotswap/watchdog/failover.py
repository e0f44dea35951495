"""When an instance has failed, and what to do about it. Pure: the watchdog samples, and does what is decided here.

Each signal has its own deadline and must be seen bad in several samples on end; one good sample clears it. A watcher
that was itself not running for a while (a suspended or overloaded machine) has seen nothing, so it begins anew.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


class Signal(enum.StrEnum):
    """What an instance is judged by.

    PROCESS: it is dead. STOPPED: all its threads are stopped (SIGSTOP, a debugger), so nothing is forwarded.
    PMD: a thread that polls queues completes no iteration. MAIN_THREAD: it does not answer its control socket; the PMD
    threads may well forward meanwhile, and it is busy for half a second when a VM of a new size connects, so it is
    given far more time than the others.
    """

    PROCESS = "process"
    STOPPED = "stopped"
    PMD = "pmd"
    MAIN_THREAD = "main-thread"


class Health(enum.StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``signal`` is what it was suspected or found to have failed by, ``reason`` the same for people."""

    health: Health
    signal: Signal | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the main thread told at ``time``: iterations so far of each PMD thread that polls queues, by core."""

    time: float
    iterations: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. ``time``: seconds, monotonic. ``silent``: the newest question to the main thread waits for its answer
    for longer than one answer takes, or failed. ``answer``: the newest answer, perhaps known from earlier samples."""

    time: float
    alive: bool
    stopped: bool = False
    silent: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for which a signal may be bad. A third of ``hang_s`` for a stopped process leaves the rest
    for noticing it, ending it and moving the VMs. ``check_s``: the time between two samples."""

    check_s: float
    hang_s: float
    main_s: float

    def of(self, signal: Signal) -> float:
        if signal is Signal.STOPPED:
            return self.hang_s / 3
        return {Signal.PROCESS: 0.0, Signal.PMD: self.hang_s, Signal.MAIN_THREAD: self.main_s}[signal]

    @property
    def stall_s(self) -> float:
        """A longer time between two samples means that the watcher did not run."""
        return max(self.hang_s, 4 * self.check_s)


BAD_SAMPLES = 2  # at least this many on end before a living instance is found to have failed


@dataclass(frozen=True, slots=True)
class Trouble:
    """A signal that is bad ``since`` a time, in ``count`` samples."""

    since: float
    count: int
    text: str


@dataclass(frozen=True, slots=True)
class History:
    """What has to be remembered of earlier samples."""

    time: float | None = None
    answer: Answer | None = None
    troubles: Mapping[Signal, Trouble] = field(default_factory=dict)


def judge(history: History, sample: Sample, limits: Limits) -> tuple[History, Verdict]:
    """Take in one more sample of one process. Begin with ``History()``, also for another process."""
    if not sample.alive:
        return replace(history, time=sample.time), Verdict(Health.FAILED, Signal.PROCESS, "its process is dead")
    if history.time is not None and sample.time - history.time > limits.stall_s:
        history = History()
    troubles = {}
    for signal, text in (
        (Signal.STOPPED, "its process is stopped" if sample.stopped else ""),
        (Signal.MAIN_THREAD, "its main thread does not answer" if sample.silent else ""),
    ):
        if text:
            troubles[signal] = _worse(history.troubles.get(signal), sample.time, text)
    pmd = None if sample.silent else _pmd(history, sample)
    if pmd is not None:
        troubles[Signal.PMD] = pmd
    after = History(sample.time, None if sample.silent else sample.answer, troubles)
    return after, _verdict(after, limits)


def _worse(before: Trouble | None, since: float, text: str) -> Trouble:
    return Trouble(since, 1, text) if before is None else Trouble(before.since, before.count + 1, text)


def _pmd(history: History, sample: Sample) -> Trouble | None:
    """Counters of one answer say nothing; a main thread that was silent may have held the PMD threads up itself."""
    before, now, trouble = history.answer, sample.answer, history.troubles.get(Signal.PMD)
    if before is None or now is None or now.time <= before.time:
        return trouble
    stuck = sorted(core for core, done in now.iterations.items() if before.iterations.get(core) == done)
    if not stuck:
        return None
    cores = ", ".join(map(str, stuck))
    return _worse(trouble, before.time, f"its PMD thread on core {cores} does not advance")


def _verdict(history: History, limits: Limits) -> Verdict:
    assert history.time is not None
    for signal in Signal:
        trouble = history.troubles.get(signal)
        if trouble is None:
            continue
        lasting = history.time - trouble.since
        if trouble.count >= BAD_SAMPLES and lasting >= limits.of(signal):
            return Verdict(Health.FAILED, signal, f"{trouble.text} for {lasting:.2f} s")
    for signal, trouble in history.troubles.items():
        return Verdict(Health.SUSPECT, signal, trouble.text)
    return Verdict(Health.HEALTHY)


# ------------------------------------------------------------------------------------------------------- fail-over


class Act(enum.StrEnum):
    """The next act of a fail-over. NO_TARGET: there is nowhere to go, so nothing is taken from an active that may still
    forward something."""

    NOTHING = "nothing"
    NO_TARGET = "no-target_ready"
    FENCE = "fence"
    STEER = "steer"
    AWAIT = "await"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class FailoverState:
    """``alive``, ``failed``: of the active. ``useless``: its process is stopped, so it forwards nothing, and would be
    started again if it ended. ``target_ready``: the other instance lives and has VMs parked on it, or owns them.
    ``steered``: the uplink points there. ``stranded``: VMs it could own and does not yet, or may be, where nobody can
    tell. ``patience``: whether they may still be waited for."""

    alive: bool
    failed: bool
    target_ready: bool
    useless: bool = False
    steered: bool = False
    stranded: int = 0
    patience: bool = True


def next_act(scene: FailoverState) -> Act:
    """In this order: nobody is given rings, traffic or the record while the active may still be on the rings."""
    if scene.alive and not scene.failed:
        return Act.NOTHING
    if scene.alive and (scene.target_ready or scene.useless):
        return Act.FENCE
    if not scene.target_ready:
        return Act.NO_TARGET  # one that is dead is started again
    if not scene.steered:
        return Act.STEER
    if scene.stranded and scene.patience:
        return Act.AWAIT
    return Act.RECORD


# --------------------------------------------------------------------------------------------------------- standby


class Task(enum.StrEnum):
    """What the standby needs next. MEND: the active has lost its database server. SETTLE: the active was a standby,
    give it the operator's values. RESTART: start the active again, as there is nowhere to go. RETURN: VMs that the
    standby took while the active was away."""

    NOTHING = "nothing"
    MEND = "mend"
    SETTLE = "settle"
    RESTART = "restart"
    CLEAN = "clean"
    REPLACE = "replace"
    START = "start"
    PREPARE = "prepare"
    PROGRAM = "program"
    RETURN = "return"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class StandbyState:
    """``dead``: it was started and is gone. ``prepared``: programmed and, once, parked on. ``broken``: the active lacks
    its database server. ``outdated``: the overlay intent is not the one that was programmed. ``may_start``: the
    back-off of starting and preparing a standby allows it; ``may_restart``: that of starting the active again."""

    active_runs: bool
    standby_runs: bool
    broken: bool = False
    standby_dead: bool = False
    settle: bool = False
    right_release: bool = True
    prepared: bool = False
    outdated: bool = False
    strays: tuple[str, ...] = ()
    unparked: tuple[str, ...] = ()
    may_start: bool = True
    may_restart: bool = True


def next_task(house: StandbyState) -> Task:
    """One task at a time: the world is looked at anew after each."""
    if not house.active_runs:
        if house.standby_runs and house.prepared:
            return Task.NOTHING  # the fail-over's affair
        return Task.RESTART if house.may_restart else Task.NOTHING
    if house.broken:
        return Task.MEND
    if house.settle:
        return Task.SETTLE
    if house.standby_dead:
        return Task.CLEAN
    if not house.standby_runs:
        return Task.START if house.may_start else Task.NOTHING
    if not house.right_release:
        return Task.REPLACE
    if not house.prepared:
        if house.may_start:
            return Task.PREPARE
        return Task.RETURN if house.strays else Task.NOTHING  # which may be its state for long
    if house.outdated:
        return Task.PROGRAM
    if house.strays:
        return Task.RETURN
    return Task.PARK if house.unparked else Task.NOTHING


# -------------------------------------------------------------------------------------------------------- back-off


@dataclass(frozen=True, slots=True)
class Backoff:
    """Failures, oldest first, in seconds on any one clock.

    After each the next start waits twice as long, ``most_s`` at most. ``limit`` of them within ``window_s`` and nothing
    is started any more: that state stays until the watchdog itself is started again. Without a limit it goes on.
    """

    limit: int | None
    window_s: float
    first_s: float = 1.0
    most_s: float = float("inf")
    failures: tuple[float, ...] = ()
    given_up: bool = False

    def failed(self, now: float) -> Backoff:
        recent = (*(time for time in self.failures if now - time < self.window_s), now)
        given_up = self.given_up or (self.limit is not None and len(recent) >= self.limit)
        return replace(self, failures=recent, given_up=given_up)

    def not_before(self) -> float | None:
        """When the next start is allowed: at any time (minus infinity), or ``None``: never."""
        if self.given_up:
            return None
        if not self.failures:
            return float("-inf")
        return self.failures[-1] + min(self.first_s * 2.0 ** min(len(self.failures) - 1, 60), self.most_s)

    def may_start(self, now: float) -> bool:
        earliest = self.not_before()
        return earliest is not None and now >= earliest

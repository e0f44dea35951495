"""Decides whether an instance has failed. Pure: the watchdog takes the samples.

Each signal has its own deadline and must be bad in several samples in a row; one good sample clears it. If the watchdog
itself did not run for a while (a suspended or overloaded machine), it has seen nothing, so it forgets earlier samples.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


class Signal(enum.StrEnum):
    """What shows that an instance has failed.

    PROCESS: its process is dead. STOPPED: all its threads are stopped (SIGSTOP, a debugger), so nothing is forwarded.
    PMD: a thread that polls queues completes no iteration. MAIN_THREAD: the main thread does not answer on the control
    socket. The PMD threads may forward in that time, and the main thread is busy for half a second when a VM of a new
    size connects, so this signal has a far longer deadline than the others.
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
    """The judgement of an instance. ``signal``: the signal that is bad, if one is. ``reason``: a text about it for
    people."""

    health: Health
    signal: Signal | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The main thread's answer at ``time``: how many iterations each PMD thread that polls queues has completed, by
    core."""

    time: float
    iterations: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look has found. ``time``: monotonic seconds. ``silent``: the newest question to the main thread has
    waited longer than an answer takes, or has failed. ``answer``: the newest answer, which earlier samples may have had
    already."""

    time: float
    alive: bool
    stopped: bool = False
    silent: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The seconds for which a signal may be bad. A stopped process may be so for a third of ``hang_s``, which leaves
    the rest for noticing it, ending it and moving the VMs. ``check_s``: the time between two samples."""

    check_s: float
    hang_s: float
    main_s: float

    def of(self, signal: Signal) -> float:
        if signal is Signal.STOPPED:
            return self.hang_s / 3
        return {Signal.PROCESS: 0.0, Signal.PMD: self.hang_s, Signal.MAIN_THREAD: self.main_s}[signal]

    @property
    def stall_s(self) -> float:
        """The longest time between two samples, in seconds; after a longer one, the watchdog did not run."""
        return max(self.hang_s, 4 * self.check_s)


BAD_SAMPLES = 2  # at least this many in a row before a living instance is found to have failed


@dataclass(frozen=True, slots=True)
class Trouble:
    """A signal that has been bad ``since`` a time, in ``count`` samples."""

    since: float
    count: int
    text: str


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered of earlier samples."""

    time: float | None = None
    answer: Answer | None = None
    troubles: Mapping[Signal, Trouble] = field(default_factory=dict)


def judge(history: History, sample: Sample, limits: Limits) -> tuple[History, Verdict]:
    """Judge one more sample of a process; return the new history and the verdict. The first sample of each process is
    judged with ``History()``."""
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
    """Compare the counters of two answers. There is no verdict without two of them. Answers from before a silence of
    the main thread do not count, because the main thread may have held up the PMD threads itself."""
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

"""One simulated run over a fleet: pure, and the same for the same seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.fleet.measured import Durations, at
from bench.fleet.model import HOUR, Assumed, Batch, Fault, Moment, Outcome, Policy, batches


@dataclass(frozen=True, slots=True)
class Worked:
    """What became of a host. ``failed_after``: seconds from its beginning until the run can know of its failure, which
    may be long after its end; None if there is none."""

    seconds: float
    failed_after: float | None
    exposed: bool
    running: bool
    vms: int


@dataclass(slots=True)
class _Tally:
    touched: int = 0
    exposed: int = 0
    running: int = 0
    vms: int = 0
    failures: list[float] = field(default_factory=list)  # a heap of the times from which each is known
    known: int = 0

    def add(self, begun: float, worked: Worked) -> None:
        self.touched += 1
        self.exposed += worked.exposed
        self.running += worked.running
        self.vms += worked.vms if worked.running else 0
        if worked.failed_after is not None:
            heapq.heappush(self.failures, begun + worked.failed_after)

    def failed(self, now: float) -> int:
        while self.failures and self.failures[0] <= now:
            heapq.heappop(self.failures)
            self.known += 1
        return self.known


def host(rng: random.Random, table: Callable[[int], Durations], fault: Fault | None, assumed: Assumed) -> Worked:
    """The draws are the same whatever the fault is, so runs with one seed differ by what is compared alone."""
    ordinary, shows, spread, overhead = rng.random(), rng.random(), rng.random(), rng.uniform(*assumed.overhead_s)
    fewest, most = assumed.vms
    vms = fewest + int(rng.random() * (most - fewest + 1))
    took = table(vms)
    if ordinary < assumed.ordinary:
        end = overhead + took.precheck
        return Worked(end, end, exposed=False, running=False, vms=vms)
    if fault is None or shows >= fault.share:
        return Worked(overhead + took.whole, None, exposed=True, running=True, vms=vms)
    if fault.moment is Moment.LATER:
        later = fault.hours * HOUR * (0.5 + spread)
        return Worked(overhead + took.whole, overhead + took.whole + later, exposed=True, running=True, vms=vms)
    if fault.moment is Moment.PRECHECK:
        end = overhead + took.precheck
        return Worked(end, end, exposed=False, running=False, vms=vms)
    reached = took.moved if fault.moment is Moment.MOVES else took.soaked
    end = overhead + reached * (1 + assumed.undo)
    return Worked(end, end, exposed=True, running=False, vms=vms)


def simulate(
    policy: Policy, hosts: int, fault: Fault | None, assumed: Assumed, points: Sequence[Durations], seed: int
) -> Outcome:
    rng = random.Random(seed)
    low, high = assumed.vms
    cache = {vms: at(points, vms) for vms in range(low, high + 1)}
    tally, now, stopped, begun = _Tally(), 0.0, False, 0
    plan = list(batches(policy, hosts))
    for number, batch in enumerate(plan, 1):
        begun = number
        now, stopped = _work(batch, policy, now, tally, lambda: host(rng, cache.__getitem__, fault, assumed))
        now += assumed.gate_s
        stopped = stopped or _over(policy, batch, tally, now)
        if not stopped and number < len(plan):
            now += HOUR * (policy.soak_h if batch.canary else policy.pause_h)
            stopped = _over(policy, batch, tally, now)
        if stopped:
            break
    return Outcome(
        stopped, now / HOUR, tally.touched, tally.exposed, tally.running, tally.vms, tally.failed(now), begun
    )


def _over(policy: Policy, batch: Batch, tally: _Tally, now: float) -> bool:
    """Whether a limit is exceeded by what is known now."""
    failed = tally.failed(now)
    if batch.canary:
        return failed > 0
    return failed > policy.max_failed or 100 * failed > policy.percent * tally.touched


def _work(batch: Batch, policy: Policy, now: float, tally: _Tally, draw: Callable[[], Worked]) -> tuple[float, bool]:
    """Work on the hosts of a batch, ``forks`` at a time. Return when the last one ended, and whether hosts were left
    because a limit was exceeded."""
    free = [now] * min(policy.forks, batch.size)  # a heap: when each worker is free
    last = now
    for _ in range(batch.size):
        begin = free[0]
        if policy.early and _over(policy, batch, tally, begin):
            return max(last, begin), True
        worked = draw()
        tally.add(begin, worked)
        heapq.heapreplace(free, begin + worked.seconds)
        last = max(last, begin + worked.seconds)
    return last, False

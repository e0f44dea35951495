"""Many simulated runs for each question of docs/fleet.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.fleet.measured import Durations
from bench.fleet.model import Assumed, Fault, Moment, Outcome, Policy
from bench.fleet.policies import (
    COMPARED,
    FAULTS,
    FORKS,
    HOURS,
    LARGE,
    LIMITS,
    PARALLEL,
    RANGES,
    RATES,
    RECOMMENDED,
    SHARES,
)
from bench.fleet.simulate import simulate

MORE = 4


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of many runs, and what 19 of 20 do not exceed."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Many:
    """Many runs of one policy that differ by their seed."""

    outcomes: tuple[Outcome, ...]

    def spread(self, figure: Callable[[Outcome], float]) -> Spread:
        ordered = sorted(map(figure, self.outcomes))
        p50, p95 = (ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.95))
        return Spread(p50, p95)

    def share(self, condition: Callable[[Outcome], bool]) -> float:
        return fmean(map(condition, self.outcomes))


@dataclass(frozen=True, slots=True)
class Laboratory:
    """What all studies share. ``runs``: how many runs each figure is made of; of the recommended policies, ``MORE`` as
    many."""

    points: Sequence[Durations]
    assumed: Assumed
    runs: int

    def many(self, policy: Policy, hosts: int, fault: Fault | None, assumed: Assumed | None = None) -> Many:
        chosen = assumed or self.assumed
        return Many(tuple(simulate(policy, hosts, fault, chosen, self.points, seed) for seed in range(self.runs)))

    def thorough(self) -> Laboratory:
        return replace(self, runs=MORE * self.runs)

    def undisturbed(self, policy: Policy, hosts: int) -> Many:
        """A good release, and no host that fails: how long the policy takes. A few runs will do, as hosts differ
        little."""
        few = replace(self, runs=max(1, self.runs // 20))
        return few.many(policy, hosts, None, replace(self.assumed, ordinary=0.0))


@dataclass(frozen=True, slots=True)
class Judged:
    """A policy: hours of an undisturbed run, the probability that ordinary failures stop a good release, and what each
    of ``FAULTS`` does until the run is stopped."""

    policy: Policy
    hosts: int
    hours: float
    false_stop: float
    faults: tuple[Many, ...]


def judge(lab: Laboratory, policy: Policy, hosts: int) -> Judged:
    return Judged(
        policy,
        hosts,
        lab.undisturbed(policy, hosts).spread(lambda outcome: outcome.hours).p50,
        lab.many(policy, hosts, None).share(lambda outcome: outcome.stopped),
        tuple(lab.many(policy, hosts, fault) for _name, fault in FAULTS),
    )


def recommended(lab: Laboratory) -> list[Judged]:
    return [judge(lab.thorough(), policy, hosts) for hosts, policy in RECOMMENDED]


def compared(lab: Laboratory) -> list[Judged]:
    return [judge(lab, policy, LARGE) for policy in COMPARED]


@dataclass(frozen=True, slots=True)
class Varied:
    """One assumption with another value, under the policy that is recommended for the largest fleet."""

    assumption: str
    value: str
    hours: float
    false_stop: float
    left: Spread


def varied(lab: Laboratory, fault: Fault) -> list[Varied]:
    """The standard values first, then each of ``RANGES`` with its two ends."""
    hosts, policy = RECOMMENDED[-1]

    def one(name: str, value: str, assumed: Assumed) -> Varied:
        changed = replace(lab.thorough(), assumed=assumed)
        return Varied(
            name,
            value,
            changed.undisturbed(policy, hosts).spread(lambda o: o.hours).p50,
            changed.many(policy, hosts, None).share(lambda o: o.stopped),
            changed.many(policy, hosts, fault).spread(lambda o: o.running),
        )

    ends = [one(name, value, assumed) for name, _standard, both in RANGES for value, assumed in both]
    return [one("as assumed", "", lab.assumed), *ends]


def touched(lab: Laboratory) -> dict[str, list[Spread]]:
    """For each policy the hosts touched by a fault in the moves, for each of ``SHARES``."""
    return {
        policy.name: [
            lab.many(policy, LARGE, Fault(Moment.MOVES, share)).spread(lambda o: o.touched) for share in SHARES
        ]
        for policy in COMPARED
    }


def late(lab: Laboratory, share: float) -> dict[str, list[Spread]]:
    """For each policy the hosts left on the bad release, for each of ``HOURS`` after which it shows."""
    return {
        policy.name: [
            lab.many(policy, LARGE, Fault(Moment.LATER, share, hours)).spread(lambda o: o.running) for hours in HOURS
        ]
        for policy in COMPARED
    }


def parallel(lab: Laboratory) -> dict[str, list[float]]:
    """For each policy without its soaks and pauses, the hours of an undisturbed run for each of ``FORKS``."""
    few = replace(lab, runs=1)
    return {
        policy.name: [
            few.undisturbed(replace(policy, forks=forks, soak_h=0, pause_h=0), LARGE).outcomes[0].hours
            for forks in FORKS
        ]
        for policy in COMPARED
        if policy.name in PARALLEL
    }


def false_stops(lab: Laboratory) -> dict[int, list[float]]:
    """For each of ``LIMITS`` over the run, and each of ``RATES`` of ordinary failures, how often a run with a good
    release is stopped."""

    def stopped(allowed: int, rate: float) -> float:
        policy = Policy("x", ("5%",), max_failed=allowed, early=True)
        return lab.many(policy, LARGE, None, replace(lab.assumed, ordinary=rate)).share(lambda o: o.stopped)

    return {allowed: [stopped(allowed, rate) for rate in RATES] for allowed in LIMITS}

"""Formulas for what the simulation must agree with, for failures that are independent of one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


def touched_one_by_one(hosts: int, share: float, allowed: int = 0) -> float:
    """Expected hosts that are begun, one after the other, until more than ``allowed`` of them failed: the sum over the
    hosts of the probability that each is still begun."""
    return sum(at_most(number, share, allowed) for number in range(hosts))


def touched_in_waves(sizes: Sequence[int], share: float) -> float:
    """Expected hosts that are begun if each wave is finished, and a wave with a failure is the last one."""
    before = [0, *accumulate(sizes)]
    return sum(size * (1 - share) ** passed for size, passed in zip(sizes, before[:-1], strict=True))


def at_most(hosts: int, share: float, failures: int) -> float:
    """Probability that of so many hosts at most so many fail."""
    return sum(math.comb(hosts, k) * share**k * (1 - share) ** (hosts - k) for k in range(min(failures, hosts) + 1))


def stops(hosts: int, share: float, allowed: int) -> float:
    """Probability that a run over all hosts has more failures than are allowed, in logarithms because of its size."""
    if share <= 0:
        return 0.0
    logs = (
        math.lgamma(hosts + 1) - math.lgamma(k + 1) - math.lgamma(hosts - k + 1)
        + k * math.log(share) + (hosts - k) * math.log1p(-share)
        for k in range(min(allowed, hosts) + 1)
    )  # fmt: skip
    return max(0.0, 1 - sum(map(math.exp, logs)))


def seen(canaries: int, share: float) -> float:
    """Probability that at least one of the canaries shows a fault."""
    return float(1 - (1 - share) ** canaries)

"""What a simulated run over a fleet is made of: the fleet, the policy, the fault of a release, and what is assumed."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

HOUR = 3600.0


class Moment(enum.StrEnum):
    """When a bad release shows on a host. Before ``LATER`` the host puts itself back."""

    PRECHECK = "precheck"
    MOVES = "moves"
    SOAK = "soak"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Fault:
    """A bad release: each host shows it with probability ``share``. ``hours``: for ``LATER``, how long after the host's
    upgrade on average; single hosts need half to one and a half times as long."""

    moment: Moment
    share: float
    hours: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How a run goes through a fleet. Sizes are a number of hosts or a percentage such as ``"10%"``.

    ``canaries`` are upgraded first, in a play of their own in which any failure is fatal, and watched for ``soak_h``
    hours. Then come the waves of ``serial``, the last entry over and over. ``forks`` hosts are worked on at a time.
    The run is stopped if more than ``max_failed`` hosts failed in all waves together, or more than ``percent`` of those
    that were begun. That is decided between the waves, as Ansible can; ``early``: before each host as well. After each
    wave the run waits for ``pause_h`` hours.
    """

    name: str
    serial: tuple[int | str, ...]
    canaries: int = 0
    soak_h: float = 0.0
    forks: int = 50
    max_failed: int = 0
    percent: float = 100.0
    pause_h: float = 0.0
    early: bool = False


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is not measured in this repository. ``ordinary``: the share of hosts that fail with any release, for
    reasons of their own. ``overhead_s``: what connecting, installing and reading reports adds to each host, from the
    shortest to the longest. ``undo``: how long putting back takes, as a multiple of what it undoes. ``gate_s``: a
    gate between two waves. ``vms``: VMs of a host, from the fewest to the most."""

    ordinary: float = 0.001
    overhead_s: tuple[float, float] = (10.0, 60.0)
    undo: float = 1.0
    gate_s: float = 15.0
    vms: tuple[int, int] = (20, 60)


@dataclass(frozen=True, slots=True)
class Batch:
    """Hosts that are begun together. A failure of a canary ends the run."""

    size: int
    canary: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run. ``hours``: until it was stopped or done. ``touched``: hosts on which work was begun.
    ``exposed``: hosts whose VMs were on the new release at any time; ``running`` and ``vms``: hosts and VMs that were
    left on it. ``failed``: failures that the run knew of. ``waves``: how many batches were begun."""

    stopped: bool
    hours: float
    touched: int
    exposed: int
    running: int
    vms: int
    failed: int
    waves: int


def amount(size: int | str, hosts: int) -> int:
    """Hosts that a size stands for, as Ansible counts them: rounded down, and at least one."""
    found = int(float(size.removesuffix("%")) / 100 * hosts) if isinstance(size, str) else size
    return max(1, found)


def batches(policy: Policy, hosts: int) -> Iterator[Batch]:
    left = hosts
    if policy.canaries:
        yield Batch(min(policy.canaries, left), canary=True)
        left -= min(policy.canaries, left)
    total, place = left, 0
    while left > 0:
        size = min(left, amount(policy.serial[min(place, len(policy.serial) - 1)], total))
        yield Batch(size, canary=False)
        left, place = left - size, place + 1

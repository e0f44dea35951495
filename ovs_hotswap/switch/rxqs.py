"""The receive queues that PMD threads poll, from what Open vSwitch prints. This module is pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

THREAD = re.compile(r"^pmd thread numa_id (?P<numa>\d+) core_id (?P<core>\d+):$")
_QUEUE = re.compile(r"^\s+port:\s+(?P<port>\S+)\s+queue-id:\s+(?P<queue>\d+)\s+\((?P<state>enabled|disabled)\)"
                    r"(?:\s+pmd usage:\s+(?P<usage>\d+) %)?")  # fmt: skip
_ISOLATED = re.compile(r"^\s+isolated\s*:\s*(?P<value>true|false)$")


@dataclass(frozen=True, slots=True)
class RxQueue:
    """One receive queue that a PMD thread on ``core`` has in its poll list.

    ``enabled`` is false if a guest disabled the ring. A vhost port to which no guest has connected yet has one queue,
    and that queue is enabled: a caller has to count the queues as well.

    What says nothing about which queues there are does not count when two are compared. ``numa``: of the thread.
    ``isolated``: the thread polls only what is bound to it. ``usage``: the percentage of the thread's cycles that the
    queue took in the last minute; ``None`` if the switch does not know it yet.
    """

    queue: int
    core: int
    enabled: bool
    numa: int | None = field(default=None, compare=False)
    isolated: bool = field(default=False, compare=False)
    usage: int | None = field(default=None, compare=False)


def parse_pmd_rxqs(text: str) -> dict[str, tuple[RxQueue, ...]]:
    """Return the queues of each port, ordered by number, from ``dpif-netdev/pmd-rxq-show``.

    OVS 3.1 to 3.5 print the same lines (lib/dpif-netdev.c, pmd_info_show_rxq); what later versions add is skipped.
    """
    found: dict[str, list[RxQueue]] = {}
    core, numa, isolated = -1, -1, False
    for line in text.splitlines():
        if thread := THREAD.match(line):
            core, numa, isolated = int(thread["core"]), int(thread["numa"]), False
        elif alone := _ISOLATED.match(line):
            isolated = alone["value"] == "true"
        elif queue := _QUEUE.match(line):
            usage = None if queue["usage"] is None else int(queue["usage"])
            entry = RxQueue(int(queue["queue"]), core, queue["state"] == "enabled", numa, isolated, usage)
            found.setdefault(queue["port"], []).append(entry)
    return {port: tuple(sorted(queues, key=lambda entry: entry.queue)) for port, queues in found.items()}

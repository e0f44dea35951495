"""What the guests noticed while something was done to the switch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ovs_hotswap.lab.pings import PingStats
from ovs_hotswap.reports.document import RunReport


@dataclass(frozen=True, slots=True)
class GuestGaps:
    """The gaps between one guest's answers from one target, in ms. ``handover``: the longest gap around the guest's
    handover. ``longest``: the longest of all gaps, with the ``step`` that ran for most of it. ``None``: there was none,
    or it is not known."""

    guest: str
    target: str
    handover: float | None
    longest: float | None
    step: str | None


@dataclass(frozen=True, slots=True)
class Phase:
    """What the guests noticed while something was done to the switch. ``seconds``: how long this took. ``moves``: the
    microseconds of each handover on the broker's clock, by VM. ``gaps``: when the guests' longest gaps were.
    ``report``: what an upgrade, a rollback or a failover has left."""

    name: str
    seconds: float
    pings: list[PingStats]
    moves: dict[str, float]
    gaps: list[GuestGaps] = field(default_factory=list)
    report: RunReport | None = None

    @property
    def lost(self) -> int:
        return sum(stats.lost for stats in self.pings)

    @property
    def duplicated(self) -> int:
        return sum(stats.duplicated for stats in self.pings)

    @property
    def sent(self) -> int:
        return sum(stats.sent for stats in self.pings)

    @property
    def longest_gap_ms(self) -> float:
        """The longest gap in ms; infinite if a guest got no answer at all, for which the document has ``None``."""
        return max((stats.longest_gap_ms if stats.longest_gap_ms is not None else float("inf") for stats in self.pings),
                   default=0.0)  # fmt: skip

    def document(self) -> dict[str, Any]:
        sums = {"sent": self.sent, "lost": self.lost, "duplicated": self.duplicated}
        longest = self.longest_gap_ms
        own = asdict(replace(self, report=None))
        del own["report"]
        return {**own, **sums, "longest_gap_ms": longest if math.isfinite(longest) else None}

"""The direction of an upgrade, decided from one look at its two instances. Pure.

``Situation`` is what was seen, and its ``outlook`` what follows. The old instance keeps all it needs until it is
retired. So if the new instance is lost, the upgrade goes back, even after the commit; if the old one is lost, it can
only go forward.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ovs_hotswap.model import Life, Side


class Outlook(enum.Enum):
    """What an upgrade can still do.

    BOTH: either instance can serve the VMs. OLD_LOST: the old instance died, so there is nothing to go back to.
    NEW_DOWN: the new instance forwards nothing, and the old one lives. VMS_RETURNED: the VMs had moved, and the old
    instance serves them again. UPLINK_LOST: the new instance has lost its uplink. NONE: neither instance lives, for
    example after a reboot.
    """

    BOTH = "both"
    OLD_LOST = "old lost"
    NEW_DOWN = "new down"
    VMS_RETURNED = "VMs returned"
    UPLINK_LOST = "uplink lost"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Service:
    """What was seen of the VMs and the uplink. ``by_old`` and ``by_new``: the VMs that each instance serves. ``known``:
    whether the broker answered. ``uplink``: says that the new instance's datapath lacks its uplink; empty if not."""

    by_old: tuple[str, ...] = ()
    by_new: tuple[str, ...] = ()
    known: bool = False
    uplink: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """What one look has found. ``service`` is ``None`` if only the processes were looked at."""

    old: Side
    new: Side
    old_life: Life
    new_life: Life
    service: Service | None = None

    @property
    def outlook(self) -> Outlook:
        if self.old_life is Life.DEAD:
            return Outlook.NONE if self.new_life is Life.DEAD else Outlook.OLD_LOST
        if self.new_life is not Life.RUNS:
            return Outlook.NEW_DOWN
        if self.service is None:
            return Outlook.BOTH
        if self.service.known and self.service.by_old and not self.service.by_new:
            return Outlook.VMS_RETURNED
        return Outlook.UPLINK_LOST if self.service.uplink else Outlook.BOTH

    @property
    def old_lost(self) -> bool:
        """Whether the upgrade can only go forward."""
        return self.outlook is Outlook.OLD_LOST

    @property
    def living(self) -> tuple[Side, ...]:
        """The instances to work on: the new one, and the old one unless it died."""
        return (self.new,) if self.old_lost else (self.new, self.old)

    @property
    def no_way_back(self) -> str:
        """Why an upgrade cannot be undone before the commit; empty if it can."""
        return f"instance {self.old} died" if self.old_lost else ""

    @property
    def new_down(self) -> str:
        """Why the new instance forwards nothing, whatever the state of the old one; empty if it may forward."""
        return "" if self.new_life is Life.RUNS else f"instance {self.new} {self.new_life.value}"

    @property
    def no_way_on(self) -> str:
        """Why a committed upgrade is given up; empty if it is not. The look must include ``service``."""
        match self.outlook:
            case Outlook.NEW_DOWN:
                return self.new_down
            case Outlook.VMS_RETURNED:
                return f"instance {self.old} serves the VMs again"
            case Outlook.UPLINK_LOST:
                assert self.service is not None
                return self.service.uplink
        return ""

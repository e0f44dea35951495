"""Which way an upgrade goes, decided from one look at its two instances. Pure.

``Situation`` is what was seen, ``outlook`` what follows from it. The old instance keeps all it needs until it is
retired, so losing the new one leads back, also after the commit; losing the old one leaves only the way forward.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ovs_hotswap.model import Side


class Life(enum.Enum):
    """What the ovs-vswitchd of an instance does. A stopped one forwards nothing, but may be continued."""

    RUNS = "runs"
    STOPPED = "is stopped"
    DEAD = "died"


class Outlook(enum.Enum):
    """What an upgrade can still do.

    BOTH: either instance can serve the VMs. OLD_LOST: the old one died, so there is nothing to go back to. NEW_DOWN:
    the new one forwards nothing, and the old one lives. VMS_RETURNED: the old one serves the VMs again, though they had
    moved. UPLINK_LOST: the new one has lost its uplink. NONE: neither instance lives, as after a reboot.
    """

    BOTH = "both"
    OLD_LOST = "old lost"
    NEW_DOWN = "new down"
    VMS_RETURNED = "VMs returned"
    UPLINK_LOST = "uplink lost"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Service:
    """What was seen of the VMs and the uplink. ``by_old`` and ``by_new``: VMs that the instance serves. ``known``:
    whether the broker answered. ``uplink``: why the new instance's datapath lacks its uplink, empty if it does not."""

    by_old: tuple[str, ...] = ()
    by_new: tuple[str, ...] = ()
    known: bool = False
    uplink: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """One look. ``service`` is ``None`` where the caller asked for the processes alone."""

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
        """Whether there is only the way forward."""
        return self.outlook is Outlook.OLD_LOST

    @property
    def living(self) -> tuple[Side, ...]:
        """The instances to work on: the new one, and the old one unless it died."""
        return (self.new,) if self.old_lost else (self.new, self.old)

    @property
    def no_way_back(self) -> str:
        """Why going back makes no sense before the commit; empty if it does."""
        return f"instance {self.old} died" if self.old_lost else ""

    @property
    def new_down(self) -> str:
        """Why the new instance forwards nothing, whatever became of the old one; empty if it may forward."""
        return "" if self.new_life is Life.RUNS else f"instance {self.new} {self.new_life.value}"

    @property
    def no_way_on(self) -> str:
        """Why a committed upgrade is given up; empty if it is not. Needs ``service``."""
        match self.outlook:
            case Outlook.NEW_DOWN:
                return self.new_down
            case Outlook.VMS_RETURNED:
                return f"instance {self.old} serves the VMs again"
            case Outlook.UPLINK_LOST:
                assert self.service is not None
                return self.service.uplink
        return ""

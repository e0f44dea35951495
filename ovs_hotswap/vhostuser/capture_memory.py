"""The memory that the capture rings of all VMs may take at once.

Each VM's share is what its own rings may hold at the most, so no VM takes another's, whatever arrives for it. It is
taken before rings are armed. A VM that finds no room is not moved yet: its frames go on to its guest, and nothing is
lost.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """Whoever has capture rings."""

    def tidy(self) -> None:
        """Give the room back if nobody can be on the rings any more."""


class Room:
    """``limit``: bytes in all, of which any one VM needs less."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Holder, int] = {}

    @property
    def taken(self) -> int:
        return sum(self._held.values())

    def fits(self, holder: Holder, size: int) -> bool:
        """Whether ``holder`` can have ``size`` bytes in all."""
        if self._left(holder) < size:
            for each in [each for each in self._held if each is not holder]:
                each.tidy()
        return self._left(holder) >= size

    def take(self, holder: Holder, size: int) -> None:
        """After ``fits``, or of what is taken already."""
        self._held[holder] = size

    def give_back(self, holder: Holder) -> None:
        self._held.pop(holder, None)

    def _left(self, holder: Holder) -> int:
        return self.limit - self.taken + self._held.get(holder, 0)

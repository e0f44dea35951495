"""The memory that the capture rings of all VMs may take at once.

A VM reserves as much as its own rings can hold at most, so that no VM uses another's share, whatever arrives for it. It
reserves before its rings are armed. A VM that finds no room is not moved yet: its guest receives its frames as before,
and nothing is lost.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """An object that has capture rings, and room for them."""

    def tidy(self) -> None:
        """Give the room back if no back end can be on the rings any longer."""


class Room:
    """The room for all capture rings. ``limit`` is its size in bytes; it must be more than any one VM needs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Holder, int] = {}

    @property
    def taken(self) -> int:
        return sum(self._held.values())

    def fits(self, holder: Holder, size: int) -> bool:
        """Whether ``holder`` can have ``size`` bytes in all; if not at once, other holders are asked to tidy up."""
        if self._left(holder) < size:
            for each in [each for each in self._held if each is not holder]:
                each.tidy()
        return self._left(holder) >= size

    def take(self, holder: Holder, size: int) -> None:
        """Reserve ``size`` bytes in all for ``holder``. The caller has asked ``fits``, or they are in use already."""
        self._held[holder] = size

    def give_back(self, holder: Holder) -> None:
        self._held.pop(holder, None)

    def _left(self, holder: Holder) -> int:
        return self.limit - self.taken + self._held.get(holder, 0)

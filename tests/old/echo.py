"""Guests that talk to themselves."""

from __future__ import annotations

from dataclasses import dataclass

from bench.guests import FleetSpec


@dataclass(frozen=True, slots=True)
class EchoSpec(FleetSpec):
    """Every VM sends to itself: the switch gives back what it sends, so that each VM can be moved alone."""

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(range(len(self.vms)))

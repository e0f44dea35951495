"""What the indices of guests' rings say about whether a switch serves them. Pure.

A guest can write anything into its rings. So a ring says something about a switch only if the same ring was served
before, or is served by the other switch: a ring is compared with that, and never judged by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ovs_hotswap.backends import VmStatus

Place = tuple[str, int]
"""A VM and the index of one of its rings."""


@dataclass(frozen=True, slots=True)
class RingSample:
    """A ring's indices as read from guest memory; 16 bits each (virtio 1.2, 2.7.6 and 2.7.8)."""

    vm: str
    ring: int
    enabled: bool
    size: int
    avail: int
    used: int

    @property
    def place(self) -> Place:
        return self.vm, self.ring

    @property
    def outstanding(self) -> int:
        """Buffers the guest has made available and the switch has not returned."""
        return (self.avail - self.used) & 0xFFFF

    @property
    def transmits(self) -> bool:
        """Whether the guest sends on this ring: it is the odd one of a pair (virtio 1.2, 5.1.2)."""
        return self.ring % 2 == 1

    @property
    def fits(self) -> bool:
        """Whether the indices can be those of a ring that one back end serves."""
        return self.outstanding <= self.size


def samples(vms: Iterable[VmStatus]) -> list[RingSample]:
    """Samples of the VMs' rings that are started and can be read."""
    return [
        RingSample(vm.name, ring.index, ring.enabled, ring.size, ring.available, ring.used)
        for vm in vms
        for ring in vm.rings
        if ring.started and ring.size is not None and ring.available is not None and ring.used is not None
    ]


def unread(vms: Iterable[VmStatus]) -> list[str]:
    """The VMs that have a started ring that cannot be read. A ring whose indices never stand still counts as read, as
    its used index is."""
    return [vm.name for vm in vms if any(ring.started and ring.used is None for ring in vm.rings)]


def fault(then: RingSample | None, now: RingSample) -> str:
    """Why a ring looks as if no switch serves it; empty if the ring may be served, because it has advanced since
    ``then`` or holds nothing to take. A receive ring holds free buffers and may be idle, so only the sanity of its
    indices is checked."""
    if not now.enabled:
        return ""
    if not now.fits:
        return f"used index {now.used} does not fit available index {now.avail}"
    if then is None or not then.enabled or now.used != then.used:
        return ""
    if now.transmits and then.outstanding:
        return f"stuck, {now.outstanding} buffers outstanding at index {now.used}"
    return ""


def text(place: Place, why: str) -> str:
    return f"VM {place[0]} ring {place[1]}: {why}"


class Patience:
    """Finds the rings that look unserved for ``seconds`` without a break. Rings in ``known`` are not judged."""

    def __init__(self, first: Iterable[RingSample], seconds: float, known: Collection[Place] = ()) -> None:
        self._last = {sample.place: sample for sample in first}
        self._seconds = seconds
        self._known = set(known)
        self._since: dict[Place, float] = {}
        self._faults: dict[Place, str] = {}

    @property
    def waiting(self) -> dict[Place, str]:
        """The rings that look unserved now, and why."""
        return {place: self._faults[place] for place in self._since}

    def look(self, now: float, found: Iterable[RingSample]) -> dict[Place, str]:
        """Take new samples, and return the rings that have looked unserved for too long, with the reason for each. The
        time between two samples must be much longer than a PMD thread sleeps."""
        latest = {sample.place: sample for sample in found}
        self._faults = faults = {
            place: why
            for place, sample in latest.items()
            if place not in self._known and (why := fault(self._last.get(place), sample))
        }
        self._since = {place: self._since.get(place, now) for place in faults}
        self._last = latest
        return {place: faults[place] for place, since in self._since.items() if now - since >= self._seconds}

    def forgo(self, places: Iterable[Place]) -> None:
        """Stop judging these rings."""
        self._known.update(places)
        self._since = {place: since for place, since in self._since.items() if place not in self._known}

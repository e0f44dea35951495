"""What of the VMs was amiss before they were moved: nothing of an instance is concluded from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ovs_hotswap.backends import VmStatus
from ovs_hotswap.host import rings
from ovs_hotswap.host.host import Host
from ovs_hotswap.host.rings import Patience, Place, RingSample
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext

_SAMPLE_S = 0.2
_WEDGED_S = 1.0  # a switch that is slow has taken something by then
_LOOK_S = 3 * _WEDGED_S  # a guest can have its rings look unserved in turn, for ever


@dataclass(frozen=True, slots=True)
class Baseline:
    """``wedged``: rings that nobody seems to serve, and how they look. ``unread``: VMs whose rings cannot be read.
    ``liveliest``: the VM whose guest sent most, if one did."""

    wedged: Mapping[Place, str]
    unread: tuple[str, ...]
    liveliest: str | None


def look(host: Host) -> Baseline:
    """How the guests' rings stand. Takes a fraction of a second, and up to three where one looks unserved."""
    vms = host.backends.vms()
    first = rings.samples(vms)
    patience = Patience(first, _WEDGED_S)
    end = host.system.monotonic() + _LOOK_S
    while True:
        host.system.sleep(_SAMPLE_S)
        last, now = rings.samples(host.backends.vms()), host.system.monotonic()
        wedged = patience.look(now, last)
        if len(wedged) == len(patience.waiting) or now >= end:
            return Baseline(patience.waiting, tuple(rings.unread(vms)), _liveliest(first, last))


def _liveliest(first: Iterable[RingSample], last: Iterable[RingSample]) -> str | None:
    sent: dict[str, int] = {}
    before = {sample.place: sample.used for sample in first}
    for sample in last:
        if sample.transmits and sample.place in before:
            sent[sample.vm] = sent.get(sample.vm, 0) + (sample.used - before[sample.place] & 0xFFFF)
    return max((vm for vm in sent if sent[vm]), key=lambda vm: sent[vm], default=None)


def read(host: Host, names: Collection[str]) -> list[RingSample]:
    """The rings of these VMs as they are now."""
    return rings.samples(host.backends.vm(name) for name in names)


def known(run: StepContext) -> set[Place]:
    """The rings that are not judged."""
    facts = run.facts.get("not_judged")
    found = facts if isinstance(facts, Mapping) else {}
    return {(vm, index) for vm, indices in found.items() if isinstance(indices, Iterable)
            for index in indices if isinstance(index, int)}  # fmt: skip


def remember(run: StepContext, places: Collection[Place]) -> None:
    """These rings are not judged from now on."""
    merged: dict[str, list[int]] = {}
    for vm, index in sorted({*known(run), *places}):
        merged.setdefault(vm, []).append(index)
    if merged:
        run.remember(not_judged=merged)


def why_not(vm: VmStatus, to: Side) -> str | None:
    """Why a VM could not be moved to ``to`` even if nothing were under way."""
    switch = vm.switches[to]
    if vm.unparkable:
        return vm.unparkable
    if switch.missing:
        return f"it uses {', '.join(switch.missing)}, which instance {to} does not offer"
    return None if switch.connected else f"instance {to} is not connected"

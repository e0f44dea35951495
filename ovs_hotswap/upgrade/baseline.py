"""What was wrong with the VMs before they were moved. An instance is not blamed for it."""

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
_WEDGED_S = 1.0  # a slow switch has taken something by then
_LOOK_S = 3 * _WEDGED_S  # a guest can make its rings look unserved in turn, without an end


@dataclass(frozen=True, slots=True)
class Baseline:
    """The state of the guests' rings before a move. ``wedged``: the rings that look unserved, each with the reason.
    ``unread``: VMs whose rings cannot be read. ``liveliest``: the VM whose guest sent most, if any guest sent."""

    wedged: Mapping[Place, str]
    unread: tuple[str, ...]
    liveliest: str | None


def look(host: Host) -> Baseline:
    """Read the guests' rings. This takes a fraction of a second, or up to three seconds if a ring looks unserved."""
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
    """The present samples of these VMs' rings."""
    return rings.samples(host.backends.vm(name) for name in names)


def known(run: StepContext) -> set[Place]:
    """The rings that the upgrade does not judge, as ``remember`` recorded them."""
    facts = run.facts.get("not_judged")
    found = facts if isinstance(facts, Mapping) else {}
    return {(vm, index) for vm, indices in found.items() if isinstance(indices, Iterable)
            for index in indices if isinstance(index, int)}  # fmt: skip


def remember(run: StepContext, places: Collection[Place]) -> None:
    """Record in the journal that these rings are not judged from now on."""
    merged: dict[str, list[int]] = {}
    for vm, index in sorted({*known(run), *places}):
        merged.setdefault(vm, []).append(index)
    if merged:
        run.remember(not_judged=merged)


def why_not(vm: VmStatus, to: Side) -> str | None:
    """Why a VM cannot be moved to ``to``, whatever else is under way; ``None`` if there is no such reason."""
    switch = vm.switches[to]
    if vm.unparkable:
        return vm.unparkable
    if switch.missing:
        return f"it uses {', '.join(switch.missing)}, which instance {to} does not offer"
    return None if switch.connected else f"instance {to} is not connected"

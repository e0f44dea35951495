"""Makes the status of a VM in the broker, as the control socket and ``ovs-hotswap vm`` report it."""

from __future__ import annotations

from collections.abc import Iterable

from ovs_hotswap.backends import (
    ABSENT_SWITCH,
    Absence,
    LastProof,
    MoveResult,
    OwnerCertainty,
    RingStatus,
    Switches,
    SwitchRole,
    SwitchStatus,
    VmStatus,
)  # fmt: skip
from ovs_hotswap.broker import absence
from ovs_hotswap.broker.control.status import CaptureStatus
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.capture import BUFFERS, PAIRS, needed, needed_by
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.guest_memory import Indices, indices
from ovs_hotswap.vhostuser.handover import Swap
from ovs_hotswap.vhostuser.reconcile import why_not_parked


def vm_status(vm: Vm, *, read: bool = True) -> VmStatus:
    """Return the status of a VM. Without ``read`` no indices are read from guest memory, which is most of the work."""
    features = vm.state.features
    swap = vm.last_swap
    return VmStatus(
        name=vm.name,
        qemu=None if vm.qemu is None else vm.qemu.peer_pid,
        absent=_absent(vm),
        owner=vm.ownership.holder,
        certainty=OwnerCertainty(vm.ownership.certainty.value),
        owner_since=vm.owner_since,
        last_proof=_last_proof(vm),
        home=vm.home,
        features=None if features is None else f"{features:#x}",
        feature_names=() if features is None else tuple(messages.feature_names(features)),
        memory_bytes=sum(region.size for region in vm.state.memory),
        memory_regions=len(vm.state.memory),
        unparkable=why_not_parked(vm.state) if vm.quarantine is None else f"it is in quarantine: {vm.quarantine}",
        quarantine=vm.quarantine,
        switches=Switches(_switch(vm, Side.A), _switch(vm, Side.B)),
        rings=tuple(_ring(vm, index, read=read) for index in range(len(vm.state.rings))),
        capture_bytes=needed_by(vm.state, vm.mtu),
        moves=vm.moves,
        last_move_us=None if swap is None else round(swap.total_us, 1),
        last_error=vm.last_error,
        unreported=frozenset({"netdev"}),
    )


def _last_proof(vm: Vm) -> LastProof | None:
    """Return the latest proof that a side is off the rings, or ``None`` if this broker has seen none."""
    last = vm.ownership.last_proof
    return None if last is None else LastProof(last.side, last.proof)


def _absent(vm: Vm) -> Absence | None:
    """Return why QEMU is not connected, or ``None`` if it is connected or that is not known."""
    if vm.qemu is not None:
        return None
    if vm.absence == absence.DIRECT and vm.ownership.suspects:
        return vm.absence
    if not any(link.offer for link in vm.links.values()):
        return absence.NO_SWITCH
    return vm.absence if vm.wants_qemu else absence.KEPT_AWAY


def capture_status(room: Room, ports: Iterable[tuple[int | None, int | None]]) -> CaptureStatus:
    """Return the use of the memory for capture rings. ``ports``: queue pairs and MTU of each VM in the intent."""
    each = [needed([BUFFERS] * min(queues or PAIRS, PAIRS), mtu) for queues, mtu in ports]
    return CaptureStatus(room.limit, room.taken, max(each, default=0), sum(each))


def move_result(vm: Vm, swap: Swap) -> MoveResult:
    """Return the result of a move that has just been made."""
    times = (round(each, 1) for each in (swap.give_us, swap.take_us, swap.total_us))
    return MoveResult(vm.name, vm.ownership.holder, *times)


def _switch(vm: Vm, side: Side) -> SwitchStatus:
    link = vm.links.get(side)
    if link is None:
        return ABSENT_SWITCH
    return SwitchStatus(
        connected=link.offer is not None,
        pid=link.pid,
        role=SwitchRole(vm.role(side).value),
        parked=vm.is_parked(side),
        offers=None if link.offer is None else f"{link.offer.features:#x}",
        missing=tuple(messages.feature_names(vm.missing(side))),
    )


def _ring(vm: Vm, index: int, *, read: bool) -> RingStatus:
    ring = vm.state.rings[index]
    seen = indices(vm.state.memory, ring) if read else Indices(None, None)
    return RingStatus(index, ring.size, ring.started, vm.state.enabled(index), seen.available, seen.used)

"""A VM in the broker as the JSON document that ``ovs-hotswap vm`` prints. Field names are stable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ovs_hotswap.broker import absence
from ovs_hotswap.broker.vm import Vm
from ovs_hotswap.model import Side
from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.capture import BUFFERS, PAIRS, needed, needed_by
from ovs_hotswap.vhostuser.capture_memory import Room
from ovs_hotswap.vhostuser.guest_memory import Indices, indices
from ovs_hotswap.vhostuser.handover import Swap
from ovs_hotswap.vhostuser.reconcile import why_not_parked


def vm_document(vm: Vm, *, read: bool = True) -> dict[str, Any]:
    """``owner`` is the side that holds the rings, ``certainty`` what is known of that (``ownership.Certainty``).
    Ring indices are modulo 2**16, ``null`` where guest memory cannot be read, or is not to be (``read``), which is
    most of the work. Features are hexadecimal strings."""
    features = vm.state.features
    swap = vm.last_swap
    return {
        "name": vm.name,
        "qemu": None if vm.qemu is None else vm.qemu.peer_pid,
        "absent": _absent(vm),
        "owner": vm.ownership.holder,
        "certainty": vm.ownership.certainty,
        "owner_since": vm.owner_since,
        "home": vm.home,
        "features": None if features is None else f"{features:#x}",
        "feature_names": [] if features is None else messages.feature_names(features),
        "memory_bytes": sum(region.size for region in vm.state.memory),
        "memory_regions": len(vm.state.memory),
        "unparkable": why_not_parked(vm.state) if vm.quarantine is None else f"it is in quarantine: {vm.quarantine}",
        "quarantine": vm.quarantine,
        "switches": {side.value: _switch(vm, side) for side in Side},
        "rings": [_ring(vm, index, read=read) for index in range(len(vm.state.rings))],
        "capture_bytes": needed_by(vm.state, vm.mtu),
        "moves": vm.moves,
        "last_move_us": None if swap is None else round(swap.total_us, 1),
        "last_error": vm.last_error,
    }


def _absent(vm: Vm) -> dict[str, str] | None:
    """Why QEMU is not there, if it is not and that is known."""
    if vm.qemu is not None:
        return None
    why = vm.absence if vm.wants_qemu else absence.KEPT_AWAY
    if not any(link.offer for link in vm.links.values()):
        why = absence.NO_SWITCH
    return None if why is None else {"cause": why.cause, "text": why.text}


def capture_document(room: Room, ports: Iterable[tuple[int | None, int | None]]) -> dict[str, int]:
    """Bytes of memory for capture rings. ``ports``: queue pairs and MTU of the VMs in the overlay intent."""
    each = [needed([BUFFERS] * min(queues or PAIRS, PAIRS), mtu) for queues, mtu in ports]
    return {"limit": room.limit, "taken": room.taken, "largest": max(each, default=0), "all": sum(each)}


def swap_document(vm: Vm, swap: Swap) -> dict[str, Any]:
    """A move that has just been made: the times are microseconds, 0 where there was nothing to move."""
    return {
        "vm": vm.name,
        "owner": vm.ownership.holder,
        "give_us": round(swap.give_us, 1),
        "take_us": round(swap.take_us, 1),
        "total_us": round(swap.total_us, 1),
    }


def _switch(vm: Vm, side: Side) -> dict[str, Any]:
    link = vm.links.get(side)
    if link is None:
        return {"connected": False, "pid": None, "role": None, "parked": False, "offers": None, "missing": []}
    return {
        "connected": link.offer is not None,
        "pid": link.pid,
        "role": vm.role(side),
        "parked": vm.is_parked(side),
        "offers": None if link.offer is None else f"{link.offer.features:#x}",
        "missing": messages.feature_names(vm.missing(side)),
    }


def _ring(vm: Vm, index: int, *, read: bool) -> dict[str, Any]:
    ring = vm.state.rings[index]
    seen = indices(vm.state.memory, ring) if read else Indices(None, None)
    return {
        "index": index,
        "size": ring.size,
        "started": ring.started,
        "enabled": vm.state.enabled(index),
        "available": seen.available,
        "used": seen.used,
    }

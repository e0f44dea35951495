"""Which VMs pass to the new instance before the cut, and which after it, on a host that others program.

A VM that is not on the switch whose pipeline has the frames is reached by a mirror of that switch, and a bridge has
room for 32 of them (ofproto/ofproto-dpif-mirror.h, MAX_MIRRORS). Before the cut the old switch's pipeline has the
frames, and afterwards the new one's. So of more VMs than that, as many as the old switch can mirror pass before the
cut. The new switch mirrors the others, which pass after it. Both have mirrors for all VMs of a bridge that has few.

If even two times the mirrors are not enough, the rest has none, and no network from the cut until they have moved. So
these are VMs that have the broker already, which move at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ovs_hotswap.host.cloning import Cloning
from ovs_hotswap.model import Side
from ovs_hotswap.plan.executor import StepContext
from ovs_hotswap.upgrade.situation import Upgrade
from ovs_hotswap.vm_ports import VmPort, read_ports

LATER = "later"  # the fact with the names of the VMs that pass after the cut
BARE = "bare"  # the fact with the names of those among them that no switch mirrors


@dataclass(frozen=True, slots=True)
class Turns:
    """The ports of VMs. ``either``: of bridges on which both switches mirror all VMs. ``first`` and ``later``: of the
    others, those that pass before the cut and after it. ``bare``: those that pass after it and that no switch
    mirrors."""

    either: tuple[VmPort, ...] = ()
    first: tuple[VmPort, ...] = ()
    later: tuple[VmPort, ...] = ()
    bare: tuple[VmPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of VMs, by their names. ``left_out``: they do not pass, and so not before the cut, if there are
    more VMs on their bridge than mirrors. ``quick``: they have the broker already. ``later``, ``bare``: it was decided
    before that they pass after the cut, and which of them no switch mirrors."""

    left_out: Collection[str] = ()
    quick: Collection[str] = ()
    later: Collection[str] = ()
    bare: Collection[str] = ()


def take_turns(ports: Iterable[VmPort], room: Mapping[str, int], known: Known = Known()) -> Turns:
    """Decide when each VM passes. ``room``: how many mirrors a bridge has room for."""
    turns = {name: list[VmPort]() for name in ("either", "first", "later", "bare")}
    wait = {*known.left_out, *known.later}
    every = list(ports)
    for bridge in dict.fromkeys(port.bridge for port in every):
        own, most = [port for port in every if port.bridge == bridge], room[bridge]
        if len(own) <= most and not any(port.name in known.later for port in own):
            turns["either"] += own
            continue
        own.sort(key=lambda port: port.name in known.quick)  # a VM that has the broker does without a mirror
        first = [port for port in own if port.name not in wait][:most]
        rest = [port for port in own if port not in first]
        rest.sort(key=lambda port: (port.name in known.bare, port.name not in wait))
        later = [port for port in rest if port.name not in known.bare][:most]
        turns["first"] += first
        turns["later"] += later
        turns["bare"] += [port for port in rest if port not in later]
    return Turns(**{name: tuple(found) for name, found in turns.items()})


def open_wire(context: Upgrade, run: StepContext) -> None:
    """Open wire mode for all VMs and uplinks, and record which VMs pass after the cut. What is recorded stays so when
    this is repeated. Raises SwitchError, PrecheckFailed."""
    cloning, old = context.host.cloning, context.old
    ports = read_ports(context.host.config)
    quick = [vm.name for vm in context.host.backends.vms(read=False) if not vm.without_broker]
    known = Known(context.leave_out, quick, later(run), bare(run))
    turns = take_turns(ports, _room(cloning, old, ports), known)
    names = {LATER: (*turns.later, *turns.bare), BARE: turns.bare}
    run.remember(**{fact: [port.name for port in found] for fact, found in names.items()})
    cloning.wire.open(old, turns.either, cloning.uplinks(old))
    for found, mirrored in ((turns.first, [old]), (turns.later, [context.new]), (turns.bare, [])):
        if found:
            cloning.wire.open(old, found, mirrored=mirrored)


def later(run: StepContext) -> list[str]:
    """The VMs that pass after the cut."""
    return run.texts(LATER)


def bare(run: StepContext) -> list[str]:
    """The VMs that pass after the cut and that no switch mirrors."""
    return run.texts(BARE)


def _room(cloning: Cloning, side: Side, ports: Iterable[VmPort]) -> dict[str, int]:
    return {bridge: cloning.wire.room(side, bridge) for bridge in {port.bridge for port in ports}}

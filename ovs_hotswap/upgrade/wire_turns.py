"""Which VMs pass to the new instance before the cut, and which after it, on a host that others program.

A VM that is not on the switch whose pipeline has the frames is reached by a mirror of that switch, and a bridge has
room for 32 of them (ofproto/ofproto-dpif-mirror.h, MAX_MIRRORS). Before the cut the old switch's pipeline has the
frames, and afterwards the new one's. So of more VMs than that, as many as the old switch can mirror pass before the
cut. The new switch mirrors the others, which pass after it. Both have mirrors for all VMs of a bridge that has few.
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


@dataclass(frozen=True, slots=True)
class Turns:
    """The ports of VMs. ``either``: of bridges on which both switches mirror all VMs. ``first`` and ``later``: of the
    others, those that pass before the cut and after it."""

    either: tuple[VmPort, ...] = ()
    first: tuple[VmPort, ...] = ()
    later: tuple[VmPort, ...] = ()


def take_turns(
    ports: Iterable[VmPort], room: Mapping[str, int], left_out: Collection[str] = (), later: Collection[str] = ()
) -> Turns:
    """Decide when each VM passes. ``room``: how many mirrors a bridge has room for. ``left_out``: VMs that do not pass,
    and so not before the cut, if there are more VMs on their bridge than mirrors. ``later``: VMs of which it was
    decided before that they pass after the cut, and which the old switch does not mirror."""
    either, first, rest = list[VmPort](), list[VmPort](), list[VmPort]()
    wait = {*left_out, *later}
    every = list(ports)
    for bridge in dict.fromkeys(port.bridge for port in every):
        own = [port for port in every if port.bridge == bridge]
        if len(own) <= room[bridge] and not any(port.name in later for port in own):
            either += own
            continue
        ready = [port for port in own if port.name not in wait][: room[bridge]]
        first += ready
        rest += [port for port in own if port not in ready]
    return Turns(tuple(either), tuple(first), tuple(rest))


def open_wire(context: Upgrade, run: StepContext) -> None:
    """Open wire mode for all VMs and uplinks, and record which VMs pass after the cut. What is recorded stays so when
    this is repeated. Raises SwitchError, PrecheckFailed."""
    cloning, old = context.host.cloning, context.old
    ports = read_ports(context.host.config)
    turns = take_turns(ports, _room(cloning, old, ports), context.leave_out, later(run))
    run.remember(**{LATER: [port.name for port in turns.later]})
    cloning.wire.open(old, turns.either, cloning.uplinks(old))
    if turns.later:
        cloning.wire.open(old, turns.first, mirrored=[old])
        cloning.wire.open(old, turns.later, mirrored=[context.new])


def later(run: StepContext) -> list[str]:
    """The VMs that pass after the cut."""
    return run.texts(LATER)


def _room(cloning: Cloning, side: Side, ports: Iterable[VmPort]) -> dict[str, int]:
    return {bridge: cloning.wire.room(side, bridge) for bridge in {port.bridge for port in ports}}

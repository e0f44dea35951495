"""What was seen on the way of a VM's packets, from its rings to the other hosts. This module is pure."""

from __future__ import annotations

from collections.abc import Iterator

from ovs_hotswap.counters.values import PortCounters
from ovs_hotswap.diagnose.facts import Facts, Guest, Switch, VmPort
from ovs_hotswap.diagnose.found import Seen
from ovs_hotswap.diagnose.megaflows import outputs
from ovs_hotswap.diagnose.megaflows import zones as zones_of
from ovs_hotswap.diagnose.underlay_faults import hop_of, vteps_of
from ovs_hotswap.host.rings import RingSample
from ovs_hotswap.model import Side
from ovs_hotswap.wording import some

_SHOWN = 4  # rings, flows, VTEPs
_FRESH_S = 5.0


def of(facts: Facts, vm: VmPort | None) -> Iterator[Seen]:
    """What was seen of one VM; without one, of the host."""
    guest = (facts.guests or {}).get(vm.name) if vm is not None else None
    if guest is not None:
        yield from _guest(guest)
    if facts.switch is not None and vm is not None:
        yield from _port(facts, facts.switch, vm)
        yield from _traffic(facts.switch, vm.name)
    if facts.switch is not None:
        yield from _switch(facts.switch)
    yield from _underlay(facts, vm)
    yield from _standby(facts, guest)


def _guest(guest: Guest) -> Iterator[Seen]:
    status = guest.status
    parked = [str(side) for side in Side if status.switches[side].parked]
    where = f"parked on {' and '.join(parked)}" if parked else "parked on no other side"
    yield Seen("owner", f"{status.owner or 'no side'} ({status.certainty}), {where}")
    then = {each.place: each for each in guest.before}
    rings = [_ring(then[each.place], each) for each in guest.after if each.place in then]
    if rings:
        yield Seen("rings", "; ".join(rings[:_SHOWN]) + ("; ..." if len(rings) > _SHOWN else ""))


def _ring(then: RingSample, now: RingSample) -> str:
    moves = "is served" if now.used != then.used else "stands still"
    if now.transmits:
        return f"ring {now.ring} {moves}, and {now.outstanding} frames of the guest wait to be taken"
    return f"ring {now.ring} {moves}, and {now.outstanding} of {now.size} buffers are free for what comes"


def _port(facts: Facts, switch: Switch, vm: VmPort) -> Iterator[Seen]:
    before, after = (
        None if each is None else (each.ports or {}).get(vm.name) for each in (switch.before, switch.after)
    )
    if before is None or after is None:
        return
    text = (f"{_more(before, after, 'rx_packets')} packets from the guest and {_more(before, after, 'tx_packets')} to "
            f"it in {facts.seconds:.1f} s, {_more(before, after, 'tx_dropped')} dropped")  # fmt: skip
    limit = f"; what the guest sends is limited to {after.policing_kbps} kbit/s" if after.policing_kbps else ""
    yield Seen("port", text + limit)


def _traffic(switch: Switch, vm: str) -> Iterator[Seen]:
    """What the datapath does with what the VM has sent in the last seconds."""
    names = {port.number: name for name, port in (switch.ports or {}).items() if port.number}
    flows = [flow for flow in switch.megaflows or () if names.get(flow.port, flow.port) == vm and flow.fresh(_FRESH_S)]
    for flow in sorted(flows, key=lambda each: -each.packets)[:_SHOWN]:
        places = [f"into the tunnel to {place[3:]}" if place.startswith("-> ") else f"to {names.get(place, place)}"
                  for place in outputs(flow.actions)]  # fmt: skip
        to = f"for {flow.to}" if flow.to is not None else "for any MAC"
        gone = " and ".join(places[:_SHOWN]) or ("dropped" if flow.drops else "to another lookup")
        yield Seen("traffic", f"{to}: {gone}; {flow.packets} packets so far")
    zones = sorted(set[int]().union(*(zones_of(flow.actions) for flow in flows)))
    if zones:
        yield Seen("conntrack", f"its packets pass zone {some([str(zone) for zone in zones])}")


def _more(before: PortCounters, after: PortCounters, name: str) -> int:
    return max(0, after.count(name) - before.count(name))


def _switch(switch: Switch) -> Iterator[Seen]:
    cores = sorted(switch.cores or (), key=lambda each: -each.waits)
    for each in cores[:_SHOWN]:
        yield Seen("PMD core", f"{each.core}: its thread waited for the core {each.waits:.0%} of the time")
    if len(cores) > _SHOWN:
        yield Seen("PMD core", f"{len(cores) - _SHOWN} more, whose threads waited for less")
    counters = switch.after
    for pool in (counters.pools if counters is not None else None) or ():
        yield Seen("packet pool", f"NUMA node {pool.node}: {pool.in_use} of {pool.buffers} buffers in use")
    if counters is not None and counters.conntrack is not None and counters.conntrack.connections:
        yield Seen("conntrack", f"{counters.conntrack.connections} connections of {counters.conntrack.most}")


def _underlay(facts: Facts, vm: VmPort | None) -> Iterator[Seen]:
    switch, underlay = facts.switch, facts.underlay
    if underlay is None or switch is None:
        return
    steered = f"steered to {underlay.owner}" if underlay.owner is not None else "not steered by ovs-hotswap"
    yield Seen("uplink", "; ".join([steered, *underlay.rules[:2], *_proven(facts)]))
    vteps = vteps_of(facts, vm.name if vm is not None else None)
    for vtep in list(vteps)[:_SHOWN]:
        hop = hop_of(vtep, switch.routes or ())
        address = (hop.via or vtep) if hop is not None else None
        mac = (switch.neighbours or {}).get(address or "")
        way = f" by {address}" if address not in (None, vtep) else ""
        answered = "answers" if address in underlay.answers else (
            "does not answer" if address in underlay.asked else "was not asked")  # fmt: skip
        yield Seen("VTEP", f"{vtep}{way} at {mac or 'no MAC that is known'}, {answered}; MACs behind it in the overlay "
                           f"file: {vteps[vtep]}")  # fmt: skip
    if len(vteps) > _SHOWN:
        yield Seen("VTEP", f"{len(vteps) - _SHOWN} more: {some(list(vteps)[_SHOWN:])}")


def _proven(facts: Facts) -> Iterator[str]:
    proof = facts.underlay.proof if facts.underlay is not None else None
    if proof is None:
        return
    words = {True: "pass", False: "do not pass", None: "were not tried"}
    yield f"frames out {words[proof.out]}, frames in {words[proof.into]}"


def _standby(facts: Facts, guest: Guest | None) -> Iterator[Seen]:
    standby = facts.standby
    if standby is None or not facts.wanted.watched:
        return
    if standby.side is None:
        yield Seen("standby", f"none ({standby.keeping or 'no watchdog runs'})")
        return
    able = "" if guest is None else (", has it parked and would take over" if guest.status.switches[standby.side].parked
                                     else ", does not have it parked")  # fmt: skip
    yield Seen("standby", f"{standby.side}, {standby.keeping}{able}")

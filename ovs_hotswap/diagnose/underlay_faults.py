"""Faults between this host and others: the uplink, its rule, routes, neighbours, the other VTEPs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ovs_hotswap.diagnose.facts import Facts, Hop, Switch, Underlay
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.diagnose.vm_faults import state
from ovs_hotswap.model import Life, Proof
from ovs_hotswap.wording import some

_APPLY = "`ovs-hotswap overlay apply` programs it again"


def vteps_of(facts: Facts, vm: str | None) -> dict[str, int]:
    """The other VTEPs that matter, each with the number of MACs behind it: those of the VM's VNI, or of every VNI that
    has a VM here."""
    vms = facts.wanted.vms
    vnis = {vms[vm].vni} if vm is not None and vm in vms else {each.vni for each in vms.values()}
    found: dict[str, int] = {}
    for remote in facts.wanted.remotes:
        if remote.vni in vnis:
            found[remote.vtep] = found.get(remote.vtep, 0) + 1
    return found


@cache
def _network(destination: str) -> IPv4Network | IPv6Network:
    """Hundreds of VTEPs are looked for in the same few routes."""
    return ip_network(destination, strict=False)


def hop_of(vtep: str, routes: Sequence[Hop]) -> Hop | None:
    """The route by which the switch sends to a VTEP: the most exact one. ``None`` if it has none."""
    address = ip_address(vtep)
    fitting = [each for each in routes if address in _network(each.destination)]
    return max(fitting, key=lambda each: _network(each.destination).prefixlen, default=None)


def judge(facts: Facts, vm: str | None) -> Iterator[Found]:
    switch, underlay = facts.switch, facts.underlay
    if switch is None or switch.life is not Life.RUNS:
        return
    yield from _uplink_ports(facts, switch)
    if underlay is not None:
        yield from _rule(facts, switch, underlay)
    vteps = vteps_of(facts, vm)
    if not vteps:
        return
    yield from _hops(facts, switch, vteps)
    if underlay is not None:
        yield from _silent(switch, underlay)
        yield from _answers(facts, switch, underlay, vteps)


def _uplink_ports(facts: Facts, switch: Switch) -> Iterator[Found]:
    """The findings about the uplink's ports. One that passes nothing is only a warning while another one is well."""
    if switch.ports is None:
        return
    found = {name: list(_uplink_port(switch, name, overlay=facts.wanted.overlay)) for name in facts.wanted.uplinks}
    well = any(not each for each in found.values())
    for each in found.values():
        yield from (replace(one, cause=Cause.UPLINK_DEGRADED) for one in each) if well else each


def _uplink_port(switch: Switch, name: str, *, overlay: bool) -> Iterator[Found]:
    counted = ((switch.after.ports if switch.after is not None else None) or {}).get(name)
    port = (switch.ports or {}).get(name)
    if port is not None and port.present:
        yield from state(switch, port, counted, f"the uplink ({name})", None, cause=Cause.UPLINK_PORT)
        return
    error = counted.error if counted is not None else None
    again = "`ovs-hotswap overlay apply`" if overlay else f"`{switch.vsctl('list Interface', name)}`"
    yield Found(
        Cause.UPLINK_PORT, f"Instance {switch.side} does not have its uplink open ({name}): VMs reach no other host.",
        (f"the switch says: {error}" if error else "the datapath has no such port (dpctl/show)",),
        f"`ovs-hotswap doctor --section devices`, then {again}; the reason is in {switch.log}",
    )  # fmt: skip


def _rule(facts: Facts, switch: Switch, underlay: Underlay) -> Iterator[Found]:
    for text, hint in underlay.faults:
        yield Found(Cause.UPLINK_RULE, f"The uplink's steering is not as it must be: {text}.",
                    underlay.rules or ("no rule is in place",), hint or "`ovs-hotswap uplink show`")  # fmt: skip
    if not underlay.steers or not facts.settled or underlay.owner == switch.side:
        return
    where = f"to instance {underlay.owner}" if underlay.owner is not None else "to no instance"
    yield Found(
        Cause.UPLINK_RULE,
        f"What comes from other hosts is steered {where}, and instance {switch.side} serves the VMs.",
        underlay.rules or ("no rule is in place",), "`ovs-hotswap overlay apply` steers it to the active instance",
    )  # fmt: skip


def _hops(facts: Facts, switch: Switch, vteps: Collection[str]) -> Iterator[Found]:
    """Whether the switch knows by which host and which MAC each VTEP is reached."""
    if switch.routes is None:
        return
    lost, needed = list[str](), dict[str, list[str]]()
    for vtep in vteps:
        route = hop_of(vtep, switch.routes)
        if route is None:
            lost.append(vtep)
        else:
            needed.setdefault(route.via or vtep, []).append(vtep)
    if lost:
        yield Found(
            Cause.ROUTE_MISSING, f"Instance {switch.side} has no route to VTEP {some(lost)}: nothing is sent there.",
            ("ovs/route/show has no route that leads there",), _APPLY,
        )  # fmt: skip
    for hop, behind in needed.items() if switch.neighbours is not None else ():
        yield from _neighbour(facts, switch, hop, behind)


def _neighbour(facts: Facts, switch: Switch, hop: str, behind: Collection[str]) -> Iterator[Found]:
    mac, what = (switch.neighbours or {}).get(hop), f"VTEP {some(sorted(behind))}"
    answers = facts.underlay.answers if facts.underlay is not None else {}
    right = answers.get(hop) or facts.wanted.macs.get(hop)
    gateway = "" if hop in behind else f", the gateway to {what}"
    if mac is None:
        if hop in answers and hop not in facts.wanted.macs:
            return  # it is followed, and has aged out unused: the next packet has Open vSwitch ask for it again
        known = f"; it is at {right}" if right else ""
        yield Found(
            Cause.NEIGHBOUR_MISSING,
            f"Instance {switch.side} does not know the MAC of {hop}{gateway}: packets to {what} are dropped.",
            (f"tnl/neigh/show has no entry for {hop}{known}",), _APPLY,
        )  # fmt: skip
    elif right is not None and mac != right:
        said = f"it answers from {right}" if hop in answers else f"the overlay file says {right}"
        mend = _APPLY if facts.wanted.macs.get(hop, right) == right else (
            "correct or remove the `mac` of its [[neighbour]] in the overlay file, then `ovs-hotswap overlay apply`"
        )  # fmt: skip
        yield Found(
            Cause.NEIGHBOUR_WRONG,
            f"Instance {switch.side} sends packets for {hop}{gateway} to another MAC than that host's: {what} gets "
            "nothing.",
            (f"tnl/neigh/show has {mac}, and {said}",), mend,
        )  # fmt: skip


def _silent(switch: Switch, underlay: Underlay) -> Iterator[Found]:
    # If no next hop answers the kernel either, it is not known what the uplink does with questions.
    nobody = underlay.apart and bool(underlay.asked) and not underlay.answers
    nics = {
        nic: [*(["sends"] if proof.out is False and not nobody else []), *(["takes"] if proof.into is False else [])]
        for nic, proof in _by_nic(underlay.proof)
    }
    cause = Cause.UPLINK_SILENT if all(nics.values()) else Cause.UPLINK_DEGRADED
    for nic, ways in nics.items():
        if ways:
            yield Found(
                cause, f"Instance {switch.side}'s uplink{nic} {' and '.join(ways)} nothing, though its port is up.",
                tuple(_PROVEN[way] for way in ways),
                "spoof checking, trust, VLAN and MAC of its virtual function: `ip -d link show`; its rules and their "
                "counters: `ovs-hotswap uplink show`; its devices: `ovs-hotswap doctor --section devices`",
            )  # fmt: skip


_PROVEN = {
    "sends": "its questions for a neighbour's MAC had no answer",
    "takes": "a tunnel packet that was put in front of it did not arrive",
}


def _by_nic(proof: Proof | None) -> Iterator[tuple[str, Proof]]:
    if proof is None:
        return
    if not proof.nics:
        yield "", proof
    for name, each in proof.nics:
        yield f" on {name}", each


def _answers(facts: Facts, switch: Switch, underlay: Underlay, vteps: dict[str, int]) -> Iterator[Found]:
    """Which next hops of VTEPs do not answer. A VTEP behind a gateway cannot be asked, only the gateway."""
    heard = {flow.vtep for flow in switch.megaflows or () if flow.vtep is not None and flow.fresh(_HEARD_S)}
    routes = {vtep: hop_of(vtep, switch.routes or ()) for vtep in vteps}
    for hop in underlay.asked:
        behind = sorted(vtep for vtep, route in routes.items() if vtep == hop or (route and route.via == hop))
        if hop in underlay.answers or not behind or heard & set(behind):
            continue
        what = f"VTEP {hop}" if behind == [hop] else f"{hop}, the gateway to VTEP {some(behind)},"
        count = sum(vteps[each] for each in behind)
        macs = "the MAC" if count == 1 else f"the {count} MACs"
        yield Found(
            Cause.VTEP_SILENT,
            f"{what} does not answer. What VMs send to {macs} behind it is lost, unless that host only does not answer "
            "questions.",
            ("three questions for its MAC (ARP, or neighbour discovery) had no answer",
             f"no tunnel packet from it in the last {_HEARD_S:.0f} s"),
            f"see whether {hop} is the right address (the `vtep` of [[remote]] in the overlay file), then that host",
        )  # fmt: skip


_HEARD_S = 10.0
"""A megaflow lives as long after its last packet (vswitch.xml, other_config:max-idle)."""

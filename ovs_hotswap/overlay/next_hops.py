"""Which next hops of the underlay a host's tunnels use: a MAC address for each, and a gateway for each route. Pure.

What is wanted is in the intent, what was seen are the answers of the hosts that were asked, by address. The router of
Open vSwitch has one gateway for each route (lib/ovs-router.c), so of several gateways one is chosen: the first one that
answers. Nothing that works is given up because a question gets no answer: a next hop that answered once keeps its last
MAC, and a route whose gateways are all silent stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ovs_hotswap.model import Finding, Severity
from ovs_hotswap.overlay.intent import Intent, Neighbour

NAME = "next hops"
"""The name of the findings."""
_HINT = "`ovs-hotswap overlay check` names the file: correct the address there, or give the [[neighbour]] its mac"


@dataclass(frozen=True, slots=True)
class NextHops:
    """``gateways``: that of each route, by destination. ``macs``: that of each next hop, by address; one whose MAC is
    not known is not in it."""

    gateways: Mapping[str, str] = field(default_factory=dict)
    macs: Mapping[str, str] = field(default_factory=dict)


def asked(intent: Intent) -> tuple[Neighbour, ...]:
    """The neighbours that are asked again and again: those without a MAC, and the gateways of routes that have
    several."""
    choice = {gateway for route in intent.routes if len(route.gateways) > 1 for gateway in route.gateways}
    return tuple(each for each in intent.neighbours if each.mac is None or each.address in choice)


def choose(intent: Intent, answers: Mapping[str, str], before: NextHops) -> NextHops:
    """The next hops to use. ``answers``: the MACs with which ``asked`` neighbours have answered, by address.
    ``before``: what is in use."""
    macs = {}
    for each in intent.neighbours:
        if mac := each.mac or answers.get(each.address) or before.macs.get(each.address):
            macs[each.address] = mac
    return NextHops({route.destination: _gateway(route.gateways, answers, macs, before.gateways.get(route.destination))
                     for route in intent.routes}, macs)  # fmt: skip


def _gateway(
    candidates: tuple[str, ...], answers: Mapping[str, str], macs: Mapping[str, str], before: str | None
) -> str:
    present = before if before in candidates else None
    known = next((each for each in candidates if each in macs), candidates[0])
    return next((each for each in candidates if each in answers), present or known)


def changes(before: NextHops, after: NextHops) -> list[str]:
    """What differs, in words."""
    told = [
        f"next hop {address} is at {mac} now" + (f", before at {was}" if (was := before.macs.get(address)) else "")
        for address, mac in after.macs.items()
        if before.macs.get(address) != mac
    ]
    return told + [
        f"{destination} goes through {gateway} now, before through {was}"
        for destination, gateway in after.gateways.items()
        if (was := before.gateways.get(destination)) not in (None, gateway)
    ]


def judge(intent: Intent, answers: Mapping[str, str], before: NextHops) -> list[Finding]:
    """The findings about the neighbours that were asked. It is an error if nothing can be sent to some VTEP; a silent
    neighbour whose MAC is known is only named, because the question, or the answer, may have been lost."""
    questions = {each.address for each in asked(intent)}
    if not questions:
        return []
    used, found = choose(intent, answers, before), []
    for what, hops in _destinations(intent).items():
        silent = [each for each in hops if each in questions and each not in answers]
        if not silent:
            continue
        named, (verb, them) = " and ".join(silent), ("do", "their") if len(silent) > 1 else ("does", "its")
        if not any(each in used.macs for each in hops):
            text = f"{named} {verb} not answer, and {them} MAC is not known: nothing can be sent to {what}"
            found.append(Finding(NAME, Severity.ERROR, text, _HINT, what))
            continue
        alive = [each for each in hops if each not in silent]
        what_now = f"goes through {alive[0]}" if alive else f"is sent to {them} last known MAC"
        text = f"{named} {verb} not answer: what is for {what} {what_now}"
        found.append(Finding(NAME, Severity.WARNING, text, _HINT, what))
    for each in intent.neighbours:
        if each.mac and (mac := answers.get(each.address, each.mac)) != each.mac:
            text = f"{each.address} answers from {mac}, and the overlay file sends its packets to {each.mac}"
            hint = "give the [[neighbour]] the MAC from which it answers, or none, so that it is followed"
            found.append(Finding(NAME, Severity.WARNING, text, hint, each.address))
    return found or [Finding(NAME, Severity.OK, f"{len(questions)} were asked and answered")]


def _destinations(intent: Intent) -> dict[str, tuple[str, ...]]:
    """What packets are sent to, each with its next hops in the order of preference."""
    routes = {f"the network {route.destination}": route.gateways for route in intent.routes}
    gateways = {gateway for route in intent.routes for gateway in route.gateways}
    vteps = {remote.vtep for remote in intent.remotes}
    hosts = [each.address for each in intent.neighbours if each.address in vteps or each.address not in gateways]
    return {**{f"VTEP {each}": (each,) for each in hosts}, **routes}

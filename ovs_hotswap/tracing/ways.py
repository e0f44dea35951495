"""Says of a packet which way it took: what the datapath did, and what the flow tables say of it. This module is pure:
what asks the flow tables is given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ovs_hotswap.diagnose import trace
from ovs_hotswap.diagnose.megaflows import outputs, zones
from ovs_hotswap.diagnose.naming import Ports
from ovs_hotswap.tracing import datapath, fields, follow
from ovs_hotswap.tracing.datapath import Flow
from ovs_hotswap.tracing.fields import Fields
from ovs_hotswap.tracing.follow import Way
from ovs_hotswap.tracing.found import Basis, DatapathFlow, Direction, Path
from ovs_hotswap.tracing.record import Rule

Ask = Callable[[Sequence[str], str], str | None]
"""Asks the flow tables about a flow of the datapath (``ofproto/trace``), with the states of connection tracking to
assume at each recirculation. ``None`` if the switch does not answer."""

Record = Callable[[Flow], Sequence[Rule]]
"""Says from which flows of the tables a flow of the datapath was made; nothing if the switch keeps no record of it."""

State = Callable[[int, Fields], str | None]
"""Gives what connection tracking says of a packet in a zone, as `--ct-next` takes it; ``None`` if that is not known."""

_SIGNED = re.compile(r"([+-])(\w+)")
_TUNNEL = re.compile(r"tun_id=(?P<id>0x[0-9a-f]+).*?\b(?:ipv6_)?src=(?P<source>[^,/)]+)")
_TAG = re.compile(r"\b(?P<name>vid|pcp)=(?P<value>\d+)(?=$|,)")
_STATES = {"est": "established", "new": "new", "rel": "related to another connection", "rpl": "an answer",
           "inv": "invalid", "snat": "its source is translated", "dnat": "its destination is translated"}  # fmt: skip
_REWRITTEN = {"eth", "ipv4", "ipv6", "tcp", "udp", "sctp", "icmp", "icmpv6", "arp", "nd"}
_NO_FLOW = "no flow of the datapath, or more than one, fits the packet"


@dataclass(frozen=True, slots=True)
class Switch:
    """What is known of the switch. ``vm``: the VM's port, which has ``number`` in the datapath (empty if that is not
    known), and ``macs``.
    ``copies``: the number of the port with the copies. ``names``: of the datapath's ports by number; ``ports``: of
    bridges' ports. ``meaning``: what the flows with a cookie do. ``flows``: of the datapath; ``None`` if they are not
    known."""

    vm: str
    number: str
    macs: frozenset[str]
    copies: str | None
    names: Mapping[str, str]
    ports: Ports
    meaning: Callable[[int], str | None]
    flows: Sequence[Flow] | None


def direction_of(switch: Switch, found: Fields, age_s: float) -> Direction:
    """Return whether the VM sent the packet or received it. Its MACs say it; where these are not known, or a VM uses
    others, the datapath's flows may."""
    if found.source_mac in switch.macs:
        return Direction.SENT
    if found.target_mac in switch.macs:
        return Direction.RECEIVED
    flows = switch.flows or ()
    out = follow.sent(flows, switch.number, found, age_s)
    into = follow.received(flows, switch.number, found, age_s)
    if (out is None) == (into is None):
        return Direction.UNKNOWN
    return Direction.SENT if out is not None else Direction.RECEIVED


def way_of(switch: Switch, found: Fields, direction: Direction, age_s: float) -> Way | None:
    """Return the flows of the datapath that the packet passed; ``None`` if that is not clear."""
    if switch.flows is None or direction is Direction.UNKNOWN:
        return None
    find = follow.sent if direction is Direction.SENT else follow.received
    return find(switch.flows, switch.number, found, age_s)


def path(
    switch: Switch, found: Fields, direction: Direction, way: Way | None, ask: Ask, record: Record = lambda _: (),
    state: State = lambda _zone, _found: None,
) -> Path:  # fmt: skip
    """Return the way of the packet; its number is not given yet. ``record`` says from which flows of the tables a flow
    of the datapath was made, ``state`` which connection the packet is of."""
    question = _question(switch, found, direction, way)
    states = [] if way is None else [_assumed(next(iter(each.states), None)) for each in way.hops[1:]]
    text = None if question is None else ask(states, question)
    said = None if text is None else _without_copies(trace.parse(text), switch.copies)
    by_table: str | None = None
    if way is None and question is not None and said is not None and said.resumed:
        by_table = next((each for zone in _zones(said) if (each := state(zone, found)) is not None), None)
        if by_table is not None and (text := ask([by_table] * len(said.resumed), question)) is not None:
            said = _without_copies(trace.parse(text), switch.copies)
    out, dropped = _outputs(switch, way, said)
    rules = () if way is None else tuple(rule for each in way.flows for rule in record(each))
    return Path(
        0, _port_in(switch, direction, way), out, dropped,
        () if said is None else trace.told(said, switch.meaning, switch.ports),
        _conntrack(way, said, by_table),
        () if way is None else tuple(DatapathFlow(each.text, each.actions, each.packets, each.used_s)
                                     for each in way.flows),
        basis := _basis(way, said), tuple(_rule_words(switch, each) for each in rules), _same_flows(rules, said),
        _note(basis, direction, way, question),
    )  # fmt: skip


def _zones(said: trace.Trace) -> list[int]:
    return sorted(set().union(*(zones(each) for each in said.datapath)))


def _same_flows(rules: Sequence[Rule], said: trace.Trace | None) -> bool | None:
    """Whether the trace met the flows that the switch recorded; ``None`` if one of both is not known."""
    if not rules or said is None:
        return None
    named = all(each.bridge for each in rules)
    met = [(step.bridge if named else "", step.table, step.priority, step.cookie) for step in said.steps]
    return Counter(met) == Counter((each.bridge, each.table, each.priority, each.cookie) for each in rules)


def _rule_words(switch: Switch, rule: Rule) -> str:
    where = f"bridge {rule.bridge}, table {rule.table}: " if rule.bridge else f"table {rule.table}: "
    if rule.priority is None:
        return f"{where}no flow"
    known = switch.meaning(rule.cookie) if rule.cookie else None
    flow = f"the flow of priority {rule.priority} that matches {rule.match or 'everything'}"
    return f"{where}{known or flow}: {rule.actions}"


def _question(switch: Switch, found: Fields, direction: Direction, way: Way | None) -> str | None:
    """Return the packet as it came into the switch; ``None`` if that is not known."""
    if direction is Direction.SENT:
        return fields.as_flow(found, switch.number) if switch.number else None
    if direction is Direction.UNKNOWN or way is None or _rewritten(way):
        return None
    first = way.flows[0]
    tags = found.tags
    if "vlan" in first.groups:
        named = {each["name"]: int(each["value"]) for each in _TAG.finditer(first.groups["vlan"])}
        tags = ((fields.VLAN, named.get("pcp", 0) << 13 | named.get("vid", 0)),)
    elif found.tags and any("push_vlan" in each.actions for each in way.flows):
        tags = found.tags[1:]
    return fields.as_flow(found, first.in_port, first.asked_tunnel, tags)


def _rewritten(way: Way) -> bool:
    return bool(set().union(*(datapath.changes(each.actions) for each in way.flows)) & _REWRITTEN)


def _assumed(state: str | None) -> str:
    """Return the flags that a flow of the datapath matches, as `--ct-next` takes them."""
    text = state or ""
    if (signed := _SIGNED.findall(text)) or not text:
        return ",".join(name for sign, name in signed if sign == "+") or "trk"
    return text.partition("/")[0].replace("|", ",")


def _without_copies(said: trace.Trace, copies: str | None) -> trace.Trace:
    return replace(said, datapath=tuple(datapath.without_copies(each, copies) for each in said.datapath))


def _basis(way: Way | None, said: trace.Trace | None) -> Basis:
    if way is None:
        return Basis.UNKNOWN if said is None or said.delivered is None else Basis.INFERRED
    if said is None or not said.datapath:
        return Basis.DATAPATH
    same = len(said.datapath) == len(way.hops) and all(
        any(datapath.same_actions(flow.actions, actions) for flow in (hop.flow, *hop.others))
        for hop, actions in zip(way.hops, said.datapath, strict=True)
    )
    return Basis.AGREES if same else Basis.DIFFERS


def _note(basis: Basis, direction: Direction, way: Way | None, question: str | None) -> str | None:
    if direction is Direction.UNKNOWN:
        return "neither its MACs nor the datapath's flows say whether the VM sent or received it"
    if way is None and direction is Direction.RECEIVED:
        return f"{_NO_FLOW}: from where it came is not known"
    if basis is Basis.INFERRED:
        return f"{_NO_FLOW}: this is what the flow tables do with such a packet now"
    if basis is Basis.DIFFERS:
        return "the flow tables would do something else with it now: they, or a connection, have changed since"
    if way is not None and question is None:
        return "it was changed on its way, so the flow tables were not asked about it"
    if way is not None and not way.complete:
        return "how it continues behind its last lookup is not clear"
    if way is not None and way.several:
        return "several flows of the datapath fit it, which do the same"
    return None


def _port_in(switch: Switch, direction: Direction, way: Way | None) -> str | None:
    if direction is Direction.SENT:
        return switch.vm
    if way is None:
        return None
    first = way.flows[0]
    name = switch.names.get(first.in_port, f"port {first.in_port} of the datapath")
    if (tunnel := _TUNNEL.search(first.groups.get("tunnel", ""))) is not None:
        return f"{name}, from the tunnel of {tunnel['source']} (network {int(tunnel['id'], 16)})"
    return name


def _outputs(switch: Switch, way: Way | None, said: trace.Trace | None) -> tuple[tuple[str, ...], bool | None]:
    """Return to where the packet went, and whether it was dropped."""
    if way is not None:
        actions, known = [each.actions for each in way.flows], way.complete
    elif said is not None and said.datapath:
        actions, known = list(said.datapath), True
    else:
        return (), None
    found = []
    for each in (target for text in actions for target in outputs(text)):
        tunnel = each.removeprefix("-> ")
        found.append(f"the tunnel to {tunnel}" if tunnel != each else switch.names.get(each, f"port {each}"))
    if any("controller(" in text for text in actions):
        found.append("the controller")
    if not found and any("tnl_pop" in text for text in actions):  # what comes out of the tunnel is another packet
        return ("the tunnel's end on this host",), False
    return tuple(dict.fromkeys(found)), False if found else True if known else None


def _conntrack(way: Way | None, said: trace.Trace | None, by_table: str | None) -> tuple[str, ...]:
    if way is not None:
        found = []
        for before, hop in pairwise(way.hops):
            zone = max(zones(before.flow.actions), default=None)
            where = "" if zone is None else f"zone {zone}: "
            if hop.states:
                found.append(where + " or ".join(dict.fromkeys(map(state_words, hop.states))))
            elif zone is not None:
                found.append(f"{where}its state does not matter to the flows behind")
        return tuple(found)
    if said is None or not said.resumed:
        return ()
    where = ", ".join(f"zone {zone}" for zone in _zones(said)) or "connection tracking"
    if by_table is None:
        return (f"{where}: assumed to be new, as the connection table has nothing of it",)
    return (f"{where}: {state_words(by_table)}, by the connection table",)


def state_words(state: str) -> str:
    """Return flags of connection tracking in words."""
    names = _assumed(state).split(",")
    return ", ".join(_STATES[name] for name in names if name in _STATES) or "tracked"

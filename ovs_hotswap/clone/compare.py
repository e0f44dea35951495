"""How two bridges' pipelines differ, and the commands that make one like the other. This module is pure."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ovs_hotswap.clone.dumps import PORT_FLAGS, Flow, Pipeline

_SHOWN = 160  # characters of a flow or group in a text for people
_TO_GROUP = re.compile(r"\b(?:group|watch_group):(\d+)")
_DEVICE_FLAGS = frozenset({"PORT_DOWN"})


@dataclass(frozen=True, slots=True)
class Commands:
    """What is to be sent to a bridge, in this order: single commands of ovs-ofctl with their arguments, the lines of
    one atomic bundle, flows for ``add-flows`` in OpenFlow 1.0, which has no bundles, and single commands again."""

    before: tuple[tuple[str, ...], ...] = ()
    bundle: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    after: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before or self.bundle or self.legacy or self.after)


def kept(pipeline: Pipeline) -> Pipeline:
    """Return what the new side has until the cut: flows without timeouts."""
    return replace(pipeline, flows={key: flow.kept() for key, flow in pipeline.flows.items()})


def with_ports(pipeline: Pipeline, ports: Collection[str], vms: Collection[str]) -> Pipeline:
    """Return the pipeline with the flags of ``ports`` alone, and with "down" of ``vms`` alone. A kernel device is up or
    down by itself, and ovs-vswitchd shows that as the port's."""
    flags = {port: each if port in vms else each - _DEVICE_FLAGS for port, each in pipeline.ports.items()}
    return replace(pipeline, ports={port: each for port, each in flags.items() if each and port in ports})


def pipeline_differences(current: Pipeline, wanted: Pipeline) -> list[str]:
    """Return how ``current`` differs from ``wanted``: ``+`` what is missing, ``-`` what is too much, both for what is
    otherwise. Flows are compared with cookies, timeouts, importance and flags; of a hard timeout only whether there is
    one, because the time that is left is another on each side."""
    found = [
        *_of_maps("tlv-map", current.tlvs, wanted.tlvs),
        *_of_maps("meter", current.meters, wanted.meters),
        *_of_maps("group", current.groups, wanted.groups),
        *_of_maps("port", _words(current.ports), _words(wanted.ports)),
        *_of_maps("table", current.tables, wanted.tables),
    ]
    if current.fragments != wanted.fragments:
        found.append(f"fragments: {current.fragments}, not {wanted.fragments}")
    for key in sorted(current.flows.keys() | wanted.flows.keys()):
        before, after = current.flows.get(key), wanted.flows.get(key)
        if before is None or after is None or not same(before, after):
            found += [] if before is None else [_short(f"- flow {before.text}")]
            found += [] if after is None else [_short(f"+ flow {after.text}")]
    return found


def same(one: Flow, other: Flow) -> bool:
    """Whether two flows are equal but for the time that is left of a hard timeout."""
    return replace(one, hard=bool(one.hard)) == replace(other, hard=bool(other.hard))


def commands(current: Pipeline, wanted: Pipeline) -> Commands:
    """Return what makes ``current`` like ``wanted``.

    Flows and groups change in one bundle. What they need is there before it (tunnel options, meters), and what they no
    longer need goes after it, because a meter that is deleted takes its flows along (OpenFlow 1.3, 6.7).
    """
    gone_tlvs = [tlv.text(name) for name, tlv in current.tlvs.items() if wanted.tlvs.get(name) != tlv]
    new_tlvs = [tlv.text(name) for name, tlv in wanted.tlvs.items() if current.tlvs.get(name) != tlv]
    changed = any(name in current.tlvs for name in wanted.tlvs if wanted.tlvs[name] != current.tlvs.get(name))
    remove = [("del-tlv-map", ",".join(gone_tlvs))] if gone_tlvs else []
    before: list[tuple[str, ...]] = [*(remove if changed else [])]
    before += [("add-tlv-map", ",".join(new_tlvs))] if new_tlvs else []
    for name, meter in wanted.meters.items():
        if current.meters.get(name) != meter:
            before.append(("mod-meter" if name in current.meters else "add-meter", f"meter={name},{meter}"))
    after: list[tuple[str, ...]] = [("del-meter", f"meter={name}") for name in current.meters.keys() - wanted.meters]
    after += [] if changed else remove
    for port in sorted(current.ports.keys() | wanted.ports.keys()):
        has, needs = current.ports.get(port, frozenset()), wanted.ports.get(port, frozenset())
        after += [("mod-port", port, PORT_FLAGS[flag]) for flag in sorted(needs - has)]
        after += [("mod-port", port, _reverse(PORT_FLAGS[flag])) for flag in sorted(has - needs)]
    for table in sorted(current.tables.keys() | wanted.tables.keys()):
        has_settings, needs_settings = current.tables.get(table, ()), wanted.tables.get(table, ())
        if has_settings != needs_settings:
            after += [("mod-table", str(table), setting) for setting in ("noevict", "novacancy", *needs_settings)]
    if current.fragments != wanted.fragments:
        after.append(("set-frags", wanted.fragments))
    added = [
        flow for key, flow in wanted.flows.items() if key not in current.flows or not same(current.flows[key], flow)
    ]
    legacy = tuple(flow.text for flow in added if flow.legacy)
    return Commands(tuple(before), tuple(_bundle(current, wanted, added)), legacy, tuple(after))


def _bundle(current: Pipeline, wanted: Pipeline, added: list[Flow]) -> list[str]:
    lines = []
    for number in _in_order(wanted.groups):
        if current.groups.get(number) != wanted.groups[number]:
            verb = "modify" if number in current.groups else "add"
            lines.append(f"group {verb} group_id={number},{wanted.groups[number]}")
    lines += [f"flow add {flow.text}" for flow in added if not flow.legacy]
    lines += [f"flow delete_strict {key.text}" for key in current.flows if key not in wanted.flows]
    lines += [f"group delete group_id={number}" for number in current.groups if number not in wanted.groups]
    return lines


def armed(pipeline: Pipeline) -> Commands:
    """Return what starts the timeouts on the new side."""
    flows = [flow.armed() for flow in pipeline.flows.values() if flow.timed]
    bundle = tuple(f"flow add {flow.text}" for flow in flows if not flow.legacy)
    return Commands(bundle=bundle, legacy=tuple(flow.text for flow in flows if flow.legacy))


def late(new: Pipeline, active: Pipeline) -> Pipeline:
    """Return what the new side is to be after the cut, when its own pipeline is the one in force.

    Flows with timeouts, ports and tables are the new side's. A flow that a ``learn`` action may have made or changed
    there stays; all others are those of the active side, whose controllers know nothing of the new one yet.
    """
    learned = {value for flow in new.flows.values() for value in learned_cookies(flow.actions)}
    flows = {key: flow for key, flow in new.flows.items() if flow.timed or flow.cookie in learned}
    added = {key: flow for key, flow in active.flows.items() if not flow.timed and key not in flows}
    return replace(active, flows={**flows, **added}, ports=new.ports, tables=new.tables)


def learned_cookies(actions: str) -> set[int]:
    """Return the cookies of the flows that ``learn`` actions make (ovs-actions(7)); without one it is 0."""
    bodies = [body.partition(")")[0] for body in actions.split("learn(")[1:]]
    found = [re.search(r"\bcookie=(0x[0-9a-f]+|\d+)", body) for body in bodies]
    return {int(cookie[1], 0) if cookie else 0 for cookie in found}


def _in_order(groups: Mapping[int, str]) -> list[int]:
    """Return the groups so that each comes after those that its buckets name."""
    named = {number: [int(other) for other in _TO_GROUP.findall(text)] for number, text in groups.items()}
    try:
        return [number for number in graphlib.TopologicalSorter(named).static_order() if number in groups]
    except graphlib.CycleError:
        return sorted(groups)


def _of_maps(what: str, current: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> list[str]:
    found = []
    for name in sorted(current.keys() | wanted.keys()):
        if current.get(name) != wanted.get(name):
            found += [_short(f"- {what} {name} {current[name]}")] if name in current else []
            found += [_short(f"+ {what} {name} {wanted[name]}")] if name in wanted else []
    return found


def _words(ports: Mapping[str, frozenset[str]]) -> dict[str, str]:
    return {port: " ".join(sorted(flags)) for port, flags in ports.items()}


def _reverse(word: str) -> str:
    return "up" if word == "down" else word.removeprefix("no-")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

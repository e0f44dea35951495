"""The pipelines of a switch as they are kept for its next start, if it ends by itself.

A switch that starts has its database and no flows (ofproto/ofproto.c). Where a controller is connected to a bridge, it
programs that bridge again. What scripts and ovn-controller have programmed is kept here, and given back before the
switch forwards: until then it waits (ovs-vswitchd.conf.db(5), Open_vSwitch.other_config:flow-restore-wait).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from ovs_hotswap.clone.compare import commands, with_ports
from ovs_hotswap.clone.dumps import Flow, Pipeline, Tlv
from ovs_hotswap.clone.follow import Bridge, foreign_bridges, foreign_ports, vms_of
from ovs_hotswap.clone.rows import Rows, refs, single


@dataclass(frozen=True, slots=True)
class KeptPipeline:
    """A ``Pipeline`` in a file, where no key is a flow."""

    version: int
    tlvs: Mapping[str, Tlv]
    meters: Mapping[str, str]
    groups: Mapping[int, str]
    flows: tuple[Flow, ...]
    ports: Mapping[str, frozenset[str]]
    tables: Mapping[int, tuple[str, ...]]
    fragments: str


@dataclass(frozen=True, slots=True)
class _File:
    started: float
    bridges: dict[str, KeptPipeline]


_FILE = TypeAdapter(_File)


def to_json(started: float, pipelines: Mapping[str, Pipeline]) -> bytes:
    """Return the file with pipelines, by bridge, of an instance that was ``started`` at that time (seconds since the
    epoch). Hard timeouts are those that are left when this is written."""
    kept = {
        name: KeptPipeline(each.version, each.tlvs, each.meters, each.groups,
                           tuple(replace(flow.armed(), age=0.0) for flow in each.flows.values()), each.ports,
                           each.tables, each.fragments)
        for name, each in pipelines.items()
    }  # fmt: skip
    return _FILE.dump_json(_File(started, kept))


def from_json(text: bytes) -> tuple[float, dict[str, Pipeline]]:
    """Return what ``to_json`` was given. Raises ValueError."""
    try:
        kept = _FILE.validate_json(text)
    except ValidationError as error:
        raise ValueError(str(error)) from error
    return kept.started, {
        name: Pipeline(each.version, each.tlvs, each.meters, each.groups, {flow.key: flow for flow in each.flows},
                       each.ports, each.tables, each.fragments)
        for name, each in kept.bridges.items()
    }  # fmt: skip


def kept_bridges(rows: Rows) -> list[str]:
    """Return the names of the bridges whose pipelines are kept: others', without a controller in the database. When a
    bridge gets its first controller, which it has after ``flow-restore-wait``, its flows are deleted
    (ofproto/connmgr.c, connmgr_set_controllers)."""
    led = {single(row, "name") for row in rows.get("Bridge", {}).values() if any(refs(row.get("controller", ())))}
    return [name for name in foreign_bridges(rows) if name not in led]


def give_back(bridge: Bridge, rows: Rows, name: str, kept: Pipeline) -> None:
    """Make the pipeline of a switch that has just started like the one that was kept of its bridge. Raises
    SwitchError."""
    ports = foreign_ports(rows, name)
    vms = vms_of(ports)
    current = bridge.read(kept.version)
    bridge.send(commands(with_ports(current, ports, vms), with_ports(kept, ports, vms)))

"""The transactions that make and remove the rows of wire mode by mirrors. This module is pure.

A transaction is a list of operations (RFC 7047, 5.2); it is empty if there is nothing to do. Rows are only added to
another program's database, and removed by their mark.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.wire.mirror_flows import LINK_PORT, PATCH_PORTS, Mode
from ovs_hotswap.wire.mirror_rows import (
    LINK,
    MODE_KEY,
    OURS,
    PORT_KEY,
    TAG_KEY,
    UPLINK_KEY,
    Operation,
    Operations,
    Rows,
    Wanted,
    map_of,
)  # fmt: skip


def make_ports(rows: Rows, carrier: str, wanted: Iterable[Wanted], tags: Mapping[tuple[str, str], int]) -> Operations:
    """Make what is missing of the carrier and the patch ports, and bring the VLAN columns of these to those of their
    ports. No operation if nothing is missing."""
    found: Operations = []
    ours = rows.carrier
    if ours is None and carrier in rows.bridges:
        raise SwitchError(f"there is a bridge {carrier} that another program has made", hint="rename it")
    far_ends: list[list[str]] = []
    for each in wanted:
        port, bridge, tag = rows.port(each), rows.bridges[each.bridge], tags[each.bridge, each.name]
        near, far = f"ovsh-w{tag}", f"ovsh-c{tag}"
        what = {PORT_KEY: each.name, TAG_KEY: str(tag), **({UPLINK_KEY: each.bridge} if each.uplink else {})}
        patch = bridge.patches.get(each.name)
        if patch is None:
            vlan = {} if each.uplink else port.vlan
            made, reference = _make_port(near, _patch_to(far, PATCH_PORTS + tag), {**OURS, **what}, vlan)
            found += [*made, _add("Bridge", bridge.uuid, "ports", [reference])]
        elif not each.uplink and patch.vlan != port.vlan:
            found.append({"op": "update", "table": "Port", "where": _is(patch.uuid), "row": dict(port.vlan)})
        if ours is None or far not in ours.ports:
            made, reference = _make_port(far, _patch_to(near, tag), OURS, {})
            found += made
            far_ends.append(reference)
    if ours is None:
        found += _make_carrier(rows, carrier, far_ends)
    elif far_ends:
        found.append(_add("Bridge", ours.uuid, "ports", far_ends))
    return _committed(rows, found)


def make_mirrors(rows: Rows) -> Operations:
    """Have each patch port of a VM's port be the output of a mirror."""
    found: Operations = []
    for bridge in rows.bridges.values():
        by_output = {mirror.output: mirror for mirror in bridge.mirrors if mirror.ours}
        for name, patch in bridge.patches.items():
            port, mirror = bridge.ports.get(name), by_output.get(patch.uuid)
            if port is None or UPLINK_KEY in patch.external_ids:
                continue
            if mirror is None:
                key = f"m_{patch.uuid.replace('-', '_')}"
                row = {"name": f"ovsh-{patch.external_ids[TAG_KEY]}", "external_ids": map_of(OURS),
                       "select_dst_port": ["uuid", port.uuid], "output_port": ["uuid", patch.uuid]}  # fmt: skip
                found.append({"op": "insert", "table": "Mirror", "uuid-name": key, "row": row})
                found.append(_add("Bridge", bridge.uuid, "mirrors", [["named-uuid", key]]))
            elif mirror.sources != (port.uuid,):  # the port was made again: its reference went with the earlier row
                row = {"select_dst_port": ["uuid", port.uuid]}
                found.append({"op": "update", "table": "Mirror", "where": _is(mirror.uuid), "row": row})
    return _committed(rows, found)


def remove(rows: Rows, names: Collection[tuple[str, str]] | None = None) -> Operations:
    """Remove the patch ports and mirrors of these ports, by bridge and name; ``None``: everything of ours."""
    found: Operations = []
    tags = set()
    for bridge in rows.bridges.values():
        gone = [port for name, port in bridge.patches.items() if names is None or (bridge.name, name) in names]
        tags |= {port.external_ids[TAG_KEY] for port in gone}
        uuids = {port.uuid for port in gone}
        mirrors = [
            mirror.uuid for mirror in bridge.mirrors
            if mirror.ours and (names is None or mirror.output in uuids or mirror.output is None)
        ]  # fmt: skip
        found += _drop("Bridge", bridge.uuid, "mirrors", mirrors) + _drop("Bridge", bridge.uuid, "ports", uuids)
    carrier = rows.carrier
    if carrier is not None and names is None:
        found += _drop("Open_vSwitch", rows.root, "bridges", [carrier.uuid])
    elif carrier is not None:
        far = [carrier.ports[name].uuid for name in (f"ovsh-c{tag}" for tag in tags) if name in carrier.ports]
        found += _drop("Bridge", carrier.uuid, "ports", far)
    return _committed(rows, found)


def make_link(rows: Rows, options: Mapping[str, str], mtu_request: int) -> Operations:
    """Make the memif's port on the carrier, which must be there. A port of this name must not be."""
    assert rows.carrier is not None
    columns = {"type": "dpdk", "options": map_of(options), "mtu_request": mtu_request, "ofport_request": LINK_PORT}
    made, reference = _make_port(LINK, columns, OURS, {})
    return _committed(rows, [*made, _add("Bridge", rows.carrier.uuid, "ports", [reference])])


def drop_link(rows: Rows) -> Operations:
    carrier, link = rows.carrier, rows.link
    if carrier is None or link is None:
        return []
    return _committed(rows, _drop("Bridge", carrier.uuid, "ports", [link.uuid]))


def intend(rows: Rows, mode: Mode) -> Operations:
    """Record in the carrier's row the mode in which its switch is to be."""
    carrier = rows.carrier
    if carrier is None:
        raise SwitchError("wire mode is not open on this switch")
    row = {"external_ids": map_of({**OURS, MODE_KEY: mode})}
    return [{"op": "update", "table": "Bridge", "where": _is(carrier.uuid), "row": row}]


def _make_carrier(rows: Rows, name: str, ports: Iterable[list[str]]) -> Operations:
    made, local = _make_port(name, {"type": "internal"}, OURS, {})
    bridge = {
        "name": name, "datapath_type": "netdev", "fail_mode": "secure", "external_ids": map_of(OURS),
        "ports": ["set", [local, *ports]],
    }  # fmt: skip
    return [
        *made,
        {"op": "insert", "table": "Bridge", "uuid-name": "carrier", "row": bridge},
        _add("Open_vSwitch", rows.root, "bridges", [["named-uuid", "carrier"]]),
    ]


def _patch_to(peer: str, number: int) -> Operation:
    return {"type": "patch", "options": map_of({"peer": peer}), "ofport_request": number}


def _make_port(
    name: str, columns: Operation, external_ids: Mapping[str, str], vlan: Mapping[str, Any]
) -> tuple[Operations, list[str]]:
    """The operations that make the rows of a port, and the reference to it for a bridge."""
    key, marks = name.replace("-", "_"), map_of(external_ids)
    interface = {"name": name, "external_ids": marks, **columns}
    port = {"name": name, "interfaces": ["named-uuid", f"i_{key}"], "external_ids": marks, **vlan}
    return [
        {"op": "insert", "table": "Interface", "uuid-name": f"i_{key}", "row": interface},
        {"op": "insert", "table": "Port", "uuid-name": f"p_{key}", "row": port},
    ], ["named-uuid", f"p_{key}"]


def _committed(rows: Rows, operations: Operations) -> Operations:
    """The operations, with the count by which it is known that ovs-vswitchd has carried them out."""
    if not operations:
        return []
    count = {"op": "mutate", "table": "Open_vSwitch", "where": _is(rows.root), "mutations": [["next_cfg", "+=", 1]]}
    return [*operations, count]


def _add(table: str, uuid: str, column: str, what: Iterable[list[str]]) -> Operation:
    mutations = [[column, "insert", ["set", list(what)]]]
    return {"op": "mutate", "table": table, "where": _is(uuid), "mutations": mutations}


def _drop(table: str, uuid: str, column: str, what: Iterable[str]) -> Operations:
    gone = [["uuid", each] for each in sorted(what)]
    mutations = [[column, "delete", ["set", gone]]]
    return [{"op": "mutate", "table": table, "where": _is(uuid), "mutations": mutations}] if gone else []


def _is(uuid: str) -> list[Any]:
    return [["_uuid", "==", ["uuid", uuid]]]

"""The transactions that make and remove the rows of wire mode by mirrors. This module is pure.

A transaction is a list of operations (RFC 7047, 5.2); it is empty if there is nothing to do. Rows are only added to
another program's database, and removed by their mark.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ovs_hotswap.switch.column_values import map_of
from ovs_hotswap.wire.mirror_flows import FAR_PORTS, LINK_PORT, NEAR_PORTS, Mode
from ovs_hotswap.wire.mirror_rows import (
    LINK_KEY,
    MODE_KEY,
    OURS,
    PORT_KEY,
    TAG_KEY,
    UNMIRRORED_KEY,
    UPLINK_KEY,
    Operation,
    Operations,
    Port,
    Rows,
    Wanted,
)

NO_VLAN = {"trunks": 4095}
"""The VLAN columns of ports to which NORMAL is not to flood: a trunk of a VLAN that cannot be (IEEE 802.1Q, 9.6). They
do not concern ``output``. NORMAL floods to no port that is the output of a mirror, either, as most near ports are."""


def make_ports(rows: Rows, wanted: Iterable[Wanted], tags: Mapping[tuple[str, str], int]) -> Operations:
    """Make what is missing of the patch ports, and bring the VLAN columns of the near ones to those of their ports."""
    found: Operations = []
    for each in wanted:
        port, bridge, tag = rows.port(each), rows.bridges[each.bridge], tags[each.bridge, each.name]
        near, far = names_of(tag)
        what = {PORT_KEY: each.name, TAG_KEY: str(tag), **({UPLINK_KEY: each.bridge} if each.uplink else {}),
                **({} if each.mirrored else {UNMIRRORED_KEY: each.bridge})}  # fmt: skip
        patch, ends = bridge.patches.get(each.name), []
        if patch is None:
            vlan = port.vlan if each.mirrored and not each.uplink else NO_VLAN
            made, reference = _make_port(near, _patch_to(far, NEAR_PORTS + tag), {**OURS, **what}, vlan)
            found += made
            ends.append(reference)
        elif _is_mirrored(patch) and patch.vlan != port.vlan:
            found.append({"op": "update", "table": "Port", "where": _is(patch.uuid), "row": _settings(port.vlan)})
        if far not in bridge.ports:
            made, reference = _make_port(far, _patch_to(near, FAR_PORTS + tag), OURS, NO_VLAN)
            found += made
            ends.append(reference)
        if ends:
            found.append(_add("Bridge", bridge.uuid, "ports", ends))
    return _committed(rows, found)


def names_of(tag: int) -> tuple[str, str]:
    """The names of the near and the far patch port."""
    return f"ovsh-n{tag}", f"ovsh-f{tag}"


def make_mirrors(rows: Rows) -> Operations:
    """Have the patch ports of VMs' ports be the outputs of mirrors."""
    found: Operations = []
    for bridge in rows.bridges.values():
        by_output = {mirror.output: mirror for mirror in bridge.mirrors if mirror.ours}
        for name, patch in bridge.patches.items():
            port, mirror = bridge.ports.get(name), by_output.get(patch.uuid)
            if port is None or not _is_mirrored(patch):
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


def _is_mirrored(patch: Port) -> bool:
    return not {UPLINK_KEY, UNMIRRORED_KEY} & patch.external_ids.keys()


def remove(rows: Rows, names: Collection[tuple[str, str]] | None = None) -> Operations:
    """Remove the patch ports and mirrors of these ports, by bridge and name; ``None``: everything of ours."""
    found: Operations = []
    for bridge in rows.bridges.values():
        gone = {port.uuid for port in bridge.ports.values() if port.ours and names is None}
        for name, patch in bridge.patches.items():
            if names is not None and (bridge.name, name) in names:
                far = bridge.ports.get(names_of(int(patch.external_ids[TAG_KEY]))[1])
                gone |= {patch.uuid, *([] if far is None else [far.uuid])}
        mirrors = [
            mirror.uuid
            for mirror in bridge.mirrors
            if mirror.ours and (names is None or mirror.output in gone or mirror.output is None)
        ]
        found += _drop("Bridge", bridge.uuid, "mirrors", mirrors) + _drop("Bridge", bridge.uuid, "ports", gone)
    return _committed(rows, found)


def link_name(number: int) -> str:
    return f"ovsh-l{number}"


def make_link(
    rows: Rows, bridge: str, number: int, options: Mapping[str, str], mtu_request: int, mode: Mode = Mode.OWN
) -> Operations:
    """Make a bridge's link, of which it must have none."""
    columns = {"type": "dpdk", "options": map_of(options), "mtu_request": mtu_request, "ofport_request": LINK_PORT}
    made, reference = _make_port(link_name(number), columns, {**OURS, LINK_KEY: str(number), MODE_KEY: mode}, NO_VLAN)
    return _committed(rows, [*made, _add("Bridge", rows.bridges[bridge].uuid, "ports", [reference])])


def drop_link(rows: Rows, bridge: str) -> Operations:
    found = rows.bridges[bridge]
    return [] if found.link is None else _committed(rows, _drop("Bridge", found.uuid, "ports", [found.link.uuid]))


def intend(rows: Rows, mode: Mode) -> Operations:
    """Record with the links in which mode the switch is to be."""
    links = [bridge.link for bridge in rows.bridges.values() if bridge.link is not None]
    return [
        {"op": "update", "table": "Port", "where": _is(link.uuid),
         "row": {"external_ids": map_of({**link.external_ids, MODE_KEY: mode})}}
        for link in links
    ]  # fmt: skip


def _patch_to(peer: str, number: int) -> Operation:
    return {"type": "patch", "options": map_of({"peer": peer}), "ofport_request": number}


def _make_port(
    name: str, columns: Operation, external_ids: Mapping[str, str], vlan: Mapping[str, Any]
) -> tuple[Operations, list[str]]:
    """The operations that make the rows of a port, and the reference to it for a bridge."""
    key, marks = name.replace("-", "_"), map_of(external_ids)
    interface = {"name": name, "external_ids": marks, **columns}
    port = {"name": name, "interfaces": ["named-uuid", f"i_{key}"], "external_ids": marks, **_settings(vlan)}
    return [
        {"op": "insert", "table": "Interface", "uuid-name": f"i_{key}", "row": interface},
        {"op": "insert", "table": "Port", "uuid-name": f"p_{key}", "row": port},
    ], ["named-uuid", f"p_{key}"]


def _settings(vlan: Mapping[str, Any]) -> Operation:
    """The columns of a port of ours, whose VLAN columns are these. No spanning tree may block it."""
    kept = dict(vlan.get("other_config", ["map", []])[1])
    return {**vlan, "other_config": map_of({**kept, "stp-enable": "false", "rstp-enable": "false"})}


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

"""Decides which settings of one instance the other one gets, and which it does not get and why. This module is pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.config import OWN_KEYS
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.settings import (
    BRIDGE,
    INTERFACE,
    PORT,
    ROOT,
    SETS,
    Key,
    Settings,
    Snapshot,
    as_json,
    columns,
    foreign_ports,
    from_json,
    is_plain_map,
    ports_named,
    refers_to,
    unknown_columns,
)

START_KEYS = frozenset({
    "dpdk-lcore-mask", "dpdk-hugepage-dir", "vhost-sock-dir", "vhost-iommu-support", "vhost-postcopy-support",
    "per-port-memory", "userspace-tso-enable", "hw-offload", "hw-offload-ct-size",
    "n-offload-threads", "doca-init",
})  # fmt: skip
"""Keys that ovs-vswitchd reads only when it starts (ovs-vswitchd.conf.db(5))."""

FEATURE_KEYS = frozenset({"userspace-tso-enable", "vhost-iommu-support", "vhost-postcopy-support"})
"""Those of them that decide which virtio features a VM is offered."""

# Types of ports that consist only of a row. Others have a device or a socket, or belong to another bridge, and only one
# process can have them.
_PORTABLE = frozenset({"internal", "vxlan", "geneve", "gre", "ip6gre", "erspan", "ip6erspan", "gtpu", "bareudp", "srv6",
                       "stt", "lisp"})  # fmt: skip
_AFFINITY = "pmd-rxq-affinity"


@dataclass(frozen=True, slots=True)
class Carry:
    """The changes that carry settings over to the other instance.

    ``values`` are to be set. ``gone`` are to be removed, because they no longer exist in the instance from which they
    came. ``lost`` is what the other instance will not have, with the reason. ``carried`` is all that the other instance
    then has from this one.
    """

    values: Settings = field(default_factory=dict)
    gone: tuple[Key, ...] = ()
    lost: tuple[tuple[Key, str], ...] = ()
    carried: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receiver:
    """The instance that is to get the settings.

    It is described by its ``schema``, the settings that it has, the ports that exist, the keys that were carried to it
    before, and the PMD cores of both instances, by which affinities are translated. ``other_config`` is everything that
    it has in that column of Open_vSwitch, no matter who wrote it. ``alone``: the instance that had the settings does
    not run, so this one can have what only one instance can have.
    """

    schema: Mapping[str, Any]
    has: Settings
    ports: Collection[str]
    before: Collection[Key] = ()
    cores: tuple[Sequence[int], Sequence[int]] = ((), ())
    other_config: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False

    def has_it(self, key: Key, value: Any) -> bool:
        root = key.table == ROOT and key.column == "other_config"
        found: object = self.other_config.get(key.key) if root else self.has.get(key)
        return bool(found == value)


def carry(source: Settings, to: Receiver) -> Carry:
    """Return what is to be done so that ``to`` has the settings ``source``."""
    held = [] if to.alone else foreign_ports(source)
    stays = {name: reason for name in held if (reason := _port_stays(source, name))}
    interfaces = {each for name in stays for each in source[Key(PORT, name, "", "")]}
    known = {*to.ports, *foreign_ports(source)} - stays.keys()
    rows = {*to.ports, *(each for name in known - {*to.ports} for each in source[Key(PORT, name, "", "")])}
    carried: Settings = {}
    lost: list[tuple[Key, str]] = []
    for key, value in source.items():
        if (key.table == PORT and key.row in stays) or (key.table == INTERFACE and key.row in interfaces):
            if not key.column:
                lost.append((key, stays[key.row]))
            continue
        translated = _translated(key, value, to.cores)
        reason = _stays(key, value, translated, to, known, rows)
        if reason and not to.has_it(key, value):
            lost.append((key, reason))
        elif not reason:
            carried[key] = translated
    made_anew = {name for name in foreign_ports(carried)
                 if to.has.get(Key(PORT, name, "", "")) != carried[Key(PORT, name, "", "")]}  # fmt: skip
    anew = made_anew | {each for name in made_anew for each in carried[Key(PORT, name, "", "")]}
    values = {
        key: value
        for key, value in carried.items()
        if key not in to.has or to.has[key] != value or (key.table in (PORT, INTERFACE) and key.row in anew)
    }
    gone = tuple(key for key in to.before if key in to.has and key not in carried)
    return Carry(values, gone, tuple(lost), carried)


def _port_stays(source: Settings, name: str) -> str:
    types = {source.get(Key(INTERFACE, each, "type", ""), "") for each in source[Key(PORT, name, "", "")]}
    held = sorted(each or "system" for each in types - _PORTABLE)
    return f"type {', '.join(held)}: one instance alone can have it" if held else ""


def _stays(
    key: Key, value: Any, translated: Any, to: Receiver, ports: Collection[str], interfaces: Collection[str]
) -> str:
    """Return why the setting cannot be carried over, or an empty text if it can be."""
    if key.table == BRIDGE and not key.column:
        return "of the bridges only ours is carried over"
    if (key.table == PORT and key.row not in ports) or (key.table == INTERFACE and key.row not in interfaces):
        return "the other instance has no such port"
    if unknown := _unknown(key, value, to.schema):
        return f"the other release does not know {unknown}"
    if key.table == ROOT and key.column == "other_config":
        if key.key in OWN_KEYS:
            return f"it is of one instance: {OWN_KEYS[key.key]}"
        if key.key in START_KEYS:
            return "ovs-vswitchd reads it only when it starts: put it into [instances.other_config]"
    if key.table == BRIDGE and key.column == "controller" and not to.alone:
        return "two switches with one datapath ID cannot share a controller"
    if key.table == INTERFACE and key.key == _AFFINITY and translated is None:
        return "it names cores that have no counterpart among the other instance's pmd_cores"
    if key.table == BRIDGE and key.column == "mirrors":
        missing = sorted(set().union(*(ports_named(row, to.schema, "Mirror") for row in value)) - set(ports))
        return f"port {', '.join(missing)} stays behind" if missing else ""
    return ""


def _unknown(key: Key, value: Any, schema: Mapping[str, Any]) -> str:
    kinds = columns(schema, key.table)
    if not key.column:
        return key.table if not kinds else ""
    if key.column not in kinds:
        return f"{key.table}.{key.column}"
    return ", ".join(sorted(unknown_columns(value, kinds[key.column], schema)))


def _translated(key: Key, value: Any, cores: tuple[Sequence[int], Sequence[int]]) -> Any:
    """Return an affinity ``queue:core,...`` with the cores that have the same place among the other's PMD cores.

    Returns ``None`` if there is no such core: a queue on a core without a PMD thread would not be polled at all
    (lib/dpif-netdev.c, rxq_scheduling). Other values are returned as they are.
    """
    if key.table != INTERFACE or key.key != _AFFINITY:
        return value
    ours, theirs = (sorted(set(each)) for each in cores)
    try:
        pairs = [tuple(map(int, part.split(":"))) for part in value.split(",") if part]
        return ",".join(f"{queue}:{theirs[ours.index(core)]}" for queue, core in pairs)
    except (ValueError, IndexError):
        return None


# ------------------------------------------------------------------------------------------------------ a transaction


def before(external_ids: Mapping[str, str]) -> list[Key]:
    """Return the keys that were carried to a database before, according to its Open_vSwitch row."""
    try:
        return list(from_json(json.loads(external_ids.get(owned.CARRIED, "[]"))))
    except ValueError:
        return []


def operations(change: Carry, target: Snapshot, bridge: str) -> list[dict[str, Any]]:
    """Return the operations (RFC 7047, 5.2) that carry out ``change`` in ``target``; none if nothing is to change."""
    return _Writer(target, bridge).operations(change)


class _Writer:
    def __init__(self, target: Snapshot, bridge: str) -> None:
        self._target, self._bridge = target, bridge
        self._made: list[dict[str, Any]] = []
        self._names: dict[tuple[str, str], Any] = {}  # references to the rows that are made here
        self._configured = owned.written(target.root.get("external_ids", {}))

    def operations(self, change: Carry) -> list[dict[str, Any]]:
        note = json.dumps(as_json(dict.fromkeys(change.carried)))
        noted = self._target.root.get("external_ids", {}).get(owned.CARRIED)
        if not change.values and not change.gone and noted == (None if not change.carried else note):
            return []
        for key in change.gone:
            self._take_away(key)
        for key in change.values:
            if key.table == PORT and not key.column:
                self._make_port(key.row, change.values[key])
        for key, value in change.values.items():
            self._set(key, value)
        root = Key(ROOT, "", "external_ids", owned.CARRIED)
        self._set(root, note) if change.carried else self._take_away(root)
        self._made.append({"op": "mutate", "table": ROOT, "where": [], "mutations": [["next_cfg", "+=", 1]]})
        return self._made

    # -- one setting

    def _set(self, key: Key, value: Any) -> None:
        if key.table == SETS:
            self._take_away(key)
            row = self._encoded(SETS, value)
            bridge = self._target.named(BRIDGE, self._bridge)
            self._made.append({"op": "insert", "table": SETS, "row": {**row, "bridge": ["uuid", bridge]}})
        elif key.column:
            self._set_column(key, value)

    def _set_column(self, key: Key, value: Any) -> None:
        where, kind = self._where(key), columns(self._target.schema, key.table)[key.column]
        if is_plain_map(kind):
            self._made.append({"op": "mutate", "table": key.table, "where": where, "mutations": [
                [key.column, "delete", ["set", [key.key]]], [key.column, "insert", ["map", [[key.key, value]]]],
            ]})  # fmt: skip
            return
        self._forget(key)
        self._update(key, where, self._encode(kind, value))

    def _take_away(self, key: Key) -> None:
        if key.table == SETS:
            self._made.append({"op": "delete", "table": SETS, "where": [["id", "==", int(key.row)]]})
        elif key.table == PORT and not key.column:
            self._made.append(self._ports("delete", ["uuid", self._target.named(PORT, key.row)]))
        elif key.table == ROOT and key.column == "other_config" and key.key in self._configured:
            self._set(key, self._configured[key.key])
        elif key.key:
            self._made.append({"op": "mutate", "table": key.table, "where": self._where(key),
                               "mutations": [[key.column, "delete", ["set", [key.key]]]]})  # fmt: skip
        elif key.column:
            self._forget(key)
            self._update(key, self._where(key), _default(columns(self._target.schema, key.table)[key.column]))

    def _update(self, key: Key, where: list[Any], value: Any) -> None:
        self._made.append({"op": "update", "table": key.table, "where": where, "row": {key.column: value}})

    def _forget(self, key: Key) -> None:
        """Remove QoS and Queue rows that only this port has: they would stay after the last reference is removed."""
        if key.table != PORT or key.column != "qos":
            return
        ports = self._target.rows[PORT].values()
        for qos in next((port["qos"] for port in ports if port["name"] == key.row), []):
            if sum(qos in port["qos"] for port in ports) > 1 or qos not in self._target.rows["QoS"]:
                continue
            self._made.append({"op": "delete", "table": "QoS", "where": [["_uuid", "==", ["uuid", qos]]]})
            for queue in self._target.rows["QoS"][qos]["queues"].values():
                if sum(queue in row["queues"].values() for row in self._target.rows["QoS"].values()) == 1:
                    self._made.append({"op": "delete", "table": "Queue", "where": [["_uuid", "==", ["uuid", queue]]]})

    # -- rows

    def _where(self, key: Key) -> list[Any]:
        """Return the condition for the key's row: its name, by which a row made in this transaction is found, too."""
        return [] if key.table == ROOT else [["name", "==", key.row]]

    def _make_port(self, name: str, interfaces: Sequence[str]) -> None:
        present = self._target.named(PORT, name)
        if present is not None:  # with other interfaces
            self._made.append(self._ports("delete", ["uuid", present]))
        references = [self._insert(INTERFACE, {"name": each}) for each in interfaces]
        self._names[PORT, name] = self._insert(PORT, {"name": name, "interfaces": ["set", references]})
        self._made.append(self._ports("insert", self._names[PORT, name]))

    def _ports(self, how: str, reference: Any) -> dict[str, Any]:
        return {"op": "mutate", "table": BRIDGE, "where": [["name", "==", self._bridge]],
                "mutations": [["ports", how, ["set", [reference]]]]}  # fmt: skip

    def _insert(self, table: str, row: Mapping[str, Any]) -> list[str]:
        name = f"row{len(self._made)}"
        self._made.append({"op": "insert", "table": table, "row": dict(row), "uuid-name": name})
        return ["named-uuid", name]

    # -- values

    def _encoded(self, table: str, row: Mapping[str, Any]) -> dict[str, Any]:
        kinds = columns(self._target.schema, table)
        return {column: self._encode(kinds[column], value) for column, value in row.items() if column in kinds}

    def _encode(self, kind: Any, value: Any) -> Any:
        table = refers_to(kind)
        if isinstance(value, dict):
            pairs = value.items() if table is None else [
                (int(key) if _is_number(kind["key"]) else key, self._referred(table, row)) for key, row in value.items()
            ]  # fmt: skip
            return ["map", [[key, held] for key, held in pairs]]
        if isinstance(value, list):
            return ["set", value if table is None else [self._referred(table, each) for each in value]]
        return value

    def _referred(self, table: str, value: Any) -> Any:
        if table != PORT:
            return self._insert(table, self._encoded(table, value))
        made = self._names.get((PORT, value))
        return made if made is not None else ["uuid", self._target.named(PORT, value)]


def _is_number(kind: Any) -> bool:
    return (kind.get("type") if isinstance(kind, dict) else kind) == "integer"


def _default(kind: Any) -> Any:
    """Return the value of a column that was never set (RFC 7047, 5.2.1)."""
    if isinstance(kind, dict) and (kind.get("min", 1), kind.get("max", 1)) != (1, 1):
        return ["map", []] if "value" in kind else ["set", []]
    base = kind["key"] if isinstance(kind, dict) else kind
    name = base["type"] if isinstance(base, dict) else base
    return {"string": "", "integer": 0, "real": 0.0, "boolean": False}[str(name)]

"""Reads what the operator set in an instance's database, so that it can be compared with another instance's.

This module is pure. A *setting* is a value that ovs-hotswap did not write (``owned``) and that is not the column's
default: a key of a map such as ``other_config``, another column, or a port that the operator added. Rows to which a
column refers (a mirror, a QoS with its queues) are the column's value, with ports in them by name, so that settings of
two databases can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ovs_hotswap.config import OWN_KEYS
from ovs_hotswap.switch import owned

ROOT, BRIDGE, PORT, INTERFACE, SETS = "Open_vSwitch", "Bridge", "Port", "Interface", "Flow_Sample_Collector_Set"

# Columns that ovs-vswitchd writes, besides the ephemeral ones, and those that make the tree of rows.
_NOT_SET_BY_ANYBODY = {
    ROOT: {"bridges", "next_cfg", "cur_cfg", "ovs_version", "db_version", "system_type", "system_version",
           "datapath_types", "iface_types", "dpdk_initialized", "dpdk_version"},
    BRIDGE: {"name", "ports", "datapath_version"},
    PORT: {"name", "interfaces", "bond_active_slave"},
    INTERFACE: {"name", "ofport", "error", "cfm_flap_count"},
    "Datapath": {"datapath_version", "capabilities"},
}  # fmt: skip
# What ovs-hotswap wrote into a row that an earlier version of it made, without a mark.
_UNMARKED = {
    BRIDGE: {"datapath_type", "fail_mode", "other_config:hwaddr"},
    INTERFACE: {"type", "ofport_request", "options:dpdk-devargs", "options:vhost-server-path", "options:key",
                "options:remote_ip", "options:local_ip"},
}  # fmt: skip
SLEEP_KEYS = frozenset({"pmd-maxsleep", "pmd-sleep-max"})  # ``Host.own_pmd_sleep`` says who set the value


class Key(NamedTuple):
    """The place of a setting. ``row`` is a name, empty in Open_vSwitch; ``key`` is that of a map, else empty.

    ``Key("Port", name, "", "")`` stands for a whole port of the operator, ``Key("Bridge", name, "", "")`` for a bridge.
    """

    table: str
    row: str
    column: str
    key: str

    def __str__(self) -> str:
        what = f"{self.column}:{self.key}" if self.key else self.column
        if self.table == SETS:
            return f"Flow_Sample_Collector_Set {self.row}"
        if self.table == ROOT:
            return what
        return f"{self.table.lower()} {self.row}{' ' if what else ''}{what}"


Settings = dict[Key, Any]
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by table and UUID, the columns as ``decode`` gives them


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A database: its ``schema`` (RFC 7047, 3.2) and its rows."""

    schema: Mapping[str, Any]
    rows: Rows

    @property
    def root(self) -> Mapping[str, Any]:
        return next(iter(self.rows[ROOT].values()), {})

    def named(self, table: str, name: str) -> str | None:
        """Return the UUID of the row ``name``, or ``None``."""
        return next((uuid for uuid, row in self.rows[table].items() if row["name"] == name), None)


# ------------------------------------------------------------------------------------------------------------ reading


def columns(schema: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Return the types of a table's columns that configure the switch, and of those that make the tree of rows."""
    found = schema["tables"].get(table, {"columns": {}})["columns"]
    skip = _NOT_SET_BY_ANYBODY.get(table, set()) - {"name", "bridges", "ports", "interfaces"}
    return {name: column["type"] for name, column in found.items() if not column.get("ephemeral") and name not in skip}


def selects(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the operations (RFC 7047, 5.2.2) that read the whole database."""
    return [
        {"op": "select", "table": table, "where": [], "columns": ["_uuid", *columns(schema, table)]}
        for table in schema["tables"]
    ]


def snapshot(schema: Mapping[str, Any], answers: Collection[Mapping[str, Any]]) -> Snapshot:
    """Return the database from ``answers``, the results of ``selects``."""
    rows = {
        table: {row["_uuid"][1]: {name: decode(row[name], kind) for name, kind in columns(schema, table).items()}
                for row in answer["rows"]}
        for table, answer in zip(schema["tables"], answers, strict=True)
    }  # fmt: skip
    return Snapshot(schema, rows)


def decode(value: Any, kind: Any) -> Any:
    """Return a value that is written as in RFC 7047, 5.1: a dictionary for a map, a list for a set or an optional
    value. A reference to a row becomes its UUID."""
    if isinstance(value, list) and value and value[0] == "map":
        return {_atom(key): _atom(held) for key, held in value[1]}
    several = isinstance(kind, dict) and (kind.get("min", 1), kind.get("max", 1)) != (1, 1)
    atoms = value[1] if isinstance(value, list) and value and value[0] == "set" else [value]
    return sorted(map(_atom, atoms), key=str) if several else _atom(value)


def _atom(value: Any) -> Any:
    return value[1] if isinstance(value, list) else value


def refers_to(kind: Any) -> str | None:
    """Return the table to whose rows a column of this type refers, or ``None``."""
    if not isinstance(kind, dict):
        return None
    base = kind.get("value", kind.get("key"))
    return base.get("refTable") if isinstance(base, dict) else None


def is_plain_map(kind: Any) -> bool:
    """Whether a type is a map of strings, in which each key is a setting of its own."""
    return isinstance(kind, dict) and _base(kind.get("key")) == _base(kind.get("value")) == "string"


def _base(kind: Any) -> Any:
    return kind.get("type") if isinstance(kind, dict) else kind


# ------------------------------------------------------------------------------------------------------- the settings


def settings(found: Snapshot, bridge: str, ports: Collection[str]) -> Settings:
    """Return the settings in a database. ``bridge`` and ``ports`` are the names of ovs-hotswap's bridge and ports."""
    return dict(_Reader(found, bridge, frozenset(ports) | {bridge}).settings())


def foreign_ports(found: Settings) -> list[str]:
    """Return the ports that the operator added."""
    return [key.row for key in found if key.table == PORT and not key.column]


class _Reader:
    def __init__(self, found: Snapshot, bridge: str, ours: Collection[str]) -> None:
        self._found, self._bridge, self._ours = found, bridge, ours

    def settings(self) -> Iterator[tuple[Key, Any]]:
        rows = self._found.rows
        yield from self._root()
        for uuid, bridge in rows[BRIDGE].items():
            if bridge["name"] != self._bridge:
                yield Key(BRIDGE, bridge["name"], "", ""), []
                continue
            yield from self._row(BRIDGE, bridge["name"], bridge)
            for port in bridge["ports"]:
                if port in rows[PORT]:
                    yield from self._port(rows[PORT][port])
            for row in rows.get(SETS, {}).values():
                if row["bridge"] == uuid and not owned.is_marked(row.get("external_ids", {})):
                    yield Key(SETS, str(row["id"]), "", ""), self._nested(SETS, row, {"bridge"})

    def _root(self) -> Iterator[tuple[Key, Any]]:
        root = self._found.root
        notes = root.get("external_ids", {})
        ours = owned.written(notes)
        # An earlier version of ovs-hotswap did not note what it gave the instance at its start.
        never = SLEEP_KEYS if "dpdk-init" in ours else OWN_KEYS.keys() | SLEEP_KEYS
        for key, value in self._row(ROOT, "", root):
            if key.column == "other_config" and (ours.get(key.key) == value or key.key in never):
                continue
            yield key, value

    def _port(self, port: Mapping[str, Any]) -> Iterator[tuple[Key, Any]]:
        interfaces = [row for uuid in port["interfaces"] if (row := self._found.rows[INTERFACE].get(uuid))]
        foreign = port["name"] not in self._ours and not any(owned.is_marked(row["external_ids"]) for row in interfaces)
        if foreign:
            yield Key(PORT, port["name"], "", ""), sorted(row["name"] for row in interfaces)
        elif port["name"] not in self._ours:
            return  # the peer link, or a VM's that leaves
        yield from self._row(PORT, port["name"], port)
        for row in interfaces:
            if not foreign:
                yield from self._row(INTERFACE, row["name"], row)
                continue
            yield Key(INTERFACE, row["name"], "type", ""), row["type"]
            yield from self._row(INTERFACE, row["name"], row, ours={"type"})

    def _row(
        self, table: str, name: str, row: Mapping[str, Any], ours: set[str] | None = None
    ) -> Iterator[tuple[Key, Any]]:
        """Yield the settings in a row, without what ovs-hotswap wrote to it."""
        marks = row.get("external_ids", {})
        if ours is None:
            ours = owned.marked(marks) if owned.is_marked(marks) else _UNMARKED.get(table, set())
        for column, kind in columns(self._found.schema, table).items():
            if column in ours or column in _NOT_SET_BY_ANYBODY.get(table, ()) or column not in row:
                continue
            value = row[column]
            if is_plain_map(kind):
                for key, held in value.items():
                    if f"{column}:{key}" not in ours and not (column == "external_ids" and key in owned.OURS):
                        yield Key(table, name, column, key), held
            elif value and (held := self._value(value, kind)):
                yield Key(table, name, column, ""), held

    def _value(self, value: Any, kind: Any) -> Any:
        """Return ``value`` with rows instead of references to them, and with ports by name."""
        table = refers_to(kind)
        if table is None:
            return value
        if isinstance(value, dict):
            return {str(key): self._referred(table, uuid) for key, uuid in value.items()}
        many = [uuid for uuid in (value if isinstance(value, list) else [value]) if not self._is_ours(table, uuid)]
        return sorted((self._referred(table, uuid) for uuid in many), key=lambda each: json.dumps(each, sort_keys=True))

    def _is_ours(self, table: str, uuid: str) -> bool:
        """Whether a row to which the operator's bridge refers is ours, such as a mirror of a trace."""
        return table != PORT and owned.is_marked(self._found.rows[table].get(uuid, {}).get("external_ids", {}))

    def _referred(self, table: str, uuid: str) -> Any:
        row = self._found.rows[table].get(uuid)
        if row is None:
            return {}
        return row["name"] if table == PORT else self._nested(table, row, frozenset())

    def _nested(self, table: str, row: Mapping[str, Any], without: Collection[str]) -> dict[str, Any]:
        skip = _NOT_SET_BY_ANYBODY.get(table, set())
        return {
            column: self._value(row[column], kind)
            for column, kind in columns(self._found.schema, table).items()
            if column not in skip and column not in without and row[column] not in ("", 0, [], {})
        }


def unknown_columns(value: Any, kind: Any, schema: Mapping[str, Any]) -> set[str]:
    """Return the columns in the nested rows of a column that the tables of another ``schema`` do not have."""
    table, found = refers_to(kind), set()
    for row in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if table is None or table == PORT:
            continue
        kinds = columns(schema, table)
        for column, held in row.items():
            known = column in kinds
            found |= unknown_columns(held, kinds[column], schema) if known else {f"{table}.{column}"}
    return found


def ports_named(value: Any, schema: Mapping[str, Any], table: str) -> set[str]:
    """Return the ports to which a nested row of ``table`` refers."""
    found: set[str] = set()
    for column, kind in columns(schema, table).items():
        if isinstance(value, dict) and column in value and refers_to(kind) == PORT:
            found |= set(value[column])
    return found


def as_json(found: Settings) -> list[list[Any]]:
    return [[*key, value] for key, value in sorted(found.items())]


def from_json(rows: Any) -> Settings:
    """Return the settings that ``as_json`` wrote; they are empty if ``rows`` is anything else."""
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == len(Key._fields) + 1 for row in rows
    ):
        return {}
    return {Key(*map(str, row[:-1])): row[-1] for row in rows}

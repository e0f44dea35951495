"""The rows of an Open_vSwitch database as plain data: reading, comparing, and what to do to make one like another.

This module is pure. A column is a set of atoms (a ``frozenset``, also for a column with exactly one value), or a map (a
``dict``). An atom is a string, number or boolean, or a ``Ref`` to a row. The notation is that of RFC 7047, 5.1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROOT = "Open_vSwitch"
_SHOWN = 60  # characters of a value in a text for people


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A reference to the row with this UUID."""

    uuid: str


Row = dict[str, Any]
Rows = dict[str, dict[str, Row]]
"""By table, then by UUID, then by column."""

# What ovs-vswitchd, ovs-vsctl and ovs-ctl write about a running switch into columns that are not marked as ephemeral
# (vswitchd/bridge.c, the calls of ovsrec_*_set_*; utilities/ovs-ctl.in). It describes that switch alone.
_STATUS = {
    ROOT: {"next_cfg", "cur_cfg", "ovs_version", "db_version", "datapath_types", "iface_types", "dpdk_initialized",
           "dpdk_version"},
    "Bridge": {"datapath_version"},
    "Port": {"bond_active_slave"},
    "Interface": {"ofport", "error", "cfm_flap_count"},
    "Datapath": {"datapath_version", "capabilities"},
}  # fmt: skip
# What the copy is made from besides the configuration: the numbers and addresses that the active switch chose.
CHOSEN = {"Bridge": ("datapath_id",), "Interface": ("ofport", "error", "mac_in_use")}


@dataclass(frozen=True, slots=True)
class Column:
    """``strong``, ``weak``: whether it has references of that kind (ovsdb(7)). ``values``: what it may hold, if that is
    a list. ``optional``: whether it may be empty."""

    ephemeral: bool
    is_map: bool
    strong: bool
    weak: bool
    optional: bool
    values: frozenset[Any] | None


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables and columns of a release. ``root``: tables whose rows live without a reference to them."""

    version: str
    tables: Mapping[str, Mapping[str, Column]]
    root: frozenset[str]

    def configuration(self, table: str) -> list[str]:
        """Return the columns of a table that say what the switch is to be."""
        columns = self.tables.get(table, {})
        return [name for name in columns if not columns[name].ephemeral and name not in _STATUS.get(table, ())]

    def selected(self, table: str) -> list[str]:
        """Return the columns to read of a table."""
        return [*self.configuration(table), *(name for name in CHOSEN.get(table, ()) if name in self.tables[table])]


def parse_schema(document: Mapping[str, Any]) -> Schema:
    """Return the schema in a file ``*.ovsschema`` or an answer to ``get_schema``. Raises KeyError and TypeError."""
    tables = {
        table: {name: _column(column) for name, column in content["columns"].items()}
        for table, content in document["tables"].items()
    }
    root = frozenset(table for table, content in document["tables"].items() if content.get("isRoot"))
    return Schema(str(document["version"]), tables, root)


def _column(document: Mapping[str, Any]) -> Column:
    kind = document["type"]
    if not isinstance(kind, Mapping):
        kind = {"key": kind}
    bases = [base if isinstance(base, Mapping) else {"type": base} for base in (kind["key"], kind.get("value", {}))]
    kinds = {base.get("refType", "strong") for base in bases if "refTable" in base}
    return Column(
        ephemeral=bool(document.get("ephemeral")),
        is_map="value" in kind,
        strong="strong" in kinds,
        weak="weak" in kinds,
        optional=kind.get("min", 1) == 0,
        values=from_json(bases[0]["enum"]) if "enum" in bases[0] else None,
    )


def from_json(value: Any) -> Any:
    """Return a value as a set of atoms or a map."""
    if isinstance(value, list) and value[0] == "set":
        return frozenset(_atom(each) for each in value[1])
    if isinstance(value, list) and value[0] == "map":
        return {_atom(key): _atom(each) for key, each in value[1]}
    return frozenset({_atom(value)})


def to_json(value: Any) -> Any:
    """Return a value in the notation of the database, in which a set of one atom is written as that."""
    if isinstance(value, Mapping):
        return ["map", [[_json_atom(key), _json_atom(each)] for key, each in sorted(value.items())]]
    atoms = [_json_atom(each) for each in sorted(value)]
    return atoms[0] if len(atoms) == 1 else ["set", atoms]


def _atom(value: Any) -> Any:
    return Ref(value[1]) if isinstance(value, list) else value


def _json_atom(value: Any) -> Any:
    return ["uuid", value.uuid] if isinstance(value, Ref) else value


def parse_rows(answers: Mapping[str, list[dict[str, Any]]]) -> Rows:
    """Return the rows in the answers to ``select`` operations, each row with its ``_uuid``."""
    return {
        table: {
            row["_uuid"][1]: {column: from_json(value) for column, value in row.items() if column != "_uuid"}
            for row in rows
        }
        for table, rows in answers.items()
    }


def single(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column with one value at most; ``None`` if it is empty or not there."""
    return next(iter(row.get(column, ())), None)


def refs(value: Any) -> Iterator[Ref]:
    atoms = (*value, *value.values()) if isinstance(value, Mapping) else value
    return (atom for atom in atoms if isinstance(atom, Ref))


def tidy(rows: Rows, schema: Schema) -> Rows:
    """Return the rows that the database would keep: those of root tables, and those to which a kept row has a strong
    reference. References to other rows are taken out, as the database does with weak ones (ovsdb(7))."""
    place = {uuid: table for table, content in rows.items() for uuid in content}
    kept: set[str] = set()
    waiting = [uuid for uuid, table in place.items() if table in schema.root]
    while waiting:
        uuid = waiting.pop()
        if uuid in kept or uuid not in place:
            continue
        kept.add(uuid)
        columns = schema.tables[place[uuid]]
        for name, value in rows[place[uuid]][uuid].items():
            if name in columns and columns[name].strong:
                waiting += [ref.uuid for ref in refs(value)]
    return {
        table: {
            uuid: {name: _without(value, kept) for name, value in row.items()}
            for uuid, row in content.items()
            if uuid in kept
        }
        for table, content in rows.items()
    }


def _without(value: Any, kept: Collection[str]) -> Any:
    def stays(atom: Any) -> bool:
        return not isinstance(atom, Ref) or atom.uuid in kept

    if isinstance(value, Mapping):
        return {key: each for key, each in value.items() if stays(key) and stays(each)}
    return frozenset(atom for atom in value if stays(atom))


def in_schema(rows: Rows, schema: Schema) -> Rows:
    """Return the part of the configuration that a release's schema has a place for."""
    return {
        table: {
            uuid: {
                name: _possible(row[name], schema.tables[table][name])
                for name in schema.configuration(table)
                if name in row
            }
            for uuid, row in content.items()
        }
        for table, content in rows.items()
        if table in schema.tables
    }


def _possible(value: Any, column: Column) -> Any:
    """Return a value without what the column cannot hold, if it can do without."""
    return value & column.values if column.optional and column.values is not None and not column.is_map else value


def losses(rows: Rows, source: Schema, target: Schema) -> list[str]:
    """Return what another schema has no place for: a text for each table, column or value that holds something."""
    found = []
    for table, content in rows.items():
        if table not in target.tables:
            found += [f"table {table}: {len(content)} rows"] if content else []
            continue
        for name in source.configuration(table):
            holders = [(uuid, row[name]) for uuid, row in content.items() if _holds(row.get(name))]
            column = target.tables[table].get(name)
            if column is None:
                found += [f"{name_of(table, uuid, content[uuid])}: {name}={show(value)}" for uuid, value in holders]
            elif column.values is not None:
                unknown = [(uuid, value - column.values) for uuid, value in holders if isinstance(value, frozenset)]
                found += [f"{name_of(table, uuid, content[uuid])}: {name}={show(value)}"
                          for uuid, value in unknown if _holds(value)]  # fmt: skip
    return found


def _holds(value: Any) -> bool:
    """Whether a value is other than the default, which is 0, empty or false (RFC 7047, 5.2.1)."""
    return bool(value) and (isinstance(value, Mapping) or any(value))


def operations(current: Rows, wanted: Rows) -> list[dict[str, Any]]:
    """Return the operations of one transaction that makes ``current`` like ``wanted``, UUIDs included. A column that
    ``wanted`` does not have stays as it is."""
    found: list[dict[str, Any]] = []
    for table in sorted(current.keys() | wanted.keys()):
        before, after = current.get(table, {}), wanted.get(table, {})
        for uuid, row in after.items():
            changed = {name: value for name, value in row.items() if before.get(uuid, {}).get(name) != value}
            columns = {name: to_json(value) for name, value in changed.items()}
            if uuid not in before:  # ovsdb-server(7), 4.1.3: ``uuid`` is an extension of Open vSwitch 2.13
                found.append({"op": "insert", "table": table, "uuid": uuid, "row": columns})
            elif changed:
                where = [["_uuid", "==", ["uuid", uuid]]]
                found.append({"op": "update", "table": table, "where": where, "row": columns})
        gone = [uuid for uuid in before if uuid not in after]
        found += [{"op": "delete", "table": table, "where": [["_uuid", "==", ["uuid", uuid]]]} for uuid in gone]
    return found


def row_differences(current: Rows, wanted: Rows) -> list[str]:
    """Return how ``current`` differs from ``wanted``: a short text for each row that is missing or too much, and for
    each column."""
    found = []
    for table in sorted(current.keys() | wanted.keys()):
        before, after = current.get(table, {}), wanted.get(table, {})
        found += [f"{name_of(table, uuid, row)}: missing" for uuid, row in after.items() if uuid not in before]
        found += [f"{name_of(table, uuid, row)}: too much" for uuid, row in before.items() if uuid not in after]
        for uuid in before.keys() & after.keys():
            name = name_of(table, uuid, after[uuid])
            found += [f"{name}: {column} is {show(before[uuid].get(column, frozenset()))}, not {show(value)}"
                      for column, value in after[uuid].items() if before[uuid].get(column) != value]  # fmt: skip
    return found


def name_of(table: str, uuid: str, row: Mapping[str, Any]) -> str:
    """Return the words by which people know a row."""
    if table == ROOT:
        return table
    name = single(row, "name") if "name" in row else single(row, "target")
    return f"{table} {name or uuid[:8]}"


def show(value: Any) -> str:
    """Return a value in a few words."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{_word(key)}={_word(each)}" for key, each in sorted(value.items())) + "}"
    elif len(value) == 1:
        text = _word(next(iter(value)))
    else:
        text = "[" + ", ".join(map(_word, sorted(value))) + "]"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _word(atom: Any) -> str:
    return atom.uuid[:8] if isinstance(atom, Ref) else str(atom)

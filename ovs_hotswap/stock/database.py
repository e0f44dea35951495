"""Reads the running switch's database in one transaction, which changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.switch.owned import is_marked
from ovs_hotswap.switch.rpc import call, transact
from ovs_hotswap.switch.settings import decode

_TABLES = ("Open_vSwitch", "Bridge", "Port", "Interface", "Mirror", "Controller", "Manager")
_NOT_NEEDED = frozenset({"statistics", "rstp_statistics"})  # most of the text, and nothing that is judged
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """An interface with the port and the bridge that it belongs to."""

    bridge: Row
    port: Row
    interface: Row

    @property
    def name(self) -> str:
        return str(self.interface["name"])


@dataclass(frozen=True, slots=True)
class Database:
    """The rows of each table by UUID, with columns as ``switch.settings.decode`` gives them."""

    tables: Mapping[str, Mapping[str, Row]]

    @property
    def root(self) -> Row:
        return next(iter(self.tables["Open_vSwitch"].values()), {})

    @property
    def bridges(self) -> list[Row]:
        """The bridges by name, without those that ovs-hotswap makes for the time of an upgrade."""
        foreign = (row for row in self.tables["Bridge"].values() if not is_marked(row["external_ids"]))
        return sorted(foreign, key=lambda row: str(row["name"]))

    def of(self, row: Row, column: str, table: str) -> list[Row]:
        """Return the rows of ``table`` to which a column refers."""
        value = row.get(column) or []
        rows = self.tables[table]
        return [rows[uuid] for uuid in ([value] if isinstance(value, str) else value) if uuid in rows]

    def members(self) -> Iterator[Member]:
        """Yield all interfaces of these bridges, by bridge and name, without ports of ovs-hotswap, such as the links of
        wire mode."""
        for bridge in self.bridges:
            foreign = (row for row in self.of(bridge, "ports", "Port") if not is_marked(row["external_ids"]))
            for port in sorted(foreign, key=lambda row: str(row["name"])):
                for interface in sorted(self.of(port, "interfaces", "Interface"), key=lambda row: str(row["name"])):
                    yield Member(bridge, port, interface)


def read(socket: Path, timeout: float = 10.0) -> Database:
    """Read the database behind ``socket``. Raises SwitchError."""
    schema = call(socket, "get_schema", ["Open_vSwitch"], timeout=timeout)["tables"]
    kinds = {
        table: {name: column["type"] for name, column in schema[table]["columns"].items() if name not in _NOT_NEEDED}
        for table in _TABLES
    }
    selects = [
        {"op": "select", "table": table, "where": [], "columns": ["_uuid", *columns]}
        for table, columns in kinds.items()
    ]
    answers = transact(socket, selects, timeout=timeout)
    return Database({
        table: {
            row["_uuid"][1]: {name: decode(row[name], kind) for name, kind in kinds[table].items()}
            for row in answer["rows"]
        }
        for table, answer in zip(kinds, answers, strict=True)
    })  # fmt: skip


def first(values: object) -> Any:
    """Return the value of an optional column; ``None`` if it is empty."""
    return next(iter(values), None) if isinstance(values, list) else values

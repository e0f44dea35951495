"""The new instance's database as a copy of the active one's, with the same row UUIDs.

The copy is written into the empty database of the new ovsdb-server before the new ovs-vswitchd is started: nothing acts
on it before it is complete. The server is that of the new release, and gets the configuration in the form of its own
schema. That is also the conversion, up and down: OVSDB converts by taking over the columns that the other schema has
(ovsdb/ovsdb.c, ovsdb_convert), and here it is known which are lost before it is done. Later copies change only what
differs, each in one transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ovs_hotswap.clone import rows as plain
from ovs_hotswap.clone.changes import Changes, Hold, kernel_bridges, notes, only_ports, only_released, unready, wanted
from ovs_hotswap.clone.rows import ROOT, Rows, Schema, parse_rows, parse_schema, single
from ovs_hotswap.errors import ReleaseError, SwitchError
from ovs_hotswap.model import Release
from ovs_hotswap.switch.ovsdb import ROOT_TABLES, SCHEMA, SwitchDb
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.release import programs
from ovs_hotswap.switch.rpc import quick_call, transact

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Contents:
    """The rows of one database, read in one transaction, and its schema."""

    schema: Schema
    rows: Rows


@dataclass(frozen=True, slots=True)
class Copied:
    """``rows``: how many were copied. ``lost``: what the new release's schema has no place for. ``notes``: what is
    otherwise on the new side because it could not be alike. ``waiting``: ports that the active switch has not looked at
    yet."""

    rows: int
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


def read(paths: InstancePaths, timeout: float = _TIMEOUT_S) -> Contents:
    """Return the configuration of an instance. Raises SwitchError, and NoAnswer after ``timeout`` seconds."""
    try:
        schema = parse_schema(quick_call(paths.db_socket, "get_schema", [SCHEMA], timeout=timeout))
    except (KeyError, TypeError) as error:
        raise SwitchError(f"{paths.db_socket}: its schema cannot be read: {error!r}") from error
    tables = list(schema.tables)
    selects = [{"op": "select", "table": table, "where": [], "columns": ["_uuid", *schema.selected(table)]}
               for table in tables]  # fmt: skip
    answers = transact(paths.db_socket, selects, timeout=timeout)
    return Contents(schema, parse_rows({table: answer["rows"] for table, answer in zip(tables, answers, strict=False)}))


def release_schema(release: Release) -> Schema:
    """Return the schema of a release, from its file. Raises ReleaseError."""
    path = Path(f"{release.root or ''}{programs(release).schema}")
    try:
        return parse_schema(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"release {release.label}: its schema {path} cannot be read: {error}",
                           hint="`ovs-hotswap release list` shows what is wrong with it") from error  # fmt: skip


def losses(active: InstancePaths, release: Release) -> list[str]:
    """Return what of the active's configuration ``release`` has no place for, such as after a downgrade: a text for
    each column that holds something. Nothing is changed. Raises SwitchError and ReleaseError."""
    contents = read(active)
    return plain.losses(contents.rows, contents.schema, release_schema(release))


def copy(active: InstancePaths, new: InstancePaths, release: Release, changes: Changes) -> Copied:
    """Fill the empty database of the new instance of ``release``, whose ovsdb-server runs and whose ovs-vswitchd does
    not.

    All is done in one transaction, or nothing. Raises SwitchError if the database is not empty, if there is a bridge of
    the kernel datapath, if the new server refuses a value, and if one of the two does not answer.
    """
    source, target = read(active), read(new)
    if kernel := kernel_bridges(source.rows):
        raise SwitchError(f"bridges of the kernel datapath cannot be copied: {', '.join(sorted(kernel.values()))}",
                          hint="give them datapath_type=netdev, or remove them")  # fmt: skip
    if any(target.rows.values()):
        raise SwitchError(f"{new.db_socket}: the database is not empty: the copy is made before ovs-vswitchd starts",
                          hint="stop the instance, and start it again")  # fmt: skip
    rows = wanted(source.rows, {}, changes, target.schema, new.run_dir)
    for row in rows.get(ROOT, {}).values():
        versions = {"db_version": target.schema.version, "ovs_version": release.ovs_version}
        row.update({column: frozenset({version}) for column, version in versions.items()})
    transact(new.db_socket, plain.operations({}, rows), timeout=_TIMEOUT_S)
    return Copied(
        rows=sum(map(len, rows.values())),
        lost=tuple(plain.losses(source.rows, source.schema, target.schema)),
        notes=tuple(notes(source.rows, changes)),
        waiting=tuple(sorted(unready(source.rows))),
    )


def bring(active: InstancePaths, new: InstancePaths, changes: Changes) -> list[str]:
    """Make the running new instance's configuration like the active one's, and wait until its ovs-vswitchd has looked
    at it. Returns what differed before. Raises SwitchError; a transaction that fails has changed nothing."""
    current, rows = _both(active, new, changes)
    operations = plain.operations(current, rows)
    if operations:
        transact(new.db_socket, operations, timeout=_TIMEOUT_S)
        _looked(new)
    return plain.row_differences(current, rows)


def give_back(active: InstancePaths, new: InstancePaths, changes: Changes, given: frozenset[Hold]) -> list[str]:
    """Give back what was held back on the new side, as it is on the active one; what else differs stays. Returns what
    was given. Raises SwitchError.

    For the controllers: after this the new side connects to them. Its flows stay.
    """
    left = replace(changes, held=changes.held - given)
    current, rows = _both(active, new, left)
    operations = only_released(plain.operations(current, rows))
    if operations:
        transact(new.db_socket, operations, timeout=_TIMEOUT_S)
        _looked(new)
    return [f"{operation['op']} {operation['table']}: {', '.join(operation['row'])}" for operation in operations]


def bring_ports(active: InstancePaths, new: InstancePaths, changes: Changes) -> list[str]:
    """Add the ports to the new side that the active one has got since the cut, and remove those that have left it. All
    else is the new side's own by then. Returns the names of bridges whose ports have changed. Raises SwitchError."""
    current, rows = _both(active, new, changes)
    operations = only_ports(plain.operations(current, rows))
    if operations:
        transact(new.db_socket, operations, timeout=_TIMEOUT_S)
        _looked(new)
    return sorted(str(single(rows["Bridge"][uuid], "name")) for uuid, row in current.get("Bridge", {}).items()
                  if uuid in rows["Bridge"] and row["ports"] != rows["Bridge"][uuid]["ports"])  # fmt: skip


def differences(active: InstancePaths, new: InstancePaths, changes: Changes) -> list[str]:
    """Return how the new instance differs from what it is to be: its configuration, and the OpenFlow numbers and
    datapath ids that its switch chose. Raises SwitchError."""
    source, target = read(active), read(new)
    rows = wanted(source.rows, target.rows, changes, target.schema, new.run_dir)
    return [
        *plain.row_differences(_configuration(target), rows),
        *(
            f"bridge {name}: of the kernel datapath, not copied"
            for name in sorted(kernel_bridges(source.rows).values())
        ),
        *(f"port {name}: not looked at by the active switch yet" for name in sorted(unready(source.rows))),
        *chosen_differences(source.rows, target.rows),
    ]


def chosen_differences(active: Rows, new: Rows) -> list[str]:
    """Return which ports and bridges of both have another OpenFlow number or datapath id on the new side.

    An internal port that the new side could not make is no difference: its device has the name of the active side's,
    which is exchanged after the cut.
    """
    found = []
    for table, column in (("Interface", "ofport"), ("Bridge", "datapath_id")):
        for uuid, row in new.get(table, {}).items():
            before, now = single(active.get(table, {}).get(uuid, {}), column), single(row, column)
            if before in (None, now, -1) or (single(row, "type") == "internal" and now in (None, -1)):
                continue
            found.append(f"{plain.name_of(table, uuid, row)}: {column} is {now}, not {before}")
    return found


def bridges(contents: Contents) -> list[str]:
    """Return the names of the bridges, sorted."""
    return sorted(str(single(row, "name")) for row in contents.rows.get("Bridge", {}).values())


def _both(active: InstancePaths, new: InstancePaths, changes: Changes) -> tuple[Rows, Rows]:
    source, target = read(active), read(new)
    if source.rows[ROOT].keys() != target.rows[ROOT].keys():
        raise SwitchError(f"{new.db_socket}: this database was not made as a copy of {active.db_socket}",
                          hint="stop the instance, and start it again")  # fmt: skip
    return _configuration(target), wanted(source.rows, target.rows, changes, target.schema, new.run_dir)


def _configuration(contents: Contents) -> Rows:
    return plain.in_schema(contents.rows, contents.schema)


def _looked(new: InstancePaths) -> None:
    with SwitchDb(new.db_socket, _TIMEOUT_S, tables=ROOT_TABLES) as database:
        database.wait_pass(_TIMEOUT_S)

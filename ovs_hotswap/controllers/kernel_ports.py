"""Devices of the kernel that are ports of the switch, such as the veths of metadata and DHCP agents.

Two switches that have such a device both get each frame from it. So the copy of the database is without these ports
until the cut (``clone.changes.Changes.without``). Then, one right after the other: ``take`` on the old database, the
ports are copied into the new one, and ``give`` on the new database.

``take`` makes an interface a patch port without a peer: the switch closes the device, and the row, its UUID, the port
and its OpenFlow number stay. What it was is in ``external_ids`` of the row, so ``give`` undoes it, also after this
process was killed, and also in a copy of the row.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ovs_hotswap.switch.rpc import transact

KEPT = "ovs-hotswap-interface"
_NO_PEER = "ovs-hotswap-none"
_ASK_S = 5.0
_COLUMNS = ("type", "options")

Row = dict[str, Any]


def take(socket: Path, names: Collection[str]) -> tuple[str, ...]:
    """Have a switch close these devices. Returns those that it had open; repeated, none. Its undo is ``give``. Raises
    SwitchError; then nothing was changed."""
    rows = [row for row in _interfaces(socket, names) if KEPT not in dict(row["external_ids"][1])]
    _update(socket, [
        (row, {
            "type": "patch", "options": ["map", [["peer", _NO_PEER]]],
            "external_ids": ["map", [*row["external_ids"][1],
                                     [KEPT, json.dumps({name: row[name] for name in _COLUMNS})]]],
        })
        for row in rows
    ])  # fmt: skip
    return tuple(row["name"] for row in rows)


def give(socket: Path, names: Collection[str]) -> tuple[str, ...]:
    """Have a switch open the devices that were taken from it, and return them. It may be repeated. Raises SwitchError;
    then nothing was changed."""
    given = []
    for row in _interfaces(socket, names):
        ids = dict(row["external_ids"][1])
        if KEPT in ids:
            before = json.loads(ids.pop(KEPT))
            given.append((row, {**before, "external_ids": ["map", [list(pair) for pair in ids.items()]]}))
    _update(socket, given)
    return tuple(row["name"] for row, _ in given)


def _interfaces(socket: Path, names: Collection[str]) -> list[Row]:
    columns = ["_uuid", "name", *_COLUMNS, "external_ids"]
    select: Row = {"op": "select", "table": "Interface", "where": [], "columns": columns}
    rows: list[Row] = transact(socket, [select], timeout=_ASK_S)[0]["rows"]
    return [row for row in rows if row["name"] in names]


def _update(socket: Path, changes: list[tuple[Row, Row]]) -> None:
    if not changes:
        return
    operations: list[Row] = [
        {"op": "update", "table": "Interface", "where": [["_uuid", "==", row["_uuid"]]], "row": columns}
        for row, columns in changes
    ]
    operations.append({"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]})
    transact(socket, operations, timeout=_ASK_S)

"""Which values of a row in an instance's database ovs-hotswap wrote ("ours"), and which the operator did.

This module is pure. The operator may set anything in the database of a running instance: options of a port, policing, a
mirror, a new port. So no row is assigned as a whole. A row of ours has a *mark* in ``external_ids`` that names what we
wrote into it; what the mark does not name is not ours, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

MARK = "ovs-hotswap"
"""The key in ``external_ids``: of an interface and a bridge with the names of what is ours, of Open_vSwitch with the
keys and values that were last written to ``other_config``."""
CONFIGURED_SLEEP = "ovs-hotswap-pmd-sleep"
"""The key in ``external_ids`` of Open_vSwitch: the ``pmd_sleep_us`` of the configuration that was given last."""
CARRIED = "ovs-hotswap-carried"
"""The key in ``external_ids`` of Open_vSwitch: what was carried over from the other instance (``settings``)."""
PROGRAMMED_TUNNELS = "ovs-hotswap-tunnels"
"""The key in ``external_ids`` of Open_vSwitch: the addresses, routes and neighbours that were programmed last."""
OURS = frozenset({MARK, CONFIGURED_SLEEP, CARRIED, PROGRAMMED_TUNNELS})


def is_marked(external_ids: Mapping[str, str]) -> bool:
    return MARK in external_ids


def made_here(interface: Mapping[str, Any], sockets: str) -> bool:
    """Whether an interface, given by its columns, is ours.

    It has our mark; or it was made by an earlier version, which made no marks: then it is a VM's port for a socket in
    ``sockets``, the directory in which only ovs-hotswap makes them.
    """
    if is_marked(interface["external_ids"]):
        return True
    path = interface["options"].get("vhost-server-path", "")
    return bool(sockets) and interface["type"] == "dpdkvhostuserclient" and str(PurePath(path).parent) == sockets


def marked(external_ids: Mapping[str, str]) -> set[str]:
    """Return the names of what is ours: ``mtu_request``, or ``options:n_rxq`` for a key of a column."""
    return set(external_ids.get(MARK, "").split())


def merged(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row of ours as they are to be, including ``external_ids`` with the mark.

    ``current`` has the row's columns, and is empty for a new row. ``wanted`` is what we want in it: a mapping stands
    for its keys only, and ``None`` for a column that we no longer want. What we wrote before and do not want now is
    removed.
    """
    external_ids = dict(current.get("external_ids", {}))
    before = marked(external_ids)
    columns: dict[str, Any] = {}
    ours = set()
    for column, value in wanted.items():
        if isinstance(value, Mapping):
            kept = {k: v for k, v in current.get(column, {}).items() if f"{column}:{k}" not in before}
            columns[column] = {**kept, **value}
            ours |= {f"{column}:{key}" for key in value}
        elif value is not None:
            columns[column] = value
            ours.add(column)
        elif column in before:
            columns[column] = []
    columns["external_ids"] = {**external_ids, MARK: " ".join(sorted(ours))}
    return columns


def written(external_ids: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of Open_vSwitch.other_config that we wrote, with the values that they had then."""
    try:
        found = json.loads(external_ids.get(MARK, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def remember(external_ids: Mapping[str, str], values: Mapping[str, str | None]) -> dict[str, str]:
    """Return ``external_ids`` of Open_vSwitch after ``values`` were written to its ``other_config``."""
    now = {key: value for key, value in {**written(external_ids), **values}.items() if value is not None}
    return {**external_ids, MARK: json.dumps(now, sort_keys=True)}

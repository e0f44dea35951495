"""The OpenFlow controllers and the database's managers, which belong to one instance at a time.

A bridge connects to the controllers of its row, such as ``tcp:127.0.0.1:6633`` of Neutron's agent, which must not see
two switches with one datapath id. The old instance's bridges keep their controllers, with a target where nothing
listens: ovs-vswitchd deletes all flows of a bridge whose last controller goes (ofproto/connmgr.c,
connmgr_set_controllers). What a row had before is in ``external_ids`` of the same row, in the same transaction.

A manager, such as ``ptcp:6640:127.0.0.1``, is served by an ovsdb-server that was given the remote ``MANAGERS``, by its
command line or, as ovs-ctl does it (add_managers), at run time. Two could not listen on one port.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.column_values import map_of, pairs, uuids
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.unixctl import appctl

MANAGERS = "db:Open_vSwitch,Open_vSwitch,manager_options"
TARGET, FAIL_MODE = "ovs-hotswap-target", "ovs-hotswap-fail-mode"
_RUN_DIR = "/var/run/openvswitch"
_PASSIVE = ("ptcp:", "pssl:", "punix:")
_SECURE = "secure"
_ASK_S = 5.0

Row = dict[str, Any]
"""Columns of a row in the notation of RFC 7047, section 5.1, such as ``["set", []]``."""


def serve_managers(ovsdb_ctl: Path) -> None:
    """Have an ovsdb-server connect to the managers that its database names, or listen for them. Its undo is
    ``leave_managers``. It is to be repeated after the server was started again. Raises SwitchError."""
    if MANAGERS not in _served(ovsdb_ctl):
        appctl(ovsdb_ctl, "ovsdb-server/add-remote", MANAGERS)


def leave_managers(ovsdb_ctl: Path) -> None:
    """Have an ovsdb-server end its connections to managers, and not listen for any. Raises SwitchError."""
    if MANAGERS in _served(ovsdb_ctl):
        appctl(ovsdb_ctl, "ovsdb-server/remove-remote", MANAGERS)


def _served(ovsdb_ctl: Path) -> list[str]:
    return appctl(ovsdb_ctl, "ovsdb-server/list-remotes").split()


def hold(socket: Path) -> tuple[str, ...]:
    """Disconnect all bridges of a database's switch from their controllers; their flows stay.

    Returns the targets. It may be repeated. Its undo is ``release``. Raises SwitchError; then nothing was changed.
    """
    root, bridges, controllers = _read(socket)
    run_dir = pairs(root["external_ids"]).get("rundir", _RUN_DIR)
    operations, held = [], []
    for bridge in bridges:
        rows = [controllers[uuid] for uuid in uuids(bridge["controller"])]
        left = [row for row in rows if TARGET not in pairs(row["external_ids"])]
        if not left:
            continue
        ids = pairs(bridge["external_ids"])
        if FAIL_MODE not in ids:
            ids[FAIL_MODE] = bridge["fail_mode"] if isinstance(bridge["fail_mode"], str) else ""
            operations.append(_update("Bridge", bridge, {"fail_mode": _SECURE, "external_ids": map_of(ids)}))
        for row in left:
            held.append(str(row["target"]))
            operations.append(_update("Controller", row, {
                "target": nowhere(held[-1], run_dir, bridge["name"], row["_uuid"][1]),
                "external_ids": map_of({**pairs(row["external_ids"]), TARGET: held[-1]}),
            }))  # fmt: skip
    _change(socket, operations)
    return tuple(held)


def release(socket: Path) -> tuple[str, ...]:
    """Have all bridges connect to the controllers that they had before ``hold``, and return these. It may be repeated.
    Raises SwitchError; then nothing was changed."""
    _, bridges, controllers = _read(socket)
    operations, released = [], []
    for row in controllers.values():
        ids = pairs(row["external_ids"])
        if TARGET in ids:
            released.append(ids.pop(TARGET))
            operations.append(_update("Controller", row, {"target": released[-1], "external_ids": map_of(ids)}))
    for bridge in bridges:
        ids = pairs(bridge["external_ids"])
        if FAIL_MODE in ids:
            mode = ids.pop(FAIL_MODE)
            row = {"fail_mode": mode or ["set", []], "external_ids": map_of(ids)}
            operations.append(_update("Bridge", bridge, row))
    _change(socket, operations)
    return tuple(released)


def nowhere(target: str, run_dir: str, bridge: str, uuid: str) -> str:
    """Return a target at which nothing listens or which no other program knows. A controller that connects to the
    bridge becomes another one that does, because the two kinds are counted apart; and ovs-vswitchd takes sockets in its
    own run directory only (vswitchd/bridge.c, bridge_configure_remotes)."""
    name = f"{bridge}.held-{uuid[:8]}"
    return f"punix:{run_dir}/{name}" if target.startswith(_PASSIVE) else f"unix:{name}"


def _read(socket: Path) -> tuple[Row, list[Row], dict[str, Row]]:
    """The root row, the bridges, and the controllers by UUID."""
    columns = {
        "Open_vSwitch": ["external_ids"],
        "Bridge": ["_uuid", "name", "controller", "fail_mode", "external_ids"],
        "Controller": ["_uuid", "target", "external_ids"],
    }
    selects = [{"op": "select", "table": table, "where": [], "columns": names} for table, names in columns.items()]
    root, bridges, controllers = (each["rows"] for each in transact(socket, selects, timeout=_ASK_S))
    if not root:
        raise SwitchError(f"{socket}: the database has no row of Open_vSwitch", hint="`ovs-vsctl init`")
    return root[0], bridges, {row["_uuid"][1]: row for row in controllers}


def _change(socket: Path, operations: list[Row]) -> None:
    if operations:
        # next_cfg has ovs-vswitchd look at its configuration (ovs-vswitchd.conf.db(5)).
        look: Row = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]}
        transact(socket, [*operations, look], timeout=_ASK_S)


def _update(table: str, row: Row, columns: Row) -> Row:
    return {"op": "update", "table": table, "where": [["_uuid", "==", row["_uuid"]]], "row": columns}

"""The flow log's rows in the database of one instance: where its ovs-vswitchd exports to, and how it gathers.

The row of Flow_Sample_Collector_Set has our mark (``owned``), so that it counts as nothing that the operator set. An
ovs-vswitchd that loses the row exports what it still holds, before it looks at its next configuration
(ofproto/ofproto-dpif-ipfix.c, dpif_ipfix_exporter_clear). One that ends may lose it, and one that is killed does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovs_hotswap.config_flowlog import IPFIX_PORT, FlowLogConfig
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.overlay.flow_samples import COLLECTOR_SET
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.ovsdb import SCHEMA
from ovs_hotswap.switch.rpc import transact

TARGET = f"127.0.0.1:{IPFIX_PORT}"
"""Where an instance sends its records: to the relay, which listens in the instance's network namespace. From there no
collector can be reached."""
_ANSWER_S = 5.0
_SET, _IPFIX = "Flow_Sample_Collector_Set", "IPFIX"

Operations = list[dict[str, Any]]


def wanted(flow_log: FlowLogConfig) -> dict[str, Any]:
    """The columns of the row of IPFIX, as RFC 7047, 5.1, writes them. Templates of tunnels are never needed: what is
    looked at has left its tunnel, or has not entered it."""
    return {
        "targets": TARGET,
        "cache_active_timeout": flow_log.export_s,
        "cache_max_flows": flow_log.cache_flows,
        "other_config": ["map", [["enable-tunnel-sampling", "false"]]],
    }


def look() -> Operations:
    """The operations whose answers ``changes`` takes."""
    return [
        {"op": "select", "table": _SET, "where": [["id", "==", COLLECTOR_SET]], "columns": ["ipfix"]},
        {"op": "select", "table": _IPFIX, "where": [], "columns": ["_uuid", *wanted(FlowLogConfig())]},
        {"op": "select", "table": "Bridge", "where": [], "columns": ["_uuid", "name"]},
    ]


def changes(found: list[Mapping[str, Any]], bridge: str, flow_log: FlowLogConfig) -> Operations:
    """The operations that bring the rows to ``flow_log``; none if they are so. Raises SwitchError if there is no such
    bridge."""
    present, rows, bridges = (each["rows"] for each in found)
    if not flow_log.on:
        return [_removal()] if present else []
    here = next((row["_uuid"] for row in bridges if row["name"] == bridge), None)
    if here is None:
        raise SwitchError(f"there is no bridge {bridge} for the flow log")
    columns = wanted(flow_log)
    if present:
        row = next((each for each in rows if each["_uuid"] == present[0]["ipfix"]), None)
        if row is not None:
            if all(row[name] == value for name, value in columns.items()):
                return []
            return [{"op": "update", "table": _IPFIX, "where": [["_uuid", "==", row["_uuid"]]], "row": columns}]
    made = {"op": "insert", "table": _IPFIX, "row": columns, "uuid-name": "log"}
    row = {"id": COLLECTOR_SET, "bridge": here, "ipfix": ["named-uuid", "log"],
           "external_ids": ["map", [[owned.MARK, "id ipfix"]]]}  # fmt: skip
    return [*([_removal()] if present else []), made, {"op": "insert", "table": _SET, "row": row}]


def _removal() -> dict[str, Any]:
    """The row of IPFIX goes with the last reference to it (RFC 7047, 3.2, isRoot)."""
    return {"op": "delete", "table": _SET, "where": [["id", "==", COLLECTOR_SET]]}


def put(socket: Path, bridge: str, flow_log: FlowLogConfig, timeout: float = _ANSWER_S) -> bool:
    """Bring the rows of a database to ``flow_log``, and return whether anything changed. Raises SwitchError."""
    operations = changes(transact(socket, look(), timeout=timeout), bridge, flow_log)
    if operations:
        transact(socket, [*operations, _count()], timeout=timeout)
    return bool(operations)


def lacks(socket: Path, bridge: str, flow_log: FlowLogConfig, timeout: float = _ANSWER_S) -> bool:
    """Whether ``put`` would change anything. Raises SwitchError."""
    return bool(changes(transact(socket, look(), timeout=timeout), bridge, flow_log))


def _count() -> dict[str, Any]:
    """``wait_ports`` and ``wait_pass`` know by ``next_cfg`` what ovs-vswitchd has seen."""
    return {"op": "mutate", "table": SCHEMA, "where": [], "mutations": [["next_cfg", "+=", 1]]}


def remove(socket: Path, timeout: float = _ANSWER_S) -> bool:
    """Remove the rows, and return whether there were any. Raises SwitchError."""
    done = transact(socket, [_removal(), _count()], timeout=timeout)
    return bool(done[0]["count"])

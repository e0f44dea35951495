"""A small Open_vSwitch schema in the form of vswitch.ovsschema, and databases of it as plain rows."""

from __future__ import annotations

from typing import Any

from ovs_hotswap.clone.rows import Ref, Rows, parse_schema


def many(kind: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": 0, "max": "unlimited"}}


def maybe(kind: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": 0, "max": 1}}


def to(table: str, **more: Any) -> dict[str, Any]:
    return {"type": "uuid", "refTable": table, **more}


def numbered(table: str) -> dict[str, Any]:
    return {"type": {"key": "integer", "value": to(table), "min": 0, "max": "unlimited"}}


MAP = {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}
MAPS = {"other_config": MAP, "external_ids": MAP}
STATUS = {**MAP, "ephemeral": True}
VERSIONS = {"type": "string", "enum": ["set", ["OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"]]}
SCHEMA: dict[str, Any] = {
    "name": "Open_vSwitch",
    "version": "8.3.1",
    "tables": {
        "Open_vSwitch": {"isRoot": True, "columns": {
            "bridges": many(to("Bridge")), "manager_options": many(to("Manager")), **MAPS, "statistics": STATUS,
            "datapaths": {"type": {"key": "string", "value": to("Datapath"), "min": 0, "max": "unlimited"}},
            "next_cfg": {"type": "integer"}, "ovs_version": maybe("string"), "db_version": maybe("string")}},
        "Bridge": {"columns": {
            "name": {"type": "string"}, "datapath_type": {"type": "string"}, "ports": many(to("Port")),
            "mirrors": many(to("Mirror")),
            "sflow": maybe(to("sFlow")), "ipfix": maybe(to("IPFIX")), "netflow": maybe(to("NetFlow")),
            "controller": many(to("Controller")), "protocols": many(VERSIONS), "fail_mode": maybe("string"),
            "flow_tables": numbered("Flow_Table"), "datapath_id": {**maybe("string"), "ephemeral": True}, **MAPS}},
        "Port": {"columns": {
            "name": {"type": "string"}, "interfaces": many(to("Interface")), "tag": maybe("integer"),
            "qos": maybe(to("QoS")), **MAPS}},
        "Interface": {"columns": {
            "name": {"type": "string"}, "type": {"type": "string"}, "options": MAP, "ofport": maybe("integer"),
            "ofport_request": maybe("integer"), "error": maybe("string"), **MAPS,
            "mac_in_use": {**maybe("string"), "ephemeral": True}}},
        "Flow_Table": {"columns": {"name": maybe("string")}},
        "QoS": {"isRoot": True, "columns": {"type": {"type": "string"}, "queues": numbered("Queue"), **MAPS}},
        "Queue": {"isRoot": True, "columns": {"dscp": maybe("integer"), **MAPS}},
        "Mirror": {"columns": {
            "name": {"type": "string"}, "select_all": {"type": "boolean"},
            "output_port": maybe(to("Port", refType="weak")), "external_ids": MAP}},
        "sFlow": {"columns": {"targets": many("string")}},
        "IPFIX": {"columns": {"targets": many("string")}},
        "NetFlow": {"columns": {"targets": many("string")}},
        "Datapath": {"columns": {"external_ids": MAP}},
        "Controller": {"columns": {
            "target": {"type": "string"}, "is_connected": {"type": "boolean", "ephemeral": True}}},
        "Manager": {"columns": {"target": {"type": "string"}}},
    },
}  # fmt: skip
PARSED = parse_schema(SCHEMA)


def row(table: str, **columns: Any) -> dict[str, Any]:
    """A row with the columns that ``select`` returns: a list for a set of values, another value for a set of one."""
    found: dict[str, Any] = {}
    for name in PARSED.selected(table):
        value = columns.pop(name, {} if PARSED.tables[table][name].is_map else [])
        found[name] = value if isinstance(value, dict) else frozenset(value if isinstance(value, list) else [value])
    assert not columns
    return found


def host() -> Rows:
    """A stock host: a bridge with a VM, its local port, a mirror, a controller, sFlow and a queue."""
    return {
        "Open_vSwitch": {"root": row(
            "Open_vSwitch", bridges=[Ref("br")], manager_options=[Ref("manager")],
            other_config={"dpdk-init": "true", "dpdk-extra": "-a x", "max-idle": "5000"},
            external_ids={"system-id": "h1"})},
        "Bridge": {"br": row(
            "Bridge", name="br-int", datapath_type="netdev", ports=[Ref("p-vm1"), Ref("p-local")],
            mirrors=[Ref("mirror")], sflow=[Ref("flow")],
            controller=[Ref("c0ffee00-1"), Ref("deadbeef-1")], protocols=["OpenFlow10", "OpenFlow13"],
            flow_tables={3: Ref("three")}, datapath_id="0000000000000042",
            external_ids={"ct-zone-vm1": "5"})},
        "Port": {
            "p-vm1": row("Port", name="vm1", interfaces=[Ref("i-vm1")], tag=5, qos=[Ref("qos")]),
            "p-local": row("Port", name="br-int", interfaces=[Ref("i-local")])},
        "Interface": {
            "i-vm1": row("Interface", name="vm1", type="dpdkvhostuserclient", ofport=7,
                         options={"vhost-server-path": "/run/vm1"}, other_config={"pmd-rxq-affinity": "0:1,1:3"}),
            "i-local": row("Interface", name="br-int", type="internal", ofport=65534,
                           mac_in_use="02:00:00:00:00:01")},
        "Flow_Table": {"three": row("Flow_Table", name="three")},
        "QoS": {"qos": row("QoS", type="linux-htb", queues={0: Ref("queue")})},
        "Queue": {"queue": row("Queue", dscp=4)},
        "Mirror": {"mirror": row("Mirror", name="m", select_all=True, output_port=[Ref("p-vm1")])},
        "sFlow": {"flow": row("sFlow", targets=["192.0.2.1:6343"])},
        "Controller": {
            "c0ffee00-1": row("Controller", target="tcp:127.0.0.1:6633"),
            "deadbeef-1": row("Controller", target="ptcp:6634")},
        "Manager": {"manager": row("Manager", target="ptcp:6640:127.0.0.1")},
    }  # fmt: skip

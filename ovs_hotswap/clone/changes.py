"""How the new instance's database differs from the active one's until the cut. This module is pure.

Until the cut nothing but the clone may program the new side, and it must not answer for the host to anything outside.
So three things of a bridge are *held back*, and given back afterwards (``Hold``):

- Controllers keep their rows, with a target in the new side's run directory where nothing listens. Leaving them out is
  no way: ovs-vswitchd deletes all flows of a bridge when its first controller comes or its last one goes
  (ofproto/connmgr.c, connmgr_set_controllers). A bridge that would forward by itself without a controller is "secure"
  until then.
- The OpenFlow versions of the bridge get those in addition that the copy is written with: also the management socket
  obeys ``protocols`` (vswitchd/bridge.c, bridge_configure_remotes).
- Mirrors, sFlow, IPFIX and NetFlow would report each frame that the new side passes to the old one a second time.

Before the pipeline is there, a bridge without a controller forwards as a learning switch. So the ports to the outside
are to be among those that the first copy leaves out (``Changes.without``): then no frame comes in.

Bridges of the kernel datapath are never copied. The kernel has one datapath for all processes, and a second
ovs-vswitchd would take it away from the first (lib/dpif-netlink.c, ofproto/ofproto-dpif.c, open_dpif_backer).

Manager rows are copied as they are: only ovsdb-server acts on them, and only if it was started with
``--remote=db:Open_vSwitch,Open_vSwitch,manager_options``, which that of an instance is not.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovs_hotswap.clone.rows import ROOT, Row, Rows, Schema, in_schema, name_of, refs, single, tidy
from ovs_hotswap.config import InstanceConfig
from ovs_hotswap.switch import owned

MAX_PORT = 65279  # vswitch.ovsschema, Interface.ofport_request
# Those with bundles, and the one with actions that no other has (``dumps``).
NEEDED = ("OpenFlow10", "OpenFlow14", "OpenFlow15")

# Keys of Open_vSwitch.other_config that say how one process uses the machine (ovs-vswitchd.conf.db(5)). Each side has
# its own.
PROCESS_KEYS = frozenset({
    "dpdk-init", "dpdk-lcore-mask", "dpdk-socket-mem", "dpdk-socket-limit", "dpdk-alloc-mem", "dpdk-hugepage-dir",
    "dpdk-extra", "pmd-cpu-mask", "flow-restore-wait",
})  # fmt: skip
_OBSERVERS = {"mirrors": "Mirror", "sflow": "sFlow", "ipfix": "IPFIX", "netflow": "NetFlow"}
_PASSIVE = ("ptcp:", "pssl:", "punix:")
_AFFINITY = "pmd-rxq-affinity"
_KERNEL = "system"


class Hold(enum.Enum):
    """What is held back on the new side until the cut."""

    CONTROLLERS = "controllers"
    OBSERVERS = "mirrors, sFlow, IPFIX and NetFlow"


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be otherwise on the new side.

    ``other_config``: keys of Open_vSwitch.other_config; ``None`` removes one. ``interfaces``: by name, then by column
    (``options``, ``other_config``), keys to set or remove: the device of a port that two instances cannot both have.
    ``without``: names of ports that the new side does not get yet. ``held``: what is held back. ``cores``: those of the
    new side's PMD threads; a queue that is bound to another core would not be polled (lib/dpif-netdev.c,
    sched_numa_list_assignments), so its binding is left out.
    """

    other_config: Mapping[str, str | None] = field(default_factory=dict)
    interfaces: Mapping[str, Mapping[str, Mapping[str, str | None]]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    held: frozenset[Hold] = frozenset(Hold)
    cores: frozenset[int] | None = None


def changes_of(instance: InstanceConfig) -> Changes:
    """Return the changes for an instance with this configuration: its devices and cores. What it uses of the machine is
    set when it starts (``Instance.start``)."""
    devices = {name: {"options": {"dpdk-devargs": device}} for name, device in instance.port_devices.items()}
    return Changes(interfaces=devices, cores=frozenset(instance.pmd_cores))


def ours(rows: Rows) -> set[str]:
    """Return the UUIDs of the rows that are parts of ovs-hotswap: those with its mark (``owned``), the ports of marked
    interfaces, and all of a marked bridge."""
    found = {uuid for content in rows.values() for uuid, row in content.items()
             if isinstance(row.get("external_ids"), Mapping) and owned.is_marked(row["external_ids"])}  # fmt: skip
    found -= rows.get(ROOT, {}).keys()
    ports = rows.get("Port", {})
    for uuid, bridge in rows.get("Bridge", {}).items():
        if uuid in found:
            found |= {ref.uuid for name in ("ports", "mirrors") for ref in refs(bridge.get(name, ()))}
    for uuid, port in ports.items():
        interfaces = {ref.uuid for ref in refs(port["interfaces"])}
        if uuid in found:
            found |= interfaces
        elif interfaces & found:
            found.add(uuid)
    return found


def kernel_bridges(rows: Rows) -> dict[str, str]:
    """Return the names of the bridges of the kernel datapath, by UUID (ofproto/ofproto.c, ofproto_normalize_type)."""
    return {uuid: str(single(row, "name")) for uuid, row in rows.get("Bridge", {}).items()
            if (single(row, "datapath_type") or _KERNEL) == _KERNEL}  # fmt: skip


def unready(rows: Rows) -> set[str]:
    """Return the names of ports that the active ovs-vswitchd has not looked at yet: they have neither a number nor an
    error. A copy would give them a number of its own, so they wait."""
    interfaces = rows.get("Interface", {})
    return {
        str(single(port, "name"))
        for port in rows.get("Port", {}).values()
        if any(not row.get("ofport") and not row.get("error")
               for row in (interfaces.get(ref.uuid, {}) for ref in refs(port["interfaces"])))
    }  # fmt: skip


def wanted(active: Rows, new: Rows, changes: Changes, schema: Schema, run_dir: Path) -> Rows:
    """Return what the new instance's configuration is to be, without what its schema has no place for.

    ``active`` and ``new`` are the rows of both; what ``new`` has of ovs-hotswap's own stays. ``schema`` and ``run_dir``
    are those of the new instance.
    """
    absent = changes.without | unready(active)
    gone = ours(active) | kernel_bridges(active).keys()
    gone |= {uuid for uuid, port in active.get("Port", {}).items() if single(port, "name") in absent}
    rows = {
        table: {uuid: dict(row) for uuid, row in content.items() if uuid not in gone}
        for table, content in active.items()
    }
    _keep_numbers(rows)
    for interface in rows.get("Interface", {}).values():
        for column, keys in changes.interfaces.get(str(single(interface, "name")), {}).items():
            interface[column] = _changed(interface.get(column, {}), keys)
        if changes.cores is not None and unpolled(interface, changes.cores):
            interface["other_config"] = _changed(interface["other_config"], {_AFFINITY: None})
    if Hold.CONTROLLERS in changes.held:
        _hold_controllers(rows, schema, run_dir)
    if Hold.OBSERVERS in changes.held:
        for bridge in rows.get("Bridge", {}).values():
            bridge.update({column: frozenset() for column in _OBSERVERS if column in bridge})
    _keep_own(rows, new)
    _root(rows, new, changes)
    return tidy(in_schema(rows, schema), schema)


def unpolled(interface: Row, cores: frozenset[int]) -> bool:
    """Whether a queue of an interface is bound to a core without a PMD thread. The value is QUEUE:CORE,..."""
    pairs = interface.get("other_config", {}).get(_AFFINITY, "").split(",")
    named = {pair.partition(":")[2].strip() for pair in pairs if ":" in pair}
    return any(not core.isdigit() or int(core) not in cores for core in named)


def notes(active: Rows, changes: Changes) -> list[str]:
    """Return what the new side lacks by ``changes``, in words for people."""
    found = []
    for uuid, row in active.get("Interface", {}).items():
        if changes.cores is not None and unpolled(row, changes.cores):
            value = row["other_config"][_AFFINITY]
            found.append(f"{name_of('Interface', uuid, row)}: {_AFFINITY}={value} names cores without a PMD thread")
    return found


def _keep_numbers(rows: Rows) -> None:
    """Have the new switch choose the OpenFlow numbers, datapath ids and MAC addresses that the active one has."""
    names = {}
    for interface in rows.get("Interface", {}).values():
        number = single(interface, "ofport")
        if isinstance(number, int) and 0 < number <= MAX_PORT:
            interface["ofport_request"] = frozenset({number})
        names[single(interface, "name")] = interface
    for bridge in rows.get("Bridge", {}).values():
        config = bridge["other_config"] = dict(bridge["other_config"])
        if number := single(bridge, "datapath_id"):
            config["datapath-id"] = number
        if mac := single(names.get(single(bridge, "name"), {}), "mac_in_use"):
            config.setdefault("hwaddr", mac)


def _hold_controllers(rows: Rows, schema: Schema, run_dir: Path) -> None:
    controllers = rows.get("Controller", {})
    versions = schema.tables["Bridge"]["protocols"].values or frozenset()
    for bridge in rows.get("Bridge", {}).values():
        # vswitchd/bridge.c, bridge_configure_remotes, takes sockets only in the run directory.
        base = f"{run_dir}/{single(bridge, 'name')}"
        primary = False
        for ref in refs(bridge["controller"]):
            row = controllers[ref.uuid]
            passive = str(single(row, "target")).startswith(_PASSIVE)
            primary |= not passive
            row["target"] = frozenset({f"{'punix' if passive else 'unix'}:{base}.held-{ref.uuid[:8]}"})
        if primary:
            bridge["fail_mode"] = frozenset({"secure"})
        if bridge["protocols"]:
            bridge["protocols"] |= versions & frozenset(NEEDED)


def _keep_own(rows: Rows, new: Rows) -> None:
    """Add what the new side has of ovs-hotswap's own, and the references to it."""
    own = ours(new)
    for table, content in new.items():
        for uuid, row in content.items():
            if uuid in own:
                rows.setdefault(table, {})[uuid] = dict(row)
            elif (copy := rows.get(table, {}).get(uuid)) is not None:
                for column, value in row.items():
                    if isinstance(value, frozenset) and column in copy:
                        copy[column] |= {ref for ref in refs(value) if ref.uuid in own}


def _root(rows: Rows, new: Rows, changes: Changes) -> None:
    """Give Open_vSwitch the keys that each side has for itself."""
    before: Row = next(iter(new.get(ROOT, {}).values()), {})
    ids, config = before.get("external_ids", {}), before.get("other_config", {})
    own = PROCESS_KEYS | owned.written(ids).keys()
    for row in rows.get(ROOT, {}).values():
        row["datapaths"] = {key: value for key, value in row.get("datapaths", {}).items() if key != _KERNEL}
        shared = {key: value for key, value in row["other_config"].items() if key not in own}
        kept = {key: value for key, value in config.items() if key in own}
        row["other_config"] = _changed({**shared, **kept}, changes.other_config)
        row["external_ids"] = {
            **{key: value for key, value in row["external_ids"].items() if key not in owned.OURS},
            **{key: value for key, value in ids.items() if key in owned.OURS},
        }


def _changed(current: Mapping[str, str], keys: Mapping[str, str | None]) -> dict[str, Any]:
    return {key: value for key, value in {**current, **keys}.items() if value is not None}


RELEASED = {"Bridge": frozenset({"fail_mode", "protocols", *_OBSERVERS}), "Controller": frozenset({"target"})}
"""The columns that are given back when nothing is held back any longer."""


_OF_PORTS = ("Port", "Interface", "QoS", "Queue")


def only_ports(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of the operations of a transaction those by which ports come and go, with what they refer to. Ports that
    both sides have stay as they are."""
    found = [each for each in operations if each["op"] == "insert" and each["table"] in _OF_PORTS]
    found += [each for each in operations if each["op"] == "delete" and each["table"] in _OF_PORTS[:2]]
    for operation in operations:
        if operation["op"] == "update" and operation["table"] == "Bridge" and "ports" in operation["row"]:
            found.append({**operation, "row": {"ports": operation["row"]["ports"]}})
    return found


def only_released(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of the operations of a transaction those that give back what was held back. Everything else is the new
    side's own by then."""
    found = []
    for operation in operations:
        table = operation["table"]
        if operation["op"] == "insert" and table in _OBSERVERS.values():
            found.append(operation)
        elif operation["op"] == "update":
            row = {name: value for name, value in operation["row"].items() if name in RELEASED.get(table, ())}
            found += [{**operation, "row": row}] if row else []
    return found

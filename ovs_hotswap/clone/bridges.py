"""The bridges of a switch that others program, and how their ports treat VLANs, from its database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rpc import transact
from ovs_hotswap.switch.settings import decode

LOCAL = 65534  # OpenFlow's reserved port; the bridge's own device
_SET = {"key": "string", "min": 0, "max": "unlimited"}
_OPTIONAL = {"key": "string", "min": 0, "max": 1}
_OUTWARD = {"dpdk": 2, "patch": 1}  # by the type of an interface
_COLUMNS = {
    "Bridge": ["name", "datapath_type", "ports"],
    "Port": ["_uuid", "name", "interfaces", "tag", "vlan_mode"],
    "Interface": ["_uuid", "name", "ofport", "type"],
    "Datapath": ["ct_zones"],
    "CT_Zone": ["_uuid", "timeout_policy"],
}


@dataclass(frozen=True, slots=True)
class BridgePort:
    """``interfaces``: the name and the OpenFlow number of each interface that has one; several for a bond. ``tag`` and
    ``vlan_mode`` as in ovs-vswitchd.conf.db(5). ``outward``: how near the port is to the network: 2 is a device of
    DPDK, 1 leads to another bridge, and 0 is everything else."""

    name: str
    interfaces: tuple[tuple[str, int], ...]
    tag: int | None = None
    vlan_mode: str | None = None
    outward: int = 0

    def carries(self, vlan: int) -> int | None:
        """Return the tag with which frames of a VLAN come in at this port; ``None`` if they come without one."""
        if self.vlan_mode in ("trunk", None) and (self.vlan_mode or self.tag is None):
            return vlan or None
        if self.vlan_mode in ("native-tagged", "native-untagged") and vlan != self.tag:
            return vlan or None
        return None  # an access port, a tunnel of 802.1Q (802.1ad), or the native VLAN


@dataclass(frozen=True, slots=True)
class Bridges:
    """``ports``: the ports of each bridge of the userspace datapath, by the bridge's name. ``timed_zones``: the zones
    of connection tracking that have a timeout policy."""

    ports: Mapping[str, tuple[BridgePort, ...]]
    timed_zones: frozenset[int] = frozenset()

    def port_of(self, bridge: str, ofport: int) -> BridgePort | None:
        ports = self.ports.get(bridge, ())
        return next((port for port in ports if any(ofport == number for _, number in port.interfaces)), None)

    def port(self, bridge: str, name: str) -> BridgePort | None:
        return next((port for port in self.ports.get(bridge, ()) if port.name == name), None)


def read_bridges(db_socket: Path, *, timeout: float = 10.0) -> Bridges:
    """Raises SwitchError, and NoAnswer after ``timeout`` seconds."""
    operations = [{"op": "select", "table": table, "where": [], "columns": columns} for table, columns in
                  _COLUMNS.items()]  # fmt: skip
    answers = transact(db_socket, operations, timeout=timeout)
    try:
        return parse_bridges({table: answer["rows"] for table, answer in zip(_COLUMNS, answers, strict=True)})
    except (KeyError, TypeError, ValueError) as error:
        raise SwitchError(f"{db_socket}: not a database of Open vSwitch: {error!r}") from error


def parse_bridges(tables: Mapping[str, list[dict[str, Any]]]) -> Bridges:
    """Return the bridges from rows as RFC 7047, 5.1 writes them. Raises KeyError, TypeError and ValueError."""
    numbers = {row["_uuid"][1]: (row["name"], _number(row["ofport"])) for row in tables["Interface"]}
    outward = {row["_uuid"][1]: _OUTWARD.get(row["type"], 0) for row in tables["Interface"]}
    interfaces = {uuid: (name, number) for uuid, (name, number) in numbers.items() if number is not None}
    ports = {
        row["_uuid"][1]: BridgePort(
            row["name"],
            tuple(interfaces[each] for each in decode(row["interfaces"], _SET) if each in interfaces),
            _number(row["tag"]),
            next(iter(decode(row["vlan_mode"], _OPTIONAL)), None),
            max((outward.get(each, 0) for each in decode(row["interfaces"], _SET)), default=0),
        )
        for row in tables["Port"]
    }
    policies = {row["_uuid"][1] for row in tables["CT_Zone"] if decode(row["timeout_policy"], _OPTIONAL)}
    zones = (each for row in tables["Datapath"] for each in row["ct_zones"][1])
    return Bridges(
        {
            row["name"]: tuple(ports[each] for each in decode(row["ports"], _SET) if each in ports)
            for row in tables["Bridge"]
            if row["datapath_type"] == "netdev"
        },
        frozenset(int(zone) for zone, reference in zones if reference[1] in policies),
    )


def _number(value: Any) -> int | None:
    """An optional number; -1 is the ofport of an interface that the switch could not open."""
    found = next(iter(decode(value, _OPTIONAL)), None)
    return None if found is None or int(found) < 0 else int(found)

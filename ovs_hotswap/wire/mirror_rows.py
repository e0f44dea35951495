"""The database rows of wire mode by mirrors, as a switch has them. This module is pure.

The database may be another program's. Each row of ours has ``owned.MARK`` in its external_ids, by which any process
finds it again; what a patch port is for is in its external_ids as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ovs_hotswap.errors import PrecheckFailed, SwitchError
from ovs_hotswap.model import MAX_MIRRORS
from ovs_hotswap.switch.column_values import map_of, members, pairs, uuids
from ovs_hotswap.switch.owned import MARK
from ovs_hotswap.wire.mirror_flows import LINK_PORT, MAX_TAG, NEAR_PORTS, Carried, Mode

OURS = {MARK: "wire"}
PORT_KEY, TAG_KEY, UPLINK_KEY, LINK_KEY = (
    "ovs-hotswap-port",
    "ovs-hotswap-tag",
    "ovs-hotswap-uplink",
    "ovs-hotswap-link",
)
UNMIRRORED_KEY = "ovs-hotswap-unmirrored"
MODE_KEY = "ovs-hotswap-wired"
VLAN_COLUMNS = ("tag", "vlan_mode", "trunks", "cvlans")
_VLAN_KEY = "qinq-ethtype"  # in other_config of Port
_DEFAULT_MTU = 1500

Operation = dict[str, Any]
Operations = list[Operation]

COLUMNS = {
    "Open_vSwitch": ("_uuid", "bridges", "other_config"),
    "Bridge": ("_uuid", "name", "datapath_type", "ports", "mirrors", "external_ids"),
    "Port": ("_uuid", "name", "interfaces", "other_config", "external_ids", *VLAN_COLUMNS),
    "Interface": ("_uuid", "name", "type", "ofport", "mtu", "mtu_request", "external_ids"),
    "Mirror": ("_uuid", "name", "select_all", "select_dst_port", "output_port", "external_ids"),
}
READ: Operations = [
    {"op": "select", "table": table, "where": [], "columns": list(columns)} for table, columns in COLUMNS.items()
]
"""The operations whose results ``Rows.of`` takes."""


@dataclass(frozen=True, slots=True)
class Port:
    """``vlan``: its VLAN columns, as the database has them. ``ofports`` are positive; an interface without one does not
    count. ``mtu``: the largest of its interfaces, in bytes."""

    uuid: str
    name: str
    bridge: str
    ofports: tuple[int, ...]
    mtu: int
    vlan: Mapping[str, Any]
    external_ids: Mapping[str, str]

    @property
    def ours(self) -> bool:
        return self.external_ids.get(MARK) == OURS[MARK]

    @property
    def carries(self) -> str | None:
        """The name of the port for which this is the patch port; ``None`` if it is none."""
        return self.external_ids.get(PORT_KEY) if self.ours else None


@dataclass(frozen=True, slots=True)
class Mirror:
    uuid: str
    name: str
    select_all: bool
    sources: tuple[str, ...]
    output: str | None
    ours: bool


@dataclass(frozen=True, slots=True)
class Bridge:
    uuid: str
    name: str
    userspace: bool
    ports: Mapping[str, Port]
    mirrors: tuple[Mirror, ...]

    @property
    def patches(self) -> dict[str, Port]:
        """Our near patch ports by the names of the ports that they are for."""
        return {port.carries: port for port in self.ports.values() if port.carries is not None}

    @property
    def link(self) -> Port | None:
        return next((port for port in self.ports.values() if port.ours and LINK_KEY in port.external_ids), None)

    @property
    def intended(self) -> Mode:
        """The mode that was asked for last; it is kept with the link."""
        return Mode.OWN if self.link is None else Mode(self.link.external_ids.get(MODE_KEY, Mode.OWN))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that is to be carried. ``mirrored``: what the switch outputs to it is to be output on the other one too;
    an uplink never is."""

    bridge: str
    name: str
    uplink: bool = False
    mirrored: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """A switch's database, as far as wire mode has to do with it."""

    root: str
    bridges: Mapping[str, Bridge]
    other_config: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> Rows:
        """Raises SwitchError if these are not the results of ``READ``."""
        try:
            return cls._of(results)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SwitchError(f"the database's answer is not as expected: {error!r}") from error

    @classmethod
    def _of(cls, results: Sequence[Mapping[str, Any]]) -> Rows:
        by_table = {
            table: {row["_uuid"][1]: row for row in result["rows"]}
            for table, result in zip(COLUMNS, results, strict=True)
        }
        roots = by_table["Open_vSwitch"]
        root = next(iter(roots.values()), None)
        if root is None:
            raise SwitchError("the database of the switch is empty", hint="`ovs-vsctl --no-wait init`")
        bridges = {}
        for uuid in uuids(root["bridges"]):
            row = by_table["Bridge"][uuid]
            ports = [_port(by_table, each, row["name"]) for each in uuids(row["ports"])]
            mirrors = tuple(_mirror(by_table["Mirror"][each]) for each in uuids(row["mirrors"]))
            bridges[row["name"]] = Bridge(
                uuid, row["name"], row["datapath_type"] == "netdev",
                {port.name: port for port in ports}, mirrors,
            )  # fmt: skip
        return cls(root["_uuid"][1], bridges, pairs(root["other_config"]))

    @property
    def open(self) -> bool:
        """Whether there is any port of ours."""
        return any(port.ours for bridge in self.bridges.values() for port in bridge.ports.values())

    @property
    def links(self) -> dict[tuple[str, str], int]:
        """The numbers of the links, by bridge and an empty name, as ``assign`` takes them."""
        return {(each.name, ""): int(each.link.external_ids[LINK_KEY]) for each in self.bridges.values() if each.link}

    @property
    def tags(self) -> dict[tuple[str, str], int]:
        """The tags that are in use, by bridge and port."""
        return {
            (bridge.name, name): int(port.external_ids[TAG_KEY])
            for bridge in self.bridges.values()
            for name, port in bridge.patches.items()
        }

    @property
    def wanted(self) -> list[Wanted]:
        """The ports for which there are patch ports."""
        return [
            Wanted(bridge.name, name, UPLINK_KEY in port.external_ids, UNMIRRORED_KEY not in port.external_ids)
            for bridge in self.bridges.values()
            for name, port in bridge.patches.items()
        ]

    def port(self, wanted: Wanted) -> Port:
        """Raises SwitchError if the switch does not have the port, or not in its userspace datapath."""
        bridge = self.bridges.get(wanted.bridge)
        found = None if bridge is None else bridge.ports.get(wanted.name)
        if bridge is None or found is None or not found.ofports:
            raise SwitchError(
                f"bridge {wanted.bridge} has no port {wanted.name} that works", hint="`ovs-vsctl show` lists the ports"
            )
        if not bridge.userspace:
            raise SwitchError(f"bridge {wanted.bridge} is not in the userspace datapath (its datapath_type)")
        return found

    def carried(self) -> list[Carried]:
        """The ports that have patch ports, those that are not there themselves or have no number excepted."""
        found = []
        for wanted in self.wanted:
            bridge = self.bridges[wanted.bridge]
            patch, port = bridge.patches[wanted.name], bridge.ports.get(wanted.name)
            if port is not None and port.ofports:
                tag = int(patch.external_ids[TAG_KEY])
                found.append(Carried(bridge.name, port.name, tag, port.ofports, wanted.uplink))
        return sorted(found, key=lambda each: each.tag)


def mtu(rows: Rows, wanted: Iterable[Wanted]) -> int:
    """The longest IP packet of those of these ports that are there, in bytes."""
    ports = (rows.bridges[each.bridge].ports.get(each.name) for each in wanted)
    return max((port.mtu for port in ports if port is not None), default=_DEFAULT_MTU)


def assign(
    both: Iterable[Mapping[tuple[str, str], int]], wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """The tags of all ports, by bridge and name, those in use on either switch included; or the numbers of links.

    Raises SwitchError if the switches disagree, and PrecheckFailed if there are none left."""
    tags: dict[tuple[str, str], int] = {}
    for found in both:
        for port, tag in found.items():
            if tags.setdefault(port, tag) != tag:
                raise SwitchError(f"port {port[1]} of bridge {port[0]} has another tag on each switch; close wire mode")
    if len(set(tags.values())) < len(tags):
        raise SwitchError("two carried ports have the same tag; close wire mode")
    new = [port for port in dict.fromkeys(wanted) if port not in tags]
    free = sorted(set(range(1, MAX_TAG + 1)) - set(tags.values()))
    if len(new) > len(free):
        raise PrecheckFailed(f"wire mode has tags for {MAX_TAG} ports", hint="move fewer VMs at once")
    tags.update(zip(new, free, strict=False))
    return tags


def room(rows: Rows, bridge: str) -> int:
    """How many mirrors of ours a bridge has room for. Raises SwitchError if there is no such bridge."""
    if (found := rows.bridges.get(bridge)) is None:
        raise SwitchError(f"there is no bridge {bridge}", hint="`ovs-vsctl list-br`")
    return MAX_MIRRORS - sum(not mirror.ours for mirror in found.mirrors)


def see_room(rows: Rows, wanted: Iterable[Wanted]) -> None:
    """Raises PrecheckFailed if a bridge would have too many mirrors, or has one that would copy our frames too, or if
    it has a port with a number of ours."""
    wanted = list(wanted)
    needed: dict[str, set[str]] = {}
    for each in wanted:
        if not each.uplink and each.mirrored:
            needed.setdefault(each.bridge, set()).add(each.name)
    for name, ports in needed.items():
        bridge = rows.bridges[name]
        foreign = [mirror for mirror in bridge.mirrors if not mirror.ours]
        if len(ports) > room(rows, name):
            raise PrecheckFailed(
                f"bridge {name}: wire mode needs a mirror for each of {len(ports)} VMs, and {len(foreign)} others are"
                f" there; a bridge has room for {MAX_MIRRORS}",
                hint="move fewer VMs at once",
            )
        for mirror in foreign:
            if mirror.select_all:
                raise PrecheckFailed(
                    f"bridge {name}: mirror {mirror.name} selects all ports, and so would copy wire mode's frames too",
                    hint="have it select ports, or remove it for the time of the upgrade",
                )
    for name in {each.bridge for each in wanted}:
        for port in rows.bridges[name].ports.values():
            if not port.ours and any(NEAR_PORTS <= number <= LINK_PORT for number in port.ofports):
                raise PrecheckFailed(
                    f"bridge {name}: port {port.name} has number {port.ofports[-1]}, which wire mode needs",
                    hint=f"give it a number below {NEAR_PORTS} (ofport_request)",
                )


# ------------------------------------------------------------------------------------------------------------ decoding


def _port(by_table: Mapping[str, Mapping[str, Any]], uuid: str, bridge: str) -> Port:
    row = by_table["Port"][uuid]
    interfaces = [by_table["Interface"][each] for each in uuids(row["interfaces"])]
    numbers = sorted(number for each in interfaces for number in members(each["ofport"]) if number > 0)
    mtus = [next(iter(members(each["mtu"]) or members(each["mtu_request"])), _DEFAULT_MTU) for each in interfaces]
    return Port(uuid, row["name"], bridge, tuple(numbers), max(mtus, default=_DEFAULT_MTU), _vlan(row),
                pairs(row["external_ids"]))  # fmt: skip


def _vlan(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = {key: value for key, value in pairs(row["other_config"]).items() if key == _VLAN_KEY}
    return {**{column: row[column] for column in VLAN_COLUMNS}, "other_config": map_of(kind)}


def _mirror(row: Mapping[str, Any]) -> Mirror:
    return Mirror(
        row["_uuid"][1], row["name"], bool(row["select_all"]), tuple(uuids(row["select_dst_port"])),
        next(iter(uuids(row["output_port"])), None), _is_ours(row),
    )  # fmt: skip


def _is_ours(row: Mapping[str, Any]) -> bool:
    return pairs(row["external_ids"]).get(MARK) == OURS[MARK]

"""The rows of a trace in a switch's database: a port of its own, and mirrors that copy a VM's packets to it.

This module is pure. The database may be another program's: rows are only added to it, and each has ``owned.MARK`` in
its external_ids, by which any process finds it again. What the rows are for, and which process made them, is there as
well, so that nothing depends on a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovs_hotswap.errors import PrecheckFailed, SwitchError
from ovs_hotswap.model import MAX_MIRRORS
from ovs_hotswap.switch.column_values import map_of, members, pairs, uuids
from ovs_hotswap.switch.owned import MARK

TRACE = "trace"
"""The value of the mark."""
NAME = "ovsh-trace"
"""The name of the port, and of its network device."""
VM_KEY, PID_KEY, BORN_KEY = ("ovs-hotswap-vm", "ovs-hotswap-pid", "ovs-hotswap-born")
_VM_TYPES = frozenset({"dpdkvhostuserclient", "dpdkvhostuser"})
VLAN_COLUMNS = ("tag", "vlan_mode", "trunks", "cvlans")

Operation = dict[str, Any]
Operations = list[Operation]

_COLUMNS = {
    "Open_vSwitch": ("_uuid", "next_cfg", "cur_cfg", "other_config"),
    "Bridge": ("_uuid", "name", "datapath_type", "ports", "mirrors"),
    "Port": ("_uuid", "name", "interfaces", "external_ids", *VLAN_COLUMNS),
    "Interface": ("_uuid", "name", "type", "ofport", "error", "external_ids"),
    "Mirror": ("_uuid", "external_ids"),
}
READ: Operations = [
    {"op": "select", "table": table, "where": [], "columns": list(columns)} for table, columns in _COLUMNS.items()
]
"""The operations whose results ``Rows.of`` takes."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A trace: of a VM, by a process, of which ``born`` is the start time (``process_exit.start_time``)."""

    vm: str
    pid: int
    born: int | None


@dataclass(frozen=True, slots=True)
class Left:
    """The rows of a trace that a bridge has, by UUID. ``owner`` is ``None`` if they do not say whose they are."""

    bridge: str
    owner: Owner | None
    ports: tuple[str, ...]
    mirrors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A database, as far as a trace has to do with it: its tables, by UUID."""

    tables: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> Rows:
        """Raises SwitchError if these are not the results of ``READ``."""
        try:
            tables = {
                table: {row["_uuid"][1]: row for row in result["rows"]}
                for table, result in zip(_COLUMNS, results, strict=True)
            }
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SwitchError(f"the database's answer is not as expected: {error!r}") from error
        if not tables["Open_vSwitch"]:
            raise SwitchError("the database of the switch is empty", hint="`ovs-vsctl --no-wait init`")
        return cls(tables)

    @property
    def _root(self) -> tuple[str, Mapping[str, Any]]:
        return next(iter(self.tables["Open_vSwitch"].items()))

    @property
    def pending(self) -> bool:
        """Whether ovs-vswitchd has not carried out the newest configuration yet."""
        root = self._root[1]
        return bool(root["cur_cfg"] < root["next_cfg"])

    @property
    def left(self) -> tuple[Left, ...]:
        """What there is of traces, of each bridge that has any."""
        return tuple(found for bridge in self.tables["Bridge"].values() if (found := self._left(bridge)) is not None)

    def _left(self, bridge: Mapping[str, Any]) -> Left | None:
        ports = [uuid for uuid in uuids(bridge["ports"]) if self._is_ours("Port", uuid)]
        mirrors = [uuid for uuid in uuids(bridge["mirrors"]) if self._is_ours("Mirror", uuid)]
        if not ports and not mirrors:
            return None
        rows = [self.tables["Port"][uuid] for uuid in ports] + [self.tables["Mirror"][uuid] for uuid in mirrors]
        owners = (_owner(pairs(row["external_ids"])) for row in rows)
        owner = next((each for each in owners if each is not None), None)
        return Left(str(bridge["name"]), owner, tuple(ports), tuple(mirrors))

    def _is_ours(self, table: str, uuid: str) -> bool:
        row = self.tables[table].get(uuid)
        return row is not None and pairs(row["external_ids"]).get(MARK) == TRACE

    def names(self) -> dict[tuple[str, str], str]:
        """The names of the ports that have a number, by bridge and OpenFlow number as ``ofproto/trace`` prints it."""
        found = {}
        for bridge in self.tables["Bridge"].values():
            for interface in self._interfaces(bridge):
                for number in members(interface["ofport"]):
                    found[str(bridge["name"]), str(number)] = str(interface["name"])
            found[str(bridge["name"]), "LOCAL"] = f"the bridge {bridge['name']} itself"
        return found

    def _interfaces(self, bridge: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for port in uuids(bridge["ports"]):
            for uuid in uuids(self.tables["Port"].get(port, {"interfaces": ["set", []]})["interfaces"]):
                if uuid in self.tables["Interface"]:
                    yield self.tables["Interface"][uuid]

    def vm_ports(self) -> dict[str, tuple[str, int]]:
        """The ports of VMs that have a number: bridge and OpenFlow number by name."""
        return {
            str(interface["name"]): (str(bridge["name"]), int(number))
            for bridge in self.tables["Bridge"].values()
            for interface in self._interfaces(bridge)
            if interface["type"] in _VM_TYPES
            for number in members(interface["ofport"])
            if number > 0
        }

    def mac(self, port: str) -> str | None:
        """The MAC of the VM at a port, as libvirt and Nova write it to its interface (``external_ids``)."""
        rows = [row for row in self.tables["Interface"].values() if row["name"] == port]
        found = next((pairs(row["external_ids"]).get("attached-mac") for row in rows), None)
        return None if found is None else found.lower()

    @property
    def offloads(self) -> bool:
        """Whether flows of the datapath may be carried out by a NIC."""
        return pairs(self._root[1]["other_config"]).get("hw-offload") == "true"

    @property
    def fault(self) -> str | None:
        """Why ovs-vswitchd could not make the port of a trace; ``None`` if it did, or has not tried yet."""
        rows = [row for row in self.tables["Interface"].values() if row["name"] == NAME]
        return next((str(text) for row in rows for text in members(row["error"])), None)

    def make(self, bridge: str, port: str, owner: Owner, snaplen: int, filters: Sequence[str | None]) -> Operations:
        """Have the packets of ``port`` copied to a port of their own, of each packet the first ``snaplen`` bytes. There
        is a mirror for each of ``filters``: a match of OpenFlow, or ``None`` for all packets.

        The copy has the tag with which the packet passes ``port``, because the new port has its VLAN columns: a mirror
        outputs as NORMAL does (ofproto/ofproto-dpif-xlate.c, mirror_packet). Raises PrecheckFailed.
        """
        found = next((each for each in self.tables["Bridge"].items() if each[1]["name"] == bridge), None)
        if found is None:
            raise PrecheckFailed(f"there is no bridge {bridge}", hint="`ovs-vsctl list-br`")
        uuid, row = found
        source = next((each for each in uuids(row["ports"]) if self.tables["Port"][each]["name"] == port), None)
        if source is None:
            raise PrecheckFailed(f"bridge {bridge} has no port {port}", hint="`ovs-vsctl show` lists the ports")
        if row["datapath_type"] != "netdev":
            raise PrecheckFailed(f"bridge {bridge} is not in the userspace datapath (its datapath_type)")
        there = len(uuids(row["mirrors"]))
        if there + len(filters) > MAX_MIRRORS:
            raise PrecheckFailed(
                f"bridge {bridge} has {there} mirrors, and room for {MAX_MIRRORS}: a trace needs {len(filters)}",
                hint="`ovs-vsctl list mirror`",
            )
        marks = map_of({MARK: TRACE, VM_KEY: owner.vm, PID_KEY: str(owner.pid), BORN_KEY: str(owner.born or "")})
        vlan = {column: self.tables["Port"][source][column] for column in VLAN_COLUMNS}
        operations: Operations = [
            _insert("Interface", "trace_interface", name=NAME, type="internal", external_ids=marks),
            _insert("Port", "trace_port", name=NAME, interfaces=["named-uuid", "trace_interface"], external_ids=marks,
                    other_config=map_of({"stp-enable": "false", "rstp-enable": "false"}), **vlan),
            _change("Bridge", uuid, "ports", "insert", [["named-uuid", "trace_port"]]),
        ]  # fmt: skip
        for number, each in enumerate(filters):
            chosen = {} if each is None else {"filter": each}
            operations.append(
                _insert("Mirror", f"trace_mirror_{number}", name=f"{NAME}-{number}", snaplen=snaplen,
                        select_src_port=["uuid", source], select_dst_port=["uuid", source],
                        output_port=["named-uuid", "trace_port"], external_ids=marks, **chosen)
            )  # fmt: skip
        mirrors = [["named-uuid", f"trace_mirror_{number}"] for number in range(len(filters))]
        operations.append(_change("Bridge", uuid, "mirrors", "insert", mirrors))
        return self._committed(operations)

    def remove(self, owner: Owner | None = None, *, mirrors_only: bool = False) -> Operations:
        """Remove what there is of traces, or of the one of ``owner``; the list is empty if there is nothing.

        With ``mirrors_only`` its port stays, and gets another VLAN: to remove a mirror has no existing flow of the
        datapath looked at again, nor has making one (ofproto/ofproto-dpif-mirror.c, mirror_destroy, mirror_set), but
        another VLAN of a port has (ofproto/ofproto-dpif.c, bundle_flush_macs), and there is nothing else on ours.
        """
        operations: Operations = []
        for each in self.left:
            if owner is not None and each.owner != owner:
                continue
            bridge = next(uuid for uuid, row in self.tables["Bridge"].items() if row["name"] == each.bridge)
            for column, gone in (("mirrors", each.mirrors), ("ports", () if mirrors_only else each.ports)):
                if gone:
                    operations.append(_change("Bridge", bridge, column, "delete", [["uuid", uuid] for uuid in gone]))
            if mirrors_only and each.mirrors:
                operations += [self._other_vlan(uuid) for uuid in each.ports]
        return self._committed(operations)

    def _other_vlan(self, port: str) -> Operation:
        tag = next(number for number in (4094, 4093) if number not in members(self.tables["Port"][port]["tag"]))
        row: Operation = {"vlan_mode": "access", "tag": tag, "trunks": ["set", []], "cvlans": ["set", []]}
        return {"op": "update", "table": "Port", "where": [["_uuid", "==", ["uuid", port]]], "row": row}

    def _committed(self, operations: Operations) -> Operations:
        """The operations, with the count by which ``pending`` knows whether ovs-vswitchd has carried them out."""
        if not operations:
            return []
        where = [["_uuid", "==", ["uuid", self._root[0]]]]
        return [*operations, {"op": "mutate", "table": "Open_vSwitch", "where": where,
                              "mutations": [["next_cfg", "+=", 1]]}]  # fmt: skip


def _owner(external_ids: Mapping[str, str]) -> Owner | None:
    pid, born = external_ids.get(PID_KEY, ""), external_ids.get(BORN_KEY, "")
    if not pid.isdecimal():
        return None
    return Owner(external_ids.get(VM_KEY, ""), int(pid), int(born) if born.isdecimal() else None)


def _insert(table: str, key: str, **row: Any) -> Operation:
    return {"op": "insert", "table": table, "uuid-name": key, "row": row}


def _change(table: str, uuid: str, column: str, how: str, what: Iterable[list[str]]) -> Operation:
    return {"op": "mutate", "table": table, "where": [["_uuid", "==", ["uuid", uuid]]],
            "mutations": [[column, how, ["set", list(what)]]]}  # fmt: skip

"""The database rows of wire mode, on a small database that carries out the transactions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ovs_hotswap.errors import PrecheckFailed, SwitchError
from ovs_hotswap.model import MAX_MIRRORS
from ovs_hotswap.wire import mirror_changes as changes
from ovs_hotswap.wire.mirror_flows import LINK_PORT, MAX_TAG, Mode
from ovs_hotswap.wire.mirror_rows import (
    COLUMNS,
    READ,
    Operations,
    Rows,
    Wanted,
    assign,
    mtu,
    room,
    see_room,
)

EMPTY: list[Any] = ["set", []]
REFERENCES = {"Bridge": ("ports", "mirrors"), "Port": ("interfaces",), "Open_vSwitch": ("bridges",)}


class Database:
    """Rows by table and UUID, in the form of RFC 7047, 5.1. Rows without a reference to them go, as in ovsdb-server."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, dict[str, Any]]] = {table: {} for table in COLUMNS}
        self._numbers = itertools.count(1)
        self.put("Open_vSwitch", bridges=EMPTY, other_config=["map", []], next_cfg=0)

    def put(self, table: str, **row: Any) -> str:
        uuid = f"{next(self._numbers):08d}-0000-0000-0000-000000000000"
        blank = {"external_ids": ["map", []], "other_config": ["map", []], "options": ["map", []], "ofport": EMPTY,
                 "mtu": EMPTY, "mtu_request": EMPTY, "tag": EMPTY, "vlan_mode": EMPTY, "trunks": EMPTY, "cvlans": EMPTY,
                 "mirrors": EMPTY, "select_all": False, "select_dst_port": EMPTY, "output_port": EMPTY}  # fmt: skip
        self.tables[table][uuid] = {**blank, **row}
        return uuid

    @property
    def root(self) -> dict[str, Any]:
        return next(iter(self.tables["Open_vSwitch"].values()))

    def bridge(self, name: str, *ports: str, datapath_type: str = "netdev", first: int = 10, **columns: Any) -> str:
        made = []
        for number, port in enumerate(ports, first):
            interface = self.put("Interface", name=port, type="dpdkvhostuserclient", ofport=number, mtu=1500)
            made.append(["uuid", self.put("Port", name=port, interfaces=["uuid", interface], **columns)])
        uuid = self.put("Bridge", name=name, datapath_type=datapath_type, ports=["set", made])
        self.root["bridges"] = ["set", [*_set(self.root["bridges"]), ["uuid", uuid]]]
        return uuid

    def mirror(self, bridge: str, **row: Any) -> None:
        uuid = self.put("Mirror", **row)
        self.tables["Bridge"][bridge]["mirrors"] = [
            "set",
            [*_set(self.tables["Bridge"][bridge]["mirrors"]), ["uuid", uuid]],
        ]

    def port(self, name: str) -> dict[str, Any]:
        return next(row for row in self.tables["Port"].values() if row["name"] == name)

    def rows(self) -> Rows:
        results = []
        for table, columns in COLUMNS.items():
            rows = [{**row, "_uuid": ["uuid", uuid]} for uuid, row in self.tables[table].items()]
            results.append({"rows": [{column: row[column] for column in columns} for row in rows]})
        return Rows.of(results)

    def transact(self, operations: Operations) -> None:
        named: dict[str, str] = {}
        for each in operations:
            if each["op"] == "insert":
                assert each["uuid-name"] not in named
                named[each["uuid-name"]] = self.put(each["table"], **each["row"])
        for each in operations:
            for uuid in [] if each["op"] == "insert" else [each["where"][0][2][1]]:
                row = self.tables[each["table"]][uuid]
                row.update(each.get("row", {}))
                for column, how, value in each.get("mutations", []):
                    if how == "+=":
                        row[column] += value
                    else:
                        changed = [["uuid", named.get(item[1], item[1])] for item in _set(value)]
                        kept = [item for item in _set(row[column]) if item not in changed]
                        row[column] = ["set", kept + (changed if how == "insert" else [])]
        self._resolve(named)
        self._collect()
        numbers = itertools.count(60_000)
        for interface in self.tables["Interface"].values():
            if interface["ofport"] == EMPTY:
                interface["ofport"] = interface.get("ofport_request", next(numbers))

    def _resolve(self, named: dict[str, str]) -> None:
        """Put the UUIDs of the new rows in the place of the names that the transaction has for them."""

        def resolved(value: Any) -> Any:
            if not isinstance(value, list):
                return value
            if value[:1] == ["named-uuid"]:
                return ["uuid", named[value[1]]]
            return ["set", [resolved(item) for item in value[1]]] if value[:1] == ["set"] else value

        for row in (row for table in self.tables.values() for row in table.values()):
            row.update({column: resolved(value) for column, value in row.items()})

    def _collect(self) -> None:
        for owner, columns in REFERENCES.items():
            for column in columns:
                used = {item[1] for row in self.tables[owner].values() for item in _set(row[column])}
                table = {"ports": "Port", "mirrors": "Mirror", "interfaces": "Interface", "bridges": "Bridge"}[column]
                if owner == "Open_vSwitch":
                    self.tables[table] = {uuid: row for uuid, row in self.tables[table].items() if uuid in used}
        for owner, column, table in (
            ("Bridge", "ports", "Port"),
            ("Bridge", "mirrors", "Mirror"),
            ("Port", "interfaces", "Interface"),
        ):
            used = {item[1] for row in self.tables[owner].values() for item in _set(row[column])}
            self.tables[table] = {uuid: row for uuid, row in self.tables[table].items() if uuid in used}
        ports = self.tables["Port"]
        for mirror in self.tables["Mirror"].values():  # weak references
            mirror["select_dst_port"] = ["set", [item for item in _set(mirror["select_dst_port"]) if item[1] in ports]]
            mirror["output_port"] = ["set", [item for item in _set(mirror["output_port"]) if item[1] in ports]]


def _set(value: Any) -> list[Any]:
    return list(value[1]) if value and value[0] == "set" else [value]


VM1, VM2, UP = Wanted("br-int", "vm1"), Wanted("br-int", "vm2"), Wanted("br-ex", "up0", uplink=True)
EVERY = [VM1, VM2, UP]


def database() -> Database:
    made = Database()
    made.bridge("br-int", "vm1", "vm2")
    made.bridge("br-ex", "up0", first=1)
    return made


def tags(both: list[Rows], wanted: list[Wanted]) -> dict[tuple[str, str], int]:
    return assign((rows.tags for rows in both), ((each.bridge, each.name) for each in wanted))


def opened(made: Database, wanted: list[Wanted] = EVERY) -> Database:
    made.transact(changes.make_ports(made.rows(), wanted, tags([made.rows()], wanted)))
    made.transact(changes.make_mirrors(made.rows()))
    return made


def test_what_is_made_carries_each_port_by_a_number_that_is_unique_over_all_bridges() -> None:
    rows = opened(database()).rows()
    carried = [(port.bridge, port.name, port.tag, port.ofports, port.uplink) for port in rows.carried()]
    assert carried == [("br-int", "vm1", 1, (10,), False), ("br-int", "vm2", 2, (11,), False),
                       ("br-ex", "up0", 3, (1,), True)]  # fmt: skip
    for port in rows.carried():
        near, far = (rows.bridges[port.bridge].ports[name] for name in changes.names_of(port.tag))
        assert (near.ofports, far.ofports) == ((port.near,), (port.far,))


def test_each_vm_has_a_mirror_to_its_patch_port_and_an_uplink_has_none() -> None:
    rows = opened(database()).rows()
    for bridge, names in (("br-int", ["vm1", "vm2"]), ("br-ex", [])):
        found = {mirror.output: mirror.sources for mirror in rows.bridges[bridge].mirrors}
        ports = rows.bridges[bridge]
        assert found == {ports.patches[name].uuid: (ports.ports[name].uuid,) for name in names}


def test_everything_is_made_once() -> None:
    made = opened(database())
    rows = made.rows()
    assert changes.make_ports(rows, EVERY, rows.tags) == []
    assert changes.make_mirrors(rows) == []


def test_what_is_removed_leaves_the_database_as_it_was() -> None:
    made = database()
    before = {table: dict(rows) for table, rows in made.tables.items() if table != "Open_vSwitch"}
    opened(made)
    made.transact(changes.make_link(made.rows(), "br-int", 1, {"dpdk-devargs": "net_memif"}, 1508))
    made.transact(changes.remove(made.rows()))
    assert not made.rows().open
    names = {table: [row["name"] for row in rows.values()] for table, rows in before.items()}
    assert {table: [row["name"] for row in made.tables[table].values()] for table in names} == names
    assert [_set(row["mirrors"]) for row in made.tables["Bridge"].values()] == [[], []]
    assert changes.remove(made.rows()) == []


def test_one_port_can_be_removed_and_its_tag_is_given_to_the_next() -> None:
    made = opened(database())
    made.transact(changes.remove(made.rows(), {("br-int", "vm1")}))
    rows = made.rows()
    assert [port.name for port in rows.carried()] == ["vm2", "up0"]
    assert len(rows.bridges["br-int"].mirrors) == 1
    assert not {*changes.names_of(1)} & rows.bridges["br-int"].ports.keys()
    assert tags([rows], [VM1])["br-int", "vm1"] == 1


def test_a_patch_port_has_the_vlan_of_its_port_and_follows_it() -> None:
    made = Database()
    qinq = ["map", [["qinq-ethtype", "802.1q"]]]
    made.bridge("br-int", "vm1", tag=5, vlan_mode="access", other_config=qinq)
    opened(made, [VM1])
    patch = made.port("ovsh-n1")
    assert [*qinq[1], ["rstp-enable", "false"], ["stp-enable", "false"]] == patch["other_config"][1]
    assert (patch["tag"], patch["vlan_mode"]) == (5, "access")
    made.port("vm1").update(tag=EMPTY, vlan_mode="trunk", trunks=["set", [7, 8]])
    rows = made.rows()
    made.transact(changes.make_ports(rows, [VM1], rows.tags))
    assert (patch["tag"], patch["vlan_mode"], patch["trunks"]) == (EMPTY, "trunk", ["set", [7, 8]])


def test_normal_floods_to_none_of_our_ports_but_the_outputs_of_mirrors() -> None:
    made = Database()
    made.bridge("br-ex", "up0", "vm1", tag=5)
    opened(made, [UP, Wanted("br-ex", "vm1")])
    made.transact(changes.make_link(made.rows(), "br-ex", 1, {}, 1508))
    trunks = {row["name"]: row["trunks"] for row in made.tables["Port"].values()}
    assert trunks == {"up0": EMPTY, "vm1": EMPTY, "ovsh-n1": 4095, "ovsh-f1": 4095, "ovsh-n2": EMPTY, "ovsh-f2": 4095,
                      "ovsh-l1": 4095}  # fmt: skip
    outputs = {mirror.output for mirror in made.rows().bridges["br-ex"].mirrors}
    assert outputs == {made.rows().bridges["br-ex"].ports["ovsh-n2"].uuid}


def test_a_port_that_is_not_to_be_mirrored_has_patch_ports_that_nothing_is_flooded_to() -> None:
    made = Database()
    made.bridge("br-int", "vm1", "vm2", tag=5)
    alone = Wanted("br-int", "vm1", mirrored=False)
    opened(made, [alone, VM2])
    rows = made.rows()
    bridge = rows.bridges["br-int"]
    assert [mirror.output for mirror in bridge.mirrors] == [bridge.ports["ovsh-n2"].uuid]
    assert [made.port(name)["trunks"] for name in ("ovsh-n1", "ovsh-n2")] == [4095, EMPTY]
    assert [each.mirrored for each in rows.wanted] == [False, True]
    assert [port.name for port in rows.carried()] == ["vm1", "vm2"]
    made.port("vm1").update(tag=6)
    assert changes.make_ports(made.rows(), made.rows().wanted, rows.tags) == []
    assert changes.make_mirrors(made.rows()) == []


def test_ports_that_are_not_mirrored_need_no_room() -> None:
    made = Database()
    names = [f"vm{number}" for number in range(MAX_MIRRORS + 8)]
    made.bridge("br-int", *names)
    wanted = [Wanted("br-int", name, mirrored=number < MAX_MIRRORS) for number, name in enumerate(names)]
    see_room(made.rows(), wanted)
    assert room(made.rows(), "br-int") == MAX_MIRRORS
    assert room(opened(made, wanted).rows(), "br-int") == MAX_MIRRORS
    with pytest.raises(SwitchError, match="no bridge br9"):
        room(made.rows(), "br9")


def test_the_mirror_of_a_port_that_is_made_again_selects_the_new_one() -> None:
    made = opened(database())
    old = next(uuid for uuid, row in made.tables["Port"].items() if row["name"] == "vm1")
    row = made.tables["Port"].pop(old)
    new = made.put("Port", **row)
    bridge = next(row for row in made.tables["Bridge"].values() if row["name"] == "br-int")
    bridge["ports"] = ["set", [["uuid", new if item[1] == old else item[1]] for item in _set(bridge["ports"])]]
    made._collect()
    made.transact(changes.make_mirrors(made.rows()))
    assert changes.make_mirrors(made.rows()) == []
    assert (new,) in [mirror.sources for mirror in made.rows().bridges["br-int"].mirrors]


def test_a_port_that_is_gone_is_not_carried_and_can_be_removed() -> None:
    made = opened(database())
    bridge = next(row for row in made.tables["Bridge"].values() if row["name"] == "br-int")
    gone = next(uuid for uuid, row in made.tables["Port"].items() if row["name"] == "vm1")
    bridge["ports"] = ["set", [item for item in _set(bridge["ports"]) if item[1] != gone]]
    made._collect()
    rows = made.rows()
    assert [port.name for port in rows.carried()] == ["vm2", "up0"]
    assert mtu(rows, rows.wanted) == 1500
    assert changes.make_mirrors(rows) == []
    made.transact(changes.remove(rows, {("br-int", "vm1")}))
    assert VM1 not in made.rows().wanted


def test_each_bridge_has_a_link_and_keeps_the_mode_with_it() -> None:
    made = opened(database())
    assert made.rows().bridges["br-int"].intended is Mode.OWN
    for number, bridge in enumerate(("br-int", "br-ex"), 1):
        made.transact(changes.make_link(made.rows(), bridge, number, {"dpdk-devargs": "net_memif"}, 1508))
    made.transact(changes.intend(made.rows(), Mode.UPLINKS))
    rows = made.rows()
    assert rows.links == {("br-int", ""): 1, ("br-ex", ""): 2}
    assert {bridge.intended for bridge in rows.bridges.values()} == {Mode.UPLINKS}
    link = rows.bridges["br-int"].link
    assert link is not None
    assert (link.name, link.ofports, link.mtu) == (changes.link_name(1), (LINK_PORT,), 1508)
    made.transact(changes.drop_link(rows, "br-int"))
    assert made.rows().bridges["br-int"].link is None
    assert changes.drop_link(made.rows(), "br-int") == []


def test_a_link_that_is_made_again_has_the_mode_of_the_earlier_one() -> None:
    made = opened(database())
    made.transact(changes.make_link(made.rows(), "br-int", 1, {}, 1508, Mode.HELD))
    assert made.rows().bridges["br-int"].intended is Mode.HELD


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("br-int", "vm9"), "no port vm9"),
        (Wanted("br9", "vm1"), "no port vm1"),
        (Wanted("sys", "vm3"), "userspace"),
    ],
)
def test_a_port_that_cannot_be_carried_is_named(wanted: Wanted, words: str) -> None:
    made = database()
    made.bridge("sys", "vm3", datapath_type="system")
    with pytest.raises(SwitchError, match=words):
        made.rows().port(wanted)


def test_a_port_with_a_number_of_ours_is_named() -> None:
    made = Database()
    made.bridge("br-ex", "br-ex", first=65_534)  # OFPP_LOCAL
    see_room(made.rows(), [Wanted("br-ex", "up0")])
    made.bridge("br-int", "vm1", first=60_001)
    with pytest.raises(PrecheckFailed, match="port vm1 has number 60001"):
        see_room(made.rows(), [VM1])


def test_a_bridge_has_room_for_32_mirrors_with_those_of_others() -> None:
    made = Database()
    names = [f"vm{number}" for number in range(MAX_MIRRORS)]
    bridge = made.bridge("br-int", *names)
    wanted = [Wanted("br-int", name) for name in names]
    see_room(made.rows(), wanted)
    made.mirror(bridge, name="tap", external_ids=["map", []])
    with pytest.raises(PrecheckFailed, match="each of 32 VMs, and 1 others"):
        see_room(made.rows(), wanted)
    see_room(opened(made, wanted[1:]).rows(), wanted[1:])


def test_a_mirror_of_all_ports_is_refused() -> None:
    made = Database()
    made.mirror(made.bridge("br-int", "vm1"), name="tap", select_all=True)
    with pytest.raises(PrecheckFailed, match="mirror tap selects all ports"):
        see_room(made.rows(), [VM1])


def test_both_switches_use_the_same_tags() -> None:
    one, other = opened(database(), [VM2]), database()
    assert tags([one.rows(), other.rows()], EVERY) == {
        ("br-int", "vm2"): 1, ("br-int", "vm1"): 2, ("br-ex", "up0"): 3
    }  # fmt: skip
    opened(other, [VM1, VM2])
    with pytest.raises(SwitchError, match="another tag on each switch"):
        tags([one.rows(), other.rows()], [VM2])
    third = opened(database(), [VM1])
    with pytest.raises(SwitchError, match="the same tag"):
        tags([one.rows(), third.rows()], [])
    with pytest.raises(PrecheckFailed, match="2046"):
        tags([database().rows()], [Wanted("br-int", str(number)) for number in range(MAX_TAG + 1)])


def test_an_answer_that_is_no_database_is_refused() -> None:
    with pytest.raises(SwitchError, match="not as expected"):
        Rows.of([{"rows": [{}]}] * len(READ))
    with pytest.raises(SwitchError, match="is empty"):
        Rows.of([{"rows": []}] * len(READ))

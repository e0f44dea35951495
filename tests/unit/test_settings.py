"""The operator's settings in a database of one instance, and what the other gets of them."""

from __future__ import annotations

from typing import Any

import pytest

from ovs_hotswap.host.settings_transfer import taken_numbers, told, unlike_features
from ovs_hotswap.model import Severity, Side
from ovs_hotswap.switch import owned
from ovs_hotswap.switch.settings import (
    Key,
    Settings,
    Snapshot,
    as_json,
    decode,
    foreign_ports,
    from_json,
    selects,
    settings,
    snapshot,
)
from ovs_hotswap.switch.settings_plan import Carry, Receiver, before, carry, operations

NAMES = ["uplink", "vm1", "vm2"]


def many(kind: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": 0, "max": "unlimited"}}


def maybe(kind: Any) -> dict[str, Any]:
    return {"type": {"key": kind, "min": 0, "max": 1}}


def refs(table: str) -> dict[str, Any]:
    return many({"type": "uuid", "refTable": table})


TEXTS = {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
MAPS = {"other_config": TEXTS, "external_ids": TEXTS}
SCHEMA: dict[str, Any] = {"tables": {name: {"columns": columns} for name, columns in {
    "Open_vSwitch": {"bridges": refs("Bridge"), "next_cfg": NUMBER, **MAPS,
                     "statistics": {**TEXTS, "ephemeral": True}, "ovs_version": maybe("string")},
    "Bridge": {"name": TEXT, "datapath_type": TEXT, "ports": refs("Port"), "mirrors": refs("Mirror"),
               "controller": refs("Controller"), "stp_enable": FLAG, **MAPS},
    "Port": {"name": TEXT, "interfaces": refs("Interface"), "tag": maybe("integer"), **MAPS,
             "qos": maybe({"type": "uuid", "refTable": "QoS"})},
    "Interface": {"name": TEXT, "type": TEXT, "options": TEXTS, "ofport": maybe("integer"), **MAPS,
                  "ofport_request": maybe("integer"), "ingress_policing_rate": NUMBER, "mtu_request": maybe("integer")},
    "Mirror": {"name": TEXT, "select_all": FLAG, "output_port": maybe({"type": "uuid", "refTable": "Port"}),
               "external_ids": TEXTS},
    "QoS": {"type": TEXT, "queues": {"type": {"key": "integer", "value": {"type": "uuid", "refTable": "Queue"},
                                              "min": 0, "max": "unlimited"}}, **MAPS},
    "Queue": {"dscp": maybe("integer"), **MAPS},
    "Controller": {"target": TEXT},
}.items()}}  # fmt: skip


def default(kind: Any) -> Any:
    if isinstance(kind, dict):
        return {} if "value" in kind else []
    return {"string": "", "integer": 0, "boolean": False}[kind]


class Database:
    """Rows by name, which is their UUID as well."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, Any]]] = {table: {} for table in SCHEMA["tables"]}
        self.add("Open_vSwitch", "root", bridges=["br0"], other_config={"dpdk-init": "true"},
                 external_ids=owned.remember({}, {"dpdk-init": "true"}))  # fmt: skip
        self.add("Bridge", "br0", datapath_type="netdev", other_config={"hwaddr": "52:54:00:00:00:01"},
                 external_ids={owned.MARK: "datapath_type other_config:hwaddr"})  # fmt: skip
        for number, name in enumerate(NAMES, 1):
            self.port(name, type="dpdk", ofport_request=[number], options={"dpdk-devargs": name},
                      external_ids={owned.MARK: "type ofport_request options:dpdk-devargs"})  # fmt: skip

    def add(self, table: str, uuid: str, **columns: Any) -> None:
        kinds = SCHEMA["tables"][table]["columns"]
        named = {"name": uuid} if "name" in kinds else {}
        self.rows[table][uuid] = {name: default(kind["type"]) for name, kind in kinds.items()} | named | columns

    def port(self, name: str, **interface: Any) -> None:
        self.add("Interface", name, **interface)
        self.add("Port", name, interfaces=[name])
        self.rows["Bridge"]["br0"]["ports"].append(name)

    def set(self, table: str, uuid: str, **columns: Any) -> None:
        for column, value in columns.items():
            old = self.rows[table][uuid][column]
            self.rows[table][uuid][column] = {**old, **value} if isinstance(value, dict) else value

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(SCHEMA, self.rows)

    @property
    def settings(self) -> Settings:
        return settings(self.snapshot, "br0", NAMES)


def receiver(database: Database, cores: tuple[list[int], list[int]] = ([1], [2]), **changes: Any) -> Receiver:
    root = database.snapshot.root
    given = {"ports": ["br0", *NAMES], "before": before(root["external_ids"]), "cores": cores,
             "other_config": root["other_config"], **changes}  # fmt: skip
    return Receiver(SCHEMA, database.settings, **given)


def carried(
    database: Database, cores: tuple[list[int], list[int]] = ([1], [2])
) -> tuple[dict[str, Any], dict[str, str]]:
    change = carry(database.settings, receiver(Database(), cores))
    return ({str(key): value for key, value in change.values.items()}, {str(key): why for key, why in change.lost})


def test_nobody_set_anything() -> None:
    assert Database().settings == {}


def test_settings_are_what_we_did_not_write() -> None:
    database = Database()
    database.set("Open_vSwitch", "root", other_config={"max-idle": "30000", "pmd-sleep-max": "9"}, next_cfg=7,
                 external_ids={"system-id": "x"})  # fmt: skip
    database.set("Bridge", "br0", stp_enable=True, other_config={"mac-table-size": "4096"})
    database.set("Port", "vm2", tag=[7])
    database.set("Interface", "vm1", options={"n_rxq": "4"}, ingress_policing_rate=368000, mtu_request=[1400])
    assert {str(key): value for key, value in database.settings.items()} == {
        "other_config:max-idle": "30000",
        "external_ids:system-id": "x",
        "bridge br0 stp_enable": True,
        "bridge br0 other_config:mac-table-size": "4096",
        "port vm2 tag": [7],
        "interface vm1 options:n_rxq": "4",
        "interface vm1 ingress_policing_rate": 368000,
        "interface vm1 mtu_request": [1400],
    }
    assert carried(database) == ({str(key): value for key, value in database.settings.items()}, {})


def test_a_row_of_an_earlier_version_has_no_mark_and_no_settings() -> None:
    database = Database()
    database.rows["Interface"]["vm1"]["external_ids"] = {}
    database.rows["Bridge"]["br0"]["external_ids"] = {}
    database.rows["Open_vSwitch"]["root"]["external_ids"] = {}
    assert database.settings == {}


def test_rows_that_are_referred_to_are_the_value() -> None:
    database = Database()
    database.add("Queue", "q1", dscp=[3])
    database.add("QoS", "qos", type="linux-htb", queues={1: "q1"}, other_config={"cir": "46"})
    database.set("Port", "vm2", qos=["qos"])
    database.port("span0", type="internal", ofport=[3], ofport_request=[20])
    database.add("Mirror", "m1", select_all=True, output_port=["span0"])
    database.set("Bridge", "br0", mirrors=["m1"])
    values, lost = carried(database)
    assert lost == {}
    assert values == {
        "port vm2 qos": [{"type": "linux-htb", "queues": {"1": {"dscp": [3]}}, "other_config": {"cir": "46"}}],
        "port span0": ["span0"],
        "interface span0 type": "internal",
        "interface span0 ofport_request": [20],
        "bridge br0 mirrors": [{"name": "m1", "select_all": True, "output_port": ["span0"]}],
    }


def test_the_copies_of_a_trace_are_no_setting() -> None:
    database = Database()
    database.add("Mirror", "ovsh-trace-0", external_ids={owned.MARK: "trace"})
    database.port("ovsh-trace", type="internal", external_ids={owned.MARK: "trace"})
    database.set("Bridge", "br0", mirrors=["ovsh-trace-0"])
    assert database.settings == {}
    database.add("Mirror", "m1", select_all=True)
    database.set("Bridge", "br0", mirrors=["m1", "ovsh-trace-0"])
    assert carried(database) == ({"bridge br0 mirrors": [{"name": "m1", "select_all": True}]}, {})


def test_what_the_other_has_already_is_not_set() -> None:
    source, target = Database(), Database()
    for database in (source, target):
        database.set("Open_vSwitch", "root", other_config={"max-idle": "5"})
    change = carry(source.settings, receiver(target))
    assert (change.values, change.gone, change.lost) == ({}, (), ())
    assert set(change.carried) == {Key("Open_vSwitch", "", "other_config", "max-idle")}


def test_what_is_no_more_is_taken_away_but_only_what_was_carried() -> None:
    key, other = (Key("Open_vSwitch", "", "other_config", name) for name in ("max-idle", "smc-enable"))
    change = carry({}, Receiver(SCHEMA, {key: "5", other: "true"}, NAMES, [key]))
    assert (change.values, change.gone) == ({}, (key,))


@pytest.mark.parametrize(
    ("value", "cores", "wanted"),
    [
        ("0:3,1:7", ([3, 7], [4, 8]), "0:4,1:8"),
        ("0:3", ([3], [3]), "0:3"),
        ("0:3,1:9", ([3, 7], [4, 8]), None),
        ("0:7", ([3, 7], [4]), None),
        ("nonsense", ([3], [4]), None),
    ],
)
def test_an_affinity_names_the_cores_of_the_other_instance(
    value: str, cores: tuple[list[int], list[int]], wanted: str | None
) -> None:
    database = Database()
    database.set("Interface", "vm1", other_config={"pmd-rxq-affinity": value})
    values, lost = carried(database, cores)
    name = "interface vm1 other_config:pmd-rxq-affinity"
    assert values == ({} if wanted is None else {name: wanted})
    assert list(lost) == ([name] if wanted is None else [])


def test_an_instance_of_an_earlier_version_that_was_programmed_since() -> None:
    """What it was started with is in no note, and is not the operator's for that."""
    database = Database()
    root = database.rows["Open_vSwitch"]["root"]
    root["other_config"] = {"dpdk-init": "true", "pmd-cpu-mask": "0x2", "dpdk-extra": "-n 1", "vlan-limit": "2",
                            "max-idle": "30000"}  # fmt: skip
    root["external_ids"] = owned.remember({}, {"vlan-limit": "2"})
    assert {str(key): value for key, value in database.settings.items()} == {"other_config:max-idle": "30000"}


def test_a_port_of_an_earlier_version_is_known_by_its_socket() -> None:
    def interface(path: str, kind: str = "dpdkvhostuserclient", **marks: str) -> dict[str, Any]:
        return {"type": kind, "options": {"vhost-server-path": path}, "external_ids": marks}

    ours = "/run/ovs-hotswap/vhost/a"
    assert owned.made_here(interface(f"{ours}/gone.sock"), ours)
    assert owned.made_here(interface("/elsewhere/x", **{owned.MARK: "type"}), ours)
    assert not owned.made_here(interface("/run/openvswitch/vhu1.sock"), ours)
    assert not owned.made_here(interface(f"{ours}/deeper/x.sock"), ours)
    assert not owned.made_here(interface(f"{ours}/x.sock", kind="internal"), ours)
    assert not owned.made_here(interface("x.sock"), "")


def test_what_stays_behind_is_named_with_the_reason() -> None:
    database = Database()
    keys = {"pmd-cpu-mask": "0x6", "dpdk-extra": "-n 4", "userspace-tso-enable": "true"}
    database.set("Open_vSwitch", "root", other_config=keys)
    database.port("eth7", type="")
    database.port("vf9", type="dpdk", options={"dpdk-devargs": "0000:03:09.0"})
    database.add("Mirror", "m1", output_port=["eth7"])
    database.add("Controller", "c", target="tcp:1.2.3.4:6653")
    database.set("Bridge", "br0", mirrors=["m1"], controller=["c"])
    database.add("Bridge", "br9")
    values, lost = carried(database)
    assert values == {}
    assert lost == {
        "other_config:pmd-cpu-mask": "it is of one instance: set pmd_cores",
        "other_config:dpdk-extra": "it is of one instance: set dpdk_extra",
        "other_config:userspace-tso-enable":
            "ovs-vswitchd reads it only when it starts: put it into [instances.other_config]",
        "bridge br0 mirrors": "port eth7 stays behind",
        "bridge br0 controller": "two switches with one datapath ID cannot share a controller",
        "port eth7": "type system: one instance alone can have it",
        "port vf9": "type dpdk: one instance alone can have it",
        "bridge br9": "of the bridges only ours is carried over",
    }  # fmt: skip


def test_what_one_instance_alone_can_have_is_given_to_one_that_is_alone() -> None:
    database = Database()
    database.port("vf9", type="dpdk", options={"dpdk-devargs": "0000:03:09.0"})
    database.add("Controller", "c", target="tcp:1.2.3.4:6653")
    database.set("Bridge", "br0", controller=["c"])
    change = carry(database.settings, receiver(Database(), alone=True))
    assert change.lost == ()
    assert change.values == database.settings


def test_a_key_that_is_read_at_the_start_is_not_lost_where_the_other_was_started_with_it() -> None:
    database = Database()
    database.set("Open_vSwitch", "root", other_config={"userspace-tso-enable": "true"})
    change = carry(database.settings, receiver(Database(), other_config={"userspace-tso-enable": "true"}))
    assert change.lost == ()


def test_a_column_that_the_other_release_lacks_stays_behind() -> None:
    database = Database()
    database.set("Port", "vm1", tag=[5])
    database.add("Mirror", "m1", select_all=True)
    database.set("Bridge", "br0", mirrors=["m1"])
    schema = {"tables": {name: {"columns": dict(table["columns"])} for name, table in SCHEMA["tables"].items()}}
    del schema["tables"]["Port"]["columns"]["tag"]
    del schema["tables"]["Mirror"]["columns"]["select_all"]
    change = carry(database.settings, Receiver(schema, {}, NAMES))
    assert {str(key): why for key, why in change.lost} == {
        "port vm1 tag": "the other release does not know Port.tag",
        "bridge br0 mirrors": "the other release does not know Mirror.select_all",
    }


def test_nothing_to_change_is_no_transaction() -> None:
    assert operations(Carry(), Database().snapshot, "br0") == []


def test_a_key_of_a_map_is_changed_alone() -> None:
    key = Key("Interface", "vm1", "options", "n_rxq")
    first, *_, last = operations(Carry({key: "4"}, carried={key: "4"}), Database().snapshot, "br0")
    assert first == {
        "op": "mutate", "table": "Interface", "where": [["name", "==", "vm1"]],
        "mutations": [["options", "delete", ["set", ["n_rxq"]]], ["options", "insert", ["map", [["n_rxq", "4"]]]]],
    }  # fmt: skip
    assert last["mutations"] == [["next_cfg", "+=", 1]]


def test_what_is_taken_away_gets_the_configured_or_the_column_s_own_value() -> None:
    database = Database()
    database.set("Open_vSwitch", "root", other_config={"max-idle": "9"},
                 external_ids=owned.remember({}, {"max-idle": "5"}))  # fmt: skip
    keys = (Key("Open_vSwitch", "", "other_config", "max-idle"), Key("Interface", "vm1", "ingress_policing_rate", ""),
            Key("Port", "vm1", "tag", ""))  # fmt: skip
    made = operations(Carry(gone=keys), database.snapshot, "br0")
    assert made[0]["mutations"][1] == ["other_config", "insert", ["map", [["max-idle", "5"]]]]
    assert made[1]["row"] == {"ingress_policing_rate": 0}
    assert made[2]["row"] == {"tag": ["set", []]}


def test_the_last_user_of_a_qos_takes_it_away() -> None:
    database = Database()
    for name in ("x", "y"):
        database.add("Queue", f"q{name}")
        database.add("QoS", name, queues={0: f"q{name}"})
    database.set("Port", "vm1", qos=["x"])
    database.set("Port", "vm2", qos=["y"])
    database.set("Port", "uplink", qos=["y"])
    gone = tuple(Key("Port", name, "qos", "") for name in ("vm1", "vm2"))
    deleted = [each["where"][0][2][1] for each in operations(Carry(gone=gone), database.snapshot, "br0")
               if each["op"] == "delete"]  # fmt: skip
    assert deleted == ["x", "qx"]


def test_settings_in_a_journal() -> None:
    found: Settings = {Key("Port", "vm2", "tag", ""): [7], Key("Open_vSwitch", "", "other_config", "x"): "y"}
    assert from_json(as_json(found)) == found
    assert from_json(None) == from_json([["too", "short"]]) == from_json({"a": 1}) == {}
    assert before({owned.CARRIED: "no JSON"}) == []


def test_the_reading_leaves_out_what_the_switch_writes() -> None:
    root, *_ = selects(SCHEMA)
    assert "statistics" not in root["columns"]
    assert "next_cfg" not in root["columns"]
    answers: list[dict[str, Any]] = [{"rows": []} for _ in SCHEMA["tables"]]
    answers[0] = {"rows": [{"_uuid": ["uuid", "u"], "bridges": ["uuid", "b"],
                            "other_config": ["map", [["a", "b"]]], "external_ids": ["map", []]}]}  # fmt: skip
    assert snapshot(SCHEMA, answers).root == {"bridges": ["b"], "other_config": {"a": "b"}, "external_ids": {}}


def test_values_as_the_protocol_writes_them() -> None:
    assert decode(["set", []], maybe("integer")["type"]) == []
    assert decode(5, maybe("integer")["type"]) == [5]
    assert decode("x", "string") == "x"
    assert decode(["set", [["uuid", "b"], ["uuid", "a"]]], refs("Port")["type"]) == ["a", "b"]
    assert decode(["map", [[1, ["uuid", "q"]]]], {"key": "integer", "value": {"type": "uuid"}}) == {1: "q"}


def test_the_check_names_each_loss_and_counts_what_is_carried() -> None:
    database = Database()
    database.set("Open_vSwitch", "root", other_config={"max-idle": "5", "dpdk-extra": "-n 4"})
    database.port("eth7", type="")
    first, second, last = told(carry(database.settings, receiver(Database())), Side.A, Side.B)
    assert first.severity is second.severity is Severity.WARNING
    assert "instance b will not: other_config:dpdk-extra: it is of one instance" in first.text
    assert "port eth7" in second.text
    assert (last.severity, last.text) == (Severity.OK, "other_config:max-idle of instance a: carried over")


def test_a_port_of_the_operator_s_may_not_have_a_number_of_ours() -> None:
    database = Database()
    database.port("span0", type="internal", ofport_request=[3])
    database.port("span1", type="internal", ofport_request=[5000])
    database.port("span2", type="internal", ofport=[4])
    assert foreign_ports(database.settings) == ["span0", "span1", "span2"]
    (finding,) = taken_numbers(database.settings, {10: "vm1"})
    assert finding.severity is Severity.ERROR
    assert "port span0 asks for OpenFlow number 3, which the peer link needs" in finding.text


def test_instances_that_offer_other_features_are_told() -> None:
    assert unlike_features(Side.A, Side.B, {"max-idle": "5"}, {"userspace-tso-enable": "false"}) == []
    (finding,) = unlike_features(Side.A, Side.B, {"userspace-tso-enable": "true"}, {})
    assert "userspace-tso-enable is true on instance a and false on instance b" in finding.text

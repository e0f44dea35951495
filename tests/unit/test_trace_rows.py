"""The rows of a trace in a database: made, found again by any process, and removed without a trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ovs_hotswap.errors import PrecheckFailed, SwitchError
from ovs_hotswap.model import MAX_MIRRORS
from ovs_hotswap.switch.trace_rows import NAME, READ, Owner, Rows
from tests.unit.trace_bed import Database, empty

OWNER = Owner("vm2", 4711, 99)


def rows(database: Database) -> Rows:
    return Rows.of(database.answer("transact", ["Open_vSwitch", *READ]))


def made(*filters: str | None) -> Database:
    database = Database()
    operations = rows(database).make("br0", "vm2", OWNER, 256, filters or (None,))
    database.answer("transact", ["Open_vSwitch", *operations])
    return database


def test_all_of_a_trace_is_one_transaction() -> None:
    database = made()
    assert len(database.log) == 1
    (mirror,) = database.tables["Mirror"].values()
    assert (mirror["snaplen"], mirror["select_src_port"], mirror["select_dst_port"]) == (
        256,
        ["uuid", "p2"],
        ["uuid", "p2"],
    )
    port = database.tables["Port"][mirror["output_port"][1]]
    assert (port["name"], port["tag"]) == (NAME, 7), "the copies have the tags with which packets pass the VM's port"
    assert "filter" not in mirror
    assert not rows(database).pending


def test_each_filter_has_a_mirror_to_the_same_port() -> None:
    database = made("dl_dst=52:54:00:00:00:01", "dl_src=52:54:00:00:00:01")
    assert [each["filter"] for each in database.tables["Mirror"].values()] == [
        "dl_dst=52:54:00:00:00:01",
        "dl_src=52:54:00:00:00:01",
    ]
    assert len({tuple(each["output_port"]) for each in database.tables["Mirror"].values()}) == 1


def test_a_trace_is_found_by_its_marks() -> None:
    (left,) = rows(made()).left
    assert (left.bridge, left.owner, len(left.ports), len(left.mirrors)) == ("br0", OWNER, 1, 1)
    assert rows(Database()).left == ()


def test_what_is_removed_is_as_it_was_before() -> None:
    database, before = made("a", "b"), Database().tables
    database.answer("transact", ["Open_vSwitch", *rows(database).remove()])
    after = copy.deepcopy(database.tables)
    counts = [tables["Open_vSwitch"]["root"].pop("next_cfg") for tables in (before, after)]
    assert counts[1] == counts[0] + 2, "ovs-vswitchd follows each change"
    after["Open_vSwitch"]["root"].pop("cur_cfg"), before["Open_vSwitch"]["root"].pop("cur_cfg")
    assert after == before
    assert rows(database).remove() == []


def test_mirrors_can_be_removed_before_the_port() -> None:
    database = made()
    database.answer("transact", ["Open_vSwitch", *rows(database).remove(OWNER, mirrors_only=True)])
    assert database.tables["Mirror"] == {}
    (left,) = rows(database).left
    assert (len(left.ports), left.mirrors, left.owner) == (1, (), OWNER)
    assert database.tables["Port"][left.ports[0]]["tag"] == 4094, "without it, flows would keep their copies"
    assert rows(database).remove(OWNER, mirrors_only=True) == []


def test_the_vlan_of_the_port_changes_in_any_case() -> None:
    database = Database()
    database.tables["Port"]["p2"]["tag"] = 4094
    database.answer("transact", ["Open_vSwitch", *rows(database).make("br0", "vm2", OWNER, 256, [None])])
    database.answer("transact", ["Open_vSwitch", *rows(database).remove(mirrors_only=True)])
    assert [row["tag"] for row in database.tables["Port"].values() if row["name"] == NAME] == [4093]


def test_the_trace_of_another_owner_stays() -> None:
    database = made()
    assert rows(database).remove(Owner("vm2", 4711, 100)) == []
    assert rows(database).remove(OWNER) != []


def test_mirrors_and_ports_of_others_stay() -> None:
    database = Database()
    database.tables["Mirror"]["m"] = {"external_ids": ["map", [["ovs-hotswap", "wire"]]]}
    database.tables["Bridge"]["br"]["mirrors"] = empty("m")
    operations = rows(database).make("br0", "vm1", OWNER, 64, [None])
    database.answer("transact", ["Open_vSwitch", *operations])
    database.answer("transact", ["Open_vSwitch", *rows(database).remove()])
    assert set(database.tables["Mirror"]) == {"m"}
    assert {row["name"] for row in database.tables["Port"].values()} == {"vm1", "vm2"}


@pytest.mark.parametrize("pid", ["", "x"])
def test_rows_that_do_not_say_whose_they_are_have_no_owner(pid: str) -> None:
    database = made()
    for table in ("Port", "Mirror"):
        for row in database.tables[table].values():
            row["external_ids"] = [
                "map",
                [[key, pid if key.endswith("pid") else value] for key, value in row["external_ids"][1]],
            ]
    assert rows(database).left[0].owner is None


def room(database: Database) -> None:
    database.tables["Mirror"] = {f"m{number}": {"external_ids": ["map", []]} for number in range(MAX_MIRRORS)}
    database.tables["Bridge"]["br"]["mirrors"] = empty(*database.tables["Mirror"])


def kernel(database: Database) -> None:
    database.tables["Bridge"]["br"]["datapath_type"] = "system"


@pytest.mark.parametrize(
    ("bridge", "port", "plant", "text"),
    [
        ("br9", "vm2", None, "no bridge br9"),
        ("br0", "vm9", None, "no port vm9"),
        ("br0", "vm2", kernel, "userspace"),
        ("br0", "vm2", room, "room for 32"),
    ],
)
def test_what_cannot_be_traced_is_refused(bridge: str, port: str, plant: Any, text: str) -> None:
    database = Database()
    if plant is not None:
        plant(database)
    with pytest.raises(PrecheckFailed, match=text) as raised:
        rows(database).make(bridge, port, OWNER, 256, [None])
    assert raised.value.hint or text == "userspace"


def test_what_the_switch_says_of_the_port() -> None:
    database = made()
    assert rows(database).fault is None
    interface = next(row for row in database.tables["Interface"].values() if row["name"] == NAME)
    interface["error"] = "could not open network device"
    assert rows(database).fault == "could not open network device"


def test_names_and_macs_of_ports() -> None:
    database = Database()
    database.tables["Interface"]["i1"]["external_ids"] = ["map", [["attached-mac", "52:54:00:AB:00:01"]]]
    found = rows(database)
    assert found.names() == {("br0", "10"): "vm1", ("br0", "11"): "vm2", ("br0", "LOCAL"): "the bridge br0 itself"}
    assert (found.mac("vm1"), found.mac("vm2"), found.mac("vm9")) == ("52:54:00:ab:00:01", None, None)


@pytest.mark.parametrize(("key", "offloads"), [("true", True), ("false", False)])
def test_whether_a_nic_may_carry_out_flows(key: str, offloads: bool) -> None:
    database = Database()
    database.tables["Open_vSwitch"]["root"]["other_config"] = ["map", [["hw-offload", key]]]
    assert rows(database).offloads is offloads


@pytest.mark.parametrize("answers", [[], [{}] * 5, [{"rows": []}] * 5, [{"rows": [{}]}] * 5])
def test_another_answer_is_refused(answers: list[dict[str, Any]]) -> None:
    with pytest.raises(SwitchError):
        Rows.of(answers)

"""Databases as plain rows: notation, what a database keeps, what another schema loses, and transactions."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.clone import rows as plain
from ovs_hotswap.clone.rows import Ref, Rows, parse_rows, parse_schema
from tests.unit.clone_bed import PARSED, SCHEMA, host, row

UUIDS = st.sampled_from(["11111111-0000", "22222222-0000", "33333333-0000"])
ATOMS = st.one_of(st.text(max_size=5), st.integers(-5, 5), UUIDS.map(Ref))
SETS = st.one_of(*(st.frozensets(kind, max_size=3) for kind in (st.text(max_size=5), st.integers(), UUIDS.map(Ref))))
MAPS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
CONTENT = st.dictionaries(UUIDS, st.fixed_dictionaries({"one": SETS, "two": MAPS}), max_size=3)


def done(rows: Rows, operations: list[dict[str, Any]]) -> Rows:
    """What a database has after a transaction, as ovsdb-server carries it out."""
    rows = copy.deepcopy(rows)
    for operation in json.loads(json.dumps(operations)):
        content = rows.setdefault(operation["table"], {})
        values = {name: plain.from_json(value) for name, value in operation.get("row", {}).items()}
        if operation["op"] == "insert":
            assert operation["uuid"] not in content
            content[operation["uuid"]] = values
        elif operation["op"] == "delete":
            del content[operation["where"][0][2][1]]
        else:
            content[operation["where"][0][2][1]].update(values)
    return rows


@given(st.one_of(SETS, MAPS))
def test_the_notation_is_read_as_it_is_written(value: Any) -> None:
    assert plain.from_json(json.loads(json.dumps(plain.to_json(value)))) == value


@given(CONTENT, CONTENT)
def test_a_transaction_makes_one_like_the_other(before: Any, after: Any) -> None:
    operations = plain.operations({"T": before}, {"T": after})
    assert done({"T": before}, operations) == {"T": after}
    assert bool(operations) is bool(plain.row_differences({"T": before}, {"T": after})) is (before != after)


def test_a_column_that_is_not_wanted_stays() -> None:
    before = {"Bridge": {"br": {"name": frozenset({"br0"}), "status": frozenset({"x"})}}}
    after = {"Bridge": {"br": {"name": frozenset({"br0"})}}}
    assert not plain.operations(before, after)
    assert not plain.row_differences(before, after)


def test_answers_are_read_by_table_and_uuid() -> None:
    answer = {"Bridge": [{"_uuid": ["uuid", "br"], "name": "br0", "ports": ["set", [["uuid", "p"]]],
                          "other_config": ["map", [["a", "b"]]]}]}  # fmt: skip
    assert parse_rows(answer) == {
        "Bridge": {"br": {"name": frozenset({"br0"}), "ports": frozenset({Ref("p")}), "other_config": {"a": "b"}}}
    }


def test_a_real_schema_is_read() -> None:
    assert PARSED.version == "8.3.1"
    assert PARSED.root == {"Open_vSwitch", "QoS", "Queue"}
    assert "statistics" not in PARSED.configuration("Open_vSwitch")  # ephemeral
    assert "next_cfg" not in PARSED.configuration("Open_vSwitch")  # status in a column that is kept
    assert "ofport" not in PARSED.configuration("Interface")
    assert set(PARSED.selected("Interface")) >= {"ofport", "error", "mac_in_use", "options"}
    assert PARSED.configuration("CT_Zone") == []
    mirror = PARSED.tables["Mirror"]["output_port"]
    assert (mirror.weak, mirror.strong, mirror.optional) == (True, False, True)
    assert PARSED.tables["QoS"]["queues"].strong
    with pytest.raises(KeyError):
        parse_schema({"version": "1"})


def test_rows_without_a_strong_reference_go_and_so_do_references_to_them() -> None:
    rows = host()
    rows["Bridge"]["br"]["ports"] = frozenset({Ref("p-local"), Ref("nowhere")})
    rows["Bridge"]["br"]["flow_tables"][4] = Ref("nowhere")
    kept = plain.tidy(rows, PARSED)
    assert kept["Port"].keys() == {"p-local"}
    assert kept["Interface"].keys() == {"i-local"}
    assert kept["Mirror"]["mirror"]["output_port"] == frozenset()
    assert kept["Bridge"]["br"]["ports"] == {Ref("p-local")}
    assert kept["Bridge"]["br"]["flow_tables"] == {3: Ref("three")}
    assert kept["Queue"].keys() == {"queue"}  # of a root table
    rows["Open_vSwitch"]["root"]["bridges"] = frozenset()
    assert plain.tidy(rows, PARSED)["Bridge"] == {}


def older() -> Any:
    """The schema without mirrors, tags and OpenFlow 1.3."""
    document = copy.deepcopy(SCHEMA)
    del document["tables"]["Mirror"], document["tables"]["Bridge"]["columns"]["mirrors"]
    del document["tables"]["Port"]["columns"]["tag"]
    document["tables"]["Bridge"]["columns"]["protocols"]["type"]["key"]["enum"] = ["set", ["OpenFlow10"]]
    return document


def test_what_another_schema_has_no_place_for_is_named_if_it_holds_something() -> None:
    rows, target = host(), parse_schema(older())
    assert plain.losses(rows, PARSED, PARSED) == []
    assert plain.losses(rows, PARSED, target) == [
        "Bridge br-int: mirrors=mirror",
        "Bridge br-int: protocols=OpenFlow13",
        "Port vm1: tag=5",
        "table Mirror: 1 rows",
    ]
    small = plain.in_schema(rows, target)
    assert "Mirror" not in small
    assert "tag" not in small["Port"]["p-vm1"]
    assert small["Bridge"]["br"]["protocols"] == {"OpenFlow10"}
    rows["Mirror"], rows["Port"]["p-vm1"]["tag"] = {}, frozenset()
    rows["Bridge"]["br"].update(mirrors=frozenset(), protocols=frozenset())
    assert plain.losses(rows, PARSED, target) == []


def test_differences_name_the_row_the_column_and_both_values() -> None:
    before, after = host(), host()
    after["Port"]["p-vm1"]["tag"] = frozenset()
    after["Bridge"]["br"]["external_ids"] = {"ct-zone-vm1": "6", "note": "x" * 80}
    del after["Controller"]["deadbeef-1"]
    after["Manager"]["new"] = row("Manager", target="ptcp:1")
    assert plain.row_differences(before, after) == [
        "Bridge br-int: external_ids is {ct-zone-vm1=5}, not {ct-zone-vm1=6, note=" + "x" * 36 + "...",
        "Controller ptcp:6634: too much",
        "Manager ptcp:1: missing",
        "Port vm1: tag is 5, not []",
    ]
    assert plain.name_of("Open_vSwitch", "root", {}) == "Open_vSwitch"
    assert plain.name_of("QoS", "12345678-9", {}) == "QoS 12345678"

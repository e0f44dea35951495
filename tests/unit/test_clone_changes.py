"""How the new side's configuration differs from the active's until the cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ovs_hotswap.clone import rows as plain
from ovs_hotswap.clone.changes import (
    Changes,
    Hold,
    changes_of,
    kernel_bridges,
    notes,
    only_ports,
    only_released,
    ours,
    unready,
    wanted,
)
from ovs_hotswap.clone.rows import Ref, Rows
from ovs_hotswap.config import InstanceConfig
from ovs_hotswap.switch import owned
from tests.unit.clone_bed import PARSED, host, row

NOTHING_HELD = Changes(held=frozenset())
RUN_DIR = Path("/run/b")


def made(active: Rows, changes: Changes = NOTHING_HELD, new: Rows | None = None) -> Rows:
    return wanted(active, new or {}, changes, PARSED, RUN_DIR)


def test_numbers_ids_and_addresses_are_those_of_the_active() -> None:
    rows = made(host())
    assert rows["Interface"]["i-vm1"]["ofport_request"] == {7}
    assert rows["Interface"]["i-local"]["ofport_request"] == frozenset()  # the local port has its number by itself
    assert rows["Bridge"]["br"]["other_config"] == {"datapath-id": "0000000000000042", "hwaddr": "02:00:00:00:00:01"}
    assert "ofport" not in rows["Interface"]["i-vm1"]


def test_an_address_that_was_set_stays_and_a_port_without_a_number_keeps_its_wish() -> None:
    active = host()
    active["Bridge"]["br"]["other_config"] = {"hwaddr": "02:00:00:00:00:99", "datapath-id": "1"}
    active["Interface"]["i-vm1"].update(ofport=frozenset({-1}), ofport_request=frozenset({9}))
    rows = made(active)
    assert rows["Bridge"]["br"]["other_config"] == {"datapath-id": "0000000000000042", "hwaddr": "02:00:00:00:00:99"}
    assert rows["Interface"]["i-vm1"]["ofport_request"] == {9}


def test_everything_else_is_as_it_is() -> None:
    rows, config = made(host()), plain.in_schema(host(), PARSED)
    same = {"Port", "QoS", "Queue", "Mirror", "sFlow", "Controller", "Manager", "Flow_Table"}
    assert {table: rows[table] for table in same} == {table: config[table] for table in same}
    assert rows["Bridge"]["br"]["external_ids"] == {"ct-zone-vm1": "5"}
    assert made(host(), new=rows) == rows


def test_the_active_is_not_changed() -> None:
    active = host()
    made(active, Changes(cores=frozenset({1}), interfaces={"vm1": {"options": {"x": "y"}}}))
    assert active == host()


def test_each_side_has_its_own_use_of_the_machine() -> None:
    new: Rows = {"Open_vSwitch": {"root": row(
        "Open_vSwitch", other_config={"dpdk-extra": "-a y", "n-handler-threads": "1", "gone": "1"},
        external_ids={owned.MARK: '{"n-handler-threads": "1"}'})}}  # fmt: skip
    active = host()
    active["Open_vSwitch"]["root"]["other_config"]["n-handler-threads"] = "9"
    active["Open_vSwitch"]["root"]["external_ids"][owned.CARRIED] = "x"
    root = made(active, Changes(other_config={"pmd-cpu-mask": "0x2", "max-idle": None}), new)["Open_vSwitch"]["root"]
    assert root["other_config"] == {"dpdk-extra": "-a y", "n-handler-threads": "1", "pmd-cpu-mask": "0x2"}
    assert root["external_ids"] == {"system-id": "h1", owned.MARK: '{"n-handler-threads": "1"}'}


def test_devices_and_bindings_to_cores_that_the_new_side_cannot_have() -> None:
    devices = {"vm1": {"options": {"vhost-server-path": None, "dpdk-devargs": "net_null0"}}}
    changes = Changes(interfaces=devices, cores=frozenset({1}), held=frozenset())
    interface = made(host(), changes)["Interface"]["i-vm1"]
    assert interface["options"] == {"dpdk-devargs": "net_null0"}
    assert interface["other_config"] == {}
    assert notes(host(), changes) == ["Interface vm1: pmd-rxq-affinity=0:1,1:3 names cores without a PMD thread"]
    both = dataclasses.replace(changes, cores=frozenset({1, 3}))
    assert made(host(), both)["Interface"]["i-vm1"]["other_config"] == {"pmd-rxq-affinity": "0:1,1:3"}
    assert notes(host(), both) == notes(host(), NOTHING_HELD) == []


def test_controllers_are_held_back_with_targets_where_nothing_answers() -> None:
    rows = made(host(), Changes())
    assert {plain.single(each, "target") for each in rows["Controller"].values()} == {
        "unix:/run/b/br-int.held-c0ffee00",
        "punix:/run/b/br-int.held-deadbeef",
    }
    bridge = rows["Bridge"]["br"]
    assert bridge["fail_mode"] == {"secure"}
    assert bridge["protocols"] == {"OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"}
    assert plain.single(rows["Manager"]["manager"], "target") == "ptcp:6640:127.0.0.1"


def test_a_bridge_without_a_controller_that_connects_keeps_its_mode() -> None:
    active = host()
    active["Bridge"]["br"].update(controller=frozenset({Ref("deadbeef-1")}), protocols=frozenset())
    bridge = made(active, Changes())["Bridge"]["br"]
    assert bridge["fail_mode"] == bridge["protocols"] == frozenset()


def test_observers_are_held_back_and_given_back_with_their_rows() -> None:
    held = made(host(), Changes())
    assert held["Mirror"] == held["sFlow"] == {}
    assert held["Bridge"]["br"]["mirrors"] == held["Bridge"]["br"]["sflow"] == frozenset()
    some = made(host(), Changes(held=frozenset({Hold.CONTROLLERS})), held)
    operations = only_released(plain.operations(held, some))
    assert sorted(str(each.get("uuid", each["table"])) for each in operations) == ["Bridge", "flow", "mirror"]


def test_giving_back_leaves_what_the_new_side_has_become() -> None:
    held = made(host(), Changes())
    held["Port"]["p-vm1"]["tag"] = frozenset({9})
    held["Manager"] = {}
    free = made(host(), NOTHING_HELD, held)
    changed: dict[str, Any] = {}
    for operation in only_released(plain.operations(held, free)):
        changed.setdefault(operation["table"], set()).update(operation["row"])
    assert changed["Bridge"] == {"fail_mode", "protocols", "mirrors", "sflow"}
    assert changed["Controller"] == {"target"}
    assert changed.keys() == {"Bridge", "Controller", "Mirror", "sFlow"}


def test_ports_come_and_go_and_nothing_else_changes() -> None:
    new = made(host())
    new["Port"]["p-vm1"]["tag"] = frozenset({9})
    active = host()
    active["Bridge"]["br"]["stp_enable"] = frozenset({True})
    came, gone = {Ref("p-late")}, {Ref("p-vm1")}
    active["Interface"]["i-late"] = row("Interface", name="late", type="dpdkvhostuserclient", ofport=12)
    active["Port"]["p-late"] = row("Port", name="late", interfaces=[Ref("i-late")])
    active["Bridge"]["br"]["ports"] |= came
    assert {each["table"] for each in only_ports(plain.operations(new, made(active, new=new)))} == {
        "Bridge", "Port", "Interface",
    }  # fmt: skip
    del active["Port"]["p-vm1"], active["Interface"]["i-vm1"]
    active["Bridge"]["br"]["ports"] -= gone
    found = only_ports(plain.operations(new, made(active, new=new)))
    inserted = {each["uuid"]: each["row"] for each in found if each["op"] == "insert"}
    assert inserted.keys() == {"p-late", "i-late"}
    assert inserted["i-late"]["ofport_request"] == 12
    deleted = [each["where"][0][2][1] for each in found if each["op"] == "delete"]
    assert sorted(deleted) == ["i-vm1", "p-vm1"]
    (bridge,) = [each for each in found if each["op"] == "update"]
    assert bridge["row"].keys() == {"ports"}
    left = set(new["Bridge"]["br"]["ports"]) | came - gone
    assert {uuid for _, uuid in bridge["row"]["ports"][1]} == {ref.uuid for ref in left - gone}


def test_an_instance_has_its_own_devices_and_cores() -> None:
    instance = InstanceConfig.model_validate(
        {"pmd_cores": [1, 3], "uplink_devargs": "none", "port_devices": {"up": "0000:01:10.0"}}
    )
    changes = changes_of(instance)
    assert changes == Changes(interfaces={"up": {"options": {"dpdk-devargs": "0000:01:10.0"}}}, cores=frozenset({1, 3}))


def with_window(rows: Rows) -> Rows:
    """The host with parts of ovs-hotswap: a port on the bridge, a mirror, and a bridge."""
    mark = {owned.MARK: "type"}
    rows["Interface"]["i-link"] = row("Interface", name="link", type="patch", ofport=9, external_ids=mark)
    rows["Port"]["p-link"] = row("Port", name="link", interfaces=[Ref("i-link")])
    rows["Mirror"]["wire"] = row("Mirror", name="wire", output_port=[Ref("p-link")], external_ids=mark)
    rows["Bridge"]["br"]["ports"] |= {Ref("p-link")}
    rows["Bridge"]["br"]["mirrors"] |= {Ref("wire")}
    rows["Interface"]["i-far"] = row("Interface", name="far", type="patch", ofport=1)
    rows["Port"]["p-far"] = row("Port", name="far", interfaces=[Ref("i-far")])
    rows["Bridge"]["peer"] = row(
        "Bridge", name="br-peer", datapath_type="netdev", ports=[Ref("p-far")], external_ids=mark
    )
    rows["Open_vSwitch"]["root"]["bridges"] |= {Ref("peer")}
    return rows


OWN = {"i-link", "p-link", "wire", "i-far", "p-far", "peer"}


def test_parts_of_ovs_hotswap_are_not_copied_and_those_of_the_new_side_stay() -> None:
    assert ours(with_window(host())) == OWN
    assert ours(host()) == set()
    copied = made(with_window(host()))
    assert copied == made(host())
    new = with_window(host())
    both = made(host(), new=new)
    assert ours(both) == OWN
    assert both["Bridge"]["br"]["ports"] == {Ref("p-vm1"), Ref("p-local"), Ref("p-link")}
    assert both["Bridge"]["br"]["mirrors"] == {Ref("mirror"), Ref("wire")}
    assert made(host(), Changes(), new)["Bridge"]["br"]["mirrors"] == {Ref("wire")}
    assert made(with_window(host()), new=new) == both


def test_a_port_that_the_active_switch_has_not_looked_at_waits() -> None:
    active = host()
    active["Interface"]["i-vm1"]["ofport"] = frozenset()
    assert unready(active) == {"vm1"}
    rows = made(active)
    assert rows["Port"].keys() == {"p-local"}
    assert rows["Mirror"]["mirror"]["output_port"] == frozenset()
    active["Interface"]["i-vm1"]["error"] = frozenset({"no such device"})
    assert unready(active) == set()


def test_a_port_may_be_left_out() -> None:
    assert made(host(), Changes(without=frozenset({"vm1"}), held=frozenset()))["Port"].keys() == {"p-local"}


def test_bridges_of_the_kernel_datapath_are_not_copied() -> None:
    active = host()
    for uuid, kind in (("k1", []), ("k2", "system")):
        active["Bridge"][uuid] = row("Bridge", name=f"br-{uuid}", datapath_type=kind)
        active["Open_vSwitch"]["root"]["bridges"] |= {Ref(uuid)}
    active["Datapath"] = {"d1": row("Datapath"), "d2": row("Datapath")}
    active["Open_vSwitch"]["root"]["datapaths"] = {"system": Ref("d1"), "netdev": Ref("d2")}
    assert kernel_bridges(active) == {"k1": "br-k1", "k2": "br-k2"}
    rows = made(active)
    assert rows["Bridge"].keys() == {"br"}
    assert rows["Datapath"].keys() == {"d2"}

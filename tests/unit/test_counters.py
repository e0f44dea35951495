"""What a switch has counted: reading it, and giving each dropped packet its reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.counters import texts
from ovs_hotswap.counters.drops import (
    EVENTS,
    FLOWS,
    TO_GUEST,
    Drop,
    Duty,
    Reason,
    drops,
    growth,
    losses,
    of_coverage,
    of_port,
)  # fmt: skip
from ovs_hotswap.counters.values import (
    ConntrackCounts,
    FlowCount,
    PmdCounters,
    PortCounters,
    SwitchCounters,
    ZoneLimit,
)
from ovs_hotswap.overlay.tables import Kind, cookie_kind
from ovs_hotswap.switch.pools import parse_pools

COVERAGE = """\
Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash=4cf1ff42:
bridge_reconfigure         0.0/sec     0.000/sec        0.0011/sec   total: 4
datapath_drop_upcall_error   0.2/sec     0.017/sec        0.0003/sec   total: 1
drop_action_of_pipeline  1012.4/sec   168.733/sec        2.8122/sec   total: 10124
163 events never hit
"""

PMDS = """\
pmd thread numa_id 0 core_id 1:
  packets received: 3102
  packet recirculations: 12
  avg. datapath passes per packet: 1.00
  phwol hits: 0
  mfex opt hits: 0
  simple match hits: 0
  emc hits: 3010
  smc hits: 0
  megaflow hits: 70
  avg. subtable lookups per megaflow hit: 1.33
  miss with success upcall: 29
  miss with failed upcall: 3
  avg. packets per output batch: 1.10
  idle cycles: 8123456789 (97.50%)
  processing cycles: 208291712 (2.50%)
  avg cycles per packet: 2685893.14 (8331748501/3102)
  avg processing cycles per packet: 67147.55 (208291712/3102)
main thread:
  packets received: 4
  packet recirculations: 0
  avg. datapath passes per packet: 1.00
  miss with success upcall: 4
  miss with failed upcall: 0
"""

PORTS = """\
OFPST_PORT reply (OF1.4) (xid=0x2): 3 ports
  port LOCAL: rx pkts=7, bytes=590, drop=0, errs=0, frame=0, over=0, crc=0
           tx pkts=0, bytes=0, drop=0, errs=0, coll=0
           duration=12.345s
  port  1: rx pkts=100, bytes=15000, drop=4, errs=0, frame=?, over=?, crc=?
           tx pkts=90, bytes=13000, drop=1, errs=2, coll=?
           duration=12.345s
           rx rfc2819 broadcast_packets=3, undersized_errors=0,
           CUSTOM Statistics
                      ovs_tx_failure_drops=1, ovs_tx_mtu_exceeded_drops=0, ovs_tx_qos_drops=0,
                      ovs_rx_qos_drops=0, rx_missed_errors=4,
  port 10: rx pkts=5, bytes=300, drop=0, errs=0, frame=?, over=?, crc=?
           tx pkts=6, bytes=400, drop=9, errs=0, coll=?
           duration=12.345s
           CUSTOM Statistics
                      ovs_tx_retries=2, ovs_tx_failure_drops=7, ovs_tx_mtu_exceeded_drops=1,
                      rx_q0_good_packets=5, tx_q0_guest_notifications=3,
"""


def test_coverage_has_the_events_that_happened() -> None:
    assert texts.coverage(COVERAGE) == {
        "bridge_reconfigure": 4, "datapath_drop_upcall_error": 1, "drop_action_of_pipeline": 10124,
    }  # fmt: skip


def test_a_text_without_the_last_line_of_coverage_is_no_answer() -> None:
    with pytest.raises(ValueError, match="events that never happened"):
        texts.coverage(COVERAGE.rpartition("163")[0])


def test_pmd_threads_and_the_main_thread() -> None:
    assert texts.pmds(PMDS) == (
        PmdCounters(0, 1, 8123456789, 208291712, 3102, 12, 29, 3, emc_hits=3010, megaflow_hits=70),
        PmdCounters(None, None, received=4, missed=4),
    )
    assert texts.pmds("") == ()


def test_the_statistics_of_ports_at_this_moment() -> None:
    found = texts.port_statistics(PORTS)
    assert sorted(found) == [1, 10, texts.LOCAL_PORT]
    assert found[1] == {
        "rx_packets": 100, "rx_bytes": 15000, "rx_dropped": 4, "rx_errors": 0, "tx_packets": 90, "tx_bytes": 13000,
        "tx_dropped": 1, "tx_errors": 2, "ovs_tx_failure_drops": 1, "ovs_tx_mtu_exceeded_drops": 0,
        "ovs_tx_qos_drops": 0, "ovs_rx_qos_drops": 0, "rx_missed_errors": 4,
    }  # fmt: skip
    assert found[10]["ovs_tx_failure_drops"] == 7
    assert found[10]["tx_q0_guest_notifications"] == 3
    assert found[texts.LOCAL_PORT]["rx_packets"] == 7


def test_flows_with_one_cookie_are_added_up() -> None:
    dump = """\
 cookie=0x6873020000000000, duration=9.1s, table=0, n_packets=3, n_bytes=300, priority=9,in_port=LOCAL actions=output:1
 cookie=0x6873880000050000, duration=9.1s, table=0, n_packets=1, n_bytes=60, idle_age=3, priority=5 actions=drop
 cookie=0x6873880000050000, duration=9.1s, table=2, n_packets=2, n_bytes=99, priority=5 actions=drop
"""
    assert texts.flow_packets(dump) == {0x6873020000000000: (3, 300), 0x6873880000050000: (3, 159)}


def test_connections_and_the_limits_of_zones() -> None:
    limits = "default limit=10\nzone=5,limit=7,count=3\nzone=6,limit=0,count=1\n"
    zones = (ZoneLimit(5, 7, 3), ZoneLimit(6, 0, 1))
    assert texts.conntrack("12\n", "3000000\n", limits) == ConntrackCounts(12, 3_000_000, 10, zones)
    assert texts.conntrack("0\n", "9\n", "").zones == ()


def row(**changed: Any) -> dict[str, Any]:
    return {
        "name": "vm1", "type": "dpdkvhostuserclient", "ofport": 10, "link_state": "up", "admin_state": "up",
        "mtu": 1500, "error": ["set", []], "ingress_policing_rate": 0, "statistics": ["map", [["tx_dropped", 3]]],
        **changed,
    }  # fmt: skip


def test_a_row_of_an_interface() -> None:
    port = texts.ports([row()])["vm1"]
    assert port == PortCounters("vm1", "dpdkvhostuserclient", 10, True, True, 1500, None, 0, {"tx_dropped": 3})
    assert (port.count("tx_dropped"), port.count("ovs_tx_failure_drops")) == (3, 0)


def test_a_row_of_an_interface_that_could_not_be_made() -> None:
    empty: list[Any] = ["set", []]
    changed = row(ofport=-1, link_state=empty, admin_state="down", mtu=empty, error="no device",
                  ingress_policing_rate=1000, statistics=["map", []])  # fmt: skip
    assert texts.ports([changed])["vm1"] == PortCounters(
        "vm1", "dpdkvhostuserclient", None, None, False, None, "no device", 1000
    )


# ---------------------------------------------------------------------------------------------------------------- drops


VM = {
    "tx_dropped": 100, "ovs_tx_failure_drops": 50, "ovs_tx_mtu_exceeded_drops": 20, "ovs_tx_qos_drops": 10,
    "ovs_tx_invalid_hwol_drops": 5, "rx_dropped": 7, "ovs_rx_qos_drops": 7,
}  # fmt: skip


def test_what_a_vms_port_drops_has_a_reason_to_the_last_packet() -> None:
    found = {drop.reason: drop.packets for drop in of_port(port("vm1", **VM))}
    assert found == {
        Reason.RING_FULL: 50, Reason.MTU: 20, Reason.QOS: 10, Reason.OFFLOAD: 5, Reason.NOT_READY: 15,
        Reason.POLICING: 7,
    }  # fmt: skip
    assert sum(found.values()) == VM["tx_dropped"] + VM["rx_dropped"]


def test_what_a_nic_drops_has_a_reason_to_the_last_packet() -> None:
    statistics = {"rx_dropped": 12, "rx_missed_errors": 5, "ovs_rx_qos_drops": 1, "tx_dropped": 2,
                  "ovs_tx_failure_drops": 2}  # fmt: skip
    found = {drop.reason: drop.packets for drop in of_port(nic(**statistics)) if drop.packets}
    assert found == {Reason.NIC_MISSED: 5, Reason.NO_BUFFER: 6, Reason.POLICING: 1, Reason.RING_FULL: 2}


def test_a_port_of_a_guest_has_no_reasons_of_a_nic_even_if_it_is_no_vms() -> None:
    found = drops(counters(ports={"vhu9": port("vhu9", **VM)}), {"vm1": 10})
    assert {drop.reason for drop in found} == {*TO_GUEST, Reason.POLICING}


def test_a_port_that_counts_no_reasons_has_no_drops() -> None:
    assert list(of_port(port("br0", tx_dropped=9))) == []


def port(name: str, **statistics: int) -> PortCounters:
    return PortCounters(name, "dpdkvhostuserclient", 10, statistics=statistics)


def nic(**statistics: int) -> PortCounters:
    return PortCounters("uplink", "dpdk", 1, statistics=statistics)


def counters(**parts: Any) -> SwitchCounters:
    return SwitchCounters((1, 2), **parts)


def test_the_drops_of_a_switch_name_vm_vni_or_nothing() -> None:
    flows = (
        FlowCount("drop_spoofed", 7, 10, 3, 180), FlowCount("drop_spoofed", 7, 11, 4, 240),
        FlowCount("drop_unknown_from_vm", 7, 0, 5, 300), FlowCount("deliver", 7, 10, 900, 9),
        FlowCount("drop_unknown_vni", 0, 0, 6, 360),
    )  # fmt: skip
    found = drops(counters(ports={"vm1": port("vm1", **VM)}, flows=flows, coverage={"datapath_drop_meter": 2}),
                  {"vm1": 10})  # fmt: skip
    some = {drop.place: drop.packets for drop in found if drop.packets}
    assert some == {
        (Reason.RING_FULL, "vm1", 0): 50, (Reason.MTU, "vm1", 0): 20, (Reason.QOS, "vm1", 0): 10,
        (Reason.OFFLOAD, "vm1", 0): 5, (Reason.NOT_READY, "vm1", 0): 15, (Reason.POLICING, "vm1", 0): 7,
        (Reason.SPOOFED, "vm1", 7): 3, (Reason.SPOOFED, "", 7): 4, (Reason.UNKNOWN_MAC, "", 7): 5,
        (Reason.UNKNOWN_VNI, "", 0): 6, (Reason.METER, "", 0): 2,
    }  # fmt: skip


def test_packets_that_needed_an_upcall_which_could_not_be_made_have_one_reason() -> None:
    coverage = {"datapath_drop_upcall_error": 1, "datapath_drop_lock_error": 2,
                "datapath_drop_userspace_action_error": 4, "datapath_drop_hw_post_process": 8,
                "ipf_l3csum_err": 16}  # fmt: skip
    found = {drop.reason: drop.packets for drop in of_coverage(coverage) if drop.packets}
    assert found == {Reason.UPCALL: 7, Reason.INTERNAL: 8, Reason.CONNTRACK_INVALID: 16}


def test_what_could_not_be_read_has_no_drops_instead_of_none_dropped() -> None:
    assert drops(counters(), {}) == ()
    assert {drop.reason for drop in drops(counters(coverage={}), {})} == set(EVENTS.values())


def test_every_flow_of_the_overlay_that_drops_has_a_reason() -> None:
    assert FLOWS.keys() == {kind.name.lower() for kind in Kind if kind.is_drop}


def test_every_reason_has_a_text_and_a_counter_behind_it() -> None:
    counted = {*TO_GUEST, *FLOWS.values(), *EVENTS.values(), Reason.POLICING, Reason.NIC_MISSED, Reason.NO_BUFFER}
    assert counted | {Reason.MOVED} == set(Reason)
    assert len({reason.text for reason in Reason}) == len(Reason)


def test_the_growth_between_two_looks() -> None:
    before = [Drop(Reason.RING_FULL, 5, "vm1"), Drop(Reason.MTU, 9, "vm1"), Drop(Reason.METER, 1)]
    after = [Drop(Reason.RING_FULL, 8, "vm1"), Drop(Reason.MTU, 2, "vm1"), Drop(Reason.SPOOFED, 4, "vm1", 7)]
    assert growth(before, after) == (
        Drop(Reason.RING_FULL, 3, "vm1"), Drop(Reason.MTU, 2, "vm1"), Drop(Reason.SPOOFED, 4, "vm1", 7),
    )  # fmt: skip


def test_the_rest_of_a_ports_drops_that_is_less_than_before_has_not_grown() -> None:
    """The counters of which it is the difference were not read at the same instant."""
    before, after = [Drop(Reason.NOT_READY, 1003, "vm1")], [Drop(Reason.NOT_READY, 1000, "vm1")]
    assert growth(before, after) == (Drop(Reason.NOT_READY, 0, "vm1"),)


PLACES = st.sampled_from(
    [(Reason.RING_FULL, "vm1"), (Reason.MTU, "vm1"), (Reason.POLICING, "vm1"), (Reason.MTU, "vm2")]
)
COUNTS = st.dictionaries(PLACES, st.integers(0, 1000))


@given(COUNTS, COUNTS)
def test_no_growth_is_negative_or_more_than_what_is_counted(before: Any, after: Any) -> None:
    now = made(after)
    for grown, drop in zip(growth(made(before), now), now, strict=True):
        assert 0 <= grown.packets <= drop.packets


def made(counts: dict[tuple[Reason, str], int]) -> list[Drop]:
    return [Drop(reason, packets, name) for (reason, name), packets in counts.items()]


GROWN = [
    Drop(Reason.RING_FULL, 5, "vm1"), Drop(Reason.MTU, 1, "vm1"), Drop(Reason.POLICING, 2, "vm1"),
    Drop(Reason.SPOOFED, 3, "vm1", 7), Drop(Reason.RING_FULL, 4, "uplink"),
]  # fmt: skip


def test_where_a_switch_served_a_vm_all_drops_are_losses() -> None:
    assert losses(GROWN, {"vm1": Duty.SERVED}) == tuple(GROWN)
    assert losses(GROWN, {}) == tuple(GROWN)


def test_what_a_standby_could_not_deliver_were_copies_and_what_a_vm_sent_to_it_were_none() -> None:
    assert losses(GROWN, {"vm1": Duty.STOOD_BY}) == (GROWN[2], GROWN[3], GROWN[4])


def test_of_a_vm_that_was_moved_losses_and_copies_are_not_told_apart() -> None:
    assert losses(GROWN, {"vm1": Duty.MOVED}) == (GROWN[2], GROWN[3], GROWN[4], Drop(Reason.MOVED, 6, "vm1"))


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GROWN[0].packets = 1  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------------- real answers


ANSWERS = Path(__file__).parent / "answers/counters"
"""What Open vSwitch 3.1 with two VMs has answered, of which the first one exchanged frames with another host."""


def answer(name: str) -> str:
    return (ANSWERS / name).read_text()


def test_real_coverage_counters() -> None:
    found = texts.coverage(answer("coverage-3.1.txt"))
    assert (found["netdev_received"], found["drop_action_of_pipeline"]) == (6983, 6)
    assert len(found) == len(answer("coverage-3.1.txt").splitlines()) - 2, "all but the first and the last line"


def test_real_pmd_threads() -> None:
    pmd, main = texts.pmds(answer("pmds-3.1.txt"))
    assert pmd == PmdCounters(0, 1, 269327181, 281966572, 6989, 3494, 3, 0, emc_hits=9914, megaflow_hits=566)
    assert (main.core, main.received, main.missed) == (None, 7, 1)


def test_real_packet_pools() -> None:
    (pool,) = parse_pools(answer("pools-3.1.txt"))
    assert (pool.buffers, pool.buffer_bytes) == (16384, 3008)


def test_real_ports_are_the_same_in_the_database_and_over_openflow() -> None:
    rows = texts.ports(json.loads(answer("interfaces-3.1.json")))
    now = texts.port_statistics(answer("ports-3.1.txt"))
    assert sorted(rows) == ["br0", "uplink", "vm1", "vm2", "vxlan"]
    assert {port.ofport for port in rows.values()} == set(now)
    for port in rows.values():
        here = now[port.ofport or 0]
        assert {name: here[name] for name in here if name in port.statistics} == {
            name: count for name, count in port.statistics.items() if name in here
        }, "no traffic was under way"
    vm1, uplink = now[rows["vm1"].ofport or 0], now[rows["uplink"].ofport or 0]
    assert (vm1["rx_packets"], vm1["tx_packets"], vm1["ovs_tx_failure_drops"]) == (3495, 3491, 0)
    assert (uplink["rx_missed_errors"], uplink["rx_q0_packets"]) == (0, 3494)
    assert [rows["vm1"].link_up, rows["vm1"].admin_up, rows["vm1"].mtu, rows["vxlan"].mtu] == [True, True, 1450, None]


def test_the_real_drops_of_a_switch_that_dropped_nothing() -> None:
    rows = texts.ports(json.loads(answer("interfaces-3.1.json")))
    found = drops(counters(ports=rows), {"vm1": 10, "vm2": 11})
    assert {drop.port for drop in found} == {"vm1", "vm2", "uplink"}
    assert {drop.reason for drop in found if drop.port == "vm1"} == {*TO_GUEST, Reason.POLICING}
    assert [drop for drop in found if drop.packets] == []


def test_real_flows() -> None:
    counted = texts.flow_packets(answer("flows-3.1.txt"))
    found = {cookie_kind(cookie): packets for cookie, (packets, _) in counted.items() if cookie & 0xFFFF in {0, 10}}
    assert found[Kind.FROM_VM] == 3495
    assert found[Kind.TO_UPLINK] == 3496
    assert found[Kind.DROP_SPOOFED] == 0


def test_real_connection_tracking() -> None:
    parts = (answer(f"ct-{name}-3.1.txt") for name in ("nconns", "maxconns", "limits"))
    assert texts.conntrack(*parts) == ConntrackCounts(0, 3_000_000, 0)

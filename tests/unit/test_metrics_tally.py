"""Counters of packets over looks: nothing goes backwards, copies are no losses, and a new process loses no sums."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.counters.values import FlowCount, PortCounters, SwitchCounters
from ovs_hotswap.metrics.history import History
from ovs_hotswap.metrics.state import Kept, document, of_document
from ovs_hotswap.metrics.tally import VM_REASONS, Counted, Tally, advance, drop_key, vm_drops
from ovs_hotswap.model import Side

A, B = Side.A, Side.B
OLD, NEW = (10, 100), (11, 200)
FULL, SPOOFED = drop_key(Reason.RING_FULL, "vm1"), drop_key(Reason.SPOOFED, "vm1", 7)


def switch(
    full: int | None = 0, *, spoofed: int = 0, process: Any = OLD, upcall: int | None = 0, delivered: int = 0
) -> SwitchCounters:
    """A switch with one VM. ``full`` and ``upcall`` of ``None``: that part cannot be read."""
    statistics = {"ovs_tx_failure_drops": full or 0, "tx_dropped": full or 0}
    return SwitchCounters(
        process,
        ports=None if full is None else {"vm1": PortCounters("vm1", "dpdkvhostuserclient", 10, statistics=statistics)},
        coverage=None if upcall is None else {"datapath_drop_upcall_error": upcall, "bridge_reconfigure": 1},
        flows=(FlowCount("drop_spoofed", 7, 10, spoofed, 0), FlowCount("deliver", 7, 10, delivered, 0)),
    )


def look(time: float, serving: Side | None = A, *, vms: Any = ("vm1",), **sides: SwitchCounters) -> Counted:
    return Counted(time, {Side(side): counters for side, counters in sides.items()},
                   dict.fromkeys(vms, 10), {} if serving is None else dict.fromkeys(vms, serving))  # fmt: skip


def after(*looks: Counted, tally: Tally | None = None) -> Tally:
    found = tally or Tally()
    for each in looks:
        found = advance(found, each)
    return found


def test_what_a_process_had_counted_before_the_first_look_is_not_taken() -> None:
    tally = after(look(0, a=switch(50)), look(15, a=switch(53)))
    assert tally.drops[FULL] == 3


def test_what_a_process_that_began_later_has_counted_is_taken_whole() -> None:
    tally = after(look(0, a=switch(50)), look(15, a=switch(4, process=NEW)))
    assert tally.drops[FULL] == 4


def test_a_counter_that_the_switch_set_back_continues_from_its_sum() -> None:
    tally = after(look(0, a=switch(50)), look(15, a=switch(60)), look(30, a=switch(2)))
    assert tally.drops[FULL] == 12


def rest(*counts: tuple[int, int]) -> list[Counted]:
    """A port whose own counters, and whose drops in all, are these at one look after the other."""
    looks = []
    for number, (full, dropped) in enumerate(counts):
        statistics = {"ovs_tx_failure_drops": full, "tx_dropped": dropped}
        ports = {"vm1": PortCounters("vm1", "dpdkvhostuserclient", 10, statistics=statistics)}
        looks.append(look(15.0 * number, a=SwitchCounters(OLD, ports=ports)))
    return looks


def test_the_rest_of_a_ports_drops_is_not_counted_again_after_it_was_read_between_two_packets() -> None:
    """The port's own counters are read a moment before its drops in all."""
    tally = after(*rest((0, 1000), (50, 1053), (90, 1090), (120, 1120)))
    assert tally.drops[drop_key(Reason.NOT_READY, "vm1")] == 3
    assert tally.drops[FULL] == 120


def vhost(full: int, policed: int = 0, **told: int) -> SwitchCounters:
    """A switch with the port of a VM, whose own counters are there even if no guest is."""
    statistics = {"ovs_tx_failure_drops": full, "ovs_rx_qos_drops": policed, **told}
    return SwitchCounters(
        OLD, ports={"vm1": PortCounters("vm1", "dpdkvhostuserclient", 10, statistics=statistics)},
        coverage={"bridge_reconfigure": 1},
    )  # fmt: skip


def test_a_guest_that_goes_and_comes_back_makes_nothing_count_again() -> None:
    """Without a guest a port tells no packets, and for a new one these begin at 0, while the port's own counters stay.
    When it is made again with other queues, they begin at 0 too."""
    looks = [vhost(0, rx_packets=10, tx_packets=10, tx_dropped=0),
             vhost(40, 7, rx_packets=99, tx_packets=99, tx_dropped=40),
             vhost(45, 8), vhost(45, 8), vhost(46, 8, rx_packets=1, tx_packets=0, tx_dropped=50),
             vhost(2, 9, rx_packets=1000, tx_packets=0, tx_dropped=3)]  # fmt: skip
    tally = after(*(look(15.0 * number, a=each) for number, each in enumerate(looks)))
    assert tally.drops[FULL] == 46 + 2
    assert tally.drops[drop_key(Reason.POLICING, "vm1")] == 8 + 9
    assert tally.drops[drop_key(Reason.NOT_READY, "vm1")] == 4 + 1


def test_a_port_that_sets_its_counters_back_counts_from_zero_for_every_reason() -> None:
    tally = after(*rest((10, 1000), (20, 1010), (5, 7)))
    assert tally.drops[FULL] == 15
    assert tally.drops[drop_key(Reason.NOT_READY, "vm1")] == 2


def test_what_a_standby_counts_are_copies_but_what_the_vm_sends_to_it_is_none() -> None:
    tally = after(look(0, a=switch(), b=switch()), look(15, a=switch(1), b=switch(70, spoofed=5)))
    assert tally.drops[FULL] == 1
    assert tally.drops[SPOOFED] == 5


def test_the_drops_around_a_move_have_a_reason_of_their_own_until_the_statistics_have_settled() -> None:
    looks = [look(0, A, a=switch(), b=switch()), look(15, B, a=switch(3), b=switch(4)),
             look(20, B, a=switch(5), b=switch(4)), look(25, B, a=switch(99), b=switch(6))]  # fmt: skip
    moved = drop_key(Reason.MOVED, "vm1")
    assert [after(*looks[:count]).drops.get(moved, 0) for count in (1, 2, 3, 4)] == [0, 7, 9, 105]
    tally = after(*looks, look(40, B, a=switch(500), b=switch(16)))
    assert tally.drops[moved] == 105
    assert tally.drops[FULL] == 10


def test_a_clock_that_is_set_back_makes_no_move_last() -> None:
    tally = after(look(7200, A, a=switch(), b=switch()), look(7215, B, a=switch(), b=switch()),
                  look(15, B, a=switch(), b=switch()), look(30, B, a=switch(), b=switch(6)))  # fmt: skip
    assert (tally.drops[FULL], tally.drops.get(drop_key(Reason.MOVED, "vm1"), 0)) == (6, 0)


def test_a_failover_keeps_the_sums_of_the_side_that_died() -> None:
    gone = SwitchCounters(None, unknown={"ports": "it does not run"})
    before = after(look(0, A, a=switch(), b=switch()), look(15, A, a=switch(30, spoofed=2), b=switch()))
    tally = advance(before, look(30, B, a=gone, b=switch(1, spoofed=1)))
    assert tally.drops[FULL] == 30
    assert tally.drops[SPOOFED] == 3
    again = advance(tally, look(45, B, a=switch(process=NEW), b=switch(1, spoofed=1)))
    assert again.drops[FULL] == 30


def test_a_part_that_cannot_be_read_is_taken_up_where_it_was() -> None:
    tally = after(look(0, a=switch(10)), look(15, a=switch(None)), look(30, a=switch(14)))
    assert tally.drops[FULL] == 4


def test_a_part_that_is_read_for_the_first_time_of_an_old_process_counts_from_there() -> None:
    tally = after(look(0, a=switch(upcall=None)), look(15, a=switch(upcall=900)), look(30, a=switch(upcall=907)))
    assert tally.drops[drop_key(Reason.UPCALL)] == 7


def test_while_it_is_not_known_who_serves_a_vm_it_is_who_served_it_last() -> None:
    tally = after(look(0, A, a=switch(), b=switch()), look(15, None, a=switch(2), b=switch(9)))
    assert tally.drops[FULL] == 2
    assert tally.serving == {"vm1": A}


def stale(full: int, *, coverage: dict[str, int] | None) -> SwitchCounters:
    """A switch whose database still has what the ovs-vswitchd before has written."""
    return dataclasses.replace(switch(full, process=NEW), coverage=coverage)


@pytest.mark.parametrize("starting", [None, {}])
def test_what_the_database_has_of_the_process_before_is_not_counted_again(starting: dict[str, int] | None) -> None:
    """A new ovs-vswitchd has no ports until its first reconfiguration; the main thread may not even answer then."""
    tally = after(look(0, a=switch(500)), look(15, a=switch(507)), look(30, a=stale(507, coverage=starting)),
                  look(45, a=switch(3, process=NEW)), look(60, a=switch(4, process=NEW, upcall=None)))  # fmt: skip
    assert tally.drops[FULL] == 7 + 4


def test_a_process_that_was_overlooked_once_is_not_new() -> None:
    tally = after(look(0, a=switch(500)), look(15, a=SwitchCounters(None)), look(30, a=switch(502)))
    assert tally.drops[FULL] == 2


def nic(missed: int, received: int, full: int = 0) -> SwitchCounters:
    statistics = {"rx_missed_errors": missed, "rx_dropped": missed, "rx_packets": received,
                  "ovs_tx_failure_drops": full, "tx_dropped": full}  # fmt: skip
    return SwitchCounters(OLD, ports={"uplink": PortCounters("uplink", "dpdk", 1, statistics=statistics)})


def test_what_a_nic_has_missed_is_not_counted_again_when_the_switch_makes_its_port_again() -> None:
    """The device keeps its counters, and the port begins at 0."""
    tally = after(*(look(15.0 * number, a=each) for number, each in enumerate(
        [nic(0, 0), nic(40, 1000, 9), nic(50, 3000, 2), nic(1, 10, 3)])))  # fmt: skip
    assert tally.drops[drop_key(Reason.NIC_MISSED, "uplink")] == 50 + 1
    assert tally.drops[drop_key(Reason.RING_FULL, "uplink")] == 9 + 2 + 3


def test_a_vm_that_is_plugged_again_counts_from_zero_and_nothing_twice() -> None:
    tally = after(look(0, a=switch()), look(15, a=switch(9)), look(30, vms=(), a=SwitchCounters(OLD, ports={})),
                  look(45, a=switch(12)))  # fmt: skip
    assert tally.drops[FULL] == 12
    assert tally.vms == ("vm1",)


def test_a_vm_that_the_broker_still_has_but_the_intent_has_not_is_none() -> None:
    told = [dataclasses.replace(look(15.0 * number, vms=vms, a=switch()), moves={"vm1": 3})
            for number, vms in enumerate([("vm1",), (), ()])]  # fmt: skip
    tally = after(*told)
    assert (tally.moves, tally.moves_seen, tally.vms) == ({}, {}, ())


def foreign(port: str, full: int) -> SwitchCounters:
    statistics = {"ovs_tx_failure_drops": full, "tx_dropped": full}
    ports = {} if not port else {port: PortCounters(port, "dpdkvhostuserclient", 9, statistics=statistics)}
    return SwitchCounters(OLD, ports=ports, coverage={})


def test_a_port_that_is_gone_for_an_hour_is_forgotten_and_one_that_cannot_be_read_is_not() -> None:
    """Ports of VMs come and go all the time on a host that others program."""
    full = drop_key(Reason.RING_FULL, "vhu 9")
    unread = SwitchCounters(OLD, coverage={}, unknown={"ports": "the database is silent"})
    tally = after(look(0, vms=(), a=foreign("vhu 9", 0)), look(15, vms=(), a=foreign("vhu 9", 4)))
    assert tally.drops[full] == 4
    silent = after(look(30, vms=(), a=unread), look(9000, vms=(), a=unread), tally=tally)
    assert silent.drops[full] == 4
    back = after(look(9015, vms=(), a=foreign("", 0)), look(9030, vms=(), a=foreign("vhu 9", 1)), tally=silent)
    assert (back.drops[full], back.missing) == (5, {})
    gone = after(look(9045, vms=(), a=foreign("", 0)), look(12700, vms=(), a=foreign("", 0)), tally=back)
    assert full not in gone.drops
    assert gone.missing == {}
    assert not any("vhu" in key for counts in gone.seen[A].drops.values() for key in counts)
    assert gone.drops[drop_key(Reason.UPCALL)] == 0, "what has no port is never forgotten"


def test_a_vm_that_is_gone_takes_its_counters_along() -> None:
    tally = after(look(0, a=switch()), look(15, a=switch(9)), look(30, vms=(), a=switch(9)))
    assert FULL not in tally.drops
    assert tally.serving == {}


def test_while_it_is_not_known_which_ports_are_vms_nothing_is_lost() -> None:
    unknown = dataclasses.replace(look(15, a=switch(3)), ofports=None)
    tally = after(look(0, a=switch()), unknown, look(30, a=switch(7)))
    assert tally.drops[FULL] == 7


def test_flows_are_added_up_by_kind_over_both_sides() -> None:
    tally = after(look(0, a=switch(delivered=100), b=switch()),
                  look(15, a=switch(delivered=160), b=switch(delivered=7)),
                  look(30, a=switch(delivered=165), b=switch(delivered=8)))  # fmt: skip
    assert tally.flows["deliver"] == 60 + 7 + 5 + 1


def test_a_flow_that_is_gone_does_not_make_the_packets_of_its_cookies_other_flows_new() -> None:
    """All remote MACs of a VNI have one cookie."""
    tally = after(look(0, a=switch()), look(15, a=switch(delivered=1000)), look(30, a=switch(delivered=900)),
                  look(45, a=switch(delivered=905)))  # fmt: skip
    assert tally.flows["deliver"] == 1005


def test_moves_continue_when_another_broker_counts_from_zero() -> None:
    counts = [2, 3, 0, 1]
    looks = [dataclasses.replace(look(15 * n, a=switch()), moves={"vm1": count}) for n, count in enumerate(counts)]
    assert [after(*looks[: n + 1]).moves["vm1"] for n in range(4)] == [2, 3, 3, 4]


SWITCHES = st.builds(
    switch, st.one_of(st.none(), st.integers(0, 9)), spoofed=st.integers(0, 9),
    process=st.sampled_from([OLD, NEW, None]),
    upcall=st.one_of(st.none(), st.integers(0, 9)), delivered=st.integers(0, 9),
)  # fmt: skip
LOOKS = st.lists(st.tuples(st.integers(1, 20), st.sampled_from([A, B, None]), SWITCHES, SWITCHES), max_size=8)


@given(LOOKS)
def test_no_sum_ever_goes_backwards_and_every_sum_survives_the_file(steps: Any) -> None:
    tally, time = Tally(), 0.0
    for pause, serving, a, b in steps:
        time += pause
        next_ = advance(tally, look(time, serving, a=a, b=b))
        for place, packets in tally.drops.items():
            assert next_.drops[place] >= packets
        for kind, packets in tally.flows.items():
            assert next_.flows[kind] >= packets
        tally = of_document(json.loads(json.dumps(document(Kept(next_, History()))))).tally
        assert tally == next_


def test_what_a_host_drops_has_every_reason_from_the_beginning() -> None:
    tally = after(look(0, a=switch()))
    assert tally.drops[drop_key(Reason.UPCALL)] == 0
    assert FULL not in tally.drops, "a VM's are made when they are exported"


def test_a_vm_has_every_reason_from_the_beginning() -> None:
    found = list(vm_drops({FULL: 3, SPOOFED: 2, "spoofed vm1 8": 1, "mtu uplink 0": 9}, ["vm1"]))
    assert [reason for _, reason, _ in found] == list(VM_REASONS)
    assert {(vm, reason): packets for vm, reason, packets in found if packets} == {
        ("vm1", Reason.RING_FULL): 3, ("vm1", Reason.SPOOFED): 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"format": 0}, {"seen": {"c": {}}}, {"histograms": {}}, {"drops": {"no_reason vm1 0": 1}}]
)
def test_a_document_of_another_version_is_none(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        of_document({**document(Kept()), **change})

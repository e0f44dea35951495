"""Connections made on the new side, before and after the cut, and taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from bench.connections import established, measure
from ovs_hotswap.clone import conntrack
from ovs_hotswap.clone.applied import undo
from ovs_hotswap.clone.conntrack import ConntrackState
from ovs_hotswap.clone.conntrack_entries import ICMPV6, SCTP, TCP, UDP, Dump, Entry, Tuple, parse_dump
from ovs_hotswap.errors import SwitchError
from tests.unit.fake_switch import ROWS, FakeSwitch

WEB = Entry(TCP, Tuple("10.0.0.1", "10.0.0.2", 5000, 80), Tuple("10.0.0.2", "10.0.0.1", 80, 5000), zone=1, mark=3,
            states=("ESTABLISHED", "ESTABLISHED"))  # fmt: skip
DNS = Entry(UDP, Tuple("10.0.0.1", "10.0.0.2", 5001, 53), Tuple("10.0.0.2", "172.16.0.1", 53, 6000), zone=2)
PING6 = Entry(
    ICMPV6, Tuple("fd00::1", "fd00::2", icmp=(1, 128, 0)), Tuple("fd00::2", "fd00::1", icmp=(1, 129, 0)), zone=1
)


@pytest.fixture
def switch() -> Iterator[FakeSwitch]:
    with FakeSwitch() as made:
        yield made


def active(*entries: Entry, unread: Iterable[str] = (), expectations: int | None = 0) -> ConntrackState:
    return ConntrackState(Dump(entries, tuple(unread)), frozenset(), expectations, tcp_check=True)


def held(switch: FakeSwitch) -> set[Entry]:
    return set(parse_dump(switch.conntrack.dump()).entries)


def test_connections_are_made_once_and_the_check_of_numbers_ends(switch: FakeSwitch) -> None:
    state = active(WEB, DNS, PING6)
    done = conntrack.apply(switch.system, switch.paths, state, cut=False)
    assert held(switch) == {WEB, DNS, PING6}
    assert not switch.tcp_check
    assert done.done == ("the new side no longer checks TCP sequence numbers", "connections: 3 made, 0 removed")
    assert done.refused == ()
    again = conntrack.apply(switch.system, switch.paths, state, cut=True)
    assert (again.done, again.undo, len(switch.system.bundles)) == ((), (), 1)
    assert conntrack.differences(switch.paths, state) == ("the new side does not check TCP sequence numbers",)


@pytest.mark.parametrize(("entry", "checked"), [(DNS, True), (WEB, True), (DNS, False)])
def test_numbers_are_checked_unless_some_are_invented_or_the_active_side_does_not(
    switch: FakeSwitch, entry: Entry, checked: bool
) -> None:
    conntrack.apply(switch.system, switch.paths, replace(active(entry), tcp_check=checked), cut=False)
    assert switch.tcp_check == (checked and entry is DNS)


def test_what_ovs_ofctl_gets_fits_bridges_that_accept_only_some_versions(switch: FakeSwitch) -> None:
    conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    ((_, _, versions, command, target, _),) = switch.system.argv
    assert versions == "OpenFlow13,OpenFlow14,OpenFlow15"
    assert (command, target) == ("bundle", f"unix:{switch.paths.run_dir}/br0.mgmt")


def test_translated_connections_are_made_first(switch: FakeSwitch) -> None:
    conntrack.apply(switch.system, switch.paths, active(WEB, DNS), cut=False)
    assert "nat(src=172.16.0.1:6000)" in switch.system.bundles[0][0]


def test_undo_removes_what_was_made_and_nothing_else(switch: FakeSwitch) -> None:
    own = replace(WEB, original=replace(WEB.original, source_port=9), reply=replace(WEB.reply, target_port=9))
    conntrack.apply(switch.system, switch.paths, active(own), cut=False)
    done = conntrack.apply(switch.system, switch.paths, active(own, WEB, DNS), cut=True)
    # A zone in which the new side had nothing is emptied at once.
    assert done.undo[0] == ("dpctl/flush-conntrack", "zone=2")
    assert undo(switch.paths.vswitchd_ctl, done.undo) == ()
    assert held(switch) == {own}


def test_before_the_cut_the_active_side_is_right(switch: FakeSwitch) -> None:
    opening = replace(WEB, states=("SYN_SENT", "CLOSED"), mark=0)
    conntrack.apply(switch.system, switch.paths, active(opening, DNS), cut=False)
    done = conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    assert held(switch) == {WEB}
    assert done.done == ("connections: 1 made, 2 removed",)


def test_nothing_is_removed_that_may_be_in_a_line_that_cannot_be_read(switch: FakeSwitch) -> None:
    conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    conntrack.apply(switch.system, switch.paths, active(unread=["?"]), cut=False)
    assert held(switch) == {WEB}


def test_after_the_cut_the_new_side_is_right(switch: FakeSwitch) -> None:
    closed = replace(WEB, states=("TIME_WAIT", "TIME_WAIT"))
    conntrack.apply(switch.system, switch.paths, active(closed), cut=False)
    conntrack.apply(switch.system, switch.paths, active(WEB, DNS), cut=True)
    assert held(switch) == {closed, DNS}
    told = conntrack.differences(switch.paths, active(WEB, DNS))
    assert told[0] == (
        "connections: the new side has with another state, mark or label 1, "
        "for example tcp 10.0.0.1:5000 to 10.0.0.2:80 in zone 1"
    )


def test_no_connection_of_icmpv6_is_removed_by_its_tuple(switch: FakeSwitch) -> None:
    """OVS before 3.5 ends at that. It is made with the new mark without being removed before."""
    conntrack.apply(switch.system, switch.paths, active(PING6), cut=False)
    conntrack.apply(switch.system, switch.paths, active(), cut=False)
    assert held(switch) == {PING6}
    assert switch.told("dpctl/flush") == []


def test_a_fault_puts_everything_back(switch: FakeSwitch) -> None:
    switch.system.fails = 1
    with pytest.raises(SwitchError, match="BAD_TYPE") as caught:
        conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    assert not hasattr(caught.value, "__notes__")
    assert held(switch) == set()
    assert switch.tcp_check


def test_what_cannot_be_put_back_is_told(switch: FakeSwitch) -> None:
    switch.system.fails = 1
    del switch.answers["dpctl/ct-enable-tcp-seq-chk"]
    with pytest.raises(SwitchError) as caught:
        conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    assert any("ct-enable-tcp-seq-chk" in note for note in caught.value.__notes__)


def test_what_the_new_side_does_not_make_is_told(switch: FakeSwitch) -> None:
    switch.limit = 1
    done = conntrack.apply(switch.system, switch.paths, active(DNS, WEB), cut=False)
    assert "connections: 1 made, 0 removed" in done.done
    assert len(done.refused) == 1
    assert "the new side did not make it" in done.refused[0]
    assert "the new side lacks 1" in conntrack.differences(switch.paths, active(DNS, WEB))[0]


def test_what_cannot_be_carried_over_is_counted(switch: FakeSwitch) -> None:
    helped = replace(WEB, helper="sip")
    child = replace(WEB, zone=5, parent="src=10.0.0.1,dst=10.0.0.2,sport=1,dport=21")
    done = conntrack.apply(
        switch.system, switch.paths, active(helped, child, unread=["?", "?"], expectations=4), cut=False
    )
    assert done.refused == (
        "connections not carried over: 1, because the helper sip is not known",
        "lines about the active side's connections that cannot be read: 2",
        "connections that helpers wait for, and that are not carried over: 4",
        "connections carried over in part: 1, because they are no longer related to the connections that announced "
        "them",
    )


def test_a_side_that_tracks_sctp_without_ports_gets_none(switch: FakeSwitch) -> None:
    sctp = Entry(SCTP, replace(DNS.original), Tuple("10.0.0.2", "10.0.0.1", 53, 5001))
    del switch.answers["dpctl/dump-conntrack-exp"]
    done = conntrack.apply(switch.system, switch.paths, active(sctp), cut=False)
    assert done.refused == ("connections not carried over: 1, because the new side tracks SCTP without ports",)
    assert (held(switch), switch.tcp_check) == (set(), True)


def test_a_zone_with_a_timeout_policy_does_not_show_that_it_was_not_answered(switch: FakeSwitch) -> None:
    state = ConntrackState(Dump((replace(DNS, zone=7, timeout=100),)), frozenset({7}), None, tcp_check=True)
    conntrack.apply(switch.system, switch.paths, state, cut=False)
    assert switch.conntrack.connections[0].answered


def test_reading_tells_all_that_is_needed(switch: FakeSwitch) -> None:
    conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    switch.answers["dpctl/dump-conntrack-exp"] = "tcp,orig=(src=10.0.0.4,dst=10.0.0.1,sport=0,dport=1),zone=9\n"
    found = conntrack.read(switch.paths)
    assert found == ConntrackState(Dump((WEB,)), frozenset({7}), 1, tcp_check=False)
    del switch.answers["dpctl/dump-conntrack-exp"]
    assert conntrack.read(switch.paths).expectations is None


def test_an_answer_about_the_check_that_is_not_understood_is_no_answer(switch: FakeSwitch) -> None:
    switch.answers["dpctl/ct-get-tcp-seq-chk"] = "perhaps\n"
    with pytest.raises(SwitchError, match="perhaps"):
        conntrack.tcp_check(switch.paths)


def test_without_a_bridge_no_connection_can_be_made(switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "Bridge", [])
    with pytest.raises(SwitchError, match="no bridge of the userspace datapath"):
        conntrack.apply(switch.system, switch.paths, active(WEB), cut=False)
    assert switch.tcp_check


def test_many_packets_are_sent_in_several_bundles(switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_BUNDLE", 2)
    conntrack.apply(switch.system, switch.paths, active(WEB, DNS), cut=False)
    assert [len(lines) for lines in switch.system.bundles] == [2, 2, 1]
    assert held(switch) == {WEB, DNS}


def test_the_measurement_leaves_nothing_and_fails_if_a_connection_was_not_made(switch: FakeSwitch) -> None:
    assert len({entry.key for entry in established(1000)}) == 1000
    assert str(measure(switch.system, switch.paths, 200)).startswith("200 connections: made in ")
    assert (held(switch), switch.tcp_check) == (set(), True)
    switch.limit = 199
    with pytest.raises(SwitchError, match="the new side did not make it"):
        measure(switch.system, switch.paths, 200)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (WEB, "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=6,ct_tp_src=5000,ct_tp_dst=80"),
        (
            Entry(1, Tuple("10.0.0.1", "10.0.0.2", icmp=(7, 8, 0)), Tuple("10.0.0.2", "10.0.0.1", icmp=(7, 0, 0)), 1),
            "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=1,icmp_type=8,icmp_code=0,icmp_id=7",
        ),
        (
            Entry(UDP, Tuple("fd00::1", "fd00::2", 1, 2), Tuple("fd00::2", "fd00::1", 2, 1), 1),
            "ct_ipv6_src=fd00::1,ct_ipv6_dst=fd00::2,ct_nw_proto=17,ct_tp_src=1,ct_tp_dst=2",
        ),
        (Entry(47, Tuple("10.0.0.1", "10.0.0.2"), Tuple("10.0.0.2", "10.0.0.1"), 1),
         "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=47"),
    ],
)  # fmt: skip
def test_an_entry_is_removed_by_its_original_tuple(entry: Entry, text: str) -> None:
    assert conntrack.flush(entry) == ("dpctl/flush-conntrack", "zone=1", text)


def test_lines_of_the_new_side_that_cannot_be_read_are_a_difference(switch: FakeSwitch) -> None:
    switch.answers["dpctl/dump-conntrack"] = "nonsense\n"
    assert conntrack.differences(switch.paths, active()) == (
        "lines about the new side's connections that cannot be read: 1",
    )


def test_silence_while_a_fault_is_undone_is_told(switch: FakeSwitch) -> None:
    """The command that would switch the check on again is not answered."""
    switch.system.fails = 1
    switch.hangs("dpctl/ct-enable-tcp-seq-chk")
    with pytest.raises(SwitchError, match="BAD_TYPE") as caught:
        conntrack.apply(switch.system, switch.paths, active(WEB), cut=False, timeout=0.5)
    assert "ct-enable-tcp-seq-chk: no answer" in caught.value.__notes__[0]

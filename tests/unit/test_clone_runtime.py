"""Settings and states of a running switch that are in no database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovs_hotswap.clone import conntrack, protocols, runtime, state
from ovs_hotswap.clone.applied import Applied, ask, attempt, commands_of
from ovs_hotswap.clone.conntrack_entries import Entry, Tuple
from ovs_hotswap.clone.conntrack_packets import packets
from ovs_hotswap.clone.fdb import FdbEntry
from ovs_hotswap.clone.runtime_settings import READERS, changes, different, summary, zone_limits
from ovs_hotswap.errors import SwitchError
from ovs_hotswap.switch.rpc import NoAnswer
from tests.unit.fake_switch import FakeSwitch

ANSWERS = Path(__file__).parent / "answers" / "runtime"
FILES = {
    "vlog/list": "vlog", "dpctl/ct-get-maxconns": "ct-get-maxconns", "dpctl/ct-get-limits": "ct-get-limits",
    "dpctl/ipf-get-status": "ipf-get-status", "tnl/egress_port_range": "tnl_egress_port_range", "upcall/show": "upcall",
    "ovs/route/show": "ovs_route", "tnl/neigh/show": "tnl_neigh",
}  # fmt: skip
STATES = {"stp/show": "stp", "bfd/show": "bfd", "cfm/show": "cfm", "lacp/show": "lacp", "bond/show": "bond"}


@pytest.fixture
def switch() -> Iterator[FakeSwitch]:
    with FakeSwitch() as made:
        yield made


def as_real(switch: FakeSwitch, release: str) -> None:
    for name, file in (FILES | STATES).items():
        switch.answers[name] = (ANSWERS / f"{file}-{release}.txt").read_text()


@pytest.mark.parametrize("release", ["3.1", "3.5"])
def test_the_settings_of_a_real_switch_are_read(switch: FakeSwitch, release: str) -> None:
    as_real(switch, release)
    found = runtime.read(switch.paths)
    values = {name: setting.value for name, setting in found.items() if not name.startswith("log level of ")}
    assert values == {
        "rate limit of the log of bridge": "off",
        "rate limit of the log of conntrack": "on",
        "rate limit of the log of dpdk": "on",
        "rate limit of the log of ofproto_dpif": "on",
        "connections tracked": "3000000",
        "connections tracked in a zone": "10",
        "connections tracked in zone 5": "7",
        "reassembly of IPv4": "on",
        "shortest fragment of IPv4": "1200",
        "reassembly of IPv6": "on",
        "shortest fragment of IPv6": "1280",
        "fragments kept": "1000",
        "source ports of tunnels": "32768-61000",
        "unique flow identifiers": "off",
        "route to 10.77.0.0/16 pkt_mark=3": "br0 via 10.9.9.9",
        "tunnel neighbour 10.9.9.9 on br0": "02:00:00:00:09:09",
    }
    levels = found["log level of ofproto_dpif (file)"], found["log level of ofproto_dpif (syslog)"]
    assert [(level.value, level.put) for level in levels] == [
        ("DBG", (("vlog/set", "ofproto_dpif:file:dbg"),)),
        ("INFO", (("vlog/set", "ofproto_dpif:syslog:info"),)),
    ]


def test_every_reader_takes_an_answer_that_it_does_not_know_for_nothing() -> None:
    assert [reader("nonsense\n\n?") for reader in READERS.values()] == [{}] * len(READERS)


@pytest.mark.parametrize(
    ("command", "text", "value", "put"),
    [
        ("dpdk/log-list", "Log types:\n  id 3: lib.vhost.config, level is error\n",
         "error", (("dpdk/log-set", "lib.vhost.config:error"),)),
        ("dpctl/ct-get-sweep-interval", "20000", "20000", (("dpctl/ct-set-sweep-interval", "20000"),)),
        ("tnl/neigh/aging", "900", "900", (("tnl/neigh/aging", "900"),)),
        ("tnl/neigh/retrans_time", "1000", "1000", (("tnl/neigh/retrans_time", "1000"),)),
        ("tnl/egress_port_range", "Tunnel UDP source port range: 40000-41000\n", "40000-41000",
         (("tnl/egress_port_range", "40000", "41000"),)),
        ("upcall/show", "  ufid enabled : false\n", "off", (("upcall/disable-ufid",),)),
        ("ovs/route/show", "User: 0.0.0.0/0 dev br-ex GW 10.0.0.1 SRC 10.0.0.2 table 7\n", "br-ex via 10.0.0.1",
         (("ovs/route/add", "0.0.0.0/0", "br-ex", "10.0.0.1", "table=7"),)),
        ("ovs/route/show", "User: fd00::/64 dev br-ex SRC fd00::1\n", "br-ex",
         (("ovs/route/add", "fd00::/64", "br-ex"),)),
    ],
)  # fmt: skip
def test_a_setting_says_how_it_is_set(command: str, text: str, value: str, put: object) -> None:
    (setting,) = READERS[(command,)](text).values()
    assert (setting.value, setting.put) == (value, put)


def test_routes_of_the_kernel_and_expired_neighbours_are_left_out() -> None:
    assert READERS[("ovs/route/show",)]("Cached: 10.0.0.0/8 dev br0 SRC 10.0.0.1\n") == {}
    line = "10.9.9.9                 02:00:00:00:09:09   br0 STALE\n"
    assert READERS[("tnl/neigh/show",)](line) == {}


def test_no_limit_is_never_set_to_zero() -> None:
    """OVS before 3.5 tracks no connection with a default limit of 0, which it shows where there is no limit."""
    unlimited = zone_limits("default limit=0\n")["connections tracked in a zone"]
    assert unlimited.put == (("dpctl/ct-set-limits", "default=4294967295"), ("dpctl/ct-del-limits", "default"))
    assert unlimited.value == zone_limits("default limit=4294967295\n")["connections tracked in a zone"].value
    (change,) = changes(
        zone_limits("default limit=9"), zone_limits("default limit=0"), ["dpctl/ct-set-limits"], cut=False
    )
    assert change.undo == unlimited.put


def test_the_new_side_gets_what_differs_and_can_be_put_back(switch: FakeSwitch) -> None:
    as_real(switch, "3.1")
    active = runtime.read(switch.paths)
    as_real(switch, "3.5")
    given = ("vlog/set", "vlog/disable-rate-limit", "vlog/enable-rate-limit", "dpctl/ct-set-limits",
             "dpctl/ct-del-limits", "ovs/route/add", "ovs/route/del", "tnl/neigh/set")  # fmt: skip
    switch.answers |= {name: "" for name in given if name not in switch.answers}
    levels = (ANSWERS / "vlog-3.5.txt").read_text().replace("DBG", "WARN").replace("    (rate limiting disabled)", "")
    switch.answers |= {
        "vlog/list": levels, "dpctl/ct-get-limits": "default limit=0\n", "ovs/route/show": "Route Table:\n",
        "tnl/neigh/show": "",
    }  # fmt: skip
    assert len(runtime.differences(switch.paths, active)) == 6
    switch.asked.clear()
    done = runtime.apply(switch.paths, active, cut=False)
    assert done.done == ("settings of the running switch: 6",)
    assert done.refused == ()
    put = [command for command in switch.asked if command[0] in given and len(command) > 1]
    assert put == [
        ("vlog/disable-rate-limit", "bridge"),
        ("vlog/set", "ofproto_dpif:file:dbg"),
        ("dpctl/ct-set-limits", "default=10"),
        ("dpctl/ct-set-limits", "zone=5,limit=7"),
        ("ovs/route/add", "10.77.0.0/16", "br0", "10.9.9.9", "pkt_mark=3"),
        ("tnl/neigh/set", "br0", "10.9.9.9", "02:00:00:00:09:09"),
    ]
    assert done.undo == (
        ("ovs/route/del", "10.77.0.0/16", "pkt_mark=3"),
        ("dpctl/ct-del-limits", "zone=5"),
        ("dpctl/ct-set-limits", "default=4294967295"),
        ("dpctl/ct-del-limits", "default"),
        ("vlog/set", "ofproto_dpif:file:warn"),
        ("vlog/enable-rate-limit", "bridge"),
    )


def test_after_the_cut_only_what_the_new_side_lacks_is_added() -> None:
    active = {**zone_limits("zone=5,limit=7\nzone=6,limit=7"), **READERS[("tnl/neigh/aging",)]("900")}
    new = {**zone_limits("zone=5,limit=8"), **READERS[("tnl/neigh/aging",)]("100")}
    commands = ["dpctl/ct-set-limits", "tnl/neigh/aging"]
    assert [change.name for change in changes(active, new, commands, cut=True)] == ["connections tracked in zone 6"]
    assert len(changes(active, new, commands, cut=False)) == 3


def test_neighbours_are_kept_from_expiring_until_the_cut() -> None:
    same = READERS[("tnl/neigh/show",)]("10.9.9.9                 02:00:00:00:09:09   br0\n")
    (change,) = changes(same, same, ["tnl/neigh/set"], cut=False)
    assert change.put == (("tnl/neigh/set", "br0", "10.9.9.9", "02:00:00:00:09:09"),)
    assert changes(same, same, ["tnl/neigh/set"], cut=True) == []


def test_what_the_new_side_refuses_is_told_and_not_undone(switch: FakeSwitch) -> None:
    """A route before the bridge's device has an address, or a range that is answered with a text and no error."""
    active = {
        **READERS[("ovs/route/show",)]("User: 10.0.0.0/8 dev br0 SRC 10.0.0.1\n"),
        **READERS[("tnl/egress_port_range",)]("5-6"),
    }
    switch.answers |= {
        "ovs/route/show": "", "tnl/egress_port_range": lambda given: "Invalid min." if given else "range: 1-2",
        "ovs/route/add": lambda _: switch._refuse("Error while inserting route."),
    }  # fmt: skip
    done = runtime.apply(switch.paths, active, cut=False)
    assert (done.done, done.undo) == ((), ())
    assert done.refused == (
        "ovs/route/add 10.0.0.0/8 br0: Error while inserting route.\n",
        "tnl/egress_port_range 5 6: Invalid min.",
    )


def test_what_the_new_side_does_not_have_is_not_set_but_told(switch: FakeSwitch) -> None:
    """A module of the log that it does not have is nothing that it lacks."""
    active = {
        **READERS[("vlog/list",)]("\n\nold_module  OFF INFO DBG"),
        **READERS[("dpdk/log-list",)]("id 3: lib.old, level is info\n"),
        **READERS[("tnl/neigh/retrans_time",)]("1000"),
        **READERS[("upcall/show",)]("ufid enabled : true"),
    }
    switch.answers["upcall/show"] = "ufid enabled : false"
    assert runtime.apply(switch.paths, active, cut=False) == Applied()
    assert runtime.differences(switch.paths, active) == (
        "milliseconds between two questions for a tunnel neighbour: 1000, and the new side does not have it",
        "unique flow identifiers: on, and off on the new side",
    )


def test_only_what_can_be_removed_is_a_difference_if_the_active_side_lacks_it() -> None:
    new = {**zone_limits("zone=5,limit=7"), **READERS[("vlog/list",)]("\n\nnew_module  OFF INFO DBG")}
    assert list(different({}, new)) == ["connections tracked in zone 5: only on the new side, 7"]


def test_a_switch_that_stops_answering_gets_its_settings_back(switch: FakeSwitch) -> None:
    switch.answers |= {"upcall/show": "ufid enabled : false", "upcall/enable-ufid": "", "upcall/disable-ufid": "",
                       "dpctl/ct-get-maxconns": "5"}  # fmt: skip
    switch.hangs("dpctl/ct-set-maxconns")
    active = {**READERS[("upcall/show",)]("ufid enabled : true"), **READERS[("dpctl/ct-get-maxconns",)]("6")}
    with pytest.raises(NoAnswer):
        runtime.apply(switch.paths, active, cut=False, timeout=0.3)
    assert [name for name, *_ in switch.told("upcall/")[-2:]] == ["upcall/enable-ufid", "upcall/disable-ufid"]


def test_an_undo_that_is_not_answered_is_told(switch: FakeSwitch) -> None:
    switch.answers |= {"upcall/show": "ufid enabled : false", "upcall/enable-ufid": "", "dpctl/ct-get-maxconns": "5"}
    switch.hangs("upcall/disable-ufid", "dpctl/ct-set-maxconns")
    active = {**READERS[("upcall/show",)]("ufid enabled : true"), **READERS[("dpctl/ct-get-maxconns",)]("6")}
    with pytest.raises(NoAnswer) as caught:
        runtime.apply(switch.paths, active, cut=False, timeout=0.3)
    assert "could not be put back" in caught.value.__notes__[0]


@pytest.mark.parametrize("release", ["3.1", "3.5"])
def test_the_states_of_a_real_switch_are_read(switch: FakeSwitch, release: str) -> None:
    as_real(switch, release)
    assert state.read(switch.paths).protocols == {
        "STP of br1, port q3": "listening",
        "BFD of q3": "down",
        "LACP of bond0, member q1": "expired attached",
        "LACP of bond0, member q2": "expired attached",
        "bond bond0, member q1": "disabled",
        "bond bond0, member q2": "disabled",
    }


def test_states_that_were_not_captured_are_read_as_the_source_prints_them() -> None:
    """ofproto/bond.c, bond_print_details; lib/cfm.c, cfm_print_details; ofproto/ofproto-dpif.c,
    ofproto_unixctl_mcast_snooping_show, of OVS 3.1 and 3.5."""
    bond = "---- bond1 ----\n\nmember p0: enabled\n  active member\n  may_enable: true\n\nmember p1: enabled\n"
    assert protocols.bond_members(bond)["bond bond1, active member"] == "p0"
    assert protocols.cfm_points("---- vm1 ----\nMPID 3:\n  fault: recv \n") == {"CFM of vm1": "recv"}
    old = " port  VLAN  GROUP       Age\n    1     5  225.1.2.3          10\n    2     0  querier               3\n"
    new = (" port  VLAN  protocol  GROUP                Age\n    1     5  IGMPv2    225.1.2.3          10\n"
           "    2     0            querier               3\n")  # fmt: skip
    assert protocols.groups("br0", old) == protocols.groups("br0", new) == {
        "multicast group 225.1.2.3 of VLAN 5 on br0, port 1": "present",
        "multicast group querier of VLAN 0 on br0, port 2": "present",
    }  # fmt: skip


def test_states_are_compared() -> None:
    active = {"STP of br1, port q3": "forwarding", "BFD of q3": "up", "LACP of b, member x": "current attached"}
    new = {"STP of br1, port q3": "listening", "BFD of q3": "up", "bond b, member x": "enabled"}
    assert list(protocols.different(active, new)) == [
        "STP of br1, port q3: forwarding, and listening on the new side",
        "LACP of b, member x: current attached, and not there on the new side",
    ]


WEB = Entry(6, Tuple("10.0.0.1", "10.0.0.2", 5000, 80), Tuple("10.0.0.2", "10.0.0.1", 80, 5000),
            states=("ESTABLISHED", "ESTABLISHED"))  # fmt: skip
VM1 = FdbEntry("br0", "vm1", 0, "52:54:00:00:00:01")


def busy(switch: FakeSwitch) -> state.RuntimeState:
    """The state of a switch with a connection, an address and a level of its log."""
    with FakeSwitch() as other:
        for frame, actions in packets(WEB):
            other.conntrack.packet_out(frame, actions)
        other.fdb["0", VM1.mac] = "vm1 3"
        other.answers |= {
            "vlog/list": "\n\nbridge  OFF INFO DBG",
            "bfd/show": "---- p ----\n  Local Session State: up\n",
        }
        switch.answers |= {"vlog/list": "\n\nbridge  OFF INFO INFO", "vlog/set": "", "vlog/enable-rate-limit": ""}
        return state.read(other.paths)


def test_the_whole_state_is_given_compared_and_taken_back(switch: FakeSwitch) -> None:
    active = busy(switch)
    before = state.read(switch.paths)
    done = state.apply(switch.paths, active, switch.system, cut=False)
    assert done.done == (
        "settings of the running switch: 1",
        "the new side no longer checks TCP sequence numbers",
        "connections: 1 made, 0 removed",
        "addresses in forwarding databases: 1",
    )
    switch.answers["vlog/list"] = "\n\nbridge  OFF INFO DBG"
    assert state.differences(switch.paths, active) == (
        "the new side does not check TCP sequence numbers",
        "BFD of p: up, and not there on the new side",
    )
    assert state.apply(switch.paths, active, switch.system, cut=True) == Applied()
    # A journal keeps the commands as text.
    kept = tuple(tuple(command) for command in json.loads(json.dumps(done.undo)))
    assert state.undo(switch.paths, kept) == ()
    switch.answers["vlog/list"] = "\n\nbridge  OFF INFO INFO"
    assert state.read(switch.paths) == before


def test_a_fault_of_one_part_takes_the_others_back(switch: FakeSwitch) -> None:
    active = busy(switch)
    switch.system.fails = 2  # the bundle of the forwarding database
    with pytest.raises(SwitchError):
        state.apply(switch.paths, active, switch.system, cut=False)
    assert conntrack.read(switch.paths).dump.entries == ()
    assert switch.tcp_check
    assert switch.told("vlog/set") == [("vlog/set", "bridge:file:dbg"), ("vlog/set", "bridge:file:info")]
    assert switch.fdb == {}


def test_what_a_fault_leaves_is_told(switch: FakeSwitch) -> None:
    active = busy(switch)
    switch.system.fails = 2
    del switch.answers["dpctl/flush-conntrack"]
    with pytest.raises(SwitchError) as caught:
        state.apply(switch.paths, active, switch.system, cut=False)
    assert any(note.startswith("not undone: dpctl/flush-conntrack zone=0") for note in caught.value.__notes__)


def test_silence_after_a_fault_is_told(switch: FakeSwitch) -> None:
    active = busy(switch)
    switch.system.fails = 2
    switch.hangs("dpctl/flush-conntrack")
    with pytest.raises(SwitchError, match="BAD_TYPE") as caught:
        state.apply(switch.paths, active, switch.system, cut=False, timeout=0.5)
    assert "dpctl/flush-conntrack: no answer" in caught.value.__notes__[0]


def test_a_switch_that_is_silent_about_multicast_is_not_taken_for_one_without_it(switch: FakeSwitch) -> None:
    switch.hangs("mdb/show")
    with pytest.raises(NoAnswer):
        state.read(switch.paths, timeout=0.5)


def test_a_refusal_ends_nothing_and_silence_does(switch: FakeSwitch) -> None:
    switch.answers["good"] = "fine"
    switch.hangs("silent")
    assert list(attempt(switch.paths.vswitchd_ctl, [("bad", "x"), ("good",)])) == [
        'bad x: "bad" is not a valid command\n'
    ]
    assert switch.told("good") == [("good",)]
    with pytest.raises(NoAnswer):
        list(attempt(switch.paths.vswitchd_ctl, [("silent",)], timeout=0.2))


def test_only_commands_of_the_datapath_name_it(switch: FakeSwitch) -> None:
    """OVS 3.1 takes the name before a zone to flush for a wrong argument (lib/dpctl.c, dpctl_flush_conntrack)."""
    seen: list[list[str]] = []

    def see(name: str, given: list[str]) -> str:
        seen.append(given)
        return switch._command(name, given)

    switch._listeners.append(switch._listen(switch.paths.record, see))
    for command in (("dpctl/dump-conntrack",), ("dpctl/flush-conntrack", "zone=1"), ("fdb/show", "br0")):
        ask(switch.paths.record, command)
    assert seen == [["netdev@ovs-netdev"], ["zone=1"], ["br0"]]
    assert "fdb/show" in commands_of(switch.paths.record)


def test_a_summary_says_how_many_lines_are_left_out() -> None:
    assert summary("abc", most=3) == ("a", "b", "c")
    assert summary("abcd", most=2) == ("a", "b", "and 2 more")

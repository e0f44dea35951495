"""What Open vSwitch says of a packet's way: ``ofproto/trace`` and the flows of the datapath, read and told in words."""
# ruff: noqa: E501 - lines of real programs

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.diagnose import megaflows, trace
from ovs_hotswap.diagnose.core_use import CoreTime, uses
from ovs_hotswap.diagnose.cores import others, times
from ovs_hotswap.diagnose.found import Cause
from ovs_hotswap.diagnose.judging import report
from tests.unit import diagnose_bed as bed

ANSWERS = Path(__file__).with_name("answers") / "diagnose"  # of Open vSwitch 3.1, in a lab with two guests
BY_TUNNEL = (ANSWERS / "trace-tunnel.txt").read_text()
NO_NEIGHBOUR = (ANSWERS / "trace-no-neighbour.txt").read_text()
DUMPED = (ANSWERS / "dump-flows.txt").read_text()  # vm1 (port 2) has just been put into VNI 101; vm2 is port 1
RECIRCULATED = """\
Flow: icmp,in_port=3,vlan_tci=0x0000

bridge("br-int")
----------------
 0. in_port=3, priority 100
    resubmit(,8)
 8. ip, priority 50, cookie 0x3e8
    ct(table=9,zone=5)
    drop
     -> A clone of the packet is forked to recirculate. The forked pipeline will be resumed at table 9.
     -> Sets the packet to an untracked state, and clears all the conntrack fields.

Final flow: unchanged
Megaflow: recirc_id=0,eth,icmp,in_port=3,nw_frag=no
Datapath actions: ct(zone=5),recirc(0x1a)

===============================================================================
recirc(0x1a) - resume conntrack with default ct_state=trk|new (use --ct-next to customize)
===============================================================================

Flow: recirc_id=0x1a,ct_state=new|trk,icmp,in_port=3

bridge("br-int")
----------------
    thaw
        Resuming from table 9
 9. ct_state=+new+trk, priority 10
    NORMAL
     >>>> no learned MAC for destination, flooding <<<<

Final flow: unchanged
Megaflow: recirc_id=0x1a,ct_state=+new+trk,eth,icmp,in_port=3
Datapath actions: 4,5
"""
NOTHING = """\
Flow: in_port=1,vlan_tci=0x0000

bridge("br0")
-------------
 0. No match.
    drop

Final flow: unchanged
Megaflow: recirc_id=0,eth,in_port=1
Datapath actions: drop
"""
PORTS = {("br0", "1"): "uplink", ("br0", "2"): "vxlan", ("br0", "10"): "vm1", ("br1", "1"): "other"}


def meaning(cookie: int) -> str | None:
    return {0x687303: "packets from a VM"}.get(cookie >> 40)


def test_a_packet_into_a_tunnel() -> None:
    found = trace.parse(BY_TUNNEL)
    assert [(step.table, step.priority) for step in found.steps] == [(0, 100), (1, 5), (2, 20), (0, 100)]
    assert found.steps[0].match == "in_port=10,dl_src=52:54:00:64:00:01"
    assert found.delivered is True
    told = trace.told(found, meaning, PORTS)
    assert told[0] == "Bridge br0, table 0: packets from a VM."
    assert "into the tunnel to 172.31.0.2" in told[2]
    assert "out by uplink" in told[3]
    assert told[-1] == "So the packet leaves this switch."


def test_a_next_hop_without_a_mac_is_named() -> None:
    found = trace.parse(NO_NEIGHBOUR)
    assert found.delivered is False
    assert found.missing_neighbour == "172.31.0.2"
    told = trace.told(found, meaning, PORTS)
    assert any("does not know the MAC of 172.31.0.2" in text for text in told)
    assert "172.31.0.2" in told[-1]


def test_a_packet_that_is_recirculated() -> None:
    found = trace.parse(RECIRCULATED)
    assert [step.table for step in found.steps] == [0, 8, 9]
    assert found.resumed == ("resume conntrack with default ct_state=trk|new (use --ct-next to customize)",)
    assert found.datapath == ("ct(zone=5),recirc(0x1a)", "4,5")
    assert found.delivered is True, "by the last part; the first one only tracks it"
    told = trace.told(found, meaning, {})
    assert "ct(table=9,zone=5)" in told[1]
    assert "as a learning switch does (no learned MAC for destination, flooding)" in told[2]


def test_a_packet_that_no_flow_matches() -> None:
    found = trace.parse(NOTHING)
    assert found.steps[0].priority is None
    assert found.delivered is False
    assert trace.told(found, meaning, PORTS)[-1] == "So the packet is dropped."


@pytest.mark.parametrize("text", ["", "ovs-vswitchd: unknown command", "Flow: in_port=1\n"])
def test_what_is_no_trace_says_nothing(text: str) -> None:
    found = trace.parse(text)
    assert found.delivered is None
    assert "not known" in trace.told(found, meaning, PORTS)[-1]


def test_a_translation_that_fails_delivers_nothing() -> None:
    failed = NOTHING.replace("Datapath actions: drop", "Datapath actions: 1") + (
        "Translation failed (Recursion too deep), packet is dropped.\n")  # fmt: skip
    found = trace.parse(failed)
    assert found.failure == "Recursion too deep"
    assert found.delivered is False
    assert "Recursion too deep" in trace.told(found, meaning, PORTS)[-1]


@pytest.mark.parametrize(
    ("actions", "leaves"),
    [
        ("drop", False), ("3", True), ("ct(commit,zone=5,nat(src=10.0.0.1)),recirc(0x1)", False),
        ("set(eth(dst=02:00:00:00:00:01)),2", True), ("push_vlan(vid=5,pcp=0),7", True), ("pop_vlan", False),
        ("ct_clear", False), ("userspace(pid=0,controller(reason=1,dont_send=0))", False), ("tnl_pop(4)", True),
        ("clone(tnl_push(tnl_port(1),header(size=50,eth(dst=1))),3)", True), ("meter(0),drop", False),
    ],
)  # fmt: skip
def test_which_actions_of_a_datapath_let_a_packet_leave(actions: str, leaves: bool) -> None:
    assert trace.parse(f"Datapath actions: {actions}\n").delivered is leaves


FLOWS = """\
flow-dump from pmd on cpu core: 1
recirc_id(0),in_port(3),packet_type(ns=0,id=0),eth(src=52:54:00:64:00:01,dst=52:54:00:64:ff:fe),eth_type(0x0800),ipv4(frag=no), packets:12, bytes:1176, used:0.004s, actions:tnl_push(tnl_port(4),header(size=50)),2
recirc_id(0),tunnel(tun_id=0x65,src=172.31.0.2,dst=172.31.0.1,flags(-df-csum+key)),in_port(4),packet_type(ns=0,id=0),eth(dst=52:54:00:64:00:01),eth_type(0x0806), packets:3, bytes:126, used:1.500s, actions:drop
recirc_id(0),tunnel(tun_id=0x64,ipv6_src=fd00::2,ipv6_dst=fd00::1),in_port(4),eth(src=52:54:00:64:ff:fe,dst=01:00:00:00:00:00/01:00:00:00:00:00),eth_type(0x86dd), packets:1, bytes:9, used:never, actions:3
recirc_id(0),in_port(vm2),eth(src=52:54:00:64:00:02/ff:ff:ff:00:00:00,dst=52:54:00:64:00:01),eth_type(0x0800),ipv4(src=10.0.0.2,dst=10.0.0.1,frag=no), packets:5, bytes:5, used:0.1s, actions:3
"""


def test_the_flows_of_a_datapath() -> None:
    out, dropped, six, between = megaflows.parse(FLOWS)
    assert (out.port, out.source, out.to, out.packets, out.used, out.drops) == (
        "3", "52:54:00:64:00:01", "52:54:00:64:ff:fe", 12, 0.004, False)  # fmt: skip
    assert (dropped.vni, dropped.vtep, dropped.source, dropped.to, dropped.drops) == (
        101, "172.31.0.2", None, "52:54:00:64:00:01", True)  # fmt: skip
    assert (six.vtep, six.to, six.used) == ("fd00::2", None, None)
    assert (between.port, between.source, between.address) == ("vm2", None, "10.0.0.1")
    assert [each.fresh(1.0) for each in (out, dropped, six)] == [True, False, False]


def test_a_real_dump_shows_which_vm_is_in_the_wrong_vni() -> None:
    flows = megaflows.parse(DUMPED)
    assert len(flows) == 20
    dropped = {(each.port, each.vni, each.source, each.to) for each in flows if each.drops and each.fresh(5.0)}
    vm1, vm2, far = bed.VM1, bed.VM2, bed.FAR
    assert {("2", None, vm1, vm2), ("2", None, vm1, far), ("1", None, vm2, vm1), ("3", 100, None, vm1)} <= dropped
    ports = {name: bed.port(name, number=number) for name, number in (("vm1", "2"), ("vm2", "1"), ("uplink", "4"))}
    vms = {**bed.WANTED.vms, "vm1": replace(bed.WANTED.vms["vm1"], vni=101)}
    facts = replace(bed.switch(megaflows=flows, ports=ports), wanted=replace(bed.WANTED, vms=vms))
    found = report(facts).findings
    assert {each.cause for each in found} == {Cause.WRONG_VNI}
    assert [each.vm for each in found] == ["vm1", "vm1", "vm1", "vm2"]


@pytest.mark.parametrize(
    ("actions", "drops"),
    [
        ("drop", True),
        ("2", False),
        ("tnl_pop(3)", False),
        ("ct(zone=5),recirc(0x3)", False),
        (
            "userspace(pid=0,flow_sample(probability=65535,collector_set_id=26739,obs_domain_id=1,obs_point_id=10,output_port=0))",
            True,
        ),
        (
            "sample(sample=10.0%,actions(userspace(pid=0,flow_sample(probability=6553,obs_point_id=10,output_port=0))))",
            True,
        ),
        ("sample(sample=10.0%,actions(userspace(pid=0,flow_sample(probability=6553,output_port=0)))),2", False),
        (
            "userspace(pid=0,controller(reason=1,dont_send=0,continuation=0,recirc_id=1,rule_cookie=0,controller_id=0))",
            False,
        ),
    ],
)
def test_a_flow_that_only_samples_drops(actions: str, drops: bool) -> None:
    assert bed.flow(actions=actions).drops is drops


def test_the_mac_behind_an_address_is_what_all_flows_say() -> None:
    flows = megaflows.parse(FLOWS)
    assert megaflows.mac_of(flows, "10.0.0.1") == "52:54:00:64:00:01"
    assert megaflows.mac_of(flows, "10.0.0.9") is None
    other = megaflows.parse(FLOWS + FLOWS.replace("dst=52:54:00:64:00:01)", "dst=52:54:00:64:00:09)"))
    assert megaflows.mac_of(other, "10.0.0.1") is None


def test_where_the_flows_of_a_datapath_lead() -> None:
    by_end = {(each.source, each.to): megaflows.outputs(each.actions) for each in megaflows.parse(DUMPED)}
    assert by_end[bed.VM2, bed.FAR] == ["-> 172.31.0.2"], "and not to the port of the underlay behind it"
    assert by_end[bed.VM1, bed.VM2] == []
    assert megaflows.outputs("1,tnl_push(tnl_port(3),header(size=70,ipv6(src=fd00::1,dst=fd00::2,label=0))),4,2") == [
        "1", "2", "-> fd00::2"]  # fmt: skip
    assert megaflows.outputs("ct(zone=5,nat),recirc(0x3)") == []
    assert megaflows.zones("ct(commit,zone=5,mark=0x1/0x1),ct(zone=12),recirc(0x1a)") == {5, 12}


def test_the_mac_of_a_sender_is_the_only_one_of_its_port() -> None:
    flows = megaflows.parse(FLOWS)
    assert megaflows.senders(flows)["3"] == "52:54:00:64:00:01"
    assert "4" not in megaflows.senders(flows), "it is the tunnel's"
    two = megaflows.parse(FLOWS + FLOWS.replace("src=52:54:00:64:00:01", "src=52:54:00:64:00:09"))
    assert "3" not in megaflows.senders(two)


def test_the_share_of_the_time_that_a_thread_waits() -> None:
    before = {7: CoreTime(1, 10, 1_000_000_000), 8: CoreTime(2, 0, 0)}
    after = {7: CoreTime(1, 20, 1_500_000_000), 9: CoreTime(3, 0, 5)}
    assert [(each.core, each.waits) for each in uses(before, after, 2.0)] == [(1, 0.25)]
    never = {7: CoreTime(1, 5, 5, runnable=True)}
    assert uses(never, never, 2.0)[0].waits == 1.0
    assert uses(never, never, 2.0, {1})[0].waits == 0.0, (
        "what it has run is added once a second on a core without ticks"
    )
    asleep = {7: CoreTime(1, 5, 5)}
    assert uses(asleep, asleep, 2.0)[0].waits == 0.0
    assert uses({7: CoreTime(1, 0, 0)}, {7: CoreTime(1, 0, 9_000_000_000)}, 2.0)[0].waits == 1.0


def test_who_had_a_core_is_named_with_its_share(tmp_path: Path) -> None:
    """A thread of another core, of the switch itself, or that did not run, is not named."""

    def ran(process: int, core: int, nanoseconds: int, name: str = "hog (x)") -> None:
        task = tmp_path / str(process) / "task" / str(process)
        task.mkdir(parents=True, exist_ok=True)
        fields = " ".join(["R", *["0"] * 35, str(core), "0"])
        (task / "stat").write_text(f"{process} ({name}) {fields}\n")
        (task / "schedstat").write_text(f"{nanoseconds} 0 1\n")

    for process, core in ((5, 1), (6, 2), (7, 1), (8, 1)):
        ran(process, core, 1_000_000_000)
    (tmp_path / "meminfo").write_text("")

    def sleep(seconds: float) -> None:
        for process, core in ((5, 1), (6, 2), (8, 1)):
            ran(process, core, 1_000_000_000 + int(seconds * 0.75e9))

    assert others({1, 3}, 8, tmp_path, sleep) == {1: ("hog (x) (process 5) had it for 75% of the time",), 3: ()}
    assert others((), 8, tmp_path, lambda seconds: pytest.fail("no core is in need")) == {}


def test_a_kernel_without_an_account_says_nothing_of_a_thread(tmp_path: Path) -> None:
    """This process has no thread of that name, so one is made up beside its own."""
    pid = os.getpid()
    task = tmp_path / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    before = Path(f"/proc/{pid}/task/{pid}/comm").read_text()
    try:
        Path(f"/proc/{pid}/task/{pid}/comm").write_text("pmd-c03/id:9")
        (task / "stat").write_text(f"{pid} (pmd-c03/id:9) R 1\n")
        (task / "schedstat").write_text("0 0 0\n")
        assert times(pid, tmp_path) == {}
        (task / "schedstat").write_text("7 5 1\n")
        assert times(pid, tmp_path) == {pid: CoreTime(3, 7, 5, runnable=True)}
    finally:
        Path(f"/proc/{pid}/task/{pid}/comm").write_text(before)

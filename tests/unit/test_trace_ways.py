"""Which flows of the datapath a packet passed, and what is said of its way."""
# ruff: noqa: E501 - lines of real programs

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ovs_hotswap.diagnose.naming import meaning_of, ports_of
from ovs_hotswap.tracing import datapath, ways
from ovs_hotswap.tracing.datapath import Flow, matches, same_actions, without_copies
from ovs_hotswap.tracing.fields import dissect
from ovs_hotswap.tracing.found import Basis, Direction
from ovs_hotswap.tracing.record import parse_record
from ovs_hotswap.tracing.ways import Switch, direction_of, path, state_words, way_of
from tests.unit import diagnose_bed as bed
from tests.unit.trace_frames import (
    ACK,
    ALL,
    FAR,
    SYN,
    VM1,
    VM2,
    arp,
    ethernet,
    icmp,
    ipv4,
    ipv6,
    solicitation,
    tcp,
    udp,
)

ANSWERS = Path(__file__).with_name("answers") / "diagnose"  # of Open vSwitch 3.1, in a lab with two guests
DUMPED = datapath.parse((ANSWERS / "dump-flows.txt").read_text())  # vm1 is port 2, in another VNI than vm2, port 1
BY_TUNNEL = (ANSWERS / "trace-tunnel.txt").read_text()
PUSHED = "tnl_push(tnl_port(3),header(size=50,type=4,eth(dst=52:54:00:1f:00:02,src=52:54:00:1f:00:01,dl_type=0x0800),ipv4(src=172.31.0.1,dst=172.31.0.2,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=4789,csum=0x0),vxlan(flags=0x8000000,vni=0x64)),out_port(5)),4"
NAMES = {"1": "vm2", "2": "vm1", "3": "vxlan_sys_4789", "4": "uplink", "5": "br0", "9": "ovsh-trace"}
PING_OUT = ethernet(VM2, FAR, 0x0800, ipv4("10.0.0.2", "10.0.0.254", 1, icmp()))
PING_IN = ethernet(FAR, VM2, 0x0800, ipv4("10.0.0.254", "10.0.0.2", 1, icmp(0)))


def flow(match: str, actions: str, used: str = "0.1s", packets: int = 5) -> Flow:
    (found,) = datapath.parse(f"{match}, packets:{packets}, bytes:9, used:{used}, actions:{actions}", "9")
    return found


def switch(
    flows: Sequence[Flow] | None = DUMPED, *, vm: str = "vm2", number: str = "1", macs: Sequence[str] = (VM2,)
) -> Switch:
    return Switch(vm, number, frozenset(macs), "9", NAMES, ports_of(bed.WANTED), meaning_of(bed.WANTED), flows)


def asked(
    text: str | None, into: list[tuple[tuple[str, ...], str]] | None = None
) -> Callable[[Sequence[str], str], str | None]:
    def ask(states: Sequence[str], question: str) -> str | None:
        if into is not None:
            into.append((tuple(states), question))
        return text

    return ask


# -- flows


def test_the_flows_of_a_dump() -> None:
    assert len(DUMPED) == 20
    first, *_, last = DUMPED
    assert (first.in_port, first.recirculated, first.next, first.packets, first.used_s) == ("5", "0x0", None, 6, 2.909)
    assert last.tunnel == "tunnel(tun_id=0x64,src=172.31.0.2,dst=172.31.0.1,flags(-df+csum+key))"
    assert flow("recirc_id(0),in_port(1)", "ct(zone=5),recirc(0x1a)", "never").next == "0x1a"
    tagged = flow(
        "recirc_id(0),in_port(1),eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))", "2"
    )
    assert tagged.groups["eth_type"] == "0x0800"
    assert tagged.groups["ipv4"] == "frag=no"


@pytest.mark.parametrize(
    ("actions", "left"),
    [
        ("9", "drop"),
        ("trunc(256),9", "drop"),
        ("trunc(256),9,4", "4"),
        ("4,trunc(256),9", "4"),
        ("4,trunc(256),9,5", "4,5"),
        ("trunc(256),9,tnl_push(tnl_port(9),header(a(9))),4", "tnl_push(tnl_port(9),header(a(9))),4"),
        ("trunc(100),8,4", "trunc(100),8,4"),
        ("trunc(256),9,ct(zone=9),recirc(0x9)", "ct(zone=9),recirc(0x9)"),
        ("99,19", "99,19"),
        ("drop", "drop"),
    ],
)
def test_copies_are_left_out(actions: str, left: str) -> None:
    assert without_copies(actions, "9") == left
    assert without_copies(actions, None) == actions


MATCHES = [
    ("eth(src=52:54:00:64:00:02,dst=52:54:00:64:ff:fe),eth_type(0x0800),ipv4(frag=no)", PING_OUT, True),
    ("eth(src=52:54:00:64:00:01),eth_type(0x0800)", PING_OUT, False),
    ("eth(dst=01:00:00:00:00:00/01:00:00:00:00:00),eth_type(0x0806)", ethernet(VM1, ALL, 0x0806, arp(1, (VM1, "1.1.1.1"), (VM2, "1.1.1.2"))), True),
    ("eth(dst=00:00:00:00:00:00/01:00:00:00:00:00),eth_type(0x0806)", ethernet(VM1, ALL, 0x0806, arp(1, (VM1, "1.1.1.1"), (VM2, "1.1.1.2"))), False),
    ("eth_type(0x0806),arp(sip=1.1.1.1,tip=1.1.1.2,op=1/0xff,sha=52:54:00:64:00:01)", ethernet(VM1, ALL, 0x0806, arp(1, (VM1, "1.1.1.1"), (VM2, "1.1.1.2"))), True),
    ("eth_type(0x0800),ipv4(src=10.0.0.0/255.0.0.0,dst=10.0.0.254,proto=1,tos=0/0x3,ttl=64,frag=no)", PING_OUT, True),
    ("eth_type(0x0800),ipv4(src=11.0.0.0/255.0.0.0)", PING_OUT, False),
    ("eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=80),tcp_flags(syn)", SYN, True),
    ("eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=80),tcp_flags(+syn-ack)", ACK, False),
    ("eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=0/0xff00),tcp_flags(0x010/0x010)", ACK, True),
    ("eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=443)", ACK, False),
    ("eth_type(0x0800),ipv4(frag=first)", ACK, False),
    ("eth_type(0x0800),ipv4(frag=yes)", ethernet(VM1, VM2, 0x0800, ipv4("1.1.1.1", "1.1.1.2", 17, udp(1, 2), fragment=0x2000)), True),
    ("eth_type(0x86dd),ipv6(src=fd00::/ffff::,dst=fd00::2,proto=17,frag=no),udp(src=1000)", ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 17, udp(1000, 53))), True),
    ("eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=135,code=0),nd(target=fd00::2)", ethernet(VM1, VM2, 0x86DD, solicitation("fd00::1", "fd00::2", "fd00::2", VM1)), True),
    ("eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=136)", ethernet(VM1, VM2, 0x86DD, solicitation("fd00::1", "fd00::2", "fd00::2", VM1)), False),
    ("eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))", ethernet(VM1, VM2, 0x0800, ipv4("1.1.1.1", "1.1.1.2", 17, udp(1, 2)), 5), True),
    ("eth_type(0x8100),vlan(vid=6,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))", ethernet(VM1, VM2, 0x0800, ipv4("1.1.1.1", "1.1.1.2", 17, udp(1, 2)), 5), False),
    ("eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))", PING_OUT, False),
    ("eth_type(0x0800),ipv4(frag=no)", ethernet(VM1, VM2, 0x0800, ipv4("1.1.1.1", "1.1.1.2", 17, udp(1, 2)), 5), False),
    ("eth(src=52:54:00:64:00:02)", ethernet(VM2, FAR, 0x0800, PING_OUT[14:], 5), True),
    ("skb_mark(0),unknown(x=1)", PING_OUT, True),
]  # fmt: skip


@pytest.mark.parametrize(("match", "frame", "fits"), MATCHES)
def test_whether_a_packet_fits_a_flow(match: str, frame: bytes, fits: bool) -> None:
    assert matches(flow(f"recirc_id(0),in_port(1),{match}", "1"), dissect(frame)) is fits


def test_numbers_of_recirculation_do_not_distinguish_actions() -> None:
    assert same_actions("ct(zone=5),recirc(0x1a)", "ct(zone=5),recirc(0x2)")
    assert not same_actions("ct(zone=5),recirc(0x1a)", "ct(zone=6),recirc(0x1a)")


# -- ways


def test_the_way_of_a_packet_that_a_vm_sent() -> None:
    found, into = dissect(PING_OUT), list[tuple[tuple[str, ...], str]]()
    assert direction_of(switch(), found, 0.0) is Direction.SENT
    way = way_of(switch(), found, Direction.SENT, 0.0)
    assert way is not None
    assert [each.packets for each in way.flows] == [312]
    told = path(switch(), found, Direction.SENT, way, asked(BY_TUNNEL, into))
    assert (told.port_in, told.ports_out, told.dropped) == ("vm2", ("the tunnel to 172.31.0.2",), False)
    assert told.basis is Basis.AGREES
    assert told.note is None
    assert told.steps[-1] == "So the packet leaves this switch."
    assert told.datapath[0].actions == PUSHED
    assert into == [((), f"in_port(1),eth(src={VM2},dst={FAR}),eth_type(0x0800),ipv4(src=10.0.0.2,dst=10.0.0.254,proto=1,"
                     "tos=0x0,ttl=64,frag=no),icmp(type=8,code=0)")]  # fmt: skip


def test_the_way_of_a_packet_that_a_vm_received() -> None:
    found, into = dissect(PING_IN), list[tuple[tuple[str, ...], str]]()
    assert direction_of(switch(), found, 0.0) is Direction.RECEIVED
    way = way_of(switch(), found, Direction.RECEIVED, 0.0)
    told = path(switch(), found, Direction.RECEIVED, way, asked(None, into))
    assert told.port_in == "vxlan_sys_4789, from the tunnel of 172.31.0.2 (network 100)"
    assert (told.ports_out, told.dropped, told.basis) == (("vm2",), False, Basis.DATAPATH)
    assert into[0][1].startswith(
        "tunnel(ttl=64,tun_id=0x64,src=172.31.0.2,dst=172.31.0.1,flags(csum|key)),in_port(3),eth("
    )


def test_a_packet_that_is_dropped() -> None:
    found = dissect(ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 1, icmp())))
    here = switch(vm="vm1", number="2", macs=[VM1])
    told = path(here, found, Direction.SENT, way_of(here, found, Direction.SENT, 0.0), asked(None))
    assert (told.ports_out, told.dropped, told.basis) == ((), True, Basis.DATAPATH)


def test_the_tables_may_say_something_else_than_the_datapath_did() -> None:
    found = dissect(PING_OUT)
    way = way_of(switch(), found, Direction.SENT, 0.0)
    told = path(switch(), found, Direction.SENT, way, asked(BY_TUNNEL.replace("vni=0x64", "vni=0x65")))
    assert told.basis is Basis.DIFFERS
    assert told.ports_out == ("the tunnel to 172.31.0.2",)
    assert "would do something else" in str(told.note)


@pytest.mark.parametrize("flows", [None, (), [replace(each, used_s=8.0) for each in DUMPED]])
def test_without_a_flow_of_the_datapath_the_tables_alone_say_it(flows: Sequence[Flow] | None) -> None:
    found = dissect(PING_OUT)
    way = way_of(switch(flows), found, Direction.SENT, 0.0)
    assert way is None
    told = path(switch(flows), found, Direction.SENT, way, asked(BY_TUNNEL))
    assert (told.basis, told.ports_out, told.datapath) == (Basis.INFERRED, ("the tunnel to 172.31.0.2",), ())
    unknown = path(switch(flows), found, Direction.SENT, way, asked(None))
    assert (unknown.basis, unknown.dropped, unknown.ports_out) == (Basis.UNKNOWN, None, ())


def test_a_packet_from_nowhere_known_is_not_asked_about() -> None:
    into = list[tuple[tuple[str, ...], str]]()
    told = path(switch(()), dissect(PING_IN), Direction.RECEIVED, None, asked(BY_TUNNEL, into))
    assert (told.port_in, told.basis, into) == (None, Basis.UNKNOWN, [])
    assert "from where it came is not known" in str(told.note)


def test_a_packet_of_unknown_direction() -> None:
    strange = dissect(ethernet("02:00:00:00:00:01", "02:00:00:00:00:02", 0x0800, PING_OUT[14:]))
    assert direction_of(switch(), strange, 0.0) is Direction.UNKNOWN
    told = path(switch(), strange, Direction.UNKNOWN, None, asked(BY_TUNNEL))
    assert told.basis is Basis.UNKNOWN
    assert "neither its MACs" in str(told.note)


def test_flows_say_the_direction_where_macs_do_not() -> None:
    nameless = switch(macs=[])
    assert direction_of(nameless, dissect(PING_OUT), 0.0) is Direction.SENT
    assert direction_of(nameless, dissect(PING_IN), 0.0) is Direction.RECEIVED


# -- connection tracking

BEGIN = flow("recirc_id(0),in_port(1),eth_type(0x0800),ipv4(proto=6,frag=no)", "ct(zone=5),recirc(0x1a)")
NEW = flow(
    "recirc_id(0x1a),in_port(1),ct_state(-est+new-inv+trk),eth_type(0x0800),ipv4(frag=no)",
    "ct(commit,zone=5),2",
    "3.0s",
    1,
)
KNOWN = flow("recirc_id(0x1a),in_port(1),ct_state(+est-new-inv+trk),eth_type(0x0800),ipv4(frag=no)", "2", "0.1s")
TRACKED = (BEGIN, NEW, KNOWN)
SYN_OUT = ethernet(VM2, VM1, 0x0800, ipv4("10.0.0.2", "10.0.0.1", 6, tcp(40000, 80, 0x02)))
ACK_OUT = ethernet(VM2, VM1, 0x0800, ipv4("10.0.0.2", "10.0.0.1", 6, tcp(40000, 80, 0x10)))


@pytest.mark.parametrize(
    ("frame", "age", "words", "assumed"),
    [(SYN_OUT, 3.0, "zone 5: new", "new,trk"), (ACK_OUT, 0.5, "zone 5: established", "est,trk")],
)
def test_the_state_of_a_connection_is_that_of_the_flow_that_the_packet_passed(
    frame: bytes, age: float, words: str, assumed: str
) -> None:
    into = list[tuple[tuple[str, ...], str]]()
    found = dissect(frame)
    way = way_of(switch(TRACKED), found, Direction.SENT, age)
    told = path(switch(TRACKED), found, Direction.SENT, way, asked(None, into))
    assert told.conntrack == (words,)
    assert told.ports_out == ("vm1",)
    assert into[0][0] == (assumed,)


def test_two_states_that_may_both_be_are_both_named_if_they_do_the_same() -> None:
    found = dissect(ACK_OUT)
    way = way_of(switch(TRACKED), found, Direction.SENT, 5.0)
    told = path(switch(TRACKED), found, Direction.SENT, way, asked(None))
    assert (told.conntrack, told.ports_out) == (("zone 5: new or established",), ("vm1",))
    assert "several flows" in str(told.note)


def test_two_states_that_may_both_be_leave_the_way_open_if_they_do_different_things() -> None:
    flows = (BEGIN, replace(NEW, actions="drop"), KNOWN)
    found = dissect(ACK_OUT)
    told = path(switch(flows), found, Direction.SENT, way_of(switch(flows), found, Direction.SENT, 5.0), asked(None))
    assert (told.dropped, told.ports_out, told.basis) == (None, (), Basis.DATAPATH)
    assert "behind its last lookup" in str(told.note)


# -- what a real switch has shown (Open vSwitch 3.1, in a lab with two guests)

COPIED, LOOKED_UP = (
    datapath.parse((ANSWERS.parent / "trace" / f"dump-flows-{name}.txt").read_text(), "6")
    for name in ("copied", "conntrack")
)
FROM_VM2 = ethernet(VM2, VM1, 0x0800, ipv4("10.100.0.2", "10.100.0.1", 1, icmp(0)))
FROM_FAR = ethernet(FAR, VM1, 0x0800, ipv4("10.100.255.254", "10.100.0.1", 1, icmp(0)))
TO_VM2 = ethernet(VM1, VM2, 0x0800, ipv4("10.100.0.1", "10.100.0.2", 1, icmp()))
STRAY = ethernet(VM2, FAR, 0x0800, ipv4("10.100.0.2", "10.100.255.254", 1, icmp()))


def of_vm1(flows: Sequence[Flow]) -> Switch:
    return switch(flows, vm="vm1", number="2", macs=[VM1])


def test_a_packet_of_a_local_vm_is_not_taken_for_one_from_the_tunnel() -> None:
    """The flow of what comes out of the tunnel does not match the sender, so it fits a local VM's packet as well."""
    found, here = dissect(FROM_VM2), of_vm1(COPIED)
    told = path(here, found, Direction.RECEIVED, way_of(here, found, Direction.RECEIVED, 0.1), asked(None))
    assert (told.port_in, told.ports_out) == ("vm2", ("vm1",))


def test_a_packet_from_the_tunnel_is_not_taken_for_one_of_a_local_vm() -> None:
    found, here = dissect(FROM_FAR), of_vm1(COPIED)
    told = path(here, found, Direction.RECEIVED, way_of(here, found, Direction.RECEIVED, 0.1), asked(None))
    assert told.port_in == "vxlan_sys_4789, from the tunnel of 172.31.0.2 (network 100)"


@pytest.mark.parametrize(
    ("frame", "direction", "port_in", "out"),
    [(TO_VM2, Direction.SENT, "vm1", "vm2"), (FROM_VM2, Direction.RECEIVED, "vm2", "vm1"),
     (STRAY, Direction.RECEIVED, "vm2", "vm1")],
)  # fmt: skip
def test_packets_through_connection_tracking(frame: bytes, direction: Direction, port_in: str, out: str) -> None:
    found, here = dissect(frame), of_vm1(LOOKED_UP)
    assert direction_of(here, found, 0.1) is direction
    told = path(here, found, direction, way_of(here, found, direction, 0.1), asked(None))
    assert (told.port_in, told.ports_out) == (port_in, (out,))
    assert told.conntrack == ("zone 5: established or new",)


def test_a_received_packet_is_followed_back_through_connection_tracking() -> None:
    flows = [flow("recirc_id(0),in_port(2),eth_type(0x0800),ipv4(frag=no)", "ct(zone=5),recirc(0x1a)"),
             flow("recirc_id(0x1a),in_port(2),ct_state(+est+rpl+trk),eth_type(0x0800)", "1")]  # fmt: skip
    found = dissect(ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 6, tcp(80, 40000))))
    way = way_of(switch(flows), found, Direction.RECEIVED, 0.5)
    told = path(switch(flows), found, Direction.RECEIVED, way, asked(None))
    assert (told.port_in, told.conntrack) == ("vm1", ("zone 5: established, an answer",))


def test_a_received_packet_whose_address_was_translated_is_not_asked_about() -> None:
    flows = [flow("recirc_id(0),in_port(2),eth_type(0x0800),ipv4(dst=192.0.2.1,frag=no)", "ct(zone=5,nat),recirc(0x1a)"),
             flow("recirc_id(0x1a),in_port(2),ct_state(+est+rpl+trk),eth_type(0x0800),ipv4(dst=10.0.0.2)", "1")]  # fmt: skip
    found = dissect(ethernet(VM1, VM2, 0x0800, ipv4("198.51.100.1", "10.0.0.2", 6, tcp(80, 40000))))
    into = list[tuple[tuple[str, ...], str]]()
    way = way_of(switch(flows), found, Direction.RECEIVED, 0.5)
    told = path(switch(flows), found, Direction.RECEIVED, way, asked(BY_TUNNEL, into))
    assert (into, told.basis) == ([], Basis.DATAPATH)
    assert "changed on its way" in str(told.note)


def test_a_tag_that_was_taken_off_is_in_the_question() -> None:
    flows = [
        flow(
            "recirc_id(0),in_port(4),eth_type(0x8100),vlan(vid=7,pcp=0),encap(eth_type(0x0800),ipv4(frag=no))",
            "pop_vlan,1",
        )
    ]
    into = list[tuple[tuple[str, ...], str]]()
    found = dissect(PING_IN)
    path(
        switch(flows),
        found,
        Direction.RECEIVED,
        way_of(switch(flows), found, Direction.RECEIVED, 0.5),
        asked(None, into),
    )
    assert "eth_type(0x8100),vlan(vid=7,pcp=0),encap(eth_type(0x0800)" in into[0][1]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("+est-new+trk", "established"),
        ("+inv+trk", "invalid"),
        ("est|rpl|trk", "established, an answer"),
        ("+trk", "tracked"),
    ],
)
def test_states_in_words(state: str, words: str) -> None:
    assert state_words(state) == words


def test_other_ends() -> None:
    found = dissect(PING_OUT)
    for actions, out in (
        ("userspace(pid=0,controller(reason=1,dont_send=0))", ("the controller",)),
        ("tnl_pop(3)", ("the tunnel's end on this host",)),
        ("1,2,77", ("vm2", "vm1", "port 77")),
    ):
        flows = [flow("recirc_id(0),in_port(1),eth_type(0x0800),ipv4(frag=no)", actions)]
        way = way_of(switch(flows), found, Direction.SENT, 0.0)
        assert ways.path(switch(flows), found, Direction.SENT, way, asked(None)).ports_out == out


# -- the switch's own record

# As lib/dpctl.c prints a flow with -m.
WIDE = """\
flow-dump from the main thread:
ufid:11111111-2222-3333-4444-555555555555, recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(5),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),packet_type(ns=0,id=0),eth(src=00:00:00:00:00:00/00:00:00:00:00:00,dst=00:00:00:00:00:00/00:00:00:00:00:00),eth_type(0x86dd),ipv6(src=::/::,dst=::/::,label=0/0,proto=0/0,tclass=0/0,hlimit=0/0,frag=no), packets:6, bytes:496, used:2.909s, dp:ovs, actions:4, dp-extra-info:miniflow_bits(5,1)
flow-dump from pmd on cpu core: 1
ufid:aaaaaaaa-2222-3333-4444-555555555555, recirc_id(0),dp_hash(0/0),in_port(1),ct_state(0/0),packet_type(ns=0,id=0),eth(src=52:54:00:64:00:02,dst=52:54:00:64:ff:fe),eth_type(0x0800),ipv4(src=10.0.0.2/0.0.0.0,dst=10.0.0.254/0.0.0.0,proto=1/0,tos=0/0x3,ttl=64/0,frag=no),icmp(type=8/0,code=0/0), packets:312, bytes:30576, used:0.009s, flags:S, dp:ovs, actions:trunc(256),9,PUSHED, dp-extra-info:miniflow_bits(5,1)
""".replace("PUSHED", PUSHED)  # fmt: skip
# As ofproto/ofproto-dpif-xlate-cache.c prints the record.
RECORD = """\
br0
  cookie=0x687303000064000a, duration=9s, n_packets=3, n_bytes=9, n_offload_packets=0, n_offload_bytes=0, priority=100,in_port=10,dl_src=52:54:00:64:00:01,actions=write_metadata:0x64,goto_table:1
  cookie=0x6873090000640000, table_id=1, duration=9s, n_packets=3, n_bytes=9, n_offload_packets=0, n_offload_bytes=0, priority=5,metadata=0x64,actions=goto_table:2
  cookie=0x6873070000640000, table_id=2, duration=9s, n_packets=3, n_bytes=9, priority=20,metadata=0x64,dl_dst=52:54:00:64:ff:fe,actions=set_field:0x64->tun_id,output:2
  cookie=0x6873020000000000, duration=9s, n_packets=3, n_bytes=9, priority=100,in_port=LOCAL,actions=output:1
"""


def test_a_dump_with_numbers_has_the_same_flows() -> None:
    first, second = datapath.parse(WIDE, "9")
    assert (first.ufid, first.core) == ("11111111-2222-3333-4444-555555555555", "")
    assert (second.ufid, second.core) == ("aaaaaaaa-2222-3333-4444-555555555555", "1")
    assert (
        second.text
        == "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth(src=52:54:00:64:00:02,dst=52:54:00:64:ff:fe),eth_type(0x0800),ipv4(tos=0/0x3,frag=no)"
    )
    assert second.actions == PUSHED
    assert second.state is None
    assert matches(second, dissect(PING_OUT))


def test_what_the_switch_recorded_of_a_flow() -> None:
    first, second, *_ = parse_record(RECORD)
    assert (first.bridge, first.table, first.priority, first.cookie) == ("br0", 0, 100, 0x687303000064000A)
    assert (second.table, second.match, second.actions) == (1, "metadata=0x64", "goto_table:2")
    (plain, missed) = parse_record(
        "br1\n  duration=9s, n_packets=3, n_bytes=9, ip,actions=NORMAL\n  table_id=9, no match\n"
    )
    assert (plain.bridge, plain.priority, plain.match) == ("br1", 0x8000, "ip")
    assert (missed.table, missed.priority) == (9, None)
    assert parse_record("UFID was not found for netdev@ovs-netdev\n") == ()


@pytest.mark.parametrize(
    ("record", "same"), [(RECORD, True), (RECORD.replace("table_id=2", "table_id=3"), False), ("", None)]
)
def test_the_tables_are_compared_with_the_record(record: str, same: bool | None) -> None:
    found, here = dissect(PING_OUT), switch(datapath.parse(WIDE, "9"))
    way = way_of(here, found, Direction.SENT, 0.0)
    told = path(here, found, Direction.SENT, way, asked(BY_TUNNEL), lambda _: parse_record(record))
    assert told.steps_recorded is same
    assert len(told.recorded) == (4 if record else 0)
    assert not record or told.recorded[0].startswith("bridge br0, table 0: packets from a VM (VNI 100, VM vm1): ")


WIDE_DUMP = (ANSWERS.parent / "trace" / "dump-flows-wide.txt").read_text()  # of Open vSwitch 3.5, with names of ports
RECORD_3_5 = """\
cookie=0x687303000064000a, duration=13s, n_packets=2574, n_bytes=251928, n_offload_packets=0, n_offload_bytes=0, priority=100,in_port=10,dl_src=52:54:00:64:00:01,actions=write_metadata:0x64,goto_table:1
cookie=0x6873090000640000, table_id=1, duration=13s, n_packets=1706, n_bytes=167076, n_offload_packets=0, n_offload_bytes=0, priority=5,metadata=0x64,actions=goto_table:2
cookie=0x6873070000640000, table_id=2, duration=13s, n_packets=1706, n_bytes=167076, n_offload_packets=0, n_offload_bytes=0, priority=20,metadata=0x64,dl_dst=52:54:00:64:ff:fe,actions=set_field:0x64->tun_id,set_field:172.31.0.2->tun_dst,output:2
cookie=0x6873020000000000, duration=13s, n_packets=1670, n_bytes=246210, n_offload_packets=0, n_offload_bytes=0, priority=100,in_port=LOCAL,actions=output:1
"""


def test_a_dump_with_all_fields_has_only_those_that_are_matched() -> None:
    flows = datapath.parse(WIDE_DUMP)
    assert len(flows) == WIDE_DUMP.count("ufid:")
    by_tunnel = [each for each in flows if each.tunnel]
    assert by_tunnel[0].tunnel == "tunnel(tun_id=0x64,src=172.31.0.2,dst=172.31.0.1,flags(-df+csum+key))"
    assert all("/0" not in each.text.replace("/0x", "") and "/0.0.0.0" not in each.text for each in flows)
    assert {each.core for each in flows if each.in_port == "vm1"} == {"1"}


@pytest.mark.parametrize(
    ("state", "words"),
    [("0x21/0x23", "+new-est+trk"), ("0x2a", "-new+est-rel+rpl-inv+trk-snat-dnat"), ("+new", "+new")],
)
def test_states_are_numbers_in_such_a_dump(state: str, words: str) -> None:
    assert flow(f"recirc_id(0x1),in_port(1),ct_state({state}),eth_type(0x0800)", "2").state == words
    assert flow("recirc_id(0x1),in_port(1),eth_type(0x0800)", "2").state is None


def test_a_record_that_names_no_bridge() -> None:
    assert [each.table for each in parse_record(RECORD_3_5)] == [0, 1, 2, 0]
    found, here = dissect(PING_OUT), switch(datapath.parse(WIDE, "9"))
    way = way_of(here, found, Direction.SENT, 0.0)
    told = path(here, found, Direction.SENT, way, asked(BY_TUNNEL), lambda _: parse_record(RECORD_3_5))
    assert told.steps_recorded is True
    assert told.recorded[1] == "table 1: packets for no VM of this host (VNI 100): goto_table:2"


@pytest.mark.parametrize(
    ("group", "question"),
    [
        ("", ""),
        (
            "tunnel(tun_id=0x64,src=1.1.1.1/255.0.0.0,ttl=9,flags(-df-csum))",
            "tunnel(tun_id=0x64,src=1.1.1.1,ttl=9,flags(0))",
        ),
        (
            "tunnel(tun_id=0x1,geneve({class=0x102,type=0x80,len=4,0x10002}),flags(df|key))",
            "tunnel(ttl=64,tun_id=0x1,geneve({class=0x102,type=0x80,len=4,0x10002}),flags(df|key))",
        ),
    ],
)
def test_a_tunnel_as_the_flow_tables_are_asked_about_it(group: str, question: str) -> None:
    assert flow(f"{group}{',' if group else ''}recirc_id(0),in_port(1),eth_type(0x0800)", "2").asked_tunnel == question

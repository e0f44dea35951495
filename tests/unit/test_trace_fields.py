"""Frames taken apart, told in words and written as a flow of the datapath."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.tracing.fields import Fields, as_flow, dissect, words
from tests.unit.trace_frames import (
    ALL,
    FAR,
    PING,
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

ASKS = ethernet(VM1, ALL, 0x0806, arp(1, (VM1, "10.0.0.1"), ("00:00:00:00:00:00", "10.0.0.2")))
TELLS = ethernet(VM2, VM1, 0x0806, arp(2, (VM2, "10.0.0.2"), (VM1, "10.0.0.1")))
OVER_6 = ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 17, udp(1000, 53)))
SOLICITS = ethernet(VM1, "33:33:ff:00:00:02", 0x86DD, solicitation("fd00::1", "ff02::1:ff00:2", "fd00::2", VM1))
FIRST = ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, udp(1, 2), fragment=0x2000))
LATER = ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, b"y" * 16, fragment=0x0010))
# A hop-by-hop header, and then a fragment header.
EXTENDED = ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 0, bytes([44, 0]) + bytes(6) +
                    bytes([17, 0, 0, 1]) + bytes(4) + udp(7, 8)))  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (PING, "ICMP (ping) 10.0.0.1 to 10.0.0.254"),
        (SYN, "TCP [syn] 10.0.0.1:40000 to 10.0.0.254:80"),
        (ethernet(VM1, VM2, 0x0800, ipv4("1.2.3.4", "5.6.7.8", 6, tcp(1, 2, 0))), "TCP [none] 1.2.3.4:1 to 5.6.7.8:2"),
        (OVER_6, "UDP [fd00::1]:1000 to [fd00::2]:53"),
        (ASKS, "ARP: who has 10.0.0.2, asks 10.0.0.1"),
        (TELLS, f"ARP: 10.0.0.2 is at {VM2}"),
        (SOLICITS, "ICMPv6 (a neighbour solicitation) fd00::1 to ff02::1:ff00:2"),
        (FIRST, "UDP, the first fragment of a packet 10.0.0.1:1 to 10.0.0.2:2"),
        (LATER, "UDP, a later fragment of a packet 10.0.0.1 to 10.0.0.2"),
        (EXTENDED, "UDP, the first fragment of a packet [fd00::1]:7 to [fd00::2]:8"),
        (ethernet(VM1, VM2, 0x0800, ipv4("1.2.3.4", "5.6.7.8", 47, b"")), "IP protocol 47 1.2.3.4 to 5.6.7.8"),
        (ethernet(VM1, VM2, 0x88CC, b"x"), f"Ethernet type 0x88cc from {VM1} to {VM2}"),
        (ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 1, icmp(99)), 5),
         "VLAN 5, ICMP (type 99) 10.0.0.1 to 10.0.0.2"),
    ],
)  # fmt: skip
def test_a_frame_in_words(frame: bytes, text: str) -> None:
    assert words(dissect(frame)) == text


@pytest.mark.parametrize(
    ("frame", "flow"),
    [
        (PING, "eth_type(0x0800),ipv4(src=10.0.0.1,dst=10.0.0.254,proto=1,tos=0x0,ttl=64,frag=no),icmp(type=8,code=0)"),
        (SYN, "eth_type(0x0800),ipv4(src=10.0.0.1,dst=10.0.0.254,proto=6,tos=0x0,ttl=64,frag=no),tcp(src=40000,dst=80),"
         "tcp_flags(0x2)"),
        (OVER_6, "eth_type(0x86dd),ipv6(src=fd00::1,dst=fd00::2,label=0x0,proto=17,tclass=0x0,hlimit=64,frag=no),"
         "udp(src=1000,dst=53)"),
        (SOLICITS, "eth_type(0x86dd),ipv6(src=fd00::1,dst=ff02::1:ff00:2,label=0x0,proto=58,tclass=0x0,hlimit=64,"
         f"frag=no),icmpv6(type=135,code=0),nd(target=fd00::2,sll={VM1})"),
        (TELLS, f"eth_type(0x0806),arp(sip=10.0.0.2,tip=10.0.0.1,op=2,sha={VM2},tha={VM1})"),
        (LATER, "eth_type(0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0x0,ttl=64,frag=later)"),
        (ethernet(VM1, VM2, 0x88CC, b"x"), "eth_type(0x88cc)"),
    ],
)  # fmt: skip
def test_a_frame_as_a_flow(frame: bytes, flow: str) -> None:
    found = dissect(frame)
    ends = f"eth(src={found.source_mac},dst={found.target_mac})"
    assert as_flow(found, "3") == f"in_port(3),{ends},{flow}"
    assert as_flow(found, "3", "tunnel(tun_id=0x64)").startswith("tunnel(tun_id=0x64),in_port(3),")
    inside = f"encap({flow})"
    assert as_flow(found, "3", tags=((0x8100, 0x6005),)).endswith(f"eth_type(0x8100),vlan(vid=5,pcp=3),{inside}")


def test_a_frame_with_tags() -> None:
    found = dissect(ethernet(VM1, VM2, 0x0806, arp(1, (VM1, "10.0.0.1"), (VM2, "10.0.0.2")), 7, 8))
    assert found.tags == ((0x8100, 7), (0x8100, 8))
    assert found.addresses == ("10.0.0.1", "10.0.0.2")


def test_the_length_is_what_the_headers_say() -> None:
    whole = ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, udp(1, 2, b"x" * 1000)))
    assert dissect(whole[:100]).length == len(whole)
    over_6 = ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 17, udp(1, 2, b"x" * 1000)), 5)
    assert dissect(over_6[:100]).length == len(over_6)
    assert dissect(ASKS + bytes(18)).length == 60


def test_options_of_ipv4_are_passed_over() -> None:
    frame = ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 17, udp(1, 2), options=bytes(8)))
    assert dissect(frame).ports == (1, 2)


@pytest.mark.parametrize("frame", [SYN, OVER_6, SOLICITS, ASKS, EXTENDED, LATER])
def test_a_cut_frame_lacks_only_what_is_cut(frame: bytes) -> None:
    whole = dissect(frame)
    for length in range(14, len(frame)):
        cut = dissect(frame[:length])
        assert cut.groups["eth"] == whole.groups["eth"]
        assert set(cut.groups) <= set(whole.groups)
        assert words(cut)
        assert as_flow(cut, "1")


@given(st.binary(min_size=14, max_size=120))
def test_any_bytes_are_a_frame(frame: bytes) -> None:
    found = dissect(frame)
    assert isinstance(found, Fields)
    assert words(found)
    assert as_flow(found, "1")


def test_what_is_too_short_is_no_frame() -> None:
    with pytest.raises(ValueError, match="no Ethernet header"):
        dissect(bytes(13))


@pytest.mark.parametrize(("flags", "begins"), [(0x02, True), (0x12, False), (0x10, False)])
def test_the_first_packet_of_a_connection(flags: int, begins: bool) -> None:
    frame = ethernet(VM1, VM2, 0x0800, ipv4("10.0.0.1", "10.0.0.2", 6, tcp(1, 2, flags)))
    assert dissect(frame).begins is begins

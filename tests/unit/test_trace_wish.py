"""Which packets are meant: the exact test, the matches of mirrors and the kernel's filter agree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.errors import ConfigError
from ovs_hotswap.tracing.fields import dissect
from ovs_hotswap.tracing.wish import Instruction, Wish, address, checked, kernel_filter, mirror_filters
from tests.unit.trace_frames import (
    ACK,
    ALL,
    FAR,
    PING,
    PONG,
    SYN,
    VM1,
    VM2,
    arp,
    ethernet,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
)

BACK = ethernet(FAR, VM1, 0x0800, ipv4("10.0.0.254", "10.0.0.1", 6, tcp(80, 40000)))
ASKS = ethernet(VM1, ALL, 0x0806, arp(1, (VM1, "10.0.0.1"), ("00:00:00:00:00:00", "10.0.0.254")))
OVER_6 = ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 17, udp(1000, 53)))
PING_6 = ethernet(VM1, VM2, 0x86DD, ipv6("fd00::1", "fd00::2", 58, icmp(128)))
TAGGED = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 1, icmp()), 5, 6)
WITH_OPTIONS = ethernet(VM1, FAR, 0x0800, ipv4("10.0.0.1", "10.0.0.254", 17, udp(9, 80), options=bytes(4)))
OTHER = ethernet(VM1, VM2, 0x88CC, b"x" * 50)
FRAMES = {"ping": PING, "pong": PONG, "syn": SYN, "ack": ACK, "back": BACK, "asks": ASKS, "over 6": OVER_6,
          "ping 6": PING_6, "tagged": TAGGED, "options": WITH_OPTIONS, "other": OTHER}  # fmt: skip

WISHES = [
    (Wish(), set(FRAMES)),
    (Wish(target=FAR), {"ping", "syn", "ack", "tagged", "options"}),
    (Wish(source=FAR), {"pong", "back"}),
    (Wish(target="10.0.0.254"), {"ping", "syn", "ack", "asks", "tagged", "options"}),
    (Wish(target="10.0.0.254", answers=True), {"ping", "syn", "ack", "asks", "tagged", "options", "pong", "back"}),
    (Wish(source=VM1, target="10.0.0.254", proto="icmp"), {"ping", "tagged"}),
    (Wish(proto="tcp"), {"syn", "ack", "back"}),
    (Wish(proto="arp"), {"asks"}),
    (Wish(target="10.0.0.254", proto="arp"), {"asks"}),
    (Wish(proto="icmp6"), {"ping 6"}),
    (Wish(proto="ip6"), {"over 6", "ping 6"}),
    (Wish(proto="17"), {"over 6", "options"}),
    (Wish(port=80), {"syn", "ack", "back", "options"}),
    (Wish(port=80, proto="udp"), {"options"}),
    (Wish(port=53), {"over 6"}),
    (Wish(target="10.0.0.254", proto="tcp", port=80, answers=True), {"syn", "ack", "back"}),
    (Wish(target="fd00::2"), {"over 6", "ping 6"}),
    (Wish(source="fd00::1", proto="udp", port=1000), {"over 6"}),
    (Wish(source="10.0.0.9"), set()),
]
ids = [wish.text() for wish, _ in WISHES]


def passes(program: Sequence[Instruction], frame: bytes) -> bool:
    """What the kernel makes of classic BPF (Documentation/networking/filter.rst), for the instructions that are used. A
    packet socket sees a frame without its outermost tag."""
    if frame[12:14] == b"\x81\x00":
        frame = frame[:12] + frame[16:]
    at, loaded, index = 0, 0, 0
    while True:
        code, then, otherwise, value = program[at]
        at += 1
        sizes = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2}
        if code in sizes:
            begin = value + (index if code == 0x48 else 0)
            part = frame[begin : begin + sizes[code]]
            if len(part) < sizes[code]:
                return False
            loaded = int.from_bytes(part, "big")
        elif code == 0xB1:
            if value >= len(frame):
                return False
            index = (frame[value] & 15) * 4
        elif code == 0x15:
            at += then if loaded == value else otherwise
        else:
            assert code == 0x06
            return value > 0


@pytest.mark.parametrize(("wish", "wanted"), WISHES, ids=ids)
def test_the_packets_of_a_wish(wish: Wish, wanted: set[str]) -> None:
    assert {name for name, frame in FRAMES.items() if wish.takes(dissect(frame))} == wanted


@pytest.mark.parametrize(("wish", "wanted"), WISHES, ids=ids)
def test_the_kernel_passes_at_least_these(wish: Wish, wanted: set[str]) -> None:
    passed = {name for name, frame in FRAMES.items() if passes(kernel_filter(wish), frame)}
    assert passed >= wanted
    not_looked_into = {"tagged"} | (
        {"over 6", "ping 6"} if wish.port is not None or wish.protocol is not None else set()
    )
    assert passed - not_looked_into <= wanted | {"tagged"}


@given(st.sampled_from([wish for wish, _ in WISHES]), st.binary(min_size=14, max_size=80))
def test_the_kernel_drops_no_frame_that_is_meant(wish: Wish, rest: bytes) -> None:
    for kind in (b"", b"\x08\x00\x45\x00", b"\x08\x06", b"\x86\xdd\x60"):
        frame = rest[:12] + kind + rest[12:]
        if wish.takes(dissect(frame)) and wish.port is None:
            assert passes(kernel_filter(wish), frame)


@pytest.mark.parametrize(
    ("wish", "filters"),
    [
        (Wish(), (None,)),
        (Wish(port=80), ("dl_type=0x0800", "dl_type=0x86dd")),
        (Wish(target=FAR), (f"dl_dst={FAR}",)),
        (Wish(target=FAR, answers=True), (f"dl_dst={FAR}", f"dl_src={FAR}")),
        (Wish(target="10.0.0.7", proto="tcp", port=80), ("dl_type=0x0800,nw_proto=6,nw_dst=10.0.0.7",)),
        (Wish(source="fd00::1", proto="udp"), ("dl_type=0x86dd,nw_proto=17,ipv6_src=fd00::1",)),
        (Wish(source="fd00::1"), ("dl_type=0x86dd,ipv6_src=fd00::1",)),
        (Wish(source="10.0.0.7", proto="arp"), ("dl_type=0x0806,arp_spa=10.0.0.7",)),
        (Wish(proto="icmp6"), ("dl_type=0x86dd,nw_proto=58",)),
        (Wish(proto="icmp6", answers=True), ("dl_type=0x86dd,nw_proto=58",)),
        (Wish(target="10.0.0.7"), ("dl_type=0x0800,nw_dst=10.0.0.7", "dl_type=0x0806,arp_tpa=10.0.0.7")),
        (Wish(proto="tcp"), ("dl_type=0x0800,nw_proto=6", "dl_type=0x86dd,nw_proto=6")),
        (
            Wish(source=VM1, proto="tcp"),
            (f"dl_type=0x0800,nw_proto=6,dl_src={VM1}", f"dl_type=0x86dd,nw_proto=6,dl_src={VM1}"),
        ),
    ],
)
def test_the_matches_of_mirrors(wish: Wish, filters: tuple[str | None, ...]) -> None:
    assert mirror_filters(wish) == filters


@pytest.mark.parametrize(
    "wish",
    [
        Wish(source="10.0.0.1", target="fd00::1"),
        Wish(proto="icmp", port=80),
        Wish(proto="arp", target="fd00::1"),
        Wish(proto="icmp6", source="10.0.0.1"),
    ],
)
def test_what_no_packet_can_be_is_refused(wish: Wish) -> None:
    with pytest.raises(ConfigError):
        checked(wish)


@pytest.mark.parametrize("wish", [wish for wish, _ in WISHES])
def test_what_a_packet_can_be_is_not_refused(wish: Wish) -> None:
    assert checked(wish) is wish


@pytest.mark.parametrize(
    ("text", "found"),
    [("52:54:00:AB:00:01", "52:54:00:ab:00:01"), ("10.0.0.1", "10.0.0.1"), ("FD00::0001", "fd00::1"), ("web1", None)],
)
def test_an_address_as_users_write_it(text: str, found: str | None) -> None:
    assert address(text) == found

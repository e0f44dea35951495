"""Entries of the connection tracking: read from real dumps, and made again by packets that leave the switch nowhere."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.checksums import crc32c
from ovs_hotswap.clone.conntrack_entries import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Entry,
    Tuple,
    compare,
    count_expectations,
    parse_dump,
)
from ovs_hotswap.clone.conntrack_packets import obstacle, packets, reduction, tcp_steps
from tests.unit.conntrack_model import Connection, Conntrack, Key, track

ANSWERS = Path(__file__).parent / "answers" / "conntrack"
HTTP = Entry(
    TCP, Tuple("10.0.0.1", "10.0.0.2", 5000, 80), Tuple("10.0.0.2", "10.0.0.1", 80, 5000), zone=1,
    states=("ESTABLISHED", "ESTABLISHED"),
)  # fmt: skip
ANY = Key(0, TCP, ("10.0.0.1", 1), ("10.0.0.2", 2))
STATES = ("CLOSED", "SYN_SENT", "ESTABLISHED", "CLOSING", "FIN_WAIT_2", "TIME_WAIT")

addresses_4 = st.integers(1, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
# No IPv4 address in an IPv6 one: OVS prints those as IPv4 (lib/packets.c, ipv6_format_mapped), but not in a dump.
addresses_6 = st.integers(2**125, 2**127).map(lambda number: str(IPv6Address(number)))
ports = st.integers(1, 65535)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Any entry that a switch can have, with at most one end translated."""
    address = draw(st.sampled_from([addresses_4, addresses_6]))
    source, target, other = draw(st.tuples(address, address, address))
    protocol = draw(st.sampled_from([TCP, UDP, SCTP, ICMPV6 if address is addresses_6 else ICMP, 2, 47, 136]))
    states = None
    if protocol in (ICMP, ICMPV6):
        identifier = draw(st.integers(0, 65535))
        kind, answer = draw(st.sampled_from([(128, 129)] if protocol == ICMPV6 else [(8, 0), (13, 14), (15, 16)]))
        original = Tuple(source, target, icmp=(identifier, kind, 0))
        reply = Tuple(target, source, icmp=(identifier, answer, 0))
        moved = 0
    else:
        with_ports = protocol in (TCP, UDP, SCTP)
        one, two, moved = draw(st.tuples(ports, ports, ports)) if with_ports else (0, 0, 0)
        original, reply = Tuple(source, target, one, two), Tuple(target, source, two, one)
    if protocol == TCP:
        reached = [(a, b) for a in STATES for b in STATES if tcp_steps((a, b))]
        states = draw(st.sampled_from(reached))
    match draw(st.sampled_from(["none", "source", "target"])):
        case "source":
            reply = replace(reply, target=other, target_port=moved)
        case "target":
            reply = replace(reply, source=other, source_port=moved)
    return Entry(
        protocol, original, reply, draw(st.integers(0, 65535)), draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 2**128 - 1)), states, draw(st.sampled_from([None, "ftp"])) if protocol == TCP else None,
    )  # fmt: skip


@given(entries())
def test_packets_make_the_entry_again(entry: Entry) -> None:
    made = Conntrack()
    for frame, actions in packets(entry):
        made.packet_out(frame, actions)
    assert obstacle(entry) is None
    dump = parse_dump(made.dump())
    assert dump.unread == ()
    assert dump.entries == (entry,)


@given(entries())
def test_what_was_made_is_not_made_again(entry: Entry) -> None:
    same = compare([entry], [replace(entry, timeout=1)])
    assert (same.missing, same.changed, same.extra) == ((), (), ())


def test_every_state_that_packets_lead_to_in_ovs_can_be_made() -> None:
    """All flags that OVS takes for valid are tried on the model, from each first packet."""
    seen, waiting = set[tuple[str, str]](), [("SYN_SENT", "CLOSED")]
    while waiting:
        seen.add(now := waiting.pop())
        for flags, back in product((2, 18, 16, 17, 4, 20), (True, False)):
            connection = Connection(ANY, ANY.reversed(), states=now)
            track(connection, back, flags)
            waiting += {connection.states} - seen
    assert {("ESTABLISHED", "ESTABLISHED"), ("SYN_SENT", "SYN_SENT"), ("FIN_WAIT_2", "CLOSING")} <= seen
    assert seen == {(a, b) for a in STATES for b in STATES if tcp_steps((a, b))}


def test_an_established_connection_takes_three_packets() -> None:
    """After two, its timer is that of a connection that is being opened."""
    assert [actions for _, actions in packets(HTTP)] == ["ct(commit,zone=1)", "ct(zone=1)", "ct(zone=1)"]


@pytest.mark.parametrize(
    ("timeout", "default", "count"), [(31, True, 1), (30, True, 2), (None, True, 2), (59, False, 2)]
)
def test_time_that_is_left_shows_that_a_connection_was_not_answered(
    timeout: int | None, default: bool, count: int
) -> None:
    """An entry that was answered has at most 30 s left, unless its zone has a timeout policy."""
    entry = Entry(UDP, Tuple("10.0.0.1", "10.0.0.2", 1, 2), Tuple("10.0.0.2", "10.0.0.1", 2, 1), timeout=timeout)
    assert len(packets(entry, default_timeouts=default)) == count


def test_the_order_of_what_is_done_at_the_commit() -> None:
    entry = replace(HTTP, reply=Tuple("10.0.0.2", "172.16.0.1", 80, 4000), mark=1, labels=2**127, helper="ftp")
    assert packets(entry)[0][1] == (
        "ct(commit,zone=1,nat(src=172.16.0.1:4000),alg=ftp,"
        "exec(set_field:0x1->ct_mark,set_field:0x80000000000000000000000000000000->ct_label))"
    )


PING = Entry(ICMP, Tuple("10.0.0.1", "10.0.0.2", icmp=(7, 8, 0)), Tuple("10.0.0.2", "10.0.0.1", icmp=(7, 0, 0)))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (replace(HTTP, reply=Tuple("10.0.0.9", "172.16.0.1", 80, 5000)), "both translated"),
        (replace(HTTP, reply=Tuple("10.0.0.9", "10.0.0.1", 80, 5001)), "both translated"),
        (replace(HTTP, states=("SYN_RECV", "SYN_RECV")), "TCP states SYN_RECV and SYN_RECV"),
        (replace(HTTP, states=None), "TCP states unknown"),
        (replace(HTTP, helper="sip"), "helper sip"),
        (replace(HTTP, protocol=SCTP, original=Tuple("10.0.0.1", "10.0.0.2"), reply=Tuple("10.0.0.2", "10.0.0.1"),
                 states=None), "no ports"),
        (replace(PING, original=replace(PING.original, icmp=(7, 0, 0))), "ICMP request"),
        (replace(PING, reply=replace(PING.reply, icmp=(9, 0, 0))), "identifier of ICMP"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_says_why(entry: Entry, reason: str) -> None:
    assert reason in str(obstacle(entry))


def test_a_connection_that_was_announced_loses_its_relation() -> None:
    assert reduction(HTTP) is None
    assert "related" in str(reduction(replace(HTTP, parent="src=10.0.0.1,dst=10.0.0.2,sport=1,dport=21")))


def test_translated_ftp_loses_the_correction_of_its_numbers() -> None:
    translated = replace(HTTP, reply=Tuple("10.0.0.2", "172.16.0.1", 80, 4000))
    assert reduction(replace(HTTP, helper="ftp")) is None
    assert reduction(translated) is None
    assert "no longer corrected" in str(reduction(replace(translated, helper="ftp")))


def test_a_comparison_finds_what_is_missing_changed_and_extra() -> None:
    other = replace(HTTP, zone=2)
    marked = replace(HTTP, mark=5)
    found = compare([HTTP, other], [marked, replace(HTTP, zone=3)])
    assert found.missing == (other,)
    assert found.changed == ((HTTP, marked),)
    assert found.extra == (replace(HTTP, zone=3),)


def test_a_connection_that_the_other_side_knows_backwards_is_not_missing() -> None:
    """Packets of either direction would find it, and those made for it would change its state."""
    backwards = replace(HTTP, original=HTTP.reply, reply=HTTP.original)
    found = compare([HTTP], [backwards])
    assert (found.missing, found.changed, found.extra) == ((), (), ())


def test_a_line_that_is_no_entry_is_kept_as_it_is() -> None:
    lines = ["tcp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1,dport=2),reply=(src=x", "esp,orig=(),reply=()", "nonsense",
             "tcp,orig=(src=1.1.1.1,dst=1.1.1.2,sport=1,dport=2),reply=(src=1.1.1.2,dst=1.1.1.1,sport=2,dport=1)",
             "udp,orig=(src=10.0.0.1,dst=10.0.0,sport=1,dport=2),reply=(src=10.0.0.2,dst=10.0.0.1,sport=2,dport=1)",
             "udp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=65536,dport=2),reply=(src=10.0.0.2,dst=10.0.0.1,sport=2,dport=1)",
             "Unsupported address family: 7. HEX:"]  # fmt: skip
    dump = parse_dump("\n".join(lines))
    assert dump.entries == ()
    assert dump.unread == tuple(lines)


def test_the_checksum_of_sctp() -> None:
    """The value that RFC 3720, B.4, gives for 32 bytes of zeros."""
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_entries_are_named_in_messages() -> None:
    assert str(HTTP) == "tcp 10.0.0.1:5000 to 10.0.0.2:80 in zone 1"
    assert str(PING) == "icmp 10.0.0.1 to 10.0.0.2"
    assert str(replace(HTTP, protocol=47, zone=0)) == "protocol 47 10.0.0.1 to 10.0.0.2"


@pytest.mark.parametrize("release", ["3.1", "3.5"])
def test_the_dump_of_a_real_switch_is_read_and_made_again(release: str) -> None:
    """It has TCP in all states, UDP, ICMP, ICMPv6, GRE, SCTP, translated addresses, helpers, marks and labels."""
    dump = parse_dump((ANSWERS / f"dump-{release}.txt").read_text())
    assert dump.unread == ()
    assert {TCP, UDP, ICMP, ICMPV6, 47} <= {entry.protocol for entry in dump.entries}
    assert {entry.helper for entry in dump.entries} == {None, "ftp"}
    assert [reduction(entry) is None for entry in dump.entries].count(False) == 1
    assert {obstacle(entry) for entry in dump.entries} == {None}
    made = Conntrack()
    for entry in dump.entries:
        for frame, actions in packets(entry):
            made.packet_out(frame, actions)
    assert parse_dump(made.dump()).entries == dump.entries


def test_expectations_are_counted() -> None:
    assert count_expectations("") == 0
    assert count_expectations((ANSWERS / "expectations-3.5.txt").read_text()) == 1

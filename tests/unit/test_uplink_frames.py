"""The frames that prove an uplink, for underlays of every shape. They are read here without the product's code."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovs_hotswap.uplink.frames import MARK_BYTES, Host, Tunnel, answers, asks, question, tunnel_probe

VTEP, VTEP6 = Host("172.31.0.1", "52:54:00:1f:00:01"), Host("fd00:1f::1", "52:54:00:1f:00:01")
NEAR, NEAR6 = Host("172.31.0.2", "52:54:00:1f:00:02"), Host("fd00:1f::2", "52:54:00:1f:00:02")
MARK = bytes(range(1, MARK_BYTES + 1))
VLANS = st.none() | st.integers(1, 4094)


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def packed(host: Host) -> bytes:
    return ip_address(host.address).packed


def summed(data: bytes) -> int:
    """The sum of RFC 1071: 0xFFFF for what has a right checksum in it."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0")) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet: bytes) -> bytes:
    """The pseudo header of RFC 8200, 8.1, of an IPv6 packet, and what follows its own."""
    return packet[8:40] + struct.pack("!II", len(packet) - 40, packet[6]) + packet[40:]


def tagged(frame: bytes, vlan: int) -> bytes:
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


def advertisement(
    by: Host = NEAR6, to: Host = VTEP6, flags: int = 0x60, hop_limit: int = 255, kind: int = 136
) -> bytes:
    message = struct.pack("!BBHI", kind, 0, 0, flags << 24) + packed(by) + b"\x02\x01" + raw(by.mac)
    packet = struct.pack("!IHBB", 6 << 28, len(message), 58, hop_limit) + packed(by) + packed(to) + message
    return raw(to.mac) + raw(by.mac) + b"\x86\xdd" + packet


def arp_reply(by: Host = NEAR, to: Host = VTEP) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + raw(by.mac) + packed(by) + raw(to.mac) + packed(to)
    return (raw(to.mac) + raw(by.mac) + b"\x08\x06" + body).ljust(60, b"\0")


def test_a_solicitation_as_every_host_takes_it() -> None:
    """RFC 4861, 7.1.1. It is no question for a free address: it has a source."""
    frame = question(VTEP6, NEAR6, MARK)
    assert frame[:14] == raw(NEAR6.mac) + raw(VTEP6.mac) + b"\x86\xdd", "only the neighbour sees it"
    packet = frame[14:]
    version, length, protocol, hop_limit = struct.unpack_from("!IHBB", packet)
    assert (version >> 28, length, protocol, hop_limit) == (6, len(packet) - 40, 58, 255)
    assert packet[8:40] == packed(VTEP6) + packed(NEAR6)
    assert packet[40:42] + packet[44:64] == b"\x87\0" + bytes(4) + packed(NEAR6)
    assert packet[64:72] == b"\x01\x01" + raw(VTEP6.mac), "the source's MAC"
    assert packet[72:] == b"\x0e\x01" + MARK[:6], "a nonce"
    assert summed(pseudo(packet)) == 0xFFFF


@given(VLANS, st.sampled_from([(VTEP, NEAR), (VTEP6, NEAR6)]))
def test_a_tag_is_all_that_an_underlay_with_vlans_changes(vlan: int | None, ends: tuple[Host, Host]) -> None:
    plain = question(*ends, MARK)
    assert question(*ends, MARK, vlan) == (plain if vlan is None else tagged(plain, vlan))


@pytest.mark.parametrize(("asker", "near", "answer"), [(VTEP, NEAR, arp_reply()), (VTEP6, NEAR6, advertisement())])
@given(vlan=VLANS, other=VLANS)
def test_only_frames_with_the_tag_of_the_underlay_count(
    asker: Host, near: Host, answer: bytes, vlan: int | None, other: int | None
) -> None:
    theirs = question(asker, near, bytes(MARK_BYTES))
    for seen in {other, vlan}:
        frame, asked = (answer, theirs) if seen is None else (tagged(answer, seen), tagged(theirs, seen))
        assert answers(frame, asker, near, vlan) is (seen == vlan)
        assert asks(asked, asker, near, MARK, vlan) is (seen == vlan)


def test_a_tag_that_gives_only_a_priority_is_none() -> None:
    assert answers(tagged(arp_reply(), 5 << 13), VTEP, NEAR)
    assert answers(tagged(arp_reply(), 5 << 13 | 100), VTEP, NEAR, 100)


@pytest.mark.parametrize(
    "frame",
    [
        advertisement(flags=0x20),  # not asked for
        advertisement(hop_limit=254),  # from another link
        advertisement(kind=135),
        advertisement(by=replace(NEAR6, address="fd00:1f::3")),
        advertisement(to=replace(VTEP6, address="fd00:1f::9")),
        advertisement(to=replace(VTEP6, mac="52:54:00:1f:00:09")),
        arp_reply(),
        question(VTEP6, NEAR6, MARK),
    ],
)
def test_what_is_no_answer_over_ipv6(frame: bytes) -> None:
    assert answers(advertisement(), VTEP6, NEAR6)
    assert not answers(frame, VTEP6, NEAR6)


def test_whose_question_it_is_over_ipv6() -> None:
    assert not asks(question(VTEP6, NEAR6, MARK), VTEP6, NEAR6, MARK), "it is ours"
    assert asks(question(VTEP6, NEAR6, MARK[::-1]), VTEP6, NEAR6, MARK)
    assert not asks(question(VTEP6, NEAR6, MARK[::-1]), VTEP6, replace(NEAR6, address="fd00:1f::3"), MARK)
    assert not asks(question(NEAR6, VTEP6, MARK[::-1]), VTEP6, NEAR6, MARK)
    assert not asks(advertisement(), VTEP6, NEAR6, MARK)


@given(st.data())
def test_no_cut_frame_is_a_proof(data: st.DataObject) -> None:
    asker, near, whole, least = data.draw(
        st.sampled_from([(VTEP, NEAR, arp_reply(), 42), (VTEP6, NEAR6, advertisement(), 78)])
    )
    vlan = data.draw(VLANS)
    frame, least = (whole, least) if vlan is None else (tagged(whole, vlan), least + 4)
    cut = frame[: data.draw(st.integers(0, len(frame)))]
    assert answers(cut, asker, near, vlan) is (len(cut) >= least)
    assert not asks(cut, asker, near, MARK, vlan)


@given(VLANS, st.integers(1280, 9600), st.integers(1, 65535), st.sampled_from(["vxlan", "geneve"]), st.booleans())
def test_a_probe_as_every_switch_takes_it(vlan: int | None, mtu: int, port: int, tunnel: Tunnel, six: bool) -> None:
    near, vtep = (NEAR6, VTEP6) if six else (NEAR, VTEP)
    frame = tunnel_probe(near, vtep, mtu, vlan, port, tunnel)
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    kind = b"\x86\xdd" if six else b"\x08\0"
    assert frame.startswith(raw(vtep.mac) + raw(near.mac) + tag + kind)
    packet = frame[14 + len(tag) :]
    assert len(packet) == mtu, "as long as the underlay carries"
    head, udp = (packet[:40], packet[40:]) if six else (packet[:20], packet[20:])
    assert head[-2 * len(packed(vtep)) :] == packed(near) + packed(vtep)
    if six:
        assert (head[0] >> 4, int.from_bytes(head[4:6]), head[6]) == (6, mtu - 40, 17)
        assert summed(pseudo(packet)) == 0xFFFF
        assert udp[6:8] != bytes(2), "RFC 8200, 8.1"
    else:
        assert (head[0], int.from_bytes(head[2:4]), head[9], udp[6:8]) == (0x45, mtu, 17, bytes(2))
        assert summed(head) == 0xFFFF
    assert struct.unpack_from("!HH", udp, 2) == (port, len(udp))
    network_0 = bytes.fromhex("0800000000000000" if tunnel == "vxlan" else "0000655800000000")
    assert udp[8:16] == network_0, "RFC 7348, section 5; RFC 8926, 3.4"

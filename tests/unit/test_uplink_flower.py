"""The filters of the driver ``switchdev``, over a stand-in for the kernel and the card, and how they are read."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.host.uplink_ends import UplinkEnds
from ovs_hotswap.model import Severity, Side, Steered
from ovs_hotswap.uplink.base import make_uplink
from ovs_hotswap.uplink.flower import HANDLE, PRIORITY, FlowerUplink, tunnel_packets
from ovs_hotswap.uplink.frames import ETH_P_ALL, ETH_P_IP, PacketSockets
from ovs_hotswap.uplink.match import Match
from ovs_hotswap.uplink.rtnl import _rule
from ovs_hotswap.uplink.rules import FlowerKeys, Rule
from tests.support.flower_kernel import MAC, NIC, PF, REP_A, REP_B, FakeFlower
from tests.unit.test_uplink import INTENT, configuration, no_flows, no_path

VTEP = "172.31.0.1"


@pytest.fixture
def kernel() -> FakeFlower:
    return FakeFlower()


def uplink(kernel: FakeFlower, vtep: str = VTEP) -> FlowerUplink:
    return FlowerUplink(
        device="pf0", representors={Side.A: "rep-a", Side.B: "rep-b"}, match=Match(vtep), mac=MAC.upper(), mtu=1500,
        control=kernel, sockets=PacketSockets(None),
    )  # fmt: skip


def test_first_steer_makes_three_filters_in_hardware(kernel: FakeFlower) -> None:
    uplink(kernel).steer(Side.A)
    assert kernel.rules(PF) == [Rule(PRIORITY, ETH_P_IP, HANDLE, FlowerKeys(ip_address(VTEP), 4789), REP_A.index)]
    for link in (REP_A, REP_B):
        assert kernel.rules(link) == [Rule(PRIORITY, ETH_P_ALL, HANDLE, FlowerKeys(source_mac=MAC), PF.index)]
    assert uplink(kernel).owner() is Side.A
    (found,) = uplink(kernel).check()
    assert (found.severity, "instance a" in found.text) == (Severity.OK, True)


def test_the_card_has_the_new_filter_before_it_loses_the_old_one(kernel: FakeFlower) -> None:
    uplink(kernel).steer(Side.A)
    kernel.card.clear()
    uplink(kernel).steer(Side.B)
    assert kernel.card == [("given", PF.index, REP_B.index), ("taken", PF.index, REP_A.index)]


def test_a_card_without_room_for_the_new_filter_keeps_the_old_one(kernel: FakeFlower) -> None:
    kernel.room = 3
    uplink(kernel).steer(Side.A)
    with pytest.raises(UplinkError, match=rf"the card does not take the filter on pf0: {os.strerror(errno.ENOSPC)}"):
        uplink(kernel).steer(Side.B)
    assert uplink(kernel).owner() is Side.A


def test_every_reason_why_a_card_takes_no_filter_is_named_before_and_after(kernel: FakeFlower) -> None:
    kernel.links |= {"pf0": replace(PF, switch=""), "rep-a": replace(REP_A, switch="")}
    both(kernel, f"{NIC} is not in switchdev mode", f"devlink dev eswitch set {NIC} mode switchdev")
    kernel.links |= {"pf0": PF, "rep-a": replace(REP_A, switch="1234")}
    both(kernel, f"rep-a: no representors of {NIC}", "devlink port show")
    for name in ("pf0", "rep-a", "rep-b"):
        other = FakeFlower(offloading={"pf0", "rep-a", "rep-b"} - {name})
        both(other, f"{name}: hw-tc-offload is off", f"ethtool -K {name} hw-tc-offload on")


def both(kernel: FakeFlower, text: str, hint: str) -> None:
    """The fault is found by a check, and told by a steer that fails."""
    found = [each for each in uplink(kernel).check() if text in each.text]
    assert [each.severity for each in found] == [Severity.ERROR]
    assert hint in str(found[0].hint)
    with pytest.raises(UplinkError, match=text) as caught:
        uplink(kernel).steer(Side.B)
    assert hint in str(caught.value.hint)
    assert uplink(kernel).owner() is None


def test_a_kernel_without_the_classifier_is_named(kernel: FakeFlower) -> None:
    kernel.classifier = False
    with pytest.raises(UplinkError, match="no flower filters") as caught:
        uplink(kernel).steer(Side.A)
    assert caught.value.hint == "modprobe cls_flower"


def test_filters_of_a_block_are_named(kernel: FakeFlower) -> None:
    kernel.blocks[PF.index] = 7
    with pytest.raises(UplinkError, match="those of block 7"):
        uplink(kernel).steer(Side.A)


def test_what_is_not_in_hardware_is_found_and_made_again(kernel: FakeFlower) -> None:
    uplink(kernel).steer(Side.A)
    kernel.reset()
    assert uplink(kernel).owner() is None
    found = uplink(kernel).check()
    assert {each.severity for each in found} == {Severity.ERROR}
    assert ["not in hardware" in each.text for each in found] == [True, True, True]
    uplink(kernel).steer(Side.A)
    assert uplink(kernel).owner() is Side.A
    assert [each.severity for each in uplink(kernel).check()] == [Severity.OK]


def test_a_new_vtep_address_gets_a_new_filter(kernel: FakeFlower) -> None:
    uplink(kernel).steer(Side.A)
    for address, protocol in (("172.31.0.9", ETH_P_IP), ("fd00:1::9", 0x86DD)):
        moved = uplink(kernel, address)
        assert moved.owner() is None
        moved.steer(Side.B)
        assert [(each.protocol, each.keys) for each in kernel.rules(PF)] == [
            (protocol, FlowerKeys(ip_address(address), 4789))
        ]
        assert moved.owner() is Side.B


def test_foreign_filters_at_our_priority_stop_us_and_survive(kernel: FakeFlower) -> None:
    foreign = Rule(PRIORITY, ETH_P_IP, 5, FlowerKeys(ip_address("10.0.0.1"), 4789), 99, in_hardware=True)
    kernel.installed[PF.index] = [foreign]
    with pytest.raises(UplinkError, match="foreign"):
        uplink(kernel).steer(Side.A)
    assert Severity.ERROR in {each.severity for each in uplink(kernel).check()}
    uplink(kernel).clear()
    assert kernel.rules(PF) == [foreign]


def test_a_card_that_does_not_count_says_nothing_of_what_passed(kernel: FakeFlower) -> None:
    uplink(kernel).steer(Side.A)
    assert uplink(kernel).steered(Side.A) == Steered(0, 0)
    assert uplink(kernel).steered(Side.B) is None
    silent = FakeFlower(counts=False)
    uplink(silent).steer(Side.A)
    assert uplink(silent).steered(Side.A) is None


def test_driver_is_chosen_by_configuration() -> None:
    assert isinstance(make_uplink(configuration("switchdev"), INTENT, UplinkEnds(no_flows, no_path)), FlowerUplink)


def test_what_a_filter_for_the_tunnels_looks_at() -> None:
    assert tunnel_packets(Match(VTEP)) == (0x0800, FlowerKeys(ip_address(VTEP), 4789))
    assert tunnel_packets(Match("fd00::1", 8472, 7)) == (0x8100, FlowerKeys(ip_address("fd00::1"), 8472, 7))


def tlv(number: int, value: bytes) -> bytes:
    """One attribute of rtnetlink, padded to four bytes (include/uapi/linux/netlink.h, struct nlattr)."""
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def dumped(options: bytes, *, target: int = 3, counted: bool = True) -> Rule | None:
    """The filter in an answer of the kernel, with a mirred action that has redirected 5 packets of 500 bytes."""
    mirred = tlv(2, struct.pack("=IIiiiiI", 1, 0, 4, 1, 1, 1, target))
    statistics = tlv(4, tlv(1, struct.pack("=QI4x", 500, 5)))
    action = tlv(1, b"mirred\0") + tlv(2, mirred) + statistics + (tlv(9, struct.pack("=II", 1, 3)) if counted else b"")
    body = struct.pack("=BBHiIII", 0, 0, 0, 2, HANDLE, 0xFFFFFFF2, PRIORITY << 16 | 0x0008)
    body += tlv(1, b"flower\0") + tlv(2, options + tlv(3, tlv(1, action)))
    message = tcmsg(struct.pack("=IHHII", 16 + len(body), 44, 2, 1, 0) + body)
    message.decode()
    return _rule(message)


IPV4 = tlv(8, b"\x08\0") + tlv(9, b"\x11") + tlv(12, bytes([172, 31, 0, 1])) + tlv(13, b"\xff" * 4)
IPV4 += tlv(21, (4789).to_bytes(2)) + tlv(38, b"\xff\xff")
IN_HARDWARE = tlv(22, struct.pack("=I", 0b110)) + tlv(86, struct.pack("=I", 1))


def test_a_filter_is_read_as_the_kernel_dumps_it() -> None:
    """The attributes are those that fl_dump in net/sched/cls_flower.c makes."""
    expected = Rule(PRIORITY, ETH_P_IP, HANDLE, tunnel_packets(Match(VTEP))[1], 3)
    found = dumped(IPV4 + IN_HARDWARE)
    assert found == expected
    assert found is not None
    assert (found.in_hardware, found.packets) == (True, 5)
    other = dumped(IPV4 + tlv(22, struct.pack("=I", 0b1010)), counted=False)
    assert other is not None
    assert (other.in_hardware, other.packets) == (False, None)
    mac = dumped(tlv(6, bytes.fromhex(MAC.replace(":", ""))) + tlv(7, b"\xff" * 6))
    assert mac is not None
    assert mac.keys == FlowerKeys(source_mac=MAC)
    six = tlv(23, struct.pack("=H", 7)) + tlv(25, b"\x86\xdd") + tlv(9, b"\x11") + tlv(16, ip_address("fd00::1").packed)
    tagged = dumped(six + tlv(17, b"\xff" * 16) + tlv(21, (8472).to_bytes(2)) + tlv(38, b"\xff\xff"))
    assert tagged is not None
    assert tagged.keys == FlowerKeys(ip_address("fd00::1"), 8472, 7)


@pytest.mark.parametrize(
    "more",
    [tlv(20, (9).to_bytes(2)), tlv(10, bytes(4)), tlv(120, b"\1")],
    ids=["source port", "source address", "one that is newer"],
)
def test_a_filter_that_looks_at_more_is_not_taken_for_ours(more: bytes) -> None:
    found = dumped(IPV4 + more)
    assert found is not None
    assert found.keys != tunnel_packets(Match(VTEP))[1]


def test_a_filter_for_many_addresses_is_not_taken_for_ours() -> None:
    wide = IPV4.replace(tlv(13, b"\xff" * 4), tlv(13, b"\xff\xff\0\0"))
    found = dumped(wide)
    assert found is not None
    assert found.keys == FlowerKeys(udp_port=4789, others=frozenset({12, 13}))

"""The ``i40e`` uplink over a fake NIC: faults with rules, prerequisites, resets of virtual functions (VFs)."""

from __future__ import annotations

import contextlib
import errno
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError, SwitchError, UplinkError
from ovs_hotswap.host.uplink_ends import UplinkEnds
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.switch.openflow import OpenFlow
from ovs_hotswap.uplink.base import make_uplink, steer_to_started
from ovs_hotswap.uplink.driver import Speaker
from ovs_hotswap.uplink.ethtool import IP_USER_FLOW, UDP_V4_FLOW, Ethtool, FlowRule
from ovs_hotswap.uplink.frames import Host, PacketSockets
from ovs_hotswap.uplink.i40e import I40eUplink
from ovs_hotswap.uplink.i40e_card import Function, KernelCards, function_of, module_option
from ovs_hotswap.uplink.i40e_rules import ANY_QUEUE, CLOUD, OUTER
from ovs_hotswap.uplink.pair import Nic, PairUplink
from ovs_hotswap.uplink.rules import Link
from tests.support.fake_i40e import EADMINQ, FakeCards, FakeI40e, Match, plan
from tests.unit.test_uplink import no_path

REFUSED = r"rule 4095 could not be inserted: .*; the rule for instance a is in its place as before"
VTEP, MAC = "172.31.0.1", "52:54:00:1f:00:01"


@dataclass
class Bed:
    """A NIC, and the uplink over it."""

    nic: FakeI40e
    match: Match = "udp-port"
    slept: float = 0.0

    def uplink(self, *, quick: bool = False) -> I40eUplink:
        return I40eUplink(
            device="pf0", plan=plan(self.match), vtep=Host(VTEP, MAC), mtu=1500, cards=FakeCards(self.nic),
            sockets=PacketSockets(None), quick=quick, sleep=self.sleep,
        )  # fmt: skip

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def set(self, number: int, **changes: Any) -> None:
        self.nic.vfs[number].function = replace(self.nic.vfs[number].function, **changes)

    def foreign(self, rule: FlowRule) -> None:
        Ethtool(self.nic, "pf0").insert(rule)

    def findings(self, severity: Severity) -> list[Finding]:
        return [each for each in self.uplink().check() if each.severity is severity]


@pytest.fixture
def bed() -> Bed:
    return Bed(FakeI40e())


# ---------------------------------------------------------------------------------------------------------- the rules


def test_the_forms_of_a_rule() -> None:
    """By port with the VF's own distribution to queues; by outer address with the package, and by address to one queue
    without it."""
    found = []
    beds: list[tuple[FakeI40e, Match]] = [
        (FakeI40e(), "udp-port"), (FakeI40e(), "address"), (FakeI40e(package=False), "address"),
    ]  # fmt: skip
    for nic, match in beds:
        Bed(nic, match).uplink().steer(Side.B)
        assert nic.vf_of(VTEP) == 1
        found.append(Ethtool(nic, "pf0").rule(4095))
    assert found == [
        FlowRule(4095, UDP_V4_FLOW, 1, ANY_QUEUE, port=4789, user=CLOUD),
        FlowRule(4095, IP_USER_FLOW, 1, ANY_QUEUE, address=VTEP, user=CLOUD | OUTER),
        FlowRule(4095, UDP_V4_FLOW, 1, 0, address=VTEP, user=CLOUD),  # as a module with l4mode reports it
    ]


@pytest.mark.parametrize("code", [EADMINQ, errno.ENOSPC, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("quick", [False, True])
def test_a_refused_insert_puts_the_old_rule_back_and_says_so(bed: Bed, code: int, quick: bool) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.refuse = code
    with pytest.raises(UplinkError, match=REFUSED) as caught:
        bed.uplink(quick=quick).steer(Side.B)
    assert caught.value.hint
    assert bed.nic.vf_of(VTEP) == 0
    assert bed.uplink().owner() is Side.A


def test_a_first_insert_that_is_refused_leaves_nothing(bed: Bed) -> None:
    bed.nic.l4mode = False
    with pytest.raises(UplinkError, match="neither instance, as before") as caught:
        bed.uplink().steer(Side.A)
    assert "l4mode=0" in str(caught.value.hint)
    assert bed.nic.cloud == {}


def test_a_full_table_is_said_and_the_old_rule_stays(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    for number in range(bed.nic.capacity - 1):
        bed.foreign(FlowRule(100 + number, UDP_V4_FLOW, 0, 0, port=20000 + number, user=CLOUD))
    bed.uplink().steer(Side.B)  # ours takes the place of the old one
    bed.uplink().clear()
    bed.foreign(FlowRule(99, UDP_V4_FLOW, 0, 0, port=19999, user=CLOUD))
    with pytest.raises(UplinkError, match="could not be inserted"):
        bed.uplink().steer(Side.A)
    assert len(bed.nic.cloud) == bed.nic.capacity


def test_a_reset_of_the_nic_is_waited_for(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.busy = 5
    bed.uplink().steer(Side.B)
    assert bed.nic.vf_of(VTEP) == 1
    assert bed.slept == pytest.approx(0.5)


def test_a_reset_that_does_not_end_is_not_waited_for_without_end(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    for quick in (True, False):
        bed.nic.busy = 10_000
        with pytest.raises(
            UplinkError, match="Device or resource busy; the rule for instance a is in its place"
        ) as got:
            bed.uplink(quick=quick).steer(Side.B)
        assert "reset" in str(got.value.hint)
        assert bed.slept < 10
    assert bed.nic.vf_of(VTEP) == 0


def test_rules_of_the_flow_director_with_other_masks_are_no_hindrance(bed: Bed) -> None:
    """That has one mask for each type of flow, which is why a rule of ours is none of its."""
    bed.foreign(FlowRule(1, UDP_V4_FLOW, 0, 1, address=VTEP, port=4789))
    with pytest.raises(UplinkError, match="not supported"):
        bed.foreign(FlowRule(2, UDP_V4_FLOW, 0, 1, port=4789))
    with pytest.raises(UplinkError, match="Invalid argument"):
        bed.foreign(FlowRule(2, UDP_V4_FLOW, 1, 1, address=VTEP, port=4789))
    for side in (Side.A, Side.B):
        bed.uplink().steer(side)
        assert bed.uplink().owner() is side
    assert bed.nic.director.keys() == {1}


@pytest.mark.parametrize("rule", [
    FlowRule(4095, UDP_V4_FLOW, 0, 1, address="10.0.0.9", port=53),
    FlowRule(4095, UDP_V4_FLOW, 0, ANY_QUEUE, port=4790, user=CLOUD),
    FlowRule(4095, IP_USER_FLOW, None, 3, address=VTEP),
])  # fmt: skip
def test_a_foreign_rule_at_our_location_is_named_and_stays(bed: Bed, rule: FlowRule) -> None:
    """An insert there would remove it without a word."""
    bed.foreign(rule)
    before = dict(bed.nic.cloud), dict(bed.nic.director)
    for side in Side:
        with pytest.raises(UplinkError, match=r"rule 4095: .*foreign") as caught:
            bed.uplink().steer(side)
        assert "ethtool -N pf0 delete 4095" in str(caught.value.hint)
    bed.uplink().clear()
    assert (bed.nic.cloud, bed.nic.director) == before
    assert ["rule 4095" in each.text for each in bed.findings(Severity.ERROR)] == [True]


def test_a_foreign_rule_with_our_match_is_named_and_nothing_is_lost(bed: Bed) -> None:
    bed.foreign(FlowRule(12, UDP_V4_FLOW, 1, 2, port=4789, user=CLOUD))
    (finding,) = bed.findings(Severity.ERROR)
    assert "rule 12: UDP port 4789 to VF 1, queue 2: it is foreign and matches the same" in finding.text
    assert finding.hint == "ethtool -N pf0 delete 12"
    with pytest.raises(UplinkError, match="could not be inserted"):
        bed.uplink().steer(Side.A)
    assert bed.nic.cloud.keys() == {12}


def test_a_change_of_the_match_or_the_address_replaces_our_rule(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.match = "address"
    assert bed.uplink().owner() is None
    assert any("rule 4094" in each.text for each in bed.findings(Severity.WARNING))
    bed.uplink().steer(Side.B)
    assert bed.nic.cloud.keys() == {4095}
    assert bed.uplink().owner() is Side.B


class Lossy(FakeI40e):
    """A NIC whose driver accepts every change and makes none, or makes each and then reports an error."""

    lies = False
    late: int | None = None

    def call(self, device: str, request: bytes) -> bytes:
        changes = request[0] in (0x31, 0x32)
        answer = request if changes and self.lies else super().call(device, request)
        if request[0] == 0x32 and self.late:
            code, self.late = self.late, None
            raise OSError(code, "lost")
        return answer


def test_a_change_without_effect_is_noticed() -> None:
    nic = Lossy()
    bed = Bed(nic)
    bed.uplink().steer(Side.A)
    nic.lies = True
    with pytest.raises(UplinkError, match="for instance b was inserted, but it reads back as instance a's"):
        bed.uplink().steer(Side.B)
    with pytest.raises(UplinkError, match=r"rule 4094: .*: it was deleted and is still there"):
        bed.uplink().clear()


def test_an_insert_that_took_effect_and_reported_an_error_is_done() -> None:
    nic = Lossy()
    bed = Bed(nic)
    bed.uplink().steer(Side.A)
    nic.late = errno.EIO
    bed.uplink().steer(Side.B)
    assert nic.vf_of(VTEP) == 1


def test_steering_again_makes_no_rule(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.refuse = errno.EIO
    bed.uplink().steer(Side.A)
    bed.uplink(quick=True).steer(Side.A)
    assert bed.nic.refuse == errno.EIO


def test_a_weaker_form_is_not_taken_for_another_reason_than_the_package() -> None:
    bed = Bed(FakeI40e(), "address")
    bed.foreign(FlowRule(12, IP_USER_FLOW, 0, ANY_QUEUE, address=VTEP, user=CLOUD | OUTER))
    with pytest.raises(UplinkError, match="File exists") as caught:
        bed.uplink().steer(Side.A)
    assert "another rule matches the same" in str(caught.value.hint)
    assert bed.nic.cloud.keys() == {12}


def test_two_rules_of_ours_have_no_owner_and_become_one() -> None:
    bed = Bed(FakeI40e(), "address")
    bed.foreign(FlowRule(4094, IP_USER_FLOW, 0, ANY_QUEUE, address=VTEP, user=CLOUD | OUTER))
    bed.foreign(FlowRule(4095, IP_USER_FLOW, 1, 0, address=VTEP, user=CLOUD))
    assert bed.uplink().owner() is None
    bed.uplink().steer(Side.B)
    assert bed.nic.cloud.keys() == {4095}
    assert bed.uplink().owner() is Side.B


def test_clear_without_the_device(bed: Bed) -> None:
    bed.nic.links.clear()
    bed.uplink().clear()


# ------------------------------------------------------------------------------------------------------ resets of VFs


def test_a_rule_that_leads_nowhere_after_a_reset_is_seen_and_made_again(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.reset_vf(0)
    assert bed.uplink().owner() is None
    assert any("rule 4094" in each.text and "reset" in each.text for each in bed.findings(Severity.WARNING))
    bed.uplink().steer(Side.A)
    assert bed.nic.vf_of(VTEP) == 0


def test_a_reset_that_leaves_the_rule_as_it_was_is_seen_by_the_counters(bed: Bed) -> None:
    """The NIC may give the VF's port its old number again, and then the rule that it has lost reads as before."""
    watched = bed.uplink()
    watched.steer(Side.A)
    assert watched.owner() is Side.A
    bed.nic.reset_vf(0, same_seid=True)
    assert bed.nic.vf_of(VTEP) is None
    assert bed.uplink().owner() is Side.A, "nothing tells, without an earlier look"
    assert watched.owner() is None
    watched.steer(Side.A)
    assert bed.nic.vf_of(VTEP) == 0
    assert watched.owner() is Side.A


def test_a_reset_before_the_traffic_comes_is_none_of_the_rule(bed: Bed) -> None:
    watched = bed.uplink()
    watched.steer(Side.A)
    assert watched.owner() is Side.A
    bed.uplink().steer(Side.B)  # by an upgrade, which is another process
    assert watched.owner() is Side.B
    bed.nic.reset_vf(0)  # as a new instance does with its VF
    bed.uplink().steer(Side.A)
    assert watched.owner() is Side.A


def test_an_instance_that_was_started_again_is_given_a_new_rule(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.reset_vf(0, same_seid=True)
    steer_to_started(bed.uplink(), Side.A)
    assert bed.nic.vf_of(VTEP) == 0


@dataclass
class Links:
    up: tuple[int, ...]

    def live(self) -> tuple[int, ...]:
        return self.up


def test_an_instance_that_was_started_again_is_given_new_rules_on_both_nics(bed: Bed) -> None:
    beds = [bed, Bed(FakeI40e())]
    nics = [Nic(name, each.uplink()) for name, each in zip(("pf0", "pf1"), beds, strict=True)]
    pair = PairUplink(nics, Links((0, 1)), lambda side, nic: cast(Speaker, None))
    pair.steer(Side.A)
    for each in beds:
        each.nic.reset_vf(0, same_seid=True)
    steer_to_started(pair, Side.A)
    assert [each.nic.vf_of(VTEP) for each in beds] == [0, 0]


# -------------------------------------------------------------------------------------------------- counters and proofs


def test_counters_are_those_of_the_vf(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    assert bed.uplink().steered(Side.A) == Steered(1000, 500)
    assert bed.uplink().steered(Side.B) is None
    bed.set(0, received=None, sent=None)
    assert bed.uplink().steered(Side.A) is None


class Silent:
    """An instance that must not be asked for anything."""

    def send(self, frame: bytes) -> None:
        raise AssertionError("nothing can be given to a VF")

    def probes(self) -> int:
        raise AssertionError("nothing can be given to a VF")


def test_what_cannot_be_observed_is_not_claimed(bed: Bed) -> None:
    assert bed.uplink().prove(Side.A, Silent(), Way.INTO) == Proof(None, None)
    assert bed.uplink().prove(Side.A, Silent()) == Proof(None, None), "without a neighbour, the way out neither"


class Deaf:
    """Sockets that hear nothing."""

    @contextlib.contextmanager
    def listen(self, *devices: str) -> Iterator[Deaf]:
        yield self

    def heard(self, seconds: float) -> list[bytes]:
        return []

    def send(self, device: str, frame: bytes) -> None:
        raise AssertionError("nothing can be given to a VF")


class Showing(Silent):
    """An instance that ends a proof with the first frame that it is to send."""

    def send(self, frame: bytes) -> None:
        raise SwitchError(frame.hex())


def test_a_proof_has_the_tag_of_the_underlay(bed: Bed) -> None:
    of = I40eUplink(
        device="pf0", plan=plan("udp-port"), vtep=Host(VTEP, MAC), mtu=1500, cards=FakeCards(bed.nic), sockets=Deaf(),
        neighbours=[Host("172.31.0.2", "52:54:00:1f:00:02")], vlan=100,
    )  # fmt: skip
    with pytest.raises(SwitchError) as caught:
        of.prove(Side.A, Showing())
    assert bytes.fromhex(caught.value.message)[12:16] == bytes.fromhex("81000064")


# ------------------------------------------------------------------------------------------------------- prerequisites


def test_a_nic_that_is_ready_has_no_warnings(bed: Bed) -> None:
    bed.uplink().steer(Side.B)
    found = bed.uplink().check()
    assert {each.severity for each in found} == {Severity.OK}
    assert any("overlay traffic goes to instance b" in each.text for each in found)


def _spoof(bed: Bed) -> None:
    bed.set(1, spoof_checked=True)


def _few(bed: Bed) -> None:
    del bed.nic.vfs[1]


def _link(bed: Bed, **changes: Any) -> None:
    bed.nic.links["pf0"] = replace(bed.nic.links["pf0"], **changes)


FAULTS: dict[str, tuple[Callable[[Bed], object], str, str]] = {
    "in-tree": (lambda bed: setattr(bed.nic, "version", "2.8.20-k"), "the kernel's own i40e", 'driver = "announce"'),
    "in-tree now": (lambda bed: setattr(bed.nic, "version", platform.release()), "kernel's own i40e", "exclusive"),
    "other NIC": (lambda bed: setattr(bed.nic, "driver", "ice"), "NIC of the driver ice", '"switchdev"'),
    "ntuple": (lambda bed: setattr(bed.nic, "ntuple", False), "is off", "ethtool -K pf0 ntuple on"),
    "l4mode": (lambda bed: setattr(bed.nic, "option", "1"), "l4mode=1", "options i40e l4mode=0"),
    "ADq": (lambda bed: setattr(bed.nic, "qdisc", "mqprio"), "ADq", "tc qdisc del dev pf0 root"),
    "MFP": (lambda bed: bed.nic.flags.update(MFP=True), "MFP", "NPAR"),
    "down": (lambda bed: _link(bed, up=False), "pf0 is down", "ip link set pf0 up"),
    "MAC": (lambda bed: _link(bed, mac="52:54:00:1f:00:09"), "has MAC 52:54:00:1f:00:09", "[vtep] mac"),
    "MTU": (lambda bed: _link(bed, mtu=1400), "MTU 1400, the underlay 1500", "ip link set pf0 mtu 1500"),
    "no device": (lambda bed: bed.nic.links.clear(), "no network device pf0", "ip -br link"),
    "no VF": (_few, "pf0 has no VF 1, instance b's", "echo 2 >/sys/class/net/pf0/device/sriov_numvfs"),
    "VF down": (lambda bed: bed.set(1, disabled=True), "VF 1, instance b's, is set down", "vf 1 state auto"),
    "spoof check": (_spoof, "VF 1, instance b's, is checked for spoofing", "ip link set pf0 vf 1 spoofchk off"),
}  # fmt: skip
DOUBTS: dict[str, tuple[Callable[[Bed], object], Severity, str, str]] = {
    "no flag": (lambda bed: bed.nic.flags.pop("mdd-auto-reset-vf"), Severity.WARNING, "no mdd-auto-reset-vf", "newer"),
    "flag off": (lambda bed: bed.nic.flags.update({"mdd-auto-reset-vf": False}), Severity.WARNING, "is off",
                 "ethtool --set-priv-flags pf0 mdd-auto-reset-vf on"),
    "no trust": (lambda bed: bed.set(0, trusted=False), Severity.WARNING, "VF 0, instance a's, is not trusted",
                 "ip link set pf0 vf 0 trust on"),
    "l4mode not said": (lambda bed: setattr(bed.nic, "option", None), Severity.WARNING, "nothing says",
                        "ovs-hotswap uplink selftest"),
    "not reported": (lambda bed: bed.set(0, trusted=None, received=None), Severity.WARNING,
                     "does not report trust, counters", "ip -s link show pf0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_prerequisite_has_an_error_and_the_command_that_repairs_it(bed: Bed, name: str) -> None:
    break_it, text, hint = FAULTS[name]
    break_it(bed)
    (finding,) = bed.findings(Severity.ERROR)
    assert text in finding.text
    assert hint in str(finding.hint)
    assert not any("overlay traffic goes" in each.text for each in bed.uplink().check())


@pytest.mark.parametrize("name", DOUBTS)
def test_what_may_be_wrong_is_said_with_its_command(bed: Bed, name: str) -> None:
    break_it, severity, text, hint = DOUBTS[name]
    break_it(bed)
    (finding,) = bed.findings(severity)
    assert text in finding.text
    assert hint in str(finding.hint)
    assert bed.findings(Severity.ERROR) == []


@pytest.mark.parametrize("name", ["ntuple", "down", "no device", "no VF", "VF down"])
def test_traffic_is_not_taken_from_the_old_side_where_the_new_one_cannot_have_it(bed: Bed, name: str) -> None:
    bed.uplink().steer(Side.A)
    before = dict(bed.nic.cloud)
    FAULTS[name][0](bed)
    with pytest.raises(UplinkError) as caught:
        bed.uplink().steer(Side.B)
    assert caught.value.hint
    assert bed.nic.cloud == before


def test_a_rule_that_is_there_shows_the_mode_of_the_module(bed: Bed) -> None:
    bed.uplink().steer(Side.A)
    bed.nic.option = None
    assert {each.severity for each in bed.uplink().check()} == {Severity.OK}


# ---------------------------------------------------------------------------------------------- the host's own data


def test_a_vf_is_decoded_from_what_the_kernel_sends() -> None:
    """pyroute2 has no VF here to ask for; its own encoder stands in for the kernel."""
    stats = [["IFLA_VF_STATS_RX_PACKETS", 90], ["IFLA_VF_STATS_TX_PACKETS", 7], ["IFLA_VF_STATS_BROADCAST", 20],
             ["IFLA_VF_STATS_MULTICAST", 10]]  # fmt: skip
    info = [
        ["IFLA_VF_MAC", {"vf": 3, "mac": MAC}], ["IFLA_VF_SPOOFCHK", {"vf": 3, "spoofchk": 0}],
        ["IFLA_VF_TRUST", {"vf": 3, "trust": 1}], ["IFLA_VF_LINK_STATE", {"vf": 3, "link_state": 2}],
        ["IFLA_VF_STATS", {"attrs": stats}],
    ]  # fmt: skip
    assert _decoded(info) == Function(3, True, False, True, 60, 7)
    bare = [["IFLA_VF_MAC", {"vf": 0, "mac": MAC}], ["IFLA_VF_TRUST", {"vf": 0, "trust": 0xFFFFFFFF}]]
    assert _decoded(bare) == Function(0)


def _decoded(info: object) -> Function:
    message = ifinfmsg()
    message["attrs"] = [["IFLA_VFINFO_LIST", {"attrs": [["IFLA_VF_INFO", {"attrs": info}]]}]]
    message.encode()
    again = ifinfmsg(message.data)
    again.decode()
    return function_of(again.get_attr("IFLA_VFINFO_LIST").get_attr("IFLA_VF_INFO"))


def test_the_host_s_own_devices_are_read() -> None:
    with KernelCards("lo", None).open() as card:
        assert card.link() == Link(1, True, "00:00:00:00:00:00", 65536)
        assert card.functions() == {}
        assert card.queueing() == "noqueue"
        assert card.ethtool.private_flags() == {}
    with KernelCards("no-such0", None).open() as card:
        assert card.link() is None
        with pytest.raises(UplinkError, match="no-such0"):
            card.functions()


def test_what_is_kept_open_is_used_again_and_closed_after_an_error() -> None:
    cards = KernelCards("lo", None, keep=True)
    with cards.open() as card:
        card.link()
        first = card.ethtool._ioctl
    with cards.open() as card:
        assert card.ethtool._ioctl is first
    with pytest.raises(UplinkError), cards.open():
        raise UplinkError("the device is gone")
    with cards.open() as card:
        assert card.ethtool._ioctl is not first
        assert card.link() is not None


def test_the_module_s_option_is_found_where_modprobe_and_the_kernel_find_it(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert module_option(tmp_path, "i40e", "l4mode") is None
    write("usr/lib/modprobe.d/nic.conf", "options i40e l4mode=1\n")
    assert module_option(tmp_path, "i40e", "l4mode") == "1"
    write("etc/modprobe.d/i40e.conf",
          "# options i40e l4mode=2\noptions i40e debug=16 l4mode=0 # by port\noptions ice l4mode=9\n")  # fmt: skip
    assert module_option(tmp_path, "i40e", "l4mode") == "0"
    write("proc/cmdline", "BOOT_IMAGE=/vmlinuz i40e.l4mode=2 quiet\n")
    assert module_option(tmp_path, "i40e", "l4mode") == "2"


# -------------------------------------------------------------------------------------------------------- configuration


def configuration(**uplink: Any) -> Config:
    side = {"pmd_cores": [0], "uplink_devargs": "eth_af_packet0,iface=vf-a"}
    keys = {"driver": "i40e", "device": "pf0", "vf_a": 0, "vf_b": 1, **uplink}
    return Config.model_validate({"overlay": Path("/o.toml"), "instances": {"a": side, "b": side}, "uplink": keys})


def no_flows(side: Side) -> OpenFlow:
    raise SwitchError(f"instance {side} does not run")


INTENT = Intent.model_validate({"vtep": {"address": f"{VTEP}/24", "mac": MAC}})


def test_the_driver_is_chosen_by_configuration() -> None:
    for match in ("udp-port", "address"):
        assert isinstance(make_uplink(configuration(match=match), INTENT, UplinkEnds(no_flows, no_path)), I40eUplink)


@pytest.mark.parametrize("wrong", [{"vf_b": 0}, {"locations": [7, 7]}])
def test_sides_that_share_something_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must differ"):
        make_uplink(configuration(**wrong), INTENT, UplinkEnds(no_flows, no_path))

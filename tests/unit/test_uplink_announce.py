"""The driver ``announce`` over a fake of switches and hosts, its record, and the flows of the instance that speaks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ovs_hotswap.config import Config
from ovs_hotswap.errors import ConfigError, SwitchError, UplinkError
from ovs_hotswap.host.uplink_ends import UplinkEnds
from ovs_hotswap.model import Proof, Severity, Side, Way
from ovs_hotswap.overlay.intent import Intent
from ovs_hotswap.overlay.tables import Form, Kind, Voice, cookie, lines, render, voice_lines
from ovs_hotswap.switch.datapath import parse_senders
from ovs_hotswap.system import System
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.uplink.announce import AnnounceUplink
from ovs_hotswap.uplink.announced import Announced, AnnouncedFile
from ovs_hotswap.uplink.base import looks_every_s, make_uplink, steer_again
from ovs_hotswap.uplink.frames import Host, announcement
from ovs_hotswap.uplink.none import NoUplink
from tests.support.announce_bed import MACS, VTEP, Fabric, Instance, Peer
from tests.unit.test_uplink import no_flows, no_path

VTEP_6 = "fd00:1f::1"


def fabric(*learns: str, vtep: str = VTEP, vlan: int | None = None) -> Fabric:
    """A fabric with such hosts, which have learnt that side a has the address, and begin with packets for it."""
    start = vtep.removesuffix("1")
    peers = [Peer(Host(f"{start}{n}", f"52:54:00:1f:00:{n:02x}"), each) for n, each in enumerate(learns, 2)]
    made = Fabric(peers, vtep=vtep, vlan=vlan)
    made.uplink().steer(Side.A)
    for peer in peers:
        peer.knows = MACS[Side.A]
    made.sleep(1.0)
    made.sent.clear()
    return made


def test_the_new_side_announces_until_the_other_is_silent() -> None:
    world = fabric("announcements", "questions")
    world.peers[0].deaf = 5
    world.uplink().steer(Side.B)
    assert {side for _, side, _ in world.sent} == {Side.B}
    assert [peer.knows for peer in world.peers] == [MACS[Side.B]] * 2
    announced = [at for at, _, frame in world.sent if frame == announcement(Host(VTEP, MACS[Side.B]))]
    assert len(announced) >= 3
    assert min(later - earlier for earlier, later in pairwise(announced)) >= 0.5
    assert [world.instances[side].voice for side in Side] == [Voice.SILENT, Voice.SPEAKS]
    before = world.instances[Side.A].received()
    assert world.record == Announced(side=Side.B, address=VTEP, settled=True, before=before)
    world.sleep(10.0)
    assert world.instances[Side.A].received() == before


def test_each_of_many_neighbours_is_asked() -> None:
    world = fabric(*["questions"] * 15)
    world.uplink().steer(Side.B)
    assert {peer.knows for peer in world.peers} == {MACS[Side.B]}
    at_once = [at for at, _, _ in world.sent]
    assert max(map(at_once.count, at_once)) == 7


def test_a_host_that_does_not_learn_is_named_and_the_way_back_is_open() -> None:
    world = fabric("announcements", "nothing")
    with pytest.raises(UplinkError, match=r"172\.31\.0\.3 still sends to instance a's 52:54:00:1f:00:0a") as caught:
        world.uplink().steer(Side.B)
    assert "ip neigh show 172.31.0.1" in (caught.value.hint or "")
    assert "172.31.0.2" not in caught.value.message
    assert world.uplink().owner() is Side.B
    world.uplink().steer(Side.A)
    assert world.uplink().owner() is Side.A
    assert {peer.knows for peer in world.peers} == {MACS[Side.A]}


def test_a_host_that_cannot_be_named_is_no_silence() -> None:
    world = fabric("nothing")
    end = world.instances[Side.A]
    end.names = list
    with pytest.raises(UplinkError, match="a host that is not known still sends"):
        world.uplink().steer(Side.B)

    def broken() -> list[str]:
        raise SwitchError("no answer")

    end.names = broken
    with pytest.raises(UplinkError, match="a host that is not known still sends"):
        world.uplink().steer(Side.B)


def test_an_interrupted_steer_waits_again() -> None:
    world = fabric("nothing")
    for _ in range(2):
        with pytest.raises(UplinkError, match="still sends"):
            world.uplink().steer(Side.B)


def test_without_another_instance_the_announcements_are_counted() -> None:
    world = fabric("announcements")
    world.instances[Side.A].runs = False
    world.uplink().steer(Side.B)
    assert len([1 for _, _, frame in world.sent if frame == announcement(Host(VTEP, MACS[Side.B]))]) == 3
    assert world.record == Announced(side=Side.B, address=VTEP, settled=True)


def test_an_instance_that_ends_is_not_waited_for() -> None:
    world = fabric("nothing")

    def die() -> None:
        world.instances[Side.A].runs = False
        world.instances[Side.A].fault = gone

    def gone() -> None:
        raise SwitchError("no answer")

    world.then = die
    world.uplink().steer(Side.B)
    assert world.uplink().owner() is Side.B
    world = fabric("nothing")
    world.then = lambda: setattr(world.instances[Side.A], "fault", gone)
    with pytest.raises(UplinkError, match="no answer"):
        world.uplink().steer(Side.B)


def test_a_side_that_does_not_run_is_not_announced() -> None:
    world = fabric("announcements")
    world.instances[Side.B].runs = False
    with pytest.raises(UplinkError, match="instance b does not run"):
        world.uplink().steer(Side.B)
    assert world.uplink().owner() is Side.A
    assert world.sent == []


def test_a_failover_announces_first_and_repeats_it() -> None:
    world = fabric("announcements")
    world.instances[Side.A].runs = False
    begun = world.now
    world.uplink(quick=True).steer(Side.B)
    times = [at for at, _, frame in world.sent if frame == announcement(Host(VTEP, MACS[Side.B]))]
    assert times[0] == begun
    assert len(times) == 11
    assert world.uplink().owner() is Side.B
    world.instances[Side.A] = Instance(world, Side.A)  # a new standby
    world.peers.append(Peer(Host("172.31.0.3", "52:54:00:1f:00:03"), knows=MACS[Side.A]))
    world.sent.clear()
    world.uplink().steer(Side.B)
    assert world.sent == [], "the failover is over; a host that has not learnt is named by a check"
    world.sleep(1.0)
    assert [each.text.split()[0] for each in world.uplink().check()] == ["172.31.0.3"]


def test_repeating_ends_when_the_other_side_is_announced() -> None:
    world = fabric("announcements")
    world.then = lambda: world.write(Announced(side=Side.A, address=VTEP))
    world.uplink(quick=True).steer(Side.B)
    assert len([1 for _, _, frame in world.sent if frame == announcement(Host(VTEP, MACS[Side.B]))]) == 1


def test_repeating_survives_a_fault() -> None:
    world = fabric("announcements")

    def fail() -> None:
        world.instances[Side.B].runs = world.now > 5

    world.then = fail
    world.uplink(quick=True).steer(Side.B)
    assert world.sent[-1][0] > 5


def test_a_dead_owner_is_still_the_one_that_hosts_send_to() -> None:
    world = fabric("announcements")
    world.uplink().steer(Side.B)
    world.instances[Side.B].runs = False
    for quick in (False, True):
        assert world.uplink(quick=quick).owner() is Side.B
        assert world.uplink(quick=quick, vtep="172.31.0.9").owner() is None


def test_an_instance_that_hangs_does_not_delay_a_failover() -> None:
    def hang() -> None:
        raise SwitchError("no answer within 10 s")

    world = fabric("announcements")
    world.instances[Side.A].fault = hang
    assert world.uplink(quick=True).owner() is Side.A
    with pytest.raises(UplinkError, match="no answer"):
        world.uplink().owner()
    world.record = None
    assert world.uplink(quick=True).owner() is None


def test_two_that_speak() -> None:
    world = fabric("announcements")
    world.instances[Side.B].voice = Voice.SPEAKS
    assert world.uplink().owner() is Side.A, "the record says which is the later one"
    assert [(each.severity, each.text) for each in world.uplink().check()] == [
        (Severity.ERROR, f"both instances answer for {VTEP}")
    ]
    world.uplink().steer(Side.A)
    assert world.instances[Side.B].voice is Voice.SILENT
    world.instances[Side.B].voice = Voice.SPEAKS
    world.record = None
    assert world.uplink().owner() is None


def test_flows_that_have_not_taken_effect_are_noticed() -> None:
    world = fabric("announcements")
    world.instances[Side.B].stuck = True
    with pytest.raises(UplinkError, match=r"was made to answer for 172\.31\.0\.1, but neither instance does"):
        world.uplink().steer(Side.B)


def test_check_names_what_is_wrong() -> None:
    world = fabric("announcements", "nothing")
    assert [each.severity for each in world.uplink().check()] == [Severity.OK]
    world.instances[Side.B].device = "02:00:00:00:00:01"
    (found,) = world.uplink().check()
    assert (found.severity, "uplink has MAC 02:00:00:00:00:01" in found.text) == (Severity.ERROR, True)
    world.instances[Side.B].device = None
    world.instances[Side.A].voice = Voice.SILENT
    (found,) = world.uplink().check()
    assert (found.severity, "neither instance answers" in found.text) == (Severity.ERROR, True)
    world.instances[Side.A].voice = Voice.SPEAKS
    world.peers[1].knows = MACS[Side.B]
    world.sleep(1.0)
    (found,) = world.uplink().check()
    assert (found.check, found.severity) == ("uplink peers", Severity.WARNING)
    assert found.text == "172.31.0.3 sent 10 packets to instance b's MAC after instance a was announced"
    world.instances[Side.B].runs = False
    assert [each.severity for each in world.uplink().check()] == [Severity.OK]


def test_an_instance_that_was_started_since_counts_from_zero() -> None:
    world = fabric("announcements")
    world.write(Announced(side=Side.A, address=VTEP, settled=True, before=1000))
    assert [each.severity for each in world.uplink().check()] == [Severity.OK]
    world.peers[0].knows = MACS[Side.B]
    world.sleep(1.0)
    assert "sent 10 packets" in world.uplink().check()[0].text


def test_one_answer_proves_both_ways_and_teaches_nothing() -> None:
    world = fabric("announcements", "questions")
    end = world.end(Side.B)
    prove = world.uplink().prove
    assert prove(Side.B, end) == Proof(True, True)
    assert prove(Side.B, end, Way.OUT) == Proof(True, None)
    assert prove(Side.B, end, Way.INTO) == Proof(None, True)
    assert {peer.knows for peer in world.peers} == {MACS[Side.A]}
    world.peers[0].answers = False
    assert prove(Side.B, end) == Proof(True, True), "one is enough"
    world.instances[Side.B].mute = True
    assert prove(Side.B, end) == Proof(False, None)
    assert prove(Side.B, end, Way.INTO) == Proof(None, None), "which way is broken is not known"
    times = [at for at, _, _ in world.sent]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.1 - 1e-9
    world.peers = []
    assert world.uplink().prove(Side.B, end) == Proof()


def test_an_upgrade_does_not_commit_while_a_host_sends_to_the_old_side() -> None:
    world = fabric("announcements")
    world.uplink().steer(Side.B)
    host: Any = SimpleNamespace(uplink=world.uplink())
    uplink_proof.see_silence(host)
    world.peers[0].knows = MACS[Side.A]
    world.sleep(0.1)
    with pytest.raises(SwitchError, match=r"uplink peers: 172\.31\.0\.2 sent 1 packets to instance a's MAC"):
        uplink_proof.see_silence(host)


# -- the record


def test_the_record_of_what_was_announced(tmp_path: Path) -> None:
    record = AnnouncedFile(tmp_path / "announced.json", System())
    assert record.read() is None
    wanted = Announced(side=Side.B, address=VTEP, settled=True, before=7)
    record.write(wanted)
    assert record.read() == wanted
    record.path.write_text("{")
    assert record.read() is None
    record.remove()
    record.remove()
    assert not record.path.exists()


def test_a_record_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    record = AnnouncedFile(tmp_path / "announced.json", System())
    record.path.mkdir()
    (record.path / "file").touch()
    for act in (record.read, record.remove, lambda: record.write(Announced(side=Side.A, address=VTEP))):
        with pytest.raises(UplinkError, match=r"announced\.json"):
            act()


# -- flows

INTENT = Intent.model_validate({"vtep": {"address": f"{VTEP}/24", "mac": MACS[Side.A]}})
TAGGED = Intent.model_validate({"vtep": {"address": f"{VTEP_6}/64", "mac": MACS[Side.A], "vlan": 100}})
PUSH = "push_vlan:0x8100,set_field:4196->vlan_vid,"


@pytest.mark.parametrize("intent", [INTENT, TAGGED])
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("before", Voice)
@pytest.mark.parametrize("after", Voice)
def test_the_flows_of_a_voice_replace_those_of_the_other(
    intent: Intent, form: Form, before: Voice, after: Voice
) -> None:
    def match(line: str) -> tuple[str, str]:
        head, _, actions = line.partition(" actions=")
        return ",".join(part for part in head.split(",") if not part.startswith("cookie=")), actions

    vtep = intent.vtep
    changed = dict(map(match, lines(render(intent, form, voice=before))))
    changed |= dict(map(match, voice_lines(vtep.address, after, vtep.vlan)))
    assert changed == dict(map(match, lines(render(intent, form, voice=after))))


def test_only_the_instance_that_speaks_has_flows_for_questions() -> None:
    asked = f"cookie={cookie(Kind.ASKS_VTEP):#x},"
    for form in Form:
        assert not any("arp" in line for line in lines(render(INTENT, form)))
        assert not any(asked in line for line in lines(render(INTENT, form, voice=Voice.SILENT)))
        (line,) = [line for line in lines(render(INTENT, form, voice=Voice.SPEAKS)) if asked in line]
        assert line.endswith(f"in_port=1,arp,arp_tpa={VTEP},arp_op=1 actions=LOCAL")


def test_the_flows_of_ipv6_in_a_vlan() -> None:
    def of(voice: Voice) -> dict[str, str]:
        flows = render(TAGGED, Form.WINDOW, voice=voice)[0].flows
        return {flow.match: flow.actions for flow in flows if "icmp6" in flow.match}

    asked = f"in_port=1,dl_vlan=100,icmp6,icmp_type=135,icmp_code=0,nd_target={VTEP_6}"
    told = [f"in_port=LOCAL,icmp6,icmp_type={kind}" for kind in (135, 136)]
    proof = f"in_port=1,dl_vlan=100,icmp6,icmp_type=136,icmp_code=0,ipv6_dst=fe80::5054:ff:fe1f:a,dl_dst={MACS[Side.A]}"
    assert of(Voice.SPEAKS) == {
        asked: "pop_vlan,LOCAL", **dict.fromkeys(told, f"{PUSH}output:1"), proof: "drop",
    }  # fmt: skip
    assert of(Voice.SILENT) == dict.fromkeys((asked, *told, proof), "drop")


def test_ipv6_in_a_vlan_is_announced() -> None:
    world = fabric("announcements", "questions", vtep=VTEP_6, vlan=100)
    world.uplink().steer(Side.B)
    assert {peer.knows for peer in world.peers} == {MACS[Side.B]}
    uplink = world.uplink()
    assert uplink.prove(Side.A, world.end(Side.A)) == Proof(True, True)
    assert {peer.knows for peer in world.peers} == {MACS[Side.B]}, "a proof teaches nothing"


def test_the_announcement_of_ipv6() -> None:
    """RFC 4861, 4.4 and 7.2.6."""
    frame = announcement(Host(VTEP_6, MACS[Side.B]), 100)
    assert frame.hex() == (
        "333300000001" "5254001f000b" "81000064" "86dd"
        "60000000" "0020" "3a" "ff" "fd00001f000000000000000000000001" "ff020000000000000000000000000001"
        "8800" f"{frame[60:62].hex()}" "20000000" "fd00001f000000000000000000000001" "02015254001f000b"
    )  # fmt: skip
    words = frame[26:58] + bytes([0, 0, 0, 32, 0, 0, 0, 58]) + frame[58:]
    assert sum(int.from_bytes(words[at : at + 2]) for at in range(0, len(words), 2)) % 0xFFFF == 0


def test_the_driver_is_made_for_a_vtep_on_the_link_of_its_next_hops(tmp_path: Path) -> None:
    instances = {side: {"pmd_cores": [0], "uplink_devargs": "x", "uplink_mac": MACS[side]} for side in Side}
    config = Config.model_validate({
        "overlay": "/o.toml", "run_dir": tmp_path, "instances": instances, "uplink": {"driver": "announce"},
    })  # fmt: skip
    found = make_uplink(config, TAGGED, UplinkEnds(no_flows, no_path))
    assert isinstance(found, AnnounceUplink)
    assert found.owner() is None
    vtep = {"address": f"{VTEP}/32", "mac": MACS[Side.A], "link_addresses": ["192.0.2.1/31"]}
    with pytest.raises(ConfigError, match=r"link_addresses, so routers send to 192\.0\.2\.1/31 instead"):
        make_uplink(config, Intent.model_validate({"vtep": vtep}), UplinkEnds(no_flows, no_path))


def test_a_steering_that_was_lost_is_restored_at_once() -> None:
    world = fabric("announcements")
    world.instances[Side.A].voice = Voice.SILENT
    begun, background = world.now, list[float]()
    uplink = world.uplink()
    uplink._background = lambda act: background.append(world.now)
    steer_again(uplink, Side.A)
    assert background == [begun], "nothing was waited for"
    assert uplink.owner() is Side.A
    assert looks_every_s(uplink) > looks_every_s(NoUplink())


def test_what_is_lost_beside_the_instance_that_speaks_is_seen_by_the_next_steering() -> None:
    world = fabric("announcements")
    world.instances[Side.A].voice = Voice.SILENT
    world.uplink().steer_at_once(Side.A)
    assert world.record == Announced(side=Side.A, address=VTEP)
    world.uplink().steer(Side.A)
    assert world.record is not None
    assert world.record.settled


def test_senders_in_the_datapaths_flows() -> None:
    """Lines as Open vSwitch 3.1 prints them."""
    flow = "recirc_id(0),tunnel(tun_id=0x64,src={},dst=172.31.0.1,flags(-df-csum+key)),in_port(5),packets:7, used:{}"
    text = "\n".join([
        "flow-dump from pmd on cpu core: 1",
        flow.format("172.31.0.2", "0.104s") + ", actions:2",
        flow.format("172.31.0.3", "4.904s") + ", actions:2",
        flow.format("172.31.0.4", "never") + ", actions:2",
        flow.format("fd00::2", "0.2s").replace("src=", "ipv6_src="),
        "recirc_id(0),in_port(1),eth_type(0x0800),ipv4(dst=172.31.0.1,proto=17,frag=no), packets:9, used:0.1s",
    ])  # fmt: skip
    assert parse_senders(text, 1.0) == ["172.31.0.2", "fd00::2"]
    assert parse_senders(text, 5.0) == ["172.31.0.2", "172.31.0.3", "fd00::2"]

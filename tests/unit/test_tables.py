"""The rendered tables, run on a simulated pair of instances: who gets which packet, and how often."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovs_hotswap.model import Side
from ovs_hotswap.overlay.intent import Intent, Vm
from ovs_hotswap.overlay.ports import PEER_PORT, UPLINK_PORT, VXLAN_PORT
from ovs_hotswap.overlay.tables import (
    NIC_PORTS,
    VLAN_PRESENT,
    Form,
    Kind,
    annotated,
    cookie,
    cookie_kind,
    cookie_name,
    lines,
    render,
    two_ports,
)
from ovs_hotswap.switch.openflow import window_incapable
from tests.unit.flow_simulator import LOCAL, Packet, Pipeline

VTEP_MAC = "52:54:00:aa:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
MULTICAST = "33:33:00:00:00:01"
UNKNOWN = "52:54:00:ff:ff:ff"
VNIS = (100, 200, (1 << 24) - 1)
VTEPS = ("172.31.0.2", "172.31.0.3", "172.31.0.4")
VTEPS_6 = ("fd00:1f::2", "fd00:1f::3", "fd00:1f::4")


def make(vms: list[tuple[int, str, int]], remotes: list[tuple[int, str, str]], vlan: int | None = None) -> Intent:
    """``vms``: (ofport, mac, vni), ``remotes``: (vni, mac, vtep). The VTEP is of the remotes' version of IP."""
    six = any(vtep in VTEPS_6 for _, _, vtep in remotes)
    return Intent.model_validate(
        {
            "vtep": {"address": "fd00:1f::1/64" if six else "172.31.0.1/24", "mac": VTEP_MAC, "vlan": vlan},
            "vm": [{"name": f"vm{port}", "ofport": port, "mac": mac, "vni": vni} for port, mac, vni in vms],
            "remote": [{"vni": vni, "mac": mac, "vtep": vtep} for vni, mac, vtep in remotes],
            "neighbour": [
                {"address": vtep, "mac": f"52:54:00:bb:00:0{n}"} for n, vtep in enumerate(VTEPS_6 if six else VTEPS)
            ],
        }
    )


MACS = st.integers(1, 12).map(lambda n: f"52:54:00:00:00:{n:02x}")


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """Few MACs in few VNIs, so that one MAC in two VNIs is common."""
    places = st.tuples(st.sampled_from(VNIS), MACS)
    taken = draw(st.lists(places, min_size=1, max_size=10, unique=True))
    local = draw(st.integers(1, len(taken)))
    ports = draw(st.lists(st.integers(10, 4000), min_size=local, max_size=local, unique=True))
    vms = [(port, mac, vni) for port, (vni, mac) in zip(ports, taken[:local], strict=True)]
    vteps = st.sampled_from(draw(st.sampled_from([VTEPS, VTEPS_6])))
    return make(vms, [(vni, mac, draw(vteps)) for vni, mac in taken[local:]], draw(st.none() | st.integers(1, 4094)))


TAGS = st.lists(st.tuples(st.sampled_from([0x8100, 0x88A8]), st.integers(1, 4094)), max_size=2).map(tuple)


@dataclass(frozen=True)
class Delivery:
    """``to``: a VM's name, or the VTEP's address and VNI behind which a packet went."""

    to: str
    frame: Packet


class Host:
    """One instance, or two that are joined by a peer link. A VM gets a packet only from the instance that owns it."""

    def __init__(self, intent: Intent, form: Form, owner: dict[str, Side]) -> None:
        self.vms = {vm.ofport: vm for vm in intent.vms}
        self.owner = owner
        self.uplinks = sorted(Side if form is Form.WINDOW else set(owner.values()))
        self.sides = {side: Pipeline(lines(render(intent, form))) for side in self.uplinks}

    def receive(self, side: Side, port: int, packet: Packet) -> Counter[Delivery]:
        found: Counter[Delivery] = Counter()
        for out, sent in self.sides[side].receive(port, packet):
            plain = replace(sent, tun_id=0, tun_dst="")
            if out == PEER_PORT:
                assert port != PEER_PORT, "a packet from the peer link goes back to it"
                assert sent.tags[0][1] != port, "a copy for the sender goes over the peer link"
                found += self.receive(side.other, PEER_PORT, plain)
            elif out == VXLAN_PORT:
                found[Delivery(f"{sent.tun_dst} {sent.tun_id}", plain)] += 1
            elif out in self.vms:
                if self.owner[self.vms[out].name] is side:
                    found[Delivery(self.vms[out].name, plain)] += 1
            else:
                raise AssertionError(f"sent to port {out}")
        return found

    def drops(self) -> Counter[Kind]:
        hits = Counter[Kind]()
        for pipeline in self.sides.values():
            for value, count in pipeline.hits.items():
                kind = cookie_kind(value)
                assert kind is not None
                if kind.is_drop:
                    hits[kind] += count
        return hits


def wanted(intent: Intent, vni: int, frame: Packet, sender: Vm | None) -> Counter[Delivery]:
    """Who is to get a frame of a VNI, told from the intent alone. ``sender`` is ``None`` for one from the tunnel."""
    others = [vm for vm in intent.vms if vm.vni == vni and vm is not sender]
    behind = [remote for remote in intent.remotes if remote.vni == vni] if sender else []
    if int(frame.dst[:2], 16) & 1:
        to = {vm.name for vm in others} | {f"{remote.vtep} {vni}" for remote in behind}
    else:
        to = {vm.name for vm in others if vm.mac == frame.dst}
        to |= {f"{remote.vtep} {vni}" for remote in behind if remote.mac == frame.dst}
    return Counter({Delivery(name, frame): 1 for name in to})


DESTINATIONS = st.one_of(MACS, st.sampled_from([BROADCAST, MULTICAST, UNKNOWN]))
SIDES = st.sampled_from(Side)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Intent, Host]:
    """The final form with every VM on one instance, or the window form with any owners."""
    intent = draw(intents())
    form = draw(st.sampled_from(Form))
    side = draw(SIDES)
    owner = {vm.name: draw(SIDES) if form is Form.WINDOW else side for vm in intent.vms}
    return intent, Host(intent, form, owner)


@settings(max_examples=200, deadline=None)
@given(hosts(), st.data())
def test_a_frame_from_a_vm_reaches_each_right_receiver_exactly_once(
    host: tuple[Intent, Host], data: st.DataObject
) -> None:
    intent, pair = host
    vm = data.draw(st.sampled_from(intent.vms))
    frame = Packet(vm.mac, data.draw(DESTINATIONS), data.draw(TAGS), payload=7)
    got = pair.receive(pair.owner[vm.name], vm.ofport, frame)
    assert got == wanted(intent, vm.vni, frame, vm)


@settings(max_examples=150, deadline=None)
@given(hosts(), st.sampled_from((*VNIS, 300)), DESTINATIONS, TAGS, st.data())
def test_a_frame_from_the_tunnel_reaches_local_vms_only_whichever_uplink_it_came_by(
    host: tuple[Intent, Host], vni: int, destination: str, tags: tuple[tuple[int, int], ...], data: st.DataObject
) -> None:
    intent, pair = host
    side = data.draw(st.sampled_from(pair.uplinks))
    frame = Packet(UNKNOWN, destination, tags, payload=7)
    got = pair.receive(side, VXLAN_PORT, replace(frame, tun_id=vni))
    assert got == wanted(intent, vni, frame, None)


@settings(max_examples=60, deadline=None)
@given(hosts(), st.data())
def test_a_frame_with_another_source_mac_goes_nowhere_and_is_counted(
    host: tuple[Intent, Host], data: st.DataObject
) -> None:
    intent, pair = host
    vm = data.draw(st.sampled_from(intent.vms))
    source = data.draw(MACS.filter(lambda mac: mac != vm.mac))
    got = pair.receive(pair.owner[vm.name], vm.ofport, Packet(source, data.draw(DESTINATIONS)))
    assert not got
    assert pair.drops() == Counter({Kind.DROP_SPOOFED: 1})


@settings(max_examples=60, deadline=None)
@given(intents(), st.data())
def test_a_frame_from_the_peer_link_reaches_the_vm_of_its_tag_only(intent: Intent, data: st.DataObject) -> None:
    vm = data.draw(st.sampled_from(intent.vms))
    inner = data.draw(TAGS)
    frame = Packet(UNKNOWN, data.draw(DESTINATIONS), ((0x88A8, vm.ofport), *inner))
    bridge = Pipeline(lines(render(intent, Form.WINDOW)))
    assert bridge.receive(PEER_PORT, frame) == [(vm.ofport, replace(frame, tags=inner))]


@settings(max_examples=30, deadline=None)
@given(intents(), st.integers(1, 4094), DESTINATIONS)
def test_a_frame_from_the_peer_link_without_a_vms_tag_goes_nowhere(intent: Intent, tag: int, destination: str) -> None:
    bridge = Pipeline(lines(render(intent, Form.WINDOW)))
    if tag in {vm.ofport for vm in intent.vms}:
        tag = 4094
    for frame in (Packet(UNKNOWN, destination, ((0x88A8, tag),)), Packet(UNKNOWN, destination)):
        assert bridge.receive(PEER_PORT, frame) == []
    assert bridge.hits == {cookie(Kind.DROP_UNKNOWN_TAG): 2}


@settings(max_examples=30, deadline=None)
@given(intents())
@example(make([(10, "52:54:00:00:00:01", 100)], []))
def test_the_final_form_has_no_trace_of_the_peer_link(intent: Intent) -> None:
    for table in render(intent, Form.FINAL):
        for flow in table.flows:
            assert f"in_port={PEER_PORT}," not in f"{flow.match},"
            assert f"output:{PEER_PORT}," not in f"{flow.actions},"
            assert "push_vlan:0x88a8" not in flow.actions


@settings(max_examples=30, deadline=None)
@given(intents(), st.sampled_from(Form))
def test_both_forms_can_run_in_the_window(intent: Intent, form: Form) -> None:
    assert window_incapable(lines(render(intent, form))) == []


PAIR = make(
    [(10, "52:54:00:00:00:01", 100), (11, "52:54:00:00:00:02", 100)],
    [(100, "52:54:00:00:00:03", VTEPS[0]), (300, "52:54:00:00:00:04", VTEPS[1])],
)


SHAPES: dict[str, dict[str, object]] = {
    "plain": {"address": "172.31.0.1/24"},
    "tagged": {"address": "172.31.0.1/24", "vlan": 100},
    "IPv6": {"address": "fd00:1f::1/64"},
    "IPv6, tagged, another port": {"address": "fd00:1f::1/64", "vlan": 4094, "udp_port": 8472},
    "Geneve": {"address": "172.31.0.1/24", "tunnel": "geneve"},
}


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("vtep", SHAPES.values(), ids=SHAPES.keys())
def test_the_underlay_carries_packets_of_tunnels_and_nothing_else(vtep: dict[str, object], form: Form) -> None:
    intent = Intent.model_validate({"vtep": {**vtep, "mac": VTEP_MAC}})
    bridge = Pipeline(lines(render(intent, form)))
    own, port, vlan = intent.vtep.address, intent.vtep.port, intent.vtep.vlan
    tag = () if vlan is None else ((0x8100, vlan),)
    plain = Packet(UNKNOWN, VTEP_MAC, udp=(own, port))
    tunnel = replace(plain, tags=tag)
    assert bridge.receive(UPLINK_PORT, tunnel) == [(LOCAL, plain)]
    assert bridge.receive(LOCAL, plain) == [(UPLINK_PORT, tunnel)]
    of_others = ("fd00:1f::9", "172.31.0.1") if ":" in own else ("172.31.0.9", "fd00:1f::1")
    strangers = [
        replace(tunnel, udp=(own, port + 1)), *(replace(tunnel, udp=(other, port)) for other in of_others),
        replace(tunnel, udp=None), replace(tunnel, dst=BROADCAST), replace(tunnel, dst=UNKNOWN),
    ]  # fmt: skip
    if vlan is not None:
        strangers += [plain, replace(tunnel, tags=((0x8100, vlan - 1),)), replace(tunnel, tags=((0x8100, 5), *tag))]
    for packet in strangers:
        assert bridge.receive(UPLINK_PORT, packet) == []
    assert bridge.hits[cookie(Kind.DROP_UNDERLAY)] == len(strangers)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("live", [(0, 1), (0,), (1,)])
def test_packets_come_by_either_of_two_nics_and_leave_by_one_with_a_link(form: Form, live: tuple[int, ...]) -> None:
    uplink = two_ports("active-backup", live)
    bridge = Pipeline(lines(render(PAIR, form, uplink)))
    tunnel = Packet(UNKNOWN, VTEP_MAC, udp=("172.31.0.1", 4789))
    for port in NIC_PORTS:
        assert bridge.receive(port, tunnel) == [(LOCAL, tunnel)]
        assert bridge.receive(port, replace(tunnel, dst=BROADCAST)) == []
    assert bridge.hits[cookie(Kind.DROP_UNDERLAY)] == 2
    assert bridge.receive(LOCAL, tunnel) == [(NIC_PORTS[live[0]], tunnel)]
    one = set(lines(render(PAIR, form)))
    kinds = {cookie_kind(int(line.split("cookie=")[1].split(",")[0], 16))
             for line in one ^ set(lines(render(PAIR, form, uplink)))}  # fmt: skip
    assert kinds == {Kind.FROM_UPLINK, Kind.TO_UPLINK, Kind.DROP_UNDERLAY}


def test_two_nics_have_the_tag_and_the_learned_neighbours_on_either() -> None:
    intent = Intent.model_validate(
        {
            "vtep": {"address": "172.31.0.1/24", "mac": VTEP_MAC},
            "remote": [],
            "neighbour": [{"address": "172.31.0.9"}],
        }
    )
    uplink = two_ports("balance-slb", (0, 1))
    learned = [line for line in lines(render(intent, Form.FINAL, uplink)) if "arp_spa=172.31.0.9" in line]
    assert [f"in_port={port},arp" in line for port, line in zip(NIC_PORTS, learned, strict=True)] == [True, True]
    tagged = make([], [], vlan=100)
    (leave,) = [line for line in lines(render(tagged, Form.FINAL, uplink)) if "in_port=LOCAL" in line]
    assert leave.endswith(f"actions=push_vlan:0x8100,set_field:{VLAN_PRESENT + 100}->vlan_vid,{uplink.leave}")
    assert window_incapable([leave]) == []
    bridge, packet = (
        Pipeline(lines(render(tagged, Form.FINAL, two_ports("active-backup", (1,))))),
        Packet(UNKNOWN, UNKNOWN),
    )
    assert bridge.receive(LOCAL, packet) == [(NIC_PORTS[1], replace(packet, tags=((0x8100, 100),)))]


def test_answers_of_followed_neighbours_come_to_the_bridge_without_their_tag() -> None:
    found = {}
    for version, prefix in ((4, "172.31.0.1/24"), (6, "fd00:1f::1/64")):
        address = prefix.partition("1/")[0] + "9"
        intent = Intent.model_validate(
            {"vtep": {"address": prefix, "mac": VTEP_MAC, "vlan": 7}, "neighbour": [{"address": address}]}
        )
        (found[version],) = [line for line in lines(render(intent, Form.FINAL)) if address in line]
    assert "arp,dl_vlan=7,arp_op=2,arp_spa=172.31.0.9,arp_tpa=172.31.0.1 " in found[4]
    assert "icmp6,dl_vlan=7,icmp_type=136,icmp_code=0,ipv6_dst=fd00:1f::1,nd_target=fd00:1f::9 " in found[6]
    assert {line.partition(" actions=")[2] for line in found.values()} == {"pop_vlan,LOCAL"}


@pytest.mark.parametrize("form", Form)
def test_every_dropped_packet_has_a_counter_of_its_own(form: Form) -> None:
    bridge = Pipeline(lines(render(PAIR, form)))
    source = "52:54:00:00:00:01"
    cases = [
        (10, Packet(source, UNKNOWN), cookie(Kind.DROP_UNKNOWN_FROM_VM, vni=100)),
        (VXLAN_PORT, Packet(source, UNKNOWN, tun_id=100), cookie(Kind.DROP_UNKNOWN_FROM_TUNNEL, vni=100)),
        (VXLAN_PORT, Packet(source, "52:54:00:00:00:03", tun_id=100), cookie(Kind.DROP_UNKNOWN_FROM_TUNNEL, vni=100)),
        (VXLAN_PORT, Packet(source, BROADCAST, tun_id=300), cookie(Kind.DROP_UNKNOWN_VNI)),
        (10, Packet(UNKNOWN, BROADCAST), cookie(Kind.DROP_SPOOFED, vni=100, ofport=10)),
        (99, Packet(source, BROADCAST), cookie(Kind.DROP_UNKNOWN_PORT)),
    ]
    for port, packet, counter in cases:
        before = bridge.hits.get(counter, 0)
        assert bridge.receive(port, packet) == []
        assert bridge.hits[counter] == before + 1


def test_no_two_flows_of_a_table_could_match_the_same_by_the_same_text() -> None:
    for form in Form:
        for table in render(PAIR, form):
            keys = [(flow.priority, flow.match) for flow in table.flows]
            assert len(keys) == len(set(keys))


def test_the_window_form_differs_in_delivery_and_peer_flows_only() -> None:
    final, window = (set(lines(render(PAIR, form))) for form in Form)
    kinds = {cookie_kind(int(line.split("cookie=")[1].split(",")[0], 16)) for line in final ^ window}
    assert kinds == {Kind.DELIVER, Kind.FROM_PEER, Kind.DROP_UNKNOWN_TAG}


def test_a_cookie_keeps_all_it_is_made_of() -> None:
    value = cookie(Kind.DROP_SPOOFED, vni=(1 << 24) - 1, ofport=4000)
    assert value == 0x687382FFFFFF0FA0
    assert cookie_name(value) == "dropped: source MAC is not the VM's (VNI 16777215, port 4000)"
    assert cookie_name(value, {4000: "web"}) == "dropped: source MAC is not the VM's (VNI 16777215, VM web)"
    assert cookie_name(cookie(Kind.DROP_UNDERLAY)) == "dropped: from the uplink, but not of a tunnel to the VTEP"


@pytest.mark.parametrize("value", [0, 0x1234, 0x6873 << 48 | 0x7F << 40, 0x6874 << 48 | Kind.FLOOD << 40])
def test_a_foreign_cookie_has_no_kind(value: int) -> None:
    assert cookie_kind(value) is None
    assert cookie_name(value) == f"cookie {value:#x}"


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_name_of_its_own(kind: Kind) -> None:
    name = cookie_name(cookie(kind))
    assert name.startswith("dropped: ") == kind.is_drop
    assert [other for other in Kind if cookie_name(cookie(other)) == name] == [kind]


def test_the_annotated_form_holds_the_same_flows_and_a_comment_for_each() -> None:
    tables = render(PAIR, Form.WINDOW)
    text = annotated(tables)
    assert [line for line in text if line and not line.startswith("#")] == lines(tables)
    assert [line.partition(". ")[0] for line in text if line.startswith("# Table")] == [
        "# Table 0, classify", "# Table 1, local", "# Table 2, remote", "# Table 3, flood", "# Table 4, deliver",
    ]  # fmt: skip
    for before, line in itertools.pairwise(text):
        if line.startswith("table="):
            assert before.startswith("#   ")


def big(vms: int, remotes: int) -> Intent:
    return make(
        [(10 + n, f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}", 100) for n in range(vms)],
        [(100, f"52:54:02:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}", VTEPS[n % 3]) for n in range(remotes)],
    )


def test_the_text_grows_linearly_with_the_vms_of_one_vni() -> None:
    def size(vms: int, remotes: int) -> int:
        return sum(map(len, lines(render(big(vms, remotes), Form.WINDOW))))

    base = size(0, 0)
    assert size(800, 0) - base < 4.2 * (size(200, 0) - base)
    assert size(10, 40_000) < 4.2 * size(10, 10_000)

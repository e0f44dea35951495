"""The single bridge's flow tables, rendered from the overlay intent. Pure.

One bridge carries the underlay (uplink, LOCAL), the tunnel (vxlan) and the VMs. A packet passes

====  ========  ==========================================================================================
  0   classify  by the port of arrival; packets that pass get their VNI as ``metadata``
  1   local     known destination MACs on this host; multicast goes to flood, other packets from VMs go to remote
  2   remote    known destination MACs behind other VTEPs; only packets from VMs come here: split horizon
  3   flood     multicast and broadcast: each VM of the VNI, from a VM also each remote VTEP of the VNI
  4   deliver   to the one VM whose port is in ``reg0``, except to the VM the packet came from
====  ========  ==========================================================================================

The two forms differ only in tables 0 and 4. The *window* form is for the time while two instances run: deliver outputs
a packet to the VM's port and, tagged with the port (802.1ad, VLAN ID = ofport), to the peer link; a packet from the
peer link goes only to the port that its tag names. Exactly one of the instances owns a VM's rings, and this one
delivers the packet. The *final* form has no flows for the peer link.

If the switch owns the whole NIC (``whole_nic``), one instance at a time has the uplink, and no kernel answers ARP
or neighbour discovery for the VTEP. So LOCAL gets both, and the kernel behind LOCAL answers. In the window the uplink
is then treated as a VM is: encapsulated packets are output to the uplink and, with the tag of its port, to the peer
link. Only the instance that has the uplink sends them.

Where the VTEP's address is announced (``Voice``), either instance has it on a MAC of its own. Classify then lets the
questions for the address, which come from the uplink, and the answers of LOCAL pass on the one instance that speaks for
the address, and on no other. Answers to the questions of a proof are counted on both.

All tables are stateless (no learning, no connection tracking), so both instances can run the same ones. Their size is
linear in the size of the intent: the VMs of a VNI share its flood flows. Only deliver keeps a broadcast from its
sender, also over the peer link, to which OpenFlow's own rule (no output to the port of arrival) does not apply.

With two NICs, packets may come by the port of either, and leave by the action ``bundle``, which chooses a port whose
link is up (ovs-actions(7)). A bond of Open vSwitch would be used by the action NORMAL alone: an output to one of its
members bypasses it.

A flow's cookie says what it does, so that its packet counter can be named: 0x6873 (16 bits), kind (8 bits), VNI
(24 bits, 0 if none), ofport (16 bits, 0 if none). Kinds from 0x80 on are drops.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ovs_hotswap.mac import unteaching
from ovs_hotswap.overlay.intent import Intent, Vm, Vtep
from ovs_hotswap.overlay.ports import PEER_PORT, SECOND_UPLINK_PORT, UPLINK_PORT, VXLAN_PORT

CLASSIFY, LOCAL, REMOTE, FLOOD, DELIVER = range(5)

REQUIRED_OTHER_CONFIG: Mapping[str, str] = {"vlan-limit": "1"}
"""The keys that the tables need in ``other_config`` of the table Open_vSwitch.

OVS tracks at most two VLAN headers (flow.h, FLOW_MAX_VLAN_HEADERS). With ``vlan-limit`` 1, its default, it treats a
guest's inner tags as payload, and the peer link's tag is the second header. With 2 it tracks both tags of a guest's
QinQ frame, and pushing a third one loses the innermost (measured on OVS 3.1).
"""

MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
VLAN_PRESENT = 0x1000  # OFPVID_PRESENT, OpenFlow 1.4.0, section 7.2.3.7

_COOKIE_MAGIC = 0x6873
_TUNNEL_NAMES = {"vxlan": "VXLAN", "geneve": "Geneve"}


class Form(enum.StrEnum):
    """``WINDOW``: two instances run and share a peer link. ``FINAL``: one instance runs."""

    FINAL = "final"
    WINDOW = "window"


class Voice(enum.StrEnum):
    """What an instance does about its VTEP's address where the address is announced. ``SPEAKS``: it answers for the
    address, as the one that was announced last. ``SILENT``: it never does."""

    SPEAKS = "speaks"
    SILENT = "silent"


class Kind(enum.IntEnum):
    """The kind in a flow's cookie, which says what the flow does. The values never change."""

    FROM_UPLINK = 0x01
    TO_UPLINK = 0x02
    FROM_VM = 0x03
    FROM_TUNNEL = 0x04
    FROM_PEER = 0x05
    TO_LOCAL = 0x06
    TO_REMOTE = 0x07
    FLOOD = 0x08
    NOT_LOCAL = 0x09
    DELIVER = 0x0A
    NOT_BACK = 0x0B
    FROM_NEIGHBOUR = 0x0C
    ASKS_VTEP = 0x0D
    ANSWERS_VTEP = 0x0E
    PEER_TO_UPLINK = 0x0F
    FROM_VTEP = 0x10
    PROOF = 0x11
    DROP_UNKNOWN_PORT = 0x80
    DROP_UNDERLAY = 0x81
    DROP_SPOOFED = 0x82
    DROP_UNKNOWN_VNI = 0x83
    DROP_UNKNOWN_TAG = 0x84
    DROP_UNKNOWN_FROM_VM = 0x85
    DROP_UNKNOWN_FROM_TUNNEL = 0x86
    DROP_NOT_ASKED = 0x87

    @property
    def is_drop(self) -> bool:
        return self >= 0x80


_KIND_NAMES = {
    Kind.FROM_UPLINK: "packets of tunnels from the uplink",
    Kind.TO_UPLINK: "packets to the uplink",
    Kind.FROM_VM: "packets from a VM",
    Kind.FROM_TUNNEL: "packets from the tunnel",
    Kind.FROM_PEER: "packets from the peer link",
    Kind.TO_LOCAL: "packets to a VM of this host",
    Kind.TO_REMOTE: "packets to another VTEP",
    Kind.FLOOD: "broadcast and multicast",
    Kind.NOT_LOCAL: "packets for no VM of this host",
    Kind.DELIVER: "packets delivered",
    Kind.NOT_BACK: "copies not sent back to their sender",
    Kind.FROM_NEIGHBOUR: "answers of followed neighbours",
    Kind.ASKS_VTEP: "questions who has an address of this host, from the uplink",
    Kind.ANSWERS_VTEP: "answers to such questions of this host, from the uplink",
    Kind.PEER_TO_UPLINK: "the other instance's packets to the uplink",
    Kind.FROM_VTEP: "questions and answers of the VTEP about MACs",
    Kind.PROOF: "answers to questions that prove the uplink",
    Kind.DROP_UNKNOWN_PORT: "dropped: from a port that is not in the intent",
    Kind.DROP_UNDERLAY: "dropped: from the uplink, but not of a tunnel to the VTEP",
    Kind.DROP_SPOOFED: "dropped: source MAC is not the VM's",
    Kind.DROP_UNKNOWN_VNI: "dropped: from the tunnel, of a VNI without a VM here",
    Kind.DROP_UNKNOWN_TAG: "dropped: from the peer link, with no VM's tag",
    Kind.DROP_UNKNOWN_FROM_VM: "dropped: from a VM, to an unknown unicast MAC",
    Kind.DROP_UNKNOWN_FROM_TUNNEL: "dropped: from the tunnel, to an unknown unicast MAC",
    Kind.DROP_NOT_ASKED: "dropped: about the VTEP's MAC, on an instance that does not speak for it",
}


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow in the syntax of ovs-ofctl. An empty ``match`` matches everything."""

    priority: int
    match: str
    actions: str
    cookie: int
    comment: str


@dataclass(frozen=True, slots=True)
class Table:
    number: int
    name: str
    comment: str
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class UplinkPorts:
    """The uplink's ports. ``arrive``: those by which packets may come. ``leave``: the action by which they leave."""

    arrive: tuple[int, ...] = (UPLINK_PORT,)
    leave: str = f"output:{UPLINK_PORT}"


NIC_PORTS = (UPLINK_PORT, SECOND_UPLINK_PORT)
"""The port of each NIC."""


def two_ports(bond: str, live: Sequence[int]) -> UplinkPorts:
    """The ports of two NICs. ``bond``: ``active-backup`` uses the first port with a link, ``balance-slb`` one that the
    source MAC chooses, which is always the VTEP's: hosts use different NICs, and one host uses one. ``live``: the
    numbers of the NICs that have a link; packets leave only by these."""
    algorithm = {"active-backup": "active_backup", "balance-slb": "hrw"}[bond]
    members = ",".join(str(NIC_PORTS[nic]) for nic in live)
    return UplinkPorts(NIC_PORTS, f"bundle(eth_src,0,{algorithm},ofport,members:{members})")


@dataclass(frozen=True, slots=True)
class _Segment:
    """The VMs and the remote MACs of one VNI. ``macs`` maps a remote MAC to its VTEP."""

    vni: int
    vms: list[Vm]
    macs: dict[str, str]


def cookie(kind: Kind, *, vni: int = 0, ofport: int = 0) -> int:
    return _COOKIE_MAGIC << 48 | kind << 40 | vni << 16 | ofport


KIND_MASK = 0xFFFFFF << 40
"""The bits of a cookie that mark it as ours and hold its kind."""


def cookie_kind(value: int) -> Kind | None:
    """The kind in a cookie; ``None`` if the cookie is not one of ours."""
    if value >> 48 != _COOKIE_MAGIC:
        return None
    try:
        return Kind(value >> 40 & 0xFF)
    except ValueError:
        return None


def cookie_name(value: int, vms: Mapping[int, str] | None = None) -> str:
    """Say in words what the flows with this cookie count. ``vms`` maps ofports to names, as far as they are known."""
    kind = cookie_kind(value)
    if kind is None:
        return f"cookie {value:#x}"
    vni, ofport = value >> 16 & 0xFFFFFF, value & 0xFFFF
    places = [f"VNI {vni}"] if vni else []
    if ofport:
        places.append(f"VM {vms[ofport]}" if vms and ofport in vms else f"port {ofport}")
    return f"{_KIND_NAMES[kind]} ({', '.join(places)})" if places else _KIND_NAMES[kind]


def render(
    intent: Intent, form: Form, uplink: UplinkPorts = UplinkPorts(), *, whole_nic: bool = False,
    voice: Voice | None = None,
) -> tuple[Table, ...]:  # fmt: skip
    """Render the five tables. A VNI without a VM on this host has no flows, as nothing here could use it. ``voice`` is
    ``None`` if the VTEP's address is not announced."""
    segments = _segments(intent)
    return (
        Table(CLASSIFY, "classify", "By port of arrival: underlay, peer link, tunnel, VMs (source MAC checked)",
              (*_underlay(intent, uplink, shared=whole_nic and form is Form.WINDOW),
               *(() if whole_nic else _answers(intent, uplink)), *_announced(intent.vtep, voice),
               *_overlay(intent, segments), *_peer(intent, form), *(_whole_nic(intent, form) if whole_nic else ()),
               Flow(0, "", "drop", cookie(Kind.DROP_UNKNOWN_PORT), "any other port"))),
        Table(LOCAL, "local", "By VNI and destination MAC: the VMs of this host",
              tuple(flow for segment in segments for flow in _local(segment))),
        Table(REMOTE, "remote", "By VNI and destination MAC, from VMs only: MACs behind other VTEPs",
              tuple(flow for segment in segments for flow in _remote(segment))),
        Table(FLOOD, "flood", "By VNI: a copy for each VM here and, from a VM, for each other VTEP",
              tuple(flow for segment in segments for flow in _flood(segment))),
        Table(DELIVER, "deliver", f"To the VM whose port is in reg0 ({form} form), never back to its sender",
              tuple(flow for vm in intent.vms for flow in _deliver(vm, form))),
    )  # fmt: skip


def lines(tables: Iterable[Table]) -> list[str]:
    """The flows as ovs-ofctl reads them, one in each line."""
    return [_line(table.number, flow) for table in tables for flow in table.flows]


def annotated(tables: Iterable[Table]) -> list[str]:
    """The flows with a comment line before each table and each flow. ovs-ofctl can read this, too."""
    text = []
    for table in tables:
        text += ["", f"# Table {table.number}, {table.name}. {table.comment}."]
        for flow in table.flows:
            text += [f"#   {flow.comment}", _line(table.number, flow)]
    return text[1:]


def _line(table: int, flow: Flow) -> str:
    match = f",{flow.match}" if flow.match else ""
    return f"table={table},cookie={flow.cookie:#x},priority={flow.priority}{match} actions={flow.actions}"


def _segments(intent: Intent) -> list[_Segment]:
    segments: dict[int, _Segment] = {}
    for vm in intent.vms:
        segments.setdefault(vm.vni, _Segment(vm.vni, [], {})).vms.append(vm)
    for remote in intent.remotes:
        if remote.vni in segments:
            segments[remote.vni].macs[remote.mac] = remote.vtep
    return [segments[vni] for vni in sorted(segments)]


class _Tags(NamedTuple):
    """The part of a match and the actions for the underlay's tag; empty if it has none."""

    match: str = ""
    pop: str = ""
    push: str = ""

    @classmethod
    def of(cls, vlan: int | None) -> _Tags:
        if vlan is None:
            return cls()
        push = f"push_vlan:0x8100,set_field:{VLAN_PRESENT + vlan}->vlan_vid,"
        return cls(f",dl_vlan={vlan}", "pop_vlan,", push)


def _underlay(intent: Intent, uplink: UplinkPorts, *, shared: bool) -> Iterator[Flow]:
    """``shared``: the uplink may be the other instance's."""
    vtep = intent.vtep
    # OVS decapsulates on output to LOCAL if the addresses are LOCAL's own and the packet has no tag (tnl-ports.c); all
    # else would reach the kernel of the namespace, which has no use for it.
    udp, address = ("udp", "nw_dst") if vtep.version == 4 else ("udp6", "ipv6_dst")
    tag, pop, push = _Tags.of(vtep.vlan)
    kind = _TUNNEL_NAMES[vtep.tunnel]
    for port in uplink.arrive:
        yield Flow(
            100, f"in_port={port},{udp}{tag},dl_dst={vtep.mac},{address}={vtep.address},tp_dst={vtep.port}",
            f"{pop}LOCAL", cookie(Kind.FROM_UPLINK), f"{kind} to the VTEP: LOCAL decapsulates it",
        )  # fmt: skip
    yield Flow(
        100,
        "in_port=LOCAL",
        f"{push}{uplink.leave},{_to_peer(UPLINK_PORT)}" if shared else f"{push}{uplink.leave}",
        cookie(Kind.TO_UPLINK),
        "encapsulated packets leave by the uplink",
    )
    for port in uplink.arrive:
        yield Flow(
            50, f"in_port={port}", "drop", cookie(Kind.DROP_UNDERLAY), "nothing else is wanted from the underlay"
        )


def _answers(intent: Intent, uplink: UplinkPorts) -> Iterator[Flow]:
    """The answers of followed neighbours. Where the switch owns the whole NIC, all answers come to the bridge."""
    vtep, (tag, pop, _) = intent.vtep, _Tags.of(intent.vtep.vlan)
    for neighbour in intent.neighbours:
        if neighbour.mac is None and (link := vtep.interface_to(neighbour.address)) is not None:
            answer = f"arp{tag},arp_op=2,arp_spa={neighbour.address},arp_tpa={link.ip}"
            if vtep.version == 6:  # an advertisement (RFC 4861, 4.4)
                answer = f"icmp6{tag},icmp_type=136,icmp_code=0,ipv6_dst={link.ip},nd_target={neighbour.address}"
            for port in uplink.arrive:
                yield Flow(
                    100, f"in_port={port},{answer}", f"{pop}LOCAL", cookie(Kind.FROM_NEIGHBOUR),
                    f"{neighbour.address} answers: OVS learns its MAC",
                )  # fmt: skip


def _whole_nic(intent: Intent, form: Form) -> Iterator[Flow]:
    """Address resolution by ARP (RFC 826) or neighbour discovery (RFC 4861, 7.2), and the other instance's packets."""
    vtep, tags = intent.vtep, _Tags.of(intent.vtep.vlan)
    start = f"in_port={UPLINK_PORT}{tags.match}"
    for own in dict.fromkeys(str(each.ip) for each in vtep.interfaces):
        answered = (f"arp,arp_tpa={own},arp_op=2" if vtep.version == 4 else
                    f"icmp6,icmp_type=136,icmp_code=0,ipv6_dst={own}")  # fmt: skip
        yield Flow(100, f"{start},{_asked(own)}", f"{tags.pop}LOCAL", cookie(Kind.ASKS_VTEP),
                   f"who has {own}: the kernel answers")  # fmt: skip
        yield Flow(100, f"{start},{answered},dl_dst={vtep.mac}", f"{tags.pop}LOCAL", cookie(Kind.ANSWERS_VTEP),
                   f"a neighbour answers {own}")  # fmt: skip
    if form is Form.WINDOW:
        yield Flow(
            100, f"in_port={PEER_PORT},dl_vlan={UPLINK_PORT}", f"pop_vlan,output:{UPLINK_PORT}",
            cookie(Kind.PEER_TO_UPLINK), "encapsulated packets of the other instance leave by the uplink",
        )  # fmt: skip


def voice_lines(address: str, voice: Voice, vlan: int | None = None) -> list[str]:
    """The flows that make an instance speak for the VTEP's ``address``, or not. Those of one voice replace those of the
    other, because they have the same priority and match. ``vlan``: the tag of the underlay's packets."""
    return [_line(CLASSIFY, flow) for flow in _voice(address, voice, vlan)]


def _announced(vtep: Vtep, voice: Voice | None) -> Iterator[Flow]:
    if voice is None:
        return
    yield from _voice(vtep.address, voice, vtep.vlan)
    asker = unteaching(vtep.version, vtep.mac)
    answer = f"arp,arp_op=2,arp_tpa={asker}" if vtep.version == 4 else (
        f"icmp6,icmp_type=136,icmp_code=0,ipv6_dst={asker}"
    )  # fmt: skip
    match = f"in_port={UPLINK_PORT}{_Tags.of(vtep.vlan).match},{answer},dl_dst={vtep.mac}"
    yield Flow(110, match, "drop", cookie(Kind.PROOF), "an answer that proves the uplink; it is only counted")


def _voice(address: str, voice: Voice, vlan: int | None) -> Iterator[Flow]:
    speaks, tags = voice is Voice.SPEAKS, _Tags.of(vlan)
    yield Flow(
        110, f"in_port={UPLINK_PORT}{tags.match},{_asked(address)}", f"{tags.pop}LOCAL" if speaks else "drop",
        cookie(Kind.ASKS_VTEP if speaks else Kind.DROP_NOT_ASKED), f"who has the VTEP's address? This instance {voice}",
    )  # fmt: skip
    for kind in ("icmp6,icmp_type=135", "icmp6,icmp_type=136") if ":" in address else ("arp",):
        yield Flow(
            110, f"in_port=LOCAL,{kind}", f"{tags.push}output:{UPLINK_PORT}" if speaks else "drop",
            cookie(Kind.FROM_VTEP if speaks else Kind.DROP_NOT_ASKED), f"from the namespace's kernel: it {voice}",
        )  # fmt: skip


def _asked(address: str) -> str:
    """The match of questions who has the address."""
    if ":" in address:
        return f"icmp6,icmp_type=135,icmp_code=0,nd_target={address}"
    return f"arp,arp_tpa={address},arp_op=1"


def _overlay(intent: Intent, segments: Sequence[_Segment]) -> Iterator[Flow]:
    for segment in segments:
        vni = segment.vni
        yield Flow(
            100, f"in_port={VXLAN_PORT},tun_id={vni}", f"write_metadata:{vni},goto_table:{LOCAL}",
            cookie(Kind.FROM_TUNNEL, vni=vni), f"VNI {vni} from the tunnel",
        )  # fmt: skip
    yield Flow(50, f"in_port={VXLAN_PORT}", "drop", cookie(Kind.DROP_UNKNOWN_VNI), "a VNI without a VM here")
    for vm in intent.vms:
        yield Flow(
            100, f"in_port={vm.ofport},dl_src={vm.mac}", f"write_metadata:{vm.vni},goto_table:{LOCAL}",
            cookie(Kind.FROM_VM, vni=vm.vni, ofport=vm.ofport), f"{vm.name} sends in VNI {vm.vni}",
        )  # fmt: skip
        yield Flow(
            50, f"in_port={vm.ofport}", "drop",
            cookie(Kind.DROP_SPOOFED, vni=vm.vni, ofport=vm.ofport), f"{vm.name} with a source MAC that is not its own",
        )  # fmt: skip


def _peer(intent: Intent, form: Form) -> Iterator[Flow]:
    if form is Form.FINAL:
        return
    for vm in intent.vms:
        yield Flow(
            100, f"in_port={PEER_PORT},dl_vlan={vm.ofport}", f"pop_vlan,output:{vm.ofport}",
            cookie(Kind.FROM_PEER, vni=vm.vni, ofport=vm.ofport), f"the other instance delivers to {vm.name}",
        )  # fmt: skip
    yield Flow(50, f"in_port={PEER_PORT}", "drop", cookie(Kind.DROP_UNKNOWN_TAG), "no VM has this tag")


def _local(segment: _Segment) -> Iterator[Flow]:
    vni = segment.vni
    for vm in segment.vms:
        yield Flow(
            20, f"metadata={vni},dl_dst={vm.mac}", f"set_field:{vm.ofport}->reg0,goto_table:{DELIVER}",
            cookie(Kind.TO_LOCAL, vni=vni, ofport=vm.ofport), f"to {vm.name}",
        )  # fmt: skip
    yield Flow(
        20, f"metadata={vni},{MULTICAST}", f"goto_table:{FLOOD}",
        cookie(Kind.FLOOD, vni=vni), f"broadcast and multicast of VNI {vni}",
    )  # fmt: skip
    yield Flow(
        10, f"metadata={vni},in_port={VXLAN_PORT}", "drop",
        cookie(Kind.DROP_UNKNOWN_FROM_TUNNEL, vni=vni), f"VNI {vni}: no such MAC here; never back into the tunnel",
    )  # fmt: skip
    yield Flow(
        5, f"metadata={vni}", f"goto_table:{REMOTE}",
        cookie(Kind.NOT_LOCAL, vni=vni), f"VNI {vni}: from a VM, perhaps to another host",
    )  # fmt: skip


def _remote(segment: _Segment) -> Iterator[Flow]:
    vni = segment.vni
    for mac, vtep in segment.macs.items():
        yield Flow(
            20, f"metadata={vni},dl_dst={mac}",
            f"set_field:{vni}->tun_id,{_into_tunnel(vtep)}",
            cookie(Kind.TO_REMOTE, vni=vni), f"{mac} is behind {vtep}",
        )  # fmt: skip
    yield Flow(
        5, f"metadata={vni}", "drop",
        cookie(Kind.DROP_UNKNOWN_FROM_VM, vni=vni), f"VNI {vni}: no such MAC anywhere",
    )  # fmt: skip


def _into_tunnel(vtep: str) -> str:
    return f"set_field:{vtep}->{'tun_ipv6_dst' if ':' in vtep else 'tun_dst'},output:{VXLAN_PORT}"


def _flood(segment: _Segment) -> Iterator[Flow]:
    vni = segment.vni
    to_vms = ",".join(f"set_field:{vm.ofport}->reg0,resubmit(,{DELIVER})" for vm in segment.vms)
    vteps = dict.fromkeys(segment.macs.values())
    # The tunnel comes last: a guest's copies are made of a packet without tunnel metadata of our own.
    to_vteps = "".join(f",{_into_tunnel(vtep)}" for vtep in vteps)
    yield Flow(
        20, f"metadata={vni},in_port={VXLAN_PORT}", to_vms,
        cookie(Kind.FLOOD, vni=vni), f"VNI {vni}: from the tunnel to each VM",
    )  # fmt: skip
    yield Flow(
        10, f"metadata={vni}", f"{to_vms},set_field:{vni}->tun_id{to_vteps}" if vteps else to_vms,
        cookie(Kind.FLOOD, vni=vni), f"VNI {vni}: from a VM to each other VM and each other VTEP",
    )  # fmt: skip


def _deliver(vm: Vm, form: Form) -> Iterator[Flow]:
    yield Flow(
        20, f"reg0={vm.ofport},in_port={vm.ofport}", "drop",
        cookie(Kind.NOT_BACK, vni=vm.vni, ofport=vm.ofport), f"from {vm.name} itself",
    )  # fmt: skip
    actions = f"output:{vm.ofport}"
    if form is Form.WINDOW:
        actions += f",{_to_peer(vm.ofport)},pop_vlan"  # pop_vlan restores the packet for the next copy of a flood
    yield Flow(10, f"reg0={vm.ofport}", actions, cookie(Kind.DELIVER, vni=vm.vni, ofport=vm.ofport), f"to {vm.name}")


def _to_peer(ofport: int) -> str:
    """The actions that output a packet to the peer link with the tag of a port."""
    return f"push_vlan:0x88a8,set_field:{VLAN_PRESENT + ofport}->vlan_vid,output:{PEER_PORT}"

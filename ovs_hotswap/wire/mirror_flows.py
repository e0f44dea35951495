"""The flows of wire mode by mirrors. This module is pure.

Two switches have the same VM ports, and each VM's rings belong to one of them at any moment. Every *carried* port has
two patch ports on its bridge, the *near* one and the *far* one, which are each other's peers, and the bridge has a
memif to the same bridge of the other switch, the *link*. A mirror copies whatever a pipeline outputs to a VM's port to
the near patch port, so both switches output it, and the one that has the rings delivers it. What a carried port has
received goes through the switch's own pipeline, or, if the switch is *wired*, to the other switch's. The value of
pkt_mark tells what a frame between the patch ports is:

=================  ============  ================================================================================
where it enters    mark          meaning
=================  ============  ================================================================================
by the near port   ``DELIVER``   the other pipeline has output it to this port
by the near port   ``ENTERS``    the other switch has received it on this port
by the near port   any other     flooded here: dropped
by the far port    ``RECEIVED``  this (wired) switch has received it on this port
by the far port    ``DELIVER``   the mirror's copy of what came from the other switch: dropped
by the far port    any other     the mirror's copy of what this pipeline has output to the port
=================  ============  ================================================================================

pkt_mark crosses patch ports, registers and metadata do not (ofproto/ofproto-dpif-xlate.c, patch_port_output). On the
link a tag tells the two meanings apart. So only the sender decides, and a frame that is under way while a switch begins
or ceases to be wired does not change its meaning. A frame enters the pipeline by writing in_port: ``resubmit`` with a
port would change it for one look-up only, and NORMAL and learn() would see the patch port.

Open vSwitch tracks one VLAN header by default (``vlan-limit``), which is our tag. A pipeline is to see the frame's own,
so a frame that has one is parsed again after our tag was removed: the selection by dp_hash makes the datapath do that.

Since 3.2 an action that changes headers makes ovs-vswitchd forget to which mirrors a frame was sent
(ofproto/ofproto-dpif-xlate.c, reset_mirror_ctx: ``ctx->mirrors = 0``), and mirror_packet, within which a patch port of
the same bridge is followed, would send the copy again, up to 4096 times. ``move`` is none of these actions, so an
untagged copy gets our tag by it. A copy that has a tag gets ours in a pass of its own, behind ``ct``, which takes IP
alone: a VM that is on the new switch, and has a VLAN of its own, gets no ARP from the old pipeline.

There is no bridge of our own: when a bridge is deleted, ovs-vswitchd discards all flows of the datapath and stops
making new ones for a moment (ofproto/ofproto-dpif.c, destruct: udpif_synchronize), which was measured to lose 5 ms of
frames.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

DELIVER, RECEIVED, ENTERS = 0x6F767331, 0x6F767332, 0x6F767333
"""Values of pkt_mark that no other pipeline uses."""
CARRY, WIRE = 0x6F7673_68770001, 0x6F7673_68770002
"""The cookies of the flows that are there in every mode, and of those that make a switch wired."""
COOKIES = (CARRY, WIRE)
HIGHEST = 0xFFFF
"""The priority of our flows, and of some one or two less."""
MAX_TAG = 2046
"""A tag and ``RECEIVED_TAGS`` more must be a VLAN ID (IEEE 802.1Q, 9.6)."""
RECEIVED_TAGS = 2048
MOST_OVER_VETH = 1500
"""The greatest MTU of VMs for a link that is a pair of veth devices: DPDK's driver takes frames of 1518 bytes at most
(drivers/net/af_packet, eth_dev_info: max_rx_pktlen). Those of a VM's MTU with the link's tag are as long."""
NEAR_PORTS, FAR_PORTS, LINK_PORT = 60_000, 62_100, 64_200
"""The OpenFlow numbers of ours on a bridge: of near and far patch ports these and the tag, and of the link. A bridge's
own numbers are far below: those that ovs-vswitchd chooses are less than 32 768 (ofproto/ofproto.c, alloc_ofp_port)."""
AGAIN = 0xF0767301  # the group that has a frame parsed again
COPIES = 252  # the table of ours in which a copy that has a tag of its own gets ours; table 253 has controllers.ovn's
MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"

_ZONE = 65535  # of connections that are never committed
_PRESENT = 0x1000  # OFPVID_PRESENT, OpenFlow 1.4.0, section 7.2.3.7
_FLOW = re.compile(
    r"\s*cookie=(?P<cookie>0x[0-9a-f]+),\s*(?:table=(?P<table>\d+),\s*)?(?:[a-z_]*timeout=\d+,\s*)*"
    r"(?:priority=(?P<priority>\d+),?)?(?P<match>\S*) actions=(?P<actions>.*)"
)


class Mode(enum.StrEnum):
    """What a switch does with what its carried ports receive. ``OWN``: its own pipeline has it. Otherwise the switch is
    wired: the other switch's pipeline has it, and with ``HELD`` what arrives by the uplinks is dropped. With
    ``UPLINKS`` that goes across as well, without broadcasts and multicasts, of which the other switch's uplink receives
    a copy. With ``ALONE`` these go across, too: the other switch's uplink receives nothing."""

    OWN = "own"
    HELD = "held"
    UPLINKS = "uplinks"
    ALONE = "alone"

    @property
    def wired(self) -> bool:
        return self is not Mode.OWN


@dataclass(frozen=True, slots=True)
class Carried:
    """A port of another's bridge, as one switch has it.

    ``tag``: unique among the carried ports of all bridges, and the same on both switches. ``ofports``: the numbers of
    its interfaces, of which a bond has several. An ``uplink`` is not mirrored: what a pipeline outputs to it leaves the
    host there.
    """

    bridge: str
    name: str
    tag: int
    ofports: tuple[int, ...]
    uplink: bool = False

    @property
    def near(self) -> int:
        return NEAR_PORTS + self.tag

    @property
    def far(self) -> int:
        return FAR_PORTS + self.tag


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    cookie: int
    priority: int
    match: str
    actions: str
    table: int = 0

    @property
    def line(self) -> str:
        match = f",{self.match}" if self.match else ""
        return f"cookie={self.cookie:#x},table={self.table},priority={self.priority}{match} actions={self.actions}"


def guard_flows(tags: Iterable[int]) -> list[Flow]:
    """Flows that drop what comes by ports that are made afterwards: until they are kept from floods, NORMAL outputs to
    them. What is at its place in ``carry_flows`` takes theirs."""
    numbers = [number for tag in tags for number in (NEAR_PORTS + tag, FAR_PORTS + tag)]
    return [Flow(CARRY, HIGHEST - 2, f"in_port={number}", "drop") for number in (*numbers, LINK_PORT)]


def carry_flows(ports: Sequence[Carried]) -> list[Flow]:
    """The flows of a bridge with these carried ports that it has in every mode."""
    found = guard_flows(port.tag for port in ports) if ports else []
    for port in ports:
        received, near, far = RECEIVED_TAGS + port.tag, f"in_port={port.near}", f"in_port={port.far}"
        came = f"in_port={LINK_PORT},dl_vlan={received}"
        enters = f"set_field:0->pkt_mark,set_field:{port.ofports[0]}->in_port,resubmit(,0)"
        found += [
            Flow(CARRY, HIGHEST, f"pkt_mark={ENTERS:#x},{near}", enters),
            Flow(CARRY, HIGHEST, f"pkt_mark={DELIVER:#x},{far}", "drop"),
            Flow(CARRY, HIGHEST, f"pkt_mark={RECEIVED:#x},{far}", _push(received)),
            Flow(CARRY, HIGHEST, f"{came},dl_type=0x8100", _again(port.far)),
            Flow(CARRY, HIGHEST, f"{came},dl_type=0x88a8", _again(port.far)),
            Flow(CARRY, HIGHEST - 1, came, f"pop_vlan,set_field:{ENTERS:#x}->pkt_mark,output:{port.far}"),
        ]
        if not port.uplink:
            deliver = f"pop_vlan,set_field:{DELIVER:#x}->pkt_mark,output:{port.far}"
            found += [
                Flow(CARRY, HIGHEST, f"pkt_mark={DELIVER:#x},{near}", f"output:{port.ofports[0]}"),
                Flow(CARRY, HIGHEST - 1, f"{far},vlan_tci=0x0000/0x1000", _moved(port.tag)),
                *(
                    Flow(CARRY, HIGHEST - 1, f"{kind},{far},vlan_tci=0x1000/0x1000", f"ct(table={COPIES},zone={_ZONE})")
                    for kind in ("ip", "ipv6")
                ),
                Flow(CARRY, HIGHEST, far, _push(port.tag), COPIES),
                Flow(CARRY, HIGHEST, f"in_port={LINK_PORT},dl_vlan={port.tag}", deliver),
            ]
    return found


def wire_flows(ports: Iterable[Carried], mode: Mode) -> list[Flow]:
    """The flows by which a bridge's switch is in this mode."""
    if not mode.wired:
        return []
    found = []
    for port in ports:
        across = f"set_field:{RECEIVED:#x}->pkt_mark,output:{port.near}"
        for start in (f"in_port={number}" for number in port.ofports):
            if not port.uplink:
                found.append(Flow(WIRE, HIGHEST, start, across))
                continue
            all_of_it = "drop" if mode is Mode.HELD else across
            found.append(Flow(WIRE, HIGHEST, f"{start},{MULTICAST}", across if mode is Mode.ALONE else "drop"))
            found.append(Flow(WIRE, HIGHEST - 1, start, all_of_it))
    return found


def order(ports: Iterable[Carried], mode: Mode) -> list[set[str]]:
    """The bridges of these ports in groups, in the order in which they are given the flows of a mode.

    VMs and uplinks may be on different bridges. A bridge with an uplink begins to use its own pipeline before the VMs'
    bridges do, and is wired after them. So a frame that a VM has sent never leaves the host by an uplink whose bridge
    is still, or already, wired: if the network floods it back to the other switch's uplink, that switch's NORMAL learns
    the VM there, and drops what the wired uplink hands it for the VM.
    """
    every = list(ports)
    uplinks = {port.bridge for port in every if port.uplink}
    groups = [uplinks, {port.bridge for port in every} - uplinks]
    return groups[::-1] if mode.wired else groups


def group_lines(*, wanted: bool) -> list[str]:
    """The lines of a bundle after which the bridge has the group, or has it no longer."""
    lines = [f"group delete group_id={AGAIN}"]
    bucket = "bucket=bucket_id=1,weight=1,actions=output:NXM_NX_REG0[]"
    if wanted:
        lines.append(f"group add group_id={AGAIN},type=select,selection_method=dp_hash,{bucket}")
    return lines


def replacing(cookie: int, flows: Iterable[Flow]) -> list[str]:
    """The lines of a bundle after which these are the flows with the cookie. It is one act: packets meet the old flows
    or the new ones."""
    return [f"flow delete cookie={cookie:#x}/-1", *(f"flow add {flow.line}" for flow in flows)]


def parse_flows(dump: Iterable[str]) -> Iterator[Flow]:
    """Our flows among the lines of ``ovs-ofctl -O OpenFlow14 dump-flows --no-stats --no-names``."""
    for line in dump:
        if (found := _FLOW.match(line)) and int(found["cookie"], 16) in COOKIES:
            yield Flow(
                int(found["cookie"], 16), int(found["priority"] or 0x8000), found["match"], found["actions"].strip(),
                int(found["table"] or 0),
            )  # fmt: skip


def _push(tag: int) -> str:
    return f"push_vlan:0x88a8,set_field:{_PRESENT + tag}->vlan_vid,output:{LINK_PORT}"


def _moved(tag: int) -> str:
    return f"set_field:{_PRESENT + tag:#x}->reg0,move:NXM_NX_REG0[0..15]->NXM_OF_VLAN_TCI[],output:{LINK_PORT}"


def _again(port: int) -> str:
    return f"pop_vlan,set_field:{ENTERS:#x}->pkt_mark,set_field:{port:#x}->reg0,group:{AGAIN}"

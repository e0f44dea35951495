"""The flows of wire mode by mirrors. This module is pure.

Two switches have the same VM ports, and each VM's rings belong to one of them at any moment. Every *carried* port has a
patch port on its bridge, whose other end is on a bridge of our own, the *carrier*, with the memif to the other switch.
A mirror copies whatever a pipeline outputs to a VM's port to this patch port, so both switches output it, and the
one that has the rings delivers it. What a carried port has received goes through the switch's own pipeline, or, if the
switch is *wired*, to the other switch's. Three values tell what a frame on a patch port is:

========================  ====================  =======================================================
where                     mark                  meaning
========================  ====================  =======================================================
from carrier to bridge    ``DELIVER``           the other pipeline has output it to this port
from carrier to bridge    0                     the other switch has received it on this port
from bridge to carrier    ``RECEIVED``          this (wired) switch has received it on this port
from bridge to carrier    ``DELIVER``           the mirror's copy of what came from the other switch: dropped
from bridge to carrier    any other             the mirror's copy of what this pipeline has output to the port
========================  ====================  =======================================================

pkt_mark crosses patch ports, registers and metadata do not (ofproto/ofproto-dpif-xlate.c, patch_port_output). On the
memif the tag tells the two meanings apart. So only the sender decides, and a frame that is under way while a switch
begins or ceases to be wired does not change its meaning. A frame enters the pipeline by writing in_port: ``resubmit``
with a port would change it for one look-up only, and NORMAL and learn() would see the patch port.

Open vSwitch tracks one VLAN header by default (``vlan-limit``), which is our tag. A pipeline is to see the frame's own,
so a frame that has one is parsed again after our tag was removed: the selection by dp_hash makes the datapath do that.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

DELIVER, RECEIVED = 0x6F767331, 0x6F767332
"""Values of pkt_mark that no other pipeline uses."""
CARRY, WIRE = 0x6F7673_68770001, 0x6F7673_68770002
"""The cookies of the flows that are there in every mode, and of those that make a switch wired."""
COOKIES = (CARRY, WIRE)
HIGHEST = 0xFFFF
"""The priority of our flows on bridges that others program."""
MAX_TAG = 2046
"""A tag and ``RECEIVED_TAGS`` more must be a VLAN ID (IEEE 802.1Q, 9.6)."""
RECEIVED_TAGS = 2048
LINK_PORT = 4000  # of the memif, on the carrier; the patch ports there have the tags as numbers
AGAIN = 1  # the group that has a frame parsed again
PATCH_PORTS = 60_000
"""The number that is requested for a patch port on another's bridge is this and the tag: the highest that a port may
have is 65279 (OpenFlow 1.4, OFPP_MAX with ofproto's limit)."""
MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"

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
    its interfaces, of which a bond has several. ``patch``: the number of its patch port. An ``uplink`` is not mirrored:
    what a pipeline outputs to it leaves the host there.
    """

    bridge: str
    name: str
    tag: int
    ofports: tuple[int, ...]
    patch: int
    uplink: bool = False


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


def carry_flows(ports: Iterable[Carried]) -> list[Flow]:
    """The flows of a bridge with these carried ports that it has in every mode. The last one of each port drops what
    cannot come."""
    found = []
    for port in ports:
        start = f"in_port={port.patch}"
        if not port.uplink:
            found.append(Flow(CARRY, HIGHEST, f"pkt_mark={DELIVER:#x},{start}", f"output:{port.ofports[0]}"))
        enters = f"set_field:{port.ofports[0]}->in_port,resubmit(,0)"
        found += [Flow(CARRY, HIGHEST, f"pkt_mark=0,{start}", enters), Flow(CARRY, HIGHEST - 1, start, "drop")]
    return found


def wire_flows(ports: Iterable[Carried], mode: Mode) -> list[Flow]:
    """The flows by which a bridge's switch is in this mode."""
    if not mode.wired:
        return []
    found = []
    for port in ports:
        across = f"set_field:{RECEIVED:#x}->pkt_mark,output:{port.patch}"
        for start in (f"in_port={number}" for number in port.ofports):
            if not port.uplink:
                found.append(Flow(WIRE, HIGHEST, start, across))
                continue
            all_of_it = "drop" if mode is Mode.HELD else across
            found.append(Flow(WIRE, HIGHEST, f"{start},{MULTICAST}", across if mode is Mode.ALONE else "drop"))
            found.append(Flow(WIRE, HIGHEST - 1, start, all_of_it))
    return found


def carrier_flows(ports: Iterable[Carried]) -> list[Flow]:
    """All flows of the carrier; what they do not name is dropped."""
    found = [Flow(CARRY, 0, "", "drop")]
    for port in ports:
        tag = port.tag
        received, deliver = RECEIVED_TAGS + tag, f"in_port={LINK_PORT},dl_vlan={tag}"
        found += [
            Flow(CARRY, 120, f"pkt_mark={DELIVER:#x},in_port={tag}", "drop"),
            Flow(CARRY, 120, f"pkt_mark={RECEIVED:#x},in_port={tag}", _push(received)),
            Flow(CARRY, 110, f"in_port={LINK_PORT},dl_vlan={received}", f"pop_vlan,set_field:0->pkt_mark,output:{tag}"),
            Flow(CARRY, 115, f"in_port={LINK_PORT},dl_vlan={received},dl_type=0x8100", _again(tag)),
            Flow(CARRY, 115, f"in_port={LINK_PORT},dl_vlan={received},dl_type=0x88a8", _again(tag)),
            Flow(CARRY, 100, f"reg0={tag:#x}", f"output:{tag}", 1),
        ]
        if not port.uplink:
            found.append(Flow(CARRY, 110, f"in_port={tag}", _push(tag)))
            found.append(Flow(CARRY, 110, deliver, f"pop_vlan,set_field:{DELIVER:#x}->pkt_mark,output:{tag}"))
    return found


def carrier_lines(ports: Sequence[Carried]) -> list[str]:
    """One bundle that gives the carrier its group and its flows, whatever it has."""
    group = f"group_id={AGAIN},type=select,selection_method=dp_hash,bucket=bucket_id=1,weight=1,actions=resubmit(,1)"
    return [f"group delete group_id={AGAIN}", f"group add {group}", *replacing(CARRY, carrier_flows(ports))]


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


def objections(dump: Iterable[str]) -> list[str]:
    """Why wire mode would not carry this bridge's pipeline truly: a text ``FLOW: REASON; WAY OUT`` for each reason."""
    found = []
    for line in (each.strip() for each in dump if "actions=" in each):
        match, _, actions = line.partition("actions=")
        if any(f"cookie={cookie:#x}," in match for cookie in COOKIES):
            continue
        if re.search(r"(?:^|,)(?:output:)?ALL(?:,|$)", actions, re.IGNORECASE):
            found.append(f"{line}: ALL outputs to the patch ports of wire mode as well; use FLOOD, or name the ports")
        if any(f"{mark:#x}" in line.lower() for mark in (DELIVER, RECEIVED)):
            found.append(f"{line}: it uses a value of pkt_mark that wire mode needs; use another value")
        if "table=" not in match and f"priority={HIGHEST}," in f"{match.strip()},":
            found.append(f"{line}: it has the highest priority, which wire mode needs; give it a lower one")
    return found


def _push(tag: int) -> str:
    return f"push_vlan:0x88a8,set_field:{_PRESENT + tag}->vlan_vid,output:{LINK_PORT}"


def _again(tag: int) -> str:
    return f"pop_vlan,set_field:0->pkt_mark,set_field:{tag:#x}->reg0,group:{AGAIN}"

"""Which packets were dropped, where, and why: the one place in which a counter of Open vSwitch gets a reason. Pure.

A switch counts a packet that it drops in one of three ways: at a port (``Interface.statistics``), by the flow that
drops it, or, where neither is possible, by a coverage counter of the whole process. Only the first two can name a VM.
Ports and flows never count the same packet. Some reasons are no further packets (REPEATED): the coverage counter
``drop_action_of_pipeline`` counts every packet for which the flow tables had no output at all, those that a flow of the
overlay has counted among them; and connection tracking lets a packet pass that is invalid, or for which it has no room
(lib/conntrack.c, conn_not_found): what the flows do with it then, they count.

While two instances serve a host, the one that does not own a VM's rings is given copies of what is for the VM. What
becomes of these is no loss (``losses``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ovs_hotswap.counters.values import FlowCount, PortCounters, SwitchCounters


class Reason(enum.StrEnum):
    """Why packets were dropped. The values are those of the label ``reason`` of metrics, and never change."""

    RING_FULL = "ring_full"
    NOT_READY = "not_ready"
    MTU = "mtu"
    QOS = "qos"
    OFFLOAD = "offload"
    POLICING = "policing"
    MOVED = "moved"
    SPOOFED = "spoofed"
    UNKNOWN_MAC = "unknown_mac"
    UNKNOWN_MAC_FROM_TUNNEL = "unknown_mac_from_tunnel"
    UNKNOWN_VNI = "unknown_vni"
    UNKNOWN_PORT = "unknown_port"
    UNKNOWN_TAG = "unknown_tag"
    NOT_TUNNELLED = "not_tunnelled"
    NOT_ASKED = "not_asked"
    NIC_MISSED = "nic_missed"
    NO_BUFFER = "no_buffer"
    UPCALL = "upcall"
    TUNNEL = "tunnel"
    CONNTRACK_FULL = "conntrack_full"
    CONNTRACK_INVALID = "conntrack_invalid"
    METER = "meter"
    LOOP = "loop"
    MALFORMED = "malformed"
    INTERNAL = "internal"
    PIPELINE = "pipeline"

    @property
    def text(self) -> str:
        """What happened to these packets, as the end of a sentence that begins with their number."""
        return _TEXTS[self]


_TEXTS: Mapping[Reason, str] = {
    Reason.RING_FULL: "found no room in the ring of the port: its other end takes packets more slowly than they come",
    Reason.NOT_READY: "were for a port that is down, or whose guest is not connected or has not set up its rings",
    Reason.MTU: "were longer than the MTU of the port",
    Reason.QOS: "exceeded the QoS of the port, which limits what it sends",
    Reason.OFFLOAD: "asked for an offload that the port cannot do",
    Reason.POLICING: "exceeded the policing rate of the port, which limits what it receives",
    Reason.MOVED: "were dropped while the VM was moved, where copies and losses cannot be told apart",
    Reason.SPOOFED: "had a source MAC that is not the VM's",
    Reason.UNKNOWN_MAC: "came from a VM and were for a MAC that is nowhere in the VNI",
    Reason.UNKNOWN_MAC_FROM_TUNNEL: "came from the tunnel and were for a MAC that no VM of the VNI has here",
    Reason.UNKNOWN_VNI: "came from the tunnel in a VNI without a VM here",
    Reason.UNKNOWN_PORT: "came from a port that is not in the intent",
    Reason.UNKNOWN_TAG: "came from the peer link with the tag of no VM",
    Reason.NOT_TUNNELLED: "came from the uplink and were no tunnelled packets for the VTEP",
    Reason.NOT_ASKED: "were about the VTEP's MAC, on the instance that does not speak for it",
    Reason.NIC_MISSED: "were missed by the NIC: its receive queue was full, as its PMD thread did not come in time",
    Reason.NO_BUFFER: "found no free buffer in the packet pool",
    Reason.UPCALL: "needed an upcall, as for a new datapath flow, and it failed",
    Reason.TUNNEL: "could not be put into a tunnel, or taken out of one",
    Reason.CONNTRACK_FULL: "were of new connections for which the connection table, or a zone's limit, had no room",
    Reason.CONNTRACK_INVALID: "were invalid to connection tracking",
    Reason.METER: "exceeded a meter",
    Reason.LOOP: "went through the flow tables more often than is allowed",
    Reason.MALFORMED: "were malformed",
    Reason.INTERNAL: "met an error inside the switch",
    Reason.PIPELINE: "had no output in the flow tables",
}

# What a port counts when it sends (lib/netdev-dpdk.c, netdev_dpdk_get_sw_custom_stats).
_SENDING = {
    "ovs_tx_failure_drops": Reason.RING_FULL, "ovs_tx_mtu_exceeded_drops": Reason.MTU,
    "ovs_tx_qos_drops": Reason.QOS, "ovs_tx_invalid_hwol_drops": Reason.OFFLOAD,
}  # fmt: skip
_POLICED = "ovs_rx_qos_drops"
TO_GUEST = frozenset({*_SENDING.values(), Reason.NOT_READY})
"""The reasons for which a port of a VM drops what is for the VM."""

DIFFERENCES = frozenset({Reason.NOT_READY, Reason.NO_BUFFER})
"""The reasons that a port counts as the rest of its drops. Under load they may be some packets too many, as the switch
reads a port's own counters a moment before the others (vswitchd/bridge.c, iface_refresh_stats)."""

REPEATED = frozenset({Reason.PIPELINE, Reason.CONNTRACK_FULL, Reason.CONNTRACK_INVALID})
"""The reasons that are no further packets: these were not dropped for this, or another reason has them as well."""

FLOWS: Mapping[str, Reason] = {
    "drop_spoofed": Reason.SPOOFED,
    "drop_unknown_from_vm": Reason.UNKNOWN_MAC,
    "drop_unknown_from_tunnel": Reason.UNKNOWN_MAC_FROM_TUNNEL,
    "drop_unknown_vni": Reason.UNKNOWN_VNI,
    "drop_unknown_port": Reason.UNKNOWN_PORT,
    "drop_unknown_tag": Reason.UNKNOWN_TAG,
    "drop_underlay": Reason.NOT_TUNNELLED,
    "drop_not_asked": Reason.NOT_ASKED,
}
"""The reason for which a flow of the overlay drops, by the name of its kind (``overlay.tables.Kind``)."""

# lib/dpif-netdev.c and lib/odp-execute.c (datapath_drop_*, drop_action_*), lib/conntrack.c, lib/conntrack-tcp.c,
# lib/ipf.c, lib/netdev.c (netdev_*_drops): those of OVS 3.1 to 3.7. Packets with a wrong checksum are invalid to
# connection tracking. A packet that finds the lock of upcalls held needed an upcall too, and so did one that an action
# sends to user space. datapath_drop_hw_post_process_consumed is no loss: the offload provider has taken these packets.
_COVERAGE = {
    Reason.UPCALL: ("datapath_drop_upcall_error", "datapath_drop_lock_error", "datapath_drop_userspace_action_error"),
    Reason.TUNNEL: (
        "datapath_drop_tunnel_push_error", "datapath_drop_tunnel_pop_error", "datapath_drop_invalid_tnl_port",
        "datapath_drop_tunnel_tso_recirc", "drop_action_invalid_tunnel_metadata", "drop_action_tunnel_routing_failed",
        "drop_action_tunnel_output_no_ethernet", "drop_action_tunnel_neigh_cache_miss",
        "drop_action_tunnel_header_build_failed", "netdev_push_header_drops",
    ),
    Reason.CONNTRACK_FULL: ("conntrack_full", "conntrack_zone_full"),
    Reason.CONNTRACK_INVALID: (
        "conntrack_tcp_seq_chk_failed", "conntrack_invalid_tcp_flags", "conntrack_l3csum_err", "conntrack_l4csum_err",
        "ipf_l3csum_err",
    ),
    Reason.METER: ("datapath_drop_meter",),
    Reason.LOOP: (
        "datapath_drop_recirc_error", "drop_action_recursion_too_deep", "drop_action_too_many_resubmit",
        "drop_action_stack_too_deep", "drop_action_no_recirculation_context", "drop_action_recirculation_conflict",
    ),
    Reason.MALFORMED: ("datapath_drop_rx_invalid_packet", "drop_action_unsupported_packet_type"),
    Reason.OFFLOAD: (
        "netdev_send_prepare_drops", "netdev_soft_seg_drops", "netdev_geneve_tso_drops", "netdev_vxlan_tso_drops",
    ),
    Reason.INTERNAL: (
        "datapath_drop_hw_miss_recover", "datapath_drop_hw_post_process", "datapath_drop_invalid_port",
        "datapath_drop_invalid_bond", "datapath_drop_sample_error", "datapath_drop_nsh_decap_error",
        "drop_action_bridge_not_found", "drop_action_congestion", "drop_action_forwarding_disabled",
        "drop_action_too_many_mpls_labels",
    ),
    Reason.PIPELINE: ("drop_action_of_pipeline",),
}  # fmt: skip
EVENTS: Mapping[str, Reason] = {event: reason for reason, events in _COVERAGE.items() for event in events}
"""The reason that each coverage counter stands for."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets that one switch has dropped for one reason. ``port``: the interface, which for a VM has the VM's name, or
    an empty text if no port can be named. ``vni``: 0 if no VNI can be named."""

    reason: Reason
    packets: int
    port: str = ""
    vni: int = 0

    @property
    def place(self) -> tuple[Reason, str, int]:
        """What makes this counter another one than the rest."""
        return self.reason, self.port, self.vni


def drops(counters: SwitchCounters, vms: Mapping[str, int]) -> tuple[Drop, ...]:
    """Return every drop counter of a switch, those at 0 among them. ``vms``: the OpenFlow number of each VM's port, by
    the port's name. A part that could not be read has no drops here: they are unknown, and not 0."""
    found = [drop for port in (counters.ports or {}).values() for drop in of_port(port)]
    found += of_flows(counters.flows or (), vms)
    if counters.coverage is not None:
        found += of_coverage(counters.coverage)
    return tuple(found)


def of_port(port: PortCounters) -> Iterator[Drop]:
    """Yield the drops of one port; none for a port that is not of DPDK, as such a port counts no reasons.

    A vhost-user port counts in ``tx_dropped`` alone what comes for it before its guest is ready, or while it is down
    (netdev_dpdk_vhost_send), so the rest of ``tx_dropped`` is that. ``rx_dropped`` of a NIC has what the NIC missed and
    what found no buffer (netdev_dpdk_get_stats).
    """
    if not any(name.startswith("ovs_") for name in port.statistics):
        return
    named = 0
    for name, reason in _SENDING.items():
        named += port.count(name)
        yield Drop(reason, port.count(name), port.name)
    yield Drop(Reason.NOT_READY, max(0, port.count("tx_dropped") - named), port.name)
    yield Drop(Reason.POLICING, port.count(_POLICED), port.name)
    if not port.vhost:
        missed = port.count("rx_missed_errors")
        yield Drop(Reason.NIC_MISSED, missed, port.name)
        yield Drop(Reason.NO_BUFFER, max(0, port.count("rx_dropped") - missed - port.count(_POLICED)), port.name)


def of_flows(flows: Iterable[FlowCount], vms: Mapping[str, int]) -> Iterator[Drop]:
    """Yield the drops of the overlay's flows. A flow of a port that no VM has any longer names its VNI alone."""
    names = {ofport: name for name, ofport in vms.items()}
    for flow in flows:
        if reason := FLOWS.get(flow.kind):
            yield Drop(reason, flow.packets, names.get(flow.ofport, ""), flow.vni)


def of_coverage(coverage: Mapping[str, int]) -> Iterator[Drop]:
    """Yield the drops that a whole switch counts. An event that never happened is missing among the counters."""
    for reason, events in _COVERAGE.items():
        yield Drop(reason, sum(coverage.get(event, 0) for event in events))


def growth(before: Iterable[Drop], after: Iterable[Drop]) -> tuple[Drop, ...]:
    """Return what was dropped between two looks at the same switch, in the order of ``after``. A counter that is less
    than before was set back in between, so all of it is new; one that is the difference of two others (DIFFERENCES) has
    then not grown, because these were not read at the same instant. A counter that was not there before had been 0."""
    known = {drop.place: drop.packets for drop in before}
    return tuple(replace(drop, packets=_grown(drop, known.get(drop.place, 0))) for drop in after)


def _grown(drop: Drop, known: int) -> int:
    if drop.packets >= known:
        return drop.packets - known
    return 0 if drop.reason in DIFFERENCES else drop.packets


class Duty(enum.Enum):
    """What a switch was for a VM between two looks. MOVED: its part has changed in that time."""

    SERVED = enum.auto()
    STOOD_BY = enum.auto()
    MOVED = enum.auto()


def losses(grown: Iterable[Drop], duties: Mapping[str, Duty]) -> tuple[Drop, ...]:
    """Return the drops that are losses, of those that one switch has counted between two looks.

    ``duties``: what the switch was for each VM, by the name of the VM's port; for a port without a duty everything
    counts. Where a switch stood by, what it could not put on a VM's rings were copies. Where the VM was moved in that
    time, copies and losses cannot be told apart: they become one drop for the reason MOVED. What a VM sends comes to
    one switch only, and so always counts.
    """
    found, moved = [], dict[str, int]()
    for drop in grown:
        duty = duties.get(drop.port, Duty.SERVED)
        if drop.reason not in TO_GUEST or duty is Duty.SERVED:
            found.append(drop)
        elif duty is Duty.MOVED:
            moved[drop.port] = moved.get(drop.port, 0) + drop.packets
    return (*found, *(Drop(Reason.MOVED, packets, port) for port, packets in moved.items()))

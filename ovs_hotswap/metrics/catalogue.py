"""Every metric: its name, kind, labels and meaning. This module is pure.

Names and labels are stable. Each metric also has the label ``host``. Units are base units, and a counter ends with
``_total``. What openstack-network-exporter has (packets of interfaces, coverage counters, iterations of PMD threads) is
not among them: ``vm_info`` has the labels by which its metrics are joined. A metric that is not known at a scrape is
left out of that scrape, and ``unknown`` says so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

PREFIX = "ovs_hotswap_"


class Kind(enum.StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. ``name`` is without the prefix, and that of a counter has its ``_total``. ``buckets``: the upper bounds
    of a histogram, in its unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


HANDOVER_BUCKETS = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0)
GAP_BUCKETS = (5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_G, _C, _H = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM
_ALL = (
    # The host.
    Metric("info", _G, "1; the labels say what runs here.", ("version", "program", "backend", "watchdog_mode")),
    Metric("active", _G, "1 for the side that is recorded as the active one, 0 for the other.", ("side",)),
    Metric("instance_up", _G, "1 if the instance's ovs-vswitchd runs.", ("side",)),
    Metric("instance_start_time_seconds", _G, "When the instance was started, since the epoch.", ("side",)),
    Metric("instance_info", _G, "1; the labels are the software of the instance.",
           ("side", "release", "ovs_version", "dpdk_version")),
    Metric("uplink_steered", _G, "1 for the side to which the uplink is steered, 0 for the other.", ("side",)),
    Metric("uplink_proof", _G, "1 for the last result of proving the side's uplink: ok, warning, error or unknown.",
           ("side", "result")),
    Metric("configuration_differences", _G, "Values of the configuration file that broker or watchdog do not use."),
    # Broker and watchdog.
    Metric("broker_up", _G, "1 if the broker answers."),
    Metric("broker_start_time_seconds", _G, "When the broker began to serve, since the epoch."),
    Metric("broker_supervised", _G, "1 if something keeps the broker's connections if it ends."),
    Metric("broker_unsaved_vms", _G, "VMs whose state would not survive the broker's end."),
    Metric("broker_leaving_vms", _G, "VMs that have left the intent and that the broker has to keep."),
    Metric("watchdog_up", _G, "1 if the watchdog runs; missing if its mode is off."),
    Metric("watchdog_healthy", _G, "1 if the watchdog finds the active instance healthy."),
    Metric("watchdog_gave_up", _G, "1 if too many instances failed and no standby is started any longer."),
    Metric("watchdog_problem", _G, "1 if there is a problem: failover_problem (no failover is possible), problem (the "
           "standby cannot be prepared) or events_problem (events cannot be written).", ("kind",)),
    Metric("standby_ready", _G, "1 if the standby can take all VMs; missing if none is kept."),
    Metric("standby_start_time_seconds", _G, "When the standby was started, since the epoch."),
    # Upgrades.
    Metric("journal_readable", _G, "0 if the journal of an upgrade is damaged or cannot be read."),
    Metric("upgrade_unfinished", _G, "1 while an upgrade is under way or was interrupted."),
    Metric("upgrade_failed", _G, "1 if an unfinished upgrade has failed in a step."),
    Metric("upgrade_start_time_seconds", _G, "When the unfinished upgrade began, since the epoch."),
    Metric("upgrades_total", _C, "Ended upgrades, by outcome: committed or rolled_back.", ("outcome",)),
    Metric("rollbacks_total", _C, "Upgrades that were rolled back, by the step that failed (empty: none did) and the "
           "reason: asked, interrupted, instance_died or failed.", ("step", "reason")),
    Metric("handover_seconds", _H, "Time in which a VM's rings had no owner when an upgrade moved the VM.",
           (), HANDOVER_BUCKETS),
    Metric("uplink_gap_seconds", _H, "Time in which no instance had the uplink, where only one can have it open.",
           (), GAP_BUCKETS),
    Metric("failovers_total", _C, "Failovers, by what the watchdog saw: process, stopped, pmd or main-thread.",
           ("signal",)),
    Metric("failover_seconds", _H, "Time from the moment at which a failure was seen until the standby served the VMs.",
           (), GAP_BUCKETS),
    Metric("watchdog_events_total", _C, "Events of the watchdog, by kind.", ("event",)),
    # VMs.
    Metric("vm_info", _G, "1; the labels join what other exporters know of the VM's interface.",
           ("vm", "interface", "bridge", "ofport", "vni")),
    Metric("vm_owner", _G, "1; the labels are the side that owns the VM's rings (empty: none) and the certainty of "
           "that.", ("vm", "side", "certainty")),
    Metric("vm_connected", _G, "1 if the VM's QEMU is connected.", ("vm",)),
    Metric("vm_protected", _G, "1 if the other side could take the VM at once, or the VM needs no network.", ("vm",)),
    Metric("vm_quarantined", _G, "1 if the VM is in quarantine.", ("vm",)),
    Metric("vm_moves_total", _C, "Handovers of the VM. A failover is none.", ("vm",)),
    Metric("vm_dropped_packets_total", _C, "Packets to or from the VM that were dropped, by reason. It never goes "
           "backwards over an upgrade or a failover.", ("vm", "reason")),
    # Packets of the host.
    Metric("dropped_packets_total", _C, "Packets that were dropped and belong to no single VM, by reason, port and VNI "
           "as far as these are known. Three reasons are no further packets: pipeline, conntrack_full and "
           "conntrack_invalid.", ("reason", "port", "vni")),
    Metric("flow_packets_total", _C, "Packets of the overlay's flows of both sides, by kind.", ("kind",)),
    Metric("packet_pool_buffers", _G, "Buffers of a side's packet pool on a NUMA node, by the bytes of a buffer. Of "
           "several such pools it is the fullest.", ("side", "node", "buffer_bytes")),
    Metric("packet_pool_buffers_in_use", _G, "Buffers of this pool that are in use.", ("side", "node", "buffer_bytes")),
    Metric("pmd_cycles_total", _C, "Cycles of a PMD thread, by state: busy (it found packets) or idle.",
           ("side", "numa", "core", "state")),
    Metric("conntrack_connections", _G, "Connections that the side tracks.", ("side",)),
    Metric("conntrack_connections_limit", _G, "How many connections the side may track.", ("side",)),
    # The scrape.
    Metric("unknown", _G, "1 if a part of the host could not be read at this scrape, so that its metrics are missing.",
           ("part", "side")),
    Metric("scrape_duration_seconds", _G, "How long it took to read the host for this scrape."),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _ALL}

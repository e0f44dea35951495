"""The sections of docs/performance.md about hosts that others program."""

from __future__ import annotations

from typing import Any

from bench import window_cost
from bench.sections import Json, Section, ecdf, named, spread, table, tenths

HOSTS = """
An upgrade of the distribution's Open vSwitch 3.1 with DPDK to another instance of itself on a host that others program,
beside its alternatives in the same run. The switch serves the VMs directly, on a bridge with the action NORMAL. Each VM
has a real QEMU 7.2, whose guest's driver is simulated. 8 VMs exchange frames in pairs, 1000 a second from each.

A gap is the longest time between two frames of a VM, in milliseconds: in the 0.3 seconds around the instant from which
the broker has had it (takeover, adopt, reconnect), from the order to end the switch on (restart), in any 0.3 seconds
(floor).
*In all* is the longest gap of each VM from the begin to the end, also while other VMs are changed.
*Takeover* is a whole `ovs-hotswap upgrade`. *Adopt* is `ovs-hotswap adopt`: the VMs stay with their switch. *Reconnect*
is `ovs-hotswap adopt --reconnect`. *Lost* counts the frames of the whole way,
also those of other steps of the upgrade.

"""

STOOD_STILL = """
For how long QEMU stood still while its VM was taken over. The driver of a real guest stands still with its QEMU; that
of a simulated guest does not, so this time comes to the gap besides. The VMs are taken over one after the other.

"""

WINDOW = """
Processor cycles in which the PMD threads of both switches were not idle, for each frame that arrives, of two guests
that send each other {rate} frames a second. Each is compared with the same guests without a window, measured just
before and just after. On the new side, a frame in wire mode passes the new switch, the old one and the new one again.
Threads sleep when they are idle, which is part of the latency (microseconds from sent to received).

"""


def hosts(document: Json) -> Section:
    cases = document["cases"]
    ways = [
        (named(each["case"]), name, len(way["gaps_ms"]), *spread(way["gaps_ms"], tenths),
         *spread(way["whole_ms"], tenths)[::2], f"{way['frames']['lost']} of {way['frames']['sent']}",
         way["frames"]["doubled"], tenths(way["seconds"]))
        for each in cases for name, way in each["ways"].items()
    ]  # fmt: skip
    stopped = [
        (named(each["case"]), each["bridges"], len(each["stopped_ms"]),
         *spread([*each["stopped_ms"].values()], tenths),
         tenths(each["steps"]["adopt"]), tenths(sum(each["steps"].values())))
        for each in cases
    ]  # fmt: skip

    def gaps(axes: Any) -> None:
        chosen = max(cases, key=lambda each: (each["case"]["vms"], each["case"]["queues"]))
        for name, way in chosen["ways"].items():
            ecdf(axes, way["gaps_ms"], name)
        axes.set(xlabel="longest gap of a VM, ms", ylabel="share of the VMs", xscale="log",
                 title=f"{named(chosen['case'])} queue pairs")  # fmt: skip
        axes.legend()

    text = HOSTS + table(
        (
            "VMs x queues",
            "way",
            "gaps",
            "p50",
            "p99",
            "max",
            "in all, p50",
            "in all, max",
            "lost",
            "doubled",
            "seconds",
        ),
        ways,
    )
    text += STOOD_STILL
    text += table(("VMs x queues", "bridges", "VMs taken over", "p50 ms", "p99 ms", "max ms", "step adopt, s",
                   "whole upgrade, s"), stopped)  # fmt: skip
    return Section(text, {"hosts": gaps})


def window(document: Json) -> Section:
    slots = [window_cost.Slot(each["way"], window_cost.Cost(**each["cost"])) for each in document["slots"]]

    def boxes(axes: Any) -> None:
        kinds = [*window_cost.OVERLAY, *window_cost.WIRED]
        axes.boxplot([[one / other for one, other in window_cost.bases(slots, way)] for way in kinds], vert=False)
        axes.set_yticklabels(kinds)
        axes.set(xlabel="cycles for a frame, in proportion to those without a window", xlim=0)

    text = WINDOW.format(rate=document["rate"]) + table(window_cost.COLUMNS, window_cost.rows(slots))
    return Section(text, {"window": boxes})

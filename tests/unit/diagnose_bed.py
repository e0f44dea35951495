"""A healthy host as `diagnose` knows it. Tests plant faults in its facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ovs_hotswap.counters.values import ConntrackCounts, FlowCount, PmdCounters, PortCounters, SwitchCounters
from ovs_hotswap.diagnose.facts import (
    CoreUse,
    Facts,
    Guest,
    Hop,
    Port,
    RemoteMac,
    Standby,
    Switch,
    Underlay,
    VmPort,
    Wanted,
)
from ovs_hotswap.diagnose.megaflows import MegaFlow
from ovs_hotswap.host.rings import samples
from ovs_hotswap.model import Proof, Side
from ovs_hotswap.overlay.tables import Kind, cookie
from ovs_hotswap.switch.memory import PacketPool
from tests.support.fake_backends import ring_status, vm_status

VM1, VM2 = "52:54:00:64:00:01", "52:54:00:64:00:02"
FAR, VTEP, OWN, HOP_MAC = "52:54:00:64:ff:fe", "172.31.0.2", "172.31.0.1", "52:54:00:1f:00:02"
WANTED = Wanted(
    vms={"vm1": VmPort("vm1", 10, "br0", VM1, 100), "vm2": VmPort("vm2", 11, "br0", VM2, 100)},
    bridge="br0", vtep=OWN, remotes=(RemoteMac(100, FAR, VTEP),), macs={VTEP: HOP_MAC}, uplinks=("uplink",),
    fixed_ports={"uplink": 1, "vxlan": 2}, tunnel_mtu=1450,
)  # fmt: skip
STATISTICS = {"tx_packets": 900, "rx_packets": 900, "tx_dropped": 0, "ovs_tx_failure_drops": 0,
              "ovs_tx_mtu_exceeded_drops": 0, "ovs_tx_qos_drops": 0, "ovs_rx_qos_drops": 0,
              "ovs_tx_invalid_hwol_drops": 0}  # fmt: skip
COUNTED = {"vm1": 10, "vm2": 11, "uplink": 1}


def counters(**changes: Any) -> SwitchCounters:
    """What a healthy switch has counted. ``changes``: other parts."""
    ports = {name: PortCounters(name, "dpdk", number, True, True, 1500, statistics=STATISTICS)
             for name, number in COUNTED.items()}  # fmt: skip
    flows = tuple(
        FlowCount(kind.name.lower(), 100, ofport, 0, 0)
        for kind, ofport in ((Kind.DROP_SPOOFED, 10), (Kind.DROP_SPOOFED, 11), (Kind.DROP_UNKNOWN_FROM_VM, 0))
    )
    return replace(
        SwitchCounters((7, 1), ports, {}, (PmdCounters(0, 1),), (PacketPool(0, 16384, 4200, 3000),),
                       ConntrackCounts(0, 3_000_000), flows), **changes,
    )  # fmt: skip


def counted(name: str, at: SwitchCounters | None = None, **changes: Any) -> SwitchCounters:
    """The counters with a port that differs in ``changes``; counters of the port are in ``statistics``."""
    at = at or counters()
    statistics = {**STATISTICS, **changes.pop("statistics", {})}
    port = replace((at.ports or {})[name], statistics=statistics, **changes)
    return replace(at, ports={**(at.ports or {}), name: port})


def port(name: str, **changes: Any) -> Port:
    return replace(Port(name, "br0", True, str(COUNTED[name]), 1500, frozenset(), 1), **changes)


def guest(name: str, first: tuple[tuple[int, int], ...] = ((256, 20), (40, 40)),
          last: tuple[tuple[int, int], ...] = ((300, 64), (90, 90)), **changes: Any) -> Guest:  # fmt: skip
    """A VM. ``first`` and ``last``: the indices (available, used) of its rings, at both looks."""
    then, now = (
        vm_status(name, rings=tuple(ring_status(number, *each) for number, each in enumerate(rings)), **changes)
        for rings in (first, last)
    )
    return Guest(now, tuple(samples([then])), tuple(samples([now])))


SWITCH = Switch(
    Side.A, "/run/ovs-hotswap/a", "/run/ovs-hotswap/a/ovs-vswitchd.ctl", "/run/ovs-hotswap/a/ovs-vswitchd.log",
    before=counters(), after=counters(), watched=1.5,
    ports={name: port(name) for name in COUNTED}, routes=(Hop("172.31.0.0/24", None), Hop("172.31.0.1/32", None)),
    neighbours={VTEP: HOP_MAC}, megaflows=(), cores=(CoreUse(1, 0.05),),
)  # fmt: skip
UNDERLAY = Underlay(True, Side.A, proof=Proof(True, True), asked=(VTEP,), answers={VTEP: HOP_MAC}, rules=("to a",))
HEALTHY = Facts(
    WANTED, 1.5, Side.A, guests={"vm1": guest("vm1"), "vm2": guest("vm2")}, switch=SWITCH, underlay=UNDERLAY,
    standby=Standby(True, Side.B, "ready"),
)  # fmt: skip


def switch(**changes: Any) -> Facts:
    """The healthy host, with a switch that differs in ``changes``."""
    return replace(HEALTHY, switch=replace(SWITCH, **changes))


def underlay(**changes: Any) -> Facts:
    return replace(HEALTHY, underlay=replace(UNDERLAY, **changes))


def with_guest(found: Guest) -> Facts:
    return replace(HEALTHY, guests={**(HEALTHY.guests or {}), found.status.name: found})


def with_port(found: Port) -> Facts:
    return switch(ports={**(SWITCH.ports or {}), found.name: found})


def grew(kind: Kind, packets: int, ofport: int = 0) -> Facts:
    """The healthy host, with packets that a flow has counted while we looked."""
    now = tuple(replace(each, packets=packets) if (each.kind, each.ofport) == (kind.name.lower(), ofport) else each
                for each in counters().flows or ())  # fmt: skip
    return switch(after=counters(flows=now))


def flow(vm: str = "vm1", **changes: Any) -> MegaFlow:
    """A flow of the datapath that drops packets of a VM."""
    return replace(MegaFlow(str(COUNTED[vm]), None, None, VM1, FAR, 12, 0.1, "drop"), **changes)


def line(kind: Kind, actions: str, match: str = "", **numbers: int) -> str:
    """A line of `ovs-ofctl diff-flows` about a flow that is installed and not wanted."""
    return f"-cookie={cookie(kind, **numbers):#x}, priority=100{match} actions={actions}"

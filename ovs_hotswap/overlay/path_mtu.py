"""Whether the longest packets fit at each place on their way: VMs, tunnels, the instances' ports, the kernel's devices.

This module is pure. Each finding names the place, its MTU, the one that it needs, and the command that helps. A packet
that is too long for a place is lost there, and no counter of this host need show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.overlay.intent import ETHERNET_MTU, Intent
from ovs_hotswap.overlay.ports import PEER, SECOND_UPLINK, UPLINK

NAME = "mtu"
"""The name of the findings."""
TAGS = 8  # bytes of the peer link's tag and one of the guest's (802.1ad)
# Drivers of DPDK that take only frames of up to 1518 bytes, whatever their arguments say (drivers/net/af_packet,
# eth_dev_info, up to DPDK 25.11).
_SHORT_DRIVERS = ("eth_af_packet", "net_af_packet")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Device:
    """A network device of the kernel on the underlay's way. ``namespace``: its network namespace, ``None`` for the
    host's own. ``most``: the largest MTU that its driver takes, ``None`` if that is not known."""

    name: str
    mtu: int
    most: int | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen. ``devices``: of the kernel. ``ports``: the MTUs of the ports in the datapath of each instance that
    runs. ``devargs``: what DPDK opens as the uplink of each instance, for each NIC."""

    devices: Sequence[Device] = ()
    ports: Mapping[Side, Mapping[str, int]] = field(default_factory=dict)
    devargs: Mapping[Side, Sequence[str]] = field(default_factory=dict)


def judge(intent: Intent, seen: Seen, active: Side | None = None) -> list[Finding]:
    """The findings about everything on the way. ``active``: the instance that serves the VMs, whose ports are judged
    with the rest of its datapath; those of the other one are given the right MTUs when it is programmed."""
    underlay = intent.vtep.mtu or ETHERNET_MTU
    found = [*vms(intent), *_drivers(underlay, seen.devargs)]
    for device in seen.devices:
        found += short_device(device, underlay)
    for side, ports in seen.ports.items():
        if side is not active:
            found += _other(intent, side, ports)
    return found


def vms(intent: Intent) -> list[Finding]:
    """The findings about the MTUs that the intent gives to VMs. Longer packets than the tunnels carry are lost at the
    instance, whatever the underlay does."""
    limit = intent.vtep.tunnel_mtu
    hint = f"an mtu up to {limit}; or a larger [vtep] mtu; or local_jumbo = true if longer packets stay here"
    found = [
        Finding(NAME, Severity.ERROR,
                f"VM {name} has MTU {mtu}, its tunnels carry {limit}: the underlay's MTU less the headers", hint)
        for name, mtu in intent.too_long.items()
    ]  # fmt: skip
    if names := intent.oversized:
        more = " ..." if len(names) > _SHOWN else ""
        needed = ETHERNET_MTU + (intent.vtep.mtu or ETHERNET_MTU) - limit
        found.append(Finding(
            NAME, Severity.WARNING,
            f"{len(names)} VMs have no mtu, so {ETHERNET_MTU}, and tunnels carry {limit}: longer packets to other hosts"
            f" are lost ({', '.join(names[:_SHOWN])}{more})",
            f"give the guests and [[vm]] an mtu of {limit}, or the underlay and [vtep] {needed}",
        ))  # fmt: skip
    return found


def short_device(device: Device, underlay: int) -> list[Finding]:
    """The finding about a device that the underlay's longest packets do not fit through."""
    if device.mtu >= underlay:
        return []
    text = f"{device.name} has MTU {device.mtu}, the underlay {underlay}: longer packets are lost"
    inside = f"ip netns exec {device.namespace} " if device.namespace else ""
    hint = f"{inside}ip link set {device.name} mtu {underlay}, or correct vtep.mtu in the overlay file"
    if device.most is not None and device.most < underlay:
        text += f", and its driver takes {device.most} at most"
        hint = f"[vtep] mtu = {device.most} in the overlay file, or another device: `ip -d link show {device.name}`"
    return [Finding(NAME, Severity.ERROR, text, hint)]


def _drivers(underlay: int, devargs: Mapping[Side, Sequence[str]]) -> Iterator[Finding]:
    for side, opened in devargs.items():
        if underlay > ETHERNET_MTU and any(each.startswith(_SHORT_DRIVERS) for each in opened):
            yield Finding(
                NAME, Severity.ERROR,
                f"instance {side}'s uplink is DPDK's driver for packet sockets, which takes an MTU of {ETHERNET_MTU},"
                f" and the underlay has {underlay}",
                f"another driver in instances.{side}.uplink_devargs, such as net_pcap0,iface=NAME; or correct vtep.mtu",
            )  # fmt: skip


def _other(intent: Intent, side: Side, ports: Mapping[str, int]) -> Iterator[Finding]:
    mtu = intent.vtep.mtu or ETHERNET_MTU
    wanted = {UPLINK: mtu, SECOND_UPLINK: mtu, PEER: intent.mtu + TAGS,
              **{vm.name: vm.effective_mtu for vm in intent.vms}}  # fmt: skip
    wrong = [f"{name} {ports[name]}, not {mtu}" for name, mtu in wanted.items() if ports.get(name, mtu) != mtu]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        yield Finding(
            NAME, Severity.WARNING, f"instance {side}'s ports have other MTUs than the overlay file says: "
            f"{'; '.join(wrong[:_SHOWN])}{more}",
            "`ovs-hotswap overlay apply` gives them the right ones; an upgrade does so before it moves a VM",
        )  # fmt: skip

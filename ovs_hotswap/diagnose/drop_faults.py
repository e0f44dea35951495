"""Faults that counters of drops show, at ports and of the whole switch. Pure. A drop is a finding if it happens while
we look."""

from __future__ import annotations

from collections.abc import Iterator

from ovs_hotswap.counters.drops import TO_GUEST, Drop, Reason
from ovs_hotswap.counters.values import ConntrackCounts
from ovs_hotswap.diagnose.drop_counts import grown
from ovs_hotswap.diagnose.facts import Facts, Switch
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.model import Life
from ovs_hotswap.switch.datapath import USERSPACE

_CAUSES = {
    Reason.MTU: Cause.MTU, Reason.POLICING: Cause.POLICED, Reason.QOS: Cause.POLICED, Reason.RING_FULL: Cause.RING_FULL,
    Reason.CONNTRACK_INVALID: Cause.CONNTRACK_INVALID, Reason.METER: Cause.POLICED, Reason.NO_BUFFER: Cause.POOL_EMPTY,
    Reason.NIC_MISSED: Cause.DROPPED, Reason.OFFLOAD: Cause.DROPPED, Reason.LOOP: Cause.DROPPED,
    Reason.MALFORMED: Cause.DROPPED, Reason.INTERNAL: Cause.DROPPED, Reason.TUNNEL: Cause.DROPPED,
}  # fmt: skip
_TEXTS = {
    Reason.MTU: "Packets that are too long for {where} are dropped.",
    Reason.POLICING: "{where} sends more than its policing rate allows, and the rest is dropped.",
    Reason.QOS: "More is sent to {where} than the QoS of its port allows, and the rest is dropped.",
    Reason.METER: "More packets come than a meter of {where} allows, and the rest is dropped.",
    Reason.RING_FULL: "{where} takes packets more slowly than they come, and those that find no room in its ring are "
    "dropped.",
    Reason.NO_BUFFER: "{where} finds no free buffer in the packet pool for packets that arrive, and drops them.",
    Reason.CONNTRACK_INVALID: "Connection tracking finds packets invalid. Flows that ask for valid ones drop them.",
}
_CONNTRACK = (Reason.CONNTRACK_FULL, Reason.CONNTRACK_INVALID)


def judge(facts: Facts) -> Iterator[Found]:
    switch = facts.switch
    if switch is None or switch.life is not Life.RUNS:
        return
    found = [each for each in grown(facts) if each.packets]
    for each in found:
        if each.reason in _CAUSES and not _is_copy(facts, each):
            yield _finding(facts, switch, each)
    yield from _conntrack_full(switch, sum(each.packets for each in found if each.reason is Reason.CONNTRACK_FULL))


def _is_copy(facts: Facts, drop: Drop) -> bool:
    """Whether the active instance does not have the VM's rings: what it cannot deliver are then copies, and no loss."""
    guest = (facts.guests or {}).get(drop.port)
    return (
        drop.reason in TO_GUEST and guest is not None and facts.active is not None
        and not guest.status.confirmed_on(facts.active)
    )  # fmt: skip


def _finding(facts: Facts, switch: Switch, drop: Drop) -> Found:
    vm = drop.port if drop.port in facts.wanted.vms else None
    where = vm or (f"port {drop.port}" if drop.port else f"instance {switch.side}")
    text = _TEXTS.get(drop.reason, f"{{where}} drops packets that {drop.reason.text}.").format(where=where)
    count = "1 packet" if drop.packets == 1 else f"{drop.packets} packets"
    return Found(
        _CAUSES[drop.reason], text if vm is not None else text[0].upper() + text[1:],
        (f"{count} in {switch.watched:.1f} s", *_evidence(facts, switch, drop)),
        _command(facts, switch, drop), vm,
    )  # fmt: skip


def _evidence(facts: Facts, switch: Switch, drop: Drop) -> tuple[str, ...]:
    counters = switch.after
    port = (counters.ports or {}).get(drop.port) if counters is not None else None
    if drop.reason is Reason.MTU and drop.port:
        here = (switch.ports or {}).get(drop.port)
        mtu = port.mtu if port is not None and port.mtu else here.mtu if here is not None else None
        tunnels = f"; tunnels carry {facts.wanted.tunnel_mtu}" if facts.wanted.tunnel_mtu is not None else ""
        return (f"its MTU is {mtu}{tunnels}" if mtu else f"its MTU is not known{tunnels}",)
    if drop.reason is Reason.POLICING and port is not None and port.policing_kbps:
        return (f"ingress_policing_rate of {drop.port} is {port.policing_kbps} kbit/s",)
    if drop.reason in _CONNTRACK and counters is not None and counters.conntrack is not None:
        return (f"{counters.conntrack.connections} connections of {counters.conntrack.most}",)
    return ()


def _command(facts: Facts, switch: Switch, drop: Drop) -> str:
    match drop.reason:
        case Reason.MTU if facts.wanted.tunnel_mtu is None:
            larger = switch.vsctl("set Interface", drop.port, "mtu_request=N")
            return f"a smaller MTU in the guest, or a larger one for the port: `{larger}`"
        case Reason.MTU:
            return (f"an `mtu` of up to {facts.wanted.tunnel_mtu} for the guest, or a larger MTU of the underlay: "
                    "`ovs-hotswap overlay check` has both")  # fmt: skip
        case Reason.POLICING:
            return f"if it is not wanted: `{switch.vsctl('set Interface', drop.port, 'ingress_policing_rate=0')}`"
        case Reason.QOS:
            return f"if it is not wanted: `{switch.vsctl('clear Port', drop.port, 'qos')}`"
        case Reason.RING_FULL if drop.port in facts.wanted.vms:
            return (f"`ovs-hotswap bursts {drop.port}` says whether it does so in moments, and what helps; "
                    f"`ovs-hotswap vm show {drop.port}`: has the guest a processor to take them?")  # fmt: skip
        case Reason.RING_FULL:
            longer = switch.vsctl("set Interface", drop.port, "options:n_txq_desc=4096")
            return f"a longer ring, if its device has one: `{longer}`"
        case Reason.METER:
            bridges = dict.fromkeys([facts.wanted.bridge, *(vm.bridge for vm in facts.wanted.vms.values())])
            shown = [f"`{switch.ofctl(bridge, '-O OpenFlow13 meter-stats')}`" for bridge in bridges if bridge]
            return f"{' or '.join(shown[:2])} shows which meter"
        case Reason.NO_BUFFER:
            return "more memory_mb for the instance (docs/sizing.md): `ovs-hotswap doctor --section memory`"
        case Reason.NIC_MISSED:
            return "`ovs-hotswap bursts` says whether its PMD thread had time, and what helps"
    return f"`{switch.appctl('coverage/show')}` has the counters"


def _conntrack_full(switch: Switch, refused: int) -> Iterator[Found]:
    """Whether packets were refused while we looked, or the table, or a zone, has no room for the next one."""
    known = switch.after.conntrack if switch.after is not None else None
    full = _full(known) if known is not None else []
    if not full and not refused:
        return
    seen = [f"{refused} packets of new connections were refused in {switch.watched:.1f} s"] if refused else []
    room = full[:3] or ([f"{known.connections} connections of {known.most}"] if known is not None else [])
    yield Found(
        Cause.CONNTRACK_FULL, "Connection tracking has no room, so no new connection is made.", (*seen, *room),
        f"find who opens so many: `{switch.appctl('dpctl/ct-stats-show', USERSPACE)}`; or more room: "
        f"`{switch.appctl('dpctl/ct-set-maxconns', USERSPACE, 'N')}`, for a zone "
        f"`{switch.appctl('dpctl/ct-set-limits', USERSPACE, 'zone=Z,limit=N')}`",
    )  # fmt: skip


def _full(found: ConntrackCounts) -> list[str]:
    full = [f"{zone.count} of {zone.limit} connections in zone {zone.zone}" for zone in found.zones
            if zone.limit and zone.count >= zone.limit]  # fmt: skip
    if found.most and found.connections >= found.most:
        full.insert(0, f"{found.connections} of {found.most} connections in all zones")
    return full

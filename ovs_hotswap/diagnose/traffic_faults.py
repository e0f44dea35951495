"""Faults that packets show: what the flows drop, what ports drop, and flows that are not those of the intent. Pure.

A drop is a finding if it happens while we look. The flows of the datapath, which live for ten seconds after their last
packet, say whose packets they were: from which MAC to which, and through which tunnel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ovs_hotswap.counters.drops import TO_GUEST, Drop, Reason, drops, growth
from ovs_hotswap.diagnose.facts import Facts, Switch, VmPort
from ovs_hotswap.diagnose.found import Cause, Dropped, Found
from ovs_hotswap.diagnose.megaflows import MegaFlow
from ovs_hotswap.model import Life
from ovs_hotswap.overlay.tables import Kind, cookie_kind, cookie_name
from ovs_hotswap.wording import short, some

_FRESH_S = 5.0
_APPLY = "`ovs-hotswap overlay apply` programs the intent again"
_EDIT = "correct the overlay file if it is wrong, then `ovs-hotswap overlay apply`"
_COOKIE = re.compile(r"\bcookie=(0x[0-9a-f]+)")
_VNI = re.compile(r"\b(?:write_metadata:|set_field:)(0x[0-9a-f]+|\d+)(?:->metadata)?")
_TO = re.compile(r"\bset_field:([^,]+)->tun_(?:ipv6_)?dst\b")
_MATCHED = re.compile(r"\bdl_dst=([0-9a-f:]{17})")


def grown(facts: Facts) -> tuple[Drop, ...]:
    """What was dropped while we looked."""
    switch = facts.switch
    if switch is None or switch.before is None or switch.after is None:
        return ()
    vms = {vm.name: vm.ofport for vm in facts.wanted.vms.values()}
    return growth(drops(switch.before, vms), drops(switch.after, vms))


def dropped(facts: Facts, vm: str | None) -> tuple[Dropped, ...]:
    """Every drop counter that is not 0, those that grow first. With our own flows, the count of all packets without an
    output repeats what these flows have counted."""
    switch = facts.switch
    if switch is None or switch.after is None:
        return ()
    vms = {each.name: each.ofport for each in facts.wanted.vms.values()}
    now = {each.place: each.packets for each in grown(facts)}
    found = [
        Dropped(
            each.port if each.port in vms else None, each.vni or None, each.reason, each.packets, now.get(each.place, 0)
        )
        for each in drops(switch.after, vms)
        if each.packets and not (each.reason is Reason.PIPELINE and facts.wanted.overlay)
    ]
    asked = [each for each in found if vm is None or each.vm in (None, vm)]
    return tuple(sorted(asked, key=lambda each: (-each.now, each.vm or "", each.reason)))


def judge(facts: Facts, vm: str | None = None) -> Iterator[Found]:
    switch = facts.switch
    if switch is None or switch.life is not Life.RUNS:
        return
    flows = [flow for flow in switch.megaflows or () if flow.fresh(_FRESH_S)]
    if facts.unfinished is None:
        yield from _differences(facts, switch)
    if facts.wanted.overlay:
        yield from _from_tunnel(facts, switch, flows)
        yield from _from_vms(facts, switch, flows)
    yield from _at_ports(facts, switch)


# ------------------------------------------------------------------------------------------- flows against the intent


def _differences(facts: Facts, switch: Switch) -> Iterator[Found]:
    """Flows that are not those of the intent: by what they do, as far as it can be said, and all others together."""
    others, said, by_ofport = [], set[str](), facts.wanted.by_ofport()
    for line in switch.differences or ():
        if line.startswith("-") and (found := _misdirects(facts, line, by_ofport)) is not None:
            if found.text not in said:
                said.add(found.text)
                yield found
        else:
            others.append(line)
    if others and not said:
        yield Found(
            Cause.FLOWS_DIFFER,
            f"The flows of instance {switch.side} are not those of the overlay file: {len(others)} differences.",
            tuple(short(_named(line, by_ofport)) for line in others[:3]),
            f"`ovs-hotswap overlay diff --side {switch.side}` shows all; {_APPLY}",
        )  # fmt: skip


def _named(line: str, by_ofport: dict[int, str]) -> str:
    found = _COOKIE.search(line)
    what = cookie_name(int(found[1], 16), by_ofport) if found else "a flow that is not of ovs-hotswap"
    return f"{'installed, not wanted' if line.startswith('-') else 'wanted, not installed'}: {what}: {line[1:].strip()}"


def _misdirects(facts: Facts, line: str, by_ofport: dict[int, str]) -> Found | None:
    """The finding about a flow that is installed and has another VNI for a VM, or another VTEP, than the intent."""
    found = _COOKIE.search(line)
    value = int(found[1], 16) if found else 0
    kind, vm = cookie_kind(value), by_ofport.get(value & 0xFFFF)
    if kind is Kind.FROM_VM and vm is not None and (vni := _VNI.search(line)):
        wanted, has = facts.wanted.vms[vm].vni, int(vni[1], 0)
        if has != wanted:
            return Found(
                Cause.WRONG_VNI,
                f"The flows put what {vm} sends into VNI {has}, and the overlay file has it in {wanted}.",
                (short(line[1:].strip()),), _APPLY, vm,
            )  # fmt: skip
    if kind is Kind.TO_REMOTE and (to := _TO.search(line)) and (mac := _MATCHED.search(line)):
        vni_of = value >> 16 & 0xFFFFFF
        wanted_vtep = {(each.vni, each.mac): each.vtep for each in facts.wanted.remotes}.get((vni_of, mac[1]))
        if wanted_vtep is not None and wanted_vtep != to[1]:
            return Found(
                Cause.WRONG_VTEP,
                f"The flows send what is for {mac[1]} to VTEP {to[1]}, and by the overlay file it is behind "
                f"{wanted_vtep}.",
                (short(line[1:].strip()),), _APPLY,
            )  # fmt: skip
    return None


# ------------------------------------------------------------------------------------------------------- from tunnels


def _from_tunnel(facts: Facts, switch: Switch, flows: Iterable[MegaFlow]) -> Iterator[Found]:
    by_mac = {vm.mac: vm for vm in facts.wanted.vms.values() if vm.mac}
    here, ends = {vm.vni for vm in facts.wanted.vms.values()}, set(_places(facts))
    behind = {(each.vni, each.mac): each.vtep for each in facts.wanted.remotes}
    strange, known = dict[tuple[int, str], int](), {(each.vni, each.vtep) for each in facts.wanted.remotes}
    for flow in flows:
        if not flow.vni or flow.vtep is None:  # a proof of the uplink has the VNI 0
            continue
        vm = by_mac.get(flow.to or "")
        if flow.drops and vm is not None and (flow.vni, flow.to) not in ends:
            yield Found(
                Cause.WRONG_VNI,
                f"Frames for {vm.name} come in VNI {flow.vni}, and the overlay file has it in VNI {vm.vni}: they are "
                "dropped.",
                (_seen(flow), "the other host and this one do not agree on the VNI"), _EDIT, vm.name,
            )  # fmt: skip
        elif flow.drops and flow.vni not in here:
            strange[flow.vni, flow.vtep] = strange.get((flow.vni, flow.vtep), 0) + flow.packets
        elif flow.vni in here and (flow.vni, flow.vtep) not in known and flow.fresh(switch.watched):
            yield _from_unknown(facts, flow.vni, flow.vtep)
        wanted = behind.get((flow.vni, flow.source or ""))
        if wanted is not None and wanted != flow.vtep:
            yield Found(
                Cause.WRONG_VTEP,
                f"{flow.source} is behind VTEP {flow.vtep}, from where its frames come, and the overlay file sends to "
                f"{wanted}.",
                (_seen(flow),), _EDIT,
            )  # fmt: skip
    for (vni, vtep), packets in strange.items():
        yield Found(
            Cause.UNKNOWN_VNI,
            f"VTEP {vtep} sends in VNI {vni}, in which no VM is here: these frames are dropped.",
            (f"{packets} packets of the datapath's flows", f"the VMs here are in VNI {some(sorted(map(str, here)))}"),
            _EDIT,
        )  # fmt: skip


def _from_unknown(facts: Facts, vni: int, vtep: str) -> Found:
    """The finding about a VTEP that sends and behind which no MAC is by the intent."""
    silent = sorted({each.vtep for each in facts.wanted.remotes if each.vni == vni} - set(_answering(facts)))
    perhaps = f"; perhaps those that it has behind {some(silent)}, which does not answer" if silent else ""
    return Found(
        Cause.WRONG_VTEP,
        f"VTEP {vtep} sends to VMs here in VNI {vni}, and the overlay file has no MAC behind it: VMs cannot answer.",
        (f"tunnel packets from {vtep} came in the last seconds (dpctl/dump-flows)",),
        f"name its MACs in [[remote]] of the overlay file{perhaps}; then `ovs-hotswap overlay apply`",
    )  # fmt: skip


def _answering(facts: Facts) -> Iterable[str]:
    return facts.underlay.answers if facts.underlay is not None else ()


def _seen(flow: MegaFlow) -> str:
    way = f"from VTEP {flow.vtep} in VNI {flow.vni}" if flow.vtep is not None else f"from port {flow.port}"
    ends = " to ".join(filter(None, (flow.source, flow.to)))
    ago = "" if flow.used is None else f", the last {flow.used:.1f} s ago"
    return f"{flow.packets} packets {way} ({ends}){ago} (dpctl/dump-flows)"


# ------------------------------------------------------------------------------------------------------------ from VMs


def _from_vms(facts: Facts, switch: Switch, flows: Iterable[MegaFlow]) -> Iterator[Found]:
    numbers = {port.number: name for name, port in (switch.ports or {}).items() if port.number}
    sent = dict[str, list[MegaFlow]]()
    for flow in flows:
        if flow.drops and flow.vtep is None and (name := numbers.get(flow.port, flow.port)) in facts.wanted.vms:
            sent.setdefault(name, []).append(flow)
    spoofing = {each.port: each.packets for each in grown(facts) if each.reason is Reason.SPOOFED and each.packets}
    for name in dict.fromkeys((*spoofing, *sent)):
        vm = facts.wanted.vms.get(name)
        if vm is not None:
            yield from _from_vm(facts, vm, spoofing.get(name, 0), sent.get(name, ()))
    yield from _unknown(
        facts, {vm for vm, each in sent.items() if any(flow.to and not _for_many(flow.to) for flow in each)}
    )


def _from_vm(facts: Facts, vm: VmPort, spoofed: int, flows: Iterable[MegaFlow]) -> Iterator[Found]:
    foreign = sorted({flow.source for flow in flows if flow.source and flow.source != vm.mac})
    if spoofed or foreign:
        sources = f"it sends from {some(foreign)}" if foreign else "the MAC from which it sends was not seen"
        yield Found(
            Cause.SPOOFED,
            f"{vm.name} sends from a MAC that is not its own, and these frames are dropped.",
            (f"{sources}; the overlay file has {vm.mac}", f"{spoofed} packets while we looked (the flow's counter)"),
            f"in the guest: `ip link`; {_EDIT}", vm.name,
        )  # fmt: skip
    for flow in flows:
        if flow.source == vm.mac and flow.to not in (None, vm.mac) and not _for_many(flow.to):
            yield _lost(facts, vm, flow, flow.to)


def _for_many(mac: str) -> bool:
    """Whether a MAC is that of a group. What is for all of a VNI is dropped where the VM is alone in it."""
    return int(mac[:2], 16) & 1 == 1


def _lost(facts: Facts, vm: VmPort, flow: MegaFlow, mac: str) -> Found:
    """The finding about frames from the VM's own MAC that are dropped."""
    vnis = {vni for vni, each in _places(facts) if each == mac}
    if vm.vni in vnis:
        return Found(
            Cause.FLOWS_DROP, f"What {vm.name} sends to {mac} is dropped, though both are in VNI {vm.vni}.",
            (_seen(flow),), f"`ovs-hotswap diagnose {vm.name} --to {mac}` shows where", vm.name,
        )  # fmt: skip
    if vnis:
        return Found(
            Cause.WRONG_VNI,
            f"{vm.name}, in VNI {vm.vni}, sends to {mac}, which is in VNI {some(sorted(map(str, vnis)))}: these frames "
            "are dropped.",
            (_seen(flow),), _EDIT, vm.name,
        )  # fmt: skip
    return Found(
        Cause.UNKNOWN_MAC,
        f"{vm.name} sends to {mac}, which is nowhere in VNI {vm.vni} by the overlay file: these frames are dropped.",
        (_seen(flow),), f"add a [[vm]] or [[remote]] with this MAC, if there is one; {_EDIT}", vm.name,
    )  # fmt: skip


def _places(facts: Facts) -> Iterator[tuple[int, str]]:
    """Every MAC of the overlay file, with its VNI."""
    yield from ((vm.vni, vm.mac) for vm in facts.wanted.vms.values() if vm.vni is not None and vm.mac is not None)
    yield from ((remote.vni, remote.mac) for remote in facts.wanted.remotes)


def _unknown(facts: Facts, told: set[str]) -> Iterator[Found]:
    """Frames to unknown MACs that no flow of the datapath shows any longer: the counter has their VNI alone."""
    shown = {facts.wanted.vms[name].vni for name in told if name in facts.wanted.vms}
    for each in grown(facts):
        if each.reason is Reason.UNKNOWN_MAC and each.packets and each.vni not in shown:
            yield Found(
                Cause.UNKNOWN_MAC,
                f"A VM in VNI {each.vni} sends to a MAC that is nowhere in this VNI by the overlay file.",
                (f"{each.packets} packets while we looked (the flow's counter)",), _EDIT,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ at ports


def _at_ports(facts: Facts, switch: Switch) -> Iterator[Found]:
    for each in grown(facts):
        if not each.packets:
            continue
        vm = each.port if each.port in facts.wanted.vms else None
        cause = _AT_PORTS.get(each.reason)
        if cause is None:
            continue
        if each.reason in TO_GUEST and vm is not None and _stands_by(facts, vm):
            continue
        seconds = f"{each.packets} packets in {switch.watched:.1f} s"
        where = each.port or f"instance {switch.side}"
        yield Found(cause, _TEXTS[cause].format(where=where, why=each.reason.text),
                    (seconds, *_more(facts, switch, each)), _command(facts, switch, each), vm)  # fmt: skip


def _stands_by(facts: Facts, vm: str) -> bool:
    """Whether the active instance does not have the VM's rings: what it cannot deliver are then copies, and no loss."""
    guest = (facts.guests or {}).get(vm)
    return guest is not None and facts.active is not None and not guest.status.confirmed_on(facts.active)


_AT_PORTS = {
    Reason.MTU: Cause.MTU, Reason.POLICING: Cause.POLICED, Reason.QOS: Cause.POLICED, Reason.RING_FULL: Cause.RING_FULL,
    Reason.CONNTRACK_FULL: Cause.CONNTRACK_FULL, Reason.CONNTRACK_INVALID: Cause.CONNTRACK_INVALID,
    Reason.METER: Cause.POLICED, Reason.NO_BUFFER: Cause.POOL_EMPTY, Reason.NIC_MISSED: Cause.DROPPED,
    Reason.OFFLOAD: Cause.DROPPED, Reason.LOOP: Cause.DROPPED, Reason.MALFORMED: Cause.DROPPED,
    Reason.INTERNAL: Cause.DROPPED, Reason.TUNNEL: Cause.DROPPED,
}  # fmt: skip
_TEXTS = {
    Cause.MTU: "Packets are too long for {where}, which drops them: they {why}.",
    Cause.POLICED: "{where} drops packets because of a rate limit: they {why}.",
    Cause.RING_FULL: "{where} takes packets too slowly: they {why}.",
    Cause.CONNTRACK_FULL: "Connection tracking has no room, so no new connection is made: packets {why}.",
    Cause.CONNTRACK_INVALID: "Connection tracking finds packets invalid: they {why}.",
    Cause.POOL_EMPTY: "{where} finds no free packet buffer: packets are dropped, as they {why}.",
    Cause.DROPPED: "{where} drops packets: they {why}.",
}


def _more(facts: Facts, switch: Switch, each: Drop) -> tuple[str, ...]:
    counters = switch.after
    port = (counters.ports or {}).get(each.port) if counters is not None else None
    if each.reason is Reason.MTU and each.port:
        here = (switch.ports or {}).get(each.port)
        mtu = port.mtu if port is not None and port.mtu else here.mtu if here is not None else None
        return (f"its MTU is {mtu}; tunnels carry {facts.wanted.tunnel_mtu}" if mtu else "its MTU is not known",)
    if each.reason is Reason.POLICING and port is not None:
        return (f"ingress_policing_rate of {each.port} is {port.policing_kbps} kbit/s",) if port.policing_kbps else ()
    if each.reason in (Reason.CONNTRACK_FULL, Reason.CONNTRACK_INVALID) and counters is not None and counters.conntrack:
        found = counters.conntrack
        full = [f"zone {zone.zone} has {zone.count} of {zone.limit}" for zone in found.zones
                if zone.limit and zone.count >= zone.limit]  # fmt: skip
        return (f"{found.connections} connections of {found.most}", *full[:3])
    return ()


def _command(facts: Facts, switch: Switch, each: Drop) -> str:
    wanted, unlimited = facts.wanted, switch.vsctl("set Interface", each.port, "ingress_policing_rate=0")
    return {
        Reason.MTU: f"an `mtu` of up to {wanted.tunnel_mtu} for the guest, or a larger MTU on the underlay: "
        "`ovs-hotswap overlay check`",
        Reason.POLICING: f"if it is not wanted: `{unlimited}`",
        Reason.QOS: f"if it is not wanted: `{switch.vsctl('clear Port', each.port, 'qos')}`",
        Reason.RING_FULL: f"`ovs-hotswap vm show {each.port}`: does the guest have the time to take them? More queues, "
        "or a longer ring (`rx_queue_size` of QEMU)",
        Reason.CONNTRACK_FULL: f"`{switch.appctl('dpctl/ct-set-maxconns', 'N')}`, or find who opens so many: "
        f"`{switch.appctl('dpctl/ct-stats-show', 'netdev@ovs-netdev', 'zone=N')}`",
        Reason.METER: "`ovs-ofctl -O OpenFlow13 meter-stats BRIDGE`",
        Reason.NIC_MISSED: "`ovs-hotswap doctor --section cpu`; longer receive queues (`n_rxq_desc`), or more of them",
    }.get(each.reason, f"`{switch.appctl('coverage/show')}`")


def conntrack_full(facts: Facts) -> Iterator[Found]:
    """The table, or a zone, has no room, though no packet needed any while we looked."""
    counters = facts.switch.after if facts.switch is not None else None
    if counters is None or counters.conntrack is None or facts.switch is None:
        return
    found = counters.conntrack
    full = [f"{zone.count} of {zone.limit} in zone {zone.zone}" for zone in found.zones
            if zone.limit and zone.count >= zone.limit]  # fmt: skip
    if found.most and found.connections >= found.most:
        full.insert(0, f"{found.connections} of {found.most} in all zones")
    if full:
        yield Found(
            Cause.CONNTRACK_FULL, "Connection tracking has no room, so no new connection is made.", tuple(full[:3]),
            _command(facts, facts.switch, Drop(Reason.CONNTRACK_FULL, 0)),
        )  # fmt: skip

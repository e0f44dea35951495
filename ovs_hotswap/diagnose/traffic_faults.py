"""Faults that packets show: what the flows drop, and flows that are not those of the intent. Pure.

A drop is a finding if it happens while we look. The flows of the datapath, which live for ten seconds after their last
packet, say whose packets they were, from which MAC to which, and through which tunnel; and when the last one came.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from ovs_hotswap.counters.drops import Reason
from ovs_hotswap.diagnose.drop_counts import grown
from ovs_hotswap.diagnose.facts import Facts, Switch, VmPort
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.diagnose.megaflows import MegaFlow
from ovs_hotswap.model import Life
from ovs_hotswap.overlay.tables import Kind, cookie_kind, cookie_name
from ovs_hotswap.wording import short, some

_SHOWN = 3  # flows of one finding
_APPLY = "`ovs-hotswap overlay apply` programs the intent again"
_EDIT = "correct the overlay file if it is wrong, then `ovs-hotswap overlay apply`"
_COOKIE = re.compile(r"\bcookie=(0x[0-9a-f]+)")
_VNI = re.compile(r"\b(?:write_metadata:|set_field:)(0x[0-9a-f]+|\d+)(?:->metadata)?")
_TO = re.compile(r"\bset_field:([^,]+)->tun_(?:ipv6_)?dst\b")
_MATCHED = re.compile(r"\bdl_dst=([0-9a-f:]{17})")


def judge(facts: Facts) -> Iterator[Found]:
    switch = facts.switch
    if switch is None or switch.life is not Life.RUNS:
        return
    if facts.settled:
        yield from _differences(facts, switch)
    if facts.wanted.overlay:
        flows, places = switch.megaflows or (), _places(facts)
        yield from _from_tunnel(facts, [flow for flow in flows if flow.fresh(switch.watched)], places)
        yield from _from_vms(facts, switch, flows, places)


# ------------------------------------------------------------------------------------------- flows against the intent


def _differences(facts: Facts, switch: Switch) -> Iterator[Found]:
    """Flows that are not those of the intent: by what they do, as far as it can be said, and all others together."""
    others, said, by_ofport = [], set[str](), facts.wanted.by_ofport()
    behind = {(each.vni, each.mac): each.vtep for each in facts.wanted.remotes}
    for line in switch.differences or ():
        if line.startswith("-") and (found := _misdirects(facts, line, by_ofport, behind)) is not None:
            if found.text not in said:
                said.add(found.text)
                yield found
        else:
            others.append(line)
    if others and not said:
        yield Found(
            Cause.FLOWS_DIFFER,
            f"The flows of instance {switch.side} are not those of the overlay file.",
            (f"flows that differ: {len(others)}", *(short(_named(line, by_ofport)) for line in others[:_SHOWN])),
            f"`ovs-hotswap overlay diff --side {switch.side}` shows all; {_APPLY}",
        )  # fmt: skip


def _named(line: str, by_ofport: dict[int, str]) -> str:
    found = _COOKIE.search(line)
    what = cookie_name(int(found[1], 16), by_ofport) if found else "a flow that is not of ovs-hotswap"
    return f"{'installed, not wanted' if line.startswith('-') else 'wanted, not installed'}: {what}: {line[1:].strip()}"


def _misdirects(
    facts: Facts, line: str, by_ofport: Mapping[int, str], behind: Mapping[tuple[int, str], str]
) -> Found | None:
    """The finding about a flow that is installed and has another VNI for a VM, or another VTEP, than the intent.
    ``behind``: the VTEP of each VNI and MAC."""
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
        wanted_vtep = behind.get((value >> 16 & 0xFFFFFF, mac[1]))
        if wanted_vtep is not None and wanted_vtep != to[1]:
            return Found(
                Cause.WRONG_VTEP,
                f"The flows send what is for {mac[1]} to VTEP {to[1]}, and by the overlay file it is behind "
                f"{wanted_vtep}.",
                (short(line[1:].strip()),), _APPLY,
            )  # fmt: skip
    return None


# ------------------------------------------------------------------------------------------------------- from tunnels


def _from_tunnel(facts: Facts, flows: Iterable[MegaFlow], places: Mapping[str, Collection[int]]) -> Iterator[Found]:
    by_mac = {vm.mac: vm for vm in facts.wanted.vms.values() if vm.mac}
    here = {vm.vni for vm in facts.wanted.vms.values()}
    behind = {(each.vni, each.mac): each.vtep for each in facts.wanted.remotes}
    strange, known = dict[tuple[int, str], int](), {(each.vni, each.vtep) for each in facts.wanted.remotes}
    for flow in flows:
        if not flow.vni or flow.vtep is None:  # a proof of the uplink has the VNI 0
            continue
        vm = by_mac.get(flow.to or "")
        if flow.drops and vm is not None and flow.vni not in places.get(flow.to or "", ()):
            yield Found(
                Cause.WRONG_VNI,
                f"Frames for {vm.name} come in VNI {flow.vni}, and the overlay file has it in VNI {vm.vni}: they are "
                "dropped.",
                (_seen(flow), "the other host and this one do not agree on the VNI"), _EDIT, vm.name,
            )  # fmt: skip
        elif flow.drops and flow.vni not in here:
            strange[flow.vni, flow.vtep] = strange.get((flow.vni, flow.vtep), 0) + flow.packets
        elif flow.vni in here and (flow.vni, flow.vtep) not in known:
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
            (f"{packets} packets so far, the last one while we looked (dpctl/dump-flows)",
             f"the VMs here are in VNI {some([str(each) for each in sorted(each for each in here if each)])}"),
            _EDIT,
        )  # fmt: skip


def _from_unknown(facts: Facts, vni: int, vtep: str) -> Found:
    """The finding about a VTEP that sends and behind which no MAC is by the intent."""
    silent = sorted({each.vtep for each in facts.wanted.remotes if each.vni == vni} - set(_answering(facts)))
    perhaps = f"; perhaps those that it has behind {some(silent)}, which does not answer" if silent else ""
    return Found(
        Cause.WRONG_VTEP,
        f"VTEP {vtep} sends to VMs here in VNI {vni}, and the overlay file has no MAC behind it: VMs cannot answer.",
        (f"tunnel packets from {vtep} came while we looked (dpctl/dump-flows)",),
        f"name its MACs in [[remote]] of the overlay file{perhaps}; then `ovs-hotswap overlay apply`",
    )  # fmt: skip


def _answering(facts: Facts) -> Iterable[str]:
    return facts.underlay.answers if facts.underlay is not None else ()


def _seen(flow: MegaFlow) -> str:
    way = f" from VTEP {flow.vtep} in VNI {flow.vni}" if flow.vtep is not None else ""
    ends = f" from {flow.source}" if flow.source is not None else ""
    ends += f" to {flow.to}" if flow.to is not None else ""
    ago = "" if flow.used is None else f", the last one {flow.used:.1f} s ago"
    return f"{flow.packets} packets{way}{ends}{ago} (dpctl/dump-flows)"


# ------------------------------------------------------------------------------------------------------------ from VMs


def _from_vms(
    facts: Facts, switch: Switch, flows: Iterable[MegaFlow], places: Mapping[str, Collection[int]]
) -> Iterator[Found]:
    numbers = {port.number: name for name, port in (switch.ports or {}).items() if port.number}
    sent = dict[str, list[MegaFlow]]()
    for flow in flows:
        if flow.drops and flow.vtep is None and (name := numbers.get(flow.port, flow.port)) in facts.wanted.vms:
            sent.setdefault(name, []).append(flow)
    counted = {each.port: each.packets for each in grown(facts) if each.reason is Reason.SPOOFED and each.packets}
    told = set()
    for name in dict.fromkeys((*counted, *sent)):
        if (vm := facts.wanted.vms.get(name)) is None:
            continue
        every = sent.get(name, [])
        now = [flow for flow in every if flow.fresh(switch.watched)]
        spoofs = [flow for flow in every if flow.source != vm.mac]
        # The threads that add packets to the flows' counters may be late; the flows of the datapath are not.
        spoofed = 0 if spoofs and not any(flow in now for flow in spoofs) else counted.get(name, 0)
        yield from _from_vm(facts, vm, spoofed, now, places)
        if any(flow.to and not _for_many(flow.to) for flow in now):
            told.add(vm.vni)
    yield from _unknown(facts, told)


def _from_vm(
    facts: Facts, vm: VmPort, spoofed: int, flows: Iterable[MegaFlow], places: Mapping[str, Collection[int]]
) -> Iterator[Found]:
    foreign = {flow.source: flow for flow in flows if flow.source and flow.source != vm.mac}
    if spoofed or foreign:
        sources = f"it sends from {some(sorted(foreign))}" if foreign else "the MAC from which it sends was not seen"
        seen = f"{spoofed} packets while we looked (the flow's counter)" if spoofed else _seen(min(foreign.items())[1])
        yield Found(
            Cause.SPOOFED,
            f"{vm.name} sends from a MAC that is not its own, and these frames are dropped.",
            (f"{sources}; the overlay file has {vm.mac}", seen), f"in the guest: `ip link`; {_EDIT}", vm.name,
        )  # fmt: skip
    unknown = dict[str, MegaFlow]()
    for flow in flows:
        if flow.source != vm.mac or flow.to in (None, vm.mac) or _for_many(flow.to):
            continue
        if vnis := places.get(flow.to):
            yield _lost(vm, flow, flow.to, vnis)
        else:
            unknown[flow.to] = flow
    if unknown:
        yield Found(
            Cause.UNKNOWN_MAC,
            f"{vm.name} sends to {some(sorted(unknown))}, which is nowhere in the overlay file: these frames are "
            "dropped.",
            tuple(_seen(unknown[mac]) for mac in sorted(unknown)[:_SHOWN]),
            "if it exists, add it to the overlay file ([[vm]], [[remote]]); then `ovs-hotswap overlay apply`", vm.name,
        )  # fmt: skip


def _for_many(mac: str) -> bool:
    """Whether a MAC is that of a group. What is for all of a VNI is dropped where the VM is alone in it."""
    return int(mac[:2], 16) & 1 == 1


def _lost(vm: VmPort, flow: MegaFlow, mac: str, vnis: Collection[int]) -> Found:
    """The finding about frames from the VM's own MAC to a MAC of ``vnis`` that are dropped."""
    if vm.vni in vnis:
        return Found(
            Cause.FLOWS_DROP, f"What {vm.name} sends to {mac} is dropped, though both are in VNI {vm.vni}.",
            (_seen(flow),), f"`ovs-hotswap diagnose {vm.name} --to {mac}` shows where", vm.name,
        )  # fmt: skip
    others = some([str(each) for each in sorted(vnis)])
    return Found(
        Cause.WRONG_VNI,
        f"{vm.name}, in VNI {vm.vni}, sends to {mac}, which is in VNI {others}: these frames are dropped.",
        (_seen(flow),), _EDIT, vm.name,
    )  # fmt: skip


def _places(facts: Facts) -> dict[str, set[int]]:
    """The VNIs of every MAC of the overlay file."""
    found = dict[str, set[int]]()
    for vm in facts.wanted.vms.values():
        if vm.vni is not None and vm.mac is not None:
            found.setdefault(vm.mac, set()).add(vm.vni)
    for remote in facts.wanted.remotes:
        found.setdefault(remote.mac, set()).add(remote.vni)
    return found


def _unknown(facts: Facts, told: Collection[int | None]) -> Iterator[Found]:
    """Frames to unknown MACs that no flow of the datapath shows any longer: the counter has their VNI alone. ``told``:
    the VNIs of which a flow has told more."""
    for each in grown(facts):
        if each.reason is Reason.UNKNOWN_MAC and each.packets and each.vni not in told:
            yield Found(
                Cause.UNKNOWN_MAC,
                f"A VM in VNI {each.vni} sends to a MAC that is nowhere in this VNI by the overlay file.",
                (f"{each.packets} packets while we looked (the flow's counter)",), _EDIT,
            )  # fmt: skip

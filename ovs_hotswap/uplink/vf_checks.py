"""Judges the VFs of the instances: their settings in the PF's driver, and who has them open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ovs_hotswap.config import Config
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.uplink.pci import Holder, PciBus, Place
from ovs_hotswap.uplink.vf import Value, Vf, command, shown
from ovs_hotswap.uplink.vf_care import VfChange, parts

LINK, SPOOF, TRUST, VLAN = "VF link", "spoof checking", "trust", "VLAN"
HOLDER, NUMBER, SETTINGS = "VF holder", "VF number", "VF settings"
Read = Callable[[str, int], Vf | None]


@dataclass(frozen=True, slots=True)
class VfFacts:
    """A VF of ``side``, of the NIC ``nic`` (0 or 1). ``vf`` is ``None`` if its settings are not reported. ``runs``: the
    instance of the side runs. ``wanted``: what [uplink.vfs] says. ``configured``: its number in [uplink]. ``left``:
    what an instance's start has changed and nothing has put back. ``holders`` has no instance of the side."""

    side: Side
    nic: int
    place: Place
    vf: Vf | None
    runs: bool = False
    wanted: Mapping[str, Value] | None = None
    configured: int | None = None
    left: tuple[VfChange, ...] = ()
    holders: tuple[Holder, ...] = ()

    @property
    def name(self) -> str:
        address = "" if self.place.address is None else f" ({self.place.address})"
        return f"instance {self.side}'s {self.place}{address}"

    @property
    def used(self) -> Vf | None:
        """The settings with which the instance runs, or will run."""
        return self.vf if self.vf is None or self.runs else self.vf.having(self.wanted or {})

    def hint(self, name: str, value: Value) -> str:
        """The command that sets it, without a reset under a running instance."""
        typed = f"`{command(self.place.device, self.place.number, name, value)}`"
        return f"when instance {self.side} does not run, because the VF is reset: {typed}" if self.runs else typed


def look(
    config: Config,
    bus: PciBus,
    read: Read,
    pids: Mapping[Side, int | None],
    left: Callable[[Side], tuple[VfChange, ...]],
) -> list[VfFacts]:
    """Look at the VFs of both sides. ``pids``: the ovs-vswitchd of each side. Raises UplinkError."""
    found = []
    for side in Side:
        own = {pids[side]} if config.uplink.both_open else set(pids.values())  # or it is handed over
        for nic, part in enumerate(parts(config, side, bus)):
            place = part.place
            if place is None:
                continue
            holders = () if place.address is None else bus.holders(place.address)
            found.append(VfFacts(
                side, nic, place, read(place.device, place.number), pids[side] is not None,
                config.uplink.vfs.wanted(side), config.uplink.nics[nic].vf(side),
                tuple(each for each in left(side) if each.place == place) if pids[side] is None else (),
                tuple(each for each in holders if each.pid not in own),
            ))  # fmt: skip
    return found


def judge(facts: Collection[VfFacts], macs: Mapping[Side, str], sides: Collection[Side]) -> Iterator[Finding]:
    """Judge the VFs of ``sides``. ``macs``: those of the VTEP, from which the instances send, as far as they are
    known."""
    for each in facts:
        if each.side in sides:
            yield from _open(each)
            yield from _settings(each, macs.get(each.side))
            yield from _vlan(each, [one for one in facts if one.nic == each.nic], sides)


def _open(each: VfFacts) -> Iterator[Finding]:
    if each.configured is not None and each.configured != each.place.number:
        yield Finding(NUMBER, Severity.ERROR, f"{each.name} is configured as VF {each.configured}",
                      f"correct vf_{each.side} in [uplink]: `ip link show {each.place.device}`", each.name)  # fmt: skip
    for holder in each.holders:
        yield Finding(
            HOLDER, Severity.ERROR, f"{each.name} is open in {holder}, so instance {each.side} cannot have it",
            f"`ps -fp {holder.pid}`; an Open vSwitch that takes every device of vfio-pci is given its own alone by "
            f"`ovs-vsctl set Open_vSwitch . other_config:dpdk-extra=\"-a ADDRESS\"`, and a restart", each.name,
        )  # fmt: skip


def _settings(each: VfFacts, mac: str | None) -> Iterator[Finding]:
    vf, device = each.used, each.place.device
    if vf is None or each.vf is None:
        yield Finding(SETTINGS, Severity.UNKNOWN, f"the settings of {each.name} are not reported",
                      f"`ip -d link show {device}`", each.name)  # fmt: skip
        return
    if vf.link_state == "disable":
        yield Finding(LINK, Severity.ERROR, f"{each.name} is disabled", each.hint("link_state", "auto"), each.name)
    if mac is not None and vf.mac is not None and vf.mac.lower() != mac.lower():
        if vf.spoof_check:
            text = f"{each.name} has MAC {vf.mac}, sends from the VTEP's {mac}, and the NIC drops that (spoof checking)"
            yield Finding(SPOOF, Severity.WARNING, text, each.hint("spoof_check", value=False), each.name)
        if vf.trust is False:
            text = f"{each.name} has MAC {vf.mac} and is not trusted, so it cannot receive for the VTEP's {mac}"
            yield Finding(TRUST, Severity.WARNING, text, each.hint("trust", value=True), each.name)
    for name, value in each.vf.differing(each.wanted or {}).items() if each.runs else ():
        now = each.vf.value(name)
        text = f"{each.name} has {name} {'unknown' if now is None else shown(name, now)}, and [uplink.vfs] says "
        yield Finding(SETTINGS, Severity.WARNING, text + shown(name, value), each.hint(name, value), each.name)
    for change in each.left:
        was = shown(change.name, change.before)
        text = f"{each.name}: {change.name} was {was} before an instance was started, and has not been put back"
        yield Finding(SETTINGS, Severity.WARNING, text, f"`ovs-hotswap instance stop {each.side}`", each.name)


def _vlan(each: VfFacts, both: Iterable[VfFacts], sides: Collection[Side]) -> Iterator[Finding]:
    """The finding if the PF binds the VFs of one NIC to different VLANs. If both are judged, it is reported for one of
    them: if possible, for one whose instance does not run."""
    other = next((one for one in both if one.side is each.side.other), None)
    if other is None or each.used is None or other.used is None:
        return
    if other.side in sides and (each.runs, each.side) > (other.runs, other.side):
        return
    own, others = each.used.vlan, other.used.vlan
    if own is not None and others is not None and own != others:
        text = f"{each.name} is in {_words(own)}, and {other.name} in {_words(others)}: they reach different hosts"
        yield Finding(VLAN, Severity.ERROR, text, each.hint("vlan", others), each.name)


def _words(vlan: int) -> str:
    return f"VLAN {shown('vlan', vlan)}" if vlan else "no VLAN"

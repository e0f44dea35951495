"""Faults of single VMs: who has the rings, whether the guest and the switch work on them, and the VM's port. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ovs_hotswap.backends import OwnerCertainty, VmStatus
from ovs_hotswap.counters.values import PortCounters
from ovs_hotswap.diagnose.drop_counts import overflows
from ovs_hotswap.diagnose.facts import Facts, Guest, Port, Switch, VmPort
from ovs_hotswap.diagnose.found import Cause, Found
from ovs_hotswap.host.rings import RingSample, fault
from ovs_hotswap.model import Life, Side

_ALLOWS = {"NO_RECV": "receive", "NO_FWD": "forward"}  # ovs-ofctl(8), mod-port
_FEW = 16
"""Buffers that a switch may be unable to use: a long frame needs several (virtio 1.2, 5.1.6.4), and DPDK takes none."""


def judge(facts: Facts, asked: str | None = None) -> Iterator[Found]:
    """The findings about every VM. ``asked``: the VM about which the user asks: it is expected to run."""
    lost = overflows(facts)
    for name, guest in (facts.guests or {}).items():
        yield from _guest(facts, guest, lost.get(name, 0), named=name == asked)
    if facts.switch is not None and facts.switch.ports is not None:
        for name, vm in facts.wanted.vms.items():
            guest_or_none = (facts.guests or {}).get(name)
            if guest_or_none is None or guest_or_none.status.to_serve:
                yield from _port(facts.switch, vm, guest_or_none, overlay=facts.wanted.overlay)


def _guest(facts: Facts, guest: Guest, lost: int, *, named: bool) -> Iterator[Found]:
    status, name = guest.status, guest.status.name
    show = f"`ovs-hotswap vm show {name}`"
    if status.quarantine:
        yield Found(
            Cause.QUARANTINE, f"{name} is in quarantine: no instance serves it.", (f"reason: {status.quarantine}",),
            f"`ovs-hotswap vm release {name}` ends it", name,
        )  # fmt: skip
    elif status.without_broker:
        yield Found(
            Cause.NOT_PROTECTED,
            f"A switch serves {name} without the broker: nothing takes it over, and its rings cannot be seen.",
            (status.absent.text if status.absent else "its QEMU is connected with a switch",),
            f"`ovs-hotswap adopt {name}`", name,
        )  # fmt: skip
    elif not status.has_guest:
        if named:
            why = status.absent.text if status.absent else "the broker has no connection to its QEMU"
            yield Found(Cause.NO_GUEST, f"{name} has no QEMU that is connected.", (why,),
                        f"start the VM, or see its log; then {show}", name)  # fmt: skip
    elif not any(ring.started for ring in status.rings):
        if named:
            yield Found(
                Cause.NO_DRIVER,
                f"The guest {name} does not use its network device: it is paused, boots, or its driver is not loaded.",
                (f"none of its {len(status.rings)} rings is started",),
                f"the state of the VM (`virsh domstate {name}`), its console; then {show}", name,
            )  # fmt: skip
    elif facts.settled and facts.active is not None and not status.confirmed_on(facts.active):
        yield _owner(status, facts.active, show)
    else:
        yield from _rings(facts, guest, lost, show)


def _owner(status: VmStatus, active: Side, show: str) -> Found:
    name = status.name
    if status.owner is None or status.certainty is OwnerCertainty.NOBODY:
        parked = [str(side) for side in Side if status.switches[side].parked]
        where = f"; it is parked on {' and '.join(parked)}" if parked else ""
        last = f"last note of the broker: {status.last_error}" if status.last_error else "the broker has no note of why"
        return Found(
            Cause.NO_OWNER, f"No instance has the rings of {name}, so nothing passes.",
            (f"certainty {status.certainty}{where}", last),
            "`ovs-hotswap broker reload` gives VMs without an owner to the active side; then " + show, name,
        )  # fmt: skip
    cause = Cause.OTHER_OWNER if status.owner != active else Cause.NO_OWNER
    text = (f"{name} is served by {status.owner}, and {active} is active: it reaches only VMs with the same owner."
            if status.owner != active else
            f"It is not certain that {active} has the rings of {name}.")  # fmt: skip
    return Found(
        cause, text, (f"owner {status.owner}, certainty {status.certainty}",),
        f"the watchdog returns it to {active}; without one: `ovs-hotswap watch run`; then {show}", name,
    )  # fmt: skip


def _rings(facts: Facts, guest: Guest, lost: int, show: str) -> Iterator[Found]:
    switch, name = facts.switch, guest.status.name
    hung = list(_hung(facts, guest, lost))
    if hung:
        yield Found(
            Cause.GUEST_HUNG,
            f"The guest {name} takes nothing: it hangs, is paused, or its device is down. What is for it is dropped.",
            tuple(hung), f"see the VM itself: `virsh domstate {name}`, its console; then {show}", name,
        )  # fmt: skip
    port = (switch.ports or {}).get(name) if switch is not None else None
    down = port is not None and "PORT_DOWN" in port.flags  # then no thread polls it
    if switch is None or switch.life is not Life.RUNS or guest.stopped or down:
        return  # that is a finding of its own
    then = {each.place: each for each in guest.before}
    faults = [(each, why) for each in guest.after if each.place in then and (why := fault(then[each.place], each))]
    if faults:
        named = "; ".join(f"ring {each.ring}: {why}" for each, why in faults)
        text = (
            f"The guest {name} has frames to send, and no switch takes them, though {guest.status.owner} is its owner "
            "by the record: its ring was left parked, or its queue is not polled."
            if all(each.fits for each, _ in faults) else
            f"The indices of a ring of {name} do not fit each other, so it cannot be served: its guest is faulty, or "
            "two switches have written to it."
        )  # fmt: skip
        yield Found(
            Cause.RING_NOT_SERVED, text, (f"for {facts.seconds:.1f} s: {named}", *_polled(switch, name)),
            f"take the guest's device down and up; or `ovs-hotswap vm quarantine {name}`, then `ovs-hotswap vm release "
            f"{name}`: its owner gets the rings again",
            name,
        )  # fmt: skip


def _polled(switch: Switch, name: str) -> tuple[str, ...]:
    port = (switch.ports or {}).get(name)
    return () if port is None else (f"PMD threads poll {port.queues} of its queues (dpif-netdev/pmd-rxq-show)",)


def _hung(facts: Facts, guest: Guest, lost: int) -> Iterator[str]:
    if guest.stopped:
        yield f"its QEMU, process {guest.status.qemu}, is stopped (state T)"
        return
    then = {each.place: each for each in guest.before}
    rings = [each for each in guest.after if not each.transmits and each.enabled and each.place in then]
    full = [each for each in rings if _full(then[each.place], each, lost)]
    if full and len(full) == len(rings):
        buffers = ", ".join(f"ring {each.ring}: {each.outstanding} free buffers of {each.size}" for each in full)
        yield f"for {facts.seconds:.1f} s it has given no buffer to receive into ({buffers})"
        if lost:
            yield f"{lost} packets for it were dropped in this time, because its ring is full"


def _full(then: RingSample, now: RingSample, lost: int) -> bool:
    """Whether a receive ring has no room, and the guest has made none in the time between."""
    return now.avail == then.avail and (now.outstanding == 0 or (lost > 0 and now.outstanding < _FEW))


# --------------------------------------------------------------------------------------------------------------- ports


def _port(switch: Switch, vm: VmPort, guest: Guest | None, *, overlay: bool) -> Iterator[Found]:
    ports, name = switch.ports or {}, vm.name
    port, counted = ports.get(name), _counted(switch, name)
    started = guest is not None and any(ring.started for ring in guest.status.rings)
    if port is None or not port.present:
        error = counted.error if counted else None
        again = "`ovs-hotswap overlay apply`" if overlay else f"`{switch.vsctl('list Interface', name)}`"
        yield Found(
            Cause.PORT_MISSING, f"Instance {switch.side} has no port for {name}, so nothing passes.",
            (f"the switch says: {error}" if error else "the datapath does not have it (dpctl/show)",),
            f"{again}; the reason is in {switch.log}", name,
        )  # fmt: skip
        return
    yield from state(switch, port, counted, name, name if guest is not None else None, link=started)
    if started and not port.queues and "PORT_DOWN" not in port.flags:
        yield Found(
            Cause.NOT_POLLED, f"No PMD thread polls the port of {name}, so nothing that it sends is seen.",
            ("dpif-netdev/pmd-rxq-show has no queue of it that is enabled",),
            f"`{switch.appctl('dpif-netdev/pmd-rxq-rebalance')}`", name,
        )  # fmt: skip


def state(switch: Switch, port: Port, counted: PortCounters | None, what: str, vm: str | None, *, link: bool = True,
          cause: Cause | None = None) -> Iterator[Found]:  # fmt: skip
    """The findings about a port that is there and passes nothing. ``link``: whether it is to have a link. ``cause``:
    what a port that is down is called."""
    down = f"The port of {what} is down, so nothing passes."
    if "PORT_DOWN" in port.flags or (counted is not None and counted.admin_up is False):
        up = switch.ofctl(port.bridge, "mod-port", port.name, "up") if port.bridge else switch.vsctl(
            "list Interface", port.name)  # fmt: skip
        yield Found(cause or Cause.PORT_DOWN, down, ("it was taken down by a command (PORT_DOWN)",), f"`{up}`", vm)
    elif link and counted is not None and counted.link_up is False:
        mend = f"is its device up in the guest? `ovs-hotswap vm show {vm}`" if vm is not None else (
            "the cable, or the virtual function: `ovs-hotswap doctor --section devices`")  # fmt: skip
        yield Found(cause or Cause.PORT_DOWN, down, ("it has no link (Interface.link_state)",), mend, vm)
    for flag in sorted(port.flags & _ALLOWS.keys()):
        does = "sends nothing to" if flag == "NO_FWD" else "takes nothing from"
        yield Found(
            Cause.PORT_BLOCKED, f"Instance {switch.side} {does} the port of {what}: an OpenFlow flag forbids it.",
            (f"it has the flag {flag} (ovs-ofctl dump-ports-desc)",),
            f"`{switch.ofctl(port.bridge, 'mod-port', port.name, _ALLOWS[flag])}`", vm,
        )  # fmt: skip


def _counted(switch: Switch, name: str) -> PortCounters | None:
    return None if switch.after is None else (switch.after.ports or {}).get(name)

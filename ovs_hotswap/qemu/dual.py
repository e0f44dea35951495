"""The back-end mode ``qemu-dual``: each VM's QEMU holds both instances' connections and swaps them (``qemu-patches``).

Side a is the netdev's ``chardev``, side b its ``standby-chardev``. QEMU parks the back end that connects beside the
active one, gives the rings of a dead back end to the other by itself, and keeps two back ends from using one ring;
nothing of that is decided here. There are no capture rings: frames that arrive for a VM during its swap are lost. A VM
in quarantine is kept from both switches by having no port on them (``held``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ovs_hotswap.backends import (
    ABSENT_SWITCH,
    MoveResult,
    OwnerCertainty,
    RingStatus,
    Switches,
    SwitchRole,
    SwitchStatus,
    Undelivered,
    VmStatus,
)  # fmt: skip
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.qemu import answers
from ovs_hotswap.qemu.answers import Netdev, back_ends
from ovs_hotswap.qemu.held import Held, VmPorts
from ovs_hotswap.qemu.monitor import Answer, Command, Monitors
from ovs_hotswap.waiting import wait_until

QUERY = Command("query-vhost-user-backends")
_SLOTS = {Side.A: "first", Side.B: "second"}
_SIDES = {slot: side for side, slot in _SLOTS.items()}
_CERTAINTY = {"served": OwnerCertainty.OWNS, "unowned": OwnerCertainty.CUT, "down": OwnerCertainty.NOBODY}
_BROKER_ONLY = frozenset({"absent", "capture_bytes"})
_PARKED_S = 5.0
_GONE_S = 3.0
_POLL_S = 0.01
# virtio 1.2, 2.7: no ring has more entries. QEMU does not report the size.
_MOST_ENTRIES = 32768


class DualQemu:
    """The back ends of all VMs, by asking each VM's QEMU.

    ``names`` returns the VMs that exist. ``netdev_of`` returns the id of a VM's netdev, or ``None`` if it has only one.
    ``fence_ms`` is how long, in milliseconds, a switch may take to release a VM's rings, and to take them.
    """

    def __init__(
        self,
        monitors: Monitors,
        names: Callable[[], Sequence[str]],
        netdev_of: Callable[[str], str | None],
        fence_ms: int,
        held: Held,
        ports: VmPorts,
    ) -> None:
        self._monitors, self._names, self._netdev_of, self._fence_ms = monitors, names, netdev_of, fence_ms
        self._held, self._ports = held, ports
        self._taken: dict[str, dict[int, int | None]] = {}

    # ------------------------------------------------------------------------------------------------------ looking

    def vms(self, *, read: bool = True) -> list[VmStatus]:
        del read  # QEMU reads its own memory
        return self._look(self._names())

    def vm(self, name: str) -> VmStatus:
        if name not in self._names():
            raise _unknown(name)
        answer = self._monitors.ask({name: QUERY})[name]
        if answer.error is not None and answer.pid is not None:
            raise answer.error
        return self._status(name, answer, self._held.reasons().get(name))

    def _look(self, names: Sequence[str]) -> list[VmStatus]:
        answers, held = self._monitors.ask(dict.fromkeys(names, QUERY)), self._held.reasons()
        return [self._status(name, answer, held.get(name)) for name, answer in answers.items()]

    def _status(self, name: str, answer: Answer, quarantine: str | None) -> VmStatus:
        return in_quarantine(self._alone(name, answer), quarantine)

    def _alone(self, name: str, answer: Answer) -> VmStatus:
        """Return the status of a VM without regard to quarantine.

        If its QEMU does not run, there is no guest. If its QEMU runs and gives no valid answer, nothing is known: the
        VM then counts as neither owned nor parked, and no other VM is affected.
        """
        if answer.error is not None:
            return vm_status(name, answer.pid, None, answer.error.message)
        try:
            found = chosen(name, back_ends(name, answer.value), self._netdev_of(name))
        except BrokerError as error:
            return vm_status(name, answer.pid, None, error.message)
        return vm_status(name, answer.pid, found, None)

    # ------------------------------------------------------------------------------------------------------ parking

    def park(self, name: str, side: Side) -> None:
        error = self.park_many([name], side).get(name)
        if error is not None:
            raise error

    def park_many(self, names: Sequence[str], side: Side) -> dict[str, HotswapError]:
        """Wait until the QEMUs have parked the back ends, which they do by themselves."""
        known = set(self._names())
        errors: dict[str, HotswapError] = {name: _unknown(name) for name in names if name not in known}
        late = {name: _late(name, side, "is not parked yet") for name in names if name in known}

        def none_is_late() -> bool:
            vms = self._look(list(late))
            late.clear()
            for vm in vms:
                if (error := _unparkable(vm, side)) is not None:
                    errors[vm.name] = error
                elif vm.has_guest and not vm.reachable(side):
                    why = "is not parked yet" if vm.switches[side].connected else "is not connected"
                    late[vm.name] = _late(vm.name, side, why)
            return not late

        wait_until(none_is_late, _PARKED_S, poll_s=_POLL_S)
        return {**errors, **late}

    def unpark(self, name: str, side: Side) -> None:
        """Do nothing: a back end stays parked as long as it is connected."""

    def quarantine(self, name: str, reason: str) -> VmStatus:
        """Put a VM in quarantine: no instance that is started or programmed from now on has a port for it.

        Raises SwitchError if an instance that runs keeps its port; the VM is then in quarantine only if it was before.
        """
        if name not in self._names():
            raise _unknown(name)
        before = self._held.reasons().get(name)
        self._held.put(name, reason)
        try:
            self._ports.remove(name)
        except HotswapError:
            if before is None:
                self._held.take(name)
            raise
        return self._gone(name)

    def _gone(self, name: str) -> VmStatus:
        """Return the VM after its QEMU has seen both connections end, or as it is after ``_GONE_S`` seconds."""
        return wait_until(lambda: self._look([name])[0], _GONE_S, done=lambda vm: vm.owner is None, poll_s=_POLL_S)

    def release(self, name: str) -> None:
        if self._held.take(name):
            self._ports.add(name)

    # ------------------------------------------------------------------------------------------------------- moving

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        return [list(names)] if names else []

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        del names, to
        return []

    def disarm(self, names: Sequence[str]) -> None:
        pass

    def move(self, name: str, to: Side) -> MoveResult:
        moved, error = self.move_many([name], to)
        if error is not None:
            raise error
        return moved[0]

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[MoveResult], HotswapError | None]:
        """Move the VMs one after the other. All of them wait for a switch's single message thread anyway."""
        del threads
        before = {vm.name: vm for vm in self._look(names)}
        moved: list[MoveResult] = []
        for name, vm in before.items():
            if not vm.has_guest:
                moved.append(MoveResult(name, None, 0.0, 0.0, 0.0))
                continue
            try:
                _refuse(vm)
            except BrokerError as error:
                return moved, error
            arguments = {"netdev": vm.netdev, "to": _SLOTS[to], "timeout-ms": self._fence_ms}
            answer = self._monitors.ask({name: Command("vhost-user-swap", arguments, changes=True)})[name]
            if answer.error is not None:
                return moved, answer.error
            self._taken[name] = {ring.index: ring.used for ring in vm.rings}
            try:
                swap = answers.swap(name, answer.value)
            except BrokerError as error:
                return moved, StateUnknown(error.message, hint=f"`ovs-hotswap vm show {name}`")
            if swap.outcome == "unconfirmed":
                return moved, StateUnknown(f"vm {name}: switch {to} was given the rings and has not confirmed that",
                                           hint=f"`ovs-hotswap vm show {name}`")  # fmt: skip
            moved.append(MoveResult(name, to, swap.give_us, swap.take_us, swap.time_us))
        return moved, None

    def unserved(self, names: Sequence[str]) -> list[str]:
        return [vm.name for vm in self._look(names) if _waits(vm, self._taken.get(vm.name, {}))]

    def undelivered_many(self, names: Sequence[str]) -> Iterator[Undelivered]:
        return (Undelivered(name, []) for name in names)

    def reload(self) -> list[str]:
        """Do nothing: each QEMU knows its active side, and the intent is read whenever the VMs are asked for."""
        return []


def _unknown(name: str) -> BrokerError:
    return BrokerError(f"no vm {name!r}", hint="`ovs-hotswap vm list`")


def _unparkable(vm: VmStatus, side: Side) -> BrokerError | None:
    """Return why a VM will not be parked however long one waits, or ``None``."""
    try:
        _refuse(vm)
    except BrokerError as error:
        return error
    return BrokerError(f"vm {vm.name} cannot be parked on {side}: {vm.unparkable}") if vm.unparkable else None


def _late(name: str, side: Side, why: str) -> BrokerError:
    return BrokerError(f"vm {name}: switch {side} {why}")


def _refuse(vm: VmStatus) -> None:
    """Raise BrokerError for a VM in quarantine, and for one whose QEMU runs but of which nothing is known."""
    if vm.quarantine:
        raise BrokerError(f"vm {vm.name} is in quarantine: {vm.quarantine}", hint=f"`ovs-hotswap vm release {vm.name}`")
    if vm.has_guest and vm.netdev is None:
        raise BrokerError(vm.last_error or f"vm {vm.name}: nothing is known of its back ends")


def _waits(vm: VmStatus, before: Mapping[int, int | None]) -> bool:
    """Whether a transmit ring has pending entries and its used index is still the one in ``before``."""
    return any(
        ring.transmits and ring.available != ring.used and ring.used == before.get(ring.index) for ring in vm.rings
    )


def chosen(vm: str, netdevs: Sequence[Netdev], wanted: str | None) -> Netdev:
    """Return the netdev of a VM: the one called ``wanted``, or the only one. Raises BrokerError if there is none."""
    names = [each.netdev for each in netdevs]
    for each in netdevs:
        if each.netdev == wanted or (wanted is None and len(netdevs) == 1):
            return each
    text = f"no netdev {wanted!r}" if wanted is not None else "several netdevs" if names else "no netdev"
    raise BrokerError(
        f"vm {vm}: its QEMU has {text} with two back ends{': ' + ', '.join(names) if names else ''}",
        hint="-netdev vhost-user,…,standby-chardev=…, and `netdev` of [qemu] in the configuration",
    )


def in_quarantine(vm: VmStatus, why: str | None) -> VmStatus:
    """Return the status with the reason for the quarantine, unless ``why`` is ``None``.

    A side that is still the owner stays so; a side that had the rings and does not serve the VM any longer is left out.
    """
    if why is None:
        return vm
    if vm.certainty is not OwnerCertainty.OWNS:
        vm = replace(vm, owner=None, home=None)
    return replace(vm, quarantine=why, unparkable=f"in quarantine: {why}")


def vm_status(name: str, pid: int | None, found: Netdev | None, error: str | None) -> VmStatus:
    """Return a VM's status from QEMU's VhostUserBackends (qapi/net.json of the series).

    Features, offers and memory are left to QEMU, which refuses a standby that lacks what the guest uses, with a reason.
    ``found`` is ``None`` if QEMU does not run, or if nothing is known about its back ends (``pid`` is given then).
    """
    owner = None if found is None or found.state == "down" else _SIDES[found.active_slot]
    return VmStatus(
        name=name,
        qemu=pid,
        netdev=None if found is None else found.netdev,
        owner=owner,
        certainty=_certainty(found, pid),
        home=owner,
        features=None,
        feature_names=(),
        memory_bytes=0,
        memory_regions=0,
        unparkable=None if found is None or found.standby_state != "refused" else str(found.reason),
        switches=Switches(*(_switch(found, side) for side in Side)),
        rings=() if found is None else tuple(
            RingStatus(ring.index, _MOST_ENTRIES, True, ring.enabled, ring.available, ring.used)
            for ring in found.rings
        ),
        moves=0 if found is None else found.swaps,
        last_move_us=None if found is None or not found.swaps else found.last_swap_us,
        last_error=error,
        unreported=_BROKER_ONLY,
    )  # fmt: skip


def _certainty(found: Netdev | None, pid: int | None) -> OwnerCertainty:
    if found is not None:
        return _CERTAINTY[found.state]
    return OwnerCertainty.NOBODY if pid is None else OwnerCertainty.UNKNOWN


def _switch(found: Netdev | None, side: Side) -> SwitchStatus:
    if found is None:
        return ABSENT_SWITCH
    if _SIDES[found.active_slot] is side:
        pid, role, connected = found.active_pid, SwitchRole.OWNER, bool(found.active_pid)
    else:
        pid, connected = found.standby_pid, found.standby_state != "absent"
        role = SwitchRole.PARKED if found.standby_state == "parked" else SwitchRole.IDLE
    if not connected:
        return ABSENT_SWITCH
    return replace(ABSENT_SWITCH, connected=True, pid=pid or None, role=role, parked=role is SwitchRole.PARKED)

"""The back-end mode ``qemu-dual``: each VM's QEMU holds both instances' connections and swaps them (``qemu-patches``).

Side a is the netdev's ``chardev``, side b its ``standby-chardev``. QEMU parks whoever connects beside the active back
end, gives a dead one's rings to the other by itself, and keeps two of them from one ring; nothing of that is decided
here. There are no capture rings: what arrives for a VM while it is swapped is lost, as much as comes in that time.
A VM in quarantine is kept from both by their having no port for it (``held``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ovs_hotswap.backends import Document
from ovs_hotswap.errors import BrokerError, HotswapError, StateUnknown
from ovs_hotswap.model import MessageThread, Side
from ovs_hotswap.qemu import answers
from ovs_hotswap.qemu.answers import back_ends
from ovs_hotswap.qemu.held import Held, VmPorts
from ovs_hotswap.qemu.monitor import Answer, Command, Monitors

QUERY = Command("query-vhost-user-backends")
_SLOTS = {Side.A: "first", Side.B: "second"}
_SIDES = {slot: side for side, slot in _SLOTS.items()}
_CERTAINTY = {"served": "owns", "unowned": "cut", "down": "nobody"}
_PARKED_S = 5.0
_GONE_S = 3.0
_POLL_S = 0.01
# virtio 1.2, 2.7: no ring has more entries. QEMU does not tell the size.
_MOST_ENTRIES = 32768


class NotParked(BrokerError):
    """The side is on its way to be parked."""


class DualQemu:
    """``names`` tells the VMs there are. ``netdev_of`` is the id of a VM's netdev, ``None`` where it has but one.
    ``fence_ms``: how long a switch may take to let go of, or take, a VM's rings."""

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
        self._taken: dict[str, dict[int, int]] = {}

    # ------------------------------------------------------------------------------------------------------ looking

    def vms(self, *, read: bool = True) -> list[Document]:
        del read  # QEMU reads its own memory
        return self._documents(self._names())

    def vm(self, name: str) -> Document:
        if name not in self._names():
            raise BrokerError(f"no vm {name!r}", hint="`ovs-hotswap vm list`")
        answer = self._monitors.ask({name: QUERY})[name]
        if answer.error is not None and answer.pid is not None:
            raise answer.error
        return self._document(name, answer, self._held.reasons().get(name))

    def _documents(self, names: Sequence[str]) -> list[Document]:
        answers, held = self._monitors.ask(dict.fromkeys(names, QUERY)), self._held.reasons()
        return [self._document(name, answer, held.get(name)) for name, answer in answers.items()]

    def _document(self, name: str, answer: Answer, quarantine: str | None) -> Document:
        return in_quarantine(self._alone(name, answer), quarantine)

    def _alone(self, name: str, answer: Answer) -> Document:
        """Of a VM whose QEMU does not run there is no guest. Of one that runs and does not answer, or not with what it
        should, nothing is known: it is neither owned nor parked, and that is this VM's affair alone."""
        if answer.error is not None:
            return document(name, answer.pid, None, answer.error.message)
        try:
            found = chosen(name, back_ends(name, answer.value), self._netdev_of(name))
        except BrokerError as error:
            return document(name, answer.pid, None, error.message)
        return document(name, answer.pid, found, None)

    # ------------------------------------------------------------------------------------------------------ parking

    def park(self, name: str, side: Side) -> None:
        """QEMU parks by itself; this waits for it."""
        for attempt in Retrying(retry=retry_if_exception_type(NotParked), wait=wait_fixed(_POLL_S),
                                stop=stop_after_delay(_PARKED_S), reraise=True):  # fmt: skip
            with attempt:
                vm = self.vm(name)
                _refuse(vm)
                if vm["unparkable"]:
                    raise BrokerError(f"vm {name} cannot be parked on {side}: {vm['unparkable']}")
                if vm["qemu"] is not None and vm["owner"] != side and not vm["switches"][side]["parked"]:
                    connected = vm["switches"][side]["connected"]
                    why = "is not parked yet" if connected else "is not connected"
                    raise NotParked(f"vm {name}: switch {side} {why}")

    def unpark(self, name: str, side: Side) -> None:
        """A back end is parked as long as it is connected."""

    def quarantine(self, name: str, reason: str) -> Document:
        """No instance that is started or programmed from now on has a port for it. Raises SwitchError if one that runs
        keeps its port, and then it is in quarantine only if it was before."""
        if name not in self._names():
            raise BrokerError(f"no vm {name!r}", hint="`ovs-hotswap vm list`")
        before = self._held.reasons().get(name)
        self._held.put(name, reason)
        try:
            self._ports.remove(name)
        except HotswapError:
            if before is None:
                self._held.take(name)
            raise
        return self._gone(name)

    def _gone(self, name: str) -> Document:
        """The VM when its QEMU has seen both connections end, or as it is after a while."""
        end = time.monotonic() + _GONE_S
        while (vm := self._documents([name])[0])["owner"] is not None and time.monotonic() < end:
            time.sleep(_POLL_S)
        return vm

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

    def move(self, name: str, to: Side) -> Document:
        moved, error = self.move_many([name], to)
        if error is not None:
            raise error
        return moved[0]

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[Document], HotswapError | None]:
        """One after the other, though each has a QEMU of its own: what they all wait for is a switch's one thread."""
        del threads
        before = {vm["name"]: vm for vm in self._documents(names)}
        moved: list[Document] = []
        for name, vm in before.items():
            if vm["qemu"] is None:
                moved.append({"vm": name, "owner": None, "give_us": 0.0, "take_us": 0.0, "total_us": 0.0})
                continue
            try:
                _refuse(vm)
            except BrokerError as error:
                return moved, error
            arguments = {"netdev": vm["netdev"], "to": _SLOTS[to], "timeout-ms": self._fence_ms}
            answer = self._monitors.ask({name: Command("vhost-user-swap", arguments, changes=True)})[name]
            if answer.error is not None:
                return moved, answer.error
            self._taken[name] = {ring["index"]: ring["used"] for ring in vm["rings"]}
            try:
                swap = answers.swap(name, answer.value)
            except BrokerError as error:
                return moved, StateUnknown(error.message, hint=f"`ovs-hotswap vm show {name}`")
            if swap["outcome"] == "unconfirmed":
                return moved, StateUnknown(f"vm {name}: switch {to} was given the rings and has not confirmed that",
                                           hint=f"`ovs-hotswap vm show {name}`")  # fmt: skip
            moved.append({"vm": name, "owner": to, "give_us": float(swap["give-us"]),
                          "take_us": float(swap["take-us"]), "total_us": float(swap["time-us"])})  # fmt: skip
        return moved, None

    def unserved(self, names: Sequence[str]) -> list[str]:
        return [vm["name"] for vm in self._documents(names) if _waits(vm, self._taken.get(vm["name"], {}))]

    def undelivered(self, name: str) -> list[bytes]:
        del name
        return []

    def reload(self) -> list[str]:
        """Each QEMU knows itself who is active; the intent is read by whoever asks for the VMs."""
        return []


def _refuse(vm: Document) -> None:
    """Raises BrokerError for a VM in quarantine, and one of which nothing is known though its QEMU runs."""
    if vm["quarantine"]:
        raise BrokerError(
            f"vm {vm['name']} is in quarantine: {vm['quarantine']}", hint=f"`ovs-hotswap vm release {vm['name']}`"
        )
    if vm["qemu"] is not None and vm["netdev"] is None:
        raise BrokerError(vm["last_error"])


def _waits(vm: Document, before: Mapping[int, int]) -> bool:
    """Whether a transmit ring (odd: virtio 1.2, 5.1.2) holds what nobody has taken since its used index was such."""
    return any(
        ring["index"] % 2 == 1 and ring["available"] != ring["used"] and ring["used"] == before.get(ring["index"])
        for ring in vm["rings"]
    )


def chosen(vm: str, netdevs: Sequence[Mapping[str, Any]], wanted: str | None) -> Mapping[str, Any]:
    """The netdev of a VM among those of its QEMU that have two back ends. Raises BrokerError."""
    names = [str(each["netdev"]) for each in netdevs]
    for each in netdevs:
        if each["netdev"] == wanted or (wanted is None and len(netdevs) == 1):
            return each
    text = f"no netdev {wanted!r}" if wanted is not None else "several netdevs" if names else "no netdev"
    raise BrokerError(
        f"vm {vm}: its QEMU has {text} with two back ends{': ' + ', '.join(names) if names else ''}",
        hint="-netdev vhost-user,…,standby-chardev=…, and `netdev` of [qemu] in the configuration",
    )


def in_quarantine(vm: Document, why: str | None) -> Document:
    """A VM that no switch is to have: one that QEMU last saw with its rings has them no more, unless it serves it."""
    if why is None:
        return vm
    nobody = {} if vm["certainty"] == "owns" else {"owner": None, "home": None}
    return {**vm, **nobody, "quarantine": why, "unparkable": f"in quarantine: {why}"}


def document(name: str, pid: int | None, found: Mapping[str, Any] | None, error: str | None) -> Document:
    """A VM as QEMU's VhostUserBackends describes it (qapi/net.json of the series), with the fields of `vm show`.

    Features, offers and memory are QEMU's own affair: it refuses a standby that lacks what the guest uses, with a
    reason. ``found`` is ``None`` where QEMU does not run, or (``pid`` is given then) nothing is known of it.
    """
    owner = None if found is None or found["state"] == "down" else _SIDES[found["active-slot"]]
    rings = [] if found is None else [
        {"index": ring["index"], "size": _MOST_ENTRIES, "started": True, "enabled": bool(ring["enabled"]),
         "available": ring["available"], "used": ring["used"]}
        for ring in found["rings"]
    ]  # fmt: skip
    return {
        "name": name,
        "qemu": pid,
        "netdev": None if found is None else found["netdev"],
        "owner": owner,
        "certainty": _CERTAINTY[found["state"]] if found is not None else "nobody" if pid is None else "unknown",
        "owner_since": None,
        "last_proof": None,
        "home": owner,
        "features": None,
        "feature_names": [],
        "memory_bytes": 0,
        "memory_regions": 0,
        "quarantine": None,
        "unparkable": None if found is None or found["standby-state"] != "refused" else str(found.get("reason")),
        "switches": {side.value: _switch(found, side) for side in Side},
        "rings": rings,
        "moves": 0 if found is None else found["swaps"],
        "last_move_us": None if found is None or not found["swaps"] else float(found["last-swap-us"]),
        "last_error": error,
    }


def _switch(found: Mapping[str, Any] | None, side: Side) -> Document:
    nothing: Document = {"connected": False, "pid": None, "role": None, "parked": False, "offers": None, "missing": []}
    if found is None:
        return nothing
    if _SIDES[found["active-slot"]] is side:
        pid, role, connected = found["active-pid"], "owner", bool(found["active-pid"])
    else:
        pid, connected = found["standby-pid"], found["standby-state"] != "absent"
        role = "parked" if found["standby-state"] == "parked" else "idle"
    if not connected:
        return nothing
    return {**nothing, "connected": True, "pid": pid or None, "role": role, "parked": role == "parked"}

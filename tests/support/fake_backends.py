"""The one fake of a VM's two back ends (``ovs_hotswap.backends.BackEnds``), in either back-end mode.

``tests/unit/test_backends.py`` asks the same of it, of a broker and of ``qemu-dual``. What one test needs in addition
is a subclass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ovs_hotswap.backends import (
    MoveResult,
    OwnerCertainty,
    RingStatus,
    Switches,
    SwitchRole,
    SwitchStatus,
    Undelivered,
    VmStatus,
)  # fmt: skip
from ovs_hotswap.broker.control.status import BrokerStatus
from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import MessageThread, Side

MOVE_US = 100.0
CONNECTED = SwitchStatus(connected=True, pid=11, role=SwitchRole.IDLE, parked=False, offers=None, missing=())
_USUAL = VmStatus(
    name="vm1", qemu=9, owner=Side.A, certainty=OwnerCertainty.OWNS, owner_since=5.0, home=Side.A, features=None,
    feature_names=(), memory_bytes=0, memory_regions=1, unparkable=None, switches=Switches(CONNECTED, CONNECTED),
    rings=(), moves=0, last_move_us=None, last_error=None, netdev="network",
)  # fmt: skip


def vm_status(name: str = "vm1", **changes: Any) -> VmStatus:
    """A VM with a guest, which side a owns; both switches are connected."""
    return replace(_USUAL, name=name, **changes)


def ring_status(index: int = 1, available: int | None = 0, used: int | None = 0, *, size: int = 256) -> RingStatus:
    """A ring that the guest has started and enabled."""
    return RingStatus(index, size, started=True, enabled=True, available=available, used=used)


class VmStates:
    """What is to be known of VMs to describe them. Tests change it as they like.

    ``done`` is what was asked, in order. ``broker_fault``: raised by what asks for VMs, parks, or reloads. ``refused``:
    VMs that cannot be parked, and why. ``empty``: VMs without a guest. ``moves``: how often each was moved, if that is
    known.
    """

    def __init__(self, vms: Iterable[str]) -> None:
        self.done: list[str] = []
        self.owner: dict[str, Any] = dict.fromkeys(vms, Side.A)
        self.parked: dict[str, set[Side]] = {name: {Side.B} for name in self.owner}
        self.moves: dict[str, int] = {}
        self.quarantine: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.empty: set[str] = set()
        self.rings: tuple[RingStatus, ...] = ()  # of each VM
        self.broker_fault: Exception | None = None

    def lives(self, _side: Side) -> bool:
        return True

    def serve(self) -> None:
        """Give the VMs without an owner to an instance that lives."""
        living = [side for side in Side if self.lives(side)]
        for name, owner in self.owner.items():
            if living and name not in self.quarantine and (owner is None or not self.lives(owner)):
                self.owner[name] = living[0]


class FakeBackEnds:
    def __init__(self, states: VmStates) -> None:
        self.states = states

    def _answer(self) -> None:
        if self.states.broker_fault is not None:
            raise self.states.broker_fault

    def vms(self, *, read: bool = True) -> list[VmStatus]:
        self._answer()
        return [self.vm(name) for name in self.states.owner]

    def vm(self, name: str) -> VmStatus:
        self._answer()
        states = self.states
        if name not in states.owner:
            raise BrokerError(f"no vm {name!r}", hint="`ovs-hotswap vm list`")
        owner, why, guest = states.owner[name], states.quarantine.get(name), name not in states.empty
        return vm_status(
            name, qemu=9 if guest else None, owner=owner,
            certainty=OwnerCertainty.NOBODY if owner is None else OwnerCertainty.OWNS, unparkable=why, quarantine=why,
            switches=Switches(*(self.switch(name, side) for side in Side)), rings=states.rings,
            moves=states.moves.get(name, 0),
        )  # fmt: skip

    def switch(self, name: str, side: Side) -> SwitchStatus:
        parked = side in self.states.parked[name]
        role = SwitchRole.OWNER if self.states.owner[name] is side else SwitchRole.PARKED if parked else SwitchRole.IDLE
        return replace(CONNECTED, connected=self.states.lives(side), role=role, parked=parked)

    def status(self) -> BrokerStatus:
        return BrokerStatus(version="0", pid=5, uptime_s=1.0, vms=len(self.states.owner), supervised=True, home=Side.A)

    # -- parking

    def park(self, name: str, side: Side) -> None:
        self._refuse(self.vm(name))
        self.states.done.append(f"park {name} {side}")
        if name in self.states.refused:
            raise BrokerError(self.states.refused[name])
        self.states.parked[name].add(side)
        owner = self.states.owner[name]
        if owner is None or not self.states.lives(owner):
            self.states.owner[name] = side

    def park_many(self, names: Sequence[str], side: Side) -> dict[str, HotswapError]:
        self._answer()
        errors: dict[str, HotswapError] = {}
        for name in names:
            try:
                self.park(name, side)
            except BrokerError as error:
                errors[name] = error
        return errors

    @staticmethod
    def _refuse(vm: VmStatus) -> None:
        if vm.quarantine:
            raise BrokerError(f"vm {vm.name} is in quarantine: {vm.quarantine}")

    def unpark(self, name: str, side: Side) -> None:
        self.states.parked[name].discard(side)

    def quarantine(self, name: str, reason: str) -> VmStatus:
        self.vm(name)
        self.states.done.append(f"hold {name}")
        self.states.quarantine[name] = reason
        self.states.owner[name] = None
        self.states.parked[name].clear()
        return self.vm(name)

    def release(self, name: str) -> None:
        self.states.done.append(f"release {name}")
        self.states.quarantine.pop(name, None)
        self.states.serve()

    # -- moving

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        return [list(names)] if names else []

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        return list(names)

    def disarm(self, names: Sequence[str]) -> None: ...

    def why_not_moved(self, name: str, to: Side) -> str | None:
        """Why a VM cannot be moved at this moment."""
        vm = self.vm(name)
        return f"vm {name} is in quarantine: {vm.quarantine}" if vm.quarantine else None

    def move(self, name: str, to: Side) -> MoveResult:
        moved, error = self.move_many([name], to)
        if error is not None:
            raise error
        return moved[0]

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[MoveResult], HotswapError | None]:
        moved: list[MoveResult] = []
        for name in names:
            if why := self.why_not_moved(name, to):
                return moved, BrokerError(why)
            moved.append(self._move(name, to))
        return moved, None

    def _move(self, name: str, to: Side) -> MoveResult:
        states = self.states
        if name in states.empty:
            return MoveResult(name, None, 0.0, 0.0, 0.0)
        states.done.append(f"move {name} {to}")
        states.moves[name] = states.moves.get(name, 0) + 1
        if states.owner[name] is to.other:
            states.parked[name].add(to.other)
        states.owner[name] = to
        return MoveResult(name, to, MOVE_US / 2, MOVE_US / 2, MOVE_US)

    def unserved(self, names: Sequence[str]) -> list[str]:
        return []

    def undelivered_many(self, names: Sequence[str]) -> Iterator[Undelivered]:
        return (Undelivered(name, []) for name in names)

    def reload(self) -> list[str]:
        self._answer()
        self.states.done.append("reload")
        return []


class GivenVms(FakeBackEnds):
    """These VMs, as they are given."""

    def __init__(self, *vms: VmStatus) -> None:
        super().__init__(VmStates(vm.name for vm in vms))
        self._vms = {vm.name: vm for vm in vms}

    def vm(self, name: str) -> VmStatus:
        return self._vms[name]

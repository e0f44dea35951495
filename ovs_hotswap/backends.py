"""What gives a VM two back ends (the *back-end mode*), as plans see it.

In the mode ``broker`` a process stands between QEMU and the instances, and neither is patched. In the mode
``qemu-dual`` QEMU itself has a connection to each instance (``qemu-patches``) and is controlled over QMP. Plans,
checks, journal, rollback and reports are the same in both.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import MessageThread, Side


class BackendMode(enum.StrEnum):
    BROKER = "broker"
    QEMU_DUAL = "qemu-dual"


class _OrUnknown(enum.StrEnum):
    """An enum with a member UNKNOWN, to which a text is mapped that only a newer version knows."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls["UNKNOWN"] if isinstance(value, str) else None


class OwnerCertainty(_OrUnknown):
    """What is known about a VM's owner.

    ``OWNS``: the owner has confirmed that it took the rings. ``TAKING``: the owner was given the rings and has not
    confirmed. ``LETTING_GO``: the owner was asked to release them and has not confirmed. ``CUT``: the owner's
    connection closed while its process lives. ``NOBODY``: there is no owner. ``UNKNOWN``: the back ends do not say, say
    something that only a newer version understands, or contradict the broker's record.
    """

    NOBODY = "nobody"
    OWNS = "owns"
    TAKING = "taking"
    LETTING_GO = "letting-go"
    CUT = "cut"
    UNKNOWN = "unknown"


class SwitchRole(_OrUnknown):
    """What a switch is for one VM. UNKNOWN: a role that only a newer version has."""

    IDLE = "idle"
    PARKED = "parked"
    OWNER = "owner"
    UNKNOWN = "unknown"


class AbsenceCause(enum.StrEnum):
    """Why a QEMU is not connected.

    NO_SWITCH: no switch has connected whose offer could be passed on. NOBODY_LISTENS: the socket exists, but the
    process that made it does not. BUSY: QEMU accepts no connection. HUNG_UP: QEMU closed the connection. HUNG_UP_ON:
    the broker closed it because of what QEMU sent. DIRECT: a switch is connected with QEMU without the broker.
    UNREACHABLE: another fault of the socket, or a cause that only a newer version knows.
    """

    NO_SWITCH = "no-switch"
    NO_SOCKET = "no-socket"
    DENIED = "denied"
    NOBODY_LISTENS = "nobody-listens"
    BUSY = "busy"
    UNREACHABLE = "unreachable"
    HUNG_UP = "hung-up"
    HUNG_UP_ON = "hung-up-on"
    KEPT_AWAY = "kept-away"
    DIRECT = "direct"

    @classmethod
    def _missing_(cls, value: object) -> AbsenceCause | None:
        return cls.UNREACHABLE if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a VM's QEMU is not connected, for programs and for people."""

    cause: AbsenceCause
    text: str


@dataclass(frozen=True, slots=True)
class LastProof:
    """The record that ``side`` was proven off the VM's rings. ``proof`` is a word of docs/architecture.md."""

    side: Side
    proof: str


@dataclass(frozen=True, slots=True)
class SwitchStatus:
    """One side's switch, as far as one VM is concerned.

    ``parked``: one change of ring addresses makes it the owner. ``offers``: the features that it offers, hexadecimal.
    ``missing``: the features that the guest uses and that the switch does not offer.
    """

    connected: bool
    pid: int | None
    role: SwitchRole | None
    parked: bool
    offers: str | None
    missing: tuple[str, ...]

    def document(self) -> dict[str, object]:
        return {"connected": self.connected, "pid": self.pid, "role": self.role, "parked": self.parked,
                "offers": self.offers, "missing": list(self.missing)}  # fmt: skip


ABSENT_SWITCH = SwitchStatus(connected=False, pid=None, role=None, parked=False, offers=None, missing=())


@dataclass(frozen=True, slots=True)
class Switches:
    """The switches of both sides: ``vm.switches[side]``."""

    a: SwitchStatus
    b: SwitchStatus

    def __getitem__(self, side: Side) -> SwitchStatus:
        return self.a if side is Side.A else self.b


@dataclass(frozen=True, slots=True)
class RingStatus:
    """One ring of a VM. ``available`` and ``used`` are indices modulo 2**16, and ``None`` if guest memory cannot be
    read or was not to be read."""

    index: int
    size: int | None
    started: bool
    enabled: bool
    available: int | None
    used: int | None

    @property
    def transmits(self) -> bool:
        """Whether the guest sends on this ring: in each pair of a net device it is the odd one (virtio 1.2, 5.1.2)."""
        return self.index % 2 == 1

    def document(self) -> dict[str, object]:
        """Return the JSON object. Its keys are written out because a broker makes thousands of them at once."""
        return {"index": self.index, "size": self.size, "started": self.started, "enabled": self.enabled,
                "available": self.available, "used": self.used}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VmStatus:
    """The status of a VM, with the fields of ``vm show`` (docs/json.md).

    The fields with a default were added after the first release, or exist in one back-end mode alone. ``unreported``
    names those of them that the answering side does not have: ``document`` leaves them out, and their value is the
    default.
    """

    name: str
    qemu: int | None
    absent: Absence | None = None
    owner: Side | None
    certainty: OwnerCertainty
    owner_since: float | None = None
    last_proof: LastProof | None = None
    home: Side | None
    features: str | None
    feature_names: tuple[str, ...]
    memory_bytes: int
    memory_regions: int
    unparkable: str | None
    quarantine: str | None = None
    switches: Switches
    rings: tuple[RingStatus, ...]
    capture_bytes: int = 0
    moves: int
    last_move_us: float | None
    last_error: str | None
    netdev: str | None = None
    unreported: frozenset[str] = frozenset()

    @property
    def has_guest(self) -> bool:
        return self.qemu is not None

    @property
    def without_broker(self) -> bool:
        """Whether a switch serves the VM without the broker, which therefore cannot move it."""
        return self.absent is not None and self.absent.cause is AbsenceCause.DIRECT

    @property
    def to_serve(self) -> bool:
        """Whether a switch is to serve the VM: it has a guest and is not in quarantine."""
        return self.has_guest and not self.quarantine

    @property
    def can_be_quarantined(self) -> bool:
        """Whether the VM is not in quarantine, and the broker is recent enough to put it in quarantine."""
        return "quarantine" not in self.unreported and not self.quarantine

    @property
    def features_used(self) -> int:
        """The features that the guest uses, as bits."""
        return int(self.features, 16) if self.features else 0

    def confirmed_on(self, side: Side) -> bool:
        """Whether ``side`` is the owner, and has confirmed that it took the rings."""
        return self.owner == side and self.certainty is OwnerCertainty.OWNS

    def served_by(self, side: Side) -> bool:
        """Whether the VM has a guest and ``side`` is its confirmed owner."""
        return self.has_guest and self.confirmed_on(side)

    def astray(self, side: Side) -> bool:
        """Whether the VM has a guest and ``side`` is not its confirmed owner."""
        return self.has_guest and not self.confirmed_on(side)

    def parkable(self, side: Side) -> bool:
        """Whether ``side`` can serve the VM, now or once its guest is there."""
        return self.switches[side].connected and not self.switches[side].missing and not self.unparkable

    def unparked(self, side: Side) -> bool:
        """Whether the VM could be parked on ``side`` and is not."""
        parked = self.switches[side].parked
        return self.has_guest and self.owner == side.other and self.parkable(side) and not parked

    def unprotected(self, side: Side) -> bool:
        """Whether the VM is to be served and ``side`` could not take it over at this moment."""
        return self.to_serve and not self.reachable(side)

    def reachable(self, side: Side) -> bool:
        """Whether ``side`` is the VM's owner, or would be after one change of ring addresses."""
        return self.owner == side or self.switches[side].parked

    def stranded(self, side: Side) -> bool:
        """Whether ``side`` could own the VM and does not."""
        return self.astray(side) and self.parkable(side)

    def newcomer(self, old: Side) -> bool:
        """Whether the VM was started when the others had been moved away from ``old``, and ``old`` was given it."""
        return self.served_by(old) and not self.moves

    def document(self) -> dict[str, object]:
        """Return the JSON object for programs."""
        found = {name: getattr(self, name) for name in VM_FIELDS if name not in self.unreported}
        found["feature_names"] = list(self.feature_names)
        found["switches"] = {side.value: self.switches[side].document() for side in Side}
        found["rings"] = [ring.document() for ring in self.rings]
        if self.last_proof is not None:
            found["last_proof"] = {"side": self.last_proof.side, "proof": self.last_proof.proof}
        if self.absent is not None:
            found["absent"] = {"cause": self.absent.cause, "text": self.absent.text}
        return found


@dataclass(frozen=True, slots=True)
class MoveResult:
    """A move that was made, with its duration in microseconds.

    ``give_us`` is the time until the old side had released the rings, ``take_us`` the time from then until the new side
    had taken them, ``total_us`` the sum of both. All are 0 if there was nothing to move.
    """

    vm: str
    owner: Side | None
    give_us: float
    take_us: float
    total_us: float

    def document(self) -> dict[str, object]:
        return {"vm": self.vm, "owner": self.owner, "give_us": self.give_us, "take_us": self.take_us,
                "total_us": self.total_us}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The frames that arrived while a VM was moved and that neither side delivered.

    ``undeliverable`` is how many more there were, each of which stands for several segments (GSO) and is lost.
    ``error`` is why they cannot be fetched, or ``None``.
    """

    vm: str
    frames: list[bytes]
    error: HotswapError | None = None
    undeliverable: int = 0


VM_FIELDS = tuple(each.name for each in fields(VmStatus) if each.name != "unreported")


class BackEnds(Protocol):
    """What controls the two back ends of all VMs: the broker, or the QEMUs.

    Each method raises BrokerError if the broker or QEMU cannot be reached or refuses. No method ever lets two back ends
    use one ring.
    """

    def vms(self, *, read: bool = True) -> list[VmStatus]:
        """Return every VM. Without ``read`` the indices of rings may be missing, and the call costs less."""

    def vm(self, name: str) -> VmStatus: ...

    def park(self, name: str, side: Side) -> None:
        """Park a VM's back end on ``side``, and return when it is parked."""

    def park_many(self, names: Sequence[str], side: Side) -> dict[str, HotswapError]:
        """``park`` VMs, which do not wait for each other; return the error of each VM that is not parked.

        Raises BrokerError only for a fault that does not belong to a single VM.
        """

    def unpark(self, name: str, side: Side) -> None:
        """No longer keep a VM's back end on ``side`` parked."""

    def quarantine(self, name: str, reason: str) -> VmStatus:
        """Have no switch serve a VM until ``release``, and return the VM's status after that."""

    def release(self, name: str) -> None: ...

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        """Split VMs into rows. The VMs of a row can be armed together; each row is finished before the next begins."""

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        """Have side ``to`` capture frames for VMs that are about to be moved; return the VMs for which it does.

        A mode that has no capture rings returns no VM.
        """

    def disarm(self, names: Sequence[str]) -> None:
        """End the capture that ``arm`` began, because the VMs are not moved after all."""

    def move(self, name: str, to: Side) -> MoveResult:
        """Give a VM's rings to side ``to``. The times are by the clock of the broker, or of QEMU.

        Raises StateUnknown if the side has not confirmed that it took the rings.
        """

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[MoveResult], HotswapError | None]:
        """``move`` VMs one by one, up to the first that cannot be moved.

        Returns the results of the VMs before it, and its error or ``None``. ``threads`` are the message threads of the
        switches, for a mode that can make use of them.
        """

    def unserved(self, names: Sequence[str]) -> list[str]:
        """Return the VMs that have frames to send of which no switch has taken any since the VM was moved."""

    def undelivered_many(self, names: Sequence[str]) -> Iterator[Undelivered]:
        """Yield, once, the frames that arrived while each VM was moved and that neither side delivered.

        Raises BrokerError only for a fault that does not belong to a single VM.
        """

    def reload(self) -> list[str]:
        """Read the overlay intent and the active side again.

        Returns the VMs that are no longer in the intent and are kept nevertheless, each with the switches that may use
        its rings. Such a VM is removed when these switches cannot use its rings any longer.
        """


def kept_text(kept: Sequence[str]) -> str:
    """Return the message about VMs that had to be kept."""
    return f"no longer in the overlay intent, but kept because a switch may use its rings: VM {', '.join(kept)}"


def refuse_kept(kept: Sequence[str]) -> None:
    """Raise BrokerError if VMs had to be kept."""
    if kept:
        raise BrokerError(
            kept_text(kept),
            hint="end that switch, or wait for it (`ovs-hotswap vm list`); then try again",
        )

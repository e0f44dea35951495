"""What gives a VM two back ends, as plans see it: the *back-end mode*.

``broker``: a process between QEMU and the instances; both are stock. ``qemu-dual``: QEMU itself has a connection to
either instance (``qemu-patches``), and is told by QMP. Plans, checks, journal, rollback and reports are the same.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ovs_hotswap.errors import BrokerError, HotswapError
from ovs_hotswap.model import MessageThread, Side

Document = dict[str, Any]  # a VM, with the fields of `vm show` in docs/json.md


class BackendMode(enum.StrEnum):
    BROKER = "broker"
    QEMU_DUAL = "qemu-dual"


class BackEnds(Protocol):
    """The VMs' two back ends. Each method raises BrokerError if what holds them cannot be reached or refuses, and
    none of them ever lets two back ends use one ring."""

    def vms(self, *, read: bool = True) -> list[Document]:
        """Every VM. Without ``read`` the rings' indices may be missing, and it costs less."""

    def vm(self, name: str) -> Document: ...

    def park(self, name: str, side: Side) -> None:
        """Have the side's back end of a VM wait on an empty ring, ready for the guest's; return when it does."""

    def unpark(self, name: str, side: Side) -> None:
        """The side is not kept parked any longer."""

    def quarantine(self, name: str, reason: str) -> Document:
        """Have no switch serve a VM until ``release``; answers it as it is then."""

    def release(self, name: str) -> None: ...

    def rows(self, names: Sequence[str]) -> list[list[str]]:
        """Split VMs into rows, each of which can be armed at once, and is to be delivered to before the next one is."""

    def arm(self, names: Sequence[str], to: Side) -> list[str]:
        """Have frames for VMs that are to be moved in a moment caught on the side ``to``; answers the VMs for which
        that can be. None, in a mode that has nothing to catch them with."""

    def disarm(self, names: Sequence[str]) -> None:
        """The VMs are not moved after all."""

    def move(self, name: str, to: Side) -> Document:
        """Give a VM's rings to a side: ``vm``, ``owner``, and ``give_us``, ``take_us``, ``total_us`` on the clock of
        whoever did it. Raises StateUnknown if the side has not confirmed that it took them."""

    def move_many(
        self, names: Sequence[str], to: Side, threads: Mapping[Side, MessageThread] | None = None
    ) -> tuple[list[Document], HotswapError | None]:
        """``move`` VMs one by one, up to the first that cannot be; the answers of those before, and its error.
        ``threads``: those that handle the switches' messages, for a mode that can make use of them."""

    def unserved(self, names: Sequence[str]) -> list[str]:
        """Those of the VMs from which the switch has taken nothing since their move, though there is something."""

    def undelivered(self, name: str) -> list[bytes]:
        """Frames that arrived while the VM moved and that neither side delivered, once."""

    def reload(self) -> list[str]:
        """The overlay intent or the active side has changed. Answers the VMs that are in the intent no more and are
        kept nevertheless, each with the switches that may use its rings: they leave when those cannot."""


def kept_text(kept: Sequence[str]) -> str:
    """What to say of VMs that had to be kept."""
    return f"in the overlay intent no more, but kept, as a switch does not let go of its rings: VM {', '.join(kept)}"


def refuse_kept(kept: Sequence[str]) -> None:
    """Raises BrokerError if VMs had to be kept."""
    if kept:
        raise BrokerError(
            kept_text(kept),
            hint="end that switch, or wait for it (`ovs-hotswap vm list`); then try again",
        )

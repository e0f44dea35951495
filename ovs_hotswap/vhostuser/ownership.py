"""Who may touch a VM's rings. Pure; the one place where that is decided.

``holder`` is the only side whose back end may have the guest's ring addresses. It passes from one side to the other
only through ``None``, and to ``None`` only with a proof that the holder's back end no longer touches the rings. Two
holders cannot be written down. ``suspects`` are sides that may still be on the rings from the time of an earlier
broker: nobody else is given them before each is proven off.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ovs_hotswap.errors import StateUnknown
from ovs_hotswap.model import Side


class Proof(enum.StrEnum):
    """Why a side is known to be off the rings.

    FENCE: it answered a request sent after its new addresses; DPDK takes each ring's access lock to handle the
    address message (``vhost_user_msg_handler``), so no PMD is inside the ring when the answer comes.
    DEAD: its process has ended (pidfd). A closed connection alone is no proof: DPDK closes the socket *before* it
    destroys the device (``vhost_user_read_cb``, ``rte_vhost_driver_unregister``).
    RECONNECTED: the same process opened a new connection, which DPDK does after the old device is destroyed.
    NEVER: it was never given the addresses.
    """

    FENCE = "fence"
    DEAD = "dead"
    RECONNECTED = "reconnected"
    NEVER = "never"


class Certainty(enum.StrEnum):
    """What is known of the holder. OWNS: confirmed. TAKING: sent, not confirmed. LETTING_GO: asked to, not confirmed.
    CUT: its connection closed while its process lives."""

    NOBODY = "nobody"
    OWNS = "owns"
    TAKING = "taking"
    LETTING_GO = "letting-go"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Ownership:
    holder: Side | None = None
    certainty: Certainty = Certainty.NOBODY
    suspects: frozenset[Side] = frozenset()

    def free_for(self, side: Side) -> bool:
        """Whether ``side`` may be given the rings now."""
        return self.holder in (None, side) and self.suspects <= {side}

    def grant(self, side: Side) -> Ownership:
        """About to send the guest's addresses to ``side``. Raises StateUnknown while the other side may have them."""
        if not self.free_for(side):
            other = side.other
            raise StateUnknown(
                f"side {other} may still use the rings ({self.certainty}); side {side} must not have them",
                hint=f"if the process of side {other} hangs, end it: its death proves the rings free",
            )
        return Ownership(side, Certainty.TAKING)

    def confirm(self) -> Ownership:
        """The holder answered behind the addresses."""
        return replace(self, certainty=Certainty.OWNS) if self.holder else self

    def letting_go(self) -> Ownership:
        return replace(self, certainty=Certainty.LETTING_GO) if self.holder else self

    def cut(self, side: Side) -> Ownership:
        """The connection to ``side`` closed."""
        return replace(self, certainty=Certainty.CUT) if self.holder is side else self

    def released(self, side: Side, proof: Proof) -> Ownership:
        """``side`` is off the rings, and ``proof`` says why."""
        if proof not in Proof:
            return self
        suspects = self.suspects - {side}
        return Ownership(suspects=suspects) if self.holder is side else replace(self, suspects=suspects)

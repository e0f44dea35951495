"""Who may touch a VM's rings. Pure; the one place where that is decided.

``holder`` is the only side whose back end may have the guest's ring addresses. It passes from one side to the other
only through ``None``, and to ``None`` only with a proof that the holder's back end no longer touches the rings. Two
holders cannot be written down. ``suspects`` are sides that may still be on the rings from the time of an earlier
broker, or because a proof contradicted what was known: no side is given the rings before each suspect is proven off.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from ovs_hotswap.errors import ProofRejected, StateUnknown
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
    CUT: its connection closed while its process lives. UNKNOWN: a proof contradicted the record, so any side that has
    been connected may be on the rings; all of them are suspects."""

    NOBODY = "nobody"
    OWNS = "owns"
    TAKING = "taking"
    LETTING_GO = "letting-go"
    CUT = "cut"
    UNKNOWN = "unknown"


_BY_THE_PROCESS = frozenset({Proof.DEAD, Proof.RECONNECTED})

# The proofs that free the rings, by what is known of the side before. An answer proves something only of a side that
# was told to leave the rings before it was asked; the ends of process and connection are seen only after the connection
# has been dropped; a side that took the rings while the guest had not said anything was given nothing. The first
# row is about suspects of an earlier broker's time, which are sent the parking addresses before they are asked.
ALLOWED: Mapping[Certainty, Set[Proof]] = {
    Certainty.NOBODY: frozenset(Proof),
    Certainty.TAKING: frozenset({Proof.NEVER}),
    Certainty.OWNS: frozenset({Proof.NEVER}),
    Certainty.LETTING_GO: frozenset({Proof.FENCE, Proof.NEVER}),
    Certainty.CUT: _BY_THE_PROCESS,
    Certainty.UNKNOWN: _BY_THE_PROCESS,
}


@dataclass(frozen=True, slots=True)
class Released:
    """``side`` was proven off the rings by ``proof``."""

    side: Side
    proof: Proof


@dataclass(frozen=True, slots=True)
class Ownership:
    """``last_proof`` is the proof by which the rings, or a suspect, became free last. It decides nothing, and does not
    count in comparisons."""

    holder: Side | None = None
    certainty: Certainty = Certainty.NOBODY
    suspects: frozenset[Side] = frozenset()
    last_proof: Released | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        suspects = f", suspects: {' and '.join(sorted(self.suspects))}" if self.suspects else ""
        return f"<Ownership: {'' if self.holder is None else f'{self.holder} '}{self.certainty}{suspects}>"

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
        return Ownership(side, Certainty.TAKING, last_proof=self.last_proof)

    def confirm(self) -> Ownership:
        """The holder answered behind the addresses."""
        return replace(self, certainty=Certainty.OWNS) if self.holder else self

    def letting_go(self) -> Ownership:
        return replace(self, certainty=Certainty.LETTING_GO) if self.holder else self

    def cut(self, side: Side) -> Ownership:
        """The connection to ``side`` closed."""
        return replace(self, certainty=Certainty.CUT) if self.holder is side else self

    def released(self, side: Side, proof: Proof) -> Ownership:
        """``side`` is off the rings, and ``proof`` says why. Nothing changes if ``side`` was not on them by this
        record. Raises ProofRejected if the proof proves nothing in this state (``ALLOWED``)."""
        if side is not self.holder and side not in self.suspects:
            return self
        known = self.certainty if side is self.holder or self.certainty is Certainty.UNKNOWN else Certainty.NOBODY
        if proof not in ALLOWED[known]:
            raise ProofRejected(f"{proof} does not prove side {side} off the rings ({known})")
        suspects, last = self.suspects - {side}, Released(side, proof)
        if side is self.holder or not (self.holder or suspects):
            return Ownership(suspects=suspects, last_proof=last)
        return replace(self, suspects=suspects, last_proof=last)

    def doubted(self, sides: frozenset[Side]) -> Ownership:
        """After a proof that was rejected: no side holds the rings, and each of ``sides``, which are all that have been
        connected, may be on them until its process proves the contrary. Raises ValueError if a side that may be on the
        rings by this record is left out."""
        if not self.suspects | ({self.holder} - {None}) <= sides:
            raise ValueError(f"left out of {sorted(sides)}: {self}")
        return Ownership(None, Certainty.UNKNOWN if sides else Certainty.NOBODY, sides, self.last_proof)

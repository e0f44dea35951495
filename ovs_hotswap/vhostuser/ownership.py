"""Decides which side may touch a VM's rings. This module is pure, and nothing else decides that.

``holder`` is the only side whose back end may have the guest's ring addresses. It passes from one side to the other
only through ``None``, and it becomes ``None`` only with a proof that the holder's back end no longer touches the rings.
The data has room for one holder only. ``suspects`` are sides that may still be on the rings from the time of an earlier
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

    FENCE: the side answered a request that was sent after its new addresses. DPDK takes each ring's access lock to
    handle the address message (``vhost_user_msg_handler``), so no PMD is inside the ring when the answer comes.
    DEAD: its process has ended (pidfd). A closed connection alone is no proof: DPDK closes the socket *before* it
    destroys the device (``vhost_user_read_cb``, ``rte_vhost_driver_unregister``).
    RECONNECTED: the same process opened a new connection, which DPDK does after it has destroyed the old device.
    NEVER: the side was never given the addresses.
    """

    FENCE = "fence"
    DEAD = "dead"
    RECONNECTED = "reconnected"
    NEVER = "never"


class Certainty(enum.StrEnum):
    """What is known about the holder.

    ``NOBODY``: there is no holder. ``OWNS``: it has confirmed that it has the addresses. ``TAKING``: it was sent them
    and has not confirmed. ``LETTING_GO``: it was asked to leave the rings and has not confirmed. ``CUT``: its
    connection closed while its process lives. ``UNKNOWN``: a proof contradicted the record, so any side that has been
    connected may be on the rings; all of these are suspects.
    """

    NOBODY = "nobody"
    OWNS = "owns"
    TAKING = "taking"
    LETTING_GO = "letting-go"
    CUT = "cut"
    UNKNOWN = "unknown"


_BY_THE_PROCESS = frozenset({Proof.DEAD, Proof.RECONNECTED})

# The proofs that free the rings, by what is known about the side before. An answer proves something only if the side
# was sent other addresses before the request. The end of a process or a new connection is seen only after the old
# connection has been dropped. A side that became the holder before the guest had described its rings was given nothing.
# The first row is about suspects of an earlier broker's time, which are sent the parking addresses before the request.
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
    """The record that ``side`` was proven off the rings by ``proof``."""

    side: Side
    proof: Proof


@dataclass(frozen=True, slots=True)
class Ownership:
    """The record of who may touch one VM's rings.

    ``last_proof`` is the latest proof by which the rings, or a suspect, became free. It decides nothing, and
    comparisons ignore it.
    """

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
        """Return the record to keep before the guest's addresses are sent to ``side``.

        Raises StateUnknown while the other side may have the rings.
        """
        if not self.free_for(side):
            other = side.other
            raise StateUnknown(
                f"side {other} may still use the rings ({self.certainty}); side {side} must not have them",
                hint=f"if the process of side {other} hangs, end it: its death proves the rings free",
            )
        return Ownership(side, Certainty.TAKING, last_proof=self.last_proof)

    def confirm(self) -> Ownership:
        """Return the record after the holder has answered its fence behind the addresses."""
        return replace(self, certainty=Certainty.OWNS) if self.holder else self

    def releasing(self) -> Ownership:
        return replace(self, certainty=Certainty.LETTING_GO) if self.holder else self

    def entered(self, side: Side) -> Ownership:
        """Return the record after the broker has got both ends of the connection of ``side`` with its guest's QEMU.

        The side served the guest without a broker, and is the holder. Raises StateUnknown unless it was the only one
        that may have been on the rings.
        """
        if self.holder is not None or self.suspects != {side}:
            raise StateUnknown(f"side {side} is not known to be the only one on the rings: {self!r}")
        return Ownership(side, Certainty.OWNS, last_proof=self.last_proof)

    def left_alone(self, side: Side) -> Ownership:
        """Return the record after the broker has given up both ends, which undoes ``entered``: nothing that ``side``
        does on the rings is seen here any longer. Raises StateUnknown unless it is the confirmed holder."""
        if self != Ownership(side, Certainty.OWNS):
            raise StateUnknown(f"side {side} is not known to have the rings: {self!r}")
        return Ownership(suspects=frozenset({side}), last_proof=self.last_proof)

    def disconnected(self, side: Side) -> Ownership:
        """Return the record after the connection to ``side`` has closed."""
        return replace(self, certainty=Certainty.CUT) if self.holder is side else self

    def released(self, side: Side, proof: Proof) -> Ownership:
        """Return the record after ``proof`` has shown that ``side`` is off the rings.

        Nothing changes if ``side`` was not on them according to this record. Raises ProofRejected if the proof proves
        nothing in this state (``ALLOWED``).
        """
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
        """Return the record after a proof was rejected.

        No side holds the rings, and each of ``sides`` may be on them until its process proves the contrary. ``sides``
        are all that have been connected. Raises ValueError if they leave out a side that may be on the rings according
        to this record.
        """
        if not self.suspects | ({self.holder} - {None}) <= sides:
            raise ValueError(f"left out of {sorted(sides)}: {self}")
        return Ownership(None, Certainty.UNKNOWN if sides else Certainty.NOBODY, sides, self.last_proof)

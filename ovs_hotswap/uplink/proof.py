"""Whether packets pass between an instance and the wire, both ways, without traffic of VMs and without turning any."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ovs_hotswap.model import Proof
from ovs_hotswap.uplink.frames import Ear, Host, Sockets, answers, arp_probe, vxlan_probe

_ASKED = 8  # neighbours at most: one answer is enough
_TRIES = 3
_ANSWER_S = 0.5  # for each try
_COUNTED_S = 3.0  # the switch adds packets of a known flow to its counters every half second


class End(Protocol):
    """An instance's end of its uplink. Methods raise SwitchError."""

    def send(self, frame: bytes) -> None:
        """Have the instance send the frame by its uplink."""

    def probes(self) -> int:
        """VXLAN packets of a network without a VM that it has counted."""


@dataclass(frozen=True, slots=True)
class Prover:
    """Proofs over kernel devices: ``device`` is where answers arrive, ``vtep`` whom they are for,
    ``mtu`` the underlay's."""

    sockets: Sockets
    device: str
    vtep: Host
    neighbours: Sequence[Host]
    mtu: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def prove(self, representor: str, end: End) -> Proof:
        """Raises UplinkError and SwitchError."""
        return Proof(self._out(end), self._into(representor, end))

    def _out(self, end: End) -> bool | None:
        asked = self.neighbours[:_ASKED]
        if not asked:
            return None
        with self.sockets.listen(self.device) as ear:
            for _ in range(_TRIES):
                for neighbour in asked:
                    end.send(arp_probe(self.vtep.mac, neighbour.address))
                if self._answered(ear, asked):
                    return True
        return False

    def _answered(self, ear: Ear, asked: Sequence[Host]) -> bool:
        until = self.clock() + _ANSWER_S
        while (left := until - self.clock()) > 0:
            for frame in ear.heard(left):
                if any(answers(frame, self.vtep.mac, neighbour.address) for neighbour in asked):
                    return True
        return False

    def _into(self, representor: str, end: End) -> bool | None:
        source = next(iter(self.neighbours), None)
        if source is None:
            return None
        before, until = end.probes(), self.clock() + _COUNTED_S
        while True:
            self.sockets.send(representor, vxlan_probe(source, self.vtep, self.mtu))
            self.sleep(0.1)
            if end.probes() > before:
                return True
            if self.clock() >= until:
                return False

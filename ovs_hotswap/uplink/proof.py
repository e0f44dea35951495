"""Proves that packets pass between an instance and the wire in both directions, without VMs' traffic or steering it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ovs_hotswap.model import Proof, Way
from ovs_hotswap.uplink.frames import (
    BROADCAST,
    MARK_BYTES,
    VXLAN_UDP_PORT,
    Ear,
    Host,
    Sockets,
    Tunnel,
    answers,
    asks,
    question,
    tunnel_probe,
)

_ASKED = 6  # the most neighbours that are asked: one answer is enough
_TRIES = 3
_ANSWER_S = 0.5  # for each try
_PAUSE_S = 0.1  # between two questions: switches that inspect ARP take 15 a second from a port
_LATE_S = 1.0  # an answer may be this late, because a switch answers when it has nothing else to do
_NOBODY = "02:00:00:00:00:0e"  # a locally administered address
_COUNTED_S = 3.0  # the switch adds packets of a known flow to its counters every half second
_COUNTED_ALONE_S = 2.0  # for a proof of one way only: its caller has other things to do, and tries again later


class End(Protocol):
    """An instance's end of its uplink. All methods raise SwitchError."""

    def send(self, frame: bytes) -> None:
        """Make the instance send the frame on its uplink."""

    def probes(self) -> int:
        """The number of packets that the instance has counted from tunnels for networks without a VM."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that are still to come: on which ``devices``, besides the prover's own, they may arrive, and when
    each neighbour was asked that has not answered yet. The NICs of one uplink share it: with the VTEP behind two NICs,
    the answer to a question may come on either."""

    devices: tuple[str, ...] = ()
    unanswered: dict[Host, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Prover:
    """Makes proofs with kernel devices. Answers arrive on ``device`` and are addressed to ``vtep``. ``mtu``: the MTU of
    the underlay, in bytes; ``vlan``: the tag of its packets; ``tunnel`` and ``udp_port``: the kind of its tunnels.
    ``answers``: shared with the prover of another NIC, if there is one."""

    sockets: Sockets
    device: str
    vtep: Host
    neighbours: Sequence[Host]
    mtu: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    vlan: int | None = None
    udp_port: int = VXLAN_UDP_PORT
    tunnel: Tunnel = "vxlan"
    answers: Answers = field(default_factory=Answers, compare=False)

    def prove(self, representor: str, end: End, way: Way | None = None) -> Proof:
        """Prove one ``way`` only, or both. Raises UplinkError and SwitchError."""
        match way:
            case Way.OUT:
                return Proof(out=self._out(end))
            case Way.INTO:
                return Proof(into=self._into(representor, end, _COUNTED_ALONE_S))
        return Proof(self._out(end), self._into(representor, end, _COUNTED_S))

    def _out(self, end: End) -> bool | None:
        asked = self.neighbours[:_ASKED]
        if not asked:
            return None
        # An answer does not say which question it answers: perhaps one of an earlier proof, of the other instance.
        late = (
            max((self.answers.unanswered.pop(each, float("-inf")) for each in asked), default=float("-inf")) + _LATE_S
        )
        if late > self.clock():
            self.sleep(late - self.clock())
        with self.sockets.listen(*dict.fromkeys([self.device, *self.answers.devices])) as ear:
            for _ in range(_TRIES):
                mark, doubtful = os.urandom(MARK_BYTES), set[Host]()
                for neighbour in asked:
                    again = neighbour in self.answers.unanswered
                    self.answers.unanswered[neighbour] = self.clock()
                    end.send(question(self._asker(neighbour), neighbour, mark, self.vlan))
                    by = self._answered(ear, asked, mark, doubtful)
                    if by is None:
                        continue
                    if not (again and by is neighbour):
                        self.answers.unanswered.pop(by)
                    return True
        return False

    def _answered(self, ear: Ear, neighbours: Sequence[Host], mark: bytes, doubtful: set[Host]) -> Host | None:
        """The neighbour that has answered one of our questions. ``doubtful``: neighbours whose answers do not count,
        because the question of another host to them was seen on the device."""
        until = self.clock() + max(_PAUSE_S, _ANSWER_S / len(neighbours))
        while (left := until - self.clock()) > 0:
            for frame in ear.heard(left):
                doubtful |= {each for each in neighbours if asks(frame, self._asker(each), each, mark, self.vlan)}
                for each in neighbours:
                    if each not in self.answers.unanswered or each in doubtful:
                        continue
                    if answers(frame, self._asker(each), each, self.vlan):
                        return each
        return None

    def _asker(self, neighbour: Host) -> Host:
        return self.vtep if neighbour.asker is None else replace(self.vtep, address=neighbour.asker)

    def _into(self, representor: str, end: End, patience_s: float) -> bool | None:
        source = next(iter(self.neighbours), None)
        if source is None:
            return None
        if source.mac == BROADCAST:
            # Open vSwitch learns the MAC of a tunnel packet's source (terminate_native_tunnel,
            # ofproto/ofproto-dpif-xlate.c), so one that is not the neighbour's must not come from its address.
            source = Host(self.vtep.address, _NOBODY)
        probe = tunnel_probe(source, self.vtep, self.mtu, self.vlan, self.udp_port, self.tunnel)
        before, until = end.probes(), self.clock() + patience_s
        while True:
            self.sockets.send(representor, probe)
            self.sleep(0.1)
            if end.probes() > before:
                return True
            if self.clock() >= until:
                return False

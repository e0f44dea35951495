"""Asks hosts of the underlay for their MAC addresses, with questions (ARP, or neighbour discovery of IPv6) that are
true for both instances."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.overlay.intent import Neighbour, Vtep
from ovs_hotswap.uplink.frames import BROADCAST, MARK_BYTES, Ear, Host, answerer, question

_TRIES = 3
_PAUSE_S = 0.1  # after a question without an answer: switches that inspect ARP take 15 a second from a port
_ANSWER_S = 0.2  # after the last question of each try
_REPEATED_S = 3.0  # so long after the first question there is no third one: a caller's VMs may wait
_TURN_S = 0.02  # until the next ear is listened to


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks neighbours. ``mouths`` send a frame, each on another link; they raise UplinkError or SwitchError. Answers
    are heard on the kernel's devices, by opening ``ears``, and, without the underlay's tag, on the instances'
    ``bridges``."""

    vtep: Vtep
    mouths: Sequence[Callable[[bytes], None]]
    ears: Sequence[Callable[[], AbstractContextManager[Ear]]] = ()
    clock: Callable[[], float] = time.monotonic
    bridges: Sequence[Callable[[], AbstractContextManager[Ear]]] = ()

    def ask(self, neighbours: Sequence[Neighbour], known: Mapping[str, str]) -> dict[str, str]:
        """Return the MACs of the ``neighbours`` that answer, by address. The first question goes to the ``known`` MAC
        alone. Takes up to about a second if all but a few answer, and 0.2 s for each that does not if many do not.
        Raises UplinkError and SwitchError if nothing can be sent anywhere, or no ear can be opened."""
        answers: dict[str, str] = {}
        mark = os.urandom(MARK_BYTES)
        with contextlib.ExitStack() as stack:
            ears = self._open(stack)
            begun = self.clock()
            for attempt in range(_TRIES):
                if attempt > 1 and self.clock() - begun >= _REPEATED_S:
                    break
                left = [each for each in neighbours if each.address not in answers]
                for each in left:
                    mac = BROADCAST if attempt else each.mac or known.get(each.address) or BROADCAST
                    self._say(question(self._host(each), Host(each.address, mac), mark, self.vtep.vlan))
                    self._hear(ears, [each], answers, _PAUSE_S)
                self._hear(ears, left, answers, _ANSWER_S)
        return {each.address: answers[each.address] for each in neighbours if each.address in answers}

    def _host(self, neighbour: Neighbour) -> Host:
        link = self.vtep.interface_to(neighbour.address)
        return Host(str(link.ip) if link else self.vtep.address, self.vtep.mac)

    def _open(self, stack: contextlib.ExitStack) -> list[tuple[Ear, int | None]]:
        """The ears, each with the tag that answers have there."""
        ears, faults = [], []
        for each, vlan in (*((ear, self.vtep.vlan) for ear in self.ears), *((bridge, None) for bridge in self.bridges)):
            try:
                ears.append((stack.enter_context(each()), vlan))
            except UplinkError as error:  # an instance may have ended, and another ear may be enough
                faults.append(error)
        if not ears:
            raise faults[0] if faults else UplinkError("no device is known on which neighbours would answer",
                                                       hint="[uplink] device in the configuration")  # fmt: skip
        return ears

    def _say(self, frame: bytes) -> None:
        faults = []
        for mouth in self.mouths:
            try:
                mouth(frame)
            except UplinkError as error:  # one of two links may be down
                faults.append(error)
        if len(faults) == len(self.mouths) and faults:
            raise faults[0]

    def _hear(
        self, ears: list[tuple[Ear, int | None]], wanted: Sequence[Neighbour], answers: dict[str, str], seconds: float
    ) -> None:
        """Listen until all ``wanted`` have answered, or for ``seconds``. An ear that fails is left out from now on: a
        bridge that was just made is not up yet."""
        until = self.clock() + seconds
        own = {self._host(each).address for each in wanted}
        while (left := until - self.clock()) > 0 and any(each.address not in answers for each in wanted):
            for each in list(ears):
                ear, vlan = each
                try:
                    frames = ear.heard(min(left, _TURN_S))
                except UplinkError:
                    ears.remove(each)
                    if not ears:
                        raise
                    continue
                for frame in frames:
                    if (host := answerer(frame, own, vlan)) is not None and host.mac != self.vtep.mac:
                        answers[host.address] = host.mac

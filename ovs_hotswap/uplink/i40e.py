"""The uplink of an X710 or XL710: a classification rule gives the overlay's packets to a virtual function (VF).

Intel's out-of-tree driver has no way to change where a rule leads. The old rule is deleted and the new one inserted,
and for the time between, below a millisecond by the driver's code, the packets go to the physical function (PF). If the
new rule is refused, the old one is put back.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.uplink import i40e_checks
from ovs_hotswap.uplink.ethtool import Ethtool, FlowRule, code_of
from ovs_hotswap.uplink.frames import Host, Sockets
from ovs_hotswap.uplink.i40e_card import Card, Cards
from ovs_hotswap.uplink.i40e_rules import Place, Plan, insertable, words
from ovs_hotswap.uplink.proof import Answers, End, Prover

# The NIC's driver refuses rules while the NIC recovers from a reset. A failover tries again by itself.
_BUSY_S, _BUSY_TRIES, _BUSY_TRIES_QUICK = 0.1, 20, 3

Subject = TypeVar("Subject")


class I40eUplink:
    """The driver. ``plan``: the rules. ``vtep``: the VTEP's address, and the MAC that the PF must have. ``mtu``: that
    of the underlay, and ``vlan`` the tag of its packets. ``neighbours``: on-link hosts that a proof can ask.
    ``answers``: where their answers may arrive, if there is another NIC.

    ``quick``: ``steer`` looks at the two locations alone, and not at devices and VFs.
    """

    def __init__(
        self,
        *,
        device: str,
        plan: Plan,
        vtep: Host,
        mtu: int,
        cards: Cards,
        sockets: Sockets,
        neighbours: Sequence[Host] = (),
        answers: Answers | None = None,
        vlan: int | None = None,
        quick: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device, self._plan, self._cards, self._quick, self._sleep = device, plan, cards, quick, sleep
        self._vtep, self._mtu = vtep, mtu
        self._prover = Prover(
            sockets, device, vtep, tuple(neighbours), mtu, vlan=vlan, answers=answers or Answers()
        )  # fmt: skip
        self._counted: dict[Side, int] = {}  # the packets of each VF, as seen last

    def owner(self) -> Side | None:
        """The side to whose VF a rule of ours leads. ``None`` also if the VF was seen to be reset since the last look
        of this object. The NIC has lost the rule then, and reports it as before if the VF was given its former number
        in the NIC (i40e_virtchnl_pf.c, i40e_cleanup_reset_vf)."""
        with self._cards.open() as card:
            side = self._owner(self._places(card.ethtool))
            if side is None or (not self._quick and self._was_reset(card, side)):
                return None
            return side

    def steer(self, side: Side) -> None:
        with self._cards.open() as card:
            if not self._quick:
                self._need(card, side)
            places = self._places(card.ethtool)
            self._refuse_foreign(places)
            if self._owner(places) is side and (self._quick or not self._was_reset(card, side)):
                return
            self._swap(card.ethtool, side, places)
            self._counted.pop(side, None)

    def clear(self) -> None:
        self._counted.clear()
        with self._cards.open() as card:
            if card.link() is None:
                return
            for side, rule in self._places(card.ethtool).items():
                if rule is not None and self._plan.place(side, rule) is not Place.FOREIGN:
                    self._patiently(card.ethtool.delete, rule.location)
            left = [rule for side, rule in self._places(card.ethtool).items()
                    if rule is not None and self._plan.place(side, rule) is not Place.FOREIGN]  # fmt: skip
        if left:
            raise UplinkError(f"{self._device}: {words(left[0])}: it was deleted and is still there",
                              hint=f"ethtool -N {self._device} delete {left[0].location}")  # fmt: skip

    def prove(self, side: Side, end: End, way: Way | None = None) -> Proof:
        """The way out only: answers go to the PF, whose MAC is the VTEP's. No kernel device stands for a VF of these
        NICs, so that no frame can be given to it, and whether it would receive is not known before it has the
        traffic."""
        if way is Way.INTO:
            return Proof()
        return self._prover.prove(self._device, end, Way.OUT)

    def steered(self, side: Side) -> Steered | None:
        """The packets that the PF has counted for the side's VF since the VF was reset last."""
        with self._cards.open() as card:
            if self._owner(self._places(card.ethtool)) is not side:
                return None
            function = card.functions().get(self._plan.vfs[side])
        if function is None or function.received is None or function.sent is None:
            return None
        return Steered(function.received, function.sent)

    def rules(self) -> list[str]:
        """The rules at our locations, in words."""
        with self._cards.open() as card:
            return [words(rule) for rule in self._places(card.ethtool).values() if rule is not None]

    def check(self) -> list[Finding]:
        try:
            with self._cards.open() as card:
                facts = i40e_checks.gather(card, self._plan)
        except UplinkError as error:
            return [Finding("uplink", Severity.ERROR, error.message, error.hint)]
        if isinstance(facts, Finding):
            return [facts]
        return i40e_checks.findings(facts, self._plan, self._vtep.mac, self._mtu)

    # -- what is there

    def _places(self, tool: Ethtool) -> dict[Side, FlowRule | None]:
        """The rule at each side's location."""
        used = set(tool.locations())
        return {side: tool.rule(at) if at in used else None for side, at in self._plan.locations.items()}

    def _owner(self, places: Mapping[Side, FlowRule | None]) -> Side | None:
        found = [side for side, rule in places.items() if self._plan.place(side, rule) is Place.OURS]
        return found[0] if len(found) == 1 else None

    def _was_reset(self, card: Card, side: Side) -> bool:
        """Whether the counters of the side's VF have gone back since the last look, which they do only at a reset."""
        function = card.functions().get(self._plan.vfs[side])
        now = None if function is None or function.received is None else function.received + (function.sent or 0)
        if now is None:
            return False
        self._counted.pop(side.other, None)  # its VF is reset before it is given the traffic again
        before = self._counted.get(side, 0)
        if now >= before:
            self._counted[side] = now
        return now < before

    def _need(self, card: Card, side: Side) -> None:
        """Check the devices that traffic for ``side`` passes. Raises UplinkError."""
        link, vf = card.link(), self._plan.vfs[side]
        if link is None:
            raise UplinkError(f"there is no network device {self._device}",
                              hint="correct [uplink] in the configuration: `ip -br link`")  # fmt: skip
        if not link.up:
            raise UplinkError(f"network device {self._device} is down", hint=f"ip link set {self._device} up")
        function = card.functions().get(vf)
        if function is None:
            raise UplinkError(f"{self._device} has no VF {vf}", hint=i40e_checks.make_functions(self._device, vf))
        if function.disabled:
            raise UplinkError(f"{self._device}: VF {vf} is set down",
                              hint=f"ip link set {self._device} vf {vf} state auto")  # fmt: skip

    def _refuse_foreign(self, places: Mapping[Side, FlowRule | None]) -> None:
        for side, rule in places.items():
            if rule is not None and self._plan.place(side, rule) is Place.FOREIGN:
                raise UplinkError(f"{self._device}: {words(rule)}: it is foreign and at our location; nothing was "
                                  "changed", hint=i40e_checks.move_away(self._device, rule))  # fmt: skip

    # -- changes

    def _swap(self, tool: Ethtool, side: Side, places: Mapping[Side, FlowRule | None]) -> None:
        """Replace what is at our locations by the rule for ``side``. Raises UplinkError, with the old rule in its place
        again if that is possible."""
        if not tool.ntuple():  # every insert would be refused, after the old rule is gone
            raise UplinkError(f"{self._device}: classification by rules is off; nothing was changed",
                              hint=f"ethtool -K {self._device} ntuple on")  # fmt: skip
        owner = self._owner(places)
        try:
            for rule in places.values():
                if rule is not None:
                    self._patiently(tool.delete, rule.location)
            self._insert(tool, side)
        except UplinkError as error:
            if self._reads(tool) is not side:  # a refusal may have taken effect nevertheless
                old = None if owner is None else places[owner]
                raise self._put_back(tool, owner, old, error) from error
        try:
            found = self._owner(self._places(tool))
        except UplinkError as error:
            raise UplinkError(
                f"{error.message}: the rule for instance {side} was inserted and cannot be read back; the traffic goes "
                "to it, or to neither instance", hint=error.hint,
            ) from error  # fmt: skip
        if found is not side:
            text = f"instance {found}" if found else "neither instance"
            raise UplinkError(f"{self._device}: a rule for instance {side} was inserted, but it reads back as {text}'s",
                              hint=self._show())  # fmt: skip

    def _insert(self, tool: Ethtool, side: Side) -> None:
        *better, last = self._plan.rules(side)
        for rule in better:
            try:
                return self._patiently(tool.insert, rule)
            except UplinkError as error:
                if code_of(error) != errno.ENOPKG:  # the NIC has not been given the DDP package for this form
                    raise
        return self._patiently(tool.insert, last)

    def _put_back(self, tool: Ethtool, owner: Side | None, old: FlowRule | None, error: UplinkError) -> UplinkError:
        """Put the ``owner``'s rule back if it is missing, and return the error that says what is the case now."""
        if old is not None and self._reads(tool) is not owner:
            try:
                self._patiently(tool.insert, insertable(old))
            except UplinkError as again:
                error.add_note(again.message)
        now = self._reads(tool)
        if now is not None and now is owner:
            told = f"the rule for instance {owner} is in its place as before"
        elif now is None and owner is None:
            told = "the traffic goes to neither instance, as before"
        elif now is None:
            told = "the traffic goes to neither instance now"
        else:
            told = f"the traffic goes to instance {now}" if isinstance(now, Side) else now
        return UplinkError(f"{error.message}; {told}", hint=i40e_checks.why_refused(self._device, code_of(error)))

    def _reads(self, tool: Ethtool) -> Side | str | None:
        """The owner as it reads now, or words that it cannot be read."""
        try:
            return self._owner(self._places(tool))
        except UplinkError as error:
            return f"the traffic goes to the same instance as before or to neither instance: {error.message}"

    def _patiently(self, change: Callable[[Subject], None], subject: Subject) -> None:
        """Make one change, again and again while the NIC recovers from a reset."""
        tries = _BUSY_TRIES_QUICK if self._quick else _BUSY_TRIES
        for attempt in Retrying(retry=retry_if_exception(_busy), stop=stop_after_attempt(tries),
                                wait=wait_fixed(_BUSY_S), sleep=self._sleep, reraise=True):  # fmt: skip
            with attempt:
                change(subject)

    def _show(self) -> str:
        return f"ethtool -n {self._device}"


def _busy(error: BaseException) -> bool:
    return isinstance(error, UplinkError) and code_of(error) == errno.EBUSY

"""The uplink over two NICs: the VTEP's traffic may arrive on either, so both are steered to the same instance.

Each NIC has a driver of its own, of any kind. A NIC whose physical function has no link passes nothing for either
instance: it keeps no upgrade and no failover from using the other one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.model import Finding, Proof, Severity, Side, Steered, Way
from ovs_hotswap.uplink.driver import Speaker, Uplink, rules_of

_STEER_AGAIN = "`ovs-hotswap overlay apply` steers both to the active instance"


class Links(Protocol):
    """Knows which NICs have a link."""

    def live(self) -> tuple[int, ...]:
        """The numbers of the NICs with a link, or of all if none has one. Never raises."""


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC. ``name``: that of its physical function."""

    name: str
    driver: Uplink


class PairUplink:
    """The driver of two NICs. ``end`` gives an instance's end of a NIC, which has a number from 0.

    ``quick``: ``steer`` steers every NIC before it looks at anything, and puts none back, because the instance from
    which the traffic is taken is dead.
    """

    def __init__(
        self, nics: Sequence[Nic], links: Links, end: Callable[[Side, int], Speaker], *, quick: bool = False
    ) -> None:
        self._nics, self._links, self._end, self._quick = tuple(nics), links, end, quick

    def owner(self) -> Side | None:
        """The side to which every NIC with a link is steered; ``None`` if they do not agree."""
        live, found = self._links.live(), set[Side | None]()
        for number, nic in enumerate(self._nics):
            try:
                owner = nic.driver.owner()
            except UplinkError:
                if number in live:
                    raise
                continue
            if number in live:
                found.add(owner)
        return found.pop() if len(found) == 1 else None

    def steer(self, side: Side) -> float | None:
        """Steer both NICs. If one with a link refuses, the other is put back, and the error says so; if it is not known
        what that one was steered to, it stays as it is. Returns the longest gap of a NIC."""
        before = {} if self._quick else self._owners()
        done: list[Nic] = []
        gaps: list[float] = []
        refused: list[tuple[Nic, UplinkError]] = []
        for number, nic in enumerate(self._nics):
            try:
                gap_s = nic.driver.steer(side)
                done.append(nic)
                gaps += [] if gap_s is None else [gap_s]
            except UplinkError as error:
                if number not in self._links.live():
                    continue
                refused.append((nic, error))
                if not self._quick:
                    break
        if not refused:
            return max(gaps, default=None)
        nic, fault = refused[0]
        # The NIC that has refused may be changed nevertheless, if only the answer was lost.
        changed = [each for each in (*done, nic) if before.get(each.name, side) is not side]
        became = [text for each in changed if (text := _put_back(each, before[each.name], silent=each is nic))]
        if not self._quick:
            became += [f"{each.name} is steered to instance {side} now, and what it was steered to before is not known"
                       for each in done if each.name not in before]  # fmt: skip
        raise UplinkError("; ".join([f"{nic.name}: {fault.message}", *became]), hint=fault.hint) from fault

    def _owners(self) -> dict[str, Side | None]:
        """The side of each NIC, by its name, as far as they can be read."""
        found: dict[str, Side | None] = {}
        for nic in self._nics:
            with contextlib.suppress(UplinkError):
                found[nic.name] = nic.driver.owner()
        return found

    def prove(self, side: Side, end: Speaker, way: Way | None = None) -> Proof:
        """Prove each NIC that has a link. ``end``: the instance's end of the first NIC.

        The first NIC is the last one to send, because packets usually leave by it: a switch learns from a question that
        the VTEP's MAC is behind the NIC by which it came.
        """
        found: dict[str, Proof] = {}
        for number in reversed(self._links.live()):
            nic = self._nics[number]
            found[nic.name] = nic.driver.prove(side, self._end(side, number) if number else end, way)
        every = list(found.values())
        nics = tuple((nic.name, found[nic.name]) for nic in self._nics if nic.name in found)
        return Proof(_all([each.out for each in every]), _all([each.into for each in every]), nics)

    def steered(self, side: Side) -> Steered | None:
        counted = []
        for nic in self._nics:
            with contextlib.suppress(UplinkError):
                counted.append(nic.driver.steered(side))
        found = [each for each in counted if each is not None]
        return Steered(sum(each.given for each in found), sum(each.taken for each in found)) if found else None

    def clear(self) -> None:
        faults = []
        for nic in self._nics:
            try:
                nic.driver.clear()
            except UplinkError as error:
                faults.append(UplinkError(f"{nic.name}: {error.message}", hint=error.hint))
        if faults:
            raise faults[0]

    def forget(self, kind: type[Uplink]) -> None:
        """Remove the rules of drivers of one kind; those of a NIC without a link only if that is possible."""
        live = self._links.live()
        for number, nic in enumerate(self._nics):
            if isinstance(nic.driver, kind):
                try:
                    nic.driver.clear()
                except UplinkError:
                    if number in live:
                        raise

    def rules(self) -> list[str]:
        """The rules of each NIC; those of a NIC without a link only if they can be read."""
        live, found = self._links.live(), list[str]()
        for number, nic in enumerate(self._nics):
            try:
                found += rules_of(nic.driver)
            except UplinkError:
                if number in live:
                    raise
        return found

    def check(self) -> list[Finding]:
        """The findings of each NIC, which name it. What is wrong with a NIC without a link is a warning, as the other
        one carries the traffic."""
        live = self._links.live()
        return [*self._findings(live), *self._disagreement(live)]

    def _findings(self, live: Sequence[int]) -> Iterator[Finding]:
        for number, nic in enumerate(self._nics):
            if number not in live:
                others = ", ".join(self._nics[each].name for each in live)
                text = f"{nic.name} has no link: all of the overlay's packets use {others}"
                yield Finding("uplink", Severity.WARNING, text, f"its cable and its switch: ip link show {nic.name}")
            for each in nic.driver.check():
                dead = number not in live and each.severity is Severity.ERROR
                yield replace(each, text=each.text if nic.name in each.text else f"{nic.name}: {each.text}",
                              severity=Severity.WARNING if dead else each.severity)  # fmt: skip

    def _disagreement(self, live: Sequence[int]) -> list[Finding]:
        owners = {}
        for number in live:
            try:
                owners[self._nics[number].name] = self._nics[number].driver.owner()
            except UplinkError:
                return []  # its own check has found the cause
        if len(set(owners.values())) < 2:
            return []
        text = ", ".join(f"{name} is steered to {_whose(owner)}" for name, owner in owners.items())
        return [Finding("uplink", Severity.ERROR, f"the NICs do not agree: {text}", _STEER_AGAIN)]


def _put_back(nic: Nic, before: Side | None, *, silent: bool) -> str:
    """Steer a NIC to where it was before, and say in words whether this succeeded; with ``silent`` only if not."""
    try:
        if before is None:
            nic.driver.clear()
        else:
            nic.driver.steer(before)
    except UplinkError as error:
        return f"and {nic.name} could not be put back to {_whose(before)}: {error.message}"
    return "" if silent else f"{nic.name} was put back to {_whose(before)}"


def _whose(owner: Side | None) -> str:
    return "neither instance" if owner is None else f"instance {owner}"


def _all(proven: Sequence[bool | None]) -> bool | None:
    """Whether it is proven on every NIC; ``None`` if that is not known."""
    if False in proven:
        return False
    return None if None in proven else True

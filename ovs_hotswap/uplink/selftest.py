"""Tries on a real X710 or XL710 what the driver ``i40e`` needs, with rules that no packet of a network matches.

The rules are for a UDP port and an address that are not in use: a port of the dynamic range (RFC 6335, 6), and an
address for documentation (RFC 5737). They lead to a virtual function (VF) that the caller chooses, and are deleted at
the end. No packet is sent, and no setting is changed.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ovs_hotswap.errors import UplinkError
from ovs_hotswap.uplink import i40e_checks
from ovs_hotswap.uplink.ethtool import IP_USER_FLOW, UDP_V4_FLOW, Ethtool, FlowRule, code_of
from ovs_hotswap.uplink.i40e_rules import ANY_QUEUE, CLOUD, OUTER, same, words

TRIED_PORT, TRIED_ADDRESS = 64789, "192.0.2.1"
_MOVES = 20


class Result(enum.StrEnum):
    """The result of one trial. ``REFUSED``: the NIC or its driver does not have this form, and another one serves."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Trial:
    """What was tried and how it ended. ``ms``: the longest time without a rule while it was moved, in milliseconds."""

    name: str
    result: Result
    text: str
    ms: float | None = None
    hint: str | None = None


FORMS = {
    "UDP port": FlowRule(0, UDP_V4_FLOW, None, ANY_QUEUE, port=TRIED_PORT, user=CLOUD),
    "outer address": FlowRule(0, IP_USER_FLOW, None, ANY_QUEUE, address=TRIED_ADDRESS, user=CLOUD | OUTER),
    "address": FlowRule(0, IP_USER_FLOW, None, 0, address=TRIED_ADDRESS, user=CLOUD),
}
SERVING = {"udp-port": {"UDP port"}, "address": {"outer address", "address"}}
"""The forms of which one must work, for each value of uplink.match."""


def refuse_used(device: str, tool: Ethtool, locations: Sequence[int]) -> None:
    """Raises UplinkError if one of the locations has a rule."""
    for location in locations:
        rule = tool.rule(location) if location in tool.locations() else None
        if rule is not None:
            raise UplinkError(f"{device}: {words(rule)}: this location is in use; nothing was tried",
                              hint="give two free ones with --locations")  # fmt: skip


def not_tried(vf: int | None, locations: Sequence[int], why: str) -> list[Trial]:
    """The trials as they would be made; without a ``vf`` it is not known for which."""
    told = {name: words(replace(rule, vf=vf or 0, location=locations[0])) for name, rule in FORMS.items()}
    if vf is None:
        told = {name: text.replace("to VF 0", "to a VF") for name, text in told.items()}
    return [Trial(name, Result.NOT_TRIED, f"{text} ({why})") for name, text in told.items()]


def try_forms(
    device: str, tool: Ethtool, vf: int, locations: Sequence[int], clock: Callable[[], float] = time.monotonic
) -> Iterator[Trial]:
    """Try each form of rule on the VF, and delete what was made. Raises UplinkError if a rule of ours is left."""
    for name, form in FORMS.items():
        rule = replace(form, vf=vf, location=locations[0])
        try:
            yield _try_form(name, tool, rule, locations[1], clock)
        except UplinkError as error:
            yield Trial(name, Result.REFUSED, error.message, None, i40e_checks.why_refused(device, code_of(error)))
        finally:
            _delete(device, tool, [rule, replace(rule, location=locations[1])])


def _try_form(name: str, tool: Ethtool, rule: FlowRule, other: int, clock: Callable[[], float]) -> Trial:
    """Raises UplinkError if the first insert is refused."""
    tool.insert(rule)
    try:
        found = tool.rule(rule.location)
        if found is None or not same(found, rule):
            text = "no rule" if found is None else words(found)
            return Trial(name, Result.FAILED, f"{words(rule)}: inserted, but it reads back as {text}")
        longest, at = 0.0, [rule, replace(rule, location=other)]
        for count in range(_MOVES):
            begun = clock()
            tool.delete(at[count % 2].location)
            tool.insert(at[(count + 1) % 2])
            longest = max(longest, clock() - begun)
        return _twice(name, tool, at, longest)
    except UplinkError as error:
        return Trial(name, Result.FAILED, f"after it was inserted once: {error.message}")


def _twice(name: str, tool: Ethtool, at: Sequence[FlowRule], longest: float) -> Trial:
    """A second rule with the same match must be refused: the driver relies on there being one alone."""
    ms = round(1e3 * longest, 3)
    try:
        tool.insert(at[1])
    except UplinkError:
        found = tool.rule(at[0].location)
        if found is None or not same(found, at[0]):
            return Trial(name, Result.FAILED, "a refused second rule has taken the first one away", ms)
        text = f"{words(at[0])}: read back, moved {_MOVES} times, at most {ms} ms without a rule"
        return Trial(name, Result.PASSED, text, ms)
    return Trial(name, Result.FAILED, "a second rule with the same match was not refused", ms)


def _delete(device: str, tool: Ethtool, rules: Sequence[FlowRule]) -> None:
    for rule in rules:
        if rule.location in tool.locations():
            tool.delete(rule.location)
    if left := [rule for rule in rules if rule.location in tool.locations()]:
        raise UplinkError(f"{device}: {words(left[0])}: it was deleted and is still there",
                          hint=f"ethtool -N {device} delete {left[0].location}")  # fmt: skip


def passed(trials: Sequence[Trial], match: str | None) -> bool:
    """Whether the NIC can serve. ``match``: the value of uplink.match that has to work, ``None`` if any form does."""
    worked = {each.name for each in trials if each.result is Result.PASSED}
    wanted = set(FORMS) if match is None else SERVING[match]
    return bool(worked & wanted) and all(each.result is not Result.FAILED for each in trials)

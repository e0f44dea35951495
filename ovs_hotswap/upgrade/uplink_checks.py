"""Whether an instance's uplink passes packets, judged by frames that are sent as a proof and by the VMs' traffic. Pure.

A link that is up proves nothing: a virtual function may be mute (spoof checking, a wrong VLAN, a port that is not
trusted) or deaf, and a program in front of the steering may take the packets. What cannot be judged is reported as not
proven. It counts neither as good nor as bad, because a host may be silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovs_hotswap.model import Finding, Proof, Severity, Side

NAME = "uplink"
PROGRAMS = "uplink programs"
"""The name of the findings about programs that see packets before the steering does."""
ENOUGH = 20  # packets: fewer may all be lost, or stop, by chance
_HINT = "spoof checking, trust, VLAN and MAC of its virtual function (ip link show); `tc -s filter show`"


@dataclass(frozen=True, slots=True)
class Passed:
    """The overlay's packets in ``seconds``. The instance's flows count those ``sent`` by its uplink and those
    ``received`` from other hosts. The steering counts those ``given`` to the uplink and ``taken`` from it, which are
    ``None`` if not known."""

    seconds: float
    sent: int
    received: int
    given: int | None = None
    taken: int | None = None


def proof(side: Side, of: Proof, compared: Proof | None = None) -> list[Finding]:
    """Judge the proof ``of`` an uplink. ``compared``: the proof of the other instance, or of an earlier time. What it
    has proven can be proven on this host, so only then is a missing proof an error."""
    other = compared or Proof()
    ways = (
        (of.out, other.out, "it is mute: other hosts do not answer it, though they did answer on this host",
         "no neighbour of the overlay file answers ARP, so whether what it sends arrives is not known"),
        (of.into, other.into, "it is deaf: what its representor is given does not come in",
         "frames cannot be given to it, so whether it would receive is not known"),
    )  # fmt: skip
    lost = [bad for ok, could, bad, _ in ways if ok is False and could]
    unproven = [unknown for ok, could, _, unknown in ways if not ok and not (ok is False and could)]
    if lost:
        text = f"instance {side}'s uplink passes nothing in one direction: {'; '.join(lost)}"
        return [Finding(NAME, Severity.ERROR, text, _HINT)]
    if unproven:
        return [Finding(NAME, Severity.WARNING, f"instance {side}'s uplink is not proven: {'; '.join(unproven)}",
                        "see [[neighbour]] in the overlay file")]  # fmt: skip
    return [Finding(NAME, Severity.OK, f"instance {side}: neighbours answer it, and what is given to it comes in")]


def traffic(side: Side, after: Passed, before: Passed | None) -> list[Finding]:
    """Judge the VMs' traffic ``after`` it was steered to ``side``. ``before``: the traffic on the other instance, if it
    was seen there.

    If nothing comes in any longer, that is an error only while VMs keep sending: they may have finished."""
    expected = before.received / before.seconds * after.seconds if before and before.seconds > 0 else 0.0
    if after.received == 0 and (after.given or 0) >= ENOUGH:
        text = f"{after.given} packets were steered to instance {side}, none came in"
    elif after.received == 0 and expected >= ENOUGH and after.sent >= ENOUGH:
        text = f"nothing comes in from other hosts on instance {side}; on the other it was {expected:.0f} packets"
    elif after.taken == 0 and after.sent >= ENOUGH:
        text = f"instance {side} has sent {after.sent} packets, none of which the host has seen"
    else:
        return [_judged(side, after)]
    return [Finding(NAME, Severity.ERROR, f"{text} in {after.seconds:.1f} s", _HINT)]


def _judged(side: Side, after: Passed) -> Finding:
    if after.received and after.sent:
        text = f"instance {side}: {after.sent} packets sent and {after.received} received in {after.seconds:.1f} s"
        return Finding(NAME, Severity.OK, text)
    silent = " and ".join(
        what for what, count in (("none was sent", after.sent), ("none came in", after.received)) if not count
    )
    text = f"instance {side}'s uplink is not proven by traffic of VMs with other hosts: {silent}"
    return Finding(NAME, Severity.WARNING, f"{text} in {after.seconds:.1f} s", "ping another host from a VM")


def steering(found: Sequence[Finding], active: Passed) -> list[Finding]:
    """Judge the findings about the steering's rules. A program in front of the rules may pass packets or take them. If
    packets come in on the ``active`` instance it passes them; otherwise the finding is an error."""
    if active.received or active.given:
        return list(found)
    return [
        Finding(each.check, Severity.ERROR, f"{each.text}; none came to the instance in {active.seconds:.1f} s",
                each.hint) if each.check == PROGRAMS else each
        for each in found
    ]  # fmt: skip

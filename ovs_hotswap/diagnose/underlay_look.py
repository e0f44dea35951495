"""A look at the uplink of the active instance, and at the next hops behind it, for `diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from ovs_hotswap.diagnose.facts import Underlay
from ovs_hotswap.diagnose.parts import together
from ovs_hotswap.errors import SwitchError, UplinkError
from ovs_hotswap.host.host import Host
from ovs_hotswap.model import Life, Proof, Severity, Side, Way
from ovs_hotswap.overlay.intent import Neighbour
from ovs_hotswap.overlay.next_hops import asked
from ovs_hotswap.upgrade import uplink_proof
from ovs_hotswap.uplink.driver import rules_of

FRAMES_S = 6.5
"""For all questions together: so long do six next hops take of which none answers (``uplink.neighbours``), and then the
proof of the way out (``uplink.proof``)."""


def look(host_of: Callable[[], Host], active: Side, hops: Collection[str], probe: bool) -> Underlay:
    """Return what is known of the uplink of the active instance, and which of the next hops ``hops`` answer. ``probe``:
    send frames for that. ``host_of`` makes a host of its own for each part. Raises UplinkError."""
    host = host_of()
    uplink = host.uplink
    steers = host.config.uplink.driver != "none"
    faults = tuple((each.text, each.hint) for each in uplink.check() if each.severity is Severity.ERROR)
    found = Underlay(steers, uplink.owner(), faults=faults, rules=tuple(rules_of(uplink)), apart=_by_kernel(host))
    if not probe or host.instances[active].life() is not Life.RUNS:
        return found
    wanted = [
        each for each in host.intent.neighbours if each.address in hops and _answers_are_heard(host, each.address)
    ]
    if not steers or faults:  # frames would prove nothing that is not known
        return _with_answers(host, found, wanted)

    def out() -> Underlay:
        """One after the other: an answer does not say whose question it answers."""
        seen = _with_answers(host, found, wanted)
        if seen.apart and seen.asked and not seen.answers:  # no answer would be expected either
            return replace(seen, proof=Proof())
        try:
            return replace(seen, proof=uplink_proof.prove(host, active, Way.OUT))
        except (SwitchError, UplinkError) as error:
            return replace(seen, proof=Proof(), unproven=error.message)

    into = partial(uplink_proof.prove, host_of(), active, Way.INTO)
    ways, failed = together({"out": out, "into": into}, FRAMES_S)
    asked_of: Underlay = ways.get("out", found)
    why = next((error.message for error in failed.values()), "")
    proof = (asked_of.proof or Proof()).joined(ways.get("into", Proof()))
    return replace(asked_of, proof=proof, unproven=asked_of.unproven or why)


def _with_answers(host: Host, found: Underlay, wanted: Sequence[Neighbour]) -> Underlay:
    """Ask the ``wanted`` next hops."""
    try:
        answers = host.underlay.asker().ask(wanted, {}) if wanted else {}
    except (SwitchError, UplinkError) as error:
        return replace(found, unproven=error.message)
    return replace(found, asked=tuple(each.address for each in wanted), answers=answers)


def _answers_are_heard(host: Host, address: str) -> bool:
    """Whether the answer of a neighbour would be heard. Where the kernel has no device of the NIC, the bridge's flows
    let only answers pass of those that are followed (``overlay.tables``)."""
    return _by_kernel(host) or address in {each.address for each in asked(host.intent)}


def _by_kernel(host: Host) -> bool:
    """Whether next hops are asked from the kernel's devices (``host.underlay``)."""
    config = host.config.uplink
    return config.both_open and config.driver != "announce" and any(nic.device for nic in config.nics)

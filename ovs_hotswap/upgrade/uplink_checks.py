"""Whether an instance's uplink passes packets, judged by frames that are sent as a proof and by the VMs' traffic. Pure.

A link that is up proves nothing: a virtual function may be mute (spoof checking, a wrong VLAN, a port that is not
trusted) or deaf, and a program in front of the steering may take the packets. What cannot be judged is reported as not
proven. That is an error where packets passed on the other side, and a warning where they may never have passed, because
a host may be silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ovs_hotswap.model import Finding, Proof, Severity, Side

NAME = "uplink"
PROGRAMS = "uplink programs"
"""The name of the findings about programs that see packets before the steering does."""
PEERS = "uplink peers"
"""The name of the findings about hosts that send to the instance that does not have the traffic."""
ENOUGH = 20  # packets: fewer may all be lost, or stop, by chance
PATIENCE_S = 30.0
"""For how long an uplink that frames have not proven may show that packets pass."""
_RULE_HINT = "see `tc -s filter show`, `bpftool net show` and the NIC's own rules (ethtool -n)"
_HINT = "spoof checking, trust, VLAN and MAC of its virtual function (ip link show); `tc -s filter show`"


@dataclass(frozen=True, slots=True)
class Passed:
    """The overlay's packets in ``seconds``. The instance's flows count those ``sent`` by its uplink and those
    ``received`` from other hosts. The steering counts those ``given`` to the uplink and ``taken`` from it, which are
    ``None`` if not known. The instance's port counts those of any kind that have ``arrived``."""

    seconds: float
    sent: int
    received: int
    given: int | None = None
    taken: int | None = None
    arrived: int = 0

    def expected(self, what: str, seconds: float) -> float:
        """How many packets of a field make ``seconds`` at this rate."""
        return float(getattr(self, what)) / self.seconds * seconds if self.seconds > 0 else 0.0


def proof(side: Side, of: Proof, compared: Proof | None = None, *, spare: bool = False) -> list[Finding]:
    """Judge the proof ``of`` an uplink. ``compared``: the proof of the other instance, or of an earlier time. What it
    has proven can be proven on this host, so only then is a missing proof an error. Each NIC is judged by itself;
    ``spare``: one that passes nothing is only a warning while another passes packets."""
    other = compared or Proof()
    if not of.nics:
        return [_proof(f"instance {side}'s uplink", of, other)]
    found = [_proof(f"instance {side}'s uplink on {name}", each, other.of(name)) for name, each in of.nics]
    if spare and any(each.severity is not Severity.ERROR for each in found):
        return [replace(each, severity=Severity.WARNING) if each.severity is Severity.ERROR else each for each in found]
    return found


def _proof(what: str, of: Proof, other: Proof) -> Finding:
    asked = "can be asked" if of.out is None else "answers ARP"
    ways = (
        (of.out, other.out, "it is mute: other hosts do not answer it, though they did answer on this host",
         f"no neighbour of the overlay file {asked}, so whether what it sends arrives is not known"),
        (of.into, other.into, "it is deaf: what its representor is given does not come in",
         "frames cannot be given to it, so whether it would receive is not known"),
    )  # fmt: skip
    lost = [bad for ok, could, bad, _ in ways if ok is False and could]
    unproven = [unknown for ok, could, _, unknown in ways if not ok and not (ok is False and could)]
    if lost:
        return Finding(NAME, Severity.ERROR, f"{what} passes nothing in one direction: {'; '.join(lost)}", _HINT)
    if unproven:
        return Finding(NAME, Severity.WARNING, f"{what} is not proven: {'; '.join(unproven)}",
                       "see [[neighbour]] in the overlay file")  # fmt: skip
    whose = what.replace("'s uplink", "")
    return Finding(NAME, Severity.OK, f"{whose}: neighbours answer it, and what is given to it comes in")


def traffic(side: Side, after: Passed, before: Passed | None, proof: Proof | None = None) -> list[Finding]:
    """Judge the VMs' traffic ``after`` it was steered to ``side``. ``before``: the traffic on the other instance, if it
    was seen there. ``proof``: that of ``side``'s uplink by frames.

    If nothing comes in any longer, that is an error. But if the uplink is proven, and the VMs that sent before send
    nothing either, they may have finished."""
    expected = before.expected("received", after.seconds) if before else 0.0
    where = ""
    if after.received == 0 and (after.given or 0) >= ENOUGH:
        text = f"{after.given} packets were steered to instance {side}, none came in"
    elif after.received == 0 and expected >= ENOUGH and not _finished(after, before, proof):
        text = f"nothing comes in from other hosts on instance {side}; on the other it was {expected:.0f} packets"
        where = f"; {_where(after)}"
    elif after.taken == 0 and after.sent >= ENOUGH:
        text = f"instance {side} has sent {after.sent} packets, none of which the host has seen"
    else:
        return [_judged(side, after)]
    return [Finding(NAME, Severity.ERROR, f"{text} in {after.seconds:.1f} s{where}", _HINT)]


def _finished(after: Passed, before: Passed | None, proof: Proof | None) -> bool:
    """Whether the VMs may have finished: the uplink is proven, and they sent before, and send nothing now."""
    proven = proof is not None and bool(proof.out and proof.into)
    return proven and after.sent == 0 and before is not None and before.expected("sent", after.seconds) >= ENOUGH


def undecided(after: Passed, before: Passed | None, proof: Proof | None) -> bool:
    """Whether nothing has come in yet, though packets are expected, but too few until now to miss them."""
    if after.received or before is None or _finished(after, before, proof):
        return False
    return before.expected("received", after.seconds) < ENOUGH <= before.expected("received", PATIENCE_S)


def _where(after: Passed) -> str:
    """Where packets are lost that the instance does not receive, as far as counters tell."""
    if after.given:
        return f"the steering has given it {after.given}"
    if after.arrived:
        return f"its port has received {after.arrived} other packets, so the tunnels' may be steered elsewhere"
    return "its port has received none of any kind"


def unshown(side: Side, after: Passed, carried: Passed | None, proof: Proof) -> list[Finding]:
    """What is not shown to pass on ``side``, neither by ``proof``, which is one by frames, nor by the traffic ``after``
    it was steered there, although it passed on the other instance, which has ``carried`` packets since the upgrade
    began. An uplink that is up and silent is no uplink."""
    if carried is None:
        return []
    many = min(carried.arrived, carried.expected("arrived", PATIENCE_S)) >= ENOUGH  # broadcasts, mostly
    no_others = many and after.arrived == 0
    missing = []
    if not (after.received or proof.into) and (carried.received or no_others):
        had = f"{carried.received} packets from other hosts" if carried.received else f"{carried.arrived} packets"
        missing.append(f"nothing came in, and instance {side.other} had received {had}; {_where(after)}")
    if carried.sent and carried.received and not ((after.sent and after.received) or proof.out):
        what = "is answered" if after.sent else "was sent"
        missing.append(f"nothing {what}, and instance {side.other} had sent {carried.sent} packets and been answered")
    if not missing:
        return []
    text = f"instance {side}'s uplink is up, but not shown to pass packets in {after.seconds:.0f} s: "
    hint = f"{_HINT}; a [[neighbour]] that answers ARP, or a ping from a VM, proves an idle uplink"
    return [Finding(NAME, Severity.ERROR, text + "; ".join(missing), hint)]


def rule(side: Side, whole: Passed, late: Passed) -> list[Finding]:
    """Judge the counter of the rule that steers to the active instance ``side``. ``late`` is the end of ``whole``: the
    switch counts packets up to some time after the rule does."""
    if whole.given is None or whole.given > 0:
        return []
    text, hint = f"the rule that steers to instance {side} has counted no packet in {whole.seconds:.0f} s", _RULE_HINT
    if late.received >= ENOUGH:
        more = f"though the instance has received {late.received}: something else brings them, and steering moves none"
        return [Finding(NAME, Severity.ERROR, f"{text}, {more}", hint)]
    if late.sent >= ENOUGH and late.received == 0:
        more = f"though VMs have sent {late.sent}: no host answers, or something takes the answers before the rule"
        return [Finding(NAME, Severity.WARNING, f"{text}, {more}", hint)]
    return []


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
